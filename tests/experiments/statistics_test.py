"""Estimates, against NumPy, SciPy and rliable."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest

from keras_plasticity import experiments
from keras_plasticity.experiments import statistics

pytest.importorskip("scipy.stats")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("seeds", [["a", 0], [0, 0.5], [1, None], 3, "0"])
def test_seeds_that_are_none(seeds):
    with pytest.raises(ValueError, match="`selection_seeds` must be a list of"):
        experiments.check_separate_seeds(seeds, [7])
    with pytest.raises(ValueError, match="`report_seeds` must be a list of"):
        experiments.check_separate_seeds([7], seeds)


@pytest.mark.parametrize("num_tasks", [1, 9, 10, 11, 20, 101])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_measures_of_a_curve(num_tasks, shape):
    values = draw(num_tasks, *shape)
    area = experiments.area_under_curve(values)
    last = experiments.last_tenth(values)
    assert area.shape == last.shape == shape
    np.testing.assert_allclose(area, values.sum(axis=0) / num_tasks)
    tail = {1: 1, 9: 1, 10: 1, 11: 2, 20: 2, 101: 11}[num_tasks]
    np.testing.assert_allclose(last, values[-tail:].sum(axis=0) / tail)


def test_measures_of_what_diverged():
    values = np.array([[1.0, math.inf], [3.0, 1.0]])
    np.testing.assert_array_equal(
        experiments.area_under_curve(values), [2, math.nan]
    )
    np.testing.assert_array_equal(experiments.last_tenth(values), [3, 1])


def interquartile_mean(values):
    """The mean of what is left without a quarter at each end."""
    values = np.sort(np.ravel(values))
    cut = len(values) // 4
    return values[cut : len(values) - cut].mean()


@pytest.mark.parametrize("seeds", [2, 3, 4, 7, 30])
@pytest.mark.parametrize("problems", [1, 3])
def test_values_of_estimates(seeds, problems):
    scores = draw(seeds, problems)
    as_dict = {f"problem {i}": scores[:, i] for i in range(problems)}
    for each in (scores, as_dict):
        mean = experiments.estimate(each)
        middle = experiments.estimate(each, "interquartile_mean")
        assert mean.value == pytest.approx(scores.mean())
        assert middle.value == pytest.approx(interquartile_mean(scores))
        assert mean.n == middle.n == seeds * problems
        assert mean.low < mean.value < mean.high


def test_the_problems_count_alike():
    scores = {"few": [0.0, 2.0], "many": [10.0] * 8}
    assert experiments.estimate(scores).value == pytest.approx(5.5)


def test_the_interval_is_between_percentiles_of_all_resamples():
    """Of two problems and two seeds there are 16 equally likely ones."""
    first, second = [0.0, 1.0], [5.0, 9.0]
    means = [
        np.mean([a, b, c, d])
        for a, b in itertools.product(first, first)
        for c, d in itertools.product(second, second)
    ]
    found = experiments.estimate(
        {"a": first, "b": second},
        confidence=0.6,
        num_resamples=20_000,
        small_sample=False,
    )
    assert found.low == pytest.approx(np.percentile(means, 20))
    assert found.high == pytest.approx(np.percentile(means, 80))


@pytest.mark.parametrize(("seeds", "problems"), [(3, 1), (10, 1), (5, 4)])
def test_few_seeds_have_longer_intervals(seeds, problems):
    scipy_stats = pytest.importorskip("scipy.stats")
    scores = draw(seeds, problems)
    plain = experiments.estimate(scores, small_sample=False)
    found = experiments.estimate(scores)
    t = scipy_stats.t.ppf(0.975, problems * (seeds - 1))
    factor = math.sqrt(seeds / (seeds - 1)) * t / 1.959964
    assert found.value == plain.value
    for end in ("low", "high"):
        assert getattr(found, end) - found.value == pytest.approx(
            factor * (getattr(plain, end) - plain.value)
        )


@pytest.mark.parametrize("seeds", [3, 10])
def test_intervals_have_the_mean_in_them(seeds):
    """In 95 of 100 cases, of normal scores whose mean is 0."""
    low, high = statistics.interval_of_means(draw(600, seeds))
    share = np.mean((low < 0) & (high > 0))
    # 600 cases are right by 0.009, and the bootstrap is no exact method.
    assert 0.91 < share < 0.98


def test_intervals_of_many_means():
    values = draw(4, 6)
    low, high = statistics.interval_of_means(values, num_resamples=2000)
    for i, each in enumerate(values):
        found = experiments.estimate(each)
        assert low[i] == pytest.approx(found.low, abs=0.1)
        assert high[i] == pytest.approx(found.high, abs=0.1)
    assert np.isnan(statistics.interval_of_means(values[:, :1])).all()


def test_means_are_computed_in_parts(monkeypatch):
    values = draw(103, 4)
    expected = statistics.interval_of_means(values)
    monkeypatch.setattr(statistics, "_MOST_NUMBERS", 500 * 4 * 10)
    np.testing.assert_array_equal(
        statistics.interval_of_means(values), expected
    )


@pytest.mark.parametrize(
    "compute",
    [
        lambda: statistics.interval_of_means(draw(3000, 30)),
        lambda: statistics.probability_of_improvement(draw(400), draw(300)),
        lambda: statistics.estimate(draw(50_000), num_resamples=500),
    ],
)
def test_memory_is_bounded(compute):
    compute()  # SciPy is imported.
    tracemalloc.start()
    compute()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3e8


def test_many_seeds():
    mine, theirs = draw(400), draw(300, seed=1) - 0.5
    found = experiments.probability_of_improvement(mine, theirs)
    above = (mine[:, None] > theirs).mean()
    assert found.value == pytest.approx(above) and found.n == 300
    assert 0.02 < found.value - found.low < 0.06


def test_paired_differences():
    """A seed's luck, which is in both, widens no interval."""
    luck = 100 * draw(10, 2)
    scores, others = luck + 1, luck + 0.1 * draw(10, 2, seed=1)
    found = experiments.paired_difference(scores, others)
    assert found.value == pytest.approx(np.mean(scores - others))
    assert found == experiments.estimate(scores - others)
    assert 0.9 < found.low < found.high < 1.1
    assert not found.meets_zero
    reverse = experiments.paired_difference(others, scores)
    assert not reverse.meets_zero and reverse.value == -found.value
    middle = experiments.paired_difference(
        scores, others, statistic="interquartile_mean"
    )
    assert middle.value == pytest.approx(interquartile_mean(scores - others))


