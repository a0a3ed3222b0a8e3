"""Measures of plasticity: functions of NumPy arrays that return numbers."""

from keras_plasticity.diagnostics.rank import (
    absolute_approximate_rank as absolute_approximate_rank,
)
from keras_plasticity.diagnostics.rank import (
    approximate_rank as approximate_rank,
)
from keras_plasticity.diagnostics.rank import effective_rank as effective_rank
from keras_plasticity.diagnostics.rank import hard_rank as hard_rank
from keras_plasticity.diagnostics.rank import stable_rank as stable_rank
from keras_plasticity.diagnostics.units import dead_units as dead_units
from keras_plasticity.diagnostics.units import dormant_units as dormant_units
from keras_plasticity.diagnostics.units import inactive_units as inactive_units
from keras_plasticity.diagnostics.units import (
    saturated_fraction as saturated_fraction,
)
from keras_plasticity.diagnostics.units import (
    saturated_units as saturated_units,
)
from keras_plasticity.diagnostics.weights import gradient_norm as gradient_norm
from keras_plasticity.diagnostics.weights import weight_change as weight_change
from keras_plasticity.diagnostics.weights import (
    weight_magnitude as weight_magnitude,
)

__all__ = [
    "absolute_approximate_rank",
    "approximate_rank",
    "dead_units",
    "dormant_units",
    "effective_rank",
    "gradient_norm",
    "hard_rank",
    "inactive_units",
    "saturated_fraction",
    "saturated_units",
    "stable_rank",
    "weight_change",
    "weight_magnitude",
]
