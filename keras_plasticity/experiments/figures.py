"""Figures of a problem: its metric, and what explains it, of all methods."""

import dataclasses
import importlib.util
import io
import math
import pathlib
import textwrap
from typing import Any

import numpy as np

from keras_plasticity.experiments import runs
from keras_plasticity.experiments import statistics
from keras_plasticity.experiments.scores import LABELS
from keras_plasticity.files import atomic_write
from keras_plasticity.utils.summary_writer import printable

_LEGEND_WIDTH = 34
# Inches.
_SIZE = (10, 4.5)
_PANEL_SIZE = (3.6, 3.6)
# The last ones have two dots after each dash, and dots far apart.
_LINE_STYLES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 4)))
# Of the legend: lines in a column, and inches.
_MOST_LINES = 36
_COLUMN_WIDTH = 3.0
_LINE_HEIGHT = 0.22
_STANDARD_ERRORS = "lines: means, bands: standard errors, over n learners"
_INTERVALS = "mean and its 95 % bootstrap interval over n learners"
# The panels with what a `PlasticityMonitor` measured.
_DIAGNOSTICS = {
    "dead_units": "dead units (%)",
    "saturated_units": "saturated units (%)",
    "effective_rank": "effective rank (% of units)",
    "weight_magnitude": "mean weight magnitude",
}


