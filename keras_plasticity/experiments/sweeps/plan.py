"""What a sweep is to train."""

import hashlib
import itertools
import json
import math
import os
from typing import Any

import keras
import numpy as np

from keras_plasticity import validation
from keras_plasticity.experiments import measures
from keras_plasticity.experiments import method_file
from keras_plasticity.experiments import selection
from keras_plasticity.experiments import table
from keras_plasticity.experiments.methods import all_flags
from keras_plasticity.experiments.methods import find_parts
from keras_plasticity.experiments.methods import needed_flags
from keras_plasticity.experiments.sweeps import space as spaces
from keras_plasticity.experiments.sweeps.jobs import Group
from keras_plasticity.experiments.sweeps.jobs import Job
from keras_plasticity.experiments.sweeps.jobs import ReportJob
from keras_plasticity.experiments.sweeps.jobs import arguments_of

# Flags with which each setting is a run of its own.
_FOR_ONE_SETTING = {"diagnostics", "tracker", "side_by_side"}
# More learners wait for one another long enough.
_MOST_SIDE_BY_SIDE = 64
# Flags of a trainer that are the sweep's own business.
_OWN_FLAGS = ("log_dir", "resume", "overwrite", "dry_run")


class Plan:
    """What a sweep is to train, checked as far as can be without a trainer.

    Args:
        trainer: See `sweep`, as all of them.
        space: Dict.
        flags: Dict, or `None`.
        sampler: String.
        num_settings: Integer, or `None`.
        sampler_seed: Integer.
        measure: String.

    Attributes:
        name: String, the name of the trainer's file without its ending.
        most_settings: Integer, how many settings there may be.
    """

    def __init__(
        self,
        trainer,
        space,
        flags,
        sampler,
        num_settings,
        sampler_seed,
        measure,
    ):
        path = validation.check_path("trainer", trainer)
        if not os.path.isfile(path):
            raise ValueError(
                "`trainer` must be the file of a trainer, such as "
                f"'examples/online_permuted_mnist.py'. Received: {trainer}"
            )
        self.trainer = os.path.abspath(path)
        self.name = os.path.splitext(os.path.basename(path))[0]
        self.space = spaces.check_space(space)
        self.flags = _check_flags(flags)
        self.sampler = validation.check_choice(
            "sampler", sampler, spaces.SAMPLERS
        )
        self.sampler_seed = validation.check_integer(
            "sampler_seed", sampler_seed, 0
        )
        self.measure = validation.check_choice(
            "measure", measure, tuple(measures.MEASURES)
        )
        for name in (*self.space, *self.flags):
            if name in _OWN_FLAGS:
                raise ValueError(
                    f"`space` and `flags` must not have `{name}`, which a "
                    "sweep sets by itself. Received: "
                    f"space={space}, flags={flags}"
                )
        both = [name for name in self.space if name in self.flags]
        if both:
            raise ValueError(
                "`flags` must not have what `space` varies: leave one of them "
                f"out. Received: {both[0]} in space={space}, flags={flags}"
            )
        self._check_number(num_settings)
        if self.sampler == "optuna":
            spaces.check_optuna()
        self._method_file = self.flags.get(method_file.NAME)
        self._drawn = self._draw()
        _check_seeds(self.to_check(), self.flags)

    @property
    def most_settings(self):
        return self._num_settings if self._drawn is None else len(self._drawn)

    def identity(self) -> dict[str, Any]:
        """All that the results of the sweep depend on, for JSON."""
        return {
            "trainer": self.trainer,
            "backend": keras.backend.backend(),
            "flags": self.flags,
            "space": {
                name: [each.low, each.high, each.log, "range"]
                if isinstance(each, spaces.Range)
                else each
                for name, each in self.space.items()
            },
            "sampler": self.sampler,
            "sampler_seed": self.sampler_seed,
            "measure": self.measure if self.sampler == "optuna" else None,
            "num_settings": self._num_settings,
        }

    def to_check(self) -> list[dict[str, str]]:
        """Settings that the trainer has to accept before it trains any."""
        if self._drawn is None:
            return spaces.corners(self.space)
        return self._drawn

    @property
    def is_proposed(self):
        """Whether settings depend on the results of those before them."""
        return self._drawn is None

    def next_settings(self, before, rows, proposed=()) -> list[dict[str, str]]:
        """The settings that can be trained next, if there are any.

        Args:
            before: List of all settings that were trained.
            rows: List of the rows of their results.
            proposed: Sequence of the settings that were proposed when the
                sweep was here before, those in `before` among them. They are
                taken again, whatever the results are now.
        """
        if self._drawn is not None:
            return [] if before else self._drawn
        count = min(spaces.ROUND, self._num_settings - len(before))
        if count < 1:
            return []
        known = list(proposed[len(before) :][:count])
        if len(known) == count:
            return known
        results = [
            result_of([row for row in rows if row["run"] == run], self.measure)
            for run in range(len(before))
        ]
        found = spaces.propose(
            self.space,
            list(zip(before, results)),
            count,
            self.sampler_seed,
            bool(before and rows) and rows[0]["lower_is_better"],
        )
        # Of a sweep that has grown, the last round may be known in part.
        new = [setting for setting in found if setting not in known]
        return (known + new)[:count]

    def job(self, run: int, setting: dict[str, str], log_dir: str) -> Job:
        return Job(
            run,
            setting,
            arguments_of(self.flags, setting),
            os.path.join(log_dir, "runs", f"{run:04d}"),
        )

    def side_by_side(self, found, at_a_time: int, is_done) -> list:
        """What is left to do, in `Group`s of jobs that share a program of JAX.

        Other backends train learners one after another, and each job on its
        own is as fast.

        Args:
            found: List of all `Job`s, done or not: which ones make a group
                does not depend on what is done, so that a group that was
                interrupted is resumed.
            at_a_time: Integer, how many are done at a time: there are as many
                groups, if there can be.
            is_done: Function of a `Job`.

        Returns:
            List of `Job`s and `Group`s, in the order of their first runs.
        """
        varied = self._varied_side_by_side()
        alike = {}
        for job in found:
            # What Keras leaves out at zero is another program.
            key = (
                job.run
                if not varied
                else tuple(
                    float(value) == 0 if name in varied else value
                    for name, value in job.setting.items()
                )
            )
            alike.setdefault(key, []).append(job)
        size = min(_MOST_SIDE_BY_SIDE, math.ceil(len(found) / at_a_time))
        result = []
        for each in alike.values():
            for start in range(0, len(each), size):
                part = each[start : start + size]
                left = [job for job in part if not is_done(job)]
                if left:
                    result.append(self._group(left, varied))
        return sorted(result, key=lambda each: each.run)

    def _varied_side_by_side(self):
        """The flags in which settings of one program may differ."""
        asked_for = {*self.flags, *self.space}
        if keras.backend.backend() != "jax" or asked_for & _FOR_ONE_SETTING:
            return []
        numbers = {
            flag.name
            for flag in all_flags(method_file.all_parts(self._method_file))
            if not flag.choices and flag.type is not bool
        }
        return [name for name in self.space if name in numbers]

    def _group(self, found, varied):
        if len(found) == 1:
            return found[0]
        setting = {
            name: value
            for name, value in found[0].setting.items()
            if name not in varied
        }
        # With others in it, or in another order, it is another run.
        content = json.dumps([[job.run, job.setting] for job in found])
        digest = hashlib.blake2b(content.encode(), digest_size=4).hexdigest()
        first, last = found[0], found[-1]
        name = f"{first.run:04d}-to-{last.run:04d}-{digest}"
        return Group(
            found,
            varied,
            arguments_of(self.flags, setting),
            os.path.join(os.path.dirname(first.log_dir), name),
        )

    def report_jobs(self, rows, num_seeds, log_dir) -> list[ReportJob]:
        """Jobs that train the best setting of each method on other seeds.

        Args:
            rows: List of the rows of all settings.
            num_seeds: Integer.
            log_dir: String, the folder of the sweep.

        Returns:
            List of `ReportJob`s, one for each method, but for those all of
            whose settings diverged.
        """
        used = sorted({row["seed"] for row in rows})
        first = used[-1] + 1
        seeds = list(range(first, first + num_seeds))
        selection.check_separate_seeds(used, seeds)
        best = {}
        for group in settings_of(rows, self.measure):
            if result_of(group, self.measure) is not None:
                best.setdefault(group[0]["method"], group[0])
        found = []
        for run, method in enumerate(sorted(best)):
            row = best[method]
            # What the sweep itself may have varied.
            own = {
                "method": method,
                "seed": str(first),
                "num_learners": str(num_seeds),
            }
            setting = {
                name: own.get(name, row[f"{table.FLAG}{name}"])
                for name in self.space
            }
            # A trainer refuses flags that none of its methods takes.
            taken = flags_for_method({**self.flags, **own, **setting}, method)
            # On other seeds it is another run, which needs another folder.
            name = (
                f"report-{row['run']:04d}-{method}-seeds-{first}-to-{seeds[-1]}"
            )
            found.append(
                ReportJob(
                    run,
                    setting,
                    arguments_of(taken, {}),
                    os.path.join(log_dir, "runs", name),
                    method,
                    seeds,
                )
            )
        return found

    def _check_number(self, num_settings):
        ranges = [
            name
            for name, each in self.space.items()
            if isinstance(each, spaces.Range)
        ]
        if self.sampler == "grid":
            if ranges or num_settings is not None:
                raise ValueError(
                    "The sampler `grid` takes all combinations of lists of "
                    "values: for a `Range`, or a number of settings, use the "
                    f"sampler `random` or `optuna`. Received: sampler=grid, "
                    f"num_settings={num_settings}, ranges of {ranges}"
                )
            self._num_settings = None
            return
        if num_settings is None:
            raise ValueError(
                f"The sampler `{self.sampler}` needs `num_settings`, how many "
                "settings it draws. Received: num_settings=None"
            )
        self._num_settings = validation.check_positive_integer(
            "num_settings", num_settings
        )

    def _draw(self):
        """All settings, where they do not depend on results."""
        if self.sampler == "grid":
            return spaces.grid(self.space)
        if self.sampler == "random":
            return spaces.draw(
                self.space, self._num_settings, self.sampler_seed
            )
        return None


