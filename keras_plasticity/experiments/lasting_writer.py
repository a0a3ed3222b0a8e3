"""TensorBoard logs of a run that outlast a disk that is full for a while."""

import contextlib

from keras_plasticity import utils

# Of the step from which TensorBoard drops what was written before: none.
NO_STEP = 2**62


class LastingWriter:
    """A `SummaryWriter` whose `flush` may fail without losing anything.

    All is kept until it is flushed. After a failure it is written to a new
    file, as TensorBoard reads none beyond a record that is incomplete.

    Args:
        log_dir: String, the folder.
        first_step: Integer, see `SummaryWriter`.
        unwritten: `Unwritten`, which is told of failures.
    """

    def __init__(self, log_dir, first_step, unwritten):
        self.log_dir = log_dir
        self._first_step = first_step
        self._unwritten = unwritten
        self._writer = None
        self._waiting = []

    def scalar(self, tag, value, step):
        self._waiting.append(("scalar", (tag, value, step)))

    def histogram(self, tag, values, step):
        self._waiting.append(("histogram", (tag, values, step)))

    def text(self, tag, markdown, step=0):
        self._waiting.append(("text", (tag, markdown, step)))

    def flush(self):
        """Writes what has been added since the last time."""
        with self._unwritten.attempt(f"TensorBoard's logs in {self.log_dir}"):
            try:
                self._write()
            except OSError:
                self._abandon()
                raise

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.flush()
        if self._writer is not None:
            self._writer.close()

    def _write(self):
        if self._writer is None:
            self._writer = utils.SummaryWriter(self.log_dir, self._first_step)
        for name, arguments in self._waiting:
            getattr(self._writer, name)(*arguments)
        self._writer.flush()
        self._waiting = []

    def _abandon(self):
        writer, self._writer = self._writer, None
        if writer is not None:
            self._first_step = NO_STEP
            with contextlib.suppress(OSError):  # It is told already.
                writer.close()
