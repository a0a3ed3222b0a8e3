"""TensorBoard event files without TensorFlow.

The `tensorboard` package (tested with 2.21) writes the same files when
TensorFlow is not installed.
"""

import glob
import itertools
import os
import re
import socket
import struct
import sys
import time
import types
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np
from tensorboard.compat.proto import event_pb2
from tensorboard.compat.proto import summary_pb2
from tensorboard.compat.proto import types_pb2
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import (
    metadata as custom_scalars_metadata,
)
from tensorboard.plugins.histogram.summary import histogram_pb
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.scalar.summary import scalar_pb
from tensorboard.plugins.text.summary import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util import tensor_util

from keras_plasticity import validation

# TensorBoard imports TensorFlow where it is installed, which takes seconds and
# prints pages of log, though it writes the same files without. If this module
# exists, as in some of its own builds, it does not. That affects all users of
# `tensorboard` in this process, but not TensorFlow's own summaries.
sys.modules.setdefault(
    "tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf")
)


# What an int64 holds.
_LARGEST_STEP = 2**63 - 1
_counter = itertools.count()
_PNG_START = b"\x89PNG\r\n\x1a\n"
# What Markdown or HTML does not show as it is: an underscore within a word and
# a space between two it does, and flags are easier to read so.
_SPECIAL = re.compile(
    r"[\\`*~|<&\[]|(?<![^\W_])_|_(?![^\W_])|(?<![^ \n]) | (?![^ \n])"
)


