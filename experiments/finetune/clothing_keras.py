"""Fine-tunes Keras's Xception on a folder of images, as Keras's guide to transfer learning does.

    python -m experiments.finetune.clothing_keras IMAGES WEIGHTS OUT --recipe='two stages'

clothing.py runs it, beside ours. OUT is a JSON file for the results. The backend is TensorFlow, or
that of KERAS_BACKEND.
"""

import json
import os
import pathlib
import statistics
import time
from typing import Any

import numpy as np
from absl import flags

from xception_flax.runtime import program

flags.DEFINE_enum('recipe', 'probe', ('probe', 'two stages'), 'What is trained.')
flags.DEFINE_integer('epochs', 10, 'Over all stages.')
flags.DEFINE_integer('size', 150, 'Side of the images.')
flags.DEFINE_integer('seed', 0, 'Of the head, the order and the augmentation.')

BATCH = 32


def main(images: str, weights: str, out: str) -> None:
    """Trains, and measures on the test images."""
    os.environ.setdefault('KERAS_BACKEND', 'tensorflow')
    import keras

    values = flags.FLAGS
    keras.utils.set_random_seed(values.seed)
    train, validation, test = (
        read(keras, pathlib.Path(images, split), values.size)
        for split in ('train', 'validation', 'test')
    )
    trunk = load_trunk(keras, weights, values.size)
    two = values.recipe == 'two stages'
    inputs = keras.Input((values.size, values.size, 3))
    x = keras.layers.RandomFlip('horizontal')(inputs) if two else inputs
    x = trunk(keras.layers.Rescaling(1 / 127.5, -1)(x), training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.2)(x) if two else x
    model = keras.Model(inputs, keras.layers.Dense(10)(x))

    trunk.trainable = False
    stages = [(1e-3, values.epochs // 2 if two else values.epochs)]
    stages += [(1e-5, values.epochs - values.epochs // 2)] if two else []
    clock, history = make_clock(keras), []
    for number, (rate, epochs) in enumerate(stages):
        if number:
            trunk.trainable = True
            upper = False
            for layer in trunk.layers:
                upper = upper or layer.name.startswith('block13')
                layer.trainable = upper
        model.compile(
            keras.optimizers.Adam(rate),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=['accuracy'],
        )
        fitted = model.fit(
            *train, BATCH, epochs, verbose=2, callbacks=[clock], validation_data=validation
        )
        history += fitted.history['val_accuracy']
    pathlib.Path(out).write_text(
        json.dumps(
            {
                'validation': history,
                'test': model.evaluate(*test, BATCH, verbose=0, return_dict=True)['accuracy'],
                'seconds_per_epoch': statistics.median(clock.seconds[1:] or clock.seconds),
                'keras': f'{keras.__version__} on {keras.backend.backend()}',
            }
        )
    )


def read(keras: Any, folder: pathlib.Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """All images of a split, cropped to squares of `size`, `[N, size, size, 3]`, and labels `[N]`.

    They stay in memory, as the guide's cached data set does.
    """
    files = sorted(folder.glob('*/*.jpg'))
    names = sorted({file.parent.name for file in files})
    images = [
        np.asarray(
            keras.utils.load_img(
                file, target_size=(size, size), interpolation='bilinear', keep_aspect_ratio=True
            )
        )
        for file in files
    ]
    return np.stack(images), np.array([names.index(file.parent.name) for file in files])


def load_trunk(keras: Any, weights: str, size: int) -> Any:
    """Keras's Xception without its head, with 'imagenet' weights or those of a file."""
    shape = (size, size, 3)
    if weights == 'imagenet':
        return keras.applications.Xception(include_top=False, input_shape=shape)
    whole = keras.applications.Xception(weights=None)
    whole.load_weights(weights)
    trunk = keras.applications.Xception(weights=None, include_top=False, input_shape=shape)
    trunk.set_weights(whole.get_weights()[: len(trunk.weights)])
    return trunk


def make_clock(keras: Any) -> Any:
    """A callback that takes the seconds of training of each epoch, without validation."""

    class Clock(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.seconds: list[float] = []

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.began = time.perf_counter()
            self.seconds.append(0.0)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.seconds[-1] = time.perf_counter() - self.began

    return Clock()


if __name__ == '__main__':
    program.run(main, alone=True, arguments='IMAGES WEIGHTS OUT')
