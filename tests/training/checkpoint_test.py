import os
import pathlib
import socket

import keras
import numpy as np
import pytest

from keras_plasticity.training import OnlineTrainer
from keras_plasticity.training import TaskCallback
from keras_plasticity.training import checkpoint as checkpoints
from keras_plasticity.training import saver
from tests.helpers import assert_same_weights
from tests.training.online_trainer_test import ArrayStream
from tests.training.online_trainer_test import build

_IS_JAX = keras.backend.backend() == "jax"


class Counter(TaskCallback):
    """Counts tasks, and pulls the plug after some."""

    def __init__(self, stop_after=None):
        self.tasks = []
        self._stop_after = stop_after

    def on_task_begin(self, task, x, y):
        if len(self.tasks) == self._stop_after:
            raise InterruptedError("The plug is pulled.")

    def on_task_end(self, task, results):
        self.tasks.append(task)

    def get_state(self):
        return {"tasks": self.tasks}

    def set_state(self, state):
        self.tasks = state["tasks"]


class AnyStream(ArrayStream):
    """With test data, and an order for each epoch."""

    def test(self, index):
        return self.x[index][::2], self.y[index][::2]

    def order(self, index, epoch):
        rng = np.random.default_rng([index, epoch])
        return rng.permutation(len(self.x[index]))


def fit(
    path=None,
    stop_after=None,
    num_tasks=5,
    num_learners=2,
    callbacks_before=(),
    **kwargs,
):
    trainer = OnlineTrainer(
        lambda learner: build(seed=learner), num_learners=num_learners
    )
    counter = Counter(stop_after)
    arguments = dict(
        batch_size=2, epochs=2, num_tasks=num_tasks, checkpoint=path
    )
    results = trainer.fit(
        lambda learner: AnyStream(num_tasks=6, seed=learner),
        callbacks=[*callbacks_before, counter],
        **(arguments | kwargs),
    )
    return results, trainer, counter


@pytest.fixture
def path(tmp_path, monkeypatch):
    # Whatever a checkpoint costs, there is one after each task.
    monkeypatch.setattr(saver, "_MAX_SHARE", float("inf"))
    return str(tmp_path / "checkpoint.npz")


@pytest.mark.parametrize("most", [3000, 0] if _IS_JAX else [None])
def test_resumed_equals_uninterrupted(path, most, monkeypatch):
    if _IS_JAX:
        from keras_plasticity.training import jax_loop

        monkeypatch.setattr(jax_loop, "_MOST_WEIGHTS_SIDE_BY_SIDE", most)
    expected, whole, _ = fit()
    for stop_after in (2, 3):
        with pytest.raises(InterruptedError):
            fit(path, stop_after=stop_after, resume=stop_after == 3)
    results, trainer, counter = fit(path, resume=True)
    assert trainer.resumed_from == 3
    assert counter.tasks == list(range(5))
    assert set(results) == {"loss", "test_loss"}
    for name in results:
        np.testing.assert_array_equal(results[name], expected[name])
    for learner in range(2):
        replaced = whole.model(learner).optimizer.num_replaced()
        assert sum(replaced.values()) > 10
        assert trainer.model(learner).optimizer.num_replaced() == replaced
        state = trainer.model(learner).get_weights()
        for a, b in zip(state, whole.model(learner).get_weights()):
            np.testing.assert_array_equal(a, b)


def test_finished_run_gives_its_results_without_training(path):
    expected, whole, _ = fit(path)
    results, trainer, counter = fit(path, stop_after=5, resume=True)
    assert trainer.resumed_from is None
    assert counter.tasks == list(range(5))
    np.testing.assert_array_equal(results["loss"], expected["loss"])
    assert_same_weights(trainer.model(1), whole.model(1), rtol=0)


@pytest.mark.slow
def test_finished_run_can_be_made_longer(path):
    expected, _, _ = fit(num_tasks=6)
    fit(path)
    results, trainer, _ = fit(path, num_tasks=6, resume=True)
    assert trainer.resumed_from == 5
    np.testing.assert_array_equal(results["loss"], expected["loss"])


