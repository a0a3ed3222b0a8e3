"""The methods that all trainers share."""

import keras
import numpy as np
import pytest
from absl import flags

import keras_plasticity
from keras_plasticity import experiments
from keras_plasticity import training
from tests.examples.trainers import load
from tests.examples.trainers import parse
from tests.helpers import mostly_slow
from tests.helpers import to_numpy


@pytest.fixture(scope="module")
def trainer():
    return load("slowly_changing_regression")


def choose(*arguments, defaults=None):
    flag_values = flags.FlagValues()
    experiments.define_flags(flag_values)
    flag_values(["trainer", *arguments])
    return experiments.choose_methods(
        flag_values, defaults or {}, ["bp", "cbp"]
    )


def train(trainer, *arguments):
    """A few tasks; returns the method, its errors and the trained model."""
    flag_values = parse(trainer, *arguments)
    [method] = experiments.choose_methods(flag_values, {}, ["bp"])

    def build_model(method, seed):
        return trainer.build_model(flag_values, method, seed)

    engine = training.OnlineTrainer(lambda i: build_model(method, i))
    results = engine.fit(
        keras_plasticity.streams.SlowlyChangingRegression(
            num_tasks=4, examples_per_task=100
        ),
        callbacks=method.task_callbacks(build_model, seeds=[0]),
    )
    return method, results["loss"][:, 0], engine.model()


@pytest.fixture(scope="module")
def bp_errors(trainer):
    return train(trainer, "--method=bp")[1]


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        [
            *(part.name for part in experiments.PARTS),
            "cbp,l2",
            "cbp,shrink_and_perturb,adam",
            "cbp,layer_norm",
            "cbp,online_norm",
            "linear,l2",
        ],
        "bp",
        "dropout",
        "shrink_and_perturb_tasks",
        "cbp",
        "redo",
        "self_normalized_resets",
        "cbp,shrink_and_perturb,adam",
        "cbp,online_norm",
        "linear",
    ),
)
def test_every_method_trains_and_differs_from_bp(trainer, bp_errors, name):
    # So that units are replaced in a run of 400 updates.
    arguments = {
        "cbp": ["--replacement_rate=0.02"],
        "redo": ["--redo_period=20", "--redo_threshold=0.8"],
        "self_normalized_resets": [
            "--resets_min_threshold=1",
            "--resets_initial_threshold=5",
        ],
        "selective_weight_reinitialization": ["--reinitialization_period=20"],
        "hare_and_tortoise": ["--tortoise_period=20"],
        "regrama": ["--regrama_period=20", "--regrama_threshold=0.5"],
        "cpr": ["--cpr_period=20"],
        "ccbp": ["--ccbp_period=20"],
    }.get(name.split(",")[0], [])
    method, errors, model = train(trainer, f"--method={name}", *arguments)
    assert method.name == name
    assert np.isfinite(errors).all()
    if name == "bp":
        np.testing.assert_array_equal(errors, bp_errors)
    else:
        assert not np.array_equal(errors, bp_errors)
    replacing = ("cbp", "redo", "self_normalized_resets", "regrama")
    if any(map(method.has, replacing)):
        assert sum(model.optimizer.num_replaced().values()) > 10


def test_defaults_of_the_problem_and_of_the_method():
    defaults = {
        "learning_rate": {None: 0.003, "adam": 1e-4},
        "momentum": 0.9,
        "l2": {None: 1e-5, "l2": 3e-6},
    }

    def settings(*arguments):
        [method] = choose(*arguments, defaults=defaults)
        return method.settings

    assert settings("--method=bp") == {
        "learning_rate": 0.003,
        "momentum": 0.9,
        "activation": "relu",
    }
    assert settings("--method=adam") == {
        "learning_rate": 1e-4,
        "activation": "relu",
    }
    assert settings("--method=l2")["l2"] == 3e-6
    assert settings("--method=shrink_and_perturb")["l2"] == 1e-5
    assert settings("--method=l2", "--l2=0.5")["l2"] == 0.5
    assert settings("--method=cbp,adam")["learning_rate"] == 1e-4
    assert "activation" not in settings("--method=linear")


