"""Runs the trainers with tiny settings, on the real data."""

import json
import sys

import keras
import numpy as np
import pytest
from absl import flags
from tensorboard.backend.event_processing import event_accumulator

from keras_plasticity import datasets
from keras_plasticity import experiments
from keras_plasticity import streams
from tests.data_sets import data_dir
from tests.data_sets import tensorflow_datasets
from tests.examples.trainers import load
from tests.examples.trainers import parse
from tests.examples.trainers import run

_TINY = [
    "--num_tasks=2",
    "--examples_per_task=150",
    "--hidden_units=16",
    "--num_hidden_layers=2",
    "--learning_rate=0.01",
]
_HIDDEN = ["hidden_1", "hidden_2"]


@pytest.fixture(scope="module")
def trainer():
    return load("online_permuted_mnist")


@pytest.fixture(scope="module")
def mnist():
    return datasets.load_mnist(data_dir("mnist"))


@pytest.fixture
def loaded(trainer, mnist, monkeypatch):
    """The trainer, with data that need not be read again for each run."""
    monkeypatch.setattr(trainer.datasets, "load_mnist", lambda data_dir: mnist)
    return trainer


def read_events(log_dir):
    """Steps of each tag of the one event file in a folder."""
    events = event_accumulator.EventAccumulator(str(log_dir))
    events.Reload()
    return {
        tag: [event.step for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }


def accuracies(summary):
    [run] = summary["runs"]
    return [record["online_accuracy"] for record in run["per_task"]]


# Of the table HParams.
_ROW = ("_hparams_/session_start_info", "_hparams_/session_end_info")


def scalar_tags():
    per_hidden_layer = [
        f"{tag}/{layer}"
        for tag in ("units/dead", "representation/effective_rank")
        for layer in _HIDDEN
    ]
    return {
        "flags",
        *_ROW,
        "against_tasks/online_accuracy",
        "metrics/loss",
        "against_updates/online_accuracy",
        "band/online_accuracy_lower",
        "band/online_accuracy_upper",
        *(f"weights/magnitude/{x}" for x in [*_HIDDEN, "output"]),
        "all_layers/dead_units",
        "all_layers/effective_rank",
        "all_layers/weight_magnitude",
        *per_hidden_layer,
    }


def test_cbp_writes_summary_events_and_table(loaded, tmp_path, capsys):
    summary = run(
        loaded,
        tmp_path,
        *_TINY,
        "--method=cbp",
        "--replacement_rate=0.01",
        "--maturity_threshold=20",
    )
    assert summary["problem"] == "online_permuted_mnist"
    assert summary["backend"] == keras.backend.backend()
    assert summary["flags"]["replacement_rate"] == 0.01
    assert "utility" not in summary["flags"]  # It was not given.
    [record] = summary["runs"]
    # With a single method its entry is that of the run, too.
    for name in record.keys() - {"settings"}:
        assert summary[name] == record[name]
    assert record["method"] == "cbp"
    assert record["settings"]["replacement_rate"] == 0.01
    assert record["settings"]["utility"] == "overall"
    assert record["num_learners"] == 1
    assert record["steps_per_learner"] == 300
    assert record["train_seconds"] > 0
    assert record["compile_seconds"] > 0
    assert record["learner_steps_per_second"] == pytest.approx(
        300 / record["train_seconds"]
    )
    assert [task["task"] for task in record["per_task"]] == [0, 1]
    for task in record["per_task"]:
        assert 0 < task["online_accuracy"] < 1
        assert task["loss"] > 0
        for key in ("dead_units", "effective_rank", "replaced_units"):
            assert list(task[key]) == [*_HIDDEN, "total"]
        assert list(task["weight_magnitude"]) == [*_HIDDEN, "output", "total"]
        assert all(1 < r <= 16 for r in task["effective_rank"].values())
    # 16 units of age 21 to 150 in the first task, with replaced ones younger.
    replaced = record["per_task"][0]["replaced_units"]
    assert all(10 <= replaced[layer] <= 20 for layer in _HIDDEN)

    events = read_events(tmp_path / "cbp")
    histograms = {f"{n}/{h}" for n in ("utility", "age") for h in _HIDDEN}
    replaced = {f"units/replaced/{h}" for h in _HIDDEN}
    replaced.add("all_layers/replaced_units")
    assert set(events) == scalar_tags() | histograms | replaced
    for tag in ("flags", *_ROW):
        assert events.pop(tag) == [0]
    assert events.pop("against_updates/online_accuracy") == [150, 300]
    assert all(steps == [0, 1] for steps in events.values())

    output = capsys.readouterr().out
    assert f"backend {keras.backend.backend()} on " in output
    assert "--replacement_rate=0.01" in output
    assert "2.0/2 tasks" in output
    assert "replaced" in output
    for ending in ("png", "svg"):
        assert (tmp_path / f"online_permuted_mnist.{ending}").exists()


def test_bp_writes_the_same_without_histograms(loaded, tmp_path):
    summary = run(loaded, tmp_path, *_TINY, "--method=bp")
    [record] = summary["runs"]
    assert record["method"] == "bp"
    assert "replacement_rate" not in record["settings"]
    assert set(read_events(tmp_path / "bp")) == scalar_tags()


def test_labels_are_permuted(loaded, tmp_path):
    summary = run(loaded, tmp_path, *_TINY, "--method=bp", "--permute=labels")
    assert summary["problem"] == "label_permuted_mnist"
    assert summary["title"].startswith("Label-Permuted MNIST")
    assert len(accuracies(summary)) == 2
    assert (tmp_path / "label_permuted_mnist.png").exists()
    assert summary["runs"][0]["published"] == []


def test_without_diagnostics(loaded, tmp_path):
    summary = run(loaded, tmp_path, *_TINY, "--method=bp", "--nodiagnostics")
    [record] = summary["runs"]
    assert not any("dead_units" in task for task in record["per_task"])


@pytest.mark.slow
@pytest.mark.long
def test_the_seed_decides_the_run(loaded, tmp_path):
    arguments = [*_TINY, "--method=cbp", "--replacement_rate=0.01"]
    first = run(loaded, tmp_path / "a", *arguments)
    again = run(loaded, tmp_path / "b", *arguments)
    other = run(loaded, tmp_path / "c", *arguments, "--seed=1")
    assert accuracies(first) == accuracies(again)
    assert accuracies(first) != accuracies(other)


def test_without_replacement_cbp_is_bp(loaded, tmp_path):
    cbp = run(
        loaded, tmp_path / "a", *_TINY, "--method=cbp", "--replacement_rate=0"
    )
    bp = run(loaded, tmp_path / "b", *_TINY, "--method=bp")
    assert accuracies(cbp) == accuracies(bp)


@pytest.mark.slow
def test_a_last_batch_that_is_not_whole(loaded, tmp_path):
    summary = run(loaded, tmp_path, *_TINY, "--method=cbp", "--batch_size=40")
    assert summary["runs"][0]["steps_per_learner"] == 2 * 4


def test_online_accuracy_is_measured_before_each_update(loaded, tmp_path):
    """Against a loop that predicts, scores and only then trains."""
    arguments = [*_TINY, "--method=bp", "--examples_per_task=100"]
    summary = run(loaded, tmp_path, *arguments, "--num_tasks=1")
    flag_values = parse(loaded, *arguments)
    [method] = experiments.choose_methods(
        flag_values, loaded.make_problem(flag_values).defaults, []
    )
    model = loaded.build_model(flag_values, 784, method, seed=0)
    x, y = streams.OnlinePermutedImages(
        *loaded.datasets.load_mnist(None), examples_per_task=100
    ).task(0)
    correct = 0
    for i in range(100):
        logits = model.predict_on_batch(x[i : i + 1])
        correct += int(np.argmax(logits[0]) == y[i])
        model.train_on_batch(x[i : i + 1], y[i : i + 1])
    assert accuracies(summary) == [pytest.approx(correct / 100)]


@pytest.mark.slow
@pytest.mark.long
def test_several_learners_are_each_its_own_run(loaded, tmp_path):
    arguments = [*_TINY, "--method=cbp", "--replacement_rate=0.01"]
    both = run(loaded, tmp_path / "a", *arguments, "--num_learners=2")
    assert both["runs"][0]["num_learners"] == 2
    for learner in range(2):
        alone = run(
            loaded, tmp_path / f"{learner}", *arguments, f"--seed={learner}"
        )
        together = [
            record["online_accuracy_per_learner"][learner]
            for record in both["runs"][0]["per_task"]
        ]
        np.testing.assert_allclose(together, accuracies(alone), atol=0.02)


_DIVERGES = [*_TINY, "--method=bp", "--learning_rate=1e30"]


def test_a_run_that_diverges_says_so(loaded, tmp_path):
    with pytest.raises(SystemExit, match="not finite in task 0 for learners"):
        run(loaded, tmp_path, *_DIVERGES)
    summary = json.loads((tmp_path / "summary.json").read_text())
    [record] = summary["runs"]
    assert [task["loss"] for task in record["per_task"]] == [None]


def test_a_run_that_diverges_can_go_on(loaded, tmp_path):
    summary = run(loaded, tmp_path, *_DIVERGES, "--on_nan=continue")
    [record] = summary["runs"]
    assert [task["loss"] for task in record["per_task"]] == [None, None]


def test_a_folder_with_another_run_is_refused(loaded, tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(SystemExit, match="holds another run.*summary.json"):
        run(loaded, tmp_path, *_TINY)


def test_default_log_dirs_are_named_by_the_run(loaded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded.run(parse(loaded, *_TINY, "--method=bp", "--seed=3"))
    [folder] = (tmp_path / "logs" / "online_permuted_mnist").iterdir()
    assert folder.name.startswith("bp-seed3-")
    assert (folder / "summary.json").exists()


def test_a_data_dir_without_the_data(trainer, tmp_path):
    tensorflow_datasets()
    with pytest.raises(SystemExit, match="MNIST was not found.*data_dir="):
        run(trainer, tmp_path / "log", f"--data_dir={tmp_path}")


def test_no_network_and_no_data(monkeypatch, tmp_path):
    tfds = tensorflow_datasets()
    builder = tfds.builder("mnist", data_dir=tmp_path)
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: builder)
    monkeypatch.setattr(
        "urllib.request.urlopen", _raise(OSError("no such host"))
    )
    with pytest.raises(ConnectionError, match="`data_dir`.*no such host"):
        datasets.load_mnist()


def test_without_tensorflow_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match="pip install tensorflow"):
        datasets.load_mnist()


def _raise(error):
    def function(*args, **kwargs):
        raise error

    return function


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--num_tasks=0"], "num_tasks"),
        (["--examples_per_task=0"], "examples_per_task"),
        (["--hidden_units=0"], "hidden_units"),
        (["--num_hidden_layers=0"], "num_hidden_layers"),
        (["--batch_size=0"], "batch_size"),
        (["--learning_rate=0"], r"learning_rate=0.*\(0, inf\)"),
        (["--learning_rate=nan"], r"learning_rate=nan.*\(0, inf\)"),
        (["--replacement_rate=1.5"], r"replacement_rate=1.5.*\[0, 1\]"),
        (["--maturity_threshold=-1"], "maturity_threshold"),
        (["--decay_rate=1"], r"decay_rate=1.0.*\[0, 1\)"),
        (["--utility=best"], "utility.*contribution"),
        (["--seed=-1"], "seed"),
    ],
)
def test_bad_flags(trainer, arguments, message):
    with pytest.raises(flags.Error, match=message):
        parse(trainer, *arguments)
