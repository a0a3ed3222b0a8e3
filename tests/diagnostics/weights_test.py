import numpy as np
import pytest

from keras_plasticity import diagnostics


def test_every_entry_counts_the_same():
    weights = [np.array([[-1.0, 1.0], [2.0, 0.0]]), np.array([6.0])]
    assert diagnostics.weight_magnitude(weights) == pytest.approx(10 / 5)


def test_float32_sums_are_exact_enough():
    weights = [np.full((1000, 1000), 0.1, "float32")]
    expected = float(np.float32(0.1))
    assert diagnostics.weight_magnitude(weights) == pytest.approx(
        expected, 1e-9
    )


@pytest.mark.parametrize("weights", [[], [np.zeros((0, 3))]])
def test_no_entries(weights):
    with pytest.raises(ValueError, match="at least one entry"):
        diagnostics.weight_magnitude(weights)


def test_gradient_norm_is_of_all_entries_together():
    gradients = [np.array([[2.0, -3.0]]), None, np.array(6.0)]
    assert diagnostics.gradient_norm(gradients) == pytest.approx(7.0)
    assert diagnostics.gradient_norm([np.zeros((2, 3))]) == 0.0
    # Squares that float32 does not hold.
    large = [np.full(4, 1e30, "float32")]
    assert diagnostics.gradient_norm(large) == pytest.approx(2e30)


def test_weight_change():
    before = [np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([0.0])]
    after = [np.array([[1.0, 0.0], [5.0, 4.0]]), np.array([-1.0])]
    assert diagnostics.weight_change(before, after) == pytest.approx(5 / 5)
    assert diagnostics.weight_change(before, after, "sum") == pytest.approx(5.0)
    assert diagnostics.weight_change(before, before) == 0.0


@pytest.mark.parametrize("arrays", [[], [None], [np.zeros((0, 3))]])
def test_no_gradients(arrays):
    with pytest.raises(ValueError, match="`gradients` .* at least one entry"):
        diagnostics.gradient_norm(arrays)


def test_bad_weight_change():
    with pytest.raises(ValueError, match="at least one entry"):
        diagnostics.weight_change([], [])
    with pytest.raises(
        ValueError, match=r"before of shapes \[\(2,\)\], after of \[\(3,\)\]"
    ):
        diagnostics.weight_change([np.zeros(2)], [np.zeros(3)])
    with pytest.raises(ValueError, match="same shapes"):
        diagnostics.weight_change([np.zeros(2)], [np.zeros(2), np.zeros(2)])
    with pytest.raises(ValueError, match="reduction=max"):
        diagnostics.weight_change([np.zeros(2)], [np.zeros(2)], "max")


@pytest.mark.parametrize("scale", [1e300, 1e200, 1.0, 1e-170, 1e-320])
def test_float64_of_any_scale(scale):
    entries = [np.array([3.0, 0.0]) * scale, np.array(-4.0) * scale]
    norm = diagnostics.gradient_norm(entries)
    assert norm == pytest.approx(5.0 * scale, rel=1e-3)
    magnitude = diagnostics.weight_magnitude(entries)
    assert magnitude == pytest.approx(7 / 3 * scale, rel=1e-3)
    opposite = [-each for each in entries]
    change = diagnostics.weight_change(entries, opposite)
    assert change == pytest.approx(14 / 3 * scale, rel=1e-3)


def test_sums_that_overflow_with_a_mean_that_does_not():
    largest = np.finfo("float64").max
    weights = [np.full(4, largest), np.full(4, largest)]
    assert diagnostics.weight_magnitude(weights) == largest
    zeros = [np.zeros(4), np.zeros(4)]
    assert diagnostics.weight_change(weights, zeros) == largest
    assert diagnostics.weight_change(weights, zeros, "sum") == np.inf
    assert diagnostics.gradient_norm(weights) == np.inf


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_extremes_of_small_dtypes(dtype):
    limits = np.finfo(dtype)
    for value in (limits.max, limits.smallest_subnormal):
        entries = [np.full((2, 2), value, dtype)]
        assert diagnostics.gradient_norm(entries) == 2 * float(value)
        assert diagnostics.weight_magnitude(entries) == float(value)


