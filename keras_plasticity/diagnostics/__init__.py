"""Measures of plasticity: functions of NumPy arrays that return numbers."""

from keras_plasticity.diagnostics.curvature import hessian_rank as hessian_rank
from keras_plasticity.diagnostics.kernels import (
    gradient_dormant_units as gradient_dormant_units,
)
from keras_plasticity.diagnostics.kernels import (
    isometry_deviation as isometry_deviation,
)
from keras_plasticity.diagnostics.outputs import output_churn as output_churn
from keras_plasticity.diagnostics.rank import (
    absolute_approximate_rank as absolute_approximate_rank,
)
from keras_plasticity.diagnostics.rank import (
    approximate_rank as approximate_rank,
)
from keras_plasticity.diagnostics.rank import effective_rank as effective_rank
from keras_plasticity.diagnostics.rank import hard_rank as hard_rank
from keras_plasticity.diagnostics.rank import stable_rank as stable_rank
from keras_plasticity.diagnostics.readiness import (
    optimization_readiness as optimization_readiness,
)
from keras_plasticity.diagnostics.tangent_kernel import (
    tangent_kernel_condition as tangent_kernel_condition,
)
from keras_plasticity.diagnostics.tangent_kernel import (
    tangent_kernel_rank as tangent_kernel_rank,
)
from keras_plasticity.diagnostics.units import dead_units as dead_units
from keras_plasticity.diagnostics.units import dormant_units as dormant_units
from keras_plasticity.diagnostics.units import inactive_units as inactive_units
from keras_plasticity.diagnostics.units import (
    linear_fraction as linear_fraction,
)
from keras_plasticity.diagnostics.units import linear_units as linear_units
from keras_plasticity.diagnostics.units import (
    saturated_fraction as saturated_fraction,
)
from keras_plasticity.diagnostics.units import (
    saturated_units as saturated_units,
)
from keras_plasticity.diagnostics.weights import gradient_norm as gradient_norm
from keras_plasticity.diagnostics.weights import weight_change as weight_change
from keras_plasticity.diagnostics.weights import weight_growth as weight_growth
from keras_plasticity.diagnostics.weights import (
    weight_magnitude as weight_magnitude,
)

__all__ = [
    "absolute_approximate_rank",
    "approximate_rank",
    "dead_units",
    "dormant_units",
    "effective_rank",
    "gradient_dormant_units",
    "gradient_norm",
    "hard_rank",
    "hessian_rank",
    "inactive_units",
    "isometry_deviation",
    "linear_fraction",
    "linear_units",
    "optimization_readiness",
    "output_churn",
    "saturated_fraction",
    "saturated_units",
    "stable_rank",
    "tangent_kernel_condition",
    "tangent_kernel_rank",
    "weight_change",
    "weight_growth",
    "weight_magnitude",
]