def test_what_the_same_seeds_do_not_tell_apart():
    scores = draw(8)
    assert experiments.paired_difference(scores, scores).meets_zero
    assert experiments.paired_difference([3.0], [1.0]).meets_zero
    assert experiments.paired_difference(
        scores, scores + draw(8, seed=1)
    ).meets_zero


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_probability_of_improvement(lower_is_better):
    scores = {"a": draw(4), "b": np.array([1.0, 2.0, 2.0])}
    others = {"a": draw(5, seed=1), "b": np.array([2.0, math.nan])}
    counts = []
    for problem in scores:
        wins = 0.0
        for x, y in itertools.product(scores[problem], others[problem]):
            if math.isnan(y):
                wins += 1
            elif x == y:
                wins += 0.5
            else:
                wins += (x < y) == lower_is_better
        counts.append(wins / len(scores[problem]) / len(others[problem]))
    found = experiments.probability_of_improvement(
        scores, others, lower_is_better
    )
    assert found.value == pytest.approx(np.mean(counts))
    assert found.n == 7
    assert 0 <= found.low < found.value < found.high <= 1
    back = experiments.probability_of_improvement(
        others, scores, lower_is_better
    )
    assert back.value == pytest.approx(1 - found.value)


def test_of_all_that_diverged_none_is_better():
    found = experiments.probability_of_improvement([math.nan] * 3, [math.nan])
    assert found.value == 0.5


