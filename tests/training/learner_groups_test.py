import pytest

from keras_plasticity.training import learner_groups
from keras_plasticity.training.learner_groups import Stopwatch


class FakeLoop:
    """Returns before its steps are computed, each of which takes its time."""

    def __init__(self):
        self.now = 100.0
        self.seconds = 0.1
        self.ahead = 0
        self.waits = []

    def perf_counter(self):
        return self.now

    def run(self, data, batches):
        self.ahead += 1

    def wait(self):
        self.now += self.seconds * self.ahead
        self.waits.append(self.ahead)
        self.ahead = 0


@pytest.fixture
def loop(monkeypatch):
    loop = FakeLoop()
    monkeypatch.setattr(learner_groups, "time", loop)
    return loop


def test_calls_run_at_most_a_second_ahead(loop):
    stopwatch = Stopwatch()
    for _ in range(1 + 2 + 4 + 2 * 8):
        stopwatch.run(loop, None, None)
    assert loop.waits == [1, 2, 4, 8, 8]
    loop.waits.clear()
    loop.seconds = 1.0
    for _ in range(8 + 4 + 2 + 2):
        stopwatch.run(loop, None, None)
    assert loop.waits == [8, 4, 2, 1, 1]
    assert stopwatch.seconds == pytest.approx(23 * 0.1 + 16)


def test_only_what_was_computed_counts(loop):
    stopwatch = Stopwatch()
    for _ in range(3 + 2):
        stopwatch.run(loop, None, None)
    assert loop.waits == [1, 2]
    # Half of what may run ahead, and then an interruption.
    stopwatch.wait(loop)
    stopwatch.wait(loop)
    assert loop.waits == [1, 2, 2]
    stopwatch.run(loop, None, None)
    stopwatch.forget()
    loop.ahead = 0
    loop.now += 1000
    stopwatch.wait(loop)
    assert loop.waits == [1, 2, 2]
    assert stopwatch.seconds == pytest.approx(0.5)
    # That which waited early says nothing of how many may run ahead.
    for _ in range(4):
        stopwatch.run(loop, None, None)
    assert loop.waits == [1, 2, 2, 4]
