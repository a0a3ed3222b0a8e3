"""A checkpoint is resumed by the run that it is of, and by no other."""

import json
import os
import shutil

import keras
import numpy as np
import pytest
from absl import logging

import keras_plasticity
from keras_plasticity.callbacks import ShrinkAndPerturbTasks
from keras_plasticity.callbacks import ZeroWeights
from keras_plasticity.training import CheckpointError
from keras_plasticity.training import OnlineTrainer
from keras_plasticity.training import TaskCallback
from keras_plasticity.training import checkpoint as checkpoints
from keras_plasticity.training import run_identity
from tests.helpers import make_model
from tests.helpers import mostly_slow
from tests.training.checkpoint_test import AnyStream

pytestmark = pytest.mark.usefixtures("fast_compilation")


def cbp(inner=None, **kwargs):
    arguments = dict(replacement_rate=0.1, seed=1) | kwargs
    return keras_plasticity.optimizers.ContinualBackprop(
        inner or keras.optimizers.RMSprop(0.01), **arguments
    )


def build(
    optimizer=cbp,
    loss=lambda: "mse",
    metrics=lambda: None,
    activation="relu",
    seed=None,
    initializer=keras.initializers.HeNormal,
):
    model = make_model((4, 6, 5, 3), activation=activation)
    model.layers[0].kernel_initializer = initializer(seed)
    model.compile(optimizer=optimizer(), loss=loss(), metrics=metrics())
    return model


def fit(path, resume=False, stream=None, learners=None, callbacks=(), **kwargs):
    if learners is None:
        trainer = OnlineTrainer(build(**kwargs))
        stream = stream or AnyStream(num_tasks=2)
    else:
        trainer = OnlineTrainer(
            lambda learner: build(**learners[learner]), len(learners)
        )
        stream = lambda learner: AnyStream(num_tasks=2, seed=learner)  # noqa: E731
    trainer.fit(
        stream,
        num_tasks=2 if resume else 1,
        batch_size=2,
        callbacks=callbacks,
        checkpoint=path,
        resume=resume,
    )
    return trainer


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "checkpoint.npz")


class Scaled(keras.losses.Loss):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def call(self, y_true, y_pred):
        return self.scale * keras.ops.mean((y_true - y_pred) ** 2, axis=-1)


def huber(delta):
    return lambda: keras.losses.Huber(delta=delta)


def of_rho(rho):
    return cbp(keras.optimizers.RMSprop(0.01, rho=rho))


_RMSPROP = keras.optimizers.RMSprop


def of_gain(gain):
    def orthogonal(seed):
        return keras.initializers.Orthogonal(gain, seed)

    return {"optimizer": _RMSPROP, "initializer": orthogonal}


