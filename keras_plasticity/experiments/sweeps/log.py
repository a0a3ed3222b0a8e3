"""The folder of a sweep: its table, its failures, its charts."""

import os

import numpy as np
from rich import progress

from keras_plasticity import utils
from keras_plasticity.experiments import measures
from keras_plasticity.experiments import run_folder
from keras_plasticity.experiments import statistics
from keras_plasticity.experiments import table
from keras_plasticity.experiments import terminal
from keras_plasticity.experiments.sweeps import jobs
from keras_plasticity.experiments.sweeps.plan import result_of
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
        rows: List of dicts, the rows of the table.

    Raises:
        FileExistsError: If there is a sweep in the folder, and not `resume`.
        ValueError: If it is in use, cannot be written, or is of another sweep.
    """

    def __init__(self, path, plan, table_format, resume):
        self.path = path
        self._plan = plan
        self.table_path = os.path.join(path, f"table.{table_format}")
        self.failures_path = os.path.join(path, "failures.csv")
        table.check_readable(self.table_path)
        self.rows = []
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
                os.path.join(self.path, _SWEEP), self._plan.identity()
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

    def has(self, run, setting):
        """Whether the table has the rows of a run."""
        rows = [row for row in self.rows if row["run"] == run]
        for row in rows:
            for name, value in setting.items():
                if row[f"{table.FLAG}{name}"] != value:
                    raise ValueError(
                        f"{self.table_path} has another setting as run {run}: "
                        f"{name}={row[f'{table.FLAG}{name}']}, not {value}. "
                        "Remove the table, and resume the sweep: its runs are "
                        "in the folder."
                    )
        return bool(rows)

    def add(self, job, rows):
        """Adds the rows of a run to the table, and to TensorBoard."""
        others = [row for row in self.rows if row["run"] != job.run]
        self.rows = sorted(others + rows, key=_order)
        table.write_table(self.table_path, self.rows)
        self._write_hparams(job, rows)

    def add_failure(self, job, message):
        """Keeps why a run has failed."""
        self._failures.append(
            {"run": job.run, **job.setting, "message": message}
        )
        table.write_table(self.failures_path, self._failures)

    def result(self, run):
        """What the progress bar shows of a run."""
        rows = [row for row in self.rows if row["run"] == run]
        value = result_of(rows, self._plan.measure)
        if value is None:
            return "diverged"
        return f"{self._plan.measure.replace('_', ' ')} {value:.4g}"

    def progress(self, total):
        return _SweepProgress(self._plan.name, total)

    def print_results(self):
        """Prints the best settings, and where all is."""
        if self.rows:
            settings = _best_first(self.rows, self._plan.measure)
            what = f"{self._plan.measure} of {self.rows[0]['metric']}"
            terminal.print_table(
                f"The best {min(_MOST_ROWS, len(settings))} of {len(settings)},"
                f" by the {what.replace('_', ' ')}",
                {
                    name: lambda each, name=name: each[name]
                    for name in settings[0]
                },
                settings[:_MOST_ROWS],
            )
        print(
            f"Table: {self.table_path}\n"
            f"Charts: tensorboard --logdir={self.path}/tensorboard"
        )

    def _open(self, resume):
        path = os.path.join(self.path, _SWEEP)
        if os.path.exists(path):
            if not resume:
                raise FileExistsError(
                    "--log_dir holds another sweep. Use --resume to continue "
                    f"it, or another folder. Received: --log_dir={self.path}"
                )
            _check_same(run_folder.read_json(path), self._plan.identity())
        elif os.path.exists(self.table_path):
            raise FileExistsError(
                f"--log_dir holds a table, {self.table_path}, and no sweep "
                "that wrote it. Use another folder. "
                f"Received: --log_dir={self.path}"
            )
        elif resume:
            print(f"There is no sweep in {self.path}: starting a new one.")
        if os.path.exists(self.table_path):
            self.rows = table.read_table(self.table_path)
            self._check_columns()

    def _check_columns(self):
        expected = jobs.columns(self._plan.space)
        for row in self.rows:
            if set(row) != set(expected):
                raise ValueError(
                    f"{self.table_path} is a table of another schema. Remove "
                    "it, and resume the sweep: its runs are in the folder. "
                    f"Expected: the columns {', '.join(expected)}. Received: "
                    f"{', '.join(map(str, row))}"
                )

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


def _order(row):
    return row["run"], row["method"], row["seed"]


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
    groups = {}
    for row in rows:
        groups.setdefault((row["run"], row["method"]), []).append(row)
    sign = 1 if rows[0]["lower_is_better"] else -1

    def order(group):
        result = result_of(group, measure)
        return np.inf if result is None else sign * result

    return [
        {
            "run": str(group[0]["run"]),
            "method": group[0]["method"],
            **{
                name.removeprefix(table.FLAG): str(value)
                for name, value in group[0].items()
                if name.startswith(table.FLAG)
                and name not in (f"{table.FLAG}method",)
            },
            measure.replace("_", " "): _estimate(group, measure),
        }
        for group in sorted(groups.values(), key=order)
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
