"""Trains the learners of one method on all tasks."""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import keras

from keras_plasticity import training
from keras_plasticity import utils
from keras_plasticity.callbacks import PlasticityMonitor
from keras_plasticity.experiments import activations
from keras_plasticity.experiments import report
from keras_plasticity.experiments import run_folder
from keras_plasticity.experiments import terminal
from keras_plasticity.experiments import trackers
from keras_plasticity.experiments.epoch_recorder import EpochRecorder
from keras_plasticity.experiments.lasting_writer import NO_STEP
from keras_plasticity.experiments.lasting_writer import LastingWriter
from keras_plasticity.experiments.methods import Method
from keras_plasticity.experiments.problem import Problem
from keras_plasticity.experiments.recorder import Recorder
from keras_plasticity.experiments.unwritten import Unwritten
from keras_plasticity.training.checkpoint import num_tasks_begun
from keras_plasticity.training.interruption import Interruption

# What is measured before each task, of all that a `PlasticityMonitor` can.
MEASURES = (
    "dead_units",
    "effective_rank",
    "weight_magnitude",
    "replaced_units",
    "utility",
    "age",
)


@dataclasses.dataclass(frozen=True)
class Plan:
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


def train(plan, method):
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
    epochs = None
    if plan.epochs > 1:
        epochs = EpochRecorder(problem, (0, plan.num_tasks - 1))
        callbacks.append(epochs)
    recorder = Recorder(problem, steps_per_task, writer, monitor, epochs)

    other_trackers = [
        trackers.RecordTracker(
            name,
            trackers.make_tracker(
                name, problem.name, method.name, settings, plan.folder.path
            ),
            recorder,
            plan.unwritten,
        )
        for name in plan.settings.get("tracker", ())
    ]

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
                    *other_trackers,
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
