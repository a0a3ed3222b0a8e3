"""Optimizer wrappers that keep a network plastic."""

from keras_plasticity.optimizers.continual_backprop import (
    ContinualBackprop as ContinualBackprop,
)
from keras_plasticity.optimizers.l2 import L2 as L2
from keras_plasticity.optimizers.shrink_and_perturb import (
    ShrinkAndPerturb as ShrinkAndPerturb,
)
from keras_plasticity.optimizers.shrink_and_perturb import (
    ShrinkAndPerturbByInitializer as ShrinkAndPerturbByInitializer,
)

__all__ = [
    "ContinualBackprop",
    "L2",
    "ShrinkAndPerturb",
    "ShrinkAndPerturbByInitializer",
]
