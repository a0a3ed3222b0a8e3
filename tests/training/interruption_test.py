"""Runs that are stopped, anywhere, and resumed to the same results."""

import os
import signal
import subprocess
import sys
import textwrap
import threading

import keras
import numpy as np
import pytest

from keras_plasticity.callbacks import PlasticityMonitor
from keras_plasticity.training import AppendOnly
from keras_plasticity.training import OnlineTrainer
from keras_plasticity.training import TaskCallback
from keras_plasticity.training import online_trainer
from keras_plasticity.training.interruption import catch_signals
from tests.helpers import assert_same_weights
from tests.helpers import mostly_slow
from tests.training.checkpoint_test import AnyStream
from tests.training.online_trainer_test import build

_IS_JAX = keras.backend.backend() == "jax"

pytestmark = pytest.mark.usefixtures("fast_compilation")


@pytest.fixture(autouse=True)
def _default_handlers():
    """Those of a program on a terminal, even if a batch job runs the tests."""
    defaults = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {
        number: signal.signal(number, handler)
        for number, handler in defaults.items()
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Stopper(TaskCallback):
    """Stops training at some of its calls of `on_progress`."""

    def __init__(self, *at, how=None):
        self.calls = []
        self._at = at
        self._how = how

    def on_task_begin(self, task, x, y):
        self.calls.append(["begin", task])

    def on_progress(self, task, done):
        self.calls.append([round(done, 3), task])
        if len(self.calls) in self._at:
            if self._how is None:
                self.trainer.stop()
            else:
                self._how()

    def on_task_end(self, task, results):
        self.calls.append(["end", task])

    def get_state(self):
        return AppendOnly(self.calls)

    def set_state(self, state):
        self.calls = list(state)


@pytest.fixture
def path(tmp_path, monkeypatch):
    # A few steps are one call of the compiled program.
    monkeypatch.setattr(online_trainer, "_FEWEST_STEPS", 1)
    monkeypatch.setattr(online_trainer, "_MOST_STEPS", 2)
    return str(tmp_path / "checkpoint.npz")


def fit(path=None, stopper=None, num_learners=3, resume=False, **kwargs):
    trainer = OnlineTrainer(
        lambda learner: build(
            seed=learner,
            metrics=["accuracy"],
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ),
        num_learners=num_learners,
    )
    stopper = stopper or Stopper()
    monitor = PlasticityMonitor(
        5, measures=["dead_units", "weight_change", "replaced_units"]
    )
    results = trainer.fit(
        lambda learner: AnyStream(num_tasks=2, seed=learner, classes=True),
        batch_size=2,
        epochs=2,
        callbacks=[stopper, monitor],
        checkpoint=path,
        resume=resume,
        **kwargs,
    )
    return results, trainer, stopper, monitor


def in_groups(monkeypatch):
    """Learners 0 and 1 train before learner 2."""
    monkeypatch.setattr(
        OnlineTrainer, "_group_sizes", lambda self, model, data: [2, 1]
    )


@pytest.mark.parametrize(
    ("at", "grouped"),
    mostly_slow(
        [
            (at, grouped)
            for at in ((2,), (4,), (6, 16), (8,), (3, 4, 5, 9))
            for grouped in (False, True)
        ],
        ((6, 16), False),
        # In the last epoch, of which the results are.
        ((8,), True),
    ),
    ids=str,
)
def test_resumed_equals_uninterrupted(path, monkeypatch, at, grouped):
    """Within an epoch, between epochs and tasks, more than once."""
    if grouped:
        in_groups(monkeypatch)
    expected, whole, calls, measured = fit()
    for number in at:
        stopped = fit(path, Stopper(number), resume=number != at[0])
        assert stopped[1].interrupted
    results, trainer, counted, monitor = fit(path, resume=True)
    assert not trainer.interrupted
    assert counted.calls == calls.calls
    assert results.keys() == expected.keys() and len(expected) == 4
    for name in results:
        np.testing.assert_array_equal(results[name], expected[name])
    assert monitor.history == measured.history
    for learner in range(3):
        model, other = trainer.model(learner), whole.model(learner)
        assert_same_weights(model, other, rtol=0)
        replaced = model.optimizer.num_replaced()
        assert replaced == other.optimizer.num_replaced()
        assert sum(replaced.values()) > 3


@pytest.mark.skipif(not _IS_JAX, reason="Elsewhere learners train in turn.")
def test_learners_in_turn_resume(path, monkeypatch):
    from keras_plasticity.training import jax_loop

    monkeypatch.setattr(jax_loop, "_MOST_WEIGHTS_SIDE_BY_SIDE", 0)
    test_resumed_equals_uninterrupted(path, monkeypatch, (4,), False)


@pytest.mark.slow
def test_groups_stay_as_they_were_within_a_task(path, monkeypatch):
    with monkeypatch.context() as patch:
        in_groups(patch)
        expected, *_ = fit()
        fit(path, Stopper(3))
    # Now there would be memory for all three side by side.
    results, trainer, *_ = fit(path, resume=True)
    assert [len(each.learners) for each in trainer._learners.groups] == [2, 1]
    for name in results:
        np.testing.assert_array_equal(results[name], expected[name])


def test_shorter_calls_after_the_interruption(path, monkeypatch):
    """The program need not be called for the same steps as before."""
    expected, *_ = fit()
    fit(path, Stopper(3))
    monkeypatch.setattr(online_trainer, "_MOST_STEPS", 3)
    results, *_ = fit(path, resume=True)
    for name in results:
        np.testing.assert_allclose(results[name], expected[name], rtol=1e-6)


@pytest.mark.slow
def test_a_checkpoint_within_a_task_from_time_to_time(path, monkeypatch):
    from keras_plasticity.training import saver

    monkeypatch.setattr(saver, "_SECONDS_WITHIN_TASK", 0.0)
    monkeypatch.setattr(saver, "_MAX_SHARE", float("inf"))
    expected, *_ = fit()

    def pull_the_plug():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(path, Stopper(5, how=pull_the_plug))
    results, trainer, *_ = fit(path, resume=True)
    assert trainer.resumed_from == 0
    for name in results:
        np.testing.assert_array_equal(results[name], expected[name])


@pytest.mark.slow
def test_stopped_in_the_last_call_a_run_is_finished(path):
    expected, _, stopper, _ = fit()
    last = len(stopper.calls) - 1
    results, trainer, *_ = fit(path, Stopper(last))
    assert not trainer.interrupted
    np.testing.assert_array_equal(results["loss"], expected["loss"])
    # Whoever goes on is not stopped by what was asked of the run before.
    trainer.fit(lambda learner: AnyStream(seed=learner, classes=True))
    assert not trainer.interrupted


def test_ctrl_c_ends_in_order_and_a_second_one_at_once(path):
    def ctrl_c():
        signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    _, trainer, *_ = fit(path, Stopper(3, how=ctrl_c))
    assert trainer.interrupted
    assert signal.getsignal(signal.SIGINT) is handler

    def twice():
        ctrl_c()
        ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        fit(stopper=Stopper(3, how=twice))
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_end_the_process_after_fit(number):
    program = """
        import os, signal
        from keras_plasticity.training.interruption import catch_signals
        signal.signal(NUMBER, signal.SIG_DFL)
        with catch_signals() as caught:
            with catch_signals() as inner:
                os.kill(os.getpid(), NUMBER)
            assert inner is caught
            assert caught.signal == NUMBER, caught.signal
            print("in order", flush=True)
        print("never", flush=True)
        """.replace("NUMBER", str(int(number)))
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert ended.stdout == "in order\n"
    assert ended.returncode == -number
    assert f"{number.name}: stopping" in ended.stderr


def test_signals_that_a_program_handles_are_its_own():
    received = []
    before = signal.signal(signal.SIGTERM, lambda *args: received.append(args))
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # As by `nohup`.
    try:
        with catch_signals() as caught:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
        assert caught.signal is None
        assert len(received) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGHUP, ignored)


