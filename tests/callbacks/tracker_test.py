"""Callbacks that hand metrics to other programs, by what arrives there."""

import csv
import math
import time

import keras
import numpy as np
import pytest

from keras_plasticity import callbacks
from keras_plasticity.callbacks import tracker as tracker_module
from keras_plasticity.training import OnlineTrainer
from tests.helpers import make_data
from tests.helpers import make_model
from tests.training.online_trainer_test import ArrayStream
from tests.training.online_trainer_test import build


def read(path):
    """The rows of a CSV file, blank cells left out."""
    with open(path, newline="") as file:
        return [
            {name: float(cell) for name, cell in row.items() if cell}
            for row in csv.DictReader(file)
        ]


def fit(tracker, epochs, runs=1):
    model = make_model((4, 6, 3), layer=keras.layers.Dense)
    model.compile("sgd", "mse", run_eagerly=True)
    x, y = make_data(8, (4, 3))
    return [
        loss
        for _ in range(runs)
        for loss in model.fit(
            x, y, epochs=epochs, verbose=0, callbacks=[tracker]
        ).history["loss"]
    ]


def test_csv_of_several_fits(tmp_path):
    path = tmp_path / "new" / "metrics.csv"
    tracker = callbacks.CSVTracker(path)
    losses = fit(tracker, epochs=2, runs=2)
    assert read(path) == [
        {"step": step, "loss": pytest.approx(loss)}
        for step, loss in enumerate(losses)
    ]
    # Of another run.
    fit(callbacks.CSVTracker(path), epochs=1)
    assert len(read(path)) == 1


def train(tracker, num_tasks, **arguments):
    trainer = OnlineTrainer(
        lambda learner: build(seed=learner, method="bp"), num_learners=3
    )
    return trainer.fit(
        lambda learner: ArrayStream(seed=learner, num_tasks=4),
        num_tasks=num_tasks,
        batch_size=5,
        callbacks=[tracker],
        **arguments,
    )


def test_csv_of_the_engine_is_resumed(tmp_path):
    path, checkpoint = tmp_path / "metrics.csv", str(tmp_path / "a.npz")
    train(callbacks.CSVTracker(path), 2, checkpoint=checkpoint)
    with open(path, "a") as file:
        file.write("7,half a line of a run that was killed")
    results = train(
        callbacks.CSVTracker(path), 4, checkpoint=checkpoint, resume=True
    )
    errors = results["loss"].std(axis=1, ddof=1) / math.sqrt(3)
    assert read(path) == [
        {
            "step": task,
            "loss": pytest.approx(results["loss"][task].mean()),
            "loss_standard_error": pytest.approx(errors[task]),
            "learners": 3,
        }
        for task in range(4)
    ]


def test_csv_of_learners_that_diverge(tmp_path):
    path = tmp_path / "metrics.csv"
    tracker = callbacks.CSVTracker(path)
    for task, losses in enumerate(
        ([1.0, 3.0], [5.0, math.nan], [math.inf, math.nan])
    ):
        tracker.on_task_end(task, {"loss": np.array(losses)})
    first, second, third = read(path)
    assert first["loss"] == 2.0
    assert first["loss_standard_error"] == pytest.approx(1.0)
    assert second["loss"] == 5.0 and second["learners"] == 1
    assert math.isnan(second["loss_standard_error"])
    assert math.isnan(third["loss"]) and third["learners"] == 0


def test_csv_of_new_columns_and_of_a_disk_that_was_full(tmp_path, monkeypatch):
    path = tmp_path / "metrics.csv"
    tracker = callbacks.CSVTracker(str(path))
    tracker.log({"a": 1}, step=0)
    tracker.log({"b": 2.5}, step=3)
    assert read(path) == [{"step": 0, "a": 1}, {"step": 3, "b": 2.5}]

    def fail(*_):
        raise OSError("No space left")

    with monkeypatch.context() as patch:
        patch.setattr(tracker, "_writer", fail)
        with pytest.raises(OSError):
            tracker.log({"a": 7}, step=4)
    tracker.log({"a": 8}, step=5)
    assert [row["step"] for row in read(path)] == [0, 3, 4, 5]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1], "`values` must be a dict"),
        ({"a": "high"}, "must be a dict of numbers"),
        ({1: 2.0}, "`values` must be a string"),
    ],
)
def test_what_is_no_number(values, message, tmp_path):
    tracker = callbacks.CSVTracker(str(tmp_path / "metrics.csv"))
    with pytest.raises(ValueError, match=message):
        tracker.log(values, step=0)


