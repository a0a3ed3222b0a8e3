"""One method on one problem: it is tuned, then reported on other seeds."""

import contextlib
import os

from keras_plasticity.experiments import method_file as method_files
from keras_plasticity.experiments import selection
from keras_plasticity.experiments import summary as summary_file
from keras_plasticity.experiments import table
from keras_plasticity.experiments.methods import find_parts
from keras_plasticity.experiments.parts import PARTS
from keras_plasticity.experiments.suites import search
from keras_plasticity.experiments.suites.problems import FIRST_TUNING_SEED
from keras_plasticity.experiments.suites.problems import PROBLEMS
from keras_plasticity.experiments.suites.problems import trainer_path
from keras_plasticity.experiments.sweeps import driver as sweep_driver
from keras_plasticity.experiments.sweeps.jobs import arguments_of
from keras_plasticity.experiments.sweeps.plan import Plan
from keras_plasticity.experiments.sweeps.plan import result_of
from keras_plasticity.experiments.sweeps.plan import settings_of

# By which settings are chosen: how well a learner did all its life.
MEASURE = "area_under_curve"


class Cell:
    """One method on one problem.

    Args:
        problem: String, its name.
        method: String, as `--method` has it.
        size: String.
        own: `MethodFile`.
        method_file: String, its path, or `None`.
        data_dir: String, the folder of the data, or `None`.
        trainers: String, the folder of the trainers, or `None`.

    Attributes:
        name: String, the name of the problem.
        problem: `SuiteProblem`.
        method: String.
        size: `Size` of the problem.
        size_name: String.
        trainer: String, the trainer's file.
        failure: String, why it failed; `None` if it did not.

    Raises:
        ValueError: If there is no such method or trainer.
    """

    def __init__(
        self, problem, method, size, own, method_file, data_dir, trainers
    ):
        parts = find_parts(method, (*PARTS, *own.parts))
        self.name = problem
        self.problem = PROBLEMS[problem]
        self.method = method
        self.size = self.problem.sizes[size]
        self.size_name = size
        self.trainer = trainer_path(self.problem, trainers)
        self.failure = None
        self.flags = {
            **self.problem.flags,
            **self.size.flags,
            "method": method,
        }
        if any(part in own.parts for part in parts):
            self.flags[method_files.NAME] = method_file
        if self.problem.reads_data and data_dir is not None:
            self.flags["data_dir"] = data_dir
        count = self.size.num_settings
        space = search.space_of(parts, self.problem, own.search)
        sampler = "random"
        if len(space) == 1:
            # What is drawn of one number may leave out half of its range.
            space = search.evenly_spaced(space, count)
            # No method may have more settings than the others.
            if all(len(values) <= count for values in space.values()):
                sampler, count = "grid", None
        self._tuning = Plan(
            self.trainer,
            space,
            {
                **self.flags,
                "seed": FIRST_TUNING_SEED,
                "num_learners": self.size.tuning_seeds,
            },
            sampler,
            count,
            0,
            MEASURE,
        )
        selection.check_separate_seeds(self.tuning_seeds, self.report_seeds)

    @property
    def tuning_seeds(self):
        first = FIRST_TUNING_SEED
        return list(range(first, first + self.size.tuning_seeds))

    @property
    def report_seeds(self):
        return list(range(self.size.report_seeds))

    @property
    def about(self):
        """What there is to do, in words."""
        seeds = self.size.tuning_seeds
        return (
            f"{self._tuning.most_settings} settings x {seeds} seed"
            f"{'s' * (seeds > 1)}, the best one x {self.size.report_seeds} "
            "others"
        )

    def to_check(self):
        """List of lists of flags that the trainer has to accept."""
        return [
            arguments_of(self._tuning.flags, setting)
            for setting in self._tuning.to_check()
        ]

    def is_done(self, log_dir):
        rows = self.report_rows(log_dir)
        return bool(rows) or self._has_diverged(self._tuning_rows(log_dir))

    def train(self, log_dir, executor, caught):
        """Does what is not done.

        Args:
            log_dir: String, that of the suite.
            executor: Executor of the trainer.
            caught: `Interruption`.

        Raises:
            SystemExit: See `sweep`.
        """

        def sweep(plan, kind):
            return sweep_driver.run_plan(
                plan,
                self.folder(log_dir, kind),
                lambda: contextlib.nullcontext(executor),
                caught,
                to_resume="resume the suite",
            )

        rows = sweep(self._tuning, "tuning")
        best = settings_of(rows, MEASURE)[0]
        if result_of(best, MEASURE) is None:
            return  # All of them diverged, which the results say.
        setting = {
            name: [best[0][f"{table.FLAG}{name}"]]
            for name in self._tuning.space
        }
        flags = {**self.flags, "seed": 0}
        flags["num_learners"] = self.size.report_seeds
        sweep(
            Plan(self.trainer, setting, flags, "grid", None, 0, MEASURE),
            "report",
        )

    def folder(self, log_dir, kind):
        """The folder of one of its two sweeps."""
        return os.path.join(log_dir, kind, self.name, self.method)

    def report_rows(self, log_dir):
        """The rows of the table of its report; none if it is not done."""
        return _rows(self.folder(log_dir, "report"))

    def report_run(self, log_dir):
        """What was measured of the report's run, see `summary.json`.

        It is `None` where the run's folder is not there: it was removed to
        save space, or is on a node of a cluster only.
        """
        folder = os.path.join(self.folder(log_dir, "report"), "runs", "0000")
        try:
            return summary_file.read_summary(folder)["runs"][0]
        except FileNotFoundError:
            return None

    def status(self, log_dir):
        """What there is to say of it, a string."""
        if self.failure is not None:
            return f"failed: {self.failure}"
        if self.report_rows(log_dir):
            return "done"
        if self._has_diverged(self._tuning_rows(log_dir)):
            return "all settings diverged"
        return "not done"

    def _tuning_rows(self, log_dir):
        return _rows(self.folder(log_dir, "tuning"))

    def _has_diverged(self, rows):
        runs = {row["run"] for row in rows}
        if len(runs) < self._tuning.most_settings:
            return False
        return result_of(settings_of(rows, MEASURE)[0], MEASURE) is None


def _rows(folder):
    path = os.path.join(folder, "table.csv")
    return table.read_table(path) if os.path.exists(path) else []