def test_fit_in_a_thread_can_be_stopped(path):
    expected, *_ = fit()
    ended = []
    thread = threading.Thread(
        target=lambda: ended.append(fit(path, Stopper(4)))
    )
    thread.start()
    thread.join()
    assert ended[0][1].interrupted
    results, *_ = fit(path, resume=True)
    np.testing.assert_array_equal(results["loss"], expected["loss"])


def test_signals_within_a_call_of_the_device(path, monkeypatch):
    """On JAX a call delays Ctrl-C until its results are in their place."""
    if not _IS_JAX:
        pytest.skip("Elsewhere a call has nothing to put in place.")
    from keras_plasticity.training import jax_loop

    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    with catch_signals(raises=False) as caught:
        with jax_loop._interrupted_afterwards():
            signal.raise_signal(signal.SIGTERM)
        assert caught.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    for number, handler in before.items():
        assert signal.getsignal(number) is handler


def test_a_terminal_that_is_gone(monkeypatch):
    def write(number, text):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "write", write)
    with catch_signals(raises=False) as caught:
        signal.raise_signal(signal.SIGHUP)
    assert caught.signal == signal.SIGHUP


def test_a_signal_during_an_error_ends_the_process_too():
    program = """
        import os, signal
        from keras_plasticity.training.interruption import catch_signals
        try:
            with catch_signals():
                os.kill(os.getpid(), signal.SIGTERM)
                raise FloatingPointError
        except FloatingPointError:
            print("never")
        """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert ended.stdout == "" and ended.returncode == -signal.SIGTERM


def test_a_stop_that_comes_too_late_stops_nothing(path):
    trainer = OnlineTrainer(build())
    trainer.stop()
    stream = AnyStream(num_tasks=2)
    trainer.fit(stream)
    assert not trainer.interrupted
