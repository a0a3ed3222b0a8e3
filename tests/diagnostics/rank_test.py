from fractions import Fraction

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_plasticity import diagnostics
from keras_plasticity.diagnostics import rank as rank_module

RANKS = [
    diagnostics.absolute_approximate_rank,
    diagnostics.approximate_rank,
    diagnostics.effective_rank,
    diagnostics.hard_rank,
    diagnostics.stable_rank,
]


def matrix(singular_values, examples=9, units=5):
    """A random matrix of given singular values."""
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.normal(size=(examples, units)))
    right, _ = np.linalg.qr(rng.normal(size=(units, units)))
    values = np.zeros(units)
    values[: len(singular_values)] = singular_values
    return (left * values) @ right


@pytest.mark.parametrize("rank", RANKS)
def test_the_zero_matrix_has_rank_zero(rank):
    assert rank(np.zeros((4, 3))) == 0


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("scale", [1e-170, 1e-20, 1.0, 1e20, 1e200, 1e308])
def test_equal_singular_values_count_in_full(rank, scale):
    assert rank(matrix([scale, scale, scale])) == pytest.approx(3)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_ranks_do_not_depend_on_the_scale(rank, dtype):
    features = np.array([[3, 0, 0], [0, 2, 0], [0, 0, 1], [1, 1, 0]], dtype)
    expected = rank(features)
    limits = np.finfo(dtype)
    assert rank(features * limits.smallest_subnormal) == expected
    assert rank(np.ldexp(features, limits.maxexp - 2)) == expected


@pytest.mark.parametrize("rank", RANKS)
def test_one_direction_has_rank_one(rank):
    features = np.outer(np.arange(1, 5), np.ones(3)).astype("float32")
    assert rank(features) == pytest.approx(1)
    assert rank(features.T) == pytest.approx(1)


def test_singular_values_too_small_for_their_share():
    values = np.array([1e308, 1e-20])
    assert rank_module.rank_of_values(values) == 1.0


def test_effective_rank_is_the_exponential_of_the_entropy():
    p = np.array([0.5, 0.25, 0.25])
    expected = np.exp(-np.sum(p * np.log(p)))
    assert diagnostics.effective_rank(matrix(p)) == pytest.approx(expected)


def test_effective_rank_of_values_that_vanish_beside_others():
    features = np.diag([1e10, 5e-324])
    assert diagnostics.effective_rank(features) == pytest.approx(1)


def test_approximate_ranks_take_squares_and_plain_values():
    features = matrix([10.0, 3.0, 0.9, 0.09])
    # Of the squares, 100, 9, 0.81 and 0.0081, two are 99.3%.
    assert diagnostics.approximate_rank(features) == 2
    # Of the values, sum 13.99, two are 92.9% and three 99.4%.
    assert diagnostics.absolute_approximate_rank(features) == 3
    assert diagnostics.approximate_rank(features, threshold=0.9) == 1
    assert diagnostics.absolute_approximate_rank(features, threshold=1.0) >= 4


def test_approximate_rank_reaches_its_threshold_exactly():
    assert diagnostics.absolute_approximate_rank(np.eye(100)) == 99
    assert diagnostics.approximate_rank(np.eye(100)) == 99


def test_stable_rank_is_a_ratio_of_norms():
    features = matrix([2.0, 1.0, 1.0])
    assert diagnostics.stable_rank(features) == pytest.approx(6 / 4)


def test_hard_rank_leaves_rounding_out():
    features = matrix([1.0, 0.5, 1e-3]).astype("float32")
    assert diagnostics.hard_rank(features) == 3


@pytest.mark.parametrize(
    "features", [matrix([3.0, 2.0, 1e-9]), np.zeros((2, 3))]
)
def test_several_ranks_take_the_singular_values_once(features, monkeypatch):
    expected = {rank.__name__: rank(features) for rank in RANKS}
    calls = []
    svd = np.linalg.svd

    def counted(*args, **kwargs):
        calls.append(args)
        return svd(*args, **kwargs)

    monkeypatch.setattr(np.linalg, "svd", counted)
    assert rank_module.several_ranks(features, list(expected)) == expected
    assert len(calls) == 1


@st.composite
def _features(draw):
    """Products of small whole numbers, of any rank and any scale."""
    examples, units = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    inner = draw(st.integers(0, min(examples, units)))
    numbers = st.integers(-3, 3)

    def whole(rows, columns):
        size = rows * columns
        flat = draw(st.lists(numbers, min_size=size, max_size=size))
        return np.array(flat, "float64").reshape(rows, columns)

    if draw(st.booleans()):
        return whole(examples, units)
    return whole(examples, inner) @ whole(inner, units)


def _exact_rank(matrix):
    """By Gaussian elimination, in fractions."""
    rows = [[Fraction(int(n)) for n in row] for row in matrix]
    rank = 0
    for column in range(matrix.shape[1]):
        pivot = next((r for r in rows[rank:] if r[column]), None)
        if pivot is None:
            continue
        rows.remove(pivot)
        rows.insert(rank, pivot)
        for i in range(rank + 1, len(rows)):
            factor = rows[i][column] / pivot[column]
            rows[i] = [a - factor * b for a, b in zip(rows[i], pivot)]
        rank += 1
    return rank