def check_matplotlib():
    """Fails before a run, and not after it, if no figure can be drawn.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "The figure needs matplotlib: pip install -e '.[figures]'"
        )


def draw(summary, labeled_runs, path, intervals=False):
    """Draws all figures that there are data for, as PNG and SVG.

    - `<path>`: the metric against tasks, with published values as diamonds.
    - `<path>_diagnostics`: dead units, effective rank and weight magnitude
        against tasks, if they were measured.
    - `<path>_epochs`: the metric against the epochs of the first and of the
        last task, if tasks have several.

    Curves are means over learners, `n` stands beside each label, and what the
    bands are below. An older figure that there are no data for any more is
    removed.

    Args:
        summary: Dict, what the runs have in common: problem, metric, axes.
        labeled_runs: Dict from label to run.
        path: String, where the figures go, without the ending.
        intervals: Boolean, whether the bands are 95 % bootstrap intervals, and
            not standard errors, which are the quicker to compute. Defaults to
            `False`.

    Returns:
        Dict from path, without the ending, to bytes, the PNG.

    Raises:
        OSError: If a file cannot be written.
    """
    pngs = {}
    for ending, draw_figure in (
        ("", _draw_metric),
        ("_diagnostics", _draw_diagnostics),
        ("_epochs", _draw_epochs),
    ):
        png = draw_figure(summary, labeled_runs, path + ending, intervals)
        if png is None:
            for kind in ("png", "svg"):
                pathlib.Path(f"{path}{ending}.{kind}").unlink(missing_ok=True)
        else:
            pngs[path + ending] = png
    return pngs


def draw_scores(summary, all_scores, path):
    """Draws the measures of methods with their intervals: PNG and SVG.

    Args:
        summary: Dict, what the methods have in common: title and metric.
        all_scores: List of `scores.Scores`.
        path: String, where the figures go, without the ending.

    Raises:
        OSError: If a file cannot be written.
    """
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}):
        _draw_scores(summary, all_scores, path)


def _draw_metric(summary, labeled_runs, path, intervals):
    def fill(figure):
        axes = figure.add_subplot()
        for curve in _curves(summary, labeled_runs, intervals):
            ends, values = runs.per_bin(summary, curve.run)
            curve.draw(axes, ends, values)
            marks = runs.reached_marks(curve.run, ends)
            if marks:
                axes.plot(
                    *zip(*marks),
                    linestyle="none",
                    marker="D",
                    markersize=6,
                    markerfacecolor="white",
                    color=curve.color,
                    label=_wrapped(f"{curve.name}, published"),
                )
        if not any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
            # Nothing is drawn, and no range is known but that of the runs.
            axes.set_xlim(0, max(line.get_xdata()[-1] for line in axes.lines))
        axes.set_ylabel(
            summary["metric"]["label"] + runs.bins_label(summary, labeled_runs)
        )
        axes.set_title(printable(summary["title"]))
        _against_tasks(axes, summary)
        if summary["metric"]["lower_is_better"]:
            axes.set_ylim(bottom=0)

    return _draw(path, _SIZE, fill, intervals)


def _draw_diagnostics(summary, labeled_runs, path, intervals):
    """Draws dead units, effective rank and weights against tasks.

    They are measured before each task. Units that are dead (or saturated), and
    the effective rank, are in percent of the units of the hidden layers.

    Returns:
        Bytes, the PNG; `None` if nothing of it was measured.
    """
    names = [
        name
        for name in _DIAGNOSTICS
        if any(runs.has_diagnostic(run, name) for run in labeled_runs.values())
    ]
    if not names:
        return None

    def fill(figure):
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for axes, name in zip(panels, names):
            for curve in _curves(summary, labeled_runs, intervals):
                # The linear model has no hidden units.
                if runs.has_diagnostic(curve.run, name):
                    curve.draw(
                        axes, *runs.diagnostic_per_bin(summary, curve.run, name)
                    )
            axes.set_ylabel(_DIAGNOSTICS[name])
            _against_tasks(axes, summary)
            if "%" in _DIAGNOSTICS[name]:
                # Where there are none, that is to be seen.
                axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
        bins = runs.bins_label(summary, labeled_runs)
        figure.suptitle(
            f"{printable(summary['title'])}\nmeasured before each task{bins}"
        )

    size = (_PANEL_SIZE[0] * len(names) + 2.0, _PANEL_SIZE[1])
    return _draw(path, size, fill, intervals)


def _draw_epochs(summary, labeled_runs, path, intervals):
    """Draws the metric against epochs, within the first and the last task.

    Returns:
        Bytes, the PNG; `None` if tasks have one epoch only.
    """
    columns = {
        title: {
            label: epochs
            for label, run in labeled_runs.items()
            # A first task is no last one, too.
            if (index == 0 or len(run["per_task"]) > 1)
            and (epochs := runs.epochs_of_task(run, index))
        }
        for title, index in _epoch_columns(labeled_runs).items()
    }
    columns = {title: found for title, found in columns.items() if found}
    if not columns:
        return None
    metric = summary["metric"]
    labels = {
        "training": f"training {metric['label'].removeprefix('test ')}",
        metric["name"]: metric["label"],
    }
    rows = [
        name
        for name in labels
        if any(
            name in each
            for found in columns.values()
            for each in found.values()
        )
    ]

    def fill(figure):
        panels = figure.subplots(
            len(rows), len(columns), sharex=True, sharey="row", squeeze=False
        )
        for name, of_metric in zip(rows, panels):
            for axes, found in zip(of_metric, columns.values()):
                for curve in _curves(summary, labeled_runs, intervals):
                    if curve.name in found:
                        values = found[curve.name][name] * metric["scale"]
                        curve.draw(axes, np.arange(len(values)) + 1, values)
                axes.xaxis.set_major_locator(_whole_numbers())
            of_metric[0].set_ylabel(labels[name])
            if metric["lower_is_better"]:
                of_metric[0].set_ylim(bottom=0)
        for axes, title in zip(panels[0], columns):
            axes.set_title(title, fontsize="medium")
        for axes in panels[-1]:
            axes.set_xlabel("epochs")
        figure.suptitle(printable(summary["title"]))

    size = (4.2 * len(columns), 0.6 + 2.8 * len(rows))
    return _draw(path, size, fill, intervals)


@dataclasses.dataclass(frozen=True)
class _Curve:
    """How the curves of a run look, in all figures.

    Attributes:
        name: String, the run's label.
        run: Dict.
        label: String, what the legend says of it.
        color: String.
        style: Line style of Matplotlib.
        intervals: Boolean, whether the band is a bootstrap interval.
    """

    name: str
    run: dict[str, Any]
    label: str
    color: str
    style: Any
    intervals: bool

    def draw(self, axes, x, values):
        """Draws the mean of learners, and the band around it.

        Args:
            axes: Matplotlib's `Axes`.
            x: Array of shape `(points,)`.
            values: Array of shape `(points, learners)`.
        """
        mean = runs.mean_of_learners(values)
        # One point is no line.
        marker = "o" if len(x) == 1 else None
        axes.plot(
            x,
            mean,
            linestyle=self.style,
            color=self.color,
            label=self.label,
            marker=marker,
        )
        if len(x):
            axes.fill_between(
                x,
                *_band(values, self.intervals),
                color=self.color,
                alpha=0.25,
                linewidth=0,
            )


def _band(values, intervals):
    """The ends of the band around the means of finite learners."""
    if not intervals:
        mean = runs.mean_of_learners(values)
        spread = np.array([runs.standard_error(each) for each in values])
        return mean - spread, mean + spread
    low, high = np.full((2, len(values)), np.nan)
    finite = np.isfinite(values)
    # Learners diverge seldom: most bins have those of the bin before.
    for which in np.unique(finite, axis=0):
        bins = (finite == which).all(axis=1)
        if which.any():
            low[bins], high[bins] = statistics.interval_of_means(
                values[bins][:, which]
            )
    return low, high


def _curves(summary, labeled_runs, intervals):
    for number, (name, run) in enumerate(labeled_runs.items()):
        label = _wrapped(f"{name} (n={run['num_learners']})")
        _, values = runs.per_bin(summary, run)
        diverged = sum(~np.isfinite(values[-1])) if len(values) else 0
        if diverged:
            label += f",\n{diverged} of {values.shape[1]} diverged"
        yield _Curve(
            name,
            run,
            label,
            *_style(number),
            intervals,
        )


def _style(number):
    """The color and the line style of a curve."""
    return f"C{number % 10}", _LINE_STYLES[number // 10 % len(_LINE_STYLES)]


def _wrapped(label):
    """A label as the legend has it."""
    return textwrap.fill(
        printable(label), _LEGEND_WIDTH, break_on_hyphens=False
    )


def _epoch_columns(labeled_runs):
    """Dict from title to the index of a task."""
    lengths = {len(run["per_task"]) for run in labeled_runs.values()}
    columns = {"first task": 0}
    if lengths != {1}:
        which = f" of {lengths.pop():,}" if len(lengths) == 1 else ""
        columns[f"last task{which}"] = -1
    return columns


def _whole_numbers():
    from matplotlib import ticker

    return ticker.MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True)


def _against_tasks(axes, summary):
    from matplotlib import ticker

    axes.set_xlabel(summary["x_axis"]["label"])
    axes.xaxis.set_major_locator(_whole_numbers())
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))


def _add_legend(figure):
    """Adds a legend, for which the figure grows if need be."""
    handles = {}
    # A panel may lack some of the curves, and has the others in order.
    for axes in sorted(figure.axes, key=lambda axes: -len(axes.lines)):
        for handle, label in zip(*axes.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    lines = sum(label.count("\n") + 1 for label in handles)
    columns = math.ceil(lines / _MOST_LINES)
    width, height = figure.get_size_inches()
    figure.set_size_inches(
        width + (columns - 1) * _COLUMN_WIDTH,
        max(height, (math.ceil(lines / columns) + 1) * _LINE_HEIGHT),
    )
    # Beside the curves: among them it would hide some.
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside right upper",
        ncols=columns,
    )


def _draw(path, size, fill, intervals):
    """Draws a figure, and writes PNG and SVG.

    Args:
        path: String, where the figures go, without the ending.
        size: Tuple of two numbers, inches.
        fill: Function that adds all but the legend to a `Figure`.
        intervals: Boolean, whether the bands are bootstrap intervals.

    Returns:
        Bytes, the PNG.
    """
    # Imported here: most of what uses this package draws no figure.
    import matplotlib
    from matplotlib import figure as figures

    # What a label holds between two `$` is no formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = figures.Figure(figsize=size, layout="constrained")
        fill(figure)
        for axes in figure.axes:
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        _add_legend(figure)
        figure.supxlabel(
            _INTERVALS if intervals else _STANDARD_ERRORS,
            fontsize="small",
            color="0.35",
        )
        return _save(figure, path)


def _draw_scores(summary, all_scores, path):
    from matplotlib import figure as figures

    figure = figures.Figure(
        figsize=(10, max(2.5, 1.5 + 0.35 * len(all_scores))),
        layout="constrained",
    )
    names = list(all_scores[0].measures)
    for axes, name in zip(figure.subplots(1, len(names), sharey=True), names):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        for position, scores in enumerate(all_scores):
            finite = [
                value
                for value in scores.measures[name].values()
                if math.isfinite(value)
            ]
            if finite:
                each = statistics.estimate(finite)
                axes.plot(each.value, position, "o", color="C0")
                axes.plot([each.low, each.high], [position] * 2, color="C0")
        axes.set_xlabel(f"{summary['metric']['label']}, {LABELS[name]}")
        axes.set_yticks(
            range(len(all_scores)), [_score_label(each) for each in all_scores]
        )
        axes.set_ylim(len(all_scores) - 0.5, -0.5)
    figure.suptitle(f"{printable(summary['title'])}\n{_INTERVALS}")
    _save(figure, path)


def _score_label(scores):
    n = max(map(len, scores.measures.values()))
    diverged = sum(
        not math.isfinite(value)
        for value in next(iter(scores.measures.values())).values()
    )
    label = f"{printable(scores.label)} (n={n})"
    return label + f", {diverged} diverged" * bool(diverged)


def _save(figure, path):
    """Writes PNG and SVG; returns the PNG."""
    with atomic_write(f"{path}.svg") as temporary:
        figure.savefig(temporary, format="svg")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    with atomic_write(f"{path}.png") as temporary:
        temporary.write_bytes(png.getvalue())
    return png.getvalue()
