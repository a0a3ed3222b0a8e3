"""Decides whether a model has lost plasticity, and what of it is ill."""

import dataclasses
import math

import numpy as np

from keras_plasticity.diagnosis import measures as table

# A loss this much above that of new models is worse, if it is clear enough.
_SMALLEST_RATIO = 1.1
# By the loss alone: beyond what a new model would reach in one of forty cases;
# with clear symptoms, in one of five.
_ALONE = 0.975
_WITH_SYMPTOMS = 0.8
# Symptoms are clear beyond what a new model would show in one of forty cases.
_CLEAR = 0.975


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of disease.

    Attributes:
        name: String, what it is called in the report.
        measures: Dict from the measures that show it to the smallest effect
            that counts: by how much a fraction is larger; or, above 1, or where
            less is worse, how many times that of new models a number is.
        remedy: String, which method is worth trying first, and why.
        code: String, the lines that apply it.
    """

    name: str
    measures: dict
    remedy: str
    code: str


KINDS = (
    Kind(
        "dead units",
        {
            "dead_units": 0.1,
            "inactive_units": 0.1,
            "dormant_units": 0.1,
            "gradient_dormant_units": 0.1,
        },
        "continual backpropagation, which reinitializes units of little use",
        "keras_plasticity.models.make_plastic(model)\n"
        "optimizer = keras_plasticity.optimizers.ContinualBackprop(\n"
        "    optimizer, replacement_rate=1e-4\n"
        ")",
    ),
    Kind(
        "saturation",
        {"saturated_units": 0.1, "saturated_fraction": 0.2},
        "layer normalization in front of the activations, with small weights",
        "x = keras.layers.Dense(units)(x)\n"
        "x = keras.layers.LayerNormalization()(x)\n"
        "x = keras.layers.Activation(activation)(x)\n"
        "optimizer = keras_plasticity.optimizers.L2(\n"
        "    optimizer, l2=1e-4\n"
        ")",
    ),
    Kind(
        "low rank",
        {"effective_rank": 0.7, "stable_rank": 0.5},
        "the penalty on low effective ranks together with L2 (L2-ER)",
        "optimizer = keras_plasticity.optimizers.EffectiveRank(\n"
        "    keras_plasticity.optimizers.L2(optimizer, l2=1e-3)\n"
        ")",
    ),
    Kind(
        "weight growth",
        {"weight_magnitude": 2.5},
        "L2 Init, which pulls weights towards where they began",
        "optimizer = keras_plasticity.optimizers.L2Init(\n"
        "    optimizer, strength=1e-2\n"
        ")",
    ),
)
UNKNOWN = Kind(
    "no symptom that is measured",
    {},
    "L2 Init, which helps on most of the problems it was tried on",
    KINDS[-1].code,
)


@dataclasses.dataclass(frozen=True)
class Symptom:
    """A measure in which a model differs from new ones.

    Attributes:
        measure: String.
        old: Float, the model's value.
        new: Float, the mean of new models.
        kind: `Kind`.
    """

    measure: str
    old: float
    new: float
    kind: Kind


def symptoms(measured):
    """Measures in which a model is clearly worse than new ones.

    Args:
        measured: Dict from measure to a tuple of the model's value, and an
            array of those of new models. Counts of units are fractions.

    Returns:
        List of `Symptom`s, in the order of `KINDS`.
    """
    found = []
    for kind in KINDS:
        for name, effect in kind.measures.items():
            if name not in measured:
                continue
            old, new = measured[name]
            mean = float(np.mean(new))
            is_less = table.MEASURES[name].bad == "below"
            if is_less:
                is_large = old < effect * mean
            elif effect > 1.0:
                is_large = old > effect * mean
            else:
                is_large = old > mean + effect
            sign = -1.0 if is_less else 1.0
            share = new_models_below(sign * old, sign * np.asarray(new))
            if is_large and share >= _CLEAR:
                found.append(Symptom(name, old, mean, kind))
    return found


def new_models_below(value, new):
    """Which share of new models is expected below a value.

    By Student's t distribution, whose mean and spread are known only from some
    new models: the prediction interval of one more.

    Args:
        value: Float.
        new: Array of at least two values of new models.

    Returns:
        Float between 0 and 1.
    """
    mean, spread = np.mean(new), np.std(new, ddof=1)
    if spread == 0.0 or not math.isfinite(value):
        return float(value > mean) if value != mean else 0.5
    t = (value - mean) / (spread * math.sqrt(1.0 + 1.0 / len(new)))
    return student_t(float(t), len(new) - 1)


def student_t(t, freedom):
    """The distribution function of Student's t.

    Args:
        t: Float.
        freedom: Integer, the degrees of freedom.

    Returns:
        Float between 0 and 1.
    """
    if math.isinf(t):
        return float(t > 0)
    # With `t = sqrt(freedom) * tan(angle)` the density is a power of a cosine.
    angle = math.atan(t / math.sqrt(freedom))
    angles = np.linspace(0.0, angle, 2001)
    below = np.trapezoid(np.cos(angles) ** (freedom - 1), angles)
    all_angles = np.linspace(0.0, math.pi / 2, 20001)
    half = np.trapezoid(np.cos(all_angles) ** (freedom - 1), all_angles)
    return float(0.5 + 0.5 * below / half)


def compare_losses(old, new):
    """Compares losses after learning with those of new models.

    Args:
        old: Array of the losses of copies of the model; infinite if one has
            diverged.
        new: Array of those of new models.

    Returns:
        Tuple of the ratio of the means (of logarithms, where all losses are
        positive; else the difference, in their spread, above 1), and of the
        share of new models that are expected to be better.
    """
    old, new = np.asarray(old, "float64"), np.asarray(new, "float64")
    if old.min() > 0.0 and new.min() > 0.0:
        old, new = np.log(old), np.log(new)
        ratio = math.exp(min(float(old.mean() - new.mean()), 700.0))
    else:
        spread = float(np.std(new, ddof=1)) or 1.0
        ratio = 1.0 + float(old.mean() - new.mean()) / spread
    return ratio, new_models_below(float(old.mean()), new)


def has_lost_plasticity(ratio, share_better, has_symptoms):
    """Whether a model learns worse than new ones, beyond doubt."""
    needed = _WITH_SYMPTOMS if has_symptoms else _ALONE
    return ratio > _SMALLEST_RATIO and share_better >= needed


def how_well(ratio, share_better):
    """How well a model learns that has not lost plasticity, in words."""
    if ratio <= 1.0:
        return "as well as new models do, or better"
    if ratio <= _SMALLEST_RATIO:
        return "about as well as new models do"
    if share_better < _WITH_SYMPTOMS:
        return "no worse than many new models do"
    return "worse than most new models do, but not beyond doubt"


def joined(words):
    """Words as in a sentence: `a, b and c`."""
    *most, last = words or [""]
    return f"{', '.join(most)} and {last}" if most else last
