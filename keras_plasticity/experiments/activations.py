"""Activations of hidden layers, and the gains of their initial weights."""

import math

import keras

# The gain of each activation in the scheme of Kaiming He, as in the paper.
GAINS = {
    "relu": math.sqrt(2),
    "leaky_relu": math.sqrt(2 / (1 + 0.01**2)),
    "tanh": 5 / 3,
    "sigmoid": 1.0,
    "elu": math.sqrt(2),
    "swish": math.sqrt(2),
}
BOUNDED = ("tanh", "sigmoid")


def function(name):
    """What a Keras layer takes as its `activation`."""
    return leaky_relu if name == "leaky_relu" else name


def leaky_relu(x):
    """Leaky ReLU with the slope of the paper's code."""
    return keras.activations.leaky_relu(x, negative_slope=0.01)