@pytest.mark.slow
# Of what rliable calls that will be removed some day.
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_against_rliable():
    library = pytest.importorskip(
        "rliable.library",
        reason="rliable is not installed: pip install rliable",
    )
    from rliable import metrics

    scores, others = draw(10, 3), draw(12, 3, seed=1) - 0.5
    results, intervals = library.get_interval_estimates(
        {"ours": scores},
        lambda x: np.array(
            [metrics.aggregate_mean(x), metrics.aggregate_iqm(x)]
        ),
        reps=4000,
        random_state=np.random.RandomState(0),
    )
    pairs, pair_intervals = library.get_interval_estimates(
        {"ours": (scores, others)},
        lambda x, y: np.array([metrics.probability_of_improvement(x, y)]),
        reps=1000,
        random_state=np.random.RandomState(0),
    )
    expected = np.concatenate([results["ours"], pairs["ours"]])
    ends = np.concatenate([intervals["ours"], pair_intervals["ours"]], axis=1)
    plain = {"small_sample": False, "num_resamples": 4000}
    found = [
        experiments.estimate(scores, "mean", **plain),
        experiments.estimate(scores, "interquartile_mean", **plain),
        experiments.probability_of_improvement(scores, others, **plain),
    ]
    np.testing.assert_allclose([each.value for each in found], expected)
    # What is drawn differs: the ends vary by some hundredths.
    low, high = [each.low for each in found], [each.high for each in found]
    np.testing.assert_allclose([low, high], ends, atol=0.05)


def test_estimates_say_their_n():
    found = experiments.Estimate(0.5, 0.25, 0.75, n=3, confidence=0.9)
    assert str(found) == f"{found}" == "0.5 (90 %: 0.25 to 0.75, n=3)"
    assert f"{found:.2f}" == "0.50 (90 %: 0.25 to 0.75, n=3)"
    alone = experiments.estimate([2.0])
    assert str(alone) == "2 (no interval, n=1)"
    assert math.isnan(alone.low) and alone.meets_zero


@pytest.mark.parametrize("n", [1, 3])
def test_seeds_are_drawn_from_the_seed(n):
    scores = draw(5, n)
    found = experiments.estimate(scores)
    assert found == experiments.estimate(scores)
    assert found != experiments.estimate(scores, seed=1)


def test_seeds_of_selection_and_report():
    selection, report = experiments.separate_seeds(3, 4, first_seed=10)
    assert selection == [10, 11, 12] and report == [13, 14, 15, 16]
    experiments.check_separate_seeds(selection, report)
    with pytest.raises(ValueError, match=r"from 14 on.*of which \[12\] are"):
        experiments.check_separate_seeds(selection, [12, 13])


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "`scores` must be an array of shape"),
        ([[[1.0]]], "`scores` must be an array of shape"),
        ({}, "`scores` must be an array of shape"),
        ({"a": [[1.0]]}, "`scores` must be an array of shape"),
        ([1.0, math.nan], "1 NaN or infinite.*has diverged has no score"),
        ([1.0, math.inf], "1 NaN or infinite"),
    ],
)
def test_scores_that_cannot_be(scores, message):
    with pytest.raises(ValueError, match=message):
        experiments.estimate(scores)


def test_pairs_that_cannot_be():
    with pytest.raises(ValueError, match="numbers of seeds that `scores` has"):
        experiments.paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="problems and the numbers of seeds"):
        experiments.paired_difference({"a": [1.0]}, {"b": [1.0]})
    with pytest.raises(ValueError, match="the same problems"):
        experiments.probability_of_improvement({"a": [1.0]}, {"b": [1.0]})
    with pytest.raises(ValueError, match="`others` must be finite"):
        experiments.probability_of_improvement([1.0], [math.inf])


def test_arguments_that_cannot_be():
    with pytest.raises(ValueError, match="`statistic` must be 'mean' or"):
        experiments.estimate([1.0, 2.0], "median")
    with pytest.raises(ValueError, match="`confidence` must be a number in"):
        experiments.estimate([1.0, 2.0], confidence=1.0)
    with pytest.raises(ValueError, match="`num_resamples` must be an integer"):
        experiments.estimate([1.0, 2.0], num_resamples=1)