_OTHER_RUNS = [
    (
        {},
        {"optimizer": lambda: cbp(keras.optimizers.RMSprop(0.02))},
        r"optimizer\.\S*learning_rate=0.01 there and 0.02 here",
    ),
    (
        {},
        {"optimizer": lambda: cbp(keras.optimizers.RMSprop(0.01, rho=0.5))},
        "rho=0.9 there and 0.5 here",
    ),
    (
        {"optimizer": lambda: keras.optimizers.RMSprop(0.01)},
        {"optimizer": lambda: keras.optimizers.SGD(0.01, momentum=0.9)},
        "optimizer='?RMSprop'? there and '?SGD'? here",
    ),
    (
        {"optimizer": lambda: keras.optimizers.Adam(0.01)},
        {"optimizer": lambda: keras.optimizers.AdamW(0.01)},
        "optimizer='?Adam'? there and '?AdamW'? here",
    ),
    (
        {},
        {"optimizer": lambda: cbp(replacement_rate=0.2)},
        "replacement_rate=0.1 there and 0.2 here",
    ),
    ({}, {"optimizer": lambda: cbp(seed=2)}, "seed=1 there and 2 here"),
    ({}, {"activation": "tanh"}, "activation='relu' there and 'tanh' here"),
    ({}, {"loss": lambda: "mae"}, "loss='mse' there and 'mae' here"),
    ({"loss": huber(1.0)}, {"loss": huber(0.5)}, "delta=1.0 there and 0.5"),
    (
        {"loss": lambda: Scaled(1.0)},
        {"loss": lambda: Scaled(2.0)},
        "scale=1.0 there and 2.0 here",
    ),
    ({}, {"metrics": lambda: ["mae"]}, "metrics"),
    ({"seed": 1}, {"seed": 2}, "kernel_initializer.seed=1 there and 2 h"),
    ({}, {"stream": AnyStream(num_tasks=2, seed=1)}, "x of task 0: .*chec"),
    (
        {},
        {"stream": AnyStream(num_tasks=2, examples=12)},
        r"x of task 0: float32 \(1, 10, 4\) .*, float32 \(1, 12, 4\)",
    ),
    (
        {"learners": [{}, {}]},
        {"learners": [{}, {"optimizer": lambda: cbp(seed=3)}]},
        "learner 1 differs from learner 0 by .*: optimizer.seed=that of "
        "learner 0 there and 3 here",
    ),
    (
        {"learners": [{}, {"optimizer": lambda: of_rho(0.5)}]},
        {"learners": [{}, {"optimizer": lambda: of_rho(0.6)}]},
        "learner 1 .*: optimizer.inner_optimizer.rho=0.5 there and 0.6 here",
    ),
    (
        {"learners": [{"optimizer": _RMSPROP}, of_gain(0.5)]},
        {"learners": [{"optimizer": _RMSPROP}, of_gain(0.6)]},
        "learner 1 .*kernel_initializer.gain=0.5 there and 0.6 here",
    ),
    (
        {"callbacks": [ZeroWeights(["layer_0"])]},
        {"callbacks": [ZeroWeights(["layer_1"])]},
        "callbacks: .*layer_0.* there, .*layer_1.* here",
    ),
    (
        {"callbacks": [ShrinkAndPerturbTasks(lambda a, b: build())]},
        {"callbacks": [ShrinkAndPerturbTasks(lambda a, b: build(), 0.3)]},
        "callbacks: .*0.2.* there, .*0.3.* here",
    ),
]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    # What differs does not depend on the backend.
    mostly_slow(_OTHER_RUNS, _OTHER_RUNS[0], *_OTHER_RUNS[14:16]),
)
def test_another_run_is_refused(path, before, after, message, monkeypatch):
    if "callbacks" in before:  # The names of layers.
        monkeypatch.setattr(ZeroWeights, "on_task_begin", lambda *args: None)
    fit(path, **before)
    with pytest.raises(CheckpointError, match=message):
        fit(path, resume=True, **(before | after))
    fit(path, resume=True, **before)  # The file is as it was.


class Order(AnyStream):
    def order(self, index, epoch):
        return np.arange(len(self.x[index]))


def test_another_order_of_the_examples_is_refused(path):
    fit(path)
    with pytest.raises(CheckpointError, match="order of task 0: int"):
        fit(path, resume=True, stream=Order(num_tasks=2))


def test_names_and_functions_may_differ(path):
    """Keras numbers names, and a lambda may stand on another line."""
    fit(path, metrics=lambda: [lambda a, b: keras.ops.mean(a - b)])
    build()
    resumed = fit(
        path,
        resume=True,
        metrics=lambda: [lambda a, b: keras.ops.mean(a - b)],
    )
    assert resumed.resumed_from == 1


def test_the_same_trainer_resumes(path):
    """Its models have been trained, and on JAX are one model by now."""

    class Slower(TaskCallback):
        def on_task_begin(self, task, x, y):
            for learner in range(2):
                with self.trainer.edit(learner) as model:
                    model.optimizer.learning_rate = 0.001

    trainer = OnlineTrainer(lambda learner: build(seed=learner), 2)
    arguments = dict(callbacks=[Slower()], checkpoint=path)

    def stream(learner):
        return AnyStream(num_tasks=2, seed=learner)

    trainer.fit(stream, num_tasks=1, **arguments)
    trainer.fit(stream, **arguments, resume=True)
    assert trainer.resumed_from == 1


