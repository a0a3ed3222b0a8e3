"""The table of a sweep, which is replaced whole whenever a run ends."""

import os

from keras_plasticity.experiments import table
from keras_plasticity.experiments.sweeps import jobs
from keras_plasticity.experiments.sweeps import plan


class ResultTable:
    """Rows of runs, in the order of the runs, whichever ends first.

    Args:
        path: String, the file. Rows that are there are read.
        names: Sequence of strings, the flags that the sweep varies.

    Attributes:
        path: String.
        rows: List of dicts.

    Raises:
        ValueError: If the file holds a table of another schema.
    """

    def __init__(self, path, names):
        self.path = path
        self.rows = []
        if os.path.exists(path):
            self.rows = table.read_table(path)
        expected = jobs.columns(names)
        for row in self.rows:
            if set(row) != set(expected):
                raise ValueError(
                    f"{path} is a table of another schema. Remove it, and "
                    "resume the sweep: its runs are in the folder. Expected: "
                    f"the columns {', '.join(expected)}. Received: "
                    f"{', '.join(map(str, row))}"
                )

    def of(self, run):
        """The rows of a run."""
        return [row for row in self.rows if row["run"] == run]

    def has(self, job):
        """Whether there are the rows of a job.

        Raises:
            ValueError: If they are of another setting.
        """
        rows = self.of(job.run)
        different = _differences(rows, job)
        if different:
            raise ValueError(
                f"{self.path} has another setting as run {job.run}: "
                f"{different[0]}. Remove the table, and resume the sweep: its "
                "runs are in the folder."
            )
        return bool(rows)

    def add(self, rows):
        """Adds all rows of one or more runs, and writes the file.

        Raises:
            ValueError: If a learner is in two runs of a setting.
        """
        new = {row["run"] for row in rows}
        others = [row for row in self.rows if row["run"] not in new]
        both = sorted(others + rows, key=_order)
        _check_seeds(both)
        self._write(both)

    def keep(self, found):
        """Drops the rows of all but some `ReportJob`s.

        Their numbers tell little: with one method more, they are others'.
        """
        kept = []
        for job in found:
            rows = self.of(job.run)
            expected = [(job.method, seed) for seed in job.seeds]
            there = [(row["method"], row["seed"]) for row in rows]
            if there == expected and not _differences(rows, job):
                kept += rows
        if len(kept) < len(self.rows):
            self._write(kept)

    def _write(self, rows):
        self.rows = rows
        table.write_table(self.path, rows)


def _differences(rows, job):
    return [
        f"{name}={row[f'{table.FLAG}{name}']}, not {value}"
        for row in rows
        for name, value in job.setting.items()
        if row[f"{table.FLAG}{name}"] != value
    ]


def _check_seeds(rows):
    # A plan cannot, where the number of learners is the trainer's own.
    runs = {}
    for row in rows:
        key = (*plan.setting_of(row), row["seed"])
        first = runs.setdefault(key, row["run"])
        if first != row["run"]:
            raise plan.shared_seeds(
                f"the seed {row['seed']} of {row['method']} in run {first} "
                f"and in run {row['run']}"
            )


def _order(row):
    return row["run"], row["method"], row["seed"]
