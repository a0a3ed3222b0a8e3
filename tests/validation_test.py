import fractions
import json
import pathlib

import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity import validation
from tests.helpers import make_model

_NO_NUMBERS = [
    *(None, True, np.True_, "1", 1j, [1.0], np.ones(1)),
    *(float("nan"), float("inf"), -float("inf"), np.float32("nan"), 10**400),
]


@pytest.mark.parametrize(
    ("check", "good", "bad", "rule"),
    [
        (
            lambda *args: validation.check_integer(*args, minimum=2),
            [2, np.int64(3)],
            [1, 2.0, -5],
            "an integer of at least 2",
        ),
        (
            validation.check_positive_integer,
            [1, np.uint8(3)],
            [0, 1.0, np.float32(2)],
            "a positive integer",
        ),
        (
            lambda *args: validation.check_integer(*args, -2, 3),
            [-2, np.int8(3)],
            [-3, 4],
            "an integer of at least -2 and at most 3",
        ),
        (
            validation.check_number,
            [-1e38, 0, 2**100],
            [1e39],
            "a finite number",
        ),
        (
            validation.check_positive,
            [1, 1e-9, np.float32(2)],
            [0, -1.0],
            "a positive number",
        ),
        (
            validation.check_not_negative,
            [0, 0.5, np.float32(0), np.int32(4)],
            [-1e-9, -1],
            "a number that is not negative",
        ),
        (
            lambda *args: validation.check_in_interval(*args, "[0, 1)"),
            [0, 0.0, 0.999],
            [1, 1.0, -0.1],
            r"a number in \[0, 1\)",
        ),
        (
            lambda *args: validation.check_in_interval(*args, "(0, 1]"),
            [1e-9, 1],
            [0, 1.001],
            r"a number in \(0, 1\]",
        ),
        (
            lambda *args: validation.check_in_interval(*args, "[0, inf)"),
            [0, 1e30],
            [-1],
            r"a number in \[0, inf\)",
        ),
    ],
)
def test_numbers(check, good, bad, rule):
    for value in good:
        result = check("rate", value)
        assert result == value or result == pytest.approx(float(value))
        assert type(result) is (int if "integer" in rule else float)
    for value in bad + _NO_NUMBERS:
        with pytest.raises(ValueError, match=f"^`rate` must be {rule}.*Rec"):
            check("rate", value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(1e-4), 1e-4),
        (np.float16(0.1), 0.1),
        (np.float64(0.1), 0.1),
        (np.longdouble("0.1"), 0.1),
        (np.float32(2) / np.float32(3), 0.6666667),
        (fractions.Fraction(1, 4), 0.25),
        (1, 1.0),
    ],
)
def test_numbers_are_as_a_person_would_write_them(value, expected):
    result = validation.check_in_interval("rate", value, "[0, 1]")
    assert type(result) is float and repr(result) == repr(expected)


def test_integers_beyond_what_is_counted():
    with pytest.raises(ValueError, match="positive integer and at most 214748"):
        validation.check_positive_integer("steps", 2**31)
    with pytest.raises(ValueError, match="steps=an object of <class 'int'>$"):
        validation.check_positive_integer("steps", 10**5000)


@pytest.mark.parametrize(
    ("make", "largest"),
    [
        (lambda value: keras_plasticity.functional.num_age_bins(value), 2**24),
        (lambda value: keras_plasticity.derived_seed(value), 2**64),
        (
            lambda value: keras_plasticity.optimizers.ContinualBackprop(
                keras.optimizers.SGD(), maturity_threshold=value
            ),
            2**24 - 1,
        ),
        (
            lambda value: keras_plasticity.optimizers.SelfNormalizedResets(
                keras.optimizers.SGD(), max_threshold=value
            ),
            2**23,
        ),
    ],
    ids=["max_age", "seed", "maturity_threshold", "max_threshold"],
)
def test_largest_integers(make, largest):
    make(largest)
    with pytest.raises(ValueError, match=str(largest + 1)):
        make(largest + 1)


def test_booleans():
    assert validation.check_boolean("flag", True) is True
    assert validation.check_boolean("flag", np.False_) is False
    for value in (None, 0, 1, 1.0, "False", [True], np.array(True)):
        with pytest.raises(ValueError, match="`flag` must be `True` or `False"):
            validation.check_boolean("flag", value)


def test_seeds():
    for seed in (None, 0, np.int64(7), 2**31 - 1):
        assert validation.check_seed("seed", seed) == seed
    assert type(validation.check_seed("seed", np.uint8(7))) is int
    for seed in (-1, 2**31, 2**70, True, 1.5, np.float32(1), "0", [1]):
        with pytest.raises(
            ValueError, match="^`seed` must be `None`, or an in"
        ):
            validation.check_seed("seed", seed)


