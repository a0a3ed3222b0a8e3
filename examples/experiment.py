"""What all trainers do: train methods on a stream, and tell what came of it.

A trainer describes a `Problem`, and says how to build a model and a stream;
`run` does the rest: log folder, checkpoints, diagnostics, TensorBoard,
`summary.json`, tables and figures.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import figures
import keras
import logs
import methods
import numpy as np
import runs
import terminal
from absl import app
from absl import flags
from absl import logging

from keras_plasticity import callbacks
from keras_plasticity import training
from keras_plasticity import utils

NUM_LEARNERS = flags.DEFINE_integer(
    "num_learners",
    None,
    "Independent learners of each method. Default: the problem's.",
    lower_bound=1,
)
SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Of initial weights, tasks and all that is drawn. Learner i has `seed + "
    "i`, with every method.",
    lower_bound=0,
)
ON_NAN = flags.DEFINE_enum(
    "on_nan",
    "stop",
    ["stop", "continue"],
    "What to do when a learner diverges: stop, or go on with the others.",
)
LOG_DIR = flags.DEFINE_string(
    "log_dir",
    None,
    "Where results go. Default: logs/<problem>/<methods>-seed<seed>-<time>.",
    # absl has one of its own, for its own log files.
    allow_override=True,
)
RESUME = flags.DEFINE_boolean(
    "resume",
    False,
    "Go on with the run in --log_dir, to the same results as without an "
    "interruption. A run that has ended can go on with more tasks.",
)
OVERWRITE = flags.DEFINE_boolean(
    "overwrite", False, "Remove the run that is in --log_dir, and start anew."
)
DIAGNOSTICS = flags.DEFINE_boolean(
    "diagnostics",
    None,
    "Measure ranks, dead units and weights at the start of each task. Default: "
    "the problem's.",
)
# `--help` shows a module's key flags.
flags.adopt_module_key_flags(methods)
# What is measured before each task, of all that a `PlasticityMonitor` can.
MEASURES = (
    "dead_units",
    "effective_rank",
    "weight_magnitude",
    "replaced_units",
    "utility",
    "age",
)
# Of the table of a method's tasks.
_MOST_ROWS = 12
_BOUNDED_ACTIVATIONS = ("tanh", "sigmoid")
# Flags that a run may go on without, or with others.
_NOT_SETTINGS = (
    "log_dir",
    "resume",
    "overwrite",
    "on_nan",
    "data_dir",
    "cache_dir",
)


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a trainer is about.

    Attributes:
        name: String, as in the names of files.
        title: String, as in headings.
        metric: String, the name of what is shown, as in tags and files.
        result: String, what the engine calls it.
        metric_label: String, what the figure calls it.
        lower_is_better: Boolean.
        scale: Number that the figure multiplies it by, 100 for percent.
        format: String, how the tables write it.
        tasks_per_bin: Integer, of how many tasks the figure shows the mean.
        x_label: String, the figure's x-axis.
        x_per_task: Integer, what a task is on the x-axis.
        examples_per_task: Integer.
        steps_per_task: Integer, the updates of a task.
        num_learners: Integer, where no flag says.
        methods: Sequence of strings, where no flag says.
        num_probe_examples: Integer, the number of a task's first examples that
            the diagnostics measure on.
        diagnostics: Boolean, whether there are any, where no flag says.
        defaults: Dict of settings, see `methods.chosen`.
        published: Function of a `methods.Method` that returns a list of points
            `(x, y)` of the published figure, in its units.
        may_grow: Names of flags that may be larger when a run goes on.
    """

    name: str
    title: str
    metric: str
    result: str
    metric_label: str
    lower_is_better: bool
    scale: float
    format: str
    tasks_per_bin: int
    x_label: str
    x_per_task: int
    examples_per_task: int
    steps_per_task: int
    num_learners: int
    methods: Sequence[str]
    num_probe_examples: int
    diagnostics: bool
    defaults: Mapping[str, Any]
    published: Callable[[methods.Method], list[tuple[float, float]]]
    may_grow: Sequence[str]


