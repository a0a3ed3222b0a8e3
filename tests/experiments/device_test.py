"""The device that a trainer computes on, and how exactly."""

import json
import pathlib

import keras
import pytest
from absl import flags

from keras_plasticity import backend
from keras_plasticity import experiments
from keras_plasticity import streams
from keras_plasticity import weights_of
from keras_plasticity.experiments import device
from keras_plasticity.experiments import terminal
from tests.examples.trainers import load
from tests.examples.trainers import parse
from tests.examples.trainers import run

_BACKEND = keras.backend.backend()
_TINY = [
    "--num_examples=400",
    "--examples_per_task=200",
    "--num_learners=2",
    "--method=linear",
]


_can_choose = pytest.mark.skipif(
    _BACKEND == "tensorflow" and backend.platform() != "cpu",
    reason="tests before it have computed on the GPU",
)


@pytest.fixture(scope="module")
def trainer():
    pytest.importorskip("matplotlib")
    return load("slowly_changing_regression")


@pytest.mark.parametrize(
    ("flag", "num_weights", "expected"),
    [
        ("cpu", 10**9, "cpu"),
        ("gpu", 1, "gpu"),
        ("auto", 1, "cpu"),
        ("auto", device.MOST_WEIGHTS_ON_CPU, "cpu"),
        # Whatever there is.
        ("auto", device.MOST_WEIGHTS_ON_CPU + 1, None),
        ("auto", None, None),
    ],
)
def test_choice(flag, num_weights, expected):
    assert device.choose_device(flag, num_weights) == expected


@pytest.mark.parametrize(
    ("flag", "num_weights", "platform", "reason"),
    [
        ("cpu", 10**9, "cpu", "as --device=cpu says"),
        ("gpu", 1, "gpu", "as --device=gpu says"),
        ("auto", 3330, "cpu", "faster than a GPU for the 3,330 weights"),
        ("auto", 3330, "gpu", "has computed before"),
        ("auto", 99_710, "cpu", f"{_BACKEND} finds no GPU"),
        ("auto", 99_710, "gpu", "faster than a CPU for the 99,710 weights"),
        ("auto", None, "cpu", f"{_BACKEND} finds no GPU"),
        ("auto", None, "gpu", "as there is one"),
        ("auto", None, "tpu", "as there is one"),
    ],
)
def test_reason(flag, num_weights, platform, reason):
    assert reason in device.why(flag, num_weights, platform)


def test_learners_side_by_side_are_one_network():
    expected = 300 if _BACKEND == "jax" else 100
    assert device._weights_in_a_step(100, 3) == expected
    assert device._weights_in_a_step(None, 3) is None


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("slowly_changing_regression", []),
        ("slowly_changing_regression", ["--hidden_units=7"]),
        ("online_permuted_mnist", ["--hidden_units=12"]),
        (
            "online_permuted_mnist",
            ["--hidden_units=3", "--num_hidden_layers=1"],
        ),
    ],
)
def test_weights_of_the_trainers_networks(name, arguments):
    trainer = load(name)
    flag_values = parse(trainer, "--method=bp", *arguments)
    if name == "slowly_changing_regression":
        problem = trainer.make_problem(flag_values, num_tasks=100)
        inputs = [flag_values]
    else:
        problem = trainer.make_problem(flag_values)
        inputs = [flag_values, trainer.NUM_PIXELS]
    [method] = experiments.choose_methods(flag_values, problem.defaults, [])
    model = trainer.build_model(*inputs, method, seed=0)
    sizes = [variable.value.shape for variable in weights_of(model)]
    total = sum(shape[0] * (*shape, 1)[1] for shape in sizes)
    assert problem.num_weights == total


