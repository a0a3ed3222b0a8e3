"""Plastic models of a few units, for four inputs and three outputs."""

import keras

from keras_plasticity import layers
from tests.helpers import make_model


def dense():
    return make_model(activation="relu")


def convolutional():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Reshape((2, 2, 1)),
            layers.Conv2D(6, 2, padding="same", activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            layers.Dense(5, activation="relu"),
            layers.Dense(3),
        ]
    )


def two_readers():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    hidden = layers.Dense(6, activation="relu")(inputs)
    first = layers.Dense(5, activation="relu")(hidden)
    both = keras.layers.Concatenate()([hidden, first])
    return keras.Model(inputs, layers.Dense(3)(both))
