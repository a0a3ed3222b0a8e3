"""What a worker is told to do, and what becomes of it."""

import dataclasses
import os

import filelock

from keras_plasticity import validation
from keras_plasticity.experiments import measures
from keras_plasticity.experiments import run_folder
from keras_plasticity.experiments import scores
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
    """

    run: int
    setting: dict[str, str]
    arguments: list[str]
    log_dir: str


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


def do_job(worker: WorkerProcess, job: Job) -> Outcome:
    """Runs a trainer, or resumes its run, and reads its results."""
    os.makedirs(job.log_dir, exist_ok=True)
    _wait_for_folder(job.log_dir)
    status, message = worker.run(
        [*job.arguments, f"--log_dir={job.log_dir}", "--resume=auto"],
        os.path.join(job.log_dir, LOG),
    )
    rows = []
    if status == 0:
        rows = rows_of(summary_file.read_summary(job.log_dir), job)
    return Outcome(status, message, rows)


def rows_of(summary, job):
    """The rows of a run in the table of a sweep: one for each learner."""
    metric = summary["metric"]
    flags = {f"{table.FLAG}{name}": v for name, v in job.setting.items()}
    rows = []
    for run in summary["runs"]:
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
