"""Trains methods on a stream and reports the results."""

import contextlib
import dataclasses
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
from absl import flags

from keras_plasticity import training
from keras_plasticity import utils
from keras_plasticity import validation
from keras_plasticity.callbacks import PlasticityMonitor
from keras_plasticity.experiments import activations
from keras_plasticity.experiments import device
from keras_plasticity.experiments import exit_status
from keras_plasticity.experiments import figures
from keras_plasticity.experiments import report
from keras_plasticity.experiments import run_folder
from keras_plasticity.experiments import summary as summary_file
from keras_plasticity.experiments import terminal
from keras_plasticity.experiments.lasting_writer import NO_STEP
from keras_plasticity.experiments.lasting_writer import LastingWriter
from keras_plasticity.experiments.methods import Method
from keras_plasticity.experiments.methods import all_flags
from keras_plasticity.experiments.methods import check_flag_values
from keras_plasticity.experiments.methods import check_parts
from keras_plasticity.experiments.methods import choose_methods
from keras_plasticity.experiments.parts import PARTS
from keras_plasticity.experiments.parts import Part
from keras_plasticity.experiments.problem import Problem
from keras_plasticity.experiments.recorder import Recorder
from keras_plasticity.experiments.unwritten import Unwritten
from keras_plasticity.training.checkpoint import num_tasks_begun
from keras_plasticity.training.interruption import Interruption
from keras_plasticity.training.interruption import catch_signals

# What is measured before each task, of all that a `PlasticityMonitor` can.
MEASURES = (
    "dead_units",
    "effective_rank",
    "weight_magnitude",
    "replaced_units",
    "utility",
    "age",
)
# Flags that the command which resumes a run has otherwise, or not at all.
_NOT_TO_RESUME = ("log_dir", "resume", "noresume", "overwrite", "nooverwrite")
# Flags that may change when a run is resumed.
_NOT_SETTINGS = (
    "log_dir",
    "resume",
    "overwrite",
    "dry_run",
    "on_nan",
    "data_dir",
    "cache_dir",
    # Results differ by rounding at most; not so by `--matmul_precision`.
    "device",
)


