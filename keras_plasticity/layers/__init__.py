"""Plastic layers: drop-in Keras layers that keep utility statistics."""

from keras_plasticity.layers.dense import Dense as Dense

__all__ = ["Dense"]
