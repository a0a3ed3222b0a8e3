import os
from collections.abc import Mapping
from typing import Any

from keras_plasticity import validation
from keras_plasticity.callbacks.tracker import Tracker
from keras_plasticity.callbacks.tracker import check_installed

_MODES = ("online", "offline", "shared", "disabled")


class WandbTracker(Tracker):
    """Logs metrics, and the settings of the run, to Weights & Biases.

    It is a callback for `model.fit`, where a step is an epoch, and for
    `keras_plasticity.training.OnlineTrainer`, where it is a task. There, the
    results of several learners are their mean, over those whose value is
    finite, with its standard error as `<name>_standard_error`, and their number
    as `learners`.

    Nothing leaves the machine unless it is asked for: `wandb sync` uploads what
    was logged offline. A training that is resumed from a checkpoint continues
    its run.

    Args:
        project: String, the project.
        run_name: String. Defaults to `None`: wandb makes one up.
        settings: Dict from name to value, wandb's `config` of the run. Defaults
            to `None`: none.
        log_dir: String, the folder in which wandb makes its folder `wandb`.
            Defaults to `None`: where wandb does, in the working directory.
        mode: String, wandb's mode: `"online"`, `"offline"`, `"shared"` or
            `"disabled"`. Defaults to `None`: that of the environment variable
            `WANDB_MODE`, and `"offline"` without one.

    Raises:
        ImportError: If wandb is not installed: `pip install -e '.[wandb]'`.

    Example:

    ```python
    tracker = keras_plasticity.callbacks.WandbTracker(
        "permuted_mnist", settings={"learning_rate": 0.01}
    )
    model.fit(x, y, epochs=10, callbacks=[tracker])
    ```
    """

    def __init__(
        self,
        project: str,
        run_name: str | None = None,
        settings: Mapping[str, Any] | None = None,
        log_dir: str | None = None,
        mode: str | None = None,
    ):
        super().__init__(settings)
        self._project = validation.check_string("project", project)
        if run_name is not None:
            validation.check_string("run_name", run_name)
        if log_dir is not None:
            log_dir = validation.check_path("log_dir", log_dir)
        if mode is None:
            mode = os.environ.get("WANDB_MODE", "offline")
        self._mode = validation.check_choice("mode", mode, _MODES)
        self._run_name = run_name
        self._log_dir = log_dir
        self._run = None
        check_installed("`WandbTracker`", "wandb")

    def _open(self):
        # Imported here: it takes seconds, and most do without.
        import wandb

        if self._log_dir is not None:
            os.makedirs(self._log_dir, exist_ok=True)
        self._run = wandb.init(
            project=self._project,
            name=self._run_name,
            config=self._settings,
            dir=self._log_dir,
            mode=self._mode,
            id=self._run_id,
            resume="allow",
            # Another run of this process goes on.
            reinit="create_new",
            # It would write into progress bars.
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run_id = self._run.id

    def _write(self, numbers, step):
        self._run.log(numbers, step=step)

    def _close(self):
        self._run.finish()
