"""Callbacks that monitor training or intervene at task boundaries."""

from keras_plasticity.callbacks.evaluate_tortoise import (
    EvaluateTortoise as EvaluateTortoise,
)
from keras_plasticity.callbacks.plasticity_monitor import (
    PlasticityMonitor as PlasticityMonitor,
)
from keras_plasticity.callbacks.shrink_and_perturb_tasks import (
    ShrinkAndPerturbTasks as ShrinkAndPerturbTasks,
)
from keras_plasticity.callbacks.zero_weights import ZeroWeights as ZeroWeights

__all__ = [
    "EvaluateTortoise",
    "PlasticityMonitor",
    "ShrinkAndPerturbTasks",
    "ZeroWeights",
]
