"""The parts that methods are made of: one record for each.

To add a part, add a record to `PARTS`. Its flags with their checks and help
texts, the parts it can be joined with, and its row in README's table all come
from the record.
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import keras

import keras_plasticity
from keras_plasticity import callbacks
from keras_plasticity import optimizers
from keras_plasticity import training
from keras_plasticity import validation
from keras_plasticity.experiments import activations

# From the name of a flag to its value.
Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Flag:
    """A command-line flag of the methods that need it.

    Parts may share a flag: they hold the same record, or a copy with another
    default, `dataclasses.replace(flag, default=...)`. In a method with several
    of these parts the last one's default counts.

    Args:
        name: String, without the dashes.
        help: String, what the flag sets, without a full stop. The parts that
            need it and the interval are added.
        default: The value where neither the command line nor the problem has
            one.
        interval: String, the numbers that are allowed, such as `"[0, 1)"`.
            Defaults to `None`: all of them.
        choices: Tuple of strings, the values of a flag that is no number.
            Defaults to `()`.
        type: `float`, `int` or `bool`. Ignored with `choices`. Defaults to
            `float`.

    Example:

    ```python
    Flag("dropout_rate", "part of the units left out", 0.1, "[0, 1)")
    ```
    """

    name: str
    help: str
    default: float | int | bool | str
    interval: str | None = None
    choices: tuple[str, ...] = ()
    type: type = float

    def __post_init__(self):
        validation.check_string("name", self.name)
        validation.check_string("help", self.help)
        if not isinstance(self.default, (str, bool)):
            validation.check_number("default", self.default)
        if self.interval is not None:
            if not validation.is_interval(self.interval):
                rule = "`None` or an interval such as '[0, 1)'"
                raise validation.error("interval", rule, self.interval)
        _check_tuple("choices", self.choices, str, "a tuple of strings")
        if not any(self.type is each for each in (float, int, bool)):
            rule = "`float`, `int` or `bool`"
            raise validation.error("type", rule, self.type)

    def allows(self, value: float) -> bool:
        """Whether a number lies in the interval.

        Args:
            value: Number.
        """
        if self.interval is None:
            return True
        return validation.is_number(value) and validation.lies_in(
            value, self.interval
        )


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a method: it is one alone, or joined with others.

    The fields say what the part changes. Those that are functions get the
    method's settings, a dict from the name of a flag to its value; a field that
    is `None` changes nothing. Two parts that choose the same thing
    (`optimizer`, `activation` or `normalization`) contradict each other, and so
    do a part without hidden layers and one that changes them.

    A regularizer is an optimizer wrapper too, which adds to the gradients: as a
    term of the model's loss it would be part of the reported error.

    Args:
        name: String, as in `--method`.
        about: String, one line of Markdown, which may have a link.
        implementation: String, the name in Keras or in `keras_plasticity`, as
            README's table has it. Defaults to `""`.
        flags: Tuple of `Flag`s that it needs, beside `COMMON_FLAGS`.
        omits: Tuple of names of `COMMON_FLAGS` that have no meaning with it.
        excludes: Tuple of names of other parts that it contradicts. It is
            enough that one of the two names the other.
        optimizer: Function of the settings that returns the innermost
            optimizer, in place of SGD.
        wrap: Function `(optimizer, settings, seed, initializer)` that returns
            the optimizer to use in place of `optimizer`. `initializer` is the
            one of the hidden kernels.
        activation: Function `(settings, name)` that returns the layer between
            a hidden layer's weights and what follows, in place of the one that
            `--activation` names. The layer has to be called `name`.
        normalization: Function of the settings that returns the layer between
            the weights of a hidden layer and its activation.
        after_activation: Function `(settings, seed)` that returns a layer to
            follow each hidden layer.
        plastic_layers: Boolean, whether layers with weights have to be those
            of `keras_plasticity.layers`.
        hidden_layers: Boolean, `False` for a network without any.
        smallest_batch: Integer, the number of examples that an update needs
            at least.
        task_callback: Function `(settings, build_fresh)` that returns a
            `training.TaskCallback`, where `build_fresh(learner, task)` returns
            a new network, other weights for each task.

    Example:

    ```python
    Part(
        "weight_clipping",
        "weights clipped after each step",
        "`my_package.WeightClipping`",
        flags=(Flag("bound", "largest weight", 1.0, "(0, inf)"),),
        wrap=lambda optimizer, settings, seed, initializer: WeightClipping(
            optimizer, settings["bound"]
        ),
    )
    ```
    """

    name: str
    about: str
    implementation: str = ""
    flags: tuple[Flag, ...] = ()
    omits: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    optimizer: Callable[[Settings], keras.optimizers.Optimizer] | None = None
    wrap: Callable[..., keras.optimizers.Optimizer] | None = None
    activation: Callable[[Settings, str], keras.Layer] | None = None
    normalization: Callable[[Settings], keras.Layer] | None = None
    after_activation: Callable[[Settings, int], keras.Layer] | None = None
    plastic_layers: bool = False
    hidden_layers: bool = True
    smallest_batch: int = 1
    task_callback: Callable[..., training.TaskCallback] | None = None

    def __post_init__(self):
        for name in ("name", "about", "implementation"):
            validation.check_string(name, getattr(self, name))
        _check_tuple("flags", self.flags, Flag, "a tuple of `Flag`s")
        for name in ("omits", "excludes"):
            _check_tuple(name, getattr(self, name), str, "a tuple of strings")
        for name in (
            "optimizer",
            "wrap",
            "activation",
            "normalization",
            "after_activation",
            "task_callback",
        ):
            if getattr(self, name) is not None:
                validation.check_function(name, getattr(self, name))
        for name in ("plastic_layers", "hidden_layers"):
            validation.check_boolean(name, getattr(self, name))
        validation.check_positive_integer("smallest_batch", self.smallest_batch)

    def contradicts(self, other: "Part") -> bool:
        """Whether a method cannot have both this part and another one.

        Args:
            other: `Part`.
        """
        validation.check_type("other", other, Part, "a `Part`")
        if self.name in other.excludes or other.name in self.excludes:
            return True
        if any(
            getattr(self, choice) and getattr(other, choice)
            for choice in ("optimizer", "activation", "normalization")
        ):
            return True
        return (not self.hidden_layers and other._changes_hidden_layers()) or (
            not other.hidden_layers and self._changes_hidden_layers()
        )

    def _changes_hidden_layers(self):
        return self.plastic_layers or any(
            (self.activation, self.normalization, self.after_activation)
        )


