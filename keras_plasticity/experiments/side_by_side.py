"""Settings that one run trains side by side, each with learners of its own."""

import copy
import dataclasses
import json

import keras
from absl import flags

from keras_plasticity import training
from keras_plasticity.experiments import run_folder
from keras_plasticity.experiments.methods import all_flags
from keras_plasticity.training import nests

# Flags belong to the module that calls `experiments.define_flags`.
flags.disclaim_key_flags()

NAME = "side_by_side"


def define_flags(flag_values):
    flags.DEFINE_string(
        NAME,
        None,
        "A JSON file with a list of objects from the name of a method's flag "
        "to its value, as text. Each is trained with learners of its own, "
        "side by side; on JAX by one program, so that numbers may differ, and "
        "not where they decide what is computed.",
        flag_values=flag_values,
    )


def read(flag_values, parts):
    """The flags of each of the settings.

    Args:
        flag_values: The parsed `absl.flags.FlagValues`.
        parts: Sequence of all `Part`s.

    Returns:
        List of `absl.flags.FlagValues`; those that were given if they name no
        file.

    Raises:
        ValueError: If the file is none, or cannot be as it is.
    """
    path = flag_values[NAME].value
    if path is None:
        return [flag_values]
    for name in ("diagnostics", "tracker"):
        if flag_values[name].value:
            raise ValueError(
                f"--{name} is for one setting: leave out --{name}, or --{NAME}."
            )
    try:
        settings = run_folder.read_json(path, list)
    except OSError as error:
        raise ValueError(
            f"--{NAME} must be a file that can be read. "
            f"Received: --{NAME}={path} ({error})"
        ) from error
    names = {flag.name for flag in all_flags(parts)}
    if not settings or not all(isinstance(each, dict) for each in settings):
        raise ValueError(
            f"--{NAME} must be a file with a list of one or more objects. "
            f"Received: --{NAME}={path} with {json.dumps(settings)[:80]}"
        )
    return [_with_setting(flag_values, each, names, path) for each in settings]


def _with_setting(flag_values, setting, names, path):
    result = copy.deepcopy(flag_values)
    for name, value in setting.items():
        if name not in names or flag_values[name].present:
            raise ValueError(
                f"--{NAME} must have flags of methods that are not given "
                f"otherwise: {', '.join(sorted(names))}. Received: "
                f"--{NAME}={path} with {name}={value}"
            )
        # Both check it, the flag's type and the interval.
        result[name].parse(str(value))
        setattr(result, name, result[name].value)
    return result


@dataclasses.dataclass(frozen=True)
class _Learners:
    """Some learners in a row, as a callback knows its trainer."""

    trainer: training.OnlineTrainer
    learners: range

    @property
    def num_learners(self) -> int:
        return len(self.learners)

    def model(self, learner: int = 0) -> keras.Model:
        return self.trainer.model(self.learners[learner])

    def edit(self, learner: int = 0):
        return self.trainer.edit(self.learners[learner])


class OfLearners(training.TaskCallback):
    """A callback that knows of some of the learners only.

    It is not told of epochs.

    Args:
        callback: `TaskCallback`.
        learners: Range.
    """

    def __init__(self, callback, learners):
        self._callback = callback
        self._learners = learners
        self._slice = slice(learners.start, learners.stop)

    @property
    def trainer(self):
        return self._callback.trainer

    @trainer.setter
    def trainer(self, trainer):
        self._callback.trainer = _Learners(trainer, self._learners)

    def on_task_begin(self, task, x, y):
        x, y = nests.take((x, y), self._slice)
        self._callback.on_task_begin(task, x, y)

    def on_progress(self, task, done):
        self._callback.on_progress(task, done)

    def on_task_end(self, task, results):
        results = {
            name: values[self._slice] for name, values in results.items()
        }
        self._callback.on_task_end(task, results)

    def on_train_end(self, logs=None):
        self._callback.on_train_end(logs)

    def get_config(self):
        return self._callback.get_config()

    def get_state(self):
        return self._callback.get_state()

    def set_state(self, state):
        self._callback.set_state(state)