def test_nothing_to_resume_is_a_new_run(path, caplog):
    results, trainer, _ = fit(path, num_tasks=1, resume=True)
    (said,) = [each for each in caplog.records if path in each.getMessage()]
    assert said.levelname == "WARNING"
    assert trainer.resumed_from is None
    assert results["loss"].shape == (1, 2)


@pytest.mark.slow
def test_time_spent_counts_on(path):
    _, before, _ = fit(path, num_tasks=3)
    _, after, _ = fit(path, resume=True)
    assert after.train_seconds > before.train_seconds > 0


@pytest.mark.slow
def test_checkpoints_take_a_small_part_of_the_time(path, monkeypatch):
    monkeypatch.setattr(saver, "_MAX_SHARE", 1e-9)
    saved = []
    monkeypatch.setattr(
        checkpoints.Checkpoint,
        "save",
        lambda self, path, journal, is_old_whole: saved.append(self.tasks_done),
    )
    fit(path)
    # The first tells what one costs; the last is always there.
    assert saved == [1, 5]


@pytest.mark.slow
def test_interrupted_save_leaves_the_checkpoint_before_it(path, monkeypatch):
    fit(path, num_tasks=2)
    before = pathlib.Path(path).read_bytes()

    def savez(file, **arrays):
        file.write(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", savez)
        _, trainer, _ = fit(path, num_tasks=3, resume=True)
    assert trainer.interrupted
    assert pathlib.Path(path).read_bytes() == before
    results, _, _ = fit(path, num_tasks=3, resume=True)
    np.testing.assert_array_equal(results["loss"], fit(num_tasks=3)[0]["loss"])


def test_what_a_killed_save_left_is_removed(path):
    left = f"{path}.{socket.gethostname()}.999999999.0.tmp"
    with open(left, "wb") as file:
        file.write(b"half of it" * 1000)
    fit(path, num_tasks=1)
    assert sorted(os.listdir(os.path.dirname(path))) == [
        "checkpoint.npz",
        "checkpoint.npz.journal.jsonl",
    ]
    assert checkpoints.num_tasks_done(path) == 1


def test_bfloat16_variables_are_kept(path):
    values = keras.ops.cast([0.1, 3.0], "bfloat16")
    arrays = [keras.ops.convert_to_numpy(values)]
    identity = {name: {} for name in ("data", "model", "versions")}
    identity |= {name: [] for name in ("variables", "learners")}
    checkpoints.Checkpoint(
        settings={},
        identity=identity,
        tasks_done=0,
        results=[],
        state=arrays,
        callbacks=[],
        train_seconds=0.0,
        compile_seconds=0.0,
        jit_compile=False,
        group_sizes=[1],
    ).save(path, checkpoints.journal_of(path))
    loaded, _ = checkpoints.load(path, checkpoints.journal_of(path))
    (loaded,) = loaded.state
    np.testing.assert_array_equal(loaded, arrays[0].astype("float32"))


def test_existing_checkpoint_is_not_overwritten(path):
    fit(path, num_tasks=1)
    with pytest.raises(FileExistsError, match="Set `resume=True` to resume"):
        fit(path)


def test_other_settings_are_refused(path):
    fit(path, num_tasks=2)
    for changed, message in (
        (dict(batch_size=5), "batch_size: 2 there, 5 here"),
        (dict(epochs=1), "epochs: 2 there, 1 here"),
        (dict(first_task=1), "first_task: 0 there, 1 here"),
        (dict(num_learners=1), "num_learners: 2 there, 1 here"),
        (dict(num_tasks=1), "2 tasks are done. Received: num_tasks=1"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(path, resume=True, **changed)


def test_other_model_is_refused(path):
    OnlineTrainer(build()).fit(ArrayStream(), checkpoint=path)
    trainer = OnlineTrainer(build(method="bp"))
    with pytest.raises(
        ValueError, match="to another run.*which differs in .*optimizer"
    ):
        trainer.fit(ArrayStream(), checkpoint=path, resume=True)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 half"])
def test_damaged_file_is_an_error(path, content):
    with open(path, "wb") as file:
        file.write(content)
    with pytest.raises(ValueError, match="Remove it to start afresh"):
        fit(path, resume=True)


def test_resume_without_a_file_name_is_an_error():
    with pytest.raises(ValueError, match="resume=True, checkpoint=None"):
        fit(resume=True)
