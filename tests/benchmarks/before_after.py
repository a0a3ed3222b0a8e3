"""Times of a training step in two checkouts, and their ratio.

    git worktree add ../before REVISION
    python tests/benchmarks/before_after.py --before=../before --table=targets

The cells of `step_time.py` are measured in one checkout and in the other, in
turn (before, after, before, after, ...). The ratio of a cell is the median over
these rounds of the ratios within a round; beside it are the smallest and the
largest. Both checkouts need the cells that are measured, and the packages of
the Python that runs this.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys

import step_time
from absl import app
from absl import flags

BEFORE = flags.DEFINE_string(
    "before", None, "Folder of the checkout to compare with.", required=True
)
ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "How often both are measured.", lower_bound=1
)
_AFTER = pathlib.Path(__file__).parents[2]


def measure(checkout, backend, cells):
    """Median microseconds of each cell, measured by one checkout."""
    process = subprocess.run(
        [
            sys.executable,
            str(checkout / "tests" / "benchmarks" / "step_time.py"),
            f"--cells={json.dumps(cells)}",
            f"--repeats={step_time.REPEATS.value}",
            f"--seconds={step_time.SECONDS.value}",
        ],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": str(checkout),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    lines = [line for line in process.stdout.splitlines() if line[:1] == "{"]
    return [json.loads(line)["microseconds"] for line in lines]


def main(_):
    before = pathlib.Path(BEFORE.value).resolve()
    for table in step_time.TABLE.value:
        print(f"\n## {table}\n")
        print(
            "| backend | problem | method | mode | learners | before (us) | "
            "after (us) | after / before | min-max |"
        )
        print("|" + " --- |" * 9)
        for backend in step_time.BACKENDS.value:
            # The loop of `eager_torch.py` is not the library's.
            cells = [
                cell
                for cell in step_time.table_cells(table, backend)
                if cell["mode"] != "eager"
            ]
            if not cells:
                continue
            rounds = [
                (
                    measure(before, backend, cells),
                    measure(_AFTER, backend, cells),
                )
                for _ in range(ROUNDS.value)
            ]
            for i, cell in enumerate(cells):
                olds = [old[i] for old, _ in rounds]
                news = [new[i] for _, new in rounds]
                ratios = sorted(new / old for old, new in zip(olds, news))
                print(
                    f"| {backend} | {cell['problem']} | {cell['method']} | "
                    f"{cell['mode']} | {cell['learners']} | "
                    f"{statistics.median(olds):.2f} | "
                    f"{statistics.median(news):.2f} | "
                    f"{statistics.median(ratios):.3f} | "
                    f"{ratios[0]:.3f}-{ratios[-1]:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    app.run(main)
