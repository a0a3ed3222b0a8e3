"""Learners in groups, each of which trains side by side."""

import itertools
import math
import time
from typing import NamedTuple

import numpy as np
from absl import logging

from keras_plasticity.training.training_loop import TrainingLoop

# Calls of a loop do not wait for each other, but at most for so long.
_SECONDS_AHEAD = 1.0


class Group(NamedTuple):
    """Some learners in a row.

    Attributes:
        learners: Range of their indices.
        loop: `TrainingLoop` that trains them.
    """

    learners: range
    loop: TrainingLoop


class LearnerGroups:
    """All learners of an `OnlineTrainer`.

    Args:
        loop_class: Class of the `TrainingLoop`.
        models: Iterable of the models of all learners.
        sizes: List of integers, the number of learners of each group.
        batch: The data of one step of one learner.
        jit_compile: Boolean or `"auto"`, see `OnlineTrainer`.

    Attributes:
        groups: List of `Group`s.
    """

    def __init__(self, loop_class, models, sizes, batch, jit_compile):
        self.groups = []
        models = iter(models)
        start = 0
        for size in sizes:
            first = self.groups[0].loop if self.groups else None
            part = itertools.islice(models, size)
            loop = loop_class(part, size, batch, jit_compile, first)
            self.groups.append(Group(range(start, start + size), loop))
            start += size

    def model(self, learner):
        """A model in the present state of one learner."""
        group = self._group_of(learner)
        return group.loop.model(learner - group.learners.start)

    def load_from_model(self, learner):
        """Makes the state of `model(learner)` that of the learner."""
        group = self._group_of(learner)
        group.loop.load_from_model(learner - group.learners.start)

    def get_state(self):
        """All that the learners' next steps depend on: list of arrays."""
        if len(self.groups) == 1:
            return self.groups[0].loop.get_state()
        states = [group.loop.get_state() for group in self.groups]
        return [np.concatenate(parts) for parts in zip(*states)]

    def set_state(self, arrays):
        """Restores what `get_state` returned."""
        for learners, loop in self.groups:
            part = slice(learners.start, learners.stop)
            loop.set_state([array[part] for array in arrays])

    def _group_of(self, learner):
        for group in self.groups:
            if learner in group.learners:
                return group
        raise IndexError(learner)


def group_sizes(num_learners, for_each, for_active, free):
    """How many learners can train side by side.

    Args:
        num_learners: Integer.
        for_each: Integer, the bytes that each learner always needs.
        for_active: Integer, the bytes that it needs more while it trains.
        free: Integer, the bytes of memory that are free; `None` if unknown.

    Returns:
        List of integers, the number of learners of each group.

    Raises:
        MemoryError: If not even one can train at a time.
    """
    if num_learners == 1 or free is None:
        return [num_learners]
    most = (free - num_learners * for_each) // for_active
    if most < 1:
        fit = max(0, (free - for_active) // for_each)
        raise MemoryError(
            f"{num_learners} learners need about "
            f"{_gigabytes(num_learners * for_each + for_active)} of memory, "
            f"even if they train one after another, of which "
            f"{_gigabytes(free)} are free. About {fit} would fit. Use fewer "
            "learners, or shorter tasks."
        )
    if most >= num_learners:
        return [num_learners]
    number = math.ceil(num_learners / most)
    size, more = divmod(num_learners, number)
    sizes = [size + 1] * more + [size] * (number - more)
    logging.warning(
        "%d learners side by side would need about %s of memory, of which %s "
        "are free: they train in %d groups of up to %d, one group after "
        "another.",
        num_learners,
        _gigabytes(num_learners * (for_each + for_active)),
        _gigabytes(free),
        number,
        sizes[0],
    )
    return sizes


def _gigabytes(number):
    return f"{number / 1e9:.1f} GB"


class Stopwatch:
    """Runs training loops, and counts the time that they take.

    A loop may return before its steps are computed, so that the next call is
    there when they are. To be stopped by Ctrl-C, and to show progress that is
    true, calls must not run too far ahead: now and then it waits for them.

    Attributes:
        seconds: Float, the time so far.
    """

    def __init__(self):
        self.seconds = 0.0
        self._start = None
        self._calls = 0
        self._most_calls = 1

    def forget(self):
        """Forgets calls that were not waited for, of an interrupted run."""
        self._start = None
        self._calls = 0

    def run(self, loop, data, batches):
        """Calls `loop.run`."""
        if self._start is None:
            self._start = time.perf_counter()
        loop.run(data, batches)
        self._calls += 1
        if self._calls >= self._most_calls:
            self.wait(loop)

    def wait(self, loop):
        """Returns when all that was begun is computed."""
        if self._start is None:
            return
        loop.wait()
        seconds = time.perf_counter() - self._start
        self.seconds += seconds
        if seconds > _SECONDS_AHEAD:
            self._most_calls = max(1, self._most_calls // 2)
        elif self._calls == self._most_calls and seconds < _SECONDS_AHEAD / 2:
            self._most_calls *= 2
        self.forget()