def test_lists():
    assert validation.check_list("names", ("a", "b"), str) == ["a", "b"]
    assert validation.check_list("names", {"a"}, str) == ["a"]
    for value in (None, 5, "ab", b"ab", ["a", 1], {"a": 1}, np.array(["a"])):
        with pytest.raises(ValueError, match="^`names` must be a list of str"):
            validation.check_list("names", value, str, "a list of strings")


def test_paths():
    for path in ("a/b", np.str_("a/b"), pathlib.Path("a", "b")):
        assert type(validation.check_path("file", path)) is str
    for value in (None, 5, "", b"a", "a\0b", ["a"]):
        with pytest.raises(ValueError, match="^`file` must be a path"):
            validation.check_path("file", value)


def test_arrays():
    assert validation.check_array("x", [[1, 2]]).shape == (1, 2)
    bfloat16 = keras.ops.ones((2, 3), "bfloat16")
    if keras.backend.backend() != "torch":  # Whose arrays it is not of.
        assert validation.check_array("x", bfloat16).shape == (2, 3)
    for value in (None, "ab", [[1], [1, 2]], [1j], ["a"], object(), {}, [None]):
        with pytest.raises(
            ValueError, match="^`x` must be an array of real nu"
        ):
            validation.check_array("x", value)


def test_the_error_ends_with_what_was_received():
    with pytest.raises(ValueError, match=r"\. Received: rate=-3$"):
        validation.check_not_negative("rate", -3)
    with pytest.raises(
        ValueError, match="the range of float32. .*rate=1e\\+99"
    ):
        validation.check_not_negative("rate", 1e99)
    with pytest.raises(ValueError, match=r"\. Received: rate=3 \(a string\)$"):
        validation.check_not_negative("rate", "3")
    with pytest.raises(ValueError, match=r"^.{300,400}\.\.\. .a string.$"):
        validation.check_not_negative("rate", "3" * 1000)


def test_choice():
    assert type(validation.check_choice("size", np.int64(8), (8, 16))) is int
    for value in (9, 8.0, "8", None, True, np.array([8, 8]), [8]):
        with pytest.raises(ValueError, match="^`size` must be 8 or 16. Rec"):
            validation.check_choice("size", value, (8, 16))
    with pytest.raises(ValueError, match="^`size` must be 8 or 16. .*size=9$"):
        validation.check_choice("size", 9, (8, 16))
    with pytest.raises(ValueError, match="must be one of .'a', 'b', 'c'.. Rec"):
        validation.check_choice("kind", "d", ["a", "b", "c"])


def test_intervals():
    for good in ("[0, 1)", "(0, inf)", "[-1,1]"):
        assert validation.is_interval(good)
    for bad in (
        "",
        "0, 1",
        "[0]",
        "[a, b]",
        "[1, 0]",
        "{0, 1}",
        None,
        5,
        [0, 1],
    ):
        assert not validation.is_interval(bad)


_OPTIMIZERS = {
    "ContinualBackprop": dict(
        replacement_rate=np.float32(1e-4),
        maturity_threshold=np.int64(7),
        decay_rate=np.float16(0.5),
        transfer_mean=np.True_,
        reset_optimizer_state=np.False_,
        seed=np.uint8(3),
    ),
    "HareAndTortoise": dict(decay_rate=np.float32(0.9), period=np.int64(7)),
    "CCBP": dict(
        replacement_rate=np.float32(0.1),
        sharpness=np.float16(4.5),
        decay_rate=np.float16(0.5),
        period=np.int32(20),
        seed=np.uint8(3),
        continuous=np.False_,
        maturity_threshold=np.int64(5),
    ),
    "CPR": dict(
        replacement_rate=np.float32(0.1),
        sharpness=np.float16(4.5),
        threshold=np.float32(0.5),
        decay_rate=np.float16(0.5),
        period=np.int32(20),
        seed=np.uint8(3),
    ),
    "L2": dict(l2=np.float32(1e-3)),
    "ReDo": dict(
        threshold=np.float32(0.1),
        period=np.int32(20),
        score_updates=np.int64(5),
    ),
    "SelectiveWeightReinitialization": dict(
        factor=np.float32(0.1),
        period=np.uint8(9),
        decay_rate=np.float16(0.5),
        seed=np.int64(0),
    ),
    "ReGraMa": dict(
        threshold=np.float32(0.1),
        period=np.int32(20),
        max_fraction=np.float16(0.5),
    ),
    "SelfNormalizedResets": dict(
        quantile=np.float32(0.9),
        min_threshold=np.int16(10),
        max_threshold=np.int32(100),
        initial_threshold=np.int64(50),
        threshold_period=np.uint8(9),
    ),
    "ShrinkAndPerturb": dict(
        l2=np.float32(1e-5),
        noise_stddev=np.float32(1e-6),
        noise_refresh_steps=np.int64(50),
        seed=np.int64(0),
    ),
    "ShrinkAndPerturbByInitializer": dict(
        shrink=np.float32(0.9), perturb=np.float32(0.1), period=np.uint8(2)
    ),
    "TRAC": dict(scale=np.float32(1e-3), epsilon=np.float32(1e-6)),
    "UnitUPGD": dict(
        utility_decay=np.float16(0.5),
        decay=np.float32(0.1),
        noise_stddev=np.float32(0.1),
        noise_refresh_steps=np.int16(50),
        seed=np.int64(3),
    ),
    "UPGD": dict(
        protecting=np.False_,
        utility_decay=np.float32(0.9),
        decay=np.float32(0.1),
        noise_stddev=np.float32(0.1),
        noise_refresh_steps=np.int64(50),
        seed=np.uint8(3),
    ),
}


