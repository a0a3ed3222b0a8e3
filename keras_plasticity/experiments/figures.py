"""The figure of a problem: its metric against time, methods side by side."""

import importlib.util
import io
import math
import textwrap

import numpy as np

from keras_plasticity.experiments import runs
from keras_plasticity.experiments import statistics
from keras_plasticity.experiments.scores import LABELS
from keras_plasticity.files import atomic_write
from keras_plasticity.utils.summary_writer import printable

_LEGEND_WIDTH = 34
_LINE_STYLES = ("-", "--", ":", "-.")
# Of the legend: lines in a column, and inches.
_MOST_LINES = 36
_COLUMN_WIDTH = 3.0
_LINE_HEIGHT = 0.22
_STANDARD_ERRORS = "mean and standard error over n learners"
_INTERVALS = "mean and its 95 % bootstrap interval over n learners"


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
    """Draws means over learners with bands, and writes PNG and SVG.

    What the bands are stands below the title, and `n` beside each label.
    Diamonds are published values, in the colors of the curves.

    Args:
        summary: Dict, what the runs have in common: problem, metric, axes.
        labeled_runs: Dict from label to run.
        path: String, where the figures go, without the ending.
        intervals: Boolean, whether the bands are 95 % bootstrap intervals, and
            not standard errors, which are the quicker to compute. Defaults to
            `False`.

    Returns:
        Bytes, the PNG.

    Raises:
        OSError: If a file cannot be written.
    """
    # Imported here: most of what uses this package draws no figure.
    import matplotlib

    # What a label holds between two `$` is no formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        return _draw(summary, labeled_runs, path, intervals)


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


def _add_legend(figure, axes):
    """Adds a legend, for which the figure grows if need be."""
    _, labels = axes.get_legend_handles_labels()
    lines = sum(label.count("\n") + 1 for label in labels)
    columns = math.ceil(lines / _MOST_LINES)
    width, height = figure.get_size_inches()
    figure.set_size_inches(
        width + (columns - 1) * _COLUMN_WIDTH,
        max(height, (math.ceil(lines / columns) + 1) * _LINE_HEIGHT),
    )
    # Beside the curves: among them it would hide some.
    figure.legend(loc="outside right upper", ncols=columns)


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


def _draw(summary, labeled_runs, path, intervals):
    from matplotlib import figure as figures
    from matplotlib import ticker

    figure = figures.Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    for number, (label, run) in enumerate(labeled_runs.items()):
        color = f"C{number % 10}"
        style = _LINE_STYLES[number // 10 % len(_LINE_STYLES)]
        label = textwrap.fill(
            f"{printable(label)} (n={run['num_learners']})",
            _LEGEND_WIDTH,
            break_on_hyphens=False,
        )
        ends, values = runs.per_bin(summary, run)
        diverged = sum(~np.isfinite(values[-1])) if len(ends) else 0
        if diverged:
            label += f",\n{diverged} of {values.shape[1]} diverged"
        mean = runs.mean_of_learners(values)
        # One bin is a point, and no line.
        marker = "o" if len(ends) == 1 else None
        axes.plot(ends, mean, style, color=color, label=label, marker=marker)
        if len(ends):
            axes.fill_between(
                ends,
                *_band(values, intervals),
                color=color,
                alpha=0.25,
                linewidth=0,
            )
        marks = runs.reached_marks(run, ends)
        if marks:
            axes.plot(
                *zip(*marks),
                linestyle="none",
                marker="D",
                markersize=6,
                markerfacecolor="white",
                color=color,
                label=f"{label}, published",
            )
    if not any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
        # Nothing is drawn, and no range is known but that of the runs.
        axes.set_xlim(0, max(line.get_xdata()[-1] for line in axes.lines))
    axes.set_xlabel(summary["x_axis"]["label"])
    axes.set_ylabel(
        summary["metric"]["label"] + runs.bins_label(summary, labeled_runs)
    )
    bands = _INTERVALS if intervals else _STANDARD_ERRORS
    axes.set_title(f"{printable(summary['title'])}\n{bands}")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    if summary["metric"]["lower_is_better"]:
        axes.set_ylim(bottom=0)
    _add_legend(figure, axes)
    return _save(figure, path)


def _save(figure, path):
    with atomic_write(f"{path}.svg") as temporary:
        figure.savefig(temporary, format="svg")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    with atomic_write(f"{path}.png") as temporary:
        temporary.write_bytes(png.getvalue())
    return png.getvalue()
