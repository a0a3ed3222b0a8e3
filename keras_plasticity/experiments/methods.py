"""Methods: one or more parts, with the values of the flags they need."""

import dataclasses
import difflib
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
from absl import flags

import keras_plasticity
from keras_plasticity import utils
from keras_plasticity import validation
from keras_plasticity.experiments import activations
from keras_plasticity.experiments import parts as records
from keras_plasticity.experiments.parts import COMMON_FLAGS
from keras_plasticity.experiments.parts import PARTS
from keras_plasticity.experiments.parts import Flag
from keras_plasticity.experiments.parts import Part
from keras_plasticity.seeds import derived_seed


@dataclasses.dataclass(frozen=True)
class Method:
    """One method, with all the numbers it needs.

    Args:
        parts: Tuple of `Part`s, in the order of the records.
        settings: Dict from the name of a flag to its value.
        changed: Names of the settings that are not the problem's defaults.

    Example:

    ```python
    def build_model(method, seed):
        initializer = keras.initializers.HeUniform(seed)
        hidden = method.hidden(
            "Dense", units=100, kernel_initializer=initializer, name="hidden"
        )
        output = method.layers.Dense(10, name="output")
        model = method.network(
            [keras.Input((784,)), *method.input_layers(), *hidden, output]
        )
        model.compile(method.optimizer(seed, initializer), loss="mse")
        return model
    ```
    """

    parts: tuple[Part, ...]
    settings: Mapping[str, Any]
    changed: frozenset[str] = frozenset()

    def __post_init__(self):
        check_parts(self.parts)
        validation.check_mapping("settings", self.settings)
        validation.check_list("changed", self.changed, str, "a set of strings")

    @property
    def name(self) -> str:
        """The parts as its optimizers nest, the outermost first: `cbp,l2`."""
        return ",".join(part.name for part in reversed(self.parts))

    def has(self, name: str) -> bool:
        """Whether a part belongs to the method.

        Args:
            name: String, the part's name.
        """
        name = validation.check_string("name", name)
        return any(part.name == name for part in self.parts)

    @property
    def has_hidden_layers(self) -> bool:
        """Whether its networks are not linear."""
        return all(part.hidden_layers for part in self.parts)

    @property
    def layers(self):
        """The module whose layers have weights: plastic ones if need be."""
        is_plastic = any(part.plastic_layers for part in self.parts)
        return (keras_plasticity if is_plastic else keras).layers

    @property
    def gain(self) -> float:
        """The gain of initial weights in the scheme of Kaiming He.

        Where a part makes the activations it is that of ReLU: networks that
        differ in the part alone start with the same weights.
        """
        if self._choice("activation") is not None:
            return activations.GAINS["relu"]
        return activations.GAINS.get(self.settings.get("activation"), 1.0)

    def input_layers(self) -> list[keras.Layer]:
        """The layers before the first one with weights.

        Returns:
            List of Keras layers.
        """
        return [
            part.input_layer(self.settings)
            # What remembers inputs shall see those of the network itself.
            for part in reversed(self.parts)
            if part.input_layer is not None
        ]

    def hidden(
        self, weighted: str, name: str, **arguments: Any
    ) -> list[keras.Layer]:
        """A hidden layer: weights, normalization, activation, dropout.

        Args:
            weighted: String, the name of a Keras layer, such as `"Dense"`.
            name: String, the name of the layer that has the activation.
            **arguments: Of that layer. `kernel_initializer` has to be an
                initializer with a seed.

        Returns:
            List of Keras layers.
        """
        layer = self._layer_class(weighted)
        name = validation.check_string("name", name)
        seed = _seed_of(arguments.get("kernel_initializer"))
        normalization = self._choice("normalization")
        make_activation = self._choice("activation")
        activation = activations.function(self.settings.get("activation"))
        if normalization is None and make_activation is None:
            result = [layer(activation=activation, name=name, **arguments)]
        else:
            result = [layer(name=f"{name}_weights", **arguments)]
            if normalization is not None:
                result.append(normalization(self.settings))
            result.append(
                keras.layers.Activation(activation, name=name)
                if make_activation is None
                else make_activation(self.settings, name)
            )
        kernel_seed = arguments["kernel_initializer"].seed
        for part in self.parts:
            if part.after_activation is not None:
                seed = derived_seed(kernel_seed, part.name)
                result.append(part.after_activation(self.settings, seed))
        return result

    def network(self, layers: Sequence[keras.Layer]) -> keras.Sequential:
        """The network, with all that the method changes of its layers.

        Args:
            layers: List of the layers that follow one another, the output
                layer last.

        Returns:
            `keras.Sequential` model.
        """
        rule = "a list of one or more Keras layers"
        layers = validation.check_list("layers", layers, rule=rule)
        kinds = keras.Layer, keras.KerasTensor  # Such as `keras.Input`.
        if not layers or not all(isinstance(each, kinds) for each in layers):
            raise validation.error("layers", rule, layers)
        around = self._choice("around_layers")
        if around is not None:
            layers = around(layers, self.settings)
        return keras.Sequential(layers)

    def _layer_class(self, weighted):
        layer = getattr(
            self.layers, validation.check_string("weighted", weighted), None
        )
        if not isinstance(layer, type):
            rule = "the name of a class of Keras layers, such as 'Dense'"
            raise validation.error("weighted", rule, weighted)
        return layer

    def optimizer(
        self, seed: int, initializer: str | keras.Initializer
    ) -> keras.optimizers.Optimizer:
        """The optimizer with all that the method wraps it in.

        Args:
            seed: Integer, of what it draws.
            initializer: Keras initializer, of the kind that the network's
                kernels have.

        Returns:
            A Keras optimizer.
        """
        seed = validation.check_seed("seed", seed)
        validation.check_deserialized(
            "initializer",
            initializer,
            keras.initializers.get,
            "a Keras initializer or the name of one",
        )
        make_optimizer = self._choice("optimizer") or records.sgd
        result = make_optimizer(self.settings)
        for part in self.parts:
            if part.wrap is not None:
                result = part.wrap(result, self.settings, seed, initializer)
        return result

    def task_callbacks(
        self,
        build_model: Callable[["Method", int], keras.Model],
        seeds: Sequence[int],
    ) -> list[keras_plasticity.training.TaskCallback]:
        """What the method does when a task begins.

        Args:
            build_model: Function of the method and a seed that returns a
                model.
            seeds: List of integers, one for each learner.

        Returns:
            List of callbacks of the engine.
        """
        validation.check_function("build_model", build_model)
        seeds = [
            validation.check_integer("seeds", seed, 0)
            for seed in validation.check_list("seeds", seeds)
        ]

        def build_fresh(learner, task):
            seed = seeds[learner]
            if task is not None:
                seed = derived_seed(seed, "new network", task)
            return build_model(self, seed)

        return [
            part.task_callback(self.settings, build_fresh)
            for part in self.parts
            if part.task_callback is not None
        ]

    def _choice(self, field):
        """What the one part with this field has there; `None` without any."""
        for part in self.parts:
            if getattr(part, field) is not None:
                return getattr(part, field)
        return None


