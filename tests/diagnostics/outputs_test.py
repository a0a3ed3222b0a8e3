import numpy as np
import pytest

from keras_plasticity import diagnostics


@pytest.mark.parametrize("shape", [(1,), (5, 1), (3, 4), (2, 3, 4)])
def test_the_mean_squared_change(shape):
    rng = np.random.default_rng(0)
    before, after = rng.normal(0, 1, shape), rng.normal(0, 1, shape)
    expected = np.mean((after - before) ** 2)
    churn = diagnostics.output_churn(before, after)
    assert churn == pytest.approx(expected, rel=1e-12)
    assert diagnostics.output_churn(after, before) == churn
    assert diagnostics.output_churn(before, before) == 0.0


def test_outputs_of_any_scale():
    for scale in (1e-150, 1e150):
        before, after = np.array([3.0, 1.0]) * scale, np.zeros(2)
        churn = diagnostics.output_churn(before, after)
        assert churn == pytest.approx(5.0 * scale * scale, rel=1e-12)
    largest = np.finfo("float64").max
    opposite = np.array([largest, -largest])
    assert diagnostics.output_churn(opposite, -opposite) == np.inf
    # What does not change hides no change, however large it is.
    before, after = np.array([1e300, 0.0]), np.array([1e300, 1e-50])
    churn = diagnostics.output_churn(before, after)
    assert churn == pytest.approx(1e-100 / 2, rel=1e-12)


def test_small_dtypes():
    before, after = np.array([-128], "int8"), np.array([127], "int8")
    assert diagnostics.output_churn(before, after) == 255.0**2
    before, after = np.array([6e4], "float16"), np.array([-6e4], "float16")
    expected = (2 * float(before[0])) ** 2
    assert diagnostics.output_churn(before, after) == expected


def test_what_is_not_finite():
    ones = np.ones(2)
    assert diagnostics.output_churn(ones, np.array([1.0, np.inf])) == np.inf
    assert np.isnan(diagnostics.output_churn(np.array([np.nan, 1.0]), ones))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (np.ones(2), np.ones(3), r"before.shape=\(2,\), after.shape=\(3,\)"),
        (np.ones((0, 3)), np.ones((0, 3)), r"before.shape=\(0, 3\)"),
        ("ab", np.ones(2), "`before` must be an array.*Received: before=ab"),
        (np.ones(2), [1j, 2], "`after` must be an array.*Received: after="),
    ],
)
def test_bad_outputs(before, after, message):
    with pytest.raises(ValueError, match=message):
        diagnostics.output_churn(before, after)
