"""What results of a few seeds say: means, their intervals, and comparisons.

The scores of a method are one number for each seed, of one problem or of
several, such as a measure of each learning curve.
Every estimate knows how many numbers it is made from, and says so.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_plasticity import validation

_SCORES = (
    "an array of shape `(seeds,)` or `(seeds, problems)`, or a dict from "
    "problem to an array of shape `(seeds,)`"
)
# Resamples that are computed at a time, or fewer where these are more numbers:
# they take 8 bytes each, and a few copies of them.
_BATCH = 500
_MOST_NUMBERS = 2**23


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number that was estimated from some seeds, and its interval.

    As a string it always has its interval and its `n`; `format` formats the
    three numbers alike.

    Args:
        value: Float.
        low: Float, the lower end of the interval; NaN where there is none, as
            of one seed.
        high: Float, the upper end.
        n: Integer, how many scores it is made from: seeds, or pairs of them,
            of all problems together.
        confidence: Float in (0, 1), that of the interval. Defaults to `0.95`.

    Example:

    >>> print(Estimate(0.5, 0.25, 1.0, n=30))
    0.5 (95 %: 0.25 to 1, n=30)
    """

    value: float
    low: float
    high: float
    n: int
    confidence: float = 0.95

    def __post_init__(self):
        for name in ("value", "low", "high"):
            is_real = isinstance(getattr(self, name), (float, np.floating))
            if not is_real:  # NaN is one.
                validation.check_number(name, getattr(self, name))
        validation.check_positive_integer("n", self.n)
        validation.check_in_interval("confidence", self.confidence, "(0, 1)")

    @property
    def meets_zero(self) -> bool:
        """Whether 0 lies in the interval, or there is no interval."""
        return not (self.low > 0 or self.high < 0)

    def __format__(self, form: str) -> str:
        value, low, high = (
            format(float(each), form or "g")
            for each in (self.value, self.low, self.high)
        )
        if math.isnan(self.low):
            return f"{value} (no interval, n={self.n})"
        confidence = f"{100 * float(self.confidence):g} %"
        return f"{value} ({confidence}: {low} to {high}, n={self.n})"

    def __str__(self) -> str:
        return format(self)


def _mean(*samples, axis=-1):
    """The mean over problems of the means over seeds."""
    return sum(each.mean(axis=axis) for each in samples) / len(samples)


def _interquartile_mean(*samples, axis=-1):
    """The mean of the middle half of all scores."""
    import scipy.stats

    pooled = np.concatenate(samples, axis=axis)
    return scipy.stats.trim_mean(pooled, 0.25, axis=axis)


STATISTICS = {"mean": _mean, "interquartile_mean": _interquartile_mean}


def estimate(
    scores: Any,
    statistic: str = "mean",
    confidence: float = 0.95,
    num_resamples: int = 2000,
    small_sample: bool = True,
    seed: int = 0,
) -> Estimate:
    """Estimates the mean of scores, with a stratified bootstrap interval.

    Seeds are drawn again, with replacement, from those of each problem apart
    (the problems are the strata), and the interval is between percentiles of
    the statistic of what was drawn.

    Of few seeds such an interval is too short: what is drawn varies by
    `(n - 1) / n` of the variance, and its tails are those of a normal
    distribution. With `small_sample` its ends are moved away from the
    estimate by `sqrt(n / (n - 1)) * t / z`, where `n` is the smallest number
    of seeds of a problem and `t` and `z` are quantiles of Student's
    distribution, with a degree of freedom for each seed but one of each
    problem, and of the normal one: 2.7 times as far for three seeds, 1.2
    times for ten.

    Args:
        scores: Array of shape `(seeds,)` or `(seeds, problems)`, or dict from
            problem to an array of shape `(seeds,)`, of finite numbers. Scores
            of several problems have to be on one scale.
        statistic: `"mean"`: the mean over problems of the mean over seeds; or
            `"interquartile_mean"`: the mean of the middle half of all scores,
            which single seeds do not move. Defaults to `"mean"`.
        confidence: Float in [0.5, 1). Defaults to `0.95`.
        num_resamples: Integer, how often seeds are drawn. Defaults to `2000`.
        small_sample: Boolean, whether the interval is as long as few seeds
            need it to be. Defaults to `True`; with `False` it is the plain
            percentile interval, that of `rliable`.
        seed: Integer, of what is drawn. Defaults to `0`.

    Returns:
        `Estimate`. It has no interval if a problem has a single seed.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    ```python
    results = {"loss": np.random.default_rng(0).random((100, 30))}
    scores = keras_plasticity.experiments.last_tenth(results["loss"])
    print(keras_plasticity.experiments.estimate(scores))
    ```

    References:

    - [Agarwal et al., 2021](https://arxiv.org/abs/2108.13264)
    """
    strata = list(_strata("scores", scores).values())
    return _estimate(
        STATISTICS[_check_statistic(statistic)],
        strata,
        confidence,
        num_resamples,
        small_sample,
        seed,
    )


