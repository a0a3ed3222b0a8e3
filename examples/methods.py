"""The methods that the trainers compare: flags, layers and optimizers.

A method is one or more of these parts, joined by commas (`cbp,l2`):

| part | what it is |
| --- | --- |
| `bp` | plain backpropagation by SGD |
| `adam` | Adam instead of SGD |
| `l2` | L2 regularization, coupled to the gradient of all parameters |
| `weight_decay` | the decoupled one |
| `shrink_and_perturb` | `l2`, and noise after each step, as the paper |
| `shrink_and_perturb_by_initializer` | the one of Kumar et al. |
| `shrink_and_perturb_tasks` | the one that acts when a task begins |
| `dropout`, `batch_norm`, `layer_norm`, `online_norm` | in each hidden layer |
| `cbp` | continual backpropagation |
| `linear` | no hidden layer |
"""

import dataclasses
import math
from typing import Any

import keras
import numpy as np
from absl import flags

import keras_plasticity
from keras_plasticity import callbacks
from keras_plasticity import optimizers

_NORMS = ("batch_norm", "layer_norm", "online_norm")
_PERTURBATIONS = (
    "shrink_and_perturb",
    "shrink_and_perturb_by_initializer",
    "shrink_and_perturb_tasks",
)
PARTS = (
    "bp",
    "adam",
    "l2",
    "weight_decay",
    *_PERTURBATIONS,
    "dropout",
    *_NORMS,
    "cbp",
    "linear",
)
# Parts of which a method can have one only.
_EXCLUSIVE = (
    ("bp", "adam"),
    _NORMS,
    # Each of them says how fast weights shrink.
    ("l2", "weight_decay", *_PERTURBATIONS),
    ("linear", "cbp"),
    *(("linear", norm) for norm in _NORMS),
    ("linear", "dropout"),
)


# What only some parts need: flag -> the parts.
_NEEDED_BY = {
    "l2": ("l2", "shrink_and_perturb"),
    "weight_decay": ("weight_decay",),
    "noise_stddev": ("shrink_and_perturb",),
    "shrink": _PERTURBATIONS[1:],
    "perturb": _PERTURBATIONS[1:],
    "dropout_rate": ("dropout",),
    "replacement_rate": ("cbp",),
    "maturity_threshold": ("cbp",),
    "decay_rate": ("cbp",),
    "utility": ("cbp",),
}
# What methods with a part do without: flag -> the part.
_USELESS_WITH = {"momentum": "adam", "activation": "linear"}
# Where neither a flag nor the problem says anything else.
_DEFAULTS = {
    "learning_rate": 0.01,
    "momentum": 0.0,
    "l2": 1e-4,
    "weight_decay": 1e-4,
    "noise_stddev": 1e-5,
    "shrink": {None: 0.999, "shrink_and_perturb_tasks": 0.2},
    "perturb": {None: 0.01, "shrink_and_perturb_tasks": 0.8},
    "dropout_rate": 0.1,
    "replacement_rate": 1e-4,
    "maturity_threshold": 100,
    "decay_rate": 0.99,
    "utility": "overall",
    "activation": "relu",
}

_DEFAULT_TEXT = "Default: the problem's and method's, printed at the start."
METHOD = flags.DEFINE_multi_string(
    "method",
    None,
    "What to train with; repeat the flag for several. One or more, joined by "
    f"commas, of {', '.join(PARTS)}.",
)
for _name, _about in {
    "learning_rate": "Step size of the optimizer, in (0, inf).",
    "momentum": "Momentum of SGD, in [0, 1).",
    "l2": "l2, shrink_and_perturb: weight of half the sum of squares.",
    "weight_decay": "weight_decay: part of a weight that a step of size 1 "
    "takes off.",
    "noise_stddev": "shrink_and_perturb: standard deviation of a step's noise.",
    "shrink": "shrink_and_perturb_...: factor of the weights, in [0, 1].",
    "perturb": "shrink_and_perturb_...: factor of new initial weights.",
    "dropout_rate": "dropout: part of the units that is left out, in [0, 1).",
    "replacement_rate": "cbp: part of the mature units that is replaced in "
    "each update, in [0, 1].",
    "decay_rate": "cbp: decay of the running means, in [0, 1).",
}.items():
    flags.DEFINE_float(_name, None, f"{_about} {_DEFAULT_TEXT}")