class Recorder(training.TaskCallback):
    """Keeps the results of each task, and writes them to TensorBoard.

    Args:
        problem: `Problem`.
        writer: The method's `SummaryWriter`.
        monitor: The `PlasticityMonitor` that measured before the task; `None`
            without diagnostics.

    Attributes:
        records: List with a dict for each finished task.
    """

    def __init__(self, problem, writer, monitor=None):
        self.records = []
        self._problem = problem
        self._writer = writer
        self._monitor = monitor

    def on_task_end(self, task, results):
        metric = self._problem.metric
        values = results[self._problem.result]
        results = {
            metric if name == self._problem.result else name: each
            for name, each in results.items()
        }
        record = {"task": task}
        for name in results:
            record[name] = runs.finite_mean(results[name])
        record[f"{metric}_standard_error"] = runs.standard_error(values)
        record[f"{metric}_per_learner"] = runs.finite_list(values)
        writer = self._writer
        for name in results:
            if record[name] is not None:
                writer.scalar(f"task/{name}", record[name], task)
        self._write_against_steps(record)
        if record[metric] is not None:
            error = record[f"{metric}_standard_error"]
            for end, sign in (("lower", -1), ("upper", 1)):
                writer.scalar(
                    f"task_band/{metric}_{end}",
                    record[metric] + sign * error,
                    task,
                )
        if self._monitor is not None and self._monitor.history:
            measured = dict(self._monitor.history[-1])
            if measured.pop("step") == task:
                record.update(measured)
        self.records.append(record)
        writer.flush()

    def get_state(self):
        return self.records

    def set_state(self, state):
        self.records = state
        # TensorBoard drops what a run wrote after the task that it goes on
        # from, and takes all that is against steps for such.
        for record in state:
            self._write_against_steps(record)

    def _write_against_steps(self, record):
        metric = self._problem.metric
        if record[metric] is not None:
            steps = (record["task"] + 1) * self._problem.steps_per_task
            self._writer.scalar(f"step/{metric}", record[metric], steps)


def run(
    trainer,
    problem,
    build_model,
    build_stream,
    num_tasks,
    batch_size=1,
    epochs=1,
    task_callbacks=(),
):
    """Trains all methods that the flags ask for, and reports on them.

    Args:
        trainer: The trainer's module, whose flags are settings.
        problem: `Problem`.
        build_model: Function of a `methods.Method` and a seed that returns a
            compiled Keras model.
        build_stream: Function of a seed that returns a stream.
        num_tasks: Integer.
        batch_size: Integer.
        epochs: Integer.
        task_callbacks: Callbacks of the engine that the problem needs.
    """
    try:
        chosen = methods.chosen(problem.defaults, problem.methods)
        _check_batch_size(chosen, batch_size, problem.examples_per_task)
    except ValueError as error:
        sys.exit(str(error))
    figures.check_matplotlib()
    settings = _settings((trainer, methods, sys.modules[__name__]), chosen)
    settings |= _own_defaults(problem)
    try:
        log_dir, goes_on = logs.open_folder(
            LOG_DIR.value,
            problem.name,
            f"{'+'.join(method.name for method in chosen)}-seed{SEED.value}",
            _all_that_matters(trainer, problem, chosen),
            problem.may_grow,
            RESUME.value,
            OVERWRITE.value,
        )
    except (FileExistsError, ValueError) as error:
        sys.exit(str(error))
    terminal.print_start(problem.title, settings | {"log_dir": log_dir})
    if RESUME.value and not goes_on:
        print(f"There is nothing to go on with in {log_dir}: a new run.")
    seeds = [SEED.value + i for i in range(settings["num_learners"])]
    records = []
    for method in chosen:
        record = _train(
            problem,
            method,
            lambda learner: build_model(method, seeds[learner]),
            lambda learner: build_stream(seeds[learner]),
            num_tasks=num_tasks,
            num_learners=len(seeds),
            batch_size=batch_size,
            epochs=epochs,
            # The problem has the last word: a head that it zeroes is zero.
            task_callbacks=[
                *method.task_callbacks(build_model, seeds),
                *task_callbacks,
            ],
            settings=settings | method.settings | {"method": method.name},
            log_dir=os.path.join(log_dir, method.name),
            goes_on=goes_on,
        )
        records.append(record)
        if record["interrupted"]:
            tasks = training.num_tasks_done(
                os.path.join(log_dir, method.name, "checkpoint.npz")
            )
            print(
                "Interrupted: the tasks that were finished are written. The "
                f"same command with --resume --log_dir={log_dir} goes on, "
                f"{method.name} from task {tasks}."
            )
        if record["interrupted"] or record["problem_met"]:
            break
    # With one method, whatever there is to say is about it.
    about_all = dict(records[0]) if len(chosen) == 1 else {}
    about_all.pop("settings", None)
    summary = logs.write_summary(
        log_dir,
        settings,
        **about_all,
        problem=problem.name,
        title=_title(problem, chosen, len(seeds)),
        metric={
            "name": problem.metric,
            "label": problem.metric_label,
            "lower_is_better": problem.lower_is_better,
            "scale": problem.scale,
            "format": problem.format,
        },
        x_axis={"label": problem.x_label, "per_task": problem.x_per_task},
        tasks_per_bin=problem.tasks_per_bin,
        runs=records,
    )
    _report(problem, summary, log_dir)
    if records[-1]["problem_met"]:
        sys.exit(records[-1]["problem_met"])
    if records[-1]["interrupted"]:
        sys.exit(1)