@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_numbers_of_numpy_in_optimizers(name):
    kind = getattr(keras_plasticity.optimizers, name)
    arguments = _OPTIMIZERS[name]
    optimizer = kind(keras.optimizers.SGD(0.1), **arguments)
    config = optimizer.get_config()
    json.dumps(config)
    for key, value in arguments.items():
        plain = value.item() if value.dtype.kind in "iub" else float(str(value))
        assert repr(config[key]) == repr(plain), key
    model = make_model()
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(np.ones((4, 4)), np.ones((4, 3)), verbose=0)
    loaded = kind.from_config(json.loads(json.dumps(config)))
    assert loaded.get_config() == config


@pytest.mark.parametrize(
    "arguments",
    [
        dict(replacement_rate=True),
        dict(replacement_rate=np.True_),
        dict(decay_rate=np.float32("nan")),
        dict(maturity_threshold=1.5),
        dict(maturity_threshold=True),
        dict(transfer_mean="False"),
        dict(transfer_mean=1),
        dict(reset_optimizer_state=None),
        dict(seed=-1),
        dict(seed=2**70),
        dict(seed=True),
        dict(seed=1.5),
        dict(name=5),
        dict(utility=max),
        dict(utility=np.array(["overall", "random"])),
    ],
    ids=str,
)
def test_bad_arguments_of_optimizers(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}`"):
        keras_plasticity.optimizers.ContinualBackprop(
            keras.optimizers.SGD(0.1), **arguments
        )


@pytest.mark.parametrize(
    "arguments",
    [
        dict(axis=np.int64(-1), epsilon=np.float32(1e-3)),
        dict(forward_decay=np.float32(0.9), center=np.False_),
    ],
    ids=str,
)
def test_numbers_of_numpy_in_layers(arguments):
    layer = keras_plasticity.layers.OnlineNormalization(**arguments)
    config = json.loads(json.dumps(layer.get_config()))
    for key, value in arguments.items():
        plain = value.item() if value.dtype.kind in "iub" else float(str(value))
        assert repr(config[key]) == repr(plain), key


@pytest.mark.parametrize(
    "arguments",
    [
        dict(center="False"),
        dict(scale=0),
        dict(axis=True),
        dict(axis=-1.0),
        dict(epsilon=float("inf")),
        dict(backward_decay=True),
        dict(beta_initializer=5),
        dict(gamma_initializer=None),
        dict(beta_regularizer="l7"),
        dict(gamma_constraint=[1]),
    ],
    ids=str,
)
def test_bad_arguments_of_layers(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^`{name}` must be"):
        keras_plasticity.layers.OnlineNormalization(**arguments)


def test_replaceable_is_a_boolean():
    with pytest.raises(
        ValueError, match="`replaceable` must be `True` or `Fal"
    ):
        keras_plasticity.layers.Dense(3, replaceable="False")


def test_an_object_that_is_no_model():
    for value in (5, None, keras.layers.Dense(3)):
        with pytest.raises(TypeError, match="^`model` must be a `keras.Model`"):
            keras_plasticity.inspect(value)
    with pytest.raises(TypeError, match="^`print_fn` must be a function"):
        keras_plasticity.inspect(make_model(), print_fn="print")
    with pytest.raises(
        TypeError, match="^`inputs` must be a `keras.KerasTenso"
    ):
        keras_plasticity.inspect(make_model(), inputs=np.ones((2, 4)))


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("value", [[True, False], [1.0, 2.0]])
def test_what_is_no_tensor_of_integers(value, as_tensor):
    value = np.array(value)
    if as_tensor:
        value = keras.ops.convert_to_tensor(value)
    with pytest.raises(ValueError, match="`a` must be a tensor of integers"):
        validation.check_integer_tensor("a", value)
