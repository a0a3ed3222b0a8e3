"""Which run a checkpoint is of: its models, its data, and its versions."""

import hashlib
import importlib
import inspect
import json
import platform
import re

import keras
import numpy as np

from keras_plasticity.training import program_settings
from keras_plasticity.version import __version__

_PLAIN = (bool, int, float, str, type(None))
_PARTS = ("x", "y", "sample_weight")
_WHERE = " there", " here"


class ModelsIdentity:
    """What tells the models of one run from those of another.

    A user's functions are compared by their names, not by their code.

    Attributes:
        variables: List with a string for each variable of the first learner.
        model: Nest, the settings of the first learner.
        learners: List, for each of the others a dict from path to value, the
            settings that differ from those of the first.
    """

    def __init__(self):
        self.variables = None
        self.model = None
        self.learners = []

    def add(self, model):
        """Adds the model of the next learner, built and not yet trained."""
        settings = _settings(model)
        if self.model is None:
            self.model = settings
            self.variables = _variables(model)
            return
        self.learners.append(
            {
                path: value
                for path, _, value in program_settings.differing(
                    self.model, settings
                )
            }
        )


class RunIdentity:
    """What tells one run of an `OnlineTrainer` from another one.

    Args:
        task: Integer, the first task of the run.
        data: Its `TaskData`.
        orders: List with the order of the examples for each learner, in the
            first epoch; `None` without any.

    Attributes:
        models: `ModelsIdentity`, set by the trainer.
    """

    def __init__(self, task, data, orders):
        self.data = {"task": task, **_describe(data, orders)}
        self.models = None
        self._versions = versions()

    def to_dict(self):
        """All of it, as JSON has it."""
        return {
            "data": self.data,
            **vars(self.models),
            "versions": self._versions,
        }


def differences_in_data(there, here):
    """Compares the first task's data of two runs.

    Args:
        there: Dict, what `RunIdentity.to_dict` returned for the earlier run.
        here: `RunIdentity` of this one.

    Returns:
        List with a string for each part that differs.
    """
    before, now = there["data"], here.data
    return [
        f"{name} of task {now['task']}: {_values_of(before.get(name))} there, "
        f"{_values_of(now.get(name))} here"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]


def differences_in_models(there, here):
    """Compares the models of two runs.

    Args:
        there: Dict, what `RunIdentity.to_dict` returned for the earlier run.
        here: `RunIdentity` of this one.

    Returns:
        List with a string for each setting or variable that differs.
    """
    here = here.models
    found = program_settings.differences(
        there["model"], here.model, where=_WHERE
    )
    if found:
        return found
    found = program_settings.differences(
        there["variables"], here.variables, "variables", _WHERE
    )
    if found:
        return found
    for number, both in enumerate(zip(there["learners"], here.learners)):
        of_learner = list(_differences_of_learner(*both))
        if of_learner:
            found.append(
                f"learner {number + 1} differs from learner 0 by other "
                f"settings: {'; '.join(of_learner)}"
            )
    return found


def _differences_of_learner(before, now):
    """Yields a string for each setting that differs between two runs.

    Args:
        before: Dict, one of `ModelsIdentity.learners` of the earlier run.
        now: The same of this run.
    """
    for path in dict.fromkeys([*before, *now]):
        if path in before and path in now:
            yield from program_settings.differences(
                before[path], now[path], path, _WHERE
            )
            continue
        values = [
            program_settings.short(each[path])
            if path in each
            else "that of learner 0"
            for each in (before, now)
        ]
        yield f"{path}={values[0]} there and {values[1]} here"


def differences_in_versions(there):
    """Compares the versions that a run was made with to those of today.

    Args:
        there: Dict, what `RunIdentity.to_dict` returned.

    Returns:
        List with a string for each version that differs.
    """
    before, now = there["versions"], versions()
    return [
        f"{name} {before.get(name)} there, {now[name]} here"
        for name in now
        if before.get(name) != now[name]
    ]


def versions():
    """Versions of what results depend on."""
    result = {
        "keras_plasticity": __version__,
        "python": platform.python_version(),
    }
    # Their own word: a nightly build is a package of another name.
    for name in ("keras", keras.backend.backend(), "numpy"):
        result[name] = str(importlib.import_module(name).__version__)
    return result


def _describe(data, orders):
    """Dict from the name of each array to its shape, dtype and checksum."""
    result = {}
    for kind, nest in (("", data.data), ("test ", data.test)):
        for name, part in zip(_PARTS, nest or ()):
            for path, array in keras.tree.flatten_with_path(part):
                if array is not None:
                    path = "".join(f"[{key!r}]" for key in path)
                    result[f"{kind}{name}{path}"] = _describe_array(array)
    if orders is not None:
        result["order"] = _describe_array(np.stack(orders))
    return result


def _describe_array(array):
    digest = hashlib.blake2b(np.ascontiguousarray(array), digest_size=8)
    # The first axis counts learners.
    checksum = f"with checksum {digest.hexdigest()}"
    return [str(array.dtype), str(array.shape), checksum]


def _values_of(described):
    if described is None:
        return "nothing"
    return " ".join(map(str, described))


def _settings(model):
    """The settings of a model that its results depend on, as JSON has them."""
    settings = program_settings.settings_of(model, with_values=True)
    # Keras' own configs of most losses leave out their arguments.
    for name, objects in (
        ("arguments of losses", keras.tree.flatten(model.loss)),
        ("arguments of metrics", model.metrics),
    ):
        settings[name] = [_arguments(each) for each in objects]
    return json.loads(json.dumps(settings, default=str))


def _arguments(thing):
    """The values of an object's constructor's arguments, where it keeps them.

    Returns:
        Dict from name to plain value.
    """
    kept = {}
    for name, value in getattr(thing, "__dict__", {}).items():
        kept[name.removeprefix("_")] = value
        if isinstance(value, dict):  # Keras' `_fn_kwargs`.
            kept |= value
    names = inspect.signature(type(thing).__init__).parameters
    return {
        name: kept[name]
        for name in names
        if name != "name" and isinstance(kept.get(name, kept), _PLAIN)
    }


def _variables(model):
    """The names of all variables with their shapes and types.

    Without the numbers that Keras gives to names, which depend on what else
    the process has made.
    """
    return [
        f"{re.sub(r'_[0-9]+(?![^_/])', '', variable.path)} "
        f"{tuple(variable.shape)} {variable.dtype}"
        for variable in (*model.variables, *model.optimizer.variables)
    ]
