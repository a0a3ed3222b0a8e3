"""The folder of a sweep: its table, its failures, its charts."""

import os

from rich import progress

from keras_plasticity import utils
from keras_plasticity.experiments import measures
from keras_plasticity.experiments import run_folder
from keras_plasticity.experiments import statistics
from keras_plasticity.experiments import table
from keras_plasticity.experiments import terminal
from keras_plasticity.experiments.sweeps.plan import result_of
from keras_plasticity.experiments.sweeps.plan import settings_of
from keras_plasticity.experiments.sweeps.result_table import ResultTable
from keras_plasticity.utils import progress_bar

_SWEEP = "sweep.json"
# Of the table of the best settings.
_MOST_ROWS = 10


class SweepLog:
    """The folder of a sweep, which no other process may write to.

    Args:
        path: String, the folder.
        plan: `Plan`.
        table_format: String, the ending of the table's file.
        resume: Boolean, whether there may be a sweep in the folder.

    Attributes:
        path: String.
        table: `ResultTable` of all settings.
        report: `ResultTable` of the best ones on other seeds.

    Raises:
        FileExistsError: If there is a sweep in the folder, and not `resume`.
        ValueError: If it is in use, cannot be written, or is of another sweep.
    """

    def __init__(self, path, plan, table_format, resume):
        self.path = path
        self._plan = plan
        self.table_path = os.path.join(path, f"table.{table_format}")
        self.report_path = os.path.join(path, f"report.{table_format}")
        self.failures_path = os.path.join(path, "failures.csv")
        table.check_readable(self.table_path)
        self._identity = {**plan.identity(), "table": table_format}
        self._failures = []
        self._lock = run_folder.lock_folder(path)
        try:
            self._open(resume)
        except BaseException:
            self.close()
            raise

    def begin(self):
        """Writes what the sweep is, after all that may be wrong is checked.

        Raises:
            ValueError: If it cannot be written.
        """
        try:
            run_folder.write_json(
                os.path.join(self.path, _SWEEP), self._identity
            )
            if os.path.exists(self.failures_path):
                os.remove(self.failures_path)  # They are tried again.
        except OSError as error:
            raise ValueError(
                "--log_dir must be a folder that can be written. "
                f"Received: --log_dir={self.path} ({error})"
            ) from error

    def close(self):
        """Lets other processes have the folder."""
        run_folder.unlock_folder(self.path, self._lock)

    def add(self, job, rows):
        """Adds the rows of a job to the table, and to TensorBoard."""
        self.table.add(rows)
        for each in job.jobs:
            self._write_hparams(each, self.table.of(each.run))

    def add_failure(self, job, message):
        """Keeps why a run has failed."""
        self._failures.append(
            {
                "run": job.name.removeprefix("run "),
                **job.setting,
                "message": message,
            }
        )
        table.write_table(self.failures_path, self._failures)

    def result(self, rows):
        """What the progress bar shows of a run, of its rows."""
        value = result_of(rows, self._plan.measure)
        if value is None:
            return "diverged"
        return f"{self._plan.measure.replace('_', ' ')} {value:.4g}"

    def progress(self, total):
        return _SweepProgress(self._plan.name, total)

    def print_results(self):
        """Prints the best settings, and where all is."""
        if self.table.rows:
            self._print_settings("The best by the", self.table.rows)
        if self.report.rows:
            self._print_settings("On other seeds, the", self.report.rows)
            print(f"Report: {self.report.path}")
        print(
            f"Table: {self.table.path}\n"
            f"Charts: tensorboard --logdir={self.path}/tensorboard"
        )

    def _print_settings(self, title, rows):
        settings = _best_first(rows, self._plan.measure)
        what = f"{self._plan.measure} of {rows[0]['metric']}".replace("_", " ")
        terminal.print_table(
            f"{title} {what}",
            {name: lambda each, name=name: each[name] for name in settings[0]},
            settings[:_MOST_ROWS],
        )
        if len(settings) > _MOST_ROWS:
            print(f"{len(settings) - _MOST_ROWS} more are in the table.")

    def _open(self, resume):
        path = os.path.join(self.path, _SWEEP)
        if os.path.exists(path):
            if not resume:
                raise FileExistsError(
                    "--log_dir holds another sweep. Use --resume to continue "
                    f"it, or another folder. Received: --log_dir={self.path}"
                )
            _check_same(run_folder.read_json(path), self._identity)
        elif os.path.exists(self.table_path):
            raise FileExistsError(
                f"--log_dir holds a table, {self.table_path}, and no sweep "
                "that wrote it. Use another folder. "
                f"Received: --log_dir={self.path}"
            )
        elif resume:
            print(f"There is no sweep in {self.path}: starting a new one.")
        self.table = ResultTable(self.table_path, self._plan.space)
        self.report = ResultTable(self.report_path, self._plan.space)

    def _write_hparams(self, job, rows):
        folder = os.path.join(self.path, "tensorboard", f"{job.run:04d}")
        results = {
            f"result/{name}": result_of(rows, name)
            for name in measures.MEASURES
        }
        with utils.SummaryWriter(folder) as writer:
            writer.hparams(
                {name: _as_number(v) for name, v in job.setting.items()},
                results,
                step=max(row["num_tasks"] for row in rows),
            )


class _SweepProgress:
    """A progress bar with the runs that are done, and the time left."""

    def __init__(self, name, total):
        self._progress = progress_bar.ProgressBar(
            progress.TextColumn("{task.completed}/{task.total} runs"),
            progress.TextColumn("{task.fields[last]}"),
            console=terminal.console_of_terminal(),
            # Runs may take hours: a short memory would never see two.
            speed_estimate_period=7 * 24 * 3600,
        )
        self._bar = self._progress.add_task(name, total=total, last="")

    def __enter__(self):
        self._progress.start()
        return self

    def __exit__(self, *exception):
        self._progress.stop()

    def found(self, count):
        """Adds runs that were done before, which tell nothing of the speed."""
        if count:
            task = self._progress.tasks[0]
            self._progress.reset(self._bar, completed=task.completed + count)

    def done(self, last):
        self._progress.update(self._bar, advance=1, last=last)


def _check_same(before, identity):
    different = [
        f"{name}={before.get(name)} there, {name}={identity.get(name)} here"
        for name in dict.fromkeys([*before, *identity])
        if before.get(name) != identity.get(name)
        and not (
            name == "num_settings"
            and all(isinstance(d.get(name), int) for d in (before, identity))
            and before[name] < identity[name]
        )
    ]
    if different:
        raise ValueError(
            "The sweep in --log_dir is another one, so --resume cannot "
            "continue it. Give the same flags, or another --log_dir: "
            f"{'; '.join(different)}"
        )


def _best_first(rows, measure):
    """A table of settings and methods, the best one first."""
    return [
        {
            "run": str(group[0]["run"]),
            "method": group[0]["method"],
            **{
                name.removeprefix(table.FLAG): str(value)
                for name, value in group[0].items()
                if name.startswith(table.FLAG)
                and name not in (f"{table.FLAG}method", f"{table.FLAG}seed")
            },
            measure.replace("_", " "): _estimate(group, measure),
        }
        for group in settings_of(rows, measure)
    ]


def _estimate(group, measure):
    values = [row[measure] for row in group if row[measure] is not None]
    if len(values) < len(group):
        return f"{len(group) - len(values)} of {len(group)} diverged"
    return f"{statistics.estimate(values):.4g}"


def _as_number(text):
    try:
        return float(text)
    except ValueError:
        return text