def flags_for_method(flags, method):
    """Some flags without those that belong to other methods only.

    Args:
        flags: Dict from the name of a flag to its value.
        method: String. Of a method that only the trainer knows, nothing is
            left out.

    Returns:
        Dict.
    """
    parts = method_file.all_parts(flags.get(method_file.NAME))
    try:
        needed = needed_flags(find_parts(method, parts))
    except ValueError:
        return dict(flags)
    others = [flag for flag in all_flags(parts) if flag.name not in needed]
    left_out = {flag.name for flag in others}
    # A flag of two values has its negation too.
    left_out |= {f"no{flag.name}" for flag in others if flag.type is bool}
    return {
        name: value for name, value in flags.items() if name not in left_out
    }


def settings_of(rows, measure):
    """The rows of each method and setting, those of the best one first.

    Seeds are none of a setting's business: if a sweep varies them, they belong
    together.

    Args:
        rows: List of dicts, the rows of a table.
        measure: String.

    Returns:
        List of lists of rows.
    """
    groups = {}
    for row in rows:
        groups.setdefault(setting_of(row), []).append(row)
    sign = 1 if rows and rows[0]["lower_is_better"] else -1

    def order(group):
        result = result_of(group, measure)
        return math.inf if result is None else sign * result

    return sorted(groups.values(), key=order)