def test_integers():
    entries = [np.array([-128, 0], "int8"), np.array([True, False])]
    assert diagnostics.weight_magnitude(entries) == 129 / 4
    before, after = [np.array([0], "uint8")], [np.array([255], "uint8")]
    assert diagnostics.weight_change(before, after) == 255


@pytest.mark.parametrize(
    "values, expected",
    [
        ([1.0, np.inf], np.inf),
        ([-np.inf, 1.0], np.inf),
        ([np.nan, 1.0], np.nan),
        ([np.nan, np.inf], np.nan),
    ],
)
def test_what_is_not_finite(values, expected):
    entries = [np.array(values), np.ones(2)]
    for result in (
        diagnostics.gradient_norm(entries),
        diagnostics.weight_magnitude(entries),
        diagnostics.weight_change(entries, [np.ones(2), np.ones(2)]),
        # Also where both are infinite.
        diagnostics.weight_change(entries, entries),
    ):
        np.testing.assert_equal(result, expected)


@pytest.mark.parametrize(
    "value",
    [None, 3.0, "ab", {"a": 1}, ["a"], [[1.0, [2.0]]], [1j], np.ones(())],
)
def test_no_list_of_arrays(value):
    for name, measure in (
        ("gradients", diagnostics.gradient_norm),
        ("weights", diagnostics.weight_magnitude),
        ("before", lambda value: diagnostics.weight_change(value, [])),
        ("after", lambda value: diagnostics.weight_change([], value)),
    ):
        with pytest.raises(ValueError, match=f"^`{name}` must be a list of ar"):
            measure(value)


def test_weight_growth():
    before = [np.array([[1.0, -2.0]]), np.array([3.0])]
    after = [np.array([[5.0, 2.0]]), np.array([-11.0])]
    assert diagnostics.weight_growth(before, after) == pytest.approx(3.0)
    assert diagnostics.weight_growth(before, before) == 1.0
    # Entries of any shapes, each the same.
    assert diagnostics.weight_growth(before, [np.ones((5, 7))]) == 0.5


def test_growth_from_and_to_zero():
    zeros, ones = [np.zeros((2, 3))], [np.ones(3)]
    assert diagnostics.weight_growth(zeros, zeros) == 1.0
    assert diagnostics.weight_growth(zeros, ones) == np.inf
    assert diagnostics.weight_growth(ones, zeros) == 0.0


@pytest.mark.parametrize("scale", [1e-320, 1e-170, 1e170, 1e307])
def test_growth_of_any_scale(scale):
    small, large = [np.array([1.0, 3.0])], [np.array([2.0, -2.0]) * scale]
    growth = diagnostics.weight_growth(small, large)
    assert growth == pytest.approx(scale, rel=1e-3)
    same = diagnostics.weight_growth(large, [3 * each for each in large])
    assert same == pytest.approx(3.0, rel=1e-3)


def test_growth_of_what_is_not_finite():
    ones, infinite = [np.ones(2)], [np.array([1.0, np.inf])]
    undefined = [np.array([np.nan])]
    assert diagnostics.weight_growth(ones, infinite) == np.inf
    assert diagnostics.weight_growth(infinite, ones) == 0.0
    for before, after in (
        (infinite, infinite),
        (ones, undefined),
        (undefined, ones),
        ([np.zeros(2)], undefined),
        (undefined, [np.zeros(2)]),
    ):
        assert np.isnan(diagnostics.weight_growth(before, after))


def test_growth_of_nothing():
    with pytest.raises(ValueError, match="`after` .* at least one entry"):
        diagnostics.weight_growth([np.ones(2)], [])
    with pytest.raises(ValueError, match="`before` must be a list of arrays"):
        diagnostics.weight_growth(None, [])
