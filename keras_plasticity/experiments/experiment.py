"""Trains methods on a stream and reports the results."""

import math
import os
import sys
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
from absl import flags

from keras_plasticity import callbacks
from keras_plasticity import training
from keras_plasticity import utils
from keras_plasticity import validation
from keras_plasticity.experiments import activations
from keras_plasticity.experiments import device
from keras_plasticity.experiments import figures
from keras_plasticity.experiments import logs
from keras_plasticity.experiments import report
from keras_plasticity.experiments import terminal
from keras_plasticity.experiments.methods import Method
from keras_plasticity.experiments.methods import all_flags
from keras_plasticity.experiments.methods import check_flag_values
from keras_plasticity.experiments.methods import check_parts
from keras_plasticity.experiments.methods import choose_methods
from keras_plasticity.experiments.parts import PARTS
from keras_plasticity.experiments.parts import Part
from keras_plasticity.experiments.problem import Problem
from keras_plasticity.experiments.recorder import Recorder

# What is measured before each task, of all that a `PlasticityMonitor` can.
MEASURES = (
    "dead_units",
    "effective_rank",
    "weight_magnitude",
    "replaced_units",
    "utility",
    "age",
)
# Flags that may change when a run is resumed.
_NOT_SETTINGS = (
    "log_dir",
    "resume",
    "overwrite",
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
        Dict, the content of `summary.json`.

    Raises:
        SystemExit: With a message, if flags contradict each other or the
            folder's run, if a learner diverges, or after Ctrl-C. What was
            finished is written first.

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
        figures.check_matplotlib()
    except (ImportError, ValueError) as error:
        sys.exit(str(error))
    settings = _settings(flag_values, problem, chosen)
    try:
        log_dir, is_resumed = logs.open_folder(
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
        sys.exit(str(error))
    terminal.print_start(
        problem.title, used_device, settings | {"log_dir": log_dir}
    )
    if flag_values.resume and not is_resumed:
        print(f"There is no run to resume in {log_dir}: starting a new one.")
    seeds = [flag_values.seed + i for i in range(settings["num_learners"])]
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
            on_nan=flag_values.on_nan,
            log_dir=os.path.join(log_dir, method.name),
            is_resumed=is_resumed,
        )
        records.append(record)
        if record["interrupted"]:
            tasks = training.num_tasks_done(
                os.path.join(log_dir, method.name, "checkpoint.npz")
            )
            print(
                "Interrupted: the tasks that were finished are written. The "
                f"same command with --resume --log_dir={log_dir} resumes "
                f"{method.name} from task {tasks}."
            )
        if record["interrupted"] or record["failure"]:
            break
    # With one method, whatever there is to say is about it.
    about_all = dict(records[0]) if len(chosen) == 1 else {}
    about_all.pop("settings", None)
    summary = logs.write_summary(
        log_dir,
        settings,
        **about_all,
        device_choice=used_device,
        problem=problem.name,
        title=report.title(problem, chosen, len(seeds)),
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
    report.report(problem, summary, log_dir)
    if records[-1]["failure"]:
        sys.exit(records[-1]["failure"])
    if records[-1]["interrupted"]:
        sys.exit(1)
    return summary


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
    on_nan,
    log_dir,
    is_resumed,
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
        first_task = training.num_tasks_done(checkpoint) if is_resumed else 0
    except ValueError as error:
        sys.exit(str(error))
    writer = utils.SummaryWriter(log_dir, first_step=first_task)
    writer.text(
        "flags",
        utils.markdown_table(("flag", "value"), list(settings.items())),
    )
    monitor = None
    if settings["diagnostics"]:
        is_bounded = method.settings.get("activation") in activations.BOUNDED
        monitor = callbacks.PlasticityMonitor(
            problem.num_probe_examples,
            log_dir=writer,
            measures=MEASURES + ("saturated_units",) * is_bounded,
        )
        task_callbacks = [*task_callbacks, monitor]
    steps_per_task = epochs * math.ceil(problem.examples_per_task / batch_size)
    recorder = Recorder(problem, steps_per_task, writer, monitor)
    failure = None

    def figure(results):
        return report.format_mean(problem, results[problem.result])

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
                on_nan=on_nan,
                checkpoint=checkpoint,
                resume=is_resumed,
            )
        except FloatingPointError as error:
            failure = f"{method.name}: {error} Here: --on_nan=continue."
        except MemoryError as error:
            failure = f"{method.name}: {error}"
    if trainer.resumed_from is not None:
        print(f"{method.name}: resumed from task {trainer.resumed_from}.")
    tasks = len(recorder.records)
    steps = tasks * steps_per_task
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
        "failure": failure,
        "published": problem.published(method),
        "per_task": recorder.records,
    }
    # Optimizers that replace units know how many.
    if tasks and hasattr(trainer.model(0).optimizer, "num_replaced"):
        record["units_replaced_per_learner"] = [
            sum(trainer.model(learner).optimizer.num_replaced().values())
            for learner in range(num_learners)
        ]
    return record
