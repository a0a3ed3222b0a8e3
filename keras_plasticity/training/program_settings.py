"""The settings of a model that are part of the program which trains it."""

import json
import numbers
import warnings

import keras
import numpy as np

from keras_plasticity import keras_compat
from keras_plasticity.optimizers import OptimizerWrapper
from keras_plasticity.optimizers.settings import all_hyperparameters

# The configs of their objects tell all that a program depends on. Those of
# losses and metrics do not: that of `Huber` leaves out its `delta`.
_TELLING_MODULES = (
    "keras",
    "keras.constraints",
    "keras.initializers",
    "keras.layers",
    "keras.optimizers",
    "keras.optimizers.schedules",
    "keras.regularizers",
    keras_compat.FUNCTIONAL_MODULE,
)
# What Keras calls data in a config.
_DATA = ("__keras_tensor__", "__numpy__", "__tensor__")


def settings_of(model, with_values=False):
    """The settings of a compiled model and its optimizer.

    Left out are names, which Keras numbers, and what may differ between two
    models of the same program: seeds, and the values of learning rates and of
    the wrappers' hyper-parameters, which are held in variables unless they are
    schedules.

    Args:
        model: Compiled `keras.Model`.
        with_values: Boolean, whether to keep seeds and these values, and to
            leave out the code of lambdas, which changes with the line that it
            stands on. Parts without a config are left out, not all. Defaults
            to `False`.

    Returns:
        Nest of dicts, lists and plain values; empty if a part of the model
        has no config.
    """
    config = _config(lambda: keras.saving.serialize_keras_object(model))
    optimizer = _config(
        lambda: keras.saving.serialize_keras_object(model.optimizer)
    )
    if None in (config, optimizer) and not with_values:
        return {}
    if config is None:
        config = {"compile_config": _config(model.get_compile_config)}
    arguments = config.pop("compile_config", None) or {}
    settings = {"model": config, **arguments, "optimizer": None}
    # Not those of optimizers: that of an `L2` is the name of its setting.
    names = dict.fromkeys(_names(settings))
    settings["optimizer"] = optimizer
    return _cleaned(
        settings, {name: i for i, name in enumerate(names)}, with_values
    )


def structure_of(model):
    """What tells which program a model is in inference.

    Args:
        model: A `keras.Model`.

    Returns:
        String, the same for models that compute the same from the same values
        of their variables; `None` if the model's config does not tell.
    """
    config = _config(lambda: keras.saving.serialize_keras_object(model))
    if config is None:
        return None
    config.pop("compile_config", None)
    names = dict.fromkeys(_names(config))
    config = _cleaned(config, {name: i for i, name in enumerate(names)}, True)
    return json.dumps(config, sort_keys=True) if _tells_all(config) else None


