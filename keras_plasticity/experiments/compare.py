"""Joins runs of a trainer into figures and one Markdown table."""

import os
from collections.abc import Sequence

from keras_plasticity import utils
from keras_plasticity import validation
from keras_plasticity.experiments import figures
from keras_plasticity.experiments import runs
from keras_plasticity.experiments import summary as summary_file
from keras_plasticity.files import atomic_write
from keras_plasticity.utils.summary_writer import as_markdown


def compare(
    folders: Sequence[str], output: str, num_tasks: int | None = None
) -> str:
    """Joins runs of the same problem into figures and one Markdown table.

    Writes `comparison.png`, `comparison.svg` and `comparison.md`, and where
    the runs have them `comparison_diagnostics` (dead units, effective rank,
    weight magnitude) and `comparison_epochs` (the metric within the first and
    the last task). Where two runs have the same method, the settings in which
    they differ tell them apart.

    Args:
        folders: Sequence of strings, the log folders of the runs.
        output: String, the folder for the figure and the table. It is made if
            it is not there.
        num_tasks: Integer, to show only this many tasks of each run, the
            first ones. Defaults to `None`: all.

    Returns:
        String, the table.

    Raises:
        FileNotFoundError: If a folder holds no run that ended.
        ImportError: If matplotlib is not installed.
        OSError: If `output` cannot be written.
        ValueError: If a summary is damaged, if the runs are of different
            problems, or if no run has finished a task.

    Example:

    ```python
    print(experiments.compare(["logs/a", "logs/b"], output="logs/both"))
    ```
    """
    folders = [
        validation.check_path("folders", folder)
        for folder in validation.check_list("folders", folders)
    ]
    if not folders:
        raise validation.error("folders", "a list of one or more", folders)
    output = validation.check_path("output", output)
    if num_tasks is not None:
        num_tasks = validation.check_positive_integer("num_tasks", num_tasks)
    summaries = {
        folder: summary_file.read_summary(folder) for folder in folders
    }
    _check_same_problem(summaries)
    figures.check_matplotlib()
    # Of the settings of the figure, those of the first run hold for all.
    summary = next(iter(summaries.values()))
    labeled = _label_runs(summaries)
    if not labeled:
        raise ValueError(
            "No run has finished a task: there is nothing to compare."
        )
    if num_tasks is not None:
        labeled = {
            label: _first_tasks(run, num_tasks)
            for label, run in labeled.items()
        }
    rows = runs.rows(summary, labeled)
    title = summary["title"].partition(",")[0]
    table = utils.markdown_table(
        tuple(rows[0]), [tuple(row.values()) for row in rows]
    )
    os.makedirs(output, exist_ok=True)
    path = os.path.join(output, "comparison")
    figures.draw({**summary, "title": title}, labeled, path)
    label = summary["metric"]["label"] + runs.bins_label(summary, labeled)
    with atomic_write(f"{path}.md") as temporary:
        temporary.write_text(
            f"{as_markdown(f'{title}: {label}')}\n\n{table}\n", encoding="utf-8"
        )
    return table


def _first_tasks(run, num_tasks):
    """The beginning of a run, with its share of the time."""
    share = min(1.0, num_tasks / max(1, len(run["per_task"])))
    return {
        **run,
        "per_task": run["per_task"][:num_tasks],
        "train_seconds": share * run["train_seconds"],
    }


def _label_runs(summaries):
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


def _check_same_problem(summaries):
    first, *others = summaries.items()
    for folder, summary in others:
        for name in ("problem", "metric", "x_axis"):
            if summary[name] != first[1][name]:
                raise ValueError(
                    "Runs of different problems cannot be compared. "
                    f"{first[0]} has {name}={first[1][name]}, {folder} has "
                    f"{name}={summary[name]}"
                )
