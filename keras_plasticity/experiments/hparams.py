"""The rows of runs in TensorBoard's table of settings, the page HParams."""

import os
import pathlib

from keras_plasticity import utils
from keras_plasticity.experiments import runs
from keras_plasticity.experiments.lasting_writer import NO_STEP

# Of more runs TensorBoard selects none to be shown at first.
_MOST_ENTRIES = 40
# To be found again: TensorBoard takes the first row that a folder has, so the
# one of a run that was resumed takes the place of the one before it.
_SUFFIX = ".hparams"


def write(summary, recorded, log_dir):
    """Writes a row for each learner of each method.

    Results are columns like settings, and no charts: each would have one dot.
    Columns are sorted by name, those in which rows differ first. A method with
    one learner has its row in the folder of its charts; of several each has a
    folder within it. If these are too many for TensorBoard to show them, a
    method has one row, with the means.

    Args:
        summary: Dict, the content of `summary.json`.
        recorded: Collection of the runs in it that have finished a task.
        log_dir: String, the folder of them all.

    Raises:
        OSError: If a file cannot be written.
    """
    num_entries = 1 + sum(1 + run["num_learners"] for run in recorded)
    for run in recorded:
        folder = pathlib.Path(log_dir, run["method"])
        for row in folder.rglob(f"events.*{_SUFFIX}"):
            row.unlink()
        seed = summary["flags"]["seed"]
        _, values = runs.per_bin(summary, run)
        if run["num_learners"] == 1 or num_entries > _MOST_ENTRIES:
            _write_row(summary, run, values, seed, folder)
            continue
        for learner in range(run["num_learners"]):
            _write_row(
                summary,
                run | {"num_learners": 1},
                values[:, [learner]],
                seed + learner,
                folder / f"seed_{seed + learner}",
            )


def _write_row(summary, run, values, seed, folder):
    metric = summary["metric"]["name"]
    results = {
        f"{number}_{name}_{metric}": runs.finite_mean(values[index])
        for number, (name, index) in enumerate(
            (
                ("last", -1),
                ("best", runs.best_bin(summary, values)),
                ("first", 0),
            ),
            start=1,
        )
    }
    row = {
        # A learner that has diverged has none.
        **{name: mean for name, mean in results.items() if mean is not None},
        "method": run["method"],
        **run["settings"],
        "seed": seed,
        "num_learners": run["num_learners"],
        "num_tasks": len(run["per_task"]),
        "backend": summary["backend"],
    }
    with utils.SummaryWriter(os.fspath(folder), NO_STEP, _SUFFIX) as writer:
        writer.hparams(row, results={})
