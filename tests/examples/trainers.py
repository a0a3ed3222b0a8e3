"""Runs a trainer within the test's own process."""

import json
import pathlib

from absl import flags
from absl.testing import flagsaver


def run(trainer, log_dir, *arguments):
    """Runs a trainer.

    Args:
        trainer: The trainer's module.
        log_dir: Where its results go.
        *arguments: Its other flags.

    Returns:
        Its `summary.json`.
    """
    with flagsaver.flagsaver():
        flags.FLAGS(["trainer", f"--log_dir={log_dir}", *arguments])
        trainer.main(["trainer"])
    return json.loads((pathlib.Path(log_dir) / "summary.json").read_text())