def setting_of(row):
    """Tuple of the method and the flags of a row, but for its seed."""
    flags = [
        (name, value)
        for name, value in row.items()
        if name.startswith(table.FLAG) and name != f"{table.FLAG}seed"
    ]
    return row["method"], *flags


def result_of(rows, measure):
    """The mean of a measure over rows; `None` if one of them diverged."""
    values = [row[measure] for row in rows]
    if not values or any(value is None for value in values):
        return None
    return float(np.mean(values))


def shared_seeds(what):
    """The error for a sweep that would count learners twice.

    Args:
        what: String, where a seed is twice.
    """
    return ValueError(
        "Seeds that a sweep varies must be at least `num_learners` apart: "
        "learner i of a run has the run's seed + i, and one that is in two "
        "runs would count twice. Take such seeds, such as seed=0,10 for up "
        f"to ten learners, or fewer learners. Received: {what}"
    )


def _check_seeds(settings, flags):
    """Checks that runs of the same setting have learners of their own.

    Where the trainer alone knows how many learners there are, it is one here.
    """
    groups = {}
    for setting in settings:
        both = {"seed": "0", "num_learners": "1", **flags, **setting}
        others = [pair for pair in setting.items() if pair[0] != "seed"]
        try:
            found = int(both["seed"]), int(both["num_learners"])
        except (TypeError, ValueError):
            continue  # The trainer tells what is wrong with them.
        groups.setdefault(tuple(others), []).append(found)
    for found in groups.values():
        found.sort()
        for (seed, learners), (following, _) in itertools.pairwise(found):
            if following - seed < learners:
                raise shared_seeds(
                    f"seed={seed} and seed={following} with "
                    f"num_learners={learners}"
                )


def _check_flags(flags):
    rule = "a dict from the name of a flag to its value, or a list of values"
    if flags is None:
        return {}
    result = {}
    validation.check_mapping("flags", flags, rule=rule)
    for name, value in flags.items():
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        is_plain = all(
            isinstance(each, (str, bool)) or validation.is_number(each)
            for each in values
        )
        if not isinstance(name, str) or not name.isidentifier() or not is_plain:
            raise validation.error("flags", rule, flags)
        values = list(map(spaces.as_flag, values))
        result[name] = values if isinstance(value, (list, tuple)) else values[0]
    return result
