"""What is tuned of each method, in addition to its step size.

The numbers are drawn from ranges around those that the methods' authors and
later comparisons have tried. What is not here keeps its default.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_plasticity.experiments.parts import Part
from keras_plasticity.experiments.suites.problems import SuiteProblem
from keras_plasticity.experiments.sweeps.space import Range

_STRENGTH = Range(1e-5, 1e-1, log=True)
_L2 = Range(1e-6, 1e-1, log=True)
_PERIOD = Range(100, 10_000, log=True)
_DECAY_RATES = ("0.9", "0.99", "0.999", "0.9999")
_UPGD = {
    "upgd_noise_stddev": Range(1e-4, 1.0, log=True),
    "upgd_utility_decay": _DECAY_RATES,
    "upgd_decay": Range(1e-4, 1e-1, log=True),
}
_SEARCH = {
    "weight_decay": {"weight_decay": _L2},
    "l2": {"l2": _L2},
    "l2_init": {"l2_init_strength": _STRENGTH},
    "l2_er": {"l2": _L2, "rank_learning_rate": Range(1e-5, 1e-2, log=True)},
    "parseval": {"parseval_strength": _STRENGTH},
    "spectral": {"spectral_strength": _STRENGTH},
    "adamo": {"orthogonality_strength": _STRENGTH},
    "shrink_and_perturb": {
        "l2": _L2,
        "noise_stddev": Range(1e-6, 1e-2, log=True),
    },
    "shrink_and_perturb_by_initializer": {
        "shrink": ("0.99", "0.999", "0.9999", "0.99999"),
        "perturb": Range(1e-5, 1e-2, log=True),
    },
    "shrink_and_perturb_tasks": {
        "shrink": Range(0.1, 0.9),
        "perturb": Range(0.1, 0.9),
    },
    "weight_clipping": {"clipping_kappa": Range(1.0, 5.0)},
    "upgd": _UPGD,
    "upgd_units": _UPGD,
    "selective_weight_reinitialization": {
        "reinitialization_factor": Range(1e-5, 1e-1, log=True),
        "reinitialization_period": _PERIOD,
    },
    "hare_and_tortoise": {
        "tortoise_decay_rate": _DECAY_RATES,
        "tortoise_period": _PERIOD,
    },
    "dash": {
        "dash_alpha": Range(0.05, 0.5),
        "dash_min_factor": Range(0.05, 0.5),
    },
    "sdp": {"sdp_gamma": Range(0.05, 0.9)},
    "dropout": {"dropout_rate": Range(0.01, 0.3, log=True)},
    "cbp": {"replacement_rate": Range(1e-6, 1e-2, log=True)},
    "redo": {
        "redo_threshold": Range(0.01, 0.5, log=True),
        "redo_period": _PERIOD,
    },
    "self_normalized_resets": {
        "resets_quantile": ("0.9", "0.92", "0.95", "0.98", "0.99"),
    },
    "regrama": {
        "regrama_threshold": Range(0.01, 0.25, log=True),
        "regrama_period": _PERIOD,
    },
    "cpr": {
        "cpr_replacement_rate": Range(1e-3, 1e-1, log=True),
        "cpr_period": _PERIOD,
    },
    "ccbp": {
        "ccbp_replacement_rate": Range(1e-3, 1e-1, log=True),
        "ccbp_period": _PERIOD,
    },
}
# Their steps are of another size than those of SGD.
_ADAMS = ("adam", "adamo")


def space_of(
    parts: Sequence[Part], problem: SuiteProblem, own: Mapping[str, Any]
) -> dict[str, Any]:
    """What is tuned of a method.

    Args:
        parts: Sequence of the `Part`s of the method.
        problem: `SuiteProblem`.
        own: Dict from the name of a part of a method file to what is tuned of
            it.

    Returns:
        Dict from the name of a flag to a `Range` or a list of values.
    """
    names = [part.name for part in parts]
    is_adam = any(name in _ADAMS for name in names)
    space = {
        "learning_rate": problem.adam_learning_rate
        if is_adam
        else problem.learning_rate
    }
    for name in names:
        space |= {**_SEARCH.get(name, {}), **own.get(name, {})}
    return space


def evenly_spaced(
    space: Mapping[str, Range | Sequence], count: int
) -> dict[str, Sequence]:
    """Numbers from one end of a range to the other, on its scale.

    Args:
        space: Dict from the name of a flag to a `Range` of floats, or to a
            list of values, which stays as it is.
        count: Integer, how many, at least 2.

    Returns:
        Dict from the name to a list of values.
    """
    return {
        name: _spaced(each, count) if isinstance(each, Range) else each
        for name, each in space.items()
    }


def _spaced(each, count):
    space = np.geomspace if each.log else np.linspace
    return [float(f"{v:.4g}") for v in space(each.low, each.high, count)]
