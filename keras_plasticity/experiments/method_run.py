"""Trains the learners of one method on all tasks."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_plasticity import training
from keras_plasticity import utils
from keras_plasticity.callbacks import PlasticityMonitor
from keras_plasticity.experiments import activations
from keras_plasticity.experiments import report
from keras_plasticity.experiments import run_folder
from keras_plasticity.experiments import side_by_side
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


def train(plan, variants):
    """Trains all learners of a method on all tasks.

    Args:
        plan: `Plan`.
        variants: List of one `Method`, or of several that differ in their
            settings only: their learners train side by side.

    Returns:
        List of dicts, what was measured of each: an entry of `summary.json`.
    """
    problem, seeds = plan.problem, plan.seeds
    name = variants[0].name
    learners = [(method, seed) for method in variants for seed in seeds]
    trainer = training.OnlineTrainer(
        lambda learner: plan.build_model(*learners[learner]), len(learners)
    )
    log_dir = os.path.join(plan.folder.path, name)
    checkpoint = os.path.join(log_dir, "checkpoint.npz")
    first_task = 0
    if plan.folder.is_resumed:
        try:
            first_task = num_tasks_begun(checkpoint)
        except training.CheckpointError:
            first_task = NO_STEP  # `fit` will say so.
    parts = []
    for number, method in enumerate(variants):
        of_learners = None
        folder = log_dir
        if len(variants) > 1:
            first = number * len(seeds)
            of_learners = range(first, first + len(seeds))
            folder = os.path.join(log_dir, f"{number:04d}")
        parts.append(_Variant(plan, method, folder, first_task, of_learners))

    def figure(results):
        return report.format_mean(problem, results[problem.result])

    failure = None
    with contextlib.ExitStack() as stack:
        for part in parts:
            stack.enter_context(part.writer)
        progress = terminal.TaskProgress(name, plan.num_tasks, figure)
        stack.enter_context(progress)
        try:
            trainer.fit(
                lambda learner: plan.build_stream(learners[learner][1]),
                batch_size=plan.batch_size,
                epochs=plan.epochs,
                num_tasks=plan.num_tasks,
                callbacks=[
                    *(each for part in parts for each in part.acting),
                    # The problem has the last word: a head that it zeroes is
                    # zero.
                    *plan.task_callbacks,
                    *(each for part in parts for each in part.measuring),
                    progress,
                    _FolderKeeper(plan.folder, log_dir, plan.unwritten),
                ],
                on_nan=plan.on_nan,
                checkpoint=checkpoint,
                resume=plan.folder.is_resumed,
            )
        except FloatingPointError as error:
            failure = f"{name}: {error} Here: --on_nan=continue."
        except (MemoryError, training.CheckpointError) as error:
            failure = f"{name}: {error}"
    if trainer.checkpoint_error is not None:
        plan.unwritten.add(
            f"The checkpoint {checkpoint}",
            trainer.checkpoint_error,
            is_told=True,
        )
    if trainer.resumed_from is not None:
        print(f"{name}: resumed from task {trainer.resumed_from}.")
    return [
        _record(plan, part, trainer, number, len(parts), failure)
        for number, part in enumerate(parts)
    ]


class _Variant:
    """One setting of a method, with what records its learners' results.

    Args:
        plan: `Plan`.
        method: `Method`.
        folder: String, for TensorBoard's logs.
        first_task: Integer, see `LastingWriter`.
        learners: Range of its learners; `None` if all are.

    Attributes:
        method: `Method`.
        writer: `LastingWriter`.
        recorder: `Recorder`.
        acting: List of callbacks, those of the method.
        measuring: List of the other callbacks.
    """

    def __init__(self, plan, method, folder, first_task, learners):
        problem = plan.problem
        self.method = method
        terminal.print_settings(f"{method.name}: ", method.settings)
        with plan.unwritten.attempt(f"The folder {folder}"):
            os.makedirs(folder, exist_ok=True)
        self.writer = LastingWriter(folder, first_task, plan.unwritten)
        settings = plan.settings | method.settings | {"method": method.name}
        self.writer.text(
            "flags",
            utils.markdown_table(("flag", "value"), list(settings.items())),
        )
        # TensorBoard shows the run before its first task is done.
        self.writer.flush()
        self.acting = method.task_callbacks(plan.build_model, plan.seeds)
        self.measuring = []
        monitor = epochs = None
        if learners is None and plan.settings["diagnostics"]:
            monitor = _make_monitor(problem, method, self.writer)
            self.measuring.append(monitor)
        if learners is None and plan.epochs > 1:
            epochs = EpochRecorder(problem, (0, plan.num_tasks - 1))
            self.measuring.append(epochs)
        self.recorder = Recorder(
            problem, _steps_per_task(plan), self.writer, monitor, epochs
        )
        self.measuring.append(self.recorder)
        for name in plan.settings.get("tracker", ()):
            tracker = trackers.make_tracker(
                name, problem.name, method.name, settings, plan.folder.path
            )
            self.measuring.append(
                trackers.RecordTracker(
                    name, tracker, self.recorder, plan.unwritten
                )
            )
        if learners is not None:
            self.acting, self.measuring = (
                [side_by_side.OfLearners(each, learners) for each in part]
                for part in (self.acting, self.measuring)
            )


def _make_monitor(problem, method, writer):
    is_bounded = method.settings.get("activation") in activations.BOUNDED
    return PlasticityMonitor(
        problem.num_probe_examples,
        log_dir=writer,
        measures=MEASURES + ("saturated_units",) * is_bounded,
    )


def _steps_per_task(plan):
    return plan.epochs * math.ceil(
        plan.problem.examples_per_task / plan.batch_size
    )


def _record(plan, part, trainer, number, num_parts, failure):
    """What was measured of one of the settings that a trainer has trained."""
    seeds, method = plan.seeds, part.method
    tasks = len(part.recorder.records)
    steps = tasks * _steps_per_task(plan)
    record = {
        "method": method.name,
        "settings": method.settings,
        "num_learners": len(seeds),
        "seeds": seeds,
        "steps_per_learner": steps,
        # Of several settings side by side it is the share of one.
        "train_seconds": trainer.train_seconds / num_parts,
        "compile_seconds": trainer.compile_seconds / num_parts,
        "learner_steps_per_second": (
            num_parts * steps * len(seeds) / max(trainer.train_seconds, 1e-9)
        ),
        "interrupted": trainer.interrupted,
        "failure": failure,
        "published": plan.problem.published(method),
        "per_task": part.recorder.records,
    }
    if num_parts > 1:
        record["side_by_side"] = number
    if tasks:
        first = number * len(seeds)
        learners = range(first, first + len(seeds))
        model = trainer.model(first)
        record["state_bytes_per_learner"] = _state_bytes(model)
        # Optimizers that replace units know how many.
        if hasattr(model.optimizer, "num_replaced"):
            record["units_replaced_per_learner"] = [
                sum(trainer.model(learner).optimizer.num_replaced().values())
                for learner in learners
            ]
    return record


def _state_bytes(model):
    """The bytes of a learner's weights, statistics and optimizer."""
    variables = model.variables + model.optimizer.variables
    return sum(
        math.prod(variable.shape) * np.dtype(variable.dtype).itemsize
        for variable in variables
    )


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
