"""The scores of methods, one for each seed, and what tells them apart."""

import dataclasses
import itertools
import math

import numpy as np

from keras_plasticity import validation
from keras_plasticity.experiments import measures
from keras_plasticity.experiments import statistics
from keras_plasticity.experiments import table

# Up to so many methods each is compared with each.
_MOST_FOR_ALL_PAIRS = 6
# What tables and figures call the measures.
LABELS = {
    "area_under_curve": "area under the curve",
    "last_tenth": "last tenth",
}


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a method has achieved.

    Attributes:
        label: String.
        num_tasks: Integer, of how many tasks.
        measures: Dict from the name of a measure to a dict from seed to float,
            NaN of a learner that has diverged.
    """

    label: str
    num_tasks: int
    measures: dict[str, dict[int, float]]


def seeds_of(summary, run):
    """The seeds of a run's learners."""
    if "seeds" in run:
        seeds = run["seeds"]
        if (
            not isinstance(seeds, list)
            or not all(map(validation.is_integer, seeds))
            or len({*seeds}) != run["num_learners"]
        ):
            raise ValueError(
                "The entry `seeds` of a run must be a list of different seeds, "
                f"one for each of its {run['num_learners']} learners. "
                f"Received: seeds={seeds}, method={run['method']}"
            )
        return seeds
    first = summary["flags"].get("seed", 0)
    return list(range(first, first + run["num_learners"]))


def curves(summary, run):
    """Float array of shape `(num_tasks, learners)`, a run's metric."""
    name = f"{summary['metric']['name']}_per_learner"
    return np.array([task[name] for task in run["per_task"]], "float64")


def of_run(label, summary, run, num_tasks):
    """The scores of a run's first tasks.

    Args:
        label: String.
        summary: Dict, what the runs have in common.
        run: Dict, the run, with its `seeds`.
        num_tasks: Integer.
    """
    values = curves(summary, run)[:num_tasks] * summary["metric"]["scale"]
    return Scores(
        label,
        len(values),
        {
            name: dict(zip(run["seeds"], measure(values).tolist()))
            for name, measure in measures.MEASURES.items()
        },
    )


def of_table(rows, path, scale=1.0):
    """The scores of the methods and settings in a table.

    Args:
        rows: List of dicts, see `table.read_table`.
        path: String, that of the table.
        scale: Number that scores are multiplied by.

    Returns:
        List of `Scores`.

    Raises:
        ValueError: If a seed is there twice, or of other numbers of tasks.
    """
    found = {}
    for row in rows:
        same = [each for each in rows if each["method"] == row["method"]]
        label = ", ".join([row["method"], *_what_differs(row, same)])
        scores = found.setdefault(label, {name: {} for name in LABELS})
        for name, of_seeds in scores.items():
            if row["seed"] in of_seeds:
                raise ValueError(
                    f"{path} has two rows of {label} with the seed "
                    f"{row['seed']}. Leave one out, or tell them apart by a "
                    f"column {table.FLAG}NAME."
                )
            value = row[name]
            of_seeds[row["seed"]] = math.nan if value is None else value * scale
    lengths = {row["num_tasks"] for row in rows}
    if len(lengths) > 1:
        raise ValueError(
            f"{path} has rows of different numbers of tasks, which cannot be "
            f"compared: {', '.join(map(str, sorted(lengths)))}"
        )
    return [Scores(label, *lengths, scores) for label, scores in found.items()]


def score_rows(all_scores, form):
    """The rows of a table of measures with their intervals.

    Args:
        all_scores: List of `Scores`.
        form: String, the format of a number.

    Returns:
        List of dicts from heading to string.
    """
    return [
        {
            "method": scores.label,
            "tasks": str(scores.num_tasks),
            **{
                LABELS[name]: _estimate(of_seeds, form)
                for name, of_seeds in scores.measures.items()
            },
        }
        for scores in all_scores
    ]


def pair_rows(all_scores, lower_is_better, form, baseline=None):
    """The rows of a table of paired differences.

    Args:
        all_scores: List of `Scores`.
        lower_is_better: Boolean.
        form: String, the format of a number.
        baseline: String, the label of the one that the others are compared
            with. Defaults to `None`: of up to six each with each, of more the
            first one.

    Returns:
        List of dicts from heading to string.
    """
    by_label = {scores.label: scores for scores in all_scores}
    if baseline is None and len(by_label) > _MOST_FOR_ALL_PAIRS:
        baseline = next(iter(by_label))
    pairs = [
        (by_label[a], by_label[b])
        for a, b in itertools.combinations(by_label, 2)
        if baseline in (None, a, b)
    ]
    return [
        _pair_row(*_baseline_last(pair, baseline), name, lower_is_better, form)
        for name in LABELS
        for pair in pairs
    ]


def _baseline_last(pair, baseline):
    return pair[::-1] if pair[0].label == baseline else pair


def _pair_row(first, second, measure, lower_is_better, form):
    mine, theirs = first.measures[measure], second.measures[measure]
    row = {
        "measure": LABELS[measure],
        "difference": f"{first.label} - {second.label}",
        "paired by seed": "-",
        "probability of improvement": "-",
    }
    shared = [seed for seed in mine if seed in theirs]
    finite = [
        seed
        for seed in shared
        if math.isfinite(mine[seed]) and math.isfinite(theirs[seed])
    ]
    if finite:
        difference = statistics.paired_difference(
            [mine[seed] for seed in finite], [theirs[seed] for seed in finite]
        )
        row["paired by seed"] = f"{difference:{form}}"
    if shared:
        probability = statistics.probability_of_improvement(
            [mine[seed] for seed in shared],
            [theirs[seed] for seed in shared],
            lower_is_better,
        )
        row["probability of improvement"] = f"{probability:.2f}"
    if not shared:
        row["ahead"] = "not told: no seed in common"
    elif not finite:
        row["ahead"] = "not told: no pair without one that diverged"
    elif difference.meets_zero:
        row["ahead"] = "not told apart"
    else:
        is_first = (difference.value < 0) == lower_is_better
        ahead, scores = (first, mine) if is_first else (second, theirs)
        diverged = sum(not math.isfinite(scores[seed]) for seed in shared)
        row["ahead"] = ahead.label
        if diverged:
            row["ahead"] = f"not told: of {ahead.label} {diverged} diverged"
    left_out = len({*mine, *theirs}) - len(finite)
    if left_out and finite:
        row["paired by seed"] += f", {left_out} seeds without a pair"
    return row


def _estimate(of_seeds, form):
    finite = [value for value in of_seeds.values() if math.isfinite(value)]
    if not finite:
        return f"diverged (n={len(of_seeds)})"
    text = f"{statistics.estimate(finite):{form}}"
    diverged = len(of_seeds) - len(finite)
    return f"{text}, {diverged} diverged" if diverged else text


def _what_differs(row, others):
    return [
        f"{name.removeprefix(table.FLAG)}={value}"
        for name, value in row.items()
        if name.startswith(table.FLAG)
        and name not in (f"{table.FLAG}seed", f"{table.FLAG}method")
        and any(other.get(name) != value for other in others)
    ]
