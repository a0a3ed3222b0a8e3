"""The settings that Optuna has proposed for a sweep, in a file of its folder.

They come from the results of the runs before them. A run that failed has none,
and once it is redone Optuna would propose others: what was proposed stays.
"""

import os
from collections.abc import Iterable

from keras_plasticity.experiments import run_folder

NAME = "proposed.json"


class Proposals:
    """All settings that were proposed so far, in the order of their runs.

    Args:
        log_dir: String, the folder of the sweep.
        names: Iterable of strings, the flags that the sweep varies.

    Attributes:
        settings: List of dicts.

    Raises:
        ValueError: If the file is there, and is not of such a sweep.
    """

    def __init__(self, log_dir: str, names: Iterable[str]):
        self._path = os.path.join(log_dir, NAME)
        self.settings = []
        if os.path.exists(self._path):
            self.settings = _read(self._path, list(names))

    def keep(self, settings: list[dict[str, str]]):
        """Writes all settings, if there are more than the file has."""
        if len(settings) > len(self.settings):
            self.settings = list(settings)
            run_folder.write_json(self._path, self.settings)


def _read(path, names):
    settings = run_folder.read_json(path, list)
    for setting in settings:
        if (
            not isinstance(setting, dict)
            or set(setting) != set(names)
            or not all(isinstance(value, str) for value in setting.values())
        ):
            raise ValueError(
                f"{path} must be a list of settings of {', '.join(names)}. "
                "Remove it, and resume the sweep; if a run of it has failed, "
                f"give another folder. Received: {str(setting)[:80]}"
            )
    return settings
