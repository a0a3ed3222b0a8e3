"""Joins runs and tables of a problem, and says what differs between them."""

import os
from collections.abc import Sequence

from keras_plasticity import utils
from keras_plasticity import validation
from keras_plasticity.experiments import figures
from keras_plasticity.experiments import runs
from keras_plasticity.experiments import scores
from keras_plasticity.experiments import summary as summary_file
from keras_plasticity.experiments import table as tables
from keras_plasticity.files import atomic_write
from keras_plasticity.utils.summary_writer import as_markdown

_TABLES = (".csv", ".parquet")


def compare(
    folders: Sequence[str],
    output: str,
    num_tasks: int | None = None,
    baseline: str | None = None,
) -> str:
    """Joins runs of the same problem into figures and Markdown tables.

    Writes `comparison.png`, `comparison.svg` and `comparison.md`, and where
    the runs have them `comparison_diagnostics` (dead units, effective rank,
    weight magnitude) and `comparison_epochs` (the metric within the first and
    the last task). Where two runs have the same method, the settings in which
    they differ tell them apart.

    The tables are

    - what each run began and ended with, with standard errors;
    - two measures of it, the area under its curve (the mean over its tasks)
        and the mean of its last tenth, with 95 % bootstrap intervals, over the
        tasks that all runs have;
    - the differences of these measures, paired by seed, with such intervals,
        and the probability that a learner of the one beats one of the other.
        Only where the interval does not meet zero is one said to be ahead.
        (Of twenty such intervals one misses the truth, so of many pairs some
        are ahead by chance.)

    Args:
        folders: Sequence of strings: log folders of runs, by a trainer or by
            `save_results`; and tables of results, files that end in `.csv` or
            `.parquet`, as `sweep` writes them. A table has no curves: with
            tables the figure shows the measures.
        output: String, the folder for the figure and the tables. It is made if
            it is not there.
        num_tasks: Integer, to show only this many tasks of each run, the
            first ones. Defaults to `None`: all.
        baseline: String, the method, as the tables name it, with which the
            others are compared. Defaults to `None`: each with each, but of
            more than six the first with the others.

    Returns:
        String, the tables.

    Raises:
        FileNotFoundError: If a folder holds no run that ended, or a table is
            not there.
        ImportError: If matplotlib is not installed, or pyarrow for Parquet.
        OSError: If `output` cannot be written.
        ValueError: If a summary or a table is damaged or of another schema, if
            the runs are of different problems, or if no run has finished a
            task.

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
    if baseline is not None:
        baseline = validation.check_string("baseline", baseline)
    summaries = {
        folder: summary_file.read_summary(folder)
        for folder in folders
        if not folder.endswith(_TABLES)
    }
    of_tables = {
        path: tables.read_table(path)
        for path in folders
        if path.endswith(_TABLES)
    }
    _check_same_problem(summaries, of_tables)
    figures.check_matplotlib()
    labeled = _label_runs(summaries)
    if num_tasks is not None:
        labeled = {
            label: _first_tasks(run, num_tasks)
            for label, run in labeled.items()
        }
    # Of the settings of the figure, those of the first run hold for all.
    summary = next(iter(summaries.values()), None) or _about(of_tables)
    all_scores = _all_scores(summary, labeled, of_tables, num_tasks)
    labels = [each.label for each in all_scores]
    if baseline is not None and baseline not in labels:
        raise ValueError(
            "`baseline` must be one of the methods, as the tables name them: "
            f"{'; '.join(labels)}. {validation.received('baseline', baseline)}"
        )
    title = summary["title"].partition(",")[0]
    label = summary["metric"]["label"]
    metric = summary["metric"]
    sections = {}
    if labeled:
        heading = (
            f"{title}: {label}{runs.bins_label(summary, labeled)}, "
            "± standard error"
        )
        sections[heading] = runs.rows(summary, labeled)
    sections[f"{title}: {label}, mean over seeds and 95 % interval"] = (
        scores.score_rows(all_scores, metric["format"])
    )
    if len(all_scores) > 1:
        sections[f"{title}: differences, and who is ahead"] = scores.pair_rows(
            all_scores, metric["lower_is_better"], metric["format"], baseline
        )
    os.makedirs(output, exist_ok=True)
    path = os.path.join(output, "comparison")
    if of_tables:
        figures.draw_scores({**summary, "title": title}, all_scores, path)
    else:
        figures.draw({**summary, "title": title}, labeled, path, intervals=True)
    texts = {
        heading: utils.markdown_table(
            tuple(rows[0]), [tuple(row.values()) for row in rows]
        )
        for heading, rows in sections.items()
    }
    with atomic_write(f"{path}.md") as temporary:
        temporary.write_text(
            "\n".join(
                f"{as_markdown(heading)}\n\n{text}\n"
                for heading, text in texts.items()
            ),
            encoding="utf-8",
        )
    return "\n\n".join(texts.values())


def _about(of_tables):
    """What a summary would say of tables."""
    row = next((row for rows in of_tables.values() for row in rows), None)
    if row is None:
        raise ValueError(
            f"The tables have no rows: {', '.join(of_tables)}. There is "
            "nothing to compare."
        )
    return {
        "problem": row["problem"],
        "title": row["problem"].replace("_", " "),
        "metric": {
            "name": row["metric"],
            "label": row["metric"].replace("_", " "),
            "lower_is_better": row["lower_is_better"],
            "scale": 1.0,
            "format": ".4g",
        },
    }


def _all_scores(summary, labeled, of_tables, num_tasks):
    """The scores of all runs and tables, over the tasks that all have."""
    lengths = [len(run["per_task"]) for run in labeled.values()]
    lengths += [row["num_tasks"] for rows in of_tables.values() for row in rows]
    if not lengths:
        raise ValueError(
            "No run has finished a task: there is nothing to compare."
        )
    shortest = min([*lengths, num_tasks or max(lengths)])
    found = [
        scores.of_run(label, summary, run, shortest)
        for label, run in labeled.items()
    ]
    for path, rows in of_tables.items():
        for row in rows:
            if row["num_tasks"] != shortest:
                raise ValueError(
                    f"{path} has measures of {row['num_tasks']} tasks, to be "
                    f"compared with those of {shortest} tasks: a table has no "
                    "curves of which a beginning could be taken."
                )
        found += scores.of_table(rows, path, summary["metric"]["scale"])
    labels = [each.label for each in found]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(
            f"Two of {', '.join(of_tables)} and the runs have results of "
            f"{'; '.join(twice)}. Join their rows in one table, or compare one "
            "of them."
        )
    return found


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
                run = {**run, "seeds": scores.seeds_of(summary, run)}
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


def _check_same_problem(summaries, of_tables):
    about = {
        folder: {
            name: summary[name] for name in ("problem", "metric", "x_axis")
        }
        for folder, summary in summaries.items()
    }
    _check_alike(about)
    # Of a table less is known.
    known = {
        folder: {
            "problem": summary["problem"],
            "metric": summary["metric"]["name"],
            "lower_is_better": summary["metric"]["lower_is_better"],
        }
        for folder, summary in summaries.items()
    }
    for path, rows in of_tables.items():
        for row in rows:
            names = ("problem", "metric", "lower_is_better")
            known[path] = {name: row[name] for name in names}
            _check_alike(known)


def _check_alike(about):
    first = next(iter(about), None)
    for place, entries in about.items():
        for name, value in entries.items():
            if value != about[first][name]:
                raise ValueError(
                    "Runs of different problems cannot be compared. "
                    f"{first} has {name}={about[first][name]}, {place} has "
                    f"{name}={value}"
                )
