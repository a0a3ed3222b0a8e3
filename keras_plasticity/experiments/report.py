"""Reports on a run that has ended: tables, figure and TensorBoard charts."""

import os

import numpy as np

from keras_plasticity import utils
from keras_plasticity.experiments import figures
from keras_plasticity.experiments import hparams
from keras_plasticity.experiments import runs
from keras_plasticity.experiments import terminal

# Of the table of a method's tasks.
_MOST_ROWS = 12


def report(problem, summary, log_dir, unwritten):
    """Prints the tables, draws the figure and writes both for TensorBoard.

    Args:
        problem: `Problem`.
        summary: Dict, the content of `summary.json`.
        log_dir: String, the run's folder.
        unwritten: `Unwritten`, which is told what cannot be written.
    """
    measured = {
        run["method"]: run for run in summary["runs"] if run["per_task"]
    }
    if measured:
        for label, run in measured.items():
            _print_tasks(problem, label, run)
        rows = runs.rows(summary, measured)
        terminal.print_table(
            f"{summary['title']}: {problem.metric_label}"
            + runs.bins_label(summary, measured)
            + ", ± standard error",
            {
                name: lambda row, name=name: row[name]
                for name in rows[0]
                if name not in ("learners", "tasks")  # They are known here.
            },
            rows,
        )
        path = os.path.join(log_dir, problem.name)
        pngs = {}
        with unwritten.attempt(f"The figure {path}"):
            pngs = figures.draw(summary, measured, path)
            for path in pngs:
                print(f"Figure: {path}.png, .svg")
        with unwritten.attempt(f"TensorBoard's figure and table in {log_dir}"):
            _write_charts(problem, rows, pngs, log_dir)
            hparams.write(summary, measured.values(), log_dir)
    print(
        f"Results: {os.path.join(log_dir, 'summary.json')}\n"
        f"Charts: tensorboard --logdir={log_dir}"
    )


def _write_charts(problem, rows, pngs, log_dir):
    with utils.SummaryWriter(log_dir) as writer:
        for path, png in pngs.items():
            name = os.path.basename(path).removeprefix(problem.name)
            # Images are sorted by name.
            writer.image(f"figure/{name.strip('_') or 'against_tasks'}", png)
        table = [tuple(row.values()) for row in rows]
        writer.text("results", utils.markdown_table(tuple(rows[0]), table))
        writer.band_charts(
            {
                f"learners/{problem.metric}": (
                    f"against_tasks/{problem.metric}",
                    f"band/{problem.metric}_lower",
                    f"band/{problem.metric}_upper",
                )
            }
        )


def _print_tasks(problem, label, run):
    """Prints a dozen of a run's tasks, with what was measured before each."""
    if not any("dead_units" in task for task in run["per_task"]):
        return
    columns = {
        "task": lambda task: str(task["task"]),
        problem.metric_label: lambda task: _format(
            task[problem.metric], problem.format, problem.scale
        ),
    }
    for heading, name, form in (
        ("dead units", "dead_units", ".4g"),
        ("effective rank", "effective_rank", ".1f"),
        ("weight magnitude", "weight_magnitude", ".5f"),
        ("replaced in task", "replaced_units", ".4g"),
    ):
        columns[heading] = lambda task, name=name, form=form: _format(
            task.get(name, {}).get("total"), form
        )
    tasks = run["per_task"]
    shown = np.linspace(0, len(tasks) - 1, min(len(tasks), _MOST_ROWS))
    terminal.print_table(label, columns, [tasks[int(i)] for i in shown])


def _format(value, form, scale=1.0):
    return "-" if value is None else runs.format_number(scale * value, form)


def format_mean(problem, values):
    """The mean over learners as a progress bar shows it."""
    mean = runs.finite_mean(np.asarray(values))
    if mean is None:
        return "diverged"
    number = runs.format_number(problem.scale * mean, problem.format)
    return f"{problem.metric_label} {number}"


def title(problem, chosen, num_learners):
    """The figure's title, with the main settings that all methods share."""
    parts = [problem.title]
    for name, form in (
        ("activation", "{}"),
        ("learning_rate", "step size {:g}"),
    ):
        values = {m.settings[name] for m in chosen if name in m.settings}
        if len(values) == 1:
            parts.append(form.format(*values))
    parts.append(f"{num_learners} learner" + "s" * (num_learners > 1))
    return ", ".join(parts)
