import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity.optimizers import L2
from keras_plasticity.optimizers import ContinualBackprop
from keras_plasticity.optimizers import ShrinkAndPerturb
from keras_plasticity.optimizers import ShrinkAndPerturbByInitializer
from tests.helpers import assert_same_weights
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import make_plain_model
from tests.helpers import to_numpy
from tests.helpers import train
from tests.helpers import train_plain_model
from tests.helpers import weights_of

# So large that the noise is seen in every weight.
_NOISE = {"noise_stddev": 0.01, "noise_refresh_steps": 4, "seed": 5}
_BOTH = {
    "shrink_and_perturb": lambda inner, **kwargs: ShrinkAndPerturb(
        inner, **{"l2": 0.1, **_NOISE, **kwargs}
    ),
    "by_initializer": lambda inner, **kwargs: ShrinkAndPerturbByInitializer(
        inner, **{"noise_refresh_steps": 4, "seed": 5, **kwargs}
    ),
}


@pytest.fixture(params=_BOTH)
def make_wrapper(request):
    return _BOTH[request.param]


class _Record(keras.callbacks.Callback):
    """All weights after each step, as one long array."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_batch_end(self, batch, logs=None):
        values = weights_of(self.model).values()
        self.weights.append(np.concatenate([np.ravel(v) for v in values]))


def _record(optimizer, steps, dims=(4, 6, 5, 3)):
    """The weights before the first step and after each."""
    model = make_plain_model(dims=dims)
    record = _Record()
    record.set_model(model)
    record.on_train_batch_end(-1)
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(
        *make_data(steps, dims), batch_size=1, verbose=0, callbacks=[record]
    )
    return np.array(record.weights)


class TestNoise:
    """The noise of 930 weights in 400 updates, as nothing else moves them."""

    STEPS = 400
    STDDEV = 0.5
    REFRESH = 20
    _noise = {}

    @pytest.fixture(params=[1, REFRESH])
    def noise(self, request):
        """Array of shape `(updates, weights)`, in units of the stddev."""
        if request.param not in self._noise:
            optimizer = ShrinkAndPerturb(
                keras.optimizers.SGD(0.0),
                l2=0.0,
                noise_stddev=self.STDDEV,
                noise_refresh_steps=request.param,
                seed=1,
            )
            weights = _record(optimizer, self.STEPS, (20, 30, 10))
            noise = np.diff(weights.astype("float64"), axis=0) / self.STDDEV
            self._noise[request.param] = noise
        return self._noise[request.param]

    # The tolerances are five standard errors, of as many independent terms as
    # there are: a number of a table is seen in up to `REFRESH` updates.

    def test_is_standard_normal(self, noise):
        assert abs(noise.mean()) < 5 * noise.size**-0.5
        tolerance = 5 * (self.REFRESH / noise.size) ** 0.5
        assert abs(noise.var() - 1) < tolerance * 2**0.5
        for limit, part in ((0.5, 0.3829), (1, 0.6827), (2, 0.9545)):
            within = np.mean(np.abs(noise) < limit)
            assert abs(within - part) < tolerance * (part * (1 - part)) ** 0.5

    def test_each_weight_has_all_of_it(self, noise):
        assert np.max(np.abs(noise.mean(axis=0))) < 5 * self.STEPS**-0.5
        variances = noise.var(axis=0)
        assert np.max(np.abs(variances - 1)) < 5 * (2 / self.STEPS) ** 0.5

    def test_noise_of_a_weight_is_independent_in_time(self, noise):
        energy = (noise**2 - 1) / 2**0.5
        for lag in (1, 2, 3, self.REFRESH - 1, self.REFRESH, self.REFRESH + 1):
            correlation = np.mean(noise[lag:] * noise[:-lag])
            assert abs(correlation) < 5 * noise[lag:].size ** -0.5, lag
            # Tables that were never drawn anew would repeat magnitudes.
            correlation = np.mean(energy[lag:] * energy[:-lag])
            tolerance = 5 * (self.REFRESH / energy[lag:].size) ** 0.5
            assert abs(correlation) < tolerance, lag

    def test_neighbours_are_uncorrelated_in_time(self, noise):
        for lag in (1, 2):
            for distance in (1, 2):
                correlation = np.mean(
                    noise[lag:, :-distance] * noise[:-lag, distance:]
                )
                # The signs alone decide: one term an update.
                assert abs(correlation) < 5 * self.STEPS**-0.5

    def test_weights_are_independent_in_an_update(self, noise):
        # Between variables, too.
        correlations = np.corrcoef(noise.T)
        others = correlations[np.triu_indices(len(correlations), 1)]
        np.testing.assert_allclose(np.mean(others**2), 1 / self.STEPS, rtol=0.1)
        assert np.max(np.abs(others)) < 7 * self.STEPS**-0.5

    def test_sum_over_the_weights_is_as_if_independent(self, noise):
        sums = noise.sum(axis=1) / noise.shape[1] ** 0.5
        assert abs(sums.mean()) < 5 * self.STEPS**-0.5
        # In a table's updates, sums are nearly the same but for the sign.
        tolerance = 5 * (2 * self.REFRESH / self.STEPS) ** 0.5
        assert abs(sums.var() - 1) < tolerance

    def test_low_precision(self):
        keras.config.set_dtype_policy("bfloat16")
        try:
            optimizer = ShrinkAndPerturb(
                keras.optimizers.SGD(0.0), noise_stddev=1.0, seed=1
            )
            model = train_plain_model(optimizer, num=4)
        finally:
            keras.config.set_dtype_policy("float32")
        kernel = model.layers[0].kernel
        assert keras.backend.standardize_dtype(kernel.dtype) == "bfloat16"
        change = to_numpy(ops.cast(kernel, "float32"))
        change = change - weights_of(make_plain_model())["layer_0/kernel"]
        # 24 numbers.
        assert 0.5 < change.std() < 1.5


class TestByInitializer:
    @pytest.mark.parametrize("refresh", [1, 5])
    def test_noise_is_the_initializers(self, refresh):
        optimizer = ShrinkAndPerturbByInitializer(
            keras.optimizers.SGD(0.0),
            shrink=1,
            perturb=0.5,
            initializer="he_uniform",
            noise_refresh_steps=refresh,
            seed=1,
        )
        weights = _record(optimizer, 60, (20, 30, 10))
        noise = np.diff(weights.astype("float64"), axis=0) / 0.5
        parts = np.split(noise, np.cumsum([600, 30, 300]), axis=1)[:4]
        first, first_bias, second, second_bias = parts
        for part, fan_in in ((first, 20), (second, 30)):
            limit = (6 / fan_in) ** 0.5
            assert np.max(np.abs(part)) < limit * 1.0001
            # Uniform: the numbers reach the limit, and 1 / 3 is its variance.
            assert np.max(np.abs(part)) > limit * 0.99
            tolerance = 5 * 0.9 * (5 / part.size) ** 0.5
            assert abs(part.var() / (limit**2 / 3) - 1) < tolerance
        assert np.all(first_bias == 0) and np.all(second_bias == 0)

    def test_shrinks_what_the_inner_optimizer_made(self):
        rng = np.random.default_rng(0)
        start = rng.normal(size=(3, 2)).astype("float32")
        gradients = rng.normal(size=(10, 3, 2)).astype("float32")
        kernel, bias = keras.Variable(start), keras.Variable(start[0])
        optimizer = ShrinkAndPerturbByInitializer(
            keras.optimizers.SGD(0.1), shrink=0.9, perturb=0
        )
        expected = start.astype("float64")
        for gradient in gradients:
            optimizer.apply(
                [
                    ops.convert_to_tensor(gradient),
                    ops.convert_to_tensor(gradient[0]),
                ],
                [kernel, bias],
            )
            expected = 0.9 * (expected - 0.1 * gradient)
        np.testing.assert_allclose(to_numpy(kernel), expected, rtol=1e-4)
        np.testing.assert_allclose(to_numpy(bias), expected[0], rtol=1e-4)

    def test_perturbs_what_was_shrunk(self):
        # 30000 numbers, of which each is noise and 0.5 * (1 - 0.1 * 2).
        kernel = keras.Variable(np.ones((300, 100), "float32"))
        optimizer = ShrinkAndPerturbByInitializer(
            keras.optimizers.SGD(0.1),
            shrink=0.5,
            perturb=0.1,
            initializer=keras.initializers.RandomNormal(stddev=0.5, seed=1),
            seed=2,
        )
        optimizer.apply([2 * ops.ones((300, 100))], [kernel])
        value = to_numpy(kernel)
        assert abs(value.mean() - 0.4) < 5 * 0.05 * value.size**-0.5
        assert abs(value.std() / 0.05 - 1) < 5 * (2 * value.size) ** -0.5

    def test_defaults_suit_tasks_of_many_updates(self):
        optimizer = ShrinkAndPerturbByInitializer(keras.optimizers.SGD())
        # Of a weight that no gradient changes, after so many updates.
        assert optimizer.shrink**10_000 > 0.9
        # Where noise alone ends, as a part of the initial weights' deviation.
        assert optimizer.perturb / (1 - optimizer.shrink**2) ** 0.5 < 0.25

    @pytest.mark.parametrize("seed", [None, 3])
    def test_two_variables_of_a_shape_have_different_noise(self, seed):
        initializer = keras.initializers.GlorotNormal(seed=seed)
        kernels = [keras.Variable(np.zeros((3, 3), "f4")) for _ in range(2)]
        optimizer = ShrinkAndPerturbByInitializer(
            keras.optimizers.SGD(0.1), initializer=initializer
        )
        optimizer.apply([ops.zeros((3, 3))] * 2, kernels)
        assert np.all(to_numpy(kernels[0]) != to_numpy(kernels[1]))


def test_constraints_hold_after_the_noise(make_wrapper):
    layer = keras.layers.Dense(50, kernel_constraint="non_neg")
    layer.build((None, 40))
    layer.kernel.assign(np.zeros((40, 50)))
    optimizer = make_wrapper(keras.optimizers.SGD(0.1))
    optimizer.apply([ops.zeros((40, 50))], [layer.kernel])
    kernel = to_numpy(layer.kernel)
    assert kernel.min() == 0.0
    assert 0.3 < np.mean(kernel > 0.0) < 0.7


class TestNothingToDo:
    INNER = {
        "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        "adam": lambda: keras.optimizers.Adam(0.01),
        "accumulating": lambda: keras.optimizers.SGD(
            0.1, gradient_accumulation_steps=2
        ),
    }

    @pytest.mark.parametrize("name", INNER)
    def test_without_noise_is_l2(self, name):
        make_inner = self.INNER[name]
        optimizer = ShrinkAndPerturb(make_inner(), l2=0.1, noise_stddev=0)
        expected = train_plain_model(L2(make_inner(), l2=0.1))
        assert_same_weights(train_plain_model(optimizer), expected)


@pytest.mark.slow
class TestUpdates:
    @pytest.mark.parametrize("refresh", [1, 4])
    def test_noise_once_an_accumulated_step(self, make_wrapper, refresh):
        inner = keras.optimizers.SGD(0.0, gradient_accumulation_steps=3)
        weights = _record(
            make_wrapper(inner, noise_refresh_steps=refresh), steps=18
        )
        changes = np.any(np.diff(weights, axis=0) != 0, axis=1)
        np.testing.assert_array_equal(changes, [False, False, True] * 6)
        plain = make_wrapper(
            keras.optimizers.SGD(0.0), noise_refresh_steps=refresh
        )
        # Two programs, which a compiler may round differently.
        np.testing.assert_allclose(
            weights[::3][1:], _record(plain, steps=6)[1:], rtol=1e-5, atol=1e-6
        )


class TestConfig:
    def test_initializer_is_in_the_config(self):
        optimizer = ShrinkAndPerturbByInitializer(
            keras.optimizers.SGD(),
            initializer=keras.initializers.RandomNormal(stddev=0.5),
        )
        twin = ShrinkAndPerturbByInitializer.from_config(optimizer.get_config())
        assert isinstance(twin.initializer, keras.initializers.RandomNormal)
        assert twin.initializer.stddev == 0.5


@pytest.mark.slow
class TestWithContinualBackprop:
    # Settings under which some units are replaced within 20 steps.
    OFTEN = {"replacement_rate": 0.1, "maturity_threshold": 2, "seed": 3}

    def _nest(self, order, inner, wrap, **kwargs):
        """The optimizer, and the `ContinualBackprop` of it."""
        settings = {**self.OFTEN, **kwargs}
        if order == "inside":
            result = ContinualBackprop(wrap(inner), **settings)
            return result, result
        inner = ContinualBackprop(inner, **settings)
        return wrap(inner), inner

    def _run(self, optimizer, num=80, batch_size=4):
        model = make_model(kernel_initializer="he_normal")
        train(model, optimizer, make_data(num), batch_size)
        return model

    @pytest.mark.parametrize("order", ["inside", "outside"])
    def test_statistics_get_no_noise(self, make_wrapper, order):
        # A utility that knows nothing of the weights, which do differ.
        settings = {
            "replacement_rate": 0,
            "utility": lambda activation_magnitude: activation_magnitude,
        }
        optimizer, _ = self._nest(
            order, keras.optimizers.SGD(0.1), make_wrapper, **settings
        )
        model = self._run(optimizer, num=4)
        plain = ContinualBackprop(keras.optimizers.SGD(0.1), **settings)
        plain_model = self._run(plain, num=4)
        for a, b in zip(model.layers, plain_model.layers):
            assert np.any(to_numpy(a.kernel) != to_numpy(b.kernel))
            for name in ("age", "utility", "mean_activation"):
                np.testing.assert_array_equal(
                    to_numpy(getattr(a, name)), to_numpy(getattr(b, name))
                )
            for v, w in zip(a.statistics.variables, b.statistics.variables):
                np.testing.assert_array_equal(to_numpy(v), to_numpy(w))

    @pytest.mark.parametrize("order", ["inside", "outside"])
    def test_outgoing_weights_of_a_new_unit(self, make_wrapper, order):
        optimizer, continual = self._nest(
            order, keras.optimizers.SGD(0.1), make_wrapper
        )
        model = self._run(optimizer)
        assert min(continual.num_replaced().values()) > 2
        (new,) = np.nonzero(to_numpy(model.layers[0].age) == 0)
        assert len(new) > 0
        outgoing = to_numpy(model.layers[1].kernel)[new]
        assert np.all(outgoing == 0) == (order == "inside")

    @pytest.mark.parametrize("order", ["inside", "outside"])
    @pytest.mark.parametrize("case", ["loss_scale", "accumulated"])
    def test_updates(self, make_wrapper, order, case):
        inner, batch_size = keras.optimizers.SGD(0.1), 8
        if case == "loss_scale":
            inner = keras.optimizers.LossScaleOptimizer(
                inner, initial_scale=4.0
            )
        else:
            inner = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
            batch_size = 4
        optimizer, continual = self._nest(order, inner, make_wrapper)
        model = self._run(optimizer, 160, batch_size)
        plain_optimizer, plain = self._nest(
            order, keras.optimizers.SGD(0.1), make_wrapper
        )
        plain_model = self._run(plain_optimizer, 160, 8)
        assert continual.num_replaced() == plain.num_replaced()
        assert min(plain.num_replaced().values()) > 2
        assert_same_weights(model, plain_model, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("order", ["inside", "outside"])
    def test_going_on_is_never_having_stopped(
        self, make_wrapper, order, tmp_path
    ):
        x, y = make_data(80)
        optimizer, _ = self._nest(
            order, keras.optimizers.SGD(0.1, momentum=0.9), make_wrapper
        )
        model = make_model(kernel_initializer="he_normal")
        train(model, optimizer, (x[:40], y[:40]))
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        for each in (model, loaded):
            each.fit(x[40:], y[40:], batch_size=4, shuffle=False, verbose=0)
        assert_same_weights(loaded, model)


class TestBadInput:
    @pytest.mark.parametrize("name", ["l2", "noise_stddev"])
    @pytest.mark.parametrize("value", [-0.1, float("nan"), "much", None, True])
    def test_shrink_and_perturb(self, name, value):
        with pytest.raises(
            ValueError,
            match=f"`{name}` must be a number that is not negative.*"
            f"Received: {name}={value}",
        ):
            ShrinkAndPerturb(keras.optimizers.SGD(), **{name: value})

    @pytest.mark.parametrize("value", [0, -1, 1.0, "often", None, True])
    def test_noise_refresh_steps(self, make_wrapper, value):
        with pytest.raises(
            ValueError,
            match="`noise_refresh_steps` must be a positive integer.*"
            f"Received: noise_refresh_steps={value}",
        ):
            ShrinkAndPerturb(keras.optimizers.SGD(), noise_refresh_steps=value)

    @pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), None, True])
    def test_shrink(self, value):
        with pytest.raises(
            ValueError,
            match=r"`shrink` must be a number in \[0, 1\].*"
            f"Received: shrink={value}",
        ):
            ShrinkAndPerturbByInitializer(keras.optimizers.SGD(), shrink=value)

    @pytest.mark.parametrize("value", [-0.1, float("inf"), "much", None])
    def test_perturb(self, value):
        with pytest.raises(
            ValueError,
            match="`perturb` must be a number that is not negative.*"
            f"Received: perturb={value}",
        ):
            ShrinkAndPerturbByInitializer(keras.optimizers.SGD(), perturb=value)

    @pytest.mark.parametrize(
        "initializer",
        [
            "zeros",
            "ones",
            "orthogonal",
            keras.initializers.RandomUniform(0, 1),
            keras.initializers.RandomNormal(mean=0.1),
            lambda shape, dtype=None: ops.ones(shape),
        ],
        ids=["zeros", "ones", "orthogonal", "uniform", "normal", "function"],
    )
    def test_initializer(self, initializer):
        with pytest.raises(
            ValueError,
            match="`initializer` must draw independent numbers from a distri"
            "bution that is symmetric about zero.*Received: initializer=",
        ):
            ShrinkAndPerturbByInitializer(
                keras.optimizers.SGD(), initializer=initializer
            )


@pytest.mark.parametrize("accumulates", [False, True])
@pytest.mark.parametrize("refresh", [1, 2])
def test_period(accumulates, refresh):
    period, steps = 3, 2 if accumulates else 1
    inner = keras.optimizers.SGD(
        0.0, gradient_accumulation_steps=2 if accumulates else None
    )
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(30)])
    optimizer = ShrinkAndPerturbByInitializer(
        inner,
        shrink=0.5,
        perturb=0.1,
        initializer="he_uniform",
        noise_refresh_steps=refresh,
        seed=1,
        perturb_biases=True,
        period=period,
    )
    model.compile(optimizer, "mse")
    bias = np.linspace(-4, 4, 30).astype("float32")
    model.layers[0].bias.assign(bias)
    before = weights_of(model)
    noise = []
    for step in range(1, 7 * steps + 1):
        model.train_on_batch(np.ones((4, 20)), np.ones((4, 30)))
        after = weights_of(model)
        is_due = step % (period * steps) == 0
        for key, value in after.items():
            if not is_due:
                np.testing.assert_array_equal(value, before[key])
                continue
            drawn = (value - 0.5 * before[key]) / 0.1
            limit = np.sqrt(6 / 20)
            assert 0.5 * limit < np.abs(drawn).max() <= limit * 1.001
            noise.append(drawn.ravel())
        before = after
    assert len(noise) == 4
    # Other numbers each time.
    assert abs(np.corrcoef(noise[0], noise[2])[0, 1]) < 0.2


@pytest.mark.parametrize("period", [0, -1, 1.5, None, True])
def test_bad_period(period):
    with pytest.raises(
        ValueError,
        match=f"`period` must be a positive integer.*period={period}",
    ):
        ShrinkAndPerturbByInitializer(keras.optimizers.SGD(), period=period)


@pytest.mark.parametrize("accumulates", [False, True])
def test_noise_by_a_schedule(accumulates):
    """It counts updates, also where not every step makes one."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [1], [0.0, 1.0]
    )
    inner = keras.optimizers.SGD(
        0.0, gradient_accumulation_steps=2 if accumulates else None
    )
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    optimizer = ShrinkAndPerturb(inner, l2=0.0, noise_stddev=schedule, seed=0)
    model.compile(optimizer, "mse")
    start = to_numpy(model.layers[0].kernel)
    changed = []
    for _ in range(8):
        model.train_on_batch(np.ones((4, 3)), np.ones((4, 2)))
        changed.append(np.any(to_numpy(model.layers[0].kernel) != start))
    # `iterations` is 1 already, after the first update, and 2 in the second.
    first = changed.index(True)
    assert first == (3 if accumulates else 1)
    assert all(changed[first:])
