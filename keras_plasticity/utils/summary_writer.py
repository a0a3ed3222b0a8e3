"""TensorBoard event files without TensorFlow.

Everything comes from the `tensorboard` package itself (tested with 2.21),
which writes the same files when TensorFlow is not there.
"""

import sys
import time
import types

import numpy as np
from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.histogram.summary import histogram_pb
from tensorboard.plugins.scalar.summary import scalar_pb
from tensorboard.plugins.text.summary import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

# TensorBoard imports TensorFlow where it is installed, for files that it writes
# as well without: seconds, and pages of log. This module, which only some of
# its own builds have, tells it not to.
sys.modules.setdefault(
    "tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf")
)


class SummaryWriter:
    """Writes scalars, histograms and texts to a TensorBoard event file.

    Args:
        log_dir: String, the folder of the event file. It is made if it is
            not there. TensorBoard shows every folder as a run of its own.

    Example:

    ```python
    with SummaryWriter("logs/run") as writer:
        writer.scalar("task/online_accuracy", 0.95, step=0)
    ```
    """

    def __init__(self, log_dir: str):
        self.log_dir = str(log_dir)
        self._writer = EventFileWriter(self.log_dir)

    def scalar(self, tag: str, value: float, step: int):
        """Writes one point of a curve.

        Args:
            tag: String. What comes before the first `/` is the chart's group.
            value: Number.
            step: Integer, the place on the x-axis.
        """
        self._add(scalar_pb(tag, float(value)), step)

    def histogram(self, tag: str, values: np.ndarray, step: int):
        """Writes how the values of an array are distributed.

        Args:
            tag: String. What comes before the first `/` is the chart's group.
            values: Array of finite numbers, of any shape.
            step: Integer, the place on the time axis.
        """
        self._add(histogram_pb(tag, np.asarray(values, "float64")), step)

    def text(self, tag: str, markdown: str, step: int = 0):
        """Writes a text.

        Args:
            tag: String. What comes before the first `/` is the text's group.
            markdown: String, in Markdown.
            step: Integer. Defaults to `0`.
        """
        self._add(text_pb(tag, markdown), step)

    def flush(self):
        """Makes everything written so far visible to TensorBoard."""
        self._writer.flush()

    def close(self):
        """Ends the file. Nothing can be written after it."""
        self._writer.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def _add(self, summary, step):
        self._writer.add_event(
            event_pb2.Event(
                summary=summary, step=int(step), wall_time=time.time()
            )
        )


def markdown_table(header: tuple[str, ...], rows: list[tuple]) -> str:
    """A Markdown table, as TensorBoard's text page renders it.

    Args:
        header: Tuple of strings, the names of the columns.
        rows: List of tuples of the length of `header`.

    Returns:
        String.

    Example:

    >>> print(markdown_table(("flag", "value"), [("seed", 0)]))
    | flag | value |
    | --- | --- |
    | seed | 0 |
    """
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(_markdown_row(line) for line in lines)


def _markdown_row(cells):
    # A bare `|` in a cell would begin another one.
    cells = [str(cell).replace("|", "\\|") for cell in cells]
    return "| " + " | ".join(cells) + " |"
