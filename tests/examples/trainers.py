"""Loads trainers, and runs them within the test's own process."""

import functools
import importlib.util
import json
import pathlib
import sys

from absl import flags

_EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@functools.cache
def load(name):
    """The module of a trainer, by the name of its file."""
    path = _EXAMPLES / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    trainer = importlib.util.module_from_spec(spec)
    # absl looks there for the module that defines a flag.
    sys.modules[name] = trainer
    spec.loader.exec_module(trainer)
    return trainer


def parse(trainer, *arguments):
    """The values of a trainer's flags, which no other trainer sees."""
    flag_values = flags.FlagValues()
    trainer.define_flags(flag_values)
    flag_values(["trainer", *arguments])
    return flag_values


def run(trainer, log_dir, *arguments):
    """Runs a trainer.

    Args:
        trainer: The trainer's module.
        log_dir: Where its results go.
        *arguments: Its other flags.

    Returns:
        Its `summary.json`.
    """
    trainer.run(parse(trainer, f"--log_dir={log_dir}", *arguments))
    return json.loads((pathlib.Path(log_dir) / "summary.json").read_text())