def test_after_a_build_that_has_failed(path):
    """What it has noted of the first models is forgotten."""
    fails = [True]

    def build_model(learner):
        if learner == 1 and fails:
            raise ZeroDivisionError
        return build(optimizer=lambda: cbp(seed=learner))

    def stream(learner):
        return AnyStream(num_tasks=2, seed=learner)

    trainer = OnlineTrainer(build_model, 2)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(stream, num_tasks=1, checkpoint=path)
    fails.clear()
    trainer.fit(stream, num_tasks=1, checkpoint=path)
    again = OnlineTrainer(build_model, 2)
    again.fit(stream, checkpoint=path, resume=True)
    assert again.resumed_from == 1


def test_two_checkpoints_in_one_folder(tmp_path):
    paths = [str(tmp_path / name) for name in ("rate-0.01", "rate-0.001")]
    for path in paths:
        fit(path)
    for path in paths:
        fit(path, resume=True)


def test_seeds_that_keras_draws_may_differ(path):
    def trainer():
        inputs = keras.Input((4,))
        x = keras.layers.Reshape((2, 2, 1))(inputs)
        x = keras.layers.Flatten()(keras.layers.RandomCrop(2, 2)(x))
        name = f"head_{np.random.randint(10**9)}"
        model = keras.Model(inputs, keras.layers.Dense(3, name=name)(x))
        model.compile("sgd", {model.output_names[0]: "mse"})
        return OnlineTrainer(model)

    stream = AnyStream(num_tasks=2)
    trainer().fit(stream, num_tasks=1, checkpoint=path)
    np.random.seed(1)
    trainer().fit(stream, checkpoint=path, resume=True)


def test_a_config_of_tuples(path):
    class Tuples(TaskCallback):
        def get_config(self):
            return {"a": (1, 2), "b": float("nan")}

    fit(path, callbacks=[Tuples()])
    fit(path, resume=True, callbacks=[Tuples()])


def test_a_model_without_a_config_resumes(path):
    class Own(keras.layers.Layer):
        def __init__(self, size):
            super().__init__()
            self.inner = keras.layers.Dense(size)

        def get_config(self):
            raise NotImplementedError

        def call(self, x):
            return self.inner(x)

    def trainer(size, rate=0.01):
        model = keras.Sequential(
            [keras.Input((4,)), Own(size), keras.layers.Dense(3)]
        )
        model.compile(keras.optimizers.SGD(rate), "mse")
        return OnlineTrainer(model)

    stream = AnyStream(num_tasks=2)
    trainer(5).fit(stream, num_tasks=1, checkpoint=path)
    with pytest.raises(CheckpointError, match="0.01 there and 0.5 here"):
        trainer(5, rate=0.5).fit(stream, checkpoint=path, resume=True)
    with pytest.raises(CheckpointError, match=r"variables.*\(4, 5\).*\(4, 6\)"):
        trainer(6).fit(stream, checkpoint=path, resume=True)
    trainer(5).fit(stream, checkpoint=path, resume=True)


def test_other_versions_are_a_warning(path, monkeypatch, caplog):
    fit(path)
    versions = run_identity.versions()
    monkeypatch.setattr(
        run_identity, "versions", lambda: versions | {"keras": "4.0"}
    )
    with caplog.at_level(logging.WARNING):
        fit(path, resume=True)
    (said,) = [r.getMessage() for r in caplog.records if path in r.getMessage()]
    assert f"keras {versions['keras']} there, 4.0 here" in said


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    fit(str(folder / "checkpoint.npz"))
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "copied")
    return str(folder / "checkpoint.npz")


def rewrite(path, change):
    """Rewrites a checkpoint with another header."""
    with np.load(path) as arrays:
        header = json.loads(bytes(arrays["header"]))
        rest = {n: arrays[n] for n in arrays.files if n != "header"}
    header = change(header)
    encoded = header if isinstance(header, bytes) else json.dumps(header)
    encoded = encoded if isinstance(encoded, bytes) else encoded.encode()
    np.savez(path, header=np.frombuffer(encoded, "uint8"), **rest)


def changed(*where, value):
    def change(header):
        *path, last = where
        place = header
        for key in path:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
        return header

    return change


