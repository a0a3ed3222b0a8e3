import keras
import numpy as np
import pytest

from keras_plasticity import diagnostics
from keras_plasticity.diagnostics import linearity
from keras_plasticity.diagnostics import units
from tests.helpers import to_numpy


def test_a_unit_is_dead_only_if_it_is_zero_for_every_example():
    features = np.array(
        [[0.0, 1.0, 0.0, -0.0], [0.0, 0.0, 1e-30, 0.0]], "float32"
    )
    assert diagnostics.dead_units(features) == 2
    assert diagnostics.dead_units(features + 1.0) == 0
    assert diagnostics.dead_units(np.zeros((3, 7))) == 7


def test_an_inactive_unit_is_not_zero_on_less_than_a_share():
    features = np.zeros((200, 4))
    features[:1, 1] = 1.0  # 0.5 %
    features[:2, 2] = -1.0  # 1 %
    features[:, 3] = 1.0
    assert diagnostics.inactive_units(features) == 2
    assert diagnostics.inactive_units(features, threshold=0.005) == 1
    assert diagnostics.inactive_units(features, threshold=1.0) == 3
    assert diagnostics.inactive_units(np.zeros((3, 7))) == 7


def test_a_dormant_unit_is_small_for_its_layer():
    # Means of magnitudes 2, 1 and 0; of these the mean is 1.
    features = np.array([[-2.0, 2.0, 0.0], [2.0, 0.0, 0.0]])
    assert diagnostics.dormant_units(features, threshold=0.0) == 1
    assert diagnostics.dormant_units(features, threshold=0.99) == 1
    assert diagnostics.dormant_units(features, threshold=1.0) == 2
    assert diagnostics.dormant_units(features, threshold=2.0) == 3
    # The scale of the layer does not count.
    assert diagnostics.dormant_units(1e-6 * features, threshold=0.1) == 1
    assert diagnostics.dormant_units(np.zeros((3, 7))) == 7


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e200, 4e307])
def test_dormant_units_of_any_scale(scale):
    # Means of magnitudes 2, 1 and 0.
    features = np.array([[-2.0, 2.0, 0.0]] * 9 + [[2.0, 0.0, 0.0]] * 9) * scale
    assert diagnostics.dormant_units(features, threshold=0.99) == 1
    assert diagnostics.dormant_units(features, threshold=1.0) == 2
    # In parts, of which one decides.
    parts = units.UnitActivity(np.full((5, 3), 5e-324))
    parts.add(features)
    parts.add(np.full((5, 3), 5e-324))
    assert parts.dormant(0.9) == 1


def test_with_threshold_zero_dormant_units_are_dead():
    features = np.array([[1e300, 5e-324, 0.0]])
    assert diagnostics.dormant_units(features, threshold=0.0) == 1


def test_integers():
    features = np.array([[-128, 127, 0]], "int8")
    assert diagnostics.dormant_units(features, threshold=1.4) == 1
    assert diagnostics.dead_units(features > 0) == 2


def test_extremes_beyond_the_dtype():
    features = np.array([[6e4, 1.0]], "float16")
    beyond = dict(extremes=(1e30,), tolerance=0.0)
    assert diagnostics.saturated_units(features, **beyond) == 0
    assert diagnostics.saturated_units(features, (0.0,), tolerance=1e30) == 2


def test_saturated_tanh():
    features = np.array([[0.95, 0.95, 0.9, 0.0], [-0.95, 0.5, 1.0, -1.0]])
    assert diagnostics.saturated_units(features) == 1
    assert diagnostics.saturated_fraction(features) == 5 / 8
    # The zero matrix is far from both extremes.
    assert diagnostics.saturated_units(np.zeros((2, 3))) == 0
    assert diagnostics.saturated_fraction(np.zeros((2, 3))) == 0.0


def test_saturated_sigmoid_and_relu():
    features = np.array([[0.0, 0.5, 0.99], [0.01, 0.0, 1.0]])
    sigmoid = dict(extremes=(0.0, 1.0), tolerance=0.05)
    assert diagnostics.saturated_units(features, **sigmoid) == 2
    assert diagnostics.saturated_fraction(features, **sigmoid) == 5 / 6
    relu = dict(extremes=(0.0,), tolerance=0.0)
    assert diagnostics.saturated_units(features, **relu) == 0
    assert diagnostics.saturated_fraction(features, **relu) == 2 / 6
    dead = np.array([[0.0, 3.0], [0.0, 0.0]])
    assert diagnostics.saturated_units(dead, **relu) == diagnostics.dead_units(
        dead
    )