flags.DEFINE_integer(
    "maturity_threshold",
    None,
    "cbp: updates for which a new unit is not replaced. Default: the "
    "problem's.",
    lower_bound=0,
)
flags.DEFINE_enum(
    "utility",
    None,
    [
        "contribution",
        "mean_corrected_contribution",
        "adaptation",
        "overall",
        "weight_magnitude",
        "random",
    ],
    f"cbp: how useful a unit is. {_DEFAULT_TEXT}",
)
flags.DEFINE_enum(
    "activation",
    None,
    ["relu", "leaky_relu", "tanh", "sigmoid", "elu", "swish"],
    f"Of the hidden units. {_DEFAULT_TEXT}",
)


def _check_interval(names, text, function):
    for name in names:
        flags.register_validator(
            name,
            lambda value: value is None or function(value),
            f"must be in {text}",
        )


_check_interval(["learning_rate"], "(0, inf)", lambda v: 0 < v < math.inf)
_check_interval(
    ["l2", "weight_decay", "noise_stddev", "perturb"],
    "[0, inf)",
    lambda v: 0 <= v < math.inf,
)
_check_interval(["shrink", "replacement_rate"], "[0, 1]", lambda v: 0 <= v <= 1)
_check_interval(
    ["momentum", "dropout_rate", "decay_rate"], "[0, 1)", lambda v: 0 <= v < 1
)


@flags.validator("method")
def _check_method(names):
    for name in names or ():
        parts = name.split(",")
        for part in parts:
            if part not in PARTS:
                raise flags.ValidationError(
                    f"A method is one or more of {', '.join(PARTS)}, joined "
                    f"by commas. Received: --method={name}"
                )
        if len(set(parts)) < len(parts):
            raise flags.ValidationError(
                f"A method has each part once. Received: --method={name}"
            )
        for group in _EXCLUSIVE:
            both = [part for part in parts if part in group]
            if len(both) > 1:
                raise flags.ValidationError(
                    f"{' and '.join(both)} contradict each other: a method "
                    f"can have one of them. Received: --method={name}"
                )
    return True


