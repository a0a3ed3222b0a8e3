"""Every trainer with methods that are layers, joined with another one."""

import numpy as np
import pytest

from keras_plasticity import experiments
from tests.examples import trainers
from tests.helpers import mostly_on_torch
from tests.helpers import to_numpy

_METHODS = (
    "adalin",
    "concatenated_elu",
    "crelu",
    "fourier",
    "input_norm",
    "rational",
    "smooth_leaky",
)
_RUNS = {
    "slowly_changing_regression": ("--num_examples=80", "--num_learners=2"),
    "online_permuted_mnist": (
        "--num_tasks=2",
        "--hidden_units=8",
        "--num_hidden_layers=2",
        "--batch_size=5",
    ),
    "continual_imagenet": (
        "--num_tasks=2",
        "--epochs=2",
        "--batch_size=8",
        "--train_images_per_class=12",
        "--test_images_per_class=4",
    ),
}


def few_digits(*_):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 28, 28), dtype="uint8")
    return images, np.arange(60) % 10


def few_images(*_):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 32, 32, 3), dtype="uint8")
    return images, np.arange(64) // 16


@pytest.fixture
def load(monkeypatch):
    """Function that loads a trainer with data of a moment."""
    pytest.importorskip("matplotlib")

    def load(name):
        trainer = trainers.load(name)
        for loader, fake in (
            ("load_mnist", few_digits),
            ("load_imagenet", few_images),
        ):
            if hasattr(trainer, "datasets"):
                monkeypatch.setattr(trainer.datasets, loader, fake)
        return trainer

    return load


@pytest.mark.parametrize(
    ("name", "method"),
    mostly_on_torch(
        [(name, method) for name in _RUNS for method in _METHODS],
        ("online_permuted_mnist", "crelu"),
        ("slowly_changing_regression", "input_norm"),
    ),
)
def test_trains_with_continual_backpropagation(load, name, method, tmp_path):
    arguments = [*_RUNS[name]]
    if name != "continual_imagenet":
        arguments.append("--examples_per_task=40")
    summary = trainers.run(
        load(name),
        tmp_path,
        *arguments,
        f"--method=cbp,{method}",
        "--replacement_rate=0.05",
        "--maturity_threshold=1",
    )
    [record] = summary["runs"]
    assert set(record["method"].split(",")) == {"cbp", method}
    assert np.all(np.array(record["units_replaced_per_learner"]) > 0)
    assert len(record["per_task"]) == 2
    for task in record["per_task"]:
        assert np.isfinite(task[summary["metric"]["name"]])


def build(trainer, *arguments):
    flag_values = trainers.parse(trainer, *arguments)
    [method] = experiments.choose_methods(flag_values, {}, ["bp"])
    if trainer.__name__ == "continual_imagenet":
        return trainer.build_model((32, 32, 3), method, 1)
    if trainer.__name__ == "online_permuted_mnist":
        return trainer.build_model(flag_values, 784, method, 1)
    return trainer.build_model(flag_values, method, 1)


def kernels(model):
    return [to_numpy(w) for w in model.weights if w.name == "kernel"]


@pytest.mark.parametrize("name", _RUNS)
def test_networks_start_with_the_same_weights(load, name):
    trainer = load(name)
    few = ["--hidden_units=6"] if name != "continual_imagenet" else []
    expected = kernels(build(trainer, "--method=bp", *few))
    for method in _METHODS:
        found = kernels(build(trainer, f"--method={method}", *few))
        doubled = method in ("concatenated_elu", "crelu", "fourier")
        np.testing.assert_array_equal(found[0], expected[0], err_msg=method)
        for a, b in zip(found[1:], expected[1:], strict=True):
            assert a.shape[-1] == b.shape[-1]
            assert a.shape[-2] == b.shape[-2] * (2 if doubled else 1), method
            if not doubled:
                np.testing.assert_array_equal(a, b, err_msg=method)


def test_the_flags_are_those_of_the_layers(load):
    trainer = load("slowly_changing_regression")
    model = build(
        trainer,
        "--method=smooth_leaky,input_norm",
        "--smooth_leaky_alpha=0.3",
        "--smooth_leaky_p=2",
        "--smooth_leaky_c=4",
        "--input_norm_momentum=0.9",
    )
    assert model.layers[0].momentum == 0.9
    leaky = model.get_layer("hidden")
    assert (leaky.alpha, leaky.p, leaky.c) == (0.3, 2.0, 4.0)


def test_inputs_of_a_network_without_hidden_layers_are_normalized(load):
    model = build(
        load("slowly_changing_regression"), "--method=linear,input_norm"
    )
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == ["InputNormalization", "Dense"]


@pytest.mark.parametrize("method", ["crelu", "concatenated_elu", "fourier"])
def test_no_unit_is_silent(load, method):
    trainer = load("slowly_changing_regression")
    with pytest.raises(Exception, match="contradict each other"):
        trainers.parse(trainer, f"--method={method},self_normalized_resets")
    with pytest.raises(Exception, match="contradict each other"):
        trainers.parse(trainer, f"--method={method},adalin")
