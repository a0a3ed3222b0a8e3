import numpy as np
import pytest

from keras_plasticity.streams import SlowlyChangingRegression


def _statistics(**kwargs):
    """Target variance in all and within tasks, and what a line leaves."""
    variances, within, residuals = [], [], []
    for seed in range(300):
        stream = SlowlyChangingRegression(
            num_tasks=6, examples_per_task=400, seed=seed, **kwargs
        )
        targets = []
        for task in range(len(stream)):
            x, y = stream.task(task)
            design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
            solution = np.linalg.lstsq(design, y, rcond=None)[0]
            residuals.append(np.mean((design @ solution - y) ** 2))
            within.append(y.var())
            targets.append(y)
        variances.append(np.concatenate(targets).var())
    return np.mean(variances), np.mean(within), np.mean(residuals)


def test_targets_vary_as_with_the_code_of_the_authors():
    # Over 1,500 targets: 2.78, 1.61 and 0.78. Six tasks of one target, and
    # the fit of 21 numbers to 400 examples, make the expected values smaller
    # by a tenth and by a twentieth; the rest is chance.
    variance, within, residual = _statistics()
    assert 2.2 < variance < 3.1
    assert 1.4 < within < 1.8
    assert 0.68 < residual < 0.84


def test_targets_vary_more_with_the_formula_of_the_paper():
    variance, within, residual = _statistics(negatives="paper")
    # 3.73, 2.20 and 1.09.
    assert 3.1 < variance < 4.1
    assert 1.9 < within < 2.5
    assert 0.95 < residual < 1.2


def test_firing_probabilities():
    fires = {-1: [], 1: []}
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, (2000, 20)).astype("float32")
    for seed in range(400):
        stream = SlowlyChangingRegression(seed=seed)
        fired = x @ stream._weights + stream._biases > stream._thresholds
        for bias in fires:
            fires[bias].append(fired[:, stream._biases == bias].mean())
    assert np.mean(fires[1]) == pytest.approx(0.058, rel=0.1)
    assert np.mean(fires[-1]) == pytest.approx(0.0013, rel=0.2)


def test_target_is_the_fixed_network():
    stream = SlowlyChangingRegression(num_bits=4, num_slow_bits=2)
    x, y = stream.task(3)
    for bits, target in zip(x[:20], y[:20]):
        expected = stream._output_bias
        for unit in range(100):
            total = stream._biases[unit]
            for bit in range(4):
                total += bits[bit] * stream._weights[bit, unit]
            if total > stream._thresholds[unit]:
                expected += stream._output_weights[unit, 0]
        assert target == expected


@pytest.mark.parametrize("flip_one", [False, True])
def test_slow_bits_change_between_tasks_and_only_there(flip_one):
    stream = SlowlyChangingRegression(
        num_tasks=50, examples_per_task=200, flip_one=flip_one, seed=3
    )
    tasks = [stream.task(i)[0] for i in range(len(stream))]
    for x in tasks:
        assert (x[:, :15] == x[0, :15]).all()
        means = x[:, 15:].mean(axis=0)
        assert ((means > 0.3) & (means < 0.7)).all()
    changes = [
        int(np.sum(a[0, :15] != b[0, :15])) for a, b in zip(tasks, tasks[1:])
    ]
    if flip_one:
        assert changes == [1] * 49
    else:
        assert 6 < np.mean(changes) < 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_tasks=0), "at least 1. Received: num_tasks=0"),
        (dict(num_tasks="5"), "at least 1. Received: num_tasks=5 .a string."),
        (dict(num_tasks=True), "at least 1. Received: num_tasks=True"),
        (dict(examples_per_task=10.0), "Received: examples_per_task=10.0"),
        (dict(num_bits=0), "at least 1. Received: num_bits=0"),
        (dict(num_target_units=None), "Received: num_target_units=None"),
        (dict(num_slow_bits=1.5), "at least 0. Received: num_slow_bits=1.5"),
        (dict(num_slow_bits=-1), "at least 0. Received: num_slow_bits=-1"),
        (dict(num_slow_bits=21), "num_slow_bits=21, num_bits=20"),
        (dict(num_bits=78), "num_slow_bits=15, num_bits=78"),
        (dict(num_tasks=2**31), "at least 1 and at most 2147483647. Received"),
        (
            dict(flip_one="False"),
            "`True` or `False`. Rec.*flip_one=False .a string",
        ),
        (dict(flip_one=1), "`True` or `False`. Received: flip_one=1"),
        (dict(beta=float("nan")), "`beta` must be a finite .* beta=nan"),
        (dict(beta=True), "`beta` must be a finite number. .* beta=True"),
        (dict(seed=True), "`seed` must be an integer .* Received: seed=True"),
        (dict(seed=-1), "`seed` must be an integer .* Received: seed=-1"),
        (dict(seed=0.5), "`seed` must be an integer .* Received: seed=0.5"),
        (
            dict(negatives="mine"),
            "'code' or 'paper'. Received: negatives=mine",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SlowlyChangingRegression(**arguments)


@pytest.mark.parametrize("flip_one", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_all_inputs_are_bits(seed, flip_one):
    stream = SlowlyChangingRegression(
        num_tasks=3, examples_per_task=50, flip_one=flip_one, seed=seed
    )
    for task in range(3):
        x, _ = stream.task(task)
        assert set(np.unique(x)) == {0.0, 1.0}


def test_the_first_slow_bits_are_even():
    bits = []
    for seed in range(400):
        stream = SlowlyChangingRegression(
            num_tasks=1,
            examples_per_task=1,
            flip_one=True,
            num_target_units=1,
            seed=seed,
        )
        x, _ = stream.task(0)
        bits += x[0, :15].tolist()
    # Four standard errors.
    assert abs(np.mean(bits) - 0.5) < 4 * 0.5 / len(bits) ** 0.5


def test_the_smallest_of_all():
    stream = SlowlyChangingRegression(
        num_tasks=1,
        examples_per_task=1,
        num_bits=1,
        num_slow_bits=0,
        num_target_units=1,
    )
    x, y = stream.task(0)
    assert len(stream) == 1 and x.shape == (1, 1) and y.shape == (1, 1)


def test_numbers_of_numpy():
    stream = SlowlyChangingRegression(
        num_tasks=np.int64(3),
        examples_per_task=np.uint8(5),
        flip_one=np.True_,
        seed=np.int32(7),
        beta=np.float32(0.7),
    )
    plain = SlowlyChangingRegression(3, 5, flip_one=True, seed=7)
    for array, expected in zip(stream.task(np.int64(2)), plain.task(2)):
        np.testing.assert_array_equal(array, expected)


def test_a_stream_of_two_billion_tasks_is_made_at_once():
    args = dict(examples_per_task=5, flip_one=True)
    stream = SlowlyChangingRegression(2**31 - 1, **args)
    few = SlowlyChangingRegression(10, **args)
    np.testing.assert_array_equal(stream.task(9)[0], few.task(9)[0])


@pytest.mark.parametrize("x", [np.zeros(20), np.zeros((3, 19)), "ab", None])
def test_target_of_other_inputs(x):
    with pytest.raises(ValueError, match="`x` must "):
        SlowlyChangingRegression(2, 5).target(x)
