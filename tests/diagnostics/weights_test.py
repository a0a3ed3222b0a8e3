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
