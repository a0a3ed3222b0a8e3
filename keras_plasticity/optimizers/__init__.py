"""Optimizer wrappers that keep a network plastic."""

from keras_plasticity.optimizers.continual_backprop import (
    ContinualBackprop as ContinualBackprop,
)

__all__ = ["ContinualBackprop"]