def run(
    flag_values: flags.FlagValues,
    problem: Problem,
    build_model: Callable[[Method, int], keras.Model],
    build_stream: Callable[[int], Any],
    num_tasks: int,
    batch_size: int = 1,
    epochs: int = 1,
    task_callbacks: Sequence[training.TaskCallback] = (),
    parts: Sequence[Part] = PARTS,
) -> dict[str, Any]:
    """Trains all methods that the flags ask for, and reports on them.

    It sets the device and the precision of the process (`configure_backend`),
    keeps checkpoints, writes TensorBoard logs, `summary.json` and a figure to
    `--log_dir`, and prints progress and tables.

    Args:
        flag_values: The parsed `absl.flags.FlagValues`, in which the trainer
            defined its own flags and called `define_flags`.
        problem: `Problem`.
        build_model: Function of a `Method` and a seed that returns a compiled
            Keras model.
        build_stream: Function of a seed that returns a stream.
        num_tasks: Integer.
        batch_size: Integer. Defaults to `1`.
        epochs: Integer. Defaults to `1`.
        task_callbacks: Sequence of `training.TaskCallback`s that the problem
            needs. Defaults to `()`.
        parts: Sequence of all `Part`s, those of `define_flags`. Defaults to
            `PARTS`.

    Returns:
        Dict, the content of `summary.json`; empty with `--dry_run`.

    Raises:
        SystemExit: With a message, which was printed, as its argument and the
            exit status as its `code`: 2 if flags contradict each other or the
            folder's run; 1 if a learner diverges, or if something could not be
            written; 128 and the signal's number after Ctrl-C, SIGTERM or
            SIGHUP. What was finished is written first.

    Example:

    ```python
    experiments.run(
        flags.FLAGS,
        problem,
        build_model,
        lambda seed: streams.SlowlyChangingRegression(seed=seed),
        num_tasks=100,
    )
    ```
    """
    check_flag_values(flag_values, defined=("method",))
    check_parts(parts)
    validation.check_type("problem", problem, Problem, "a `Problem`")
    validation.check_function("build_model", build_model)
    validation.check_function("build_stream", build_stream)
    num_tasks = validation.check_positive_integer("num_tasks", num_tasks)
    batch_size = validation.check_positive_integer("batch_size", batch_size)
    epochs = validation.check_positive_integer("epochs", epochs)
    task_callbacks = validation.check_list(
        "task_callbacks",
        task_callbacks,
        training.TaskCallback,
        "a list of `keras_plasticity.training.TaskCallback`s",
    )
    # Before an optimizer makes its first variable.
    used_device = device.configure_backend(flag_values, problem)
    try:
        chosen = choose_methods(
            flag_values, problem.defaults, problem.methods, parts
        )
        _check_batch_size(chosen, batch_size, problem.examples_per_task)
        for method in chosen:
            # What does not fit together is said now, not by a later method.
            method.optimizer(flag_values.seed, "he_uniform")
    except ValueError as error:
        exit_status.end(str(error), exit_status.WRONG_FLAGS)
    try:
        figures.check_matplotlib()
    except ImportError as error:
        exit_status.end(str(error), exit_status.FAILED)
    if flag_values.dry_run:
        return {}
    settings = _settings(flag_values, problem, chosen)
    with terminal.lasting_output(), catch_signals(raises=False) as caught:
        try:
            folder = run_folder.open_folder(
                flag_values.log_dir,
                problem.name,
                f"{'+'.join(method.name for method in chosen)}-"
                f"seed{flag_values.seed}",
                _all_that_matters(settings, chosen, parts),
                problem.may_grow,
                flag_values.resume,
                flag_values.overwrite,
            )
        except (FileExistsError, ValueError) as error:
            exit_status.end(str(error), exit_status.WRONG_FLAGS)
        with contextlib.closing(folder):
            terminal.print_start(
                problem.title,
                used_device,
                settings | {"log_dir": folder.path},
            )
            if flag_values.resume and not folder.is_resumed:
                print(
                    f"There is no run to resume in {folder.path}: starting a "
                    "new one."
                )
            plan = _Plan(
                problem=problem,
                build_model=build_model,
                build_stream=build_stream,
                num_tasks=num_tasks,
                batch_size=batch_size,
                epochs=epochs,
                task_callbacks=task_callbacks,
                settings=settings,
                seeds=[
                    flag_values.seed + i
                    for i in range(settings["num_learners"])
                ],
                on_nan=flag_values.on_nan,
                folder=folder,
                unwritten=Unwritten(),
                caught=caught,
            )
            records = _train_all(plan, chosen)
            summary = _report(plan, chosen, records, used_device)
            _end(plan, records)
    return summary


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What all methods of a run share.

    Attributes:
        problem: `Problem`.
        build_model: Function of a `Method` and a seed.
        build_stream: Function of a seed.
        num_tasks: Integer.
        batch_size: Integer.
        epochs: Integer.
        task_callbacks: List of `TaskCallback`s that the problem needs.
        settings: Dict from the name of a flag to its value.
        seeds: List of the learners' seeds.
        on_nan: String, see `OnlineTrainer.fit`.
        folder: `RunFolder`.
        unwritten: `Unwritten`.
        caught: `Interruption`.
    """

    problem: Problem
    build_model: Callable[[Method, int], keras.Model]
    build_stream: Callable[[int], Any]
    num_tasks: int
    batch_size: int
    epochs: int
    task_callbacks: list[training.TaskCallback]
    settings: dict[str, Any]
    seeds: list[int]
    on_nan: str
    folder: run_folder.RunFolder
    unwritten: Unwritten
    caught: Interruption


def _train_all(plan, chosen):
    """Trains one method after the other; returns their records."""
    records = []
    for method in chosen:
        records.append(_train(plan, method))
        # Not to be compiled before it sees that it has to stop.
        is_over = plan.caught.signal is not None and method is not chosen[-1]
        if is_over or records[-1]["interrupted"]:
            records[-1]["interrupted"] = True
            break
        if records[-1]["failure"]:
            break
    return records


def _report(plan, chosen, records, used_device):
    """Writes and prints what was measured; returns the summary."""
    problem, folder = plan.problem, plan.folder
    # With one method, whatever there is to say is about it.
    about_all = dict(records[0]) if len(chosen) == 1 else {}
    about_all.pop("settings", None)
    summary = summary_file.make_summary(
        plan.settings,
        **about_all,
        device_choice=used_device,
        problem=problem.name,
        title=report.title(problem, chosen, len(plan.seeds)),
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
    _write_summary(plan, summary)
    report.report(problem, summary, folder.path, plan.unwritten)
    # A figure takes a while, in which somebody may remove the folder.
    _write_summary(plan, summary)
    return summary


def _write_summary(plan, summary):
    path = os.path.join(plan.folder.path, run_folder.SUMMARY)
    with plan.unwritten.attempt(path):
        plan.folder.keep()
        run_folder.write_json(path, summary)


def _end(plan, records):
    """Ends the process, with the reason, unless all is done and written."""
    last = records[-1]
    reasons = plan.unwritten.reasons
    if reasons:
        print(plan.unwritten, file=sys.stderr)
    if last["failure"]:
        exit_status.end(last["failure"], exit_status.FAILED)
    if last["interrupted"]:
        number = plan.caught.signal or signal.SIGINT
        message = (
            f"Interrupted by {signal.Signals(number).name} in "
            f"{last['method']}, after {len(last['per_task'])} of "
            f"{plan.num_tasks} tasks."
        )
        if any("checkpoint" in what for what in reasons):
            exit_status.end(
                f"{message} The checkpoint could not be written: what was done "
                "since the one before it is lost.",
                exit_status.FAILED,
            )
        exit_status.end(
            f"{message} To resume: {_command_to_resume(plan.folder.path)}",
            exit_status.INTERRUPTED + number,
        )
    if reasons:
        exit_status.end(
            "All tasks are done, but not all of it could be written.",
            exit_status.FAILED,
        )


def _command_to_resume(log_dir):
    """The command of this process, with the flags that resume its run."""
    words = []
    is_value = False
    for word in sys.orig_argv:
        name, equals, _ = word.partition("=")
        is_left_out = is_value or name.lstrip("-") in _NOT_TO_RESUME
        # `--log_dir x` in two words.
        is_value = not equals and name.lstrip("-") == "log_dir"
        if not is_left_out:
            words.append(word)
    words += [f"--log_dir={log_dir}", "--resume"]
    backend = os.environ.get("KERAS_BACKEND")
    return f"KERAS_BACKEND={backend} " * bool(backend) + shlex.join(words)


def _settings(flag_values, problem, chosen):
    """The trainer's flags that were given or have a default."""
    # The module that called `define_flags`.
    trainer = flag_values.find_module_defining_flag("method")
    settings = {"method": [method.name for method in chosen]}
    for flag in flag_values.get_flags_for_module(trainer):
        if flag.name not in _NOT_SETTINGS and flag.value is not None:
            settings.setdefault(flag.name, flag.value)
    settings.setdefault("num_learners", problem.num_learners)
    settings.setdefault("diagnostics", problem.diagnostics)
    return settings


