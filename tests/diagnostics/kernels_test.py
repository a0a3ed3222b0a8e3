import numpy as np
import pytest

from keras_plasticity import diagnostics

SHAPES = [(1, 1), (7, 3), (3, 7), (4, 4), (2, 3, 5), (3, 3, 2, 4), (1, 9)]


def _matrix(kernel):
    return kernel.reshape(-1, kernel.shape[-1])


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_of_gradients(shape):
    rng = np.random.default_rng(0)
    gradient = rng.normal(0, 1, shape) * rng.uniform(0, 1, shape[-1:]) ** 3
    magnitudes = np.abs(_matrix(gradient)).mean(axis=0)
    for threshold in (0.0, 0.01, 0.3, 0.7, 2.0):
        expected = np.sum(magnitudes / magnitudes.mean() <= threshold)
        dormant = diagnostics.gradient_dormant_units(gradient, threshold)
        assert dormant == expected
        # The scale of the layer's gradients does not count.
        for scale in (1e-200, 1e200):
            same = diagnostics.gradient_dormant_units(
                scale * gradient, threshold
            )
            assert same == expected


def test_units_without_gradient():
    assert diagnostics.gradient_dormant_units(np.zeros((4, 3))) == 3
    gradient = np.array([[1.0, 0.0, 1e-30], [-1.0, 0.0, 0.0]])
    assert diagnostics.gradient_dormant_units(gradient, 0.0) == 1
    assert diagnostics.gradient_dormant_units(gradient) == 2


@pytest.mark.parametrize("shape", SHAPES)
def test_deviation_from_isometry(shape):
    rng = np.random.default_rng(0)
    kernel = rng.normal(0, 0.5, shape)
    # By the singular values, of which there are as many as the smaller axis.
    values = np.linalg.svd(_matrix(kernel), compute_uv=False)
    expected = np.sqrt(np.sum((values**2 - 1) ** 2))
    deviation = diagnostics.isometry_deviation([kernel])
    assert deviation == pytest.approx(expected, rel=1e-10)
    both = diagnostics.isometry_deviation([kernel, kernel])
    assert both == pytest.approx(np.sqrt(2) * expected, rel=1e-10)
    # Of zeros.
    deviation = diagnostics.isometry_deviation([np.zeros(shape)])
    assert deviation == pytest.approx(np.sqrt(len(values)))


def test_orthogonal_kernels_deviate_by_nothing():
    rng = np.random.default_rng(0)
    matrix, _ = np.linalg.qr(rng.normal(0, 1, (9, 4)))
    for kernel in (matrix, matrix.T, matrix.reshape(3, 3, 1, 4)):
        assert diagnostics.isometry_deviation([kernel]) < 1e-14
    # In the float32 that kernels have.
    kernel = matrix.astype("float32")
    assert diagnostics.isometry_deviation([kernel, kernel.T]) < 1e-6


def test_kernels_of_any_scale():
    kernel = np.array([[3.0, 0.0], [0.0, 4.0]])
    for scale in (1e20, 1e100, 1e150):
        expected = np.sqrt(81.0 + 256.0) * scale**2
        deviation = diagnostics.isometry_deviation([scale * kernel, np.eye(2)])
        assert deviation == pytest.approx(expected, rel=1e-12)
    assert diagnostics.isometry_deviation([1e200 * kernel]) == np.inf
    for scale in (1e-320, 1e-200, 1e-20):
        deviation = diagnostics.isometry_deviation([scale * kernel])
        assert deviation == pytest.approx(np.sqrt(2.0))


def test_kernels_that_are_not_finite():
    for value in (np.nan, np.inf):
        kernel = np.array([[1.0, value]])
        deviation = diagnostics.isometry_deviation([np.eye(2), kernel])
        np.testing.assert_equal(deviation, value)
    with pytest.raises(ValueError, match="`gradient` must be finite.*1 NaN"):
        diagnostics.gradient_dormant_units(np.array([[1.0, np.nan]]))


@pytest.mark.parametrize(
    ("kernels", "message"),
    [
        ([], r"without biases. Received: arrays of shapes \[\]"),
        ([np.eye(2), np.ones(3)], r"shapes \[\(2, 2\), \(3,\)\]"),
        ([np.ones((0, 3))], r"shapes \[\(0, 3\)\]"),
        (3, "`kernels` must be a list of arrays.*kernels=3"),
        ([[1j]], "`kernels` must be a list of arrays"),
    ],
)
def test_bad_kernels(kernels, message):
    with pytest.raises(ValueError, match=message):
        diagnostics.isometry_deviation(kernels)


@pytest.mark.parametrize(
    ("gradient", "threshold", "message"),
    [
        (np.ones(3), 0.1, r"gradient.shape=\(3,\)"),
        (np.ones((3, 0)), 0.1, r"gradient.shape=\(3, 0\)"),
        (None, 0.1, "`gradient` must be an array.*gradient=None"),
        (np.eye(2), -0.1, "threshold=-0.1"),
    ],
)
def test_bad_gradients(gradient, threshold, message):
    with pytest.raises(ValueError, match=message):
        diagnostics.gradient_dormant_units(gradient, threshold)
