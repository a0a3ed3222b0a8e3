"""Plasticity for existing models."""

from keras_plasticity.models.make_plastic import make_plastic as make_plastic

__all__ = ["make_plastic"]