def paired_difference(
    scores: Any,
    others: Any,
    statistic: str = "mean",
    confidence: float = 0.95,
    num_resamples: int = 2000,
    small_sample: bool = True,
    seed: int = 0,
) -> Estimate:
    """Estimates by how much scores are above others of the same seeds.

    The differences of the two scores of each seed and problem are what
    `estimate` is given. A seed's luck with its tasks and initial weights is in
    both of them, and not in the difference.

    Args:
        scores: As of `estimate`.
        others: Likewise, of the same problems and, in the same order, seeds.
        statistic: As of `estimate`.
        confidence: As of `estimate`.
        num_resamples: As of `estimate`.
        small_sample: As of `estimate`.
        seed: As of `estimate`.

    Returns:
        `Estimate`, of which `n` is the number of pairs. If it `meets_zero`,
        the seeds do not tell which of the two is above.

    Raises:
        ValueError: If an argument is not as described, or if the two have not
            the same problems and numbers of seeds.

    Example:

    ```python
    difference = keras_plasticity.experiments.paired_difference(
        [0.91, 0.93, 0.92, 0.95], [0.90, 0.91, 0.91, 0.92]
    )
    difference.meets_zero
    ```
    """
    first, second = _strata("scores", scores), _strata("others", others)
    sizes = {name: len(each) for name, each in first.items()}
    if sizes != {name: len(each) for name, each in second.items()}:
        found = {name: len(each) for name, each in second.items()}
        raise ValueError(
            "`others` must have the problems and the numbers of seeds that "
            f"`scores` has, to be paired with them. Received: scores of {sizes}"
            f", others of {found}"
        )
    return _estimate(
        STATISTICS[_check_statistic(statistic)],
        [first[name] - second[name] for name in first],
        confidence,
        num_resamples,
        small_sample,
        seed,
    )


def unpaired_difference(
    scores: Any,
    others: Any,
    statistic: str = "mean",
    confidence: float = 0.95,
    num_resamples: int = 2000,
    small_sample: bool = True,
    seed: int = 0,
) -> Estimate:
    """Estimates by how much scores are above others of other seeds.

    Seeds of the two are drawn apart. Where they have the same seeds,
    `paired_difference` tells more.

    Args:
        scores: As of `estimate`.
        others: Likewise, of the same problems.
        statistic: As of `estimate`.
        confidence: As of `estimate`.
        num_resamples: As of `estimate`.
        small_sample: As of `estimate`.
        seed: As of `estimate`.

    Returns:
        `Estimate`, of which `n` is the number of scores of the method that has
        fewer of them. If it `meets_zero`, the seeds do not tell which of the
        two is above.

    Raises:
        ValueError: If an argument is not as described, or if the two have not
            the same problems.

    Example:

    ```python
    difference = keras_plasticity.experiments.unpaired_difference(
        [0.91, 0.93, 0.92, 0.95], [0.90, 0.91, 0.91]
    )
    difference.meets_zero
    ```
    """
    first, second = _strata("scores", scores), _strata("others", others)
    if list(first) != list(second):
        raise _other_problems(first, second)
    compute = STATISTICS[_check_statistic(statistic)]
    half = len(first)

    def difference(*samples, axis=-1):
        return compute(*samples[:half], axis=axis) - compute(
            *samples[half:], axis=axis
        )

    samples = [*first.values(), *second.values()]
    result = _estimate(
        difference, samples, confidence, num_resamples, small_sample, seed
    )
    n = min(sum(map(len, samples[:half])), sum(map(len, samples[half:])))
    return dataclasses.replace(result, n=n)


def probability_of_improvement(
    scores: Any,
    others: Any,
    lower_is_better: bool = False,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    small_sample: bool = True,
    seed: int = 0,
) -> Estimate:
    """Estimates how likely a seed of one method beats one of another.

    `P(score > other) + P(score = other) / 2` over all pairs of a seed of the
    one and a seed of the other, the mean over problems: Mann and Whitney's
    statistic, divided by the number of pairs.

    Args:
        scores: As of `estimate`; NaN, a learner that has diverged, is worse
            than any number.
        others: Likewise, of the same problems; the seeds may be others.
        lower_is_better: Boolean, whether low scores are the good ones.
            Defaults to `False`.
        confidence: As of `estimate`.
        num_resamples: As of `estimate`.
        small_sample: As of `estimate`.
        seed: As of `estimate`.

    Returns:
        `Estimate` in [0, 1], of which `n` is the number of scores of the
        method that has fewer of them.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    ```python
    keras_plasticity.experiments.probability_of_improvement(
        [0.91, 0.93, 0.92], [0.90, 0.92, 0.91]
    ).value  # 7 of 9 pairs, and two ties.
    ```

    References:

    - [Agarwal et al., 2021](https://arxiv.org/abs/2108.13264)
    """
    lower_is_better = validation.check_boolean(
        "lower_is_better", lower_is_better
    )
    first = _strata("scores", scores, may_be_nan=True)
    second = _strata("others", others, may_be_nan=True)
    if list(first) != list(second):
        raise _other_problems(first, second)
    sign = -1.0 if lower_is_better else 1.0
    samples = [
        np.where(np.isnan(each), -np.inf, sign * each)
        for each in (*first.values(), *second.values())
    ]
    half = len(first)

    def probability(*samples, axis=-1):
        del axis  # The last one.
        return _mean(
            *(
                _share_above(mine, theirs)
                for mine, theirs in zip(samples[:half], samples[half:])
            )
        )

    result = _estimate(
        probability,
        samples,
        confidence,
        num_resamples,
        small_sample,
        seed,
        max(len(a) * len(b) for a, b in zip(samples[:half], samples[half:])),
    )
    n = min(sum(map(len, samples[:half])), sum(map(len, samples[half:])))
    low, high = np.clip([result.low, result.high], 0.0, 1.0).tolist()
    return dataclasses.replace(result, low=low, high=high, n=n)


