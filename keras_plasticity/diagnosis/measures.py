"""What can be measured of a model, and how it is shown."""

import dataclasses

from keras_plasticity import validation

RANKS = (
    "effective_rank",
    "approximate_rank",
    "absolute_approximate_rank",
    "stable_rank",
    "hard_rank",
)


@dataclasses.dataclass(frozen=True)
class Measure:
    """A measure of plasticity.

    Attributes:
        name: String.
        tag: String, its group and name in TensorBoard, for single layers.
        source: String, what it is computed from: `"activations"`,
            `"outputs"`, `"weights"`, `"gradients"`, `"loss"` (where it needs
            more than one gradient of it), `"examples"` (gradients of the
            outputs for single examples) or `"optimizer"`.
        total: String, how the values of layers make one of the model: by their
            `"sum"` or `"mean"`, or computed on all of them `"jointly"`.
        is_count: Boolean, whether it counts units.
        is_change: Boolean, whether it compares two times.
        is_default: Boolean, whether it is measured where nobody asks for it.
        bad: String, on which side of a threshold it is bad: `"above"` or
            `"below"`.
        words: String, what is bad about that.
    """

    name: str
    tag: str
    source: str
    total: str = "jointly"
    is_count: bool = False
    is_change: bool = False
    is_default: bool = True
    bad: str = "above"
    words: str = ""


def _rank(name):
    return Measure(
        name,
        f"representation/{name}",
        "activations",
        "mean",
        bad="below",
        words="the layers tell fewer things apart",
    )


def _units(name, tag, source, words):
    return Measure(name, f"units/{tag}", source, "sum", True, words=words)


_TABLE = [
    *map(_rank, RANKS),
    _units(
        "dead_units",
        "dead",
        "activations",
        "they are 0 for every example, have no gradient, and stay so",
    ),
    _units(
        "dormant_units",
        "dormant",
        "activations",
        "they are all but 0, and do nothing",
    ),
    _units(
        "inactive_units",
        "inactive",
        "activations",
        "they are active on hardly any example",
    ),
    _units(
        "saturated_units",
        "saturated",
        "activations",
        "they are near an extreme for every example, with hardly a gradient",
    ),
    Measure(
        "saturated_fraction",
        "units/saturated_fraction",
        "activations",
        "mean",
        words="so many activations are near an extreme, with hardly a gradient",
    ),
    _units(
        "linear_units",
        "linear",
        "activations",
        "their non-linearity does nothing",
    ),
    Measure(
        "linear_fraction",
        "units/linear_fraction",
        "activations",
        "mean",
        words="so many activations lie where the non-linearity does nothing",
    ),
    _units(
        "gradient_dormant_units",
        "gradient_dormant",
        "gradients",
        "their weights have hardly a gradient",
    ),
    Measure(
        "replaced_units",
        "units/replaced",
        "optimizer",
        "sum",
        is_change=True,
        words="the optimizer replaces so many",
    ),
    Measure(
        "output_churn",
        "outputs/churn",
        "outputs",
        is_change=True,
        words="training on some examples changes the outputs for others",
    ),
    Measure(
        "weight_magnitude",
        "weights/magnitude",
        "weights",
        words="large weights change little by steps of the same size",
    ),
    Measure(
        "weight_growth",
        "weights/growth",
        "weights",
        is_change=True,
        words="large weights change little by steps of the same size",
    ),
    Measure(
        "weight_change",
        "weights/change",
        "weights",
        is_change=True,
        words="the weights move so far",
    ),
    Measure(
        "isometry_deviation",
        "weights/isometry_deviation",
        "weights",
        is_default=False,
        words="the layers stretch or squeeze what passes through them",
    ),
    Measure(
        "gradient_norm",
        "gradients/norm",
        "gradients",
        words="the steps are large",
    ),
    Measure(
        "optimization_readiness",
        "gradients/optimization_readiness",
        "loss",
        is_default=False,
        bad="below",
        words="a step of gradient descent gains little",
    ),
    Measure(
        "tangent_kernel_rank",
        "gradients/tangent_kernel_rank",
        "examples",
        is_default=False,
        bad="below",
        words="different examples pull the weights the same way",
    ),
    Measure(
        "hessian_rank",
        "curvature/rank",
        "loss",
        is_default=False,
        bad="below",
        words="the loss is flat in nearly all directions",
    ),
    Measure(
        "sharpness",
        "curvature/sharpness",
        "loss",
        is_default=False,
        words="large steps overshoot",
    ),
]
# Dict from name to `Measure`.
MEASURES = {each.name: each for each in _TABLE}
# Measures that are no number, in TensorBoard only.
HISTOGRAMS = ("utility", "age")
# Those that cannot be measured without targets.
_WITH_TARGETS = ("gradients", "loss")


def tag(name, layer):
    """The tag of a measure in TensorBoard.

    TensorBoard sorts tags, and opens the first groups: there are the totals,
    not hundreds of charts for the layers of a large model.
    """
    if layer == "total":
        return f"all_layers/{name}"
    return f"{MEASURES[name].tag}/{layer}"


def check_one_time(names, measures):
    """Those measures that tell of a model at one time.

    Args:
        names: List of strings, what `check_measures` has returned.
        measures: What the user gave for them; `None` for all there are.

    Returns:
        List of strings.

    Raises:
        ValueError: If the user wants others.
    """
    names = [
        name
        for name in names
        if name in MEASURES and not MEASURES[name].is_change
    ]
    missing = set(measures or ()) - set(names)
    if missing:
        raise ValueError(
            "`measures` must be what can be told of a model at one time; "
            "`PlasticityMonitor` also compares two. Received: "
            f"measures={list(measures)}, of which {sorted(missing)} compare, "
            "or are histograms"
        )
    return names


def check_measures(measures, has_targets, argument):
    """Returns the names of measures in the order of the table.

    Args:
        measures: List of names; `None` for all that are measured by default.
        has_targets: Boolean.
        argument: String, the argument by which targets would come.

    Raises:
        ValueError: If a name is unknown, or if targets are missing.
    """
    known = [*MEASURES, *HISTOGRAMS]
    if measures is None:
        return [
            name
            for name in known
            if name in HISTOGRAMS
            or MEASURES[name].is_default
            and (has_targets or MEASURES[name].source not in _WITH_TARGETS)
        ]
    rule = f"a list of some of {known}"
    measures = validation.check_list("measures", measures, str, rule)
    if not set(measures) <= set(known):
        raise validation.error("measures", rule, measures)
    needy = [
        name
        for name in measures
        if name in MEASURES and MEASURES[name].source in _WITH_TARGETS
    ]
    if needy and not has_targets:
        raise ValueError(
            f"The measure '{needy[0]}' needs targets: give `{argument}` as a "
            f"tuple (x, y). Received: measures={measures}"
        )
    return [name for name in known if name in measures]


def check_layers(layers):
    """Returns a list of names of layers, or `None`."""
    if layers is None:
        return None
    rule = "a list of the names of layers, or `None` for all hidden layers"
    names = validation.check_list("layers", layers, str, rule)
    if not names:
        raise validation.error("layers", rule, layers)
    return names