def check_arguments(argv):
    """What every trainer's `main` begins with."""
    if len(argv) > 1:
        raise app.UsageError(
            f"All arguments are flags. Received: {' '.join(argv[1:])}"
        )
    if not flags.FLAGS["verbosity"].present:
        # What JAX looks for, and how data are read, is no news.
        logging.set_verbosity(logging.WARNING)


def _settings(modules, chosen):
    """The flags of some modules that were given or have a default."""
    settings = {"method": [method.name for method in chosen]}
    for module in modules:
        for flag in flags.FLAGS.get_flags_for_module(module):
            if flag.name not in _NOT_SETTINGS and flag.value is not None:
                settings.setdefault(flag.name, flag.value)
    return settings


def _own_defaults(problem):
    """What a flag that was not given means for this problem."""
    return {
        "num_learners": NUM_LEARNERS.value or problem.num_learners,
        "diagnostics": _has_diagnostics(problem),
    }


def _has_diagnostics(problem):
    given = DIAGNOSTICS.value
    return problem.diagnostics if given is None else given


def _all_that_matters(trainer, problem, chosen):
    """All that the results depend on, and how a run is told from another."""
    result = _settings((trainer, sys.modules[__name__]), chosen)
    result |= _own_defaults(problem)
    result["backend"] = keras.backend.backend()
    for method in chosen:
        for name, value in method.settings.items():
            result[f"{method.name}: {name}"] = value
    return result


def _check_batch_size(chosen, batch_size, examples_per_task):
    if batch_size > examples_per_task:
        raise ValueError(
            "--batch_size must not be larger than a task, which has "
            f"{examples_per_task} examples. Received: --batch_size={batch_size}"
        )
    for method in chosen:
        if method.has("batch_norm") and batch_size < 2:
            raise ValueError(
                "batch_norm needs batches of at least two examples: of one, "
                "its output does not depend on the example. Use --batch_size "
                "where the problem has it, or online_norm or layer_norm. "
                f"Received: --method={method.name}, batch size {batch_size}"
            )


