"""Pure formulas, tensor in and tensor out, on any Keras backend."""

from keras_plasticity.functional.replacement import (
    advance_count as advance_count,
)
from keras_plasticity.functional.replacement import count_digits as count_digits
from keras_plasticity.functional.replacement import (
    least_useful_unit as least_useful_unit,
)
from keras_plasticity.functional.running_mean import (
    running_mean as running_mean,
)
from keras_plasticity.functional.running_mean import step_size as step_size
from keras_plasticity.functional.utility import adaptation as adaptation
from keras_plasticity.functional.utility import contribution as contribution
from keras_plasticity.functional.utility import (
    mean_corrected_contribution as mean_corrected_contribution,
)
from keras_plasticity.functional.utility import mean_magnitude as mean_magnitude
from keras_plasticity.functional.utility import overall as overall
from keras_plasticity.functional.utility import (
    weight_magnitude as weight_magnitude,
)

__all__ = [
    "adaptation",
    "advance_count",
    "contribution",
    "count_digits",
    "least_useful_unit",
    "mean_corrected_contribution",
    "mean_magnitude",
    "overall",
    "running_mean",
    "step_size",
    "weight_magnitude",
]
