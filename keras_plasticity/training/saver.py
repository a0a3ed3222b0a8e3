"""When a run's checkpoints are written, and which one it resumes from."""

import time

from absl import logging

from keras_plasticity.training import checkpoint as checkpoints
from keras_plasticity.training import run_identity
from keras_plasticity.training.checkpoint import CheckpointError

# Checkpoints may use at most this share of the run time.
_MAX_SHARE = 1 / 50
# Within a task there is at most one in so many seconds.
_SECONDS_WITHIN_TASK = 60.0


class Saver:
    """Writes a run's checkpoints, and reads the one to resume from.

    A file that cannot be written does not end the run: the reason is told once,
    and it is tried again after the next task.

    Args:
        path: String, the file; `None` if there are to be no checkpoints.
        settings: Dict from name to value, the arguments of `fit`.

    Attributes:
        identity: `RunIdentity` of the run, set by the trainer.
        error: `OSError`, why the last checkpoint could not be written; `None`
            if it was.
    """

    def __init__(self, path, settings):
        self.identity = None
        self.error = None
        self._path = path
        self._is_whole = True
        self._journal = None if path is None else checkpoints.journal_of(path)
        self._settings = settings
        self._last = time.perf_counter()
        self._seconds = 0.0

    @property
    def is_on(self):
        return self._path is not None

    def load(self, resume):
        """Reads the checkpoint to resume from.

        Args:
            resume: Boolean, whether to resume.

        Returns:
            `Checkpoint`; `None` without one.

        Raises:
            CheckpointError: If there is one that is damaged, or of a run with
                other settings.
            FileExistsError: If there is one and `resume` is `False`.
        """
        if self._path is None:
            if resume:
                raise ValueError(
                    "`resume=True` needs a `checkpoint` to resume from. "
                    "Received: resume=True, checkpoint=None"
                )
            return None
        if not checkpoints.files(self._path):
            if resume:
                logging.warning(
                    "There is no checkpoint at %s to resume from: training "
                    "starts afresh.",
                    self._path,
                )
            return None
        if not resume:
            raise FileExistsError(
                "There is a checkpoint of another run already. Set "
                "`resume=True` to resume from it, or remove it. "
                f"Received: checkpoint={self._path}, of which there is "
                f"{' and '.join(checkpoints.files(self._path))}"
            )
        saved, message = checkpoints.load(self._path, self._journal)
        if message is not None:
            logging.warning(message)
            self._is_whole = False
        self._refuse(checkpoints.differences(saved.settings, self._settings))
        return saved

    def check_data(self, saved):
        """Raises a `CheckpointError` if a run is of other data."""
        self._refuse(
            run_identity.differences_in_data(saved.identity, self.identity)
        )

    def check_models(self, saved):
        """Raises a `CheckpointError` if a run is of other models."""
        self._refuse(
            run_identity.differences_in_models(saved.identity, self.identity)
        )
        versions = run_identity.differences_in_versions(saved.identity)
        if versions:
            logging.warning(
                "The checkpoint %s was made by other versions, so the results "
                "may not be those of an uninterrupted run: %s.",
                self._path,
                "; ".join(versions),
            )

    def is_due(self, within_task=False):
        """Whether it is time for the next checkpoint."""
        if self._path is None:
            return False
        waited = time.perf_counter() - self._last
        if within_task and waited < _SECONDS_WITHIN_TASK:
            return False
        return self._seconds <= _MAX_SHARE * waited

    def save(self, get_content):
        """Writes a checkpoint, if it can be written.

        Args:
            get_content: Function that returns a dict with the attributes of a
                `Checkpoint` but for settings and identity.
        """
        if self._path is None:
            return
        start = time.perf_counter()
        saved = checkpoints.Checkpoint(
            settings=self._settings,
            identity=self.identity.to_dict(),
            **get_content(),
        )
        try:
            saved.save(self._path, self._journal, self._is_whole)
        except OSError as error:
            if self.error is None:
                logging.warning(
                    "The checkpoint %s cannot be written: %s. Training "
                    "continues, and tries again after the next task.",
                    self._path,
                    error,
                )
            self.error = error
        else:
            self.error = None
            self._is_whole = True
        self._last = time.perf_counter()
        self._seconds = self._last - start

    def _refuse(self, differences):
        if differences:
            raise CheckpointError(
                "The checkpoint belongs to another run. Give what it was made "
                "with, or remove it to start afresh. "
                f"Received: checkpoint={self._path}, which differs in "
                f"{'; '.join(differences)}"
            )
