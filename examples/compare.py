"""Joins runs of a trainer into one figure and one Markdown table.

    python examples/compare.py logs/run_a logs/run_b --output=logs/both

writes `comparison.png`, `comparison.svg` and `comparison.md` there, and prints
the table. The runs must be of the same problem; of longer ones than the others
`--num_tasks` takes the beginning. Where two runs have the same method, the
settings in which they differ tell them apart.
"""

import os
import sys

import figures
import logs
import runs
from absl import app
from absl import flags

from keras_plasticity import utils

OUTPUT = flags.DEFINE_string(
    "output", "logs/comparison", "Folder for the figure and the table."
)

NUM_TASKS = flags.DEFINE_integer(
    "num_tasks",
    None,
    "Only the first so many tasks of each run, where some are longer.",
    lower_bound=1,
)


def first_tasks(run, num_tasks):
    """The beginning of a run, with its share of the time."""
    share = min(1.0, num_tasks / max(1, len(run["per_task"])))
    return {
        **run,
        "per_task": run["per_task"][:num_tasks],
        "train_seconds": share * run["train_seconds"],
    }


def label_runs(summaries):
    """Names for all runs of some summaries, each its own.

    Args:
        summaries: Dict from folder to the summary of a run.

    Returns:
        Dict from label to run.
    """
    found = []
    for folder, summary in summaries.items():
        # Flags that are settings of methods are not of all of them.
        settings = {name for run in summary["runs"] for name in run["settings"]}
        shared = {
            name: value
            for name, value in summary["flags"].items()
            if name not in settings | {"method"}
        }
        for run in summary["runs"]:
            if run["per_task"]:
                # All that might tell two runs of a method apart.
                about = {
                    **shared,
                    **run["settings"],
                    "backend": summary["backend"],
                }
                found.append((folder, run, about))
    labels = []
    for _, run, about in found:
        label = run["method"]
        others = [
            each
            for _, other, each in found
            if other is not run and other["method"] == run["method"]
        ]
        different = [
            f"{name}={about.get(name)}"
            for name in about
            if any(each.get(name) != about[name] for each in others)
        ]
        labels.append(", ".join([label, *different]))
    return {
        # The same settings twice: only the folder is left.
        f"{label} ({folder})" if labels.count(label) > 1 else label: run
        for label, (folder, run, _) in zip(labels, found)
    }


def check_same_problem(summaries):
    first, *others = summaries.items()
    for folder, summary in others:
        for name in ("problem", "metric", "x_axis"):
            if summary[name] != first[1][name]:
                raise ValueError(
                    "Runs of different problems cannot be compared. "
                    f"{first[0]} has {name}={first[1][name]}, {folder} has "
                    f"{name}={summary[name]}"
                )


def main(argv):
    folders = [os.path.normpath(folder) for folder in argv[1:]]
    if not folders:
        raise app.UsageError("Name the log folders of one or more runs.")
    try:
        summaries = {folder: logs.read_summary(folder) for folder in folders}
        check_same_problem(summaries)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    figures.check_matplotlib()
    # Of the settings of the figure, those of the first run hold for all.
    summary = next(iter(summaries.values()))
    labeled = label_runs(summaries)
    if not labeled:
        sys.exit("No run has finished a task: there is nothing to compare.")
    if NUM_TASKS.value is not None:
        labeled = {
            label: first_tasks(run, NUM_TASKS.value)
            for label, run in labeled.items()
        }
    rows = runs.rows(summary, labeled)
    title = summary["title"].partition(",")[0]
    table = utils.markdown_table(
        tuple(rows[0]), [tuple(row.values()) for row in rows]
    )
    os.makedirs(OUTPUT.value, exist_ok=True)
    path = os.path.join(OUTPUT.value, "comparison")
    figures.draw({**summary, "title": title}, labeled, path)
    with open(f"{path}.md", "w") as file:
        label = summary["metric"]["label"] + runs.bins_label(summary, labeled)
        file.write(f"{title}: {label}\n\n{table}\n")
    print(table)
    print(f"\nFigure: {path}.png, .svg\nTable: {path}.md")


if __name__ == "__main__":
    app.run(main)