@_can_choose
def test_choice_is_printed_and_in_the_summary(trainer, tmp_path, capsys):
    summary = run(trainer, tmp_path, *_TINY)
    # Of the network of most methods: `linear` has 21.
    weights = 111 * (2 if _BACKEND == "jax" else 1)
    choice = f"cpu, which is faster than a GPU for the {weights} weights of a"
    assert summary["device_choice"].startswith(choice)
    assert summary["device"] == terminal.device_name()
    assert summary["flags"]["matmul_precision"] == "float32"
    printed = " ".join(capsys.readouterr().out.split())
    assert f"device: {choice}" in printed
    assert "--matmul_precision=float32" in printed


def test_precision_is_that_of_the_flag(trainer, tmp_path, monkeypatch):
    precisions = []
    monkeypatch.setattr(backend, "set_matmul_precision", precisions.append)
    argument = "--matmul_precision=tensorfloat32"
    summary = run(trainer, tmp_path, *_TINY, argument)
    assert precisions == ["tensorfloat32"]
    assert summary["flags"]["matmul_precision"] == "tensorfloat32"


@pytest.mark.parametrize("has_flag", [False, True])
def test_the_batch_size_is_that_of_the_run(has_flag, trainer, monkeypatch):
    sizes = []
    monkeypatch.setattr(backend, "compile_small_loops_whole", sizes.append)
    flag_values = parse(trainer, *_TINY, "--dry_run")
    if has_flag:
        # Of a trainer that takes its own default where nothing is given.
        flags.DEFINE_integer("batch_size", None, "", flag_values=flag_values)
    experiments.run(
        flag_values,
        trainer.make_problem(flag_values, num_tasks=2),
        lambda method, seed: trainer.build_model(flag_values, method, seed),
        lambda seed: streams.SlowlyChangingRegression(seed=seed),
        num_tasks=2,
        batch_size=32,
    )
    assert sizes == [32]


def test_a_batch_size_that_cannot_be(trainer):
    flag_values = parse(trainer, *_TINY)
    problem = trainer.make_problem(flag_values, num_tasks=2)
    with pytest.raises(ValueError, match="`batch_size` must be a positive"):
        experiments.configure_backend(flag_values, problem, batch_size=0)


def test_a_device_that_is_not_there(trainer, tmp_path):
    if "gpu" in backend._active.platforms():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="--device=gpu: .*which are: cpu. "):
        run(trainer, tmp_path / "run", *_TINY, "--device=gpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["auto", "cpu"])
def test_a_device_that_cannot_change(flag, trainer, tmp_path, monkeypatch):
    def use_device(name):
        raise RuntimeError("must be chosen before")

    monkeypatch.setattr(backend, "use_device", use_device)
    monkeypatch.setattr(backend, "platform", lambda: "gpu")
    arguments = [*_TINY, f"--device={flag}"]
    if flag == "cpu":
        with pytest.raises(SystemExit, match="--device=cpu: must be chosen"):
            run(trainer, tmp_path, *arguments)
        return
    summary = run(trainer, tmp_path, *arguments)
    assert summary["device_choice"] == (
        "gpu, on which this process has computed before"
    )


@_can_choose
def test_a_run_is_resumed_on_another_device_in_the_same_precision(
    trainer, tmp_path, capsys
):
    run(trainer, tmp_path, *_TINY, "--num_examples=200")
    arguments = [*_TINY, "--resume", "--device=cpu"]
    with pytest.raises(
        SystemExit, match="matmul_precision=float32 there, .*=tensorfloat32 h"
    ):
        run(trainer, tmp_path, *arguments, "--matmul_precision=tensorfloat32")
    summary = run(trainer, tmp_path, *arguments)
    assert summary["device_choice"] == "cpu, as --device=cpu says"
    assert "resumed from task 1." in capsys.readouterr().out
    settings = pathlib.Path(tmp_path / "settings.json").read_text()
    assert "device" not in json.loads(settings)


def test_the_library_alone_changes_nothing(monkeypatch):
    changes = []
    for name in ("use_device", "set_matmul_precision"):
        monkeypatch.setattr(backend, name, changes.append)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(keras.ops.ones((4, 3)), keras.ops.ones((4, 1)), verbose=0)
    assert not changes