@dataclasses.dataclass(frozen=True)
class Method:
    """One method, with all the numbers it needs.

    Attributes:
        name: String, its parts joined by commas.
        settings: Dict from the name of a flag to its value.
        changed: Names of the settings that are not the problem's defaults.
    """

    name: str
    settings: dict[str, Any]
    changed: frozenset[str]

    def has(self, *parts):
        """Whether one of some parts belongs to the method."""
        return any(part in parts for part in self.name.split(","))

    @property
    def layers(self):
        """The module whose layers have weights: plastic ones for `cbp`."""
        return (keras_plasticity if self.has("cbp") else keras).layers

    def hidden(self, weighted, name, **arguments):
        """A hidden layer: weights, normalization, activation, dropout.

        Args:
            weighted: String, the name of a Keras layer, such as `"Dense"`.
            name: String, the name of the layer that has the activation.
            **arguments: Of that layer.

        Returns:
            List of Keras layers.
        """
        layer = getattr(self.layers, weighted)
        activation = self.settings["activation"]
        if activation == "leaky_relu":
            activation = leaky_relu
        if self.has(*_NORMS):
            result = [
                layer(name=f"{name}_weights", **arguments),
                self._norm(),
                keras.layers.Activation(activation, name=name),
            ]
        else:
            result = [layer(activation=activation, name=name, **arguments)]
        if self.has("dropout"):
            rate = self.settings["dropout_rate"]
            seed = arguments["kernel_initializer"].seed
            result.append(keras.layers.Dropout(rate, seed=seed))
        return result

    def optimizer(self, seed, initializer):
        """The optimizer with all that the method wraps it in.

        Args:
            seed: Integer, of what it draws.
            initializer: Keras initializer, of the kind that the network's
                kernels have.

        Returns:
            A Keras optimizer.
        """
        values = self.settings
        weight_decay = values.get("weight_decay")
        if self.has("adam"):
            result = keras.optimizers.Adam(
                values["learning_rate"],
                epsilon=1e-8,  # As PyTorch; Keras has 1e-7.
                weight_decay=weight_decay,
            )
        else:
            result = keras.optimizers.SGD(
                values["learning_rate"],
                momentum=values["momentum"],
                weight_decay=weight_decay,
            )
        if self.has("l2"):
            result = optimizers.L2(result, values["l2"])
        if self.has("shrink_and_perturb"):
            result = optimizers.ShrinkAndPerturb(
                result, values["l2"], values["noise_stddev"], seed=seed
            )
        if self.has("shrink_and_perturb_by_initializer"):
            result = optimizers.ShrinkAndPerturbByInitializer(
                result,
                values["shrink"],
                values["perturb"],
                initializer,
                seed=seed,
            )
        if self.has("cbp"):
            result = optimizers.ContinualBackprop(
                result,
                replacement_rate=values["replacement_rate"],
                maturity_threshold=values["maturity_threshold"],
                decay_rate=values["decay_rate"],
                utility=values["utility"],
                seed=seed,
            )
        return result

    def task_callbacks(self, build_model, seeds):
        """What the method does when a task begins.

        Args:
            build_model: Function of the method and a seed that returns a
                model.
            seeds: List of integers, one for each learner.

        Returns:
            List of callbacks of the engine.
        """
        if not self.has("shrink_and_perturb_tasks"):
            return []

        def build_fresh(learner, task):
            rng = np.random.default_rng([seeds[learner], task])
            seed = rng.integers(2**31)
            return build_model(self, int(seed))

        return [
            callbacks.ShrinkAndPerturbTasks(
                build_fresh, self.settings["shrink"], self.settings["perturb"]
            )
        ]

    def _norm(self):
        if self.has("batch_norm"):
            return keras.layers.BatchNormalization()
        if self.has("layer_norm"):
            return keras.layers.LayerNormalization()
        return keras_plasticity.layers.OnlineNormalization()


def chosen(problem_defaults, default_methods):
    """The methods that the flags ask for.

    Args:
        problem_defaults: Dict from the name of a flag to its default for this
            problem, or to a dict from part to the default for methods with
            that part, and from `None` to the one for all others.
        default_methods: Sequence of strings, the methods without a flag.

    Returns:
        List of `Method`s.

    Raises:
        ValueError: If a flag was given that no method needs.
    """
    names = list(dict.fromkeys(METHOD.value or default_methods))
    result = [_make(name, problem_defaults) for name in names]
    for flag in _DEFAULTS:
        value = flags.FLAGS[flag].value
        if value is not None and not any(flag in m.settings for m in result):
            parts = _NEEDED_BY.get(flag)
            whose = (
                f"is of methods with {' or '.join(parts)} only"
                if parts
                else f"is not of methods with {_USELESS_WITH[flag]}"
            )
            raise ValueError(
                f"--{flag} {whose}. Leave it out, or add a method that has it. "
                f"Received: --{flag}={value} with --method="
                + " --method=".join(names)
            )
    return result


def leaky_relu(x):
    """With the slope of the paper's code."""
    return keras.activations.leaky_relu(x, negative_slope=0.01)


def _make(name, problem_defaults):
    parts = name.split(",")
    settings = {}
    changed = set()
    for flag, default in _DEFAULTS.items():
        if not any(part in _NEEDED_BY.get(flag, parts) for part in parts):
            continue
        if _USELESS_WITH.get(flag) in parts:
            continue
        default = problem_defaults.get(flag, default)
        if isinstance(default, dict):
            specific = [part for part in default if part in parts]
            default = default[specific[0] if specific else None]
        given = flags.FLAGS[flag].value
        settings[flag] = default if given is None else given
        if settings[flag] != default:
            changed.add(flag)
    return Method(name, settings, frozenset(changed))