def test_activations_may_be_added_part_by_part():
    rng = np.random.default_rng(0)
    features = np.tanh(rng.normal(0, 2, (50, 9))) * (rng.random((50, 9)) > 0.7)
    features[:, 3] *= 0.01
    features[:, 4] = 0.97
    parts = units.UnitActivity(features[:7], (-1.0, 1.0))
    parts.add(features[7:8])
    parts.add(features[8:])
    whole = units.UnitActivity(features, (-1.0, 1.0))
    assert parts.dead() == whole.dead()
    assert parts.inactive(0.3) == whole.inactive(0.3) > 0
    assert parts.dormant(0.1) == whole.dormant(0.1) == 1
    assert parts.saturated() == whole.saturated() == 1
    assert parts.saturated_fraction() == whole.saturated_fraction()


UNIT_MEASURES = [
    diagnostics.dead_units,
    diagnostics.dormant_units,
    diagnostics.inactive_units,
    diagnostics.saturated_fraction,
    diagnostics.saturated_units,
]


@pytest.mark.parametrize("measure", UNIT_MEASURES)
def test_bad_features(measure):
    with pytest.raises(ValueError, match=r"features.shape=\(4,\)"):
        measure(np.zeros(4))
    with pytest.raises(ValueError, match=r"features.shape=\(0, 4\)"):
        measure(np.zeros((0, 4)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        measure(np.full((2, 2), np.inf))


@pytest.mark.parametrize(
    "measure, arguments, message",
    [
        (diagnostics.dormant_units, {"threshold": -0.1}, "threshold=-0.1"),
        (diagnostics.dormant_units, {"threshold": np.nan}, "threshold=nan"),
        (diagnostics.inactive_units, {"threshold": 0.0}, "threshold=0.0"),
        (diagnostics.inactive_units, {"threshold": 1.1}, "threshold=1.1"),
        (diagnostics.saturated_units, {"tolerance": -1.0}, "tolerance=-1.0"),
        (diagnostics.saturated_fraction, {"extremes": ()}, r"extremes=\(\)"),
        (diagnostics.saturated_units, {"extremes": 1.0}, "extremes=1.0"),
        (diagnostics.saturated_units, {"extremes": (np.nan,)}, r"\(nan,\)"),
        (diagnostics.dead_units, {"features": "ab"}, "features=ab .a string"),
        (diagnostics.dead_units, {"features": [[1], [1, 2]]}, r"\[\[1\], \[1,"),
        (diagnostics.dead_units, {"features": [[1j]]}, r"features=\[\[1j\]\]"),
    ],
)
def test_bad_arguments(measure, arguments, message):
    with pytest.raises(ValueError, match=message):
        measure(**{"features": np.eye(2), **arguments})


def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


# Of each, its formula, and that of its derivative by the input.
_FUNCTIONS = {
    "celu": (lambda x: np.where(x > 0, x, np.expm1(x)), None),
    "elu": (lambda x: np.where(x > 0, x, np.expm1(x)), None),
    "hard_sigmoid": (lambda x: np.clip(x / 6 + 0.5, 0, 1), None),
    "hard_tanh": (lambda x: np.clip(x, -1, 1), None),
    "leaky_relu": (lambda x: np.where(x > 0, x, 0.2 * x), None),
    "relu": (lambda x: np.maximum(x, 0), None),
    "relu6": (lambda x: np.clip(x, 0, 6), None),
    "selu": (
        lambda x: 1.05070098 * np.where(x > 0, x, 1.67326324 * np.expm1(x)),
        None,
    ),
    "sigmoid": (_sigmoid, lambda x: _sigmoid(x) * _sigmoid(-x)),
    "softplus": (lambda x: np.log1p(np.exp(x)), _sigmoid),
    "softsign": (lambda x: x / (1 + abs(x)), lambda x: (1 + abs(x)) ** -2.0),
    "tanh": (np.tanh, lambda x: np.cosh(x) ** -2.0),
}
# Inputs on either side of where those without a derivative are linear.
_PIECES = {
    "hard_sigmoid": [(-3.0, 3.0)],
    "hard_tanh": [(-1.0, 1.0)],
    "leaky_relu": [(0.0, np.inf), (-np.inf, 0.0)],
    "relu6": [(0.0, 6.0)],
}


def test_each_linear_function_is_one_of_keras():
    assert {*_FUNCTIONS} == {*linearity.LINEAR_FUNCTIONS}
    for name, (function, _) in _FUNCTIONS.items():
        x = np.linspace(-8, 8, 33)
        theirs = getattr(keras.activations, name)(x.astype("float32"))
        np.testing.assert_allclose(to_numpy(theirs), function(x), atol=1e-5)


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_linear_units(name):
    function, derivative = _FUNCTIONS[name]
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (50, 40)) * rng.uniform(0, 3, 40)
    x += rng.normal(0, 4, 40)
    # Units that are linear, whatever the function.
    x[:, 0] = rng.uniform(3.0, 5.0, 50) if name == "softplus" else 0.01
    if derivative is None:
        pieces = _PIECES.get(name, [(0.0, np.inf)])
        shares = [np.mean((a < x) & (x < b), axis=0) for a, b in pieces]
    else:
        steepest = derivative(np.linspace(-100, 100, 20_001)).max()
        shares = [np.mean(derivative(x) > 0.9 * steepest, axis=0)]
    share = np.max(shares, axis=0)
    features = function(x)
    assert diagnostics.linear_fraction(features, name) == np.mean(share)
    for threshold in (0.1, 0.5, 0.9, 1.0):
        number = diagnostics.linear_units(features, name, threshold)
        assert number == np.sum(share >= threshold)
    assert diagnostics.linear_units(features, name, 1.0) > 0
    # In parts.
    parts = units.UnitActivity(
        features[:1], regions=linearity.linear_regions(name)
    )
    parts.add(features[1:])
    assert parts.linear_fraction() == np.mean(share)
    assert parts.linear() == np.sum(share >= 0.9)
    # Or what was counted elsewhere.
    counted = units.UnitActivity(regions=linearity.linear_regions(name))
    ones, linear = np.ones(40), np.ones((1, 40), "int32")
    for few, many in ((0, 7), (5, 15)):
        for number, size in ((few, 10), (many, 30)):
            counted.add_sums(size, ones, ones, 1.0, num_linear=number * linear)
    assert counted.linear_fraction() == 27 / 80


def test_a_unit_that_is_off_is_not_linear():
    # Always on, always off, at times.
    features = np.array([[1.0, 0.0, 1.0], [2.0, 0.0, 0.0]])
    assert diagnostics.linear_units(features) == 1
    assert diagnostics.linear_units(features, threshold=0.5) == 2
    assert diagnostics.linear_fraction(features) == 0.5
    assert diagnostics.linear_units(np.zeros((3, 7))) == 0
    assert diagnostics.linear_fraction(np.zeros((3, 7))) == 0.0
    # A leaky one computes a linear function there, too.
    assert diagnostics.linear_units(-features, "leaky_relu") == 1
    # Saturated at both ends.
    saturated = np.array([[-1.0, 1.0], [1.0, 1.0]])
    for name in ("tanh", "hard_tanh", "softsign"):
        assert diagnostics.linear_units(saturated, name) == 0
    assert diagnostics.linear_units(np.zeros((1, 1)), "tanh") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"function": "gelu"}, "`function` must be one of .*function=gelu"),
        ({"function": None}, "`function` must be one of .*function=None"),
        ({"threshold": 0.0}, "threshold=0.0"),
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"features": np.ones(3)}, r"features.shape=\(3,\)"),
        ({"features": [[np.nan]]}, "NaN or infinite"),
    ],
)
def test_bad_arguments_of_linear_units(arguments, message):
    with pytest.raises(ValueError, match=message):
        diagnostics.linear_units(**{"features": np.eye(2), **arguments})
    if "threshold" not in arguments:
        with pytest.raises(ValueError, match=message):
            diagnostics.linear_fraction(**{"features": np.eye(2), **arguments})
