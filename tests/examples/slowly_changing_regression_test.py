"""Runs the trainer with tiny settings."""

import json

import keras
import numpy as np
import pytest
from absl import flags
from tensorboard.backend.event_processing import event_accumulator

from keras_plasticity import experiments
from keras_plasticity.experiments import activations
from tests.examples.trainers import load
from tests.examples.trainers import parse
from tests.examples.trainers import run

_TINY = [
    "--num_examples=400",
    "--examples_per_task=100",
    "--num_learners=2",
]


@pytest.fixture(scope="module")
def trainer():
    pytest.importorskip("matplotlib")
    return load("slowly_changing_regression")


def test_runs_all_methods_and_writes_what_it_found(trainer, tmp_path, capsys):
    summary = run(trainer, tmp_path, *_TINY, "--replacement_rate=0.02")
    assert summary["problem"] == "slowly_changing_regression"
    assert summary["backend"] == keras.backend.backend()
    assert [r["method"] for r in summary["runs"]] == ["bp", "cbp", "linear"]
    for record in summary["runs"]:
        assert record["num_learners"] == 2
        assert record["steps_per_learner"] == 400
        assert [task["task"] for task in record["per_task"]] == [0, 1, 2, 3]
        for task in record["per_task"]:
            errors = task["squared_error_per_learner"]
            assert len(set(errors)) == 2
            assert task["squared_error"] == pytest.approx(np.mean(errors))
            assert task["squared_error_standard_error"] == pytest.approx(
                np.std(errors, ddof=1) / np.sqrt(2)
            )
        events = event_accumulator.EventAccumulator(
            str(tmp_path / record["method"])
        )
        events.Reload()
        steps = [e.step for e in events.Tensors("against_tasks/squared_error")]
        assert steps == [0, 1, 2, 3]
        steps = [
            e.step for e in events.Tensors("against_updates/squared_error")
        ]
        assert steps == [100, 200, 300, 400]
    # 5 units, 0.02 of them in each update once they are 100 updates old: so
    # each one three times at most.
    for number in summary["runs"][1]["units_replaced_per_learner"]:
        assert 5 <= number <= 15
    figure = (tmp_path / "slowly_changing_regression.png").read_bytes()
    assert figure.startswith(b"\x89PNG") and len(figure) > 10_000
    output = capsys.readouterr().out
    assert f"backend {keras.backend.backend()} on " in output
    assert "linear" in output


@pytest.mark.parametrize(
    "activation", ["relu", "leaky_relu", "tanh", "sigmoid", "elu", "swish"]
)
def test_activations_and_their_initial_weights(trainer, activation):
    flag_values = parse(trainer, f"--activation={activation}")
    models = [
        trainer.build_model(flag_values, method, seed=1)
        for method in experiments.choose_methods(flag_values, {}, ["bp", "cbp"])
    ]
    kernels = [
        keras.ops.convert_to_numpy(model.layers[0].kernel) for model in models
    ]
    np.testing.assert_array_equal(*kernels)
    bound = activations.GAINS[activation] * np.sqrt(3 / 20)
    assert 0.9 * bound < np.abs(kernels[0]).max() <= bound
    # What the hidden layer feeds the output is the activation, as defined.
    x = np.random.default_rng(0).integers(0, 2, (7, 20)).astype("float32")
    h = kernels[0].T @ x.T
    expected = {
        "relu": np.maximum(h, 0),
        "leaky_relu": np.where(h > 0, h, 0.01 * h),
        "tanh": np.tanh(h),
        "sigmoid": 1 / (1 + np.exp(-h)),
        "elu": np.where(h > 0, h, np.exp(h) - 1),
        "swish": h / (1 + np.exp(-h)),
    }[activation]
    output = keras.ops.convert_to_numpy(models[1].layers[-1].kernel).T
    np.testing.assert_allclose(
        models[1].predict_on_batch(x), (output @ expected).T, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.long
def test_the_same_learners_and_streams_for_every_run(trainer, tmp_path):
    arguments = [*_TINY, "--method=linear"]
    first = run(trainer, tmp_path / "a", *arguments, "--method=cbp")
    again = run(trainer, tmp_path / "b", *arguments, "--method=cbp")
    other = run(trainer, tmp_path / "c", *arguments, "--seed=7")
    tasks = [summary["runs"][0]["per_task"] for summary in (first, again)]
    assert tasks[0] == tasks[1]
    assert tasks[0] != other["runs"][0]["per_task"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method=sgd"], "bp.*linear.*cbp.*--method=sgd"),
        (["--activation=gelu"], "activation"),
        (["--num_learners=0"], "num_learners"),
        (["--learning_rate=0"], r"learning_rate=0.*\(0, inf\)"),
    ],
)
def test_bad_flags(trainer, arguments, message):
    with pytest.raises(flags.Error, match=message):
        parse(trainer, *arguments)


def test_published_values_are_those_of_the_settings(trainer):
    def published(*arguments, num_tasks=100):
        flag_values = parse(trainer, *arguments)
        problem = trainer.make_problem(flag_values, num_tasks)
        chosen = experiments.choose_methods(
            flag_values, problem.defaults, problem.methods
        )
        return {m.name: problem.published(m) for m in chosen}

    assert published() == {
        "bp": [(20_000, 0.62), (1_000_000, 1.25)],
        "cbp": [],
        "linear": [(20_000, 0.885), (1_000_000, 0.885)],
    }
    tanh = published("--method=bp", "--activation=tanh", "--flip_one")
    assert tanh == {"bp": [(40_000, 0.45), (3_000_000, 0.85)]}
    assert published("--method=bp", "--learning_rate=0.02") == {"bp": []}
    assert published("--examples_per_task=100")["bp"] == []
    assert published("--hidden_units=6")["bp"] == []
    assert published("--momentum=0.9")["bp"] == []
    assert published("--method=l2", "--method=layer_norm") == {
        "l2": [],
        "layer_norm": [],
    }
    # Too short for the bins of the published figure.
    assert published(num_tasks=7)["bp"] == []


def test_examples_that_do_not_fill_their_tasks(trainer, tmp_path):
    with pytest.raises(flags.Error, match="must be a multiple"):
        run(trainer, tmp_path, "--num_examples=1500")


def test_a_run_that_diverges_says_so(trainer, tmp_path, capsys):
    methods = ["--method=bp", "--method=adam"]
    # Adam's steps are as large as its step size, whatever the gradients.
    with pytest.raises(SystemExit) as end:
        run(trainer, tmp_path, *_TINY, *methods, "--learning_rate=10")
    assert end.value.code == 1
    # The other method is trained all the same.
    [failure] = str(end.value.args[0]).splitlines()
    assert failure.startswith("bp: The loss is not finite in task ")
    assert failure.endswith("Here: --on_nan=continue.")
    summary = json.loads((tmp_path / "summary.json").read_text())
    diverged, other = summary["runs"]
    assert diverged["per_task"][-1]["squared_error"] is None
    assert diverged["failure"] == failure
    assert len(other["per_task"]) == 4 and other["failure"] is None
    assert other["per_task"][-1]["squared_error"] > 0
    told = capsys.readouterr()
    assert "diverged" in told.out and failure in told.err


def test_each_method_that_diverges_is_told(trainer, tmp_path):
    methods = ["--method=bp", "--method=linear"]
    with pytest.raises(SystemExit) as end:
        run(trainer, tmp_path, *_TINY, *methods, "--learning_rate=1e20")
    told = str(end.value.args[0]).splitlines()
    assert [line.split(":")[0] for line in told] == ["bp", "linear"]