def interval_of_means(
    values: np.ndarray, confidence: float = 0.95, num_resamples: int = 1000
) -> tuple[np.ndarray, np.ndarray]:
    """The ends of `estimate`'s interval for many means at a time.

    Args:
        values: Float array of shape `(means, seeds)`, of finite numbers.
        confidence: Float in (0, 1).
        num_resamples: Integer.

    Returns:
        Tuple of two arrays of shape `(means,)`; NaN for one seed.
    """
    size = max(1, _MOST_NUMBERS // (_BATCH * values.shape[1]))
    # Each part draws the same seeds, as it would with all others beside it.
    parts = [
        _interval(_mean, [part], confidence, num_resamples, True, 0)
        for part in np.split(values, range(size, len(values), size))
    ]
    low, high = map(np.concatenate, zip(*parts))
    return low, high


def _estimate(
    statistic, samples, confidence, num_resamples, small_sample, seed, size=1
):
    low, high = _interval(
        statistic,
        samples,
        validation.check_in_interval("confidence", confidence, "[0.5, 1)"),
        validation.check_integer("num_resamples", num_resamples, 100, 10**6),
        validation.check_boolean("small_sample", small_sample),
        validation.check_integer("seed", seed, 0),
        size,
    )
    return Estimate(
        float(statistic(*samples)),
        float(low),
        float(high),
        sum(map(len, samples)),
        float(confidence),
    )


def _interval(
    statistic, samples, confidence, num_resamples, small_sample, seed, size=1
):
    """The ends of a bootstrap interval along the last axis of the samples.

    For each resample, `statistic` makes `size` numbers on its way.
    """
    # It takes a second to import, which no trainer has to wait for.
    import scipy.stats

    value = statistic(*samples)
    sizes = [each.shape[-1] for each in samples]
    if min(sizes) < 2:
        return np.full_like(value, np.nan), np.full_like(value, np.nan)
    size = max(size, sum(sizes))
    # Samples are drawn from apart: problems, or methods that are not paired.
    low, high = scipy.stats.bootstrap(
        samples,
        statistic,
        n_resamples=num_resamples,
        batch=max(1, min(_BATCH, _MOST_NUMBERS // size)),
        vectorized=True,
        axis=-1,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    if not small_sample:
        return low, high
    upper = (1 + confidence) / 2
    n, freedom = min(sizes), sum(sizes) - len(sizes)
    stretch = math.sqrt(n / (n - 1)) * (
        scipy.stats.t.ppf(upper, freedom) / scipy.stats.norm.ppf(upper)
    )
    return value + stretch * (low - value), value + stretch * (high - value)


def _other_problems(first, second):
    return ValueError(
        "`others` must be of the same problems as `scores`. Received: "
        f"scores of {list(first)}, others of {list(second)}"
    )


def _share_above(mine, theirs):
    """The share of pairs in which mine is above, a tie being a half."""
    mine, theirs = mine[..., :, None], theirs[..., None, :]
    above = (mine > theirs) + 0.5 * (mine == theirs)
    return above.mean(axis=-2)


def _check_statistic(statistic):
    return validation.check_choice("statistic", statistic, tuple(STATISTICS))


def _strata(name, scores, may_be_nan=False):
    """Dict from problem to a float array of shape `(seeds,)`."""
    if isinstance(scores, Mapping):
        found = {
            problem: validation.check_array(name, each, _SCORES)
            for problem, each in scores.items()
        }
    else:
        array = validation.check_array(name, scores, _SCORES)
        if array.ndim not in (1, 2):
            raise validation.error(name, _SCORES, scores)
        # A problem is a column.
        found = dict(enumerate(array.T if array.ndim == 2 else [array]))
    if not found or any(
        each.ndim != 1 or not each.size for each in found.values()
    ):
        raise validation.error(name, _SCORES, scores)
    for problem, each in found.items():
        found[problem] = each = each.astype("float64")
        if may_be_nan and not np.isinf(each).any():
            continue
        validation.check_finite(
            name,
            each,
            " A learner that has diverged has no score: leave its seed out, "
            "and say so, or give it the score of the worst.",
        )
    return found