@pytest.mark.parametrize(
    ("make", "package"),
    [(callbacks.MLflowTracker, "mlflow"), (callbacks.WandbTracker, "wandb")],
)
def test_a_package_that_is_missing_is_told_at_once(make, package, monkeypatch):
    monkeypatch.setattr(
        tracker_module.importlib.util, "find_spec", lambda name: None
    )
    with pytest.raises(
        ImportError,
        match=rf"{make.__name__}` needs {package}: pip .*\[{package}\]",
    ):
        make("tests")


@pytest.mark.parametrize("state", [None, {}, {"run_id": 3, "last_step": 0}])
def test_a_state_that_is_none(state, monkeypatch):
    monkeypatch.setattr(
        tracker_module.importlib.util, "find_spec", lambda name: True
    )
    with pytest.raises(ValueError, match="`state` must be"):
        callbacks.MLflowTracker("tests").set_state(state)


@pytest.fixture
def mlflow_client(tmp_path, monkeypatch):
    mlflow = pytest.importorskip(
        "mlflow", reason="needs mlflow: pip install -e '.[mlflow]'"
    )
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return mlflow.MlflowClient(f"file:{tmp_path}/runs")


def test_mlflow(mlflow_client, tmp_path):
    arguments = dict(
        experiment="tests",
        run_name="bp",
        settings={"learning_rate": 0.5, "momentum": None},
        tracking_uri=f"file:{tmp_path}/runs",
    )
    checkpoint = str(tmp_path / "a.npz")
    tracker = callbacks.MLflowTracker(**arguments)
    train(tracker, 2, checkpoint=checkpoint)
    tracker = callbacks.MLflowTracker(**arguments)
    results = train(tracker, 4, checkpoint=checkpoint, resume=True)
    losses = fit(callbacks.MLflowTracker(**arguments), epochs=2, runs=2)
    experiment = mlflow_client.get_experiment_by_name("tests").experiment_id
    of_fit, of_engine = mlflow_client.search_runs([experiment])
    for run, values in (
        (of_engine, results["loss"].mean(axis=1)),
        (of_fit, losses),
    ):
        history = mlflow_client.get_metric_history(run.info.run_id, "loss")
        assert [each.step for each in history] == [0, 1, 2, 3]
        np.testing.assert_allclose([m.value for m in history], values)
        assert run.info.status == "FINISHED"
        assert run.info.run_name == "bp"
        assert run.data.params == {"learning_rate": "0.5", "momentum": "None"}
    assert of_engine.data.metrics["learners"] == 3


class FakeRun:
    """What wandb returns, without its second process."""

    def __init__(self, **arguments):
        self.arguments = arguments
        self.id = arguments["id"] or "made up"
        self.logged = []
        self.is_finished = False

    def log(self, numbers, step):
        self.logged.append((step, numbers["loss"]))

    def finish(self):
        self.is_finished = True


def test_wandb(monkeypatch, tmp_path):
    wandb = pytest.importorskip(
        "wandb", reason="needs wandb: pip install -e '.[wandb]'"
    )
    monkeypatch.delenv("WANDB_MODE", raising=False)
    runs = []

    def init(**arguments):
        runs.append(FakeRun(**arguments))
        return runs[-1]

    monkeypatch.setattr(wandb, "init", init)
    tracker = callbacks.WandbTracker("tests", "bp", {"seed": 3}, tmp_path)
    losses = fit(tracker, epochs=2, runs=2)
    first, second = runs
    assert [*first.logged, *second.logged] == list(enumerate(losses))
    assert first.is_finished and second.is_finished
    # The second `fit` continues the run.
    assert first.arguments["id"] is None and second.arguments["id"] == "made up"
    for name, value in (
        ("project", "tests"),
        ("name", "bp"),
        ("config", {"seed": 3}),
        ("dir", str(tmp_path)),
        ("mode", "offline"),
        ("resume", "allow"),
    ):
        assert second.arguments[name] == value


@pytest.mark.slow
def test_wandb_offline(tmp_path):
    """The program itself, which writes a file."""
    pytest.importorskip(
        "wandb", reason="needs wandb: pip install -e '.[wandb]'"
    )
    tracker = callbacks.WandbTracker("tests", log_dir=tmp_path)
    tracker.log({"loss": 0.123456789}, step=0)
    tracker.on_train_end()
    [file] = tmp_path.rglob("offline-run-*/run-*.wandb")
    # Its own process writes it, up to a second after `finish` has returned.
    for _ in range(100):
        if b"0.123456789" in file.read_bytes():
            return
        time.sleep(0.2)
    pytest.fail(f"{file} holds {file.read_bytes()}")
