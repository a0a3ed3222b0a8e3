"""Pure formulas, tensor in and tensor out, on any Keras backend."""

from keras_plasticity.functional.age_histogram import age_bin as age_bin
from keras_plasticity.functional.age_histogram import (
    age_quantile as age_quantile,
)
from keras_plasticity.functional.age_histogram import (
    num_age_bins as num_age_bins,
)
from keras_plasticity.functional.partial_reset import reset_share as reset_share
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
from keras_plasticity.functional.utility import dormancy_score as dormancy_score
from keras_plasticity.functional.utility import gradient_score as gradient_score
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
    "age_bin",
    "age_quantile",
    "contribution",
    "count_digits",
    "dormancy_score",
    "gradient_score",
    "least_useful_unit",
    "mean_corrected_contribution",
    "mean_magnitude",
    "num_age_bins",
    "overall",
    "reset_share",
    "running_mean",
    "step_size",
    "weight_magnitude",
]