def _check_tuple(name, value, kind, rule):
    if not isinstance(value, tuple):
        raise validation.error(name, rule, value)
    validation.check_list(name, value, kind, rule)


# Of every method, but for parts that omit them.
COMMON_FLAGS = (
    Flag("learning_rate", "Step size of the optimizer", 0.01, "(0, inf)"),
    Flag("momentum", "Momentum of SGD", 0.0, "[0, 1)"),
    Flag(
        "activation",
        "Of the hidden units",
        "relu",
        choices=tuple(activations.GAINS),
    ),
)

_L2 = Flag("l2", "weight of half the sum of squares", 1e-4, "[0, inf)")
# Those of Kumar et al., for tasks of 625 updates. They are too much for many
# more: a problem has its own.
_SHRINK = Flag("shrink", "factor of the weights", 0.999, "[0, 1]")
_PERTURB = Flag("perturb", "factor of new initial weights", 0.01, "[0, inf)")


def sgd(settings: Settings) -> keras.optimizers.Optimizer:
    """The innermost optimizer of methods that choose no other."""
    return keras.optimizers.SGD(
        settings["learning_rate"], momentum=settings["momentum"]
    )


def _adam(settings):
    # As PyTorch; Keras has 1e-7.
    return keras.optimizers.Adam(settings["learning_rate"], epsilon=1e-8)


def _decay_weights(optimizer, settings, seed, initializer):
    optimizer.weight_decay = settings["weight_decay"]
    return optimizer


def _add_l2(optimizer, settings, seed, initializer):
    return optimizers.L2(optimizer, settings["l2"])


