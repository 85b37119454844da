"""Fine-tuning: trains pretrained weights on another task, by default on your own images.

    python -m xception_flax.main --config=configs/finetune.py --workdir=/tmp/flowers \
        --config.init.weights=xception.weights.h5 --config.dataset.data_dir=flowers

    flowers/train/rose/1.jpg ...   flowers/val/rose/7.jpg ...

The weights are what xception_flax.convert reads, or a run. The config has to name the same
network; otherwise the error lists the settings to add. The classifier is new; to keep it, for the
same classes as before, give `--config.init.new_head=False`. For a TFDS set instead of a folder:

    --config.dataset.source=tfds --config.dataset.name=tf_flowers \
        --config.dataset.train_split='train[:80%]' --config.dataset.eval_split='train[80%:]'

What is trained:

    --config.frozen=trunk                    only the classifier (linear probe)
    --config.frozen=entry_flow,middle_flow   the exit flow and the classifier
    --config.optimizer.layer_decay=0.8       everything, at learning rates that fall by this factor
                                             per block from the classifier to the stem

To train a probe first and then more, start a second run from the first:
`--config.init.weights=/tmp/probe --config.init.new_head=False`. On few images add
`--config.frozen_statistics=True`: batch norm keeps the statistics of the first training.

Measured on small images: experiments/finetune/.
"""

from xception_flax import config as configs


def get_config():
    c = configs.default()
    c.init.new_head = True
    c.dataset.source = 'folder'
    c.dataset.eval_split = 'val'
    c.batch_size = 32
    c.total_epochs = 20.0
    c.eval_epochs = 2.0
    c.log_steps = 10

    c.augment.area = (0.25, 1.0)

    c.optimizer.name = 'sgd'
    c.optimizer.nesterov = True
    c.optimizer.weight_decay = 1e-4
    c.optimizer.clip_norm = 1.0
    c.schedule.name = 'cosine'
    c.schedule.learning_rate = 0.01
    c.schedule.warmup_percent = 10.0
    c.ema_decay = 0.99
    return c