def _config(get_config):
    """A config; `None` where a part of it has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of lambdas.
            return get_config()
    except Exception:  # Whatever the `get_config` of a user's class raises.
        return None


def surely_same_program(first, other):
    """Whether settings tell that two models are the same program.

    They do not where there are functions, or objects whose config does not
    tell all that a program depends on, such as those of a user's classes.

    Args:
        first: What `settings_of` returns for one of the models.
        other: The same for the other one.

    Returns:
        Boolean. `False` means that they may differ.
    """
    return bool(first) and first == other and _tells_all(first)


def differences(first, other, path="", where=("", "")):
    """Compares the settings of two models.

    Args:
        first: What `settings_of` returns for one of them.
        other: The same for the other one.
        path: String, where in the models' settings these two are.
        where: Tuple of two strings, what follows each of two values that
            differ.

    Returns:
        List with a string for each setting that differs.
    """
    return [
        text
        for each in differing(first, other, path)
        if (text := _as_text(*each, where))
    ]


def deciding_differences(first, other):
    """Those of two models that no program can have in common.

    Args:
        first: What `settings_of` returns for one of them.
        other: The same for the other one.

    Returns:
        List with a string for each setting that differs. Without numbers that
        may be what decides, or may not, where something else decides.
    """
    found = list(differing(first, other))
    deciding = [each for each in found if not all(map(_is_open, each[1:]))]
    texts = [_as_text(*each, ("", "")) for each in deciding or found]
    return list(filter(None, texts))


def _is_open(setting):
    """Whether a setting may differ from others like it in one program."""
    return isinstance(setting, float) and setting != 0.0


def differing(first, other, path=""):
    """Where the settings of two models differ.

    Args:
        first: What `settings_of` returns for one of them.
        other: The same for the other one.
        path: String, where in the models' settings these two are.

    Yields:
        Tuples of a path, and of what either of them has there.
    """
    if isinstance(first, dict) and isinstance(other, dict):
        if first.get("class_name") == other.get("class_name"):
            for key in {**first, **other}:
                yield from differing(
                    first.get(key), other.get(key), _joined(path, key)
                )
            return
    elif (
        isinstance(first, (list, tuple))
        and isinstance(other, (list, tuple))
        and len(first) == len(other)
    ):
        for i, parts in enumerate(zip(first, other)):
            yield from differing(*parts, f"{path}[{i}]")
        return
    if first != other:
        yield path, first, other


def _as_text(path, first, other, where):
    """A difference for an error message; `None` if it cannot be told."""
    first, other = short(first), short(other)
    if first == other:
        return None
    return f"{path}={first}{where[0]} and {other}{where[1]}"


def _names(settings):
    """Yields the names of all objects."""
    parts = ()
    if isinstance(settings, dict):
        if isinstance(settings.get("name"), str):
            yield settings["name"]
        parts = settings.values()
    elif isinstance(settings, (list, tuple)):
        parts = settings
    for part in parts:
        yield from _names(part)


def _cleaned(settings, numbers_of_names, with_values):
    """Settings without what `settings_of` leaves out.

    Args:
        settings: Nest of dicts, lists and plain values.
        numbers_of_names: Dict from name to integer. Lists have names that tell
            which layers are called on which: there the number stands for it.
        with_values: Boolean, see `settings_of`.
    """
    if isinstance(settings, dict):
        if with_values and settings.get("class_name") == "__lambda__":
            return {"class_name": "function", "config": "a lambda"}
        if not with_values:
            settings = _without_values(settings)
        left_out = ["name"] if with_values else ["name", "seed"]
        if with_values and _draws_its_seed(settings):
            config = _cleaned(settings["config"], numbers_of_names, False)
            settings = {**settings, "config": config}
        return {
            # Outputs have names, by which losses may go.
            numbers_of_names.get(key, key): _cleaned_entry(
                key, value, numbers_of_names, with_values
            )
            for key, value in settings.items()
            if key not in left_out
        }
    if isinstance(settings, (list, tuple)):
        return [
            numbers_of_names.get(value, value)
            if isinstance(value, str)
            else _cleaned(value, numbers_of_names, with_values)
            for value in settings
        ]
    return settings


def _cleaned_entry(key, value, numbers_of_names, with_values):
    if key == "dtype":
        return value  # A policy goes by its name.
    return _cleaned(value, numbers_of_names, with_values)


def _without_values(settings):
    """Settings without the numbers that are held in variables."""
    kind = None
    if "registered_name" in settings:
        kind = keras.saving.get_registered_object(settings["registered_name"])
    if isinstance(kind, type) and issubclass(kind, OptimizerWrapper):
        config = settings["config"]
        held = all_hyperparameters(kind).keys()
        return {**settings, "config": _without_numbers(config, held)}
    return _without_numbers(settings, ["learning_rate"])


def _without_numbers(settings, names):
    return {
        # Not of zero, with which some have another program.
        name: "a number"
        if name in names and isinstance(value, numbers.Number) and value
        else value
        for name, value in settings.items()
    }


def _draws_its_seed(settings):
    """Whether an object without a seed has one in its config, a random one."""
    if not isinstance(settings.get("config"), dict):
        return False
    name = str(settings.get("class_name"))
    is_layer = settings.get("module") == "keras.layers"
    return name == "SeedGenerator" or (is_layer and name.startswith("Random"))


def _tells_all(settings):
    if isinstance(settings, dict):
        return _is_telling(settings) and all(map(_tells_all, settings.values()))
    if isinstance(settings, (list, tuple)):
        return all(map(_tells_all, settings))
    return isinstance(settings, (bool, int, float, str, type(None)))


def _is_telling(config):
    is_object = "class_name" in config and config["class_name"] not in _DATA
    if not is_object:
        return True
    module = str(config.get("module"))
    return module in _TELLING_MODULES or module.startswith("keras_plasticity.")


def _joined(path, key):
    if key == "config":
        return path  # It stands between an object and its settings.
    return f"{path}.{key}" if path else key


def short(settings):
    """A setting for an error message: a string."""
    if isinstance(settings, dict):
        if settings.get("class_name") == "function":
            return settings["config"]
        return settings.get("class_name", "a dict")
    if isinstance(settings, (list, tuple)):
        return f"a list of {len(settings)}"
    if isinstance(settings, float) and float(np.float32(settings)) == settings:
        return str(np.float32(settings))  # 0.01, not 0.009999999776482582.
    return repr(settings)
