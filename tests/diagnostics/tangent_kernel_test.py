import numpy as np
import pytest

from keras_plasticity import diagnostics
from keras_plasticity.diagnostics import tangent_kernel


def _eigenvalues(gradients):
    """By the singular values of the gradients themselves."""
    values = np.linalg.svd(gradients, compute_uv=False) ** 2
    return np.concatenate([values, np.zeros(len(gradients) - len(values))])


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 9), (4, 4), (6, 200)])
def test_rank_and_condition(shape):
    gradients = np.random.default_rng(0).normal(0, 1, shape)
    values = _eigenvalues(gradients)
    p = values / values.sum()
    rank = diagnostics.tangent_kernel_rank(gradients)
    assert rank == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-9)
    condition = diagnostics.tangent_kernel_condition(gradients)
    assert condition == pytest.approx(values[0] / values[-1], rel=1e-6)
    # In parts.
    rng = np.random.default_rng(1)
    for scale in (1e-300, 1e-160, 1e160, 1e300):
        other = scale * gradients[:, rng.permutation(shape[1])]
        same = diagnostics.tangent_kernel_rank(other)
        assert same == pytest.approx(rank, rel=1e-9)
        same = diagnostics.tangent_kernel_condition(other)
        assert same == pytest.approx(condition, rel=1e-6)


def test_columns_are_taken_in_parts(monkeypatch):
    gradients = np.random.default_rng(0).normal(0, 1, (3, 20))
    rank = diagnostics.tangent_kernel_rank(gradients)
    for size in (1, 9, 21):
        monkeypatch.setattr(tangent_kernel, "_ENTRIES_AT_ONCE", size)
        same = diagnostics.tangent_kernel_rank(gradients)
        assert same == pytest.approx(rank, rel=1e-12)


def test_singular_kernels():
    same = np.ones((3, 5))
    assert diagnostics.tangent_kernel_rank(same) == pytest.approx(1.0)
    assert diagnostics.tangent_kernel_condition(same) == np.inf
    # More examples than weights.
    wide = np.random.default_rng(0).normal(0, 1, (7, 3))
    assert 1.0 < diagnostics.tangent_kernel_rank(wide) <= 3.0
    assert diagnostics.tangent_kernel_condition(wide) == np.inf
    # One example has no gradient.
    assert diagnostics.tangent_kernel_condition(np.diag([1.0, 0.0])) == np.inf
    zeros = np.zeros((3, 5))
    assert diagnostics.tangent_kernel_rank(zeros) == 0.0
    assert diagnostics.tangent_kernel_condition(zeros) == np.inf


def test_what_cannot_be_told_from_rounding():
    for small, expected in ((1e-4, 1e8), (1e-9, np.inf)):
        gradients = np.diag([1.0, small])
        condition = diagnostics.tangent_kernel_condition(gradients)
        assert condition == pytest.approx(expected)
    # Of float32: the same row, rounded another way.
    rng = np.random.default_rng(0)
    row = rng.normal(0, 1, 50)
    gradients = np.stack([row, row / 3 * 3.0000000001, 0.1 * row])
    gradients = gradients.astype("float32")
    assert diagnostics.tangent_kernel_condition(gradients) == np.inf
    assert diagnostics.tangent_kernel_rank(gradients) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "measure",
    [diagnostics.tangent_kernel_condition, diagnostics.tangent_kernel_rank],
)
@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        (np.ones(3), r"gradients.shape=\(3,\)"),
        (np.ones((0, 3)), r"gradients.shape=\(0, 3\)"),
        (np.array([[np.nan, 1.0]]), "`gradients` must be finite.*1 NaN"),
        ("ab", "`gradients` must be an array"),
    ],
)
def test_bad_gradients(measure, gradients, message):
    with pytest.raises(ValueError, match=message):
        measure(gradients)