def find_parts(name: str, parts: Sequence[Part] = PARTS) -> tuple[Part, ...]:
    """The parts that the name of a method joins.

    Args:
        name: String, names of parts in any order, joined by commas.
        parts: Sequence of all `Part`s. Defaults to `PARTS`.

    Returns:
        Tuple of `Part`s, in the order of `parts`.

    Raises:
        ValueError: If a part is unknown or there twice, or if two of them
            contradict each other.
    """
    names = validation.check_string("name", name).split(",")
    known = [part.name for part in parts]
    unknown = [each for each in names if each not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"There is no method {unknown[0]!r}. {hint}A method is one or more "
            f"of {', '.join(known)}, joined by commas. "
            f"Received: --method={name}"
        )
    if len(set(names)) < len(names):
        raise ValueError(
            f"A method has each part once. Received: --method={name}"
        )
    found = tuple(part for part in parts if part.name in names)
    for number, part in enumerate(found):
        for other in found[:number]:
            if part.contradicts(other):
                raise ValueError(
                    f"{other.name} and {part.name} contradict each other: a "
                    f"method can have one of them. Received: --method={name}"
                )
    return found


def all_flags(parts: Sequence[Part] = PARTS) -> dict[Flag, tuple[str, ...]]:
    """The flags of methods, each once.

    Args:
        parts: Sequence of all `Part`s. Defaults to `PARTS`.

    Returns:
        Dict from `Flag` to the names of the parts that need it; none for those
        of every method.

    Raises:
        ValueError: If parts define a flag in different ways.
    """
    found = {flag.name: flag for flag in COMMON_FLAGS}
    needed_by = {}
    for part in parts:
        for flag in part.flags:
            first = found.setdefault(flag.name, flag)
            if dataclasses.replace(flag, default=first.default) != first:
                raise ValueError(
                    "Parts that share a flag must define it alike, but for "
                    "its default: use `dataclasses.replace(flag, default=...)`."
                    f" Received for {part.name}: {flag}, and before: {first}"
                )
            if first not in COMMON_FLAGS:
                needed_by.setdefault(flag.name, []).append(part.name)
    return {
        flag: tuple(needed_by.get(name, ())) for name, flag in found.items()
    }


def needed_flags(parts: Sequence[Part]) -> dict[str, Flag]:
    """The flags that a method of some parts takes.

    Args:
        parts: Sequence of the method's `Part`s.

    Returns:
        Dict from the name of a flag to the `Flag`.
    """
    omitted = [name for part in parts for name in part.omits]
    needed = {f.name: f for f in COMMON_FLAGS if f.name not in omitted}
    # A part's default comes before the common one.
    return needed | {flag.name: flag for part in parts for flag in part.flags}


