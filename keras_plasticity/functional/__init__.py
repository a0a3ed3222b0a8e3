"""Pure formulas, tensor in and tensor out, on any Keras backend."""

from keras_plasticity.functional.age_histogram import age_bin as age_bin
from keras_plasticity.functional.age_histogram import (
    age_quantile as age_quantile,
)
from keras_plasticity.functional.age_histogram import (
    num_age_bins as num_age_bins,
)
from keras_plasticity.functional.effective_rank import (
    effective_rank as effective_rank,
)
from keras_plasticity.functional.erfi import erfi as erfi
from keras_plasticity.functional.matrices import (
    even_out_singular_values as even_out_singular_values,
)
from keras_plasticity.functional.matrices import orthogonalize as orthogonalize
from keras_plasticity.functional.matrices import (
    shrink_towards_direction as shrink_towards_direction,
)
from keras_plasticity.functional.partial_reset import reset_share as reset_share
from keras_plasticity.functional.penalties import (
    distance_gradient as distance_gradient,
)
from keras_plasticity.functional.penalties import (
    orthogonality_gradient as orthogonality_gradient,
)
from keras_plasticity.functional.penalties import (
    spectral_norm_and_gradient as spectral_norm_and_gradient,
)
from keras_plasticity.functional.projections import joint_norm as joint_norm
from keras_plasticity.functional.projections import (
    project_to_norm as project_to_norm,
)
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
from keras_plasticity.functional.weight_utility import below_mean as below_mean
from keras_plasticity.functional.weight_utility import (
    first_order_utility as first_order_utility,
)
from keras_plasticity.functional.weight_utility import (
    global_protection as global_protection,
)
from keras_plasticity.functional.weight_utility import least as least
from keras_plasticity.functional.weight_utility import (
    local_protection as local_protection,
)

__all__ = [
    "adaptation",
    "advance_count",
    "age_bin",
    "age_quantile",
    "below_mean",
    "contribution",
    "count_digits",
    "distance_gradient",
    "dormancy_score",
    "effective_rank",
    "erfi",
    "even_out_singular_values",
    "first_order_utility",
    "global_protection",
    "gradient_score",
    "joint_norm",
    "least",
    "least_useful_unit",
    "local_protection",
    "mean_corrected_contribution",
    "mean_magnitude",
    "num_age_bins",
    "orthogonality_gradient",
    "orthogonalize",
    "overall",
    "project_to_norm",
    "reset_share",
    "running_mean",
    "shrink_towards_direction",
    "spectral_norm_and_gradient",
    "step_size",
    "weight_magnitude",
]
