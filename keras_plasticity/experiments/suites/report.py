"""The table and the figure of a suite."""

import math
import os

from keras_plasticity import utils
from keras_plasticity.experiments import statistics
from keras_plasticity.experiments import terminal
from keras_plasticity.experiments.suites import results as result_files
from keras_plasticity.experiments.suites.cells import MEASURE
from keras_plasticity.files import atomic_write

# Of a figure, in inches.
_WIDTH = 7.0
_HEIGHT_OF_ROW = 0.24


def write(results, log_dir):
    """Prints the table, and writes it and the figure.

    Args:
        results: Dict, see `results.make_results`.
        log_dir: String, the folder.
    """
    sections = []
    for name, problem in results["problems"].items():
        rows = [
            shown(row)
            for row in result_files.rows_of(results)
            if row["problem"] == name
        ]
        heading = title(problem)
        terminal.print_table(
            heading,
            {key: lambda row, key=key: row[key] for key in rows[0]},
            rows,
        )
        sections.append(f"{heading}\n\n{markdown(rows)}\n")
    path = os.path.join(log_dir, "results")
    with atomic_write(f"{path}.md") as temporary:
        temporary.write_text("\n".join(sections), encoding="utf-8")
    draw(results, f"{path}.png")
    print(f"Results: {path}.json, .csv, .md, .png")


def title(problem):
    """What the table and the figure of a problem say of it."""
    n = len(problem["report_seeds"])
    tuning = len(problem["tuning_seeds"])
    metric = problem.get("metric", "the metric").replace("_", " ")
    return (
        f"{problem['title']}: {metric}, mean and 95 % interval over {n} fresh "
        f"seeds, each method tuned with {problem['num_settings']} settings x "
        f"{tuning} other seed{'s' * (tuning > 1)}"
    )


def markdown(rows):
    """A table in Markdown of rows that `shown` made."""
    return utils.markdown_table(
        tuple(rows[0]), [tuple(row.values()) for row in rows]
    )


def shown(row):
    """A row of the table as it is read: dict from heading to string."""
    seconds, size = row["seconds_per_step"], row["bytes_per_learner"]
    return {
        "method": row["method"],
        "last tenth": _interval(row, "last_tenth"),
        "area under the curve": _interval(row, "area_under_curve"),
        "from the best": _difference(row, "best"),
        "from bp": _difference(row, "bp"),
        "µs a step": "-" if seconds is None else f"{1e6 * seconds:.3g}",
        "kB": "-" if size is None else f"{size / 1000:.4g}",
    }


def draw(results, path):
    """Draws the means of all methods with their intervals.

    Args:
        results: Dict, see `results.make_results`.
        path: String, the PNG.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    problems = results["problems"].values()
    heights = [_HEIGHT_OF_ROW * len(each["methods"]) + 1.2 for each in problems]
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure((_WIDTH, sum(heights)), layout="constrained")
        FigureCanvasAgg(figure)
        all_axes = figure.subplots(
            len(heights), squeeze=False, height_ratios=heights
        )[:, 0]
        rows = result_files.rows_of(results)
        for axes, (name, problem) in zip(all_axes, results["problems"].items()):
            _draw_problem(
                axes, problem, [row for row in rows if row["problem"] == name]
            )
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150)


def _draw_problem(axes, problem, rows):
    values = [_nan(row[MEASURE]) for row in rows]
    lengths = [
        [
            value - _nan(row[f"{MEASURE}_low"])
            for row, value in zip(rows, values)
        ],
        [
            _nan(row[f"{MEASURE}_high"]) - value
            for row, value in zip(rows, values)
        ],
    ]
    places = range(len(rows))
    axes.errorbar(values, places, xerr=lengths, fmt="o", capsize=3)
    axes.set_yticks(places, [_label(row) for row in rows])
    # The best one on top.
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(
        f"{problem['title']} (n={len(problem['report_seeds'])} seeds)"
    )
    metric = problem.get("metric", "").replace("_", " ")
    axes.set_xlabel(
        f"area under the curve of {metric}: mean and 95 % bootstrap interval"
    )


def _label(row):
    if row["diverged"]:
        return f"{row['method']} ({row['diverged']} diverged)"
    return row["method"] if row["n"] else f"{row['method']}: {_status(row)}"


def _status(row):
    """Its status without the reason, which `results.json` has."""
    return row["status"].partition(":")[0]


def _nan(value):
    return math.nan if value is None else value


def _interval(row, measure):
    if row[measure] is None:
        return _status(row)
    estimate = statistics.Estimate(
        *(row[f"{measure}{end}"] for end in ("", "_low", "_high")), row["n"]
    )
    text = f"{estimate:.4g}"
    return f"{text}, {row['diverged']} diverged" if row["diverged"] else text


def _difference(row, label):
    if row[f"minus_{label}"] is None:
        return "-"
    low, high = row[f"minus_{label}_low"], row[f"minus_{label}_high"]
    value = f"{row[f'minus_{label}']:+.3g}"
    if math.isnan(low):
        return f"{value} (no interval)"
    told = "" if row[f"told_from_{label}"] == "yes" else ", not told apart"
    return f"{value} ({low:+.3g} to {high:+.3g}){told}"