def test_methods_are_those_of_the_problem_without_a_flag():
    assert [m.name for m in choose()] == ["bp", "cbp"]
    twice = choose("--method=l2", "--method=bp", "--method=l2")
    assert [m.name for m in twice] == ["l2", "bp"]
    same = choose("--method=adam,l2", "--method=l2,adam")
    assert [m.name for m in same] == ["l2,adam"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sgd", "one or more of bp, adam.*--method=sgd"),
        ("cbp,sgd", "one or more of bp, adam.*--method=cbp,sgd"),
        ("bp,adam", "bp and adam contradict each other"),
        ("l2,shrink_and_perturb", "contradict each other"),
        ("l2,weight_decay", "contradict each other"),
        ("batch_norm,layer_norm", "contradict each other"),
        ("linear,cbp", "contradict each other"),
        ("linear,dropout", "contradict each other"),
        ("layer_norm,linear", "layer_norm and linear contradict each other"),
        ("l2,shrink_and_perturb_tasks,dropout", "l2 and shrink_and_perturb_t"),
        ("cbp,cbp", "each part once"),
    ],
)
def test_methods_that_do_not_go(name, message):
    with pytest.raises(flags.IllegalFlagValueError, match=message):
        choose(f"--method={name}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--momentum=0.9", "--method=adam", "--method=linear,adam"], "to m"),
        (
            ["--method=bp", "--replacement_rate=0.1"],
            "--replacement_rate belongs to methods with cbp only.*=0.1 with "
            "--method=bp",
        ),
        (
            ["--method=cbp", "--l2=0.1"],
            "--l2 belongs to .* l2 or .*shrink",
        ),
        (["--method=l2", "--dropout_rate=0"], "--dropout_rate belongs to"),
        (
            ["--method=adam", "--momentum=0.9"],
            "--momentum does not .* adam",
        ),
        (
            ["--method=linear", "--activation=elu"],
            "not belong to .* lin",
        ),
    ],
)
def test_settings_that_no_method_needs(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose(*arguments)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--learning_rate=0", r"\(0, inf\)"),
        ("--learning_rate=nan", r"\(0, inf\)"),
        ("--momentum=1", r"\[0, 1\)"),
        ("--l2=-1", r"\[0, inf\)"),
        ("--noise_stddev=inf", r"\[0, inf\)"),
        ("--shrink=1.1", r"\[0, 1\]"),
        ("--dropout_rate=1", r"\[0, 1\)"),
        ("--replacement_rate=1.5", r"\[0, 1\]"),
        ("--decay_rate=1", r"\[0, 1\)"),
        ("--maturity_threshold=-1", "maturity_threshold"),
        ("--utility=best", "utility.*contribution"),
        ("--activation=gelu", "activation"),
    ],
)
def test_settings_out_of_their_range(argument, message):
    with pytest.raises(flags.Error, match=message):
        choose(argument)


@pytest.mark.parametrize(
    ("name", "learning_rate"),
    [
        ("dropout", 0.01),
        ("l2", 0.03),
        ("l2,dropout", 0.03),
        ("cbp,l2", 0.01),
        ("l2,cbp", 0.01),
        ("l2,adam", 0.001),
        ("adam,l2", 0.001),
    ],
)
def test_defaults_do_not_depend_on_the_order_of_parts(name, learning_rate):
    defaults = {"adam": 0.001, "cbp": 0.01, "l2": 0.03, None: 0.01}
    [method] = choose(f"--method={name}", defaults={"learning_rate": defaults})
    assert method.settings["learning_rate"] == learning_rate


@pytest.mark.parametrize("name", ["learning_rat", "hidden_units"])
def test_a_default_of_no_flag(name):
    with pytest.raises(ValueError, match=f"of flags.*Received: {name}"):
        choose(defaults={name: 0.1})


