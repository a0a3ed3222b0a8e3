"""Callbacks: what looks on, or steps in, between the steps of training."""

from keras_plasticity.callbacks.plasticity_monitor import (
    PlasticityMonitor as PlasticityMonitor,
)

__all__ = ["PlasticityMonitor"]