@given(_features())
def test_hard_rank_is_the_exact_one(features):
    assert diagnostics.hard_rank(features) == _exact_rank(features)


@given(_features(), st.floats(0.01, 1.0))
def test_ranks_are_those_of_the_eigenvalues(features, threshold):
    squares = np.linalg.eigvalsh(features.T @ features)[::-1]
    squares = squares[: min(features.shape)]
    squares = np.where(squares < 1e-9 * squares[0], 0.0, squares)
    if not squares.any():
        return
    values = np.sqrt(squares)
    p = values / values.sum()
    entropy = -np.sum(p * np.log(np.where(p > 0, p, 1.0)))
    assert diagnostics.effective_rank(features) == pytest.approx(
        np.exp(entropy), rel=1e-4
    )
    assert diagnostics.stable_rank(features) == pytest.approx(
        squares.sum() / squares[0], rel=1e-6
    )
    for rank, parts in (
        (diagnostics.approximate_rank, squares),
        (diagnostics.absolute_approximate_rank, values),
    ):
        k = rank(features, threshold)
        shares = np.concatenate([[0.0], np.cumsum(parts) / parts.sum()])
        # Within what rounding decides.
        assert shares[k - 1] <= threshold + 1e-4
        assert shares[k] >= threshold - 1e-4


@given(_features(), st.data())
def test_ranks_do_not_change_with_order_or_scale(features, data):
    rows = data.draw(st.permutations(range(features.shape[0])))
    columns = data.draw(st.permutations(range(features.shape[1])))
    exponent = data.draw(st.integers(-900, 900))
    other = np.ldexp(features[rows][:, columns], exponent)
    if data.draw(st.booleans()):
        other = other.T
    shares = _shares(features)
    for rank in RANKS:
        if rank in shares and np.any(np.abs(shares[rank] - 0.99) < 1e-9):
            continue  # Rounding decides.
        assert rank(other) == pytest.approx(rank(features), rel=1e-9)


def _shares(features):
    values = np.linalg.svd(features, compute_uv=False)
    total = max(values.sum(), 1e-300)
    squares = max((values**2).sum(), 1e-300)
    return {
        diagnostics.absolute_approximate_rank: np.cumsum(values) / total,
        diagnostics.approximate_rank: np.cumsum(values**2) / squares,
    }


@given(_features())
def test_ranks_lie_between_one_and_the_hard_rank(features):
    hard = diagnostics.hard_rank(features)
    hypothesis.event(f"hard rank {hard} of {min(features.shape)}")
    for rank in RANKS:
        assert min(hard, 1) - 1e-9 <= rank(features) <= hard + 1e-6
    assert (
        diagnostics.stable_rank(features)
        <= diagnostics.effective_rank(features) + 1e-9
    )


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(
    "features, message",
    [
        (np.zeros(3), r"features.shape=\(3,\)"),
        (np.zeros((2, 3, 4)), r"features.shape=\(2, 3, 4\)"),
        (np.zeros((0, 3)), r"features.shape=\(0, 3\)"),
        (np.array([[0.0, np.nan]]), "1 NaN"),
    ],
)
def test_bad_features(rank, features, message):
    with pytest.raises(ValueError, match=message):
        rank(features)


@pytest.mark.parametrize("threshold", [0.0, 1.5, float("nan")])
@pytest.mark.parametrize(
    "rank",
    [diagnostics.absolute_approximate_rank, diagnostics.approximate_rank],
)
def test_bad_threshold(rank, threshold):
    with pytest.raises(ValueError, match=f"threshold={threshold}"):
        rank(np.eye(2), threshold=threshold)


@pytest.mark.parametrize("shape", [(32, 32), (40, 100), (200, 33), (31, 500)])
@pytest.mark.parametrize("rank", [1, 5, None])
@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_large_matrices(shape, rank, scale):
    rng = np.random.default_rng(0)
    features = np.maximum(rng.normal(size=shape), 0.0)
    if rank is not None:
        features = rng.normal(size=(shape[0], rank)) @ features[:rank]
    values = np.linalg.svd(features, compute_uv=False)
    features = features * scale
    values = np.where(values > 1e-10 * values[0], values, 0.0)
    p = values[values > 0] / values.sum()
    expected = np.exp(-np.sum(p * np.log(p)))
    assert diagnostics.effective_rank(features) == pytest.approx(expected)
    expected = np.sum(values**2) / values[0] ** 2
    assert diagnostics.stable_rank(features) == pytest.approx(expected)
    assert diagnostics.hard_rank(features) == (rank or min(shape))
    for squared, measure in (
        (True, diagnostics.approximate_rank),
        (False, diagnostics.absolute_approximate_rank),
    ):
        sums = np.cumsum(values**2 if squared else values)
        assert measure(features) == 1 + np.argmax(sums / sums[-1] >= 0.99)


def test_a_large_zero_matrix():
    features = np.zeros((50, 40))
    assert diagnostics.effective_rank(features) == 0
    assert diagnostics.hard_rank(features) == 0
