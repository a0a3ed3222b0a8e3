import numpy as np
import pytest

from keras_plasticity import diagnostics
from keras_plasticity.diagnostics import units


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
