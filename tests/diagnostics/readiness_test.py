import numpy as np
import pytest

from keras_plasticity import diagnostics


def test_strength_times_reliability():
    rng = np.random.default_rng(0)
    for size in (1, 2, 128):
        loss, norm = rng.uniform(0.1, 3, 2)
        norms = rng.uniform(0, 5, size)
        strength = norm**2 / loss
        reliability = norm**2 / np.mean(norms**2)
        readiness = diagnostics.optimization_readiness(loss, norm, norms)
        assert readiness == pytest.approx(strength * reliability, rel=1e-12)
        # Batches that agree with the whole are as reliable as can be.
        readiness = diagnostics.optimization_readiness(loss, norm, [norm])
        assert readiness == pytest.approx(strength, rel=1e-12)


def test_zeros():
    assert diagnostics.optimization_readiness(0.0, 1.0, [1.0]) == 0.0
    assert diagnostics.optimization_readiness(1.0, 0.0, [1.0]) == 0.0
    assert diagnostics.optimization_readiness(1.0, 0.0, [0.0, 0.0]) == 0.0
    assert diagnostics.optimization_readiness(1.0, 2.0, [0.0]) == 0.0


@pytest.mark.parametrize("scale", [1e-150, 1e-70, 1e70, 1e150])
def test_numbers_of_any_scale(scale):
    expected = 2.0**4 / (3.0 * 2.5) * scale
    readiness = diagnostics.optimization_readiness(
        3.0 * scale, 2.0 * scale, [1.0 * scale, 2.0 * scale]
    )
    assert readiness == pytest.approx(expected, rel=1e-12)
    largest, smallest = np.finfo("float64").max, 5e-324
    for loss, norm, norms, result in (
        (1.0, largest, [1.0], np.inf),
        (smallest, 1.0, [1.0], np.inf),
        (largest, smallest, [largest], 0.0),
        (1.0, largest, [largest] * 3, np.inf),
    ):
        readiness = diagnostics.optimization_readiness(loss, norm, norms)
        assert readiness == result


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite(value):
    for numbers in (
        (value, 1.0, [1.0]),
        (1.0, value, [1.0]),
        (1.0, 1.0, [1.0, value]),
        (0.0, 1.0, [value]),
    ):
        assert np.isnan(diagnostics.optimization_readiness(*numbers))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": -1.0}, "`loss` must be a number that is not neg.*loss=-1.0"),
        ({"loss": None}, "`loss` must be a number.*loss=None"),
        ({"gradient_norm": [1.0]}, r"`gradient_norm` must .*\[1.0\]"),
        ({"gradient_norm": -1}, "`gradient_norm` must .*gradient_norm=-1"),
        ({"batch_gradient_norms": []}, r"`batch_gradient_norms` .*=\[\]"),
        ({"batch_gradient_norms": 1.0}, "`batch_gradient_norms` must be a li"),
        ({"batch_gradient_norms": [1.0, -1.0]}, "that are not negative"),
    ],
)
def test_bad_numbers(arguments, message):
    good = {"loss": 1.0, "gradient_norm": 1.0, "batch_gradient_norms": [1.0]}
    with pytest.raises(ValueError, match=message):
        diagnostics.optimization_readiness(**{**good, **arguments})