class SummaryWriter:
    """Writes what TensorBoard shows to an event file.

    Writers for the same folder start in different seconds, so creating another
    one may take up to a second.

    What is written is on disk after `flush`, which raises an `OSError` if it
    cannot be, or if the file was removed. TensorBoard reads nothing that comes
    after an incomplete record: then use another writer.

    Args:
        log_dir: String, the folder of the event file. It is created if needed.
            TensorBoard shows every folder as a separate run.
        first_step: Integer, the step at which an interrupted run resumes:
            TensorBoard drops what earlier files in the folder hold for this
            step and later ones. (Its fast loader, the default on Linux, drops
            them from a tag when the tag is next written.) Defaults to `0`.
        suffix: String, the end of the file's name, to tell it from others of
            the folder. Defaults to `""`.

    Example:

    ```python
    with SummaryWriter("logs/run") as writer:
        writer.scalar("task/online_accuracy", 0.95, step=0)
    ```
    """

    def __init__(self, log_dir: str, first_step: int = 0, suffix: str = ""):
        self.log_dir = validation.check_path("log_dir", log_dir)
        first_step = validation.check_integer(
            "first_step", first_step, 0, _LARGEST_STEP
        )
        if not isinstance(suffix, str) or re.search(r"[^\w.-]", suffix):
            rule = "a string of letters, digits, '.', '-' and '_'"
            raise validation.error("suffix", rule, suffix)
        os.makedirs(self.log_dir, exist_ok=True)
        _wait_for_a_second_without_files(self.log_dir)
        self._path = os.path.join(
            self.log_dir,
            f"events.out.tfevents.{int(time.time()):010d}."
            f"{socket.gethostname()}.{os.getpid()}.{next(_counter)}{suffix}",
        )
        # TensorBoard's own writer hands events to a thread, and does not tell
        # which of them it could not write.
        self._file = open(self._path, "xb")
        self._writer = RecordWriter(self._file)
        try:
            self._start(first_step)
        except OSError:
            self._file.close()
            raise

    def scalar(self, tag: str, value: float, step: int):
        """Writes one point of a curve.

        Args:
            tag: String. The part before the first `/` is the chart's group.
            value: Number.
            step: Integer, the position on the x-axis.
        """
        tag = validation.check_string("tag", tag)
        value = _as_float("value", value)
        with np.errstate(over="ignore"):  # TensorBoard keeps a float32.
            summary = scalar_pb(tag, value)
        self._add(summary, step)

    def histogram(self, tag: str, values: np.ndarray, step: int):
        """Writes a histogram of the values of an array.

        Args:
            tag: String. The part before the first `/` is the chart's group.
            values: Array of finite numbers, of any shape.
            step: Integer, the position on the time axis.
        """
        tag = validation.check_string("tag", tag)
        values = validation.check_array("values", values).astype("float64")
        validation.check_finite("values", values)
        self._add(histogram_pb(tag, values), step)

    def text(self, tag: str, markdown: str, step: int = 0):
        """Writes a text.

        Args:
            tag: String. The part before the first `/` is the text's group.
            markdown: String, in Markdown.
            step: Integer. Defaults to `0`.
        """
        tag = validation.check_string("tag", tag)
        markdown = validation.check_string("markdown", markdown)
        self._add(text_pb(tag, markdown), step)

    def image(self, tag: str, png: bytes, step: int = 0):
        """Writes an image.

        Args:
            tag: String. The part before the first `/` is the image's group.
            png: Bytes of a PNG file.
            step: Integer. Defaults to `0`.

        Raises:
            ValueError: If `png` is not a PNG file.
        """
        tag = validation.check_string("tag", tag)
        if not isinstance(png, bytes) or not png.startswith(_PNG_START):
            raise ValueError(
                "`png` must be the bytes of a PNG file, such as "
                "`figure.savefig(buffer, format='png')` leaves in a "
                f"`buffer=io.BytesIO()`. {validation.received('png', png)}"
            )
        # Both follow the length and the name of the first chunk.
        width, height = struct.unpack(">II", png[16:24])
        tensor = tensor_util.make_tensor_proto(
            [str(width).encode(), str(height).encode(), png],
            dtype=types_pb2.DT_STRING,
        )
        metadata = image_metadata.create_summary_metadata(
            display_name=None, description=None
        )
        self._add(_summary(tag, metadata, tensor), step)

    def hparams(
        self,
        hparams: Mapping[str, Any],
        results: Mapping[str, float | None] | None = None,
        step: int = 0,
    ):
        """Writes a run's settings and results, for the table of all runs.

        Without `results` the run is shown as running. Each result is also
        written as a scalar. The table has a column for every scalar in the
        writer's folder; to have those of the results only, use a writer for a
        separate folder inside the run's, such as `logs/run/results`.

        Args:
            hparams: Dict from name to a boolean, number or string; anything
                else, `None` too, is written as a string.
            results: Dict from tag to number, for a run that has ended; `None`
                is left out. Defaults to `None`.
            step: Integer, the last step of the run. Defaults to `0`.
        """
        validation.check_mapping("hparams", hparams)
        if results is not None:
            validation.check_mapping("results", results)
        now = time.time()
        start = plugin_data_pb2.SessionStartInfo(start_time_secs=now)
        for name, value in hparams.items():
            name = validation.check_string("hparams", name)
            if isinstance(value, np.generic):
                value = value.item()
            if isinstance(value, bool):
                start.hparams[name].bool_value = value
            elif isinstance(value, (int, float)):
                start.hparams[name].number_value = value
            else:
                start.hparams[name].string_value = str(value)
        self._add_hparams(
            hparams_metadata.SESSION_START_INFO_TAG, session_start_info=start
        )
        if results is None:
            return
        for tag, value in results.items():
            if value is not None:
                value = _as_float("results", value)
                self.scalar(
                    validation.check_string("results", tag), value, step
                )
        end = plugin_data_pb2.SessionEndInfo(
            status=api_pb2.STATUS_SUCCESS, end_time_secs=now
        )
        self._add_hparams(
            hparams_metadata.SESSION_END_INFO_TAG, session_end_info=end
        )

    def band_charts(self, charts: Mapping[str, Sequence[str]]):
        """Adds charts of a curve with a band to the page Custom Scalars.

        The points are written by `scalar`.

        Args:
            charts: Dict from title to the tags of the curve, of the lower and
                of the upper end of the band. What comes before the first `/`
                of the title is the chart's group.

        Raises:
            ValueError: If there are not three tags to a chart.

        Example:

        ```python
        writer.band_charts(
            {
                "task/online accuracy": (
                    "task/online_accuracy",
                    "band/online_accuracy/lower",
                    "band/online_accuracy/upper",
                )
            }
        )
        ```
        """
        categories = {}
        for title, tags in validation.check_mapping("charts", charts).items():
            title = validation.check_string("charts", title)
            if not _are_strings(tags) or len(tags) != 3:
                raise ValueError(
                    "`charts` must have the tags of the curve, of the lower "
                    "and of the upper end of its band for each title. "
                    f"Received for '{title}': {tags}"
                )
            value, lower, upper = tags
            series = layout_pb2.MarginChartContent.Series(
                value=value, lower=lower, upper=upper
            )
            group, _, name = title.partition("/")
            categories.setdefault(group, []).append(
                layout_pb2.Chart(
                    title=name or title,
                    margin=layout_pb2.MarginChartContent(series=[series]),
                )
            )
        layout = layout_pb2.Layout(
            category=[
                layout_pb2.Category(title=group, chart=members)
                for group, members in categories.items()
            ]
        )
        tensor = tensor_util.make_tensor_proto(
            layout.SerializeToString(), dtype=types_pb2.DT_STRING
        )
        metadata = custom_scalars_metadata.create_summary_metadata()
        tag = custom_scalars_metadata.CONFIG_SUMMARY_TAG
        self._add(_summary(tag, metadata, tensor), 0)

    def flush(self):
        """Makes everything written so far visible to TensorBoard."""
        self._file.flush()
        if not os.path.exists(self._path):
            raise FileNotFoundError(
                f"The event file {self._path} was removed while it was open."
            )

    def close(self):
        """Closes the file."""
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def _add_hparams(self, tag, **content):
        data = plugin_data_pb2.HParamsPluginData(**content)
        metadata = hparams_metadata.create_summary_metadata(data)
        self._add(_summary(tag, metadata, hparams_metadata.NULL_TENSOR), 0)

    def _add(self, summary, step):
        self._write(
            event_pb2.Event(
                summary=summary,
                step=validation.check_integer("step", step, 0, _LARGEST_STEP),
                wall_time=time.time(),
            )
        )

    def _start(self, first_step):
        now = time.time()
        self._write(
            event_pb2.Event(file_version="brain.Event:2", wall_time=now)
        )
        # TensorBoard takes the first start in a folder as the beginning of a
        # run, and each later one as a restart, so every file must have one.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(
            event_pb2.Event(session_log=start, step=first_step, wall_time=now)
        )

    def _write(self, event):
        self._writer.write(event.SerializeToString())