def _train(
    problem,
    method,
    build_model,
    build_stream,
    num_tasks,
    num_learners,
    batch_size,
    epochs,
    task_callbacks,
    settings,
    log_dir,
    goes_on,
):
    """Trains all learners of a method on all tasks.

    Returns:
        Dict, what was measured: an entry of `summary.json`.
    """
    terminal.print_settings(f"{method.name}: ", method.settings)
    trainer = training.OnlineTrainer(build_model, num_learners)
    os.makedirs(log_dir, exist_ok=True)
    checkpoint = os.path.join(log_dir, "checkpoint.npz")
    try:
        num_tasks_done = training.num_tasks_done(checkpoint) if goes_on else 0
    except ValueError as error:
        sys.exit(str(error))
    writer = utils.SummaryWriter(log_dir, first_step=num_tasks_done)
    writer.text(
        "flags",
        utils.markdown_table(("flag", "value"), list(settings.items())),
    )
    monitor = None
    if _has_diagnostics(problem):
        is_bounded = method.settings.get("activation") in _BOUNDED_ACTIVATIONS
        monitor = callbacks.PlasticityMonitor(
            problem.num_probe_examples,
            log_dir=writer,
            measures=MEASURES + ("saturated_units",) * is_bounded,
        )
        task_callbacks = [*task_callbacks, monitor]
    recorder = Recorder(problem, writer, monitor)
    problem_met = None

    def figure(results):
        return _format_mean(problem, results[problem.result])

    with (
        writer,
        terminal.TaskProgress(method.name, num_tasks, figure) as progress,
    ):
        try:
            trainer.fit(
                build_stream,
                batch_size=batch_size,
                epochs=epochs,
                num_tasks=num_tasks,
                callbacks=[*task_callbacks, recorder, progress],
                on_nan=ON_NAN.value,
                checkpoint=checkpoint,
                resume=goes_on,
            )
        except FloatingPointError as error:
            problem_met = f"{method.name}: {error} Here: --on_nan=continue."
        except MemoryError as error:
            problem_met = f"{method.name}: {error}"
    if trainer.resumed_from is not None:
        print(f"{method.name}: went on from task {trainer.resumed_from}.")
    tasks = len(recorder.records)
    steps = tasks * problem.steps_per_task
    record = {
        "method": method.name,
        "settings": method.settings,
        "num_learners": num_learners,
        "steps_per_learner": steps,
        "train_seconds": trainer.train_seconds,
        "compile_seconds": trainer.compile_seconds,
        "learner_steps_per_second": (
            steps * num_learners / max(trainer.train_seconds, 1e-9)
        ),
        "interrupted": trainer.interrupted,
        "problem_met": problem_met,
        "published": problem.published(method),
        "per_task": recorder.records,
    }
    if method.has("cbp") and tasks:
        record["units_replaced_per_learner"] = [
            sum(trainer.model(learner).optimizer.num_replaced().values())
            for learner in range(num_learners)
        ]
    return record


def _report(problem, summary, log_dir):
    """Prints the tables, draws the figure and tells TensorBoard."""
    measured = {
        run["method"]: run for run in summary["runs"] if run["per_task"]
    }
    if measured:
        for label, run in measured.items():
            _print_tasks(problem, label, run)
        rows = runs.rows(summary, measured)
        terminal.print_table(
            f"{summary['title']}: {problem.metric_label}"
            + runs.bins_label(summary, measured),
            {
                name: lambda row, name=name: row[name]
                for name in rows[0]
                if name not in ("learners", "tasks")  # They are known here.
            },
            rows,
        )
        figure = os.path.join(log_dir, problem.name)
        png = figures.draw(summary, measured, figure)
        with utils.SummaryWriter(log_dir) as writer:
            writer.image("figure", png)
            table = [tuple(row.values()) for row in rows]
            writer.text("results", utils.markdown_table(rows[0], table))
            writer.band_charts(
                {
                    f"learners/{problem.metric}": (
                        f"task/{problem.metric}",
                        f"task_band/{problem.metric}_lower",
                        f"task_band/{problem.metric}_upper",
                    )
                }
            )
        for run in measured.values():
            _write_hparams(summary, run, log_dir)
        print(f"Figure: {figure}.png, .svg")
    print(
        f"Results: {os.path.join(log_dir, 'summary.json')}\n"
        f"Charts: tensorboard --logdir={log_dir}"
    )


def _write_hparams(summary, run, log_dir):
    _, values = runs.per_bin(summary, run)
    results = {
        f"result/{summary['metric']['name']}_{name}": runs.finite_mean(
            values[index]
        )
        for name, index in (
            ("first", 0),
            ("best", runs.best_bin(summary, values)),
            ("last", -1),
        )
    }
    folder = os.path.join(log_dir, run["method"], "results")
    with utils.SummaryWriter(folder) as writer:
        writer.hparams(
            {
                "method": run["method"],
                **run["settings"],
                "seed": summary["flags"]["seed"],
                "num_learners": run["num_learners"],
                "backend": summary["backend"],
            },
            results,
            step=len(run["per_task"]),
        )


def _print_tasks(problem, label, run):
    """Prints a dozen of a run's tasks, with what was measured before them."""
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
    return "-" if value is None else format(scale * value, form)


def _format_mean(problem, values):
    mean = runs.finite_mean(np.asarray(values))
    if mean is None:
        return "diverged"
    return f"{problem.metric_label} {problem.scale * mean:{problem.format}}"


def _title(problem, chosen, num_learners):
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