def _shrink_and_perturb(optimizer, settings, seed, initializer):
    return optimizers.ShrinkAndPerturb(
        optimizer, settings["l2"], settings["noise_stddev"], seed=seed
    )


def _shrink_and_perturb_by_initializer(optimizer, settings, seed, initializer):
    return optimizers.ShrinkAndPerturbByInitializer(
        optimizer,
        settings["shrink"],
        settings["perturb"],
        initializer,
        seed=seed,
    )


def _shrink_and_perturb_tasks(settings, build_fresh):
    return callbacks.ShrinkAndPerturbTasks(
        build_fresh, settings["shrink"], settings["perturb"]
    )


def _continual_backprop(optimizer, settings, seed, initializer):
    return optimizers.ContinualBackprop(
        optimizer,
        replacement_rate=settings["replacement_rate"],
        maturity_threshold=settings["maturity_threshold"],
        decay_rate=settings["decay_rate"],
        utility=settings["utility"],
        seed=seed,
    )


def _redo(optimizer, settings, seed, initializer):
    return optimizers.ReDo(
        optimizer,
        threshold=settings["redo_threshold"],
        period=settings["redo_period"],
        score_updates=min(
            settings["redo_score_updates"], settings["redo_period"]
        ),
        seed=seed,
    )


def _self_normalized_resets(optimizer, settings, seed, initializer):
    return optimizers.SelfNormalizedResets(
        optimizer,
        quantile=settings["resets_quantile"],
        min_threshold=settings["resets_min_threshold"],
        max_threshold=settings["resets_max_threshold"],
        initial_threshold=settings["resets_initial_threshold"],
        threshold_period=settings["resets_threshold_period"],
        seed=seed,
    )


def _examples(name, about, default):
    """A flag of `self_normalized_resets` that counts examples."""
    return Flag(
        f"resets_{name}_threshold",
        f"{about} number of examples for which a unit may be silent",
        default,
        "[1, 8388608]",
        type=int,
    )