def default_in_words(
    flag: Flag,
    parts: Sequence[Part] = PARTS,
    problem_defaults: Mapping[str, Any] | None = None,
) -> str:
    """The default of a method's flag, for `--help`.

    Args:
        flag: `Flag`, as `all_flags` has it.
        parts: Sequence of all `Part`s. Defaults to `PARTS`.
        problem_defaults: See `choose_methods`. Defaults to `None`: it is not
            known whether the problem has one of its own.

    Returns:
        String, a sentence.
    """
    by_part: dict[str | None, Any] = {None: flag.default}
    for part in parts:
        for own in part.flags:
            if own.name == flag.name and own.default != flag.default:
                by_part[part.name] = own.default
    default = (problem_defaults or {}).get(flag.name, by_part)
    if not isinstance(default, Mapping):
        default = {None: default}
    others = [f"{value} with {name}" for name, value in default.items() if name]
    words = "; ".join([str(default.get(None, flag.default)), *others])
    if problem_defaults is None:
        words += ", where the problem has no other one"
    return f"Default: {words}."


def choose_methods(
    flag_values: flags.FlagValues,
    problem_defaults: Mapping[str, Any],
    default_methods: Sequence[str],
    parts: Sequence[Part] = PARTS,
) -> list[Method]:
    """The methods that the flags ask for.

    Args:
        flag_values: The `absl.flags.FlagValues` that were parsed.
        problem_defaults: Dict from the name of a flag to its default for this
            problem, or to a dict from part to the default for methods with
            that part, the first of them that a method has, and from `None` to
            the one for all others.
        default_methods: Sequence of strings, the methods without `--method`.
        parts: Sequence of all `Part`s. Defaults to `PARTS`.

    Returns:
        List of `Method`s, each once.

    Raises:
        ValueError: If a flag was given that no method needs, or a default is
            that of no flag.
    """
    check_flag_values(flag_values, defined=("method",))
    check_parts(parts)
    validation.check_mapping("problem_defaults", problem_defaults)
    validation.check_list(
        "default_methods", default_methods, str, "a list of strings"
    )
    known = [flag.name for flag in all_flags(parts)]
    unknown = [name for name in problem_defaults if name not in known]
    if unknown:
        raise ValueError(
            "`problem_defaults` must be those of flags of the methods: "
            f"{', '.join(known)}. Received: {', '.join(map(str, unknown))}"
        )
    names = flag_values["method"].value or default_methods
    chosen = dict.fromkeys(find_parts(name, parts) for name in names)
    methods = [
        _make_method(each, flag_values, problem_defaults) for each in chosen
    ]
    _check_needed(flag_values, methods, parts)
    return methods


def methods_table(parts: Sequence[Part] = PARTS) -> str:
    """README's table of the methods.

    Args:
        parts: Sequence of the `Part`s to list. Defaults to `PARTS`.

    Returns:
        String, Markdown with one row for each part.

    Example:

    ```python
    print(keras_plasticity.experiments.methods_table())
    ```
    """
    check_parts(parts)
    return utils.markdown_table(
        ("method", "what it is", "of the library or of Keras"),
        [(f"`{part.name}`", part.about, part.implementation) for part in parts],
        escape=False,
    )


def check_flag_values(flag_values, defined=()):
    """Checks an argument, which must be those of `absl` with some flags."""
    validation.check_type(
        "flag_values", flag_values, flags.FlagValues, "`absl.flags.FlagValues`"
    )
    for name in defined:
        if name not in flag_values:
            raise ValueError(
                "`flag_values` must have the flags of `define_flags`, called "
                f"with the same `parts`. Received: flags without --{name}"
            )


def check_parts(parts):
    """Checks an argument, which must be `Part`s."""
    rule = "a tuple of one or more `Part`s"
    if not validation.check_list("parts", parts, Part, rule):
        raise validation.error("parts", rule, parts)


def _seed_of(initializer):
    """The seed of the argument `kernel_initializer`."""
    if not isinstance(initializer, keras.Initializer) or not hasattr(
        initializer, "seed"
    ):
        rule = "a Keras initializer with a seed"
        raise validation.error("kernel_initializer", rule, initializer)
    return initializer.seed


def _make_method(parts, flag_values, problem_defaults):
    settings = {}
    changed = set()
    for name, flag in needed_flags(parts).items():
        default = _default(flag, parts, problem_defaults)
        given = flag_values[name].value
        settings[name] = default if given is None else given
        if settings[name] != default:
            changed.add(name)
    return Method(parts, settings, frozenset(changed))


def _default(flag, parts, problem_defaults):
    default = problem_defaults.get(flag.name, flag.default)
    if not isinstance(default, Mapping):
        return default
    names = [part.name for part in parts]
    specific = [name for name in default if name in names]
    return default[specific[0]] if specific else default.get(None, flag.default)


def _check_needed(flag_values, methods, parts):
    for flag, needed_by in all_flags(parts).items():
        value = flag_values[flag.name].value
        if value is None or any(flag.name in m.settings for m in methods):
            continue
        if needed_by:
            whose = f"belongs to methods with {' or '.join(needed_by)} only"
        else:
            omitted_by = [p.name for p in parts if flag.name in p.omits]
            whose = f"does not belong to methods with {' or '.join(omitted_by)}"
        raise ValueError(
            f"--{flag.name} {whose}. Leave it out, or add a method that has "
            f"it. Received: --{flag.name}={value} with --method="
            + " --method=".join(method.name for method in methods)
        )
