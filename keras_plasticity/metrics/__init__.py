"""Measures of plasticity: NumPy arrays in, numbers out."""

from keras_plasticity.metrics.rank import (
    absolute_approximate_rank as absolute_approximate_rank,
)
from keras_plasticity.metrics.rank import approximate_rank as approximate_rank
from keras_plasticity.metrics.rank import effective_rank as effective_rank
from keras_plasticity.metrics.rank import hard_rank as hard_rank
from keras_plasticity.metrics.rank import stable_rank as stable_rank
from keras_plasticity.metrics.units import dead_units as dead_units
from keras_plasticity.metrics.weights import (
    weight_magnitude as weight_magnitude,
)

__all__ = [
    "absolute_approximate_rank",
    "approximate_rank",
    "dead_units",
    "effective_rank",
    "hard_rank",
    "stable_rank",
    "weight_magnitude",
]
