"""Reads recorded runs: the entries `runs` of a `summary.json`.

An entry has the results of one method: `per_task`, a list with the metric of
each learner, `None` where it is not finite.
"""

import math

import numpy as np

# From here on numbers in tables are shown by powers of ten.
_LARGE = 1e6


def per_bin(summary, run):
    """A run's metric, averaged over bins of tasks as its figure shows it.

    Args:
        summary: Dict, the summary that the run is in.
        run: Dict, the run.

    Returns:
        Tuple of the positions on the x-axis, where each bin ends, and an array
        of shape `(bins, learners)`.
    """
    name = f"{summary['metric']['name']}_per_learner"
    values = np.array([task[name] for task in run["per_task"]], "float64")
    return _binned(summary, values * summary["metric"]["scale"])


def has_diagnostic(run, name):
    """Whether a measure of a `PlasticityMonitor` is among a run's records."""
    return any(name in task.get("per_learner", ()) for task in run["per_task"])


def diagnostic_per_bin(summary, run, name):
    """A measure of a `PlasticityMonitor`, averaged over the same bins.

    Numbers of units, and ranks, are in percent of the units of hidden layers:
    of all of them, and of a layer's in the mean.

    Args:
        summary: Dict, the summary that the run is in.
        run: Dict, the run.
        name: String, a measure that it has.

    Returns:
        See `per_bin`.
    """
    rows = []
    for task in run["per_task"]:
        # Of learners that have all diverged there is nothing.
        values = task.get("per_learner", {}).get(
            name, [None] * run["num_learners"]
        )
        values = np.array(values, "float64")
        if name == "effective_rank":
            # The total is the mean over the layers.
            values *= len(task.get(name, ())) - 1
        if name != "weight_magnitude":
            values *= 100 / (task.get("num_units") or np.nan)
        rows.append(values)
    return _binned(summary, np.array(rows))


def epochs_of_task(run, index):
    """What was measured after each epoch of a task.

    Args:
        run: Dict, the run.
        index: Integer, which of the run's tasks; -1 is the last one.

    Returns:
        Dict from the name of a metric to an array of shape
        `(epochs, learners)`. It is empty if nothing was measured.
    """
    epochs = run["per_task"][index].get("epochs", {})
    return {name: np.array(rows, "float64") for name, rows in epochs.items()}


def _binned(summary, values):
    """Means over bins of tasks, and where on the x-axis the bins end."""
    if not len(values):
        return np.empty(0), np.empty((0, 1))
    # A run that was stopped may not have got as far as one whole bin.
    size = min(summary["tasks_per_bin"], len(values))
    bins = len(values) // size
    values = values[: bins * size].reshape(bins, size, -1).mean(axis=1)
    ends = (np.arange(bins) + 1) * size * summary["x_axis"]["per_task"]
    return ends, values


def reached_marks(run, ends):
    """The published points `(x, y)` at times that a run has reached."""
    # What came later would squeeze the curves, and has nothing beside it.
    return [
        (x, y)
        for x, y in run["published"]
        if len(ends) and x <= 1.05 * ends[-1]
    ]


def bins_label(summary, labeled_runs):
    """What a figure or table of these runs shows means of; "" of tasks."""
    size = summary["tasks_per_bin"]
    if size == 1:
        return ""
    rest = max(len(run["per_task"]) % size for run in labeled_runs.values())
    whole = all(len(run["per_task"]) >= size for run in labeled_runs.values())
    left_out = f", the last {rest} in none" if rest and whole else ""
    return f", bins of {size} tasks{left_out}"


def finite_mean(values):
    """Mean over the learners whose value is finite; `None` without any."""
    # Of float32 that is about to diverge the sum would be infinite.
    values = np.asarray(values, "float64")
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def standard_error(values):
    """Standard error of the mean over learners, those that are finite.

    Args:
        values: Float array of shape `(num_learners,)`.

    Returns:
        Float, 0 for less than two values.
    """
    values = np.asarray(values, "float64")
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return 0.0
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def finite_list(values):
    """A list for `summary.json`, where `None` stands for what is not finite."""
    return [float(v) if math.isfinite(v) else None for v in values]


def best_bin(summary, values):
    """Index of the bin that is best, of those that some learner reached."""
    means = mean_of_learners(values)
    if summary["metric"]["lower_is_better"]:
        return int(np.argmin(np.nan_to_num(means, nan=np.inf)))
    return int(np.argmax(np.nan_to_num(means, nan=-np.inf)))


def mean_of_learners(values):
    """Mean over the learners whose value is finite, for each bin."""
    return np.ma.masked_invalid(values).mean(axis=1).filled(np.nan)


def rows(summary, runs):
    """The rows of a table that compares runs.

    Args:
        summary: Dict, what the runs have in common.
        runs: Dict from label to run.

    Returns:
        List of dicts from heading to string.
    """
    result = []
    form = summary["metric"]["format"]
    for label, run in runs.items():
        ends, values = per_bin(summary, run)
        if not len(ends):
            continue
        marks = reached_marks(run, ends)
        seconds = run["compile_seconds"] + run["train_seconds"]
        result.append(
            {
                "method": label,
                "learners": str(run["num_learners"]),
                "tasks": str(len(run["per_task"])),
                "first": _cell(values[0], form),
                "last": _cell(values[-1], form),
                "best": _cell(values[best_bin(summary, values)], form),
                "published": ", ".join(f"{y:g} at {x:,}" for x, y in marks)
                or "-",
                "seconds": f"{seconds:.1f}",
            }
        )
    if all(row["published"] == "-" for row in result):
        # Terminals are narrow.
        for row in result:
            del row["published"]
    return result


def format_number(value, form):
    """A number as tables show it; those of what diverges by a power of ten."""
    return format(value, ".3g" if abs(value) >= _LARGE else form)


def _cell(values, form):
    """What a table says of the values of several learners in one bin."""
    mean = finite_mean(values)
    if mean is None:
        return "diverged"
    text = format_number(mean, form)
    finite = np.isfinite(values)
    if finite.sum() > 1:
        text += f"±{format_number(standard_error(values), form)}"
    if finite.all():
        # Of three it says little, whoever reads it should know.
        return f"{text} (n={len(finite)})"
    return f"{text} ({finite.sum()} of {len(finite)} learners)"