def _wait_for_a_second_without_files(log_dir):
    # TensorBoard reads a folder's files in the order of their names, which hold
    # the second of their creation and then an unpadded count: of two files of
    # the same second, number 10 is read before number 9.
    while glob.glob(
        f"events.out.tfevents.{int(time.time()):010d}.*", root_dir=log_dir
    ):
        time.sleep(0.02)


def markdown_table(
    header: tuple[str, ...], rows: list[tuple], escape: bool = True
) -> str:
    """A Markdown table, as TensorBoard's text page renders it.

    Args:
        header: Tuple of strings, the names of the columns.
        rows: List of tuples of the length of `header`.
        escape: Boolean, whether the table shows cells as they are, whatever
            they hold: characters that cannot be printed as Python writes them,
            such as `\\x00`. Defaults to `True`; with `False` cells are
            Markdown.

    Returns:
        String.

    Example:

    >>> print(markdown_table(("flag", "value"), [("seed", 0)]))
    | flag | value |
    | --- | --- |
    | seed | 0 |
    """
    header = validation.check_list("header", header)
    rule = f"a list of tuples of {len(header)} entries, as many as `header` has"
    for row in validation.check_list("rows", rows, rule=rule):
        if not isinstance(row, (tuple, list)) or len(row) != len(header):
            raise validation.error("rows", rule, rows)
    escape = validation.check_boolean("escape", escape)
    lines = [_markdown_row(row, escape) for row in [header, *rows]]
    lines.insert(1, _markdown_row(("---",) * len(header), escape=False))
    return "\n".join(lines)


def _summary(tag, metadata, tensor):
    summary = summary_pb2.Summary()
    summary.value.add(tag=tag, metadata=metadata, tensor=tensor)
    return summary


def _as_float(name, value):
    """A number, also of a backend, which may be NaN or infinite."""
    try:
        if not isinstance(value, (str, bytes, bool, np.bool_)):
            return float(value)
    except Exception:  # Whatever a tensor raises.
        pass
    raise validation.error(name, "a number", value)


def _are_strings(value):
    return isinstance(value, (list, tuple)) and all(
        isinstance(each, str) for each in value
    )


def _markdown_row(cells, escape):
    if escape:
        cells = [as_markdown(str(cell)) for cell in cells]
    else:
        # A bare `|` in a cell would start another one.
        cells = [str(cell).replace("|", "\\|") for cell in cells]
    return "| " + " | ".join(cells) + " |"


def as_markdown(text: str) -> str:
    """Markdown that shows a text as it is, on one line.

    Args:
        text: String.

    Returns:
        String; a line break of the text is `<br>`.
    """
    text = _SPECIAL.sub(lambda match: f"&#{ord(match[0])};", printable(text))
    return text.replace("\n", "<br>")


def printable(text: str) -> str:
    """A text in which what cannot be printed is as Python writes it.

    Args:
        text: String.

    Returns:
        String of printable characters and line breaks. A lone surrogate, which
        no file can hold, becomes `\\udc80`, for example.
    """
    return "".join(
        char
        if char == "\n" or char.isprintable()
        else char.encode("unicode_escape").decode()
        for char in text
    )
