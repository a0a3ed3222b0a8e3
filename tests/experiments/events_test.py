"""Methods that act when a task begins: what their flags make."""

import keras
import numpy as np
import pytest
from absl import flags

from keras_plasticity import callbacks
from keras_plasticity import experiments
from keras_plasticity.layers import Injectable
from tests.helpers import to_numpy


def choose(*arguments):
    flag_values = flags.FlagValues()
    experiments.define_flags(flag_values)
    flag_values(["trainer", *arguments])
    [method] = experiments.choose_methods(flag_values, {}, [])
    return method


def build_model(method, seed):
    hidden = method.hidden(
        "Dense",
        units=5,
        kernel_initializer=keras.initializers.HeUniform(seed),
        name="hidden",
    )
    output = method.layers.Dense(
        3,
        kernel_initializer=keras.initializers.HeUniform(seed + 1),
        name="output",
    )
    model = method.network([keras.Input((4,)), *hidden, output])
    model.compile(method.optimizer(seed, "he_uniform"), "mse")
    return model


def callback(method):
    [found] = method.task_callbacks(build_model, [3, 8])
    return found


@pytest.mark.parametrize(
    ("arguments", "kind", "config"),
    [
        (["fire", "fire_iterations=4"], "FIRE", dict(iterations=4)),
        (["fire"], "FIRE", callbacks.FIRE().get_config()),
        (
            [
                "dash",
                "dash_alpha=0.1",
                "dash_min_factor=0.2",
                "dash_batch_size=7",
            ],
            "DASH",
            dict(alpha=0.1, min_factor=0.2, batch_size=7),
        ),
        (["dash"], "DASH", callbacks.DASH().get_config()),
        (
            ["sdp", "sdp_gamma=0.7"],
            "SpectralDiversityPreservation",
            dict(gamma=0.7),
        ),
        (
            ["sdp"],
            "SpectralDiversityPreservation",
            callbacks.SpectralDiversityPreservation().get_config(),
        ),
        (["head_reset"], "ResetLayers", callbacks.ResetLayers().get_config()),
        (["layer_reset"], "ResetLayers", dict(layers=2)),
        (
            ["layer_reset", "reset_layers=3"],
            "ResetLayers",
            dict(layers=3, reset_optimizer="changed"),
        ),
        (["reset"], "ResetModel", dict(skip=1, reset_optimizer="all")),
        (
            ["plasticity_injection", "injection_task=6"],
            "PlasticityInjection",
            dict(skip=6, reset_optimizer="changed"),
        ),
    ],
)
def test_flags_are_settings(arguments, kind, config):
    name, *rest = arguments
    found = callback(choose(f"--method={name}", *(f"--{x}" for x in rest)))
    assert type(found) is getattr(callbacks, kind)
    assert found.get_config() | config == found.get_config()


@pytest.mark.parametrize(
    "name", ["head_reset", "layer_reset", "reset", "plasticity_injection"]
)
def test_new_weights_are_those_of_a_network_for_the_task(name):
    method = choose(f"--method={name}")
    build = callback(method).build_model
    kernels = [
        to_numpy(build(*where).weights[0])
        for where in ((0, 1), (0, 1), (1, 1), (0, 2))
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    for kernel in kernels[2:]:
        assert not np.isclose(kernel, kernels[0]).any()


@pytest.mark.parametrize("towards_first", [False, True])
def test_shrink_and_perturb_towards_the_first_network(towards_first):
    method = choose(
        "--method=shrink_and_perturb_tasks", f"--towards_first={towards_first}"
    )
    found = callback(method)
    assert found.reset_optimizer == ("all" if towards_first else "none")
    first = to_numpy(build_model(method, 8).weights[0])
    kernels = [
        to_numpy(found.build_model(1, task).weights[0]) for task in (1, 2)
    ]
    assert (kernels[0] == kernels[1]).all() == towards_first
    assert (kernels[0] == first).all() == towards_first


@pytest.mark.parametrize(("layers", "plain"), [(1, 1), (2, 0), (9, 0)])
def test_the_last_layers_can_be_injected_into(layers, plain):
    method = choose(
        "--method=plasticity_injection,adam", f"--injected_layers={layers}"
    )
    model = build_model(method, 0)
    assert len(model.layers) == plain + 1
    assert isinstance(model.layers[-1], Injectable)
    bp = build_model(choose("--method=adam"), 0)
    for actual, expected in zip(
        model.trainable_variables, bp.trainable_variables, strict=True
    ):
        np.testing.assert_array_equal(to_numpy(actual), to_numpy(expected))


def test_initial_biases_are_those_without_an_injection():
    biases = []
    for name in ("plasticity_injection", "bp"):
        model = build_model(choose(f"--method={name}"), 0)
        experiments.draw_pytorch_biases(model, np.random.default_rng(0))
        assert not any(to_numpy(v).any() for v in model.non_trainable_variables)
        biases.append([to_numpy(v) for v in model.trainable_variables][1::2])
    for pair in zip(*biases, strict=True):
        np.testing.assert_array_equal(*pair)
        assert pair[0].any()


@pytest.mark.parametrize(
    "names",
    [
        *("plasticity_injection,cbp", "plasticity_injection,linear"),
        *("reset,fire", "head_reset,layer_reset", "sdp,linear"),
        *("head_reset,plasticity_injection", "reset,dash"),
    ],
)
def test_contradictions(names):
    with pytest.raises(flags.Error, match="contradict each other"):
        choose(f"--method={names}")


@pytest.mark.parametrize("layers", [3, "Dense", [], [3]])
def test_bad_layers(layers):
    with pytest.raises(ValueError, match="`layers` must be a list of one or"):
        choose("--method=bp").network(layers)