def _all_that_matters(settings, chosen, parts):
    """All that the results depend on: what two runs may differ in."""
    # A flag of methods is told for each of them, given or not.
    of_methods = {flag.name for flag in all_flags(parts)}
    result = {
        name: value
        for name, value in settings.items()
        if name not in of_methods
    }
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
        for part in method.parts:
            if batch_size < part.smallest_batch:
                raise ValueError(
                    f"{part.name} needs batches of at least "
                    f"{part.smallest_batch} examples. Use --batch_size where "
                    "the problem has it, or leave the part out. Received: "
                    f"--method={method.name}, batch size {batch_size}"
                )


def _train(plan, method):
    """Trains all learners of a method on all tasks.

    Returns:
        Dict, what was measured: an entry of `summary.json`.
    """
    problem, seeds = plan.problem, plan.seeds
    terminal.print_settings(f"{method.name}: ", method.settings)
    trainer = training.OnlineTrainer(
        lambda learner: plan.build_model(method, seeds[learner]), len(seeds)
    )
    log_dir = os.path.join(plan.folder.path, method.name)
    checkpoint = os.path.join(log_dir, "checkpoint.npz")
    with plan.unwritten.attempt(f"The folder {log_dir}"):
        os.makedirs(log_dir, exist_ok=True)
    first_task = 0
    if plan.folder.is_resumed:
        try:
            first_task = num_tasks_begun(checkpoint)
        except training.CheckpointError:
            first_task = NO_STEP  # `fit` will say so.
    writer = LastingWriter(log_dir, first_task, plan.unwritten)
    settings = plan.settings | method.settings | {"method": method.name}
    writer.text(
        "flags",
        utils.markdown_table(("flag", "value"), list(settings.items())),
    )
    # TensorBoard shows the run before its first task is done.
    writer.flush()
    # The problem has the last word: a head that it zeroes is zero.
    callbacks = [
        *method.task_callbacks(plan.build_model, seeds),
        *plan.task_callbacks,
    ]
    monitor = None
    if plan.settings["diagnostics"]:
        is_bounded = method.settings.get("activation") in activations.BOUNDED
        monitor = PlasticityMonitor(
            problem.num_probe_examples,
            log_dir=writer,
            measures=MEASURES + ("saturated_units",) * is_bounded,
        )
        callbacks.append(monitor)
    steps_per_epoch = math.ceil(problem.examples_per_task / plan.batch_size)
    steps_per_task = plan.epochs * steps_per_epoch
    recorder = Recorder(problem, steps_per_task, writer, monitor)

    def figure(results):
        return report.format_mean(problem, results[problem.result])

    failure = None
    with (
        writer,
        terminal.TaskProgress(method.name, plan.num_tasks, figure) as progress,
    ):
        try:
            trainer.fit(
                lambda learner: plan.build_stream(seeds[learner]),
                batch_size=plan.batch_size,
                epochs=plan.epochs,
                num_tasks=plan.num_tasks,
                callbacks=[
                    *callbacks,
                    recorder,
                    progress,
                    _FolderKeeper(plan.folder, log_dir, plan.unwritten),
                ],
                on_nan=plan.on_nan,
                checkpoint=checkpoint,
                resume=plan.folder.is_resumed,
            )
        except FloatingPointError as error:
            failure = f"{method.name}: {error} Here: --on_nan=continue."
        except (MemoryError, training.CheckpointError) as error:
            failure = f"{method.name}: {error}"
    if trainer.checkpoint_error is not None:
        plan.unwritten.add(
            f"The checkpoint {checkpoint}",
            trainer.checkpoint_error,
            is_told=True,
        )
    if trainer.resumed_from is not None:
        print(f"{method.name}: resumed from task {trainer.resumed_from}.")
    tasks = len(recorder.records)
    steps = tasks * steps_per_task
    record = {
        "method": method.name,
        "settings": method.settings,
        "num_learners": len(seeds),
        "seeds": seeds,
        "steps_per_learner": steps,
        "train_seconds": trainer.train_seconds,
        "compile_seconds": trainer.compile_seconds,
        "learner_steps_per_second": (
            steps * len(seeds) / max(trainer.train_seconds, 1e-9)
        ),
        "interrupted": trainer.interrupted,
        "failure": failure,
        "published": problem.published(method),
        "per_task": recorder.records,
    }
    # Optimizers that replace units know how many.
    if tasks and hasattr(trainer.model(0).optimizer, "num_replaced"):
        record["units_replaced_per_learner"] = [
            sum(trainer.model(learner).optimizer.num_replaced().values())
            for learner in range(len(seeds))
        ]
    return record


class _FolderKeeper(training.TaskCallback):
    """Makes a method's folder anew if somebody has removed it."""

    def __init__(self, folder, log_dir, unwritten):
        self._folder = folder
        self._log_dir = log_dir
        self._unwritten = unwritten

    def on_task_end(self, task, results):
        with self._unwritten.attempt(f"The folder {self._log_dir}"):
            self._folder.keep()
            os.makedirs(self._log_dir, exist_ok=True)
