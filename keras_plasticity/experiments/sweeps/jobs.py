"""What a worker is told to do, and what becomes of it."""

import dataclasses
import os

import filelock

from keras_plasticity import validation
from keras_plasticity.experiments import exit_status
from keras_plasticity.experiments import measures
from keras_plasticity.experiments import run_folder
from keras_plasticity.experiments import scores
from keras_plasticity.experiments import side_by_side
from keras_plasticity.experiments import summary as summary_file
from keras_plasticity.experiments import table
from keras_plasticity.experiments.sweeps.worker_process import WorkerProcess

# In which a process that a killed driver left behind ends.
_SECONDS_TO_WAIT = 60
LOG = "log.txt"


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a trainer.

    Attributes:
        run: Integer, its number in the sweep.
        setting: Dict from the name of a flag that the sweep varies to its
            value, a string.
        arguments: List of strings, all flags but the folder's.
        log_dir: String, the folder.
        jobs: List of the jobs that are done by it: itself.
        name: String, what it is called in messages.
    """

    run: int
    setting: dict[str, str]
    arguments: list[str]
    log_dir: str

    @property
    def jobs(self):
        return [self]

    @property
    def name(self):
        return f"run {self.run}"


@dataclasses.dataclass(frozen=True)
class ReportJob(Job):
    """The run of a trainer that reports a method on seeds of its own.

    Its number is that of its rows in the report, which is none of the sweep's.

    Attributes:
        method: String, the method.
        seeds: List of integers, one for each learner.
    """

    method: str
    seeds: list[int]

    @property
    def name(self):
        return f"report of {self.method}"


@dataclasses.dataclass(frozen=True)
class Group:
    """One run of a trainer that does several jobs, side by side.

    Attributes:
        jobs: List of `Job`s, which differ in flags of methods only.
        varied: List of the names of these flags.
        arguments: List of strings, the flags that all have.
        log_dir: String, the folder.
    """

    jobs: list[Job]
    varied: list[str]
    arguments: list[str]
    log_dir: str

    @property
    def run(self):
        """The number of its first run."""
        return self.jobs[0].run

    @property
    def name(self):
        return self.jobs[0].name


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What has become of a job.

    Attributes:
        status: Integer, the trainer's exit status.
        message: String, why it is not 0.
        rows: List of dicts, its rows of the table.
    """

    status: int
    message: str
    rows: list[dict]


def arguments_of(flags, setting):
    """The flags of a run, as they stand on a command line.

    Args:
        flags: Dict from name to string, or to a list of strings.
        setting: Likewise; what is in both is of this one.
    """
    # A learner that diverges ends its own run, and no others'.
    merged = {"on_nan": "continue", **flags, **setting}
    return [
        # The negation of a flag, `--noflip`, takes no value.
        f"--{name}" + f"={value}" * (name[:2] != "no" or value != "true")
        for name, values in merged.items()
        for value in (values if isinstance(values, list) else [values])
    ]


def do_job(worker: WorkerProcess, job: Job | Group) -> Outcome:
    """Runs a trainer, or resumes its run, and reads its results."""
    os.makedirs(job.log_dir, exist_ok=True)
    _wait_for_folder(job.log_dir)
    arguments = [*job.arguments, f"--log_dir={job.log_dir}", "--resume=auto"]
    if isinstance(job, Group):
        path = os.path.join(job.log_dir, f"{side_by_side.NAME}.json")
        settings = [
            {name: each.setting[name] for name in job.varied}
            for each in job.jobs
        ]
        run_folder.write_json(path, settings)
        arguments.append(f"--{side_by_side.NAME}={path}")
    status, message = worker.run(arguments, os.path.join(job.log_dir, LOG))
    rows = []
    if status == 0:
        rows = rows_of(summary_file.read_summary(job.log_dir), job)
        if {row["run"] for row in rows} != {each.run for each in job.jobs}:
            # One that does not call `experiments.run`.
            status = exit_status.FAILED
            message = "the trainer has no results of all settings."
    return Outcome(status, message, rows)


def rows_of(summary, job):
    """The rows of a job in the table of a sweep: one for each learner."""
    if isinstance(job, Group):
        return [
            row
            for number, each in enumerate(job.jobs)
            for row in _rows_of_runs(
                summary,
                [
                    run
                    for run in summary["runs"]
                    if run.get(side_by_side.NAME) == number
                ],
                each,
            )
        ]
    return _rows_of_runs(summary, summary["runs"], job)


def _rows_of_runs(summary, runs, job):
    metric = summary["metric"]
    flags = {f"{table.FLAG}{name}": v for name, v in job.setting.items()}
    rows = []
    for run in runs:
        curves = scores.curves(summary, run)
        found = {
            name: measure(curves) for name, measure in measures.MEASURES.items()
        }
        for index, seed in enumerate(scores.seeds_of(summary, run)):
            rows.append(
                {
                    "run": job.run,
                    **flags,
                    "problem": summary["problem"],
                    "method": run["method"],
                    "seed": seed,
                    "num_tasks": len(curves),
                    "metric": metric["name"],
                    "lower_is_better": metric["lower_is_better"],
                    **{
                        name: _finite(values[index])
                        for name, values in found.items()
                    },
                    "train_seconds": round(run["train_seconds"], 3),
                    "compile_seconds": round(run["compile_seconds"], 3),
                }
            )
    return rows


def columns(names):
    """The columns of the table of a sweep over flags of these names."""
    return [
        "run",
        *(f"{table.FLAG}{name}" for name in names),
        *table.NEEDED,
        "train_seconds",
        "compile_seconds",
    ]


def _finite(value):
    return float(value) if validation.is_number(value) else None


def _wait_for_folder(log_dir):
    """Waits for a process that a driver which is gone has left to its end."""
    lock = filelock.FileLock(
        os.path.join(log_dir, run_folder.LOCK), timeout=_SECONDS_TO_WAIT
    )
    try:
        lock.acquire()
    except NotImplementedError:
        return  # No locks there; the trainer says so.
    lock.release()
