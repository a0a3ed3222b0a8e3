"""Callbacks that monitor training or intervene at task boundaries."""

from keras_plasticity.callbacks.boundary_callback import (
    BoundaryCallback as BoundaryCallback,
)
from keras_plasticity.callbacks.csv_tracker import CSVTracker as CSVTracker
from keras_plasticity.callbacks.dash import DASH as DASH
from keras_plasticity.callbacks.evaluate_tortoise import (
    EvaluateTortoise as EvaluateTortoise,
)
from keras_plasticity.callbacks.fire import FIRE as FIRE
from keras_plasticity.callbacks.mlflow_tracker import (
    MLflowTracker as MLflowTracker,
)
from keras_plasticity.callbacks.plasticity_injection import (
    PlasticityInjection as PlasticityInjection,
)
from keras_plasticity.callbacks.plasticity_monitor import (
    PlasticityMonitor as PlasticityMonitor,
)
from keras_plasticity.callbacks.reset_layers import ResetLayers as ResetLayers
from keras_plasticity.callbacks.reset_model import ResetModel as ResetModel
from keras_plasticity.callbacks.shrink_and_perturb_tasks import (
    ShrinkAndPerturbTasks as ShrinkAndPerturbTasks,
)
from keras_plasticity.callbacks.spectral_diversity_preservation import (
    SpectralDiversityPreservation as SpectralDiversityPreservation,
)
from keras_plasticity.callbacks.wandb_tracker import (
    WandbTracker as WandbTracker,
)
from keras_plasticity.callbacks.zero_weights import ZeroWeights as ZeroWeights

__all__ = [
    "BoundaryCallback",
    "CSVTracker",
    "DASH",
    "EvaluateTortoise",
    "FIRE",
    "MLflowTracker",
    "PlasticityInjection",
    "PlasticityMonitor",
    "ResetLayers",
    "ResetModel",
    "ShrinkAndPerturbTasks",
    "SpectralDiversityPreservation",
    "WandbTracker",
    "ZeroWeights",
]