# From the inside out: a part's optimizer wraps those of the parts before it.
PARTS = (
    Part(
        "bp",
        "SGD, with `--momentum`",
        "`keras.optimizers.SGD`",
        optimizer=sgd,
    ),
    Part(
        "adam",
        "Adam",
        "`keras.optimizers.Adam`",
        omits=("momentum",),
        optimizer=_adam,
    ),
    # Sets an argument of the innermost optimizer, so before all wrappers.
    Part(
        "weight_decay",
        "weight decay, decoupled from the gradient",
        "argument of any Keras optimizer",
        flags=(
            Flag(
                "weight_decay",
                "part of a weight that a step of size 1 takes off",
                1e-4,
                "[0, inf)",
            ),
        ),
        wrap=_decay_weights,
    ),
    # This one and the next three say how fast weights shrink, as does
    # `weight_decay`: a method can have one of them.
    Part(
        "l2",
        "L2 regularization, coupled to the gradient of all parameters",
        "`optimizers.L2`",
        flags=(_L2,),
        excludes=("weight_decay",),
        wrap=_add_l2,
    ),
    Part(
        "shrink_and_perturb",
        "`l2` and noise, at each step, as the paper",
        "`optimizers.ShrinkAndPerturb`",
        flags=(
            _L2,
            Flag(
                "noise_stddev",
                "standard deviation of a step's noise",
                1e-5,
                "[0, inf)",
            ),
        ),
        excludes=("weight_decay", "l2"),
        wrap=_shrink_and_perturb,
    ),
    Part(
        "shrink_and_perturb_by_initializer",
        "shrinking, and noise like new weights, at each step "
        "([Kumar et al.](https://arxiv.org/abs/2308.11958))",
        "`optimizers.ShrinkAndPerturbByInitializer`",
        flags=(_SHRINK, _PERTURB),
        excludes=("weight_decay", "l2", "shrink_and_perturb"),
        wrap=_shrink_and_perturb_by_initializer,
    ),
    Part(
        "shrink_and_perturb_tasks",
        "towards a new network, when a task begins "
        "([Ash and Adams](https://arxiv.org/abs/1910.08475))",
        "`callbacks.ShrinkAndPerturbTasks`",
        flags=(
            dataclasses.replace(_SHRINK, default=0.2),
            dataclasses.replace(_PERTURB, default=0.8),
        ),
        excludes=(
            "weight_decay",
            "l2",
            "shrink_and_perturb",
            "shrink_and_perturb_by_initializer",
        ),
        task_callback=_shrink_and_perturb_tasks,
    ),
    Part(
        "dropout",
        "dropout after each hidden layer",
        "`keras.layers.Dropout`",
        flags=(
            Flag(
                "dropout_rate",
                "part of the units that is left out",
                0.1,
                "[0, 1)",
            ),
        ),
        after_activation=lambda settings, seed: keras.layers.Dropout(
            settings["dropout_rate"], seed=seed
        ),
    ),
    Part(
        "batch_norm",
        "in each hidden layer; needs a `--batch_size` of at least 2",
        "`keras.layers.BatchNormalization`",
        normalization=lambda settings: keras.layers.BatchNormalization(),
        # Of one example, the output does not depend on the example.
        smallest_batch=2,
    ),
    Part(
        "layer_norm",
        "in each hidden layer",
        "`keras.layers.LayerNormalization`",
        normalization=lambda settings: keras.layers.LayerNormalization(),
    ),
    Part(
        "online_norm",
        "Online Normalization, which works one example at a time "
        "([Chiley et al.](https://arxiv.org/abs/1905.05894))",
        "`layers.OnlineNormalization`",
        normalization=lambda settings: (
            keras_plasticity.layers.OnlineNormalization()
        ),
    ),
    Part(
        "cbp",
        "continual backpropagation",
        "`optimizers.ContinualBackprop`",
        flags=(
            Flag(
                "replacement_rate",
                "part of the mature units that is replaced in each update",
                1e-4,
                "[0, 1]",
            ),
            Flag(
                "maturity_threshold",
                "updates for which a new unit is not replaced",
                100,
                "[0, inf)",
                type=int,
            ),
            Flag("decay_rate", "decay of the running means", 0.99, "[0, 1)"),
            Flag(
                "utility",
                "how useful a unit is",
                "overall",
                choices=(
                    "contribution",
                    "mean_corrected_contribution",
                    "adaptation",
                    "overall",
                    "weight_magnitude",
                    "random",
                ),
            ),
        ),
        wrap=_continual_backprop,
        plastic_layers=True,
    ),
    Part(
        "redo",
        "recycles dormant units "
        "([Sokar et al.](https://arxiv.org/abs/2302.12902))",
        "`optimizers.ReDo`",
        flags=(
            Flag(
                "redo_threshold",
                "largest score of a dormant unit",
                0.025,
                "[0, inf)",
            ),
            Flag(
                "redo_period",
                "updates between two checks",
                1000,
                "[1, inf)",
                type=int,
            ),
            Flag(
                "redo_score_updates",
                "updates that a score is the mean of; at most the period",
                256,
                "[1, inf)",
                type=int,
            ),
        ),
        excludes=("cbp",),
        wrap=_redo,
        plastic_layers=True,
    ),
    Part(
        "self_normalized_resets",
        "replaces units that are silent for unusually long "
        "([Farias and Jozefiak](https://arxiv.org/abs/2410.20098))",
        "`optimizers.SelfNormalizedResets`",
        flags=(
            Flag(
                "resets_quantile",
                "quantile of a unit's silences beyond which it is replaced",
                0.9,
                "(0, 1)",
            ),
            _examples("min", "smallest", 100),
            _examples("max", "largest", 20_000),
            _examples("initial", "first", 10_000),
            Flag(
                "resets_threshold_period",
                "updates between two changes of that number",
                1000,
                "[1, inf)",
                type=int,
            ),
        ),
        excludes=("cbp", "redo"),
        wrap=_self_normalized_resets,
        plastic_layers=True,
    ),
    Part(
        "linear",
        "no hidden layer",
        omits=("activation",),
        hidden_layers=False,
    ),
)
