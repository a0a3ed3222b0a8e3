"""What a part of a method is, and a flag that it needs."""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import keras

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
        interval = self.interval
        if interval is not None and not validation.is_interval(interval):
            rule = "`None` or an interval such as '[0, 1)'"
            raise validation.error("interval", rule, interval)
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
    (`optimizer`, `activation`, `normalization` or `around_layers`) contradict
    each other, and so do a part without hidden layers and one that changes
    them.

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
        input_layer: Function of the settings that returns a layer to stand
            before the first one with weights.
        normalization: Function of the settings that returns the layer between
            the weights of a hidden layer and its activation.
        after_activation: Function `(settings, seed)` that returns a layer to
            follow each hidden layer.
        around_layers: Function `(layers, settings)` that returns the list of
            layers to use in place of those of a network without it, the output
            layer last. It contradicts parts with plastic layers.
        plastic_layers: Boolean, whether layers with weights have to be those
            of `keras_plasticity.layers`.
        hidden_layers: Boolean, `False` for a network without any.
        smallest_batch: Integer, the number of examples that an update needs
            at least.
        task_callback: Function `(settings, build_fresh)` that returns a
            `training.TaskCallback`, where `build_fresh(learner, task)` returns
            a new network, other weights for each task; for the task `None`,
            one like the learner's own was at first.

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
    input_layer: Callable[[Settings], keras.Layer] | None = None
    activation: Callable[[Settings, str], keras.Layer] | None = None
    normalization: Callable[[Settings], keras.Layer] | None = None
    after_activation: Callable[[Settings, int], keras.Layer] | None = None
    around_layers: Callable[[list, Settings], list] | None = None
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
            "input_layer",
            "activation",
            "normalization",
            "after_activation",
            "around_layers",
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
            for choice in (
                "optimizer",
                "activation",
                "normalization",
                "around_layers",
            )
        ):
            return True
        if (self.around_layers and other.plastic_layers) or (
            other.around_layers and self.plastic_layers
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
