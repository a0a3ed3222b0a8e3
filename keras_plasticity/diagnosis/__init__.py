"""Measures of the plasticity of a model, and what they say."""

from keras_plasticity.diagnosis.curvature import hessian_rank as hessian_rank
from keras_plasticity.diagnosis.curvature import (
    hessian_spectrum as hessian_spectrum,
)
from keras_plasticity.diagnosis.curvature import sharpness as sharpness
from keras_plasticity.diagnosis.diagnose import diagnose as diagnose
from keras_plasticity.diagnosis.measure import measure as measure
from keras_plasticity.diagnosis.readiness import (
    optimization_readiness as optimization_readiness,
)
from keras_plasticity.diagnosis.recent_examples import (
    RecentExamples as RecentExamples,
)
from keras_plasticity.diagnosis.tangent_kernel import (
    tangent_kernel_condition as tangent_kernel_condition,
)
from keras_plasticity.diagnosis.tangent_kernel import (
    tangent_kernel_gradients as tangent_kernel_gradients,
)
from keras_plasticity.diagnosis.tangent_kernel import (
    tangent_kernel_rank as tangent_kernel_rank,
)

__all__ = [
    "RecentExamples",
    "diagnose",
    "hessian_rank",
    "hessian_spectrum",
    "measure",
    "optimization_readiness",
    "sharpness",
    "tangent_kernel_condition",
    "tangent_kernel_gradients",
    "tangent_kernel_rank",
]