def test_of_a_shared_flag_each_part_has_its_own_default():
    factors = {
        name: choose(f"--method={name}")[0].settings["shrink"]
        for name in (
            "shrink_and_perturb_by_initializer",
            "shrink_and_perturb_tasks",
        )
    }
    assert set(factors.values()) == {0.999, 0.2}
    [method] = choose(
        "--method=shrink_and_perturb_tasks",
        defaults={"shrink": {"shrink_and_perturb_by_initializer": 0.9}},
    )
    assert method.settings["shrink"] == 0.2


def test_adam_is_that_of_pytorch():
    [method] = choose("--method=adam")
    assert method.optimizer(0, "he_uniform").epsilon == 1e-8


@pytest.mark.parametrize(
    "name",
    [
        "cbp,shrink_and_perturb,adam",
        "adam,shrink_and_perturb,cbp",
        "shrink_and_perturb,cbp,adam",
    ],
)
def test_optimizers_nest_in_the_order_of_the_records(name):
    [method] = choose(f"--method={name}")
    assert method.name == "cbp,shrink_and_perturb,adam"
    optimizer = method.optimizer(0, "he_uniform")
    kinds = []
    while optimizer is not None:
        kinds.append(type(optimizer).__name__)
        optimizer = getattr(optimizer, "inner_optimizer", None)
    assert kinds == ["ContinualBackprop", "ShrinkAndPerturb", "Adam"]


def test_weight_decay_is_the_decoupled_one():
    [method] = choose("--method=weight_decay,adam")
    assert method.optimizer(0, "he_uniform").weight_decay == 1e-4
    assert isinstance(method.optimizer(0, "he_uniform"), keras.optimizers.Adam)


def test_normalize_and_project_normalizes_and_leaves_the_output_free(trainer):
    flag_values = parse(
        trainer, "--method=normalize_and_project", "--projection_period=3"
    )
    [method] = experiments.choose_methods(flag_values, {}, [])
    model = trainer.build_model(flag_values, method, 0)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == ["Dense", "LayerNormalization", "Activation", "Dense"]
    assert model.optimizer.period == 3
    start = [to_numpy(v) for v in model.trainable_variables]
    model.fit(np.ones((24, 20)), np.ones((24, 1)), batch_size=8, verbose=0)
    for variable, before in zip(model.trainable_variables, start):
        if variable.name == "kernel":
            norms = np.linalg.norm(to_numpy(variable)), np.linalg.norm(before)
            is_kept = np.isclose(*norms, rtol=1e-5)
            assert is_kept == ("output" not in variable.path)


def test_adamo_is_adam_inside():
    [method] = choose("--method=adamo", "--orthogonality_strength=0.5")
    optimizer = method.optimizer(0, "he_uniform")
    assert optimizer.strength == 0.5
    assert isinstance(optimizer.inner_optimizer, keras.optimizers.Adam)
    assert optimizer.inner_optimizer.epsilon == 1e-8


def test_new_networks_of_tasks_are_of_the_learner_s_seed(trainer):
    flag_values = parse(trainer, "--method=shrink_and_perturb_tasks")
    [method] = experiments.choose_methods(flag_values, {}, [])

    def kernel(seeds, learner, task):
        [callback] = method.task_callbacks(
            lambda method, seed: trainer.build_model(flag_values, method, seed),
            seeds,
        )
        return to_numpy(callback.build_model(learner, task).weights[0])

    expected = kernel([5], 0, 1)
    np.testing.assert_array_equal(kernel([4, 5], 1, 1), expected)
    for other in (kernel([6], 0, 1), kernel([5], 0, 2)):
        assert not np.array_equal(other, expected)


def test_new_weights_are_drawn_as_the_network_s(trainer):
    flag_values = parse(trainer, "--method=shrink_and_perturb_by_initializer")
    [method] = experiments.choose_methods(flag_values, {}, [])
    model = trainer.build_model(flag_values, method, 0)
    hidden = model.get_layer("hidden").kernel_initializer
    assert model.optimizer.initializer.get_config() == hidden.get_config()