@pytest.mark.parametrize(
    "change",
    [
        changed("format", value=1),
        changed("format", value=None),
        changed("content", value=[]),
        changed("content", value=None),
        changed("journal", value=None),
        changed("journal", "bytes", value=-1),
        changed("journal", "bytes", value=10**12),
        changed("journal", "checksum", value=7),
        changed("journal", "names", value=[]),
        changed("content", "tasks_done", value=-1),
        changed("content", "tasks_done", value=5),
        changed("content", "tasks_done", value=True),
        changed("content", "tasks_done", value="1"),
        changed("content", "train_seconds", value="long"),
        changed("content", "train_seconds", value=-1.0),
        changed("content", "train_seconds", value=float("nan")),
        changed("content", "settings", value=[]),
        changed("content", "identity", value={}),
        changed("content", "identity", "versions", value=None),
        changed("content", "identity", "versions", value=3),
        changed("content", "identity", "data", value=[]),
        changed("content", "identity", "learners", value=3),
        changed("content", "identity", "learners", value=["a"]),
        changed("content", "callbacks", value=[1]),
        changed("content", "results", value=[1]),
        changed("content", "results", value=[{"loss": ["a"]}]),
        changed("content", "results", value={"loss": []}),
        changed("content", "state", value=[1, 2]),
        changed("content", "state", value={"__array__": 0}),
        changed("content", "state", 0, value={"__array__": 99}),
        changed("content", "state", 0, value={"__array__": 1}),
        changed("content", "callbacks", value=None),
        changed("content", "jit_compile", value="perhaps"),
        changed("content", "group_sizes", value=["a"]),
        changed("content", "position", value={"group": 1}),
        changed("content", "more", value=1),
        lambda header: b"[" * 100_000,
        lambda header: b"{} and more",
        lambda header: [],
        lambda header: None,
    ],
)
def test_a_doctored_header_is_one_clear_error(copied, change):
    path = copied
    rewrite(path, change)
    with pytest.raises(
        CheckpointError, match=r"checkpoint=\S*npz|checkpoint has"
    ):
        fit(path, resume=True)


@pytest.mark.parametrize(
    "position",
    [
        {"group": 1, "epoch": 0, "steps": 1, "parts": [{}], "metrics": []},
        {"group": 0, "epoch": 3, "steps": 1, "parts": [], "metrics": []},
        {"group": 0, "epoch": 0, "steps": 1, "parts": [], "metrics": []},
        {"group": 0, "epoch": 0, "steps": -1, "parts": [], "metrics": []},
    ],
)
def test_a_position_that_cannot_be(copied, position):
    path = copied
    rewrite(path, changed("content", "position", value=position))
    with pytest.raises(CheckpointError):
        fit(path, resume=True)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    path, monkeypatch, caplog
):
    from keras_plasticity.training import saver

    monkeypatch.setattr(saver, "_MAX_SHARE", float("inf"))
    stream = AnyStream(num_tasks=3)
    whole = OnlineTrainer(build(seed=1))
    expected = whole.fit(stream)
    OnlineTrainer(build(seed=1)).fit(stream, num_tasks=2, checkpoint=path)
    with open(path, "r+b") as file:
        file.seek(-200, 2)
        file.write(b"\0" * 50)
    trainer = OnlineTrainer(build(seed=1))
    with caplog.at_level(logging.WARNING):
        results = trainer.fit(stream, checkpoint=path, resume=True)
    assert trainer.resumed_from == 1
    assert (
        f"before it, {checkpoints.previous(path)}, with 1 task" in caplog.text
    )
    np.testing.assert_array_equal(results["loss"], expected["loss"])


def test_a_journal_that_is_damaged_or_gone(path):
    fit(path)
    journal = f"{path}.journal.jsonl"
    with open(journal, "rb") as file:
        content = file.read()
    with open(journal, "wb") as file:
        file.write(content.replace(b"loss", b"lots"))
    with pytest.raises(CheckpointError, match="journal.jsonl is damaged"):
        fit(path, resume=True)
    with open(journal, "wb") as file:
        file.write(content + b"what a later checkpoint was about to add")
    fit(path, resume=True)


def test_killed_between_two_renames(path):
    fit(path)
    os.replace(path, checkpoints.previous(path))
    assert checkpoints.num_tasks_done(path) == 1
    with pytest.raises(FileExistsError, match="checkpoint.previous.npz"):
        fit(path)
    fit(path, resume=True)
