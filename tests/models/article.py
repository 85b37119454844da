"""Helper of the parity tests: the Xception of an article as a Keras graph.

The article, "Xception from Scratch using Tensorflow", describes it: SAME padding everywhere,
no biases, each shortcut of the entry flow a projection of the projection before it, a ReLU before
each sum of the middle flow, none after the last separable convolution.
"""

import keras
from keras import layers


def build(num_classes: int) -> keras.Model:
    """The graph, from `[N, H, W, 3]` to logits."""

    def bn(x):
        return layers.BatchNormalization(epsilon=1e-3, momentum=0.99)(x)

    def conv(x, filters, size, strides):
        return bn(layers.Conv2D(filters, size, strides, 'same', use_bias=False)(x))

    def sepconv(x, filters):
        return bn(layers.SeparableConv2D(filters, 3, padding='same', use_bias=False)(x))

    relu = layers.ReLU
    inputs = keras.Input((None, None, 3))
    x = relu()(conv(inputs, 32, 3, 2))
    x = projection = relu()(conv(x, 64, 3, 1))
    for filters in (128, 256, 728):
        if filters != 128:
            x = relu()(x)
        x = sepconv(relu()(sepconv(x, filters)), filters)
        x = layers.MaxPooling2D(3, 2, 'same')(x)
        projection = conv(projection, filters, 1, 2)
        x = layers.Add()([projection, x])
    for _ in range(8):
        y = x
        for _ in range(3):
            y = sepconv(relu()(y), 728)
        x = layers.Add()([x, relu()(y)])
    projection = conv(x, 1024, 1, 2)
    x = sepconv(relu()(sepconv(relu()(x), 728)), 1024)
    x = layers.Add()([projection, layers.MaxPooling2D(3, 2, 'same')(x)])
    x = sepconv(relu()(sepconv(x, 1536)), 2048)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(num_classes)(x))
