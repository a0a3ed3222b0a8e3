import json

import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity.optimizers import ContinualBackprop
from tests.gradients import loss_and_gradients
from tests.helpers import assert_same_weights
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import mostly_slow
from tests.helpers import to_numpy
from tests.helpers import train
from tests.helpers import weights_of

# Settings under which a network of a few units replaces some within 20 steps.
_OFTEN = {"replacement_rate": 0.1, "maturity_threshold": 2, "seed": 3}


def _ages(model):
    return [to_numpy(layer.age) for layer in model.layers]


class TestInnerOptimizer:
    """What the inner optimizer does is left alone."""

    OPTIMIZERS = {
        "sgd": lambda: keras.optimizers.SGD(0.1),
        "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        "adam": lambda: keras.optimizers.Adam(0.01),
        "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
        "rmsprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.9),
        "clipvalue": lambda: keras.optimizers.SGD(0.1, clipvalue=0.01),
        "clipnorm": lambda: keras.optimizers.SGD(0.1, clipnorm=0.02),
        # Would be smaller if the statistics were among the gradients.
        "global_clipnorm": lambda: keras.optimizers.SGD(
            0.1, global_clipnorm=0.05
        ),
        "ema": lambda: keras.optimizers.SGD(
            0.1, use_ema=True, ema_momentum=0.5
        ),
        "ema_overwriting": lambda: keras.optimizers.SGD(
            0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3
        ),
        "schedule": lambda: keras.optimizers.SGD(
            keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
        ),
        "loss_scale": lambda: keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.1), initial_scale=8.0
        ),
    }

    @pytest.mark.parametrize(
        "name",
        mostly_slow(
            OPTIMIZERS,
            "sgd",
            "adam",
            "global_clipnorm",
            "ema_overwriting",
            "schedule",
            "loss_scale",
        ),
    )
    def test_rate_0_is_the_inner_optimizer(self, name):
        data = make_data(24)
        plain = make_model(layer=keras.layers.Dense)
        train(plain, self.OPTIMIZERS[name](), data)
        plastic = make_model()
        start = weights_of(plastic)
        wrapper = ContinualBackprop(self.OPTIMIZERS[name](), replacement_rate=0)
        train(plastic, wrapper, data)
        assert np.any(
            start["layer_0/kernel"] != weights_of(plastic)["layer_0/kernel"]
        )
        assert_same_weights(plastic, plain)
        # Units have ages and utilities all the same.
        np.testing.assert_array_equal(plastic.layers[0].age, 6.0)
        assert np.all(to_numpy(plastic.layers[0].utility) > 0)
        assert wrapper.num_replaced() == {"layer_0": 0, "layer_1": 0}

    # Keras 3.15.1 cannot average the weights of a model that has variables
    # with `overwrite_with_gradient`; `ContinualBackprop` keeps them from it.
    @pytest.mark.parametrize(
        "name",
        mostly_slow(
            [name for name in OPTIMIZERS if "ema" not in name],
            "sgd",
            "adam",
            "global_clipnorm",
            "loss_scale",
        ),
    )
    def test_plain_optimizer_trains_plastic_layers(self, name):
        data = make_data(24)
        plain = make_model(layer=keras.layers.Dense)
        plastic = make_model()
        train(plain, self.OPTIMIZERS[name](), data)
        train(plastic, self.OPTIMIZERS[name](), data)
        assert_same_weights(plastic, plain)

    def test_learning_rate_scheduler_callback(self):
        data = make_data(16)
        models = []
        for layer in (keras.layers.Dense, keras_plasticity.layers.Dense):
            model = make_model(layer=layer)
            optimizer = keras.optimizers.SGD(0.1)
            if layer is keras_plasticity.layers.Dense:
                optimizer = ContinualBackprop(optimizer, replacement_rate=0)
            model.compile(optimizer=optimizer, loss="mse")
            model.fit(
                *data,
                batch_size=4,
                epochs=3,
                shuffle=False,
                verbose=0,
                callbacks=[
                    keras.callbacks.LearningRateScheduler(
                        lambda epoch: 0.1 / (1 + epoch)
                    )
                ],
            )
            np.testing.assert_allclose(optimizer.learning_rate, 0.1 / 3)
            models.append(model)
        assert_same_weights(models[1], models[0])

    def test_learning_rate_and_iterations_are_the_inner_ones(self):
        inner = keras.optimizers.SGD(0.5)
        wrapper = ContinualBackprop(inner)
        wrapper.learning_rate = 0.25
        np.testing.assert_allclose(inner.learning_rate, 0.25)
        np.testing.assert_allclose(wrapper.learning_rate, 0.25)
        train(make_model(), wrapper, make_data(12))
        assert int(wrapper.iterations) == int(inner.iterations) == 3

    def test_swap_ema_weights_callback(self):
        # The callback asks the optimizer for `inner_optimizer` by name.
        data = make_data(16)
        model = make_model()
        wrapper = ContinualBackprop(
            keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5),
            **_OFTEN,
        )
        model.compile(optimizer=wrapper, loss="mse")
        model.fit(
            *data,
            batch_size=4,
            epochs=2,
            verbose=0,
            validation_data=data,
            callbacks=[keras.callbacks.SwapEMAWeights(swap_on_epoch=True)],
        )
        for values in weights_of(model).values():
            assert np.all(np.isfinite(values))


class TestGenerate:
    """What happens to a replaced unit, and to the network's output."""

    def _step_up_to_one_replacement(self, transfer_mean):
        """A model that trained 3 steps without learning, then lost a unit.

        Returns the model, the weights before, and the 3 batches.
        """
        dims = (4, 5, 3)
        model = make_model(dims)
        start = weights_of(model)
        x, y = make_data(12, dims)
        wrapper = ContinualBackprop(
            keras.optimizers.SGD(0.0),
            # All units become mature in the third step, and one is due.
            replacement_rate=0.2,
            maturity_threshold=2,
            decay_rate=0.5,
            transfer_mean=transfer_mean,
        )
        train(model, wrapper, (x, y))
        assert wrapper.num_replaced() == {"layer_0": 1}
        return model, start, x

    @pytest.mark.parametrize("transfer_mean", [False, True])
    def test_output_changes_by_what_the_unit_contributed(self, transfer_mean):
        model, start, x = self._step_up_to_one_replacement(transfer_mean)
        (unit,) = np.flatnonzero(to_numpy(model.layers[0].age) == 0)
        hidden = np.tanh(x @ start["layer_0/kernel"] + start["layer_0/bias"])
        before = hidden @ start["layer_1/kernel"] + start["layer_1/bias"]
        after = to_numpy(model(x))
        lost = hidden[:, unit]
        if transfer_mean:
            m = hidden[:, unit].reshape(3, 4).mean(axis=1)
            mean = (0.125 * m[0] + 0.25 * m[1] + 0.5 * m[2]) / (1 - 0.5**3)
            assert abs(mean) > 0.001
            lost = lost - mean
        np.testing.assert_allclose(
            before - after,
            lost[:, None] * start["layer_1/kernel"][unit],
            atol=1e-6,
        )

    def test_least_useful_unit_goes_and_the_others_stay(self):
        model, start, x = self._step_up_to_one_replacement(False)
        hidden = np.tanh(x @ start["layer_0/kernel"] + start["layer_0/bias"])
        magnitude = np.abs(hidden).reshape(3, 4, -1).mean(axis=1)
        utility = (np.array([0.125, 0.25, 0.5]) @ magnitude / 0.875) * np.abs(
            start["layer_1/kernel"]
        ).mean(axis=1)
        unit = utility.argmin()
        layer, consumer = model.layers
        np.testing.assert_array_equal(
            to_numpy(layer.age), np.where(np.arange(5) == unit, 0, 3)
        )
        others = np.arange(5) != unit
        np.testing.assert_allclose(
            to_numpy(layer.utility)[others], utility[others], rtol=1e-5
        )
        assert to_numpy(layer.utility)[unit] == 0
        assert to_numpy(layer.mean_activation)[unit] == 0
        new = weights_of(model)
        for key, axis in [
            ("layer_0/kernel", 1),
            ("layer_0/bias", 0),
            ("layer_1/kernel", 0),
        ]:
            changed = np.moveaxis(new[key] != start[key], axis, 0)
            np.testing.assert_array_equal(
                changed.reshape(5, -1).any(axis=1), ~others, key
            )
        assert new["layer_0/bias"][unit] == 0
        np.testing.assert_array_equal(new["layer_1/kernel"][unit], 0.0)
        np.testing.assert_array_equal(
            new["layer_1/bias"], start["layer_1/bias"]
        )

    def test_new_weights_differ_at_each_replacement(self):
        # A seeded Keras initializer alone would give the same at every call.
        model = make_model(
            (3, 8, 2),
            kernel_initializer=keras.initializers.RandomNormal(seed=5),
        )
        wrapper = ContinualBackprop(
            keras.optimizers.SGD(0.0),
            replacement_rate=0.5,
            maturity_threshold=1,
        )
        train(model, wrapper, make_data(64, (3, 8, 2)))
        assert wrapper.num_replaced()["layer_0"] > 8
        columns = to_numpy(model.layers[0].kernel).T
        assert len(np.unique(columns, axis=0)) == 8

    def test_bias_is_drawn_from_the_bias_initializer(self):
        model = make_model((3, 5, 2), bias_initializer="ones")
        train(
            model,
            ContinualBackprop(keras.optimizers.SGD(0.0), **_OFTEN),
            make_data(40, (3, 5, 2)),
        )
        bias = to_numpy(model.layers[0].bias)
        new = _ages(model)[0] < 10
        assert 0 < new.sum() < 5
        np.testing.assert_array_equal(bias == 1, new)

    def test_count_is_exact_over_a_run(self):
        # 0.1 has no exact float: adding it up would lose the tenth unit.
        model = make_model((3, 10, 2))
        wrapper = ContinualBackprop(
            keras.optimizers.SGD(0.1),
            replacement_rate=0.01,
            maturity_threshold=0,
        )
        mature_units = []

        class CountMature(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                # Without a threshold every unit is mature in every step.
                mature_units.append(10)
                # By way of the model: under JAX its state is synced first.
                replaced = self.model.optimizer.num_replaced()["layer_0"]
                assert replaced == sum(mature_units) // 100

        model.compile(optimizer=wrapper, loss="mse")
        model.fit(
            *make_data(240, (3, 10, 2)),
            batch_size=4,
            verbose=0,
            callbacks=[CountMature()],
        )
        assert wrapper.num_replaced() == {"layer_0": 6}

    def test_random_utility_replaces_any_unit(self):
        model = make_model((3, 6, 2))
        wrapper = ContinualBackprop(
            keras.optimizers.SGD(0.0),
            replacement_rate=1 / 6,
            maturity_threshold=1,
            utility="random",
        )
        train(model, wrapper, make_data(160, (3, 6, 2)))
        # With over 20 draws each of six units is nearly surely among them.
        assert wrapper.num_replaced()["layer_0"] > 20
        assert np.all(_ages(model)[0] < 40)


class TestGraphOfLayers:
    """Which layers are tested, and which are left alone."""

    def test_last_layer_is_never_replaced(self):
        model = make_model()
        wrapper = ContinualBackprop(
            keras.optimizers.SGD(0.01), replacement_rate=1, maturity_threshold=0
        )
        train(model, wrapper, make_data(12))
        assert wrapper.num_replaced() == {"layer_0": 18, "layer_1": 15}
        np.testing.assert_array_equal(_ages(model)[2], 0.0)

    @pytest.mark.parametrize("frozen", [0, 1, 2])
    def test_frozen_layer_is_never_changed(self, frozen):
        model = make_model((4, 6, 5, 5, 3))
        model.layers[frozen].trainable = False
        start = weights_of(model)
        wrapper = ContinualBackprop(keras.optimizers.SGD(0.1), **_OFTEN)
        train(model, wrapper, make_data(60, (4, 6, 5, 5, 3)))
        end = weights_of(model)
        for key in start:
            same = np.array_equal(start[key], end[key])
            assert same == key.startswith(f"layer_{frozen}/"), key
        # Nor those it reads: they would lose their outgoing weights.
        expected = {"layer_0", "layer_1", "layer_2"}
        expected -= {f"layer_{frozen}", f"layer_{frozen - 1}"}
        assert set(wrapper.num_replaced()) == expected
        assert all(n > 0 for n in wrapper.num_replaced().values())

    def test_two_readers_share_the_vote(self):
        # Utility is the mean weighted by units: here (3 * a + 1 * b) / 4.
        inputs = keras.Input((4,))
        dense = keras_plasticity.layers.Dense
        hidden = dense(5, activation="tanh", name="shared")(inputs)
        first = dense(3, name="first")(hidden)
        second = dense(1, name="second")(hidden)
        model = keras.Model(inputs, [first, second])
        x, y = make_data(4, (4, 5, 3))
        kernels = [
            to_numpy(model.get_layer(name).kernel)
            for name in ("first", "second")
        ]
        activation = to_numpy(keras.Model(inputs, hidden)(x))
        wrapper = ContinualBackprop(
            keras.optimizers.SGD(0.0),
            replacement_rate=0.2,
            maturity_threshold=1,
        )
        model.compile(optimizer=wrapper, loss=["mse", "mse"])
        model.train_on_batch(x, [y, y[:, :1]])
        a, b = [np.abs(k).mean(axis=1) for k in kernels]
        expected = np.abs(activation).mean(axis=0) * (3 * a + b) / 4
        np.testing.assert_allclose(
            to_numpy(model.get_layer("shared").utility), expected, rtol=1e-5
        )
        model.train_on_batch(x, [y, y[:, :1]])
        unit = expected.argmin()
        assert to_numpy(model.get_layer("shared").age)[unit] == 0
        for name in ("first", "second"):
            kernel = to_numpy(model.get_layer(name).kernel)
            np.testing.assert_array_equal(
                np.all(kernel == 0, axis=1), np.arange(5) == unit
            )

    def test_layers_between_are_seen_through(self):
        # The contribution is that of the activation after the ReLU.
        dense = keras_plasticity.layers.Dense
        model = keras.Sequential(
            [
                keras.Input((4,)),
                dense(6),
                keras.layers.ReLU(),
                keras.layers.Dropout(0.0),
                dense(2),
            ]
        )
        x, y = make_data(8, (4, 6, 2))
        model.compile(
            optimizer=ContinualBackprop(keras.optimizers.SGD(0.0)), loss="mse"
        )
        first, last = model.layers[0], model.layers[-1]
        model.train_on_batch(x, y)
        hidden = np.maximum(x @ to_numpy(first.kernel), 0)
        np.testing.assert_allclose(
            to_numpy(first.utility),
            hidden.mean(axis=0) * np.abs(to_numpy(last.kernel)).mean(axis=1),
            rtol=1e-4,
            atol=1e-7,
        )

    def test_layer_without_gradient_in_a_step_is_left_alone(self):
        # The loss of a step may not reach one branch of the model.
        inputs = keras.Input((4,))
        dense = keras_plasticity.layers.Dense
        outputs = []
        for name in "ab":
            hidden = dense(5, activation="tanh", name=f"{name}_hidden")(inputs)
            outputs.append(dense(1, name=f"{name}_output")(hidden))
        model = keras.Model(inputs, outputs)
        wrapper = ContinualBackprop(keras.optimizers.SGD(0.1))
        wrapper.build(model.trainable_variables)
        x, y = make_data(4, (4, 1))

        def loss_of_a(y, outputs):
            return ops.mean((outputs[0] - y) ** 2)

        if keras.backend.backend() == "jax":
            # JAX cannot tell: there every variable has a gradient.
            pytest.skip("JAX gives zeros, not `None`, for unused variables.")
        _, gradients = loss_and_gradients(model, loss_of_a, x, y)
        wrapper.apply(gradients, model.trainable_variables)
        np.testing.assert_array_equal(model.get_layer("a_hidden").age, 1.0)
        np.testing.assert_array_equal(model.get_layer("b_hidden").age, 0.0)


class TestAccumulationAndLossScale:
    def _run(self, optimizer, batch_size, **kwargs):
        model = make_model()
        train(model, optimizer, make_data(96), batch_size, **kwargs)
        return model

    def test_accumulated_steps_equal_the_joined_batch(self):
        # Contribution is a mean over examples, so it can be accumulated.
        runs = []
        for steps, batch_size in [(1, 8), (2, 4)]:
            wrapper = ContinualBackprop(
                keras.optimizers.SGD(
                    0.1,
                    gradient_accumulation_steps=steps if steps > 1 else None,
                ),
                **_OFTEN,
            )
            runs.append((self._run(wrapper, batch_size), wrapper))
        (joined, joined_wrapper), (parts, parts_wrapper) = runs
        assert joined_wrapper.num_replaced()["layer_0"] > 2
        assert joined_wrapper.num_replaced() == parts_wrapper.num_replaced()
        assert_same_weights(parts, joined, rtol=1e-5, atol=1e-6)
        for a, b in zip(parts.layers, joined.layers):
            np.testing.assert_array_equal(to_numpy(a.age), to_numpy(b.age))
            np.testing.assert_allclose(
                to_numpy(a.utility), to_numpy(b.utility), rtol=1e-4, atol=1e-7
            )
            np.testing.assert_allclose(
                to_numpy(a.mean_activation),
                to_numpy(b.mean_activation),
                rtol=1e-4,
                atol=1e-6,
            )

    def test_units_age_once_an_update(self):
        wrapper = ContinualBackprop(
            keras.optimizers.Adam(0.01, gradient_accumulation_steps=3),
            replacement_rate=0,
        )
        model = self._run(wrapper, 4)  # 24 steps, 8 updates.
        np.testing.assert_array_equal(_ages(model)[0], 8.0)

    @pytest.mark.parametrize("place", ["inside", "outside"])
    def test_loss_scale(self, place):
        def make_optimizer():
            return keras.optimizers.SGD(0.1, momentum=0.5)

        scaler = keras.optimizers.LossScaleOptimizer
        if place == "inside":
            optimizer = ContinualBackprop(
                # Powers of two: the scaled run is the same number by number.
                scaler(make_optimizer(), initial_scale=4.0),
                **_OFTEN,
            )
            wrapper = optimizer
        else:
            wrapper = ContinualBackprop(make_optimizer(), **_OFTEN)
            optimizer = scaler(wrapper, initial_scale=4.0)
        model = self._run(optimizer, 8)
        plain_wrapper = ContinualBackprop(make_optimizer(), **_OFTEN)
        plain = self._run(plain_wrapper, 8)
        assert wrapper.num_replaced() == plain_wrapper.num_replaced()
        assert wrapper.num_replaced()["layer_0"] > 2
        assert_same_weights(model, plain, rtol=1e-5, atol=1e-6)
        for a, b in zip(model.layers, plain.layers):
            np.testing.assert_array_equal(to_numpy(a.age), to_numpy(b.age))

    @pytest.mark.parametrize("place", ["inside", "outside"])
    def test_skipped_step_counts_for_nothing(self, place):
        scaler = keras.optimizers.LossScaleOptimizer
        inner = keras.optimizers.SGD(0.1)
        if place == "inside":
            optimizer = ContinualBackprop(scaler(inner), replacement_rate=0.1)
        else:
            optimizer = scaler(ContinualBackprop(inner, replacement_rate=0.1))
        model = make_model()
        model.compile(optimizer=optimizer, loss="mse")
        x, y = make_data(4)
        model.train_on_batch(x, y)
        before = weights_of(model)
        statistics = [to_numpy(layer.utility) for layer in model.layers]
        # Too large a target: the gradient overflows, nothing else does.
        model.train_on_batch(x, np.full_like(y, 1e38))
        after = weights_of(model)
        for key in before:
            np.testing.assert_array_equal(before[key], after[key])
        np.testing.assert_array_equal(_ages(model)[0], 1.0)
        for layer, utility in zip(model.layers, statistics):
            np.testing.assert_array_equal(to_numpy(layer.utility), utility)
        model.train_on_batch(x, y)
        np.testing.assert_array_equal(_ages(model)[0], 2.0)
        assert np.any(
            before["layer_0/kernel"] != to_numpy(model.layers[0].kernel)
        )

    def test_skipped_step_among_accumulated_ones(self):
        wrapper = ContinualBackprop(
            keras.optimizers.LossScaleOptimizer(
                keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
            ),
            replacement_rate=0,
        )
        model = make_model()
        model.compile(optimizer=wrapper, loss="mse")
        x, y = make_data(12)
        model.train_on_batch(x[:4], y[:4])
        model.train_on_batch(x[4:8], np.full_like(y[:4], 1e38))
        np.testing.assert_array_equal(_ages(model)[0], 0.0)
        model.train_on_batch(x[8:], y[8:])
        np.testing.assert_array_equal(_ages(model)[0], 1.0)
        twin = make_model()
        both = np.r_[x[:4], x[8:]]
        train(
            twin,
            ContinualBackprop(keras.optimizers.SGD(0.1), replacement_rate=0),
            (both, np.r_[y[:4], y[8:]]),
            batch_size=8,
        )
        np.testing.assert_allclose(
            to_numpy(model.layers[0].mean_activation),
            to_numpy(twin.layers[0].mean_activation),
            rtol=1e-4,
            atol=1e-6,
        )
        assert_same_weights(model, twin, rtol=1e-4, atol=1e-6)


class TestSeed:
    def _run(self, seed):
        model = make_model()
        wrapper = ContinualBackprop(
            keras.optimizers.SGD(0.1), **{**_OFTEN, "seed": seed}
        )
        train(model, wrapper, make_data(60))
        return model

    def test_same_seed_same_run(self):
        assert_same_weights(self._run(11), self._run(11))

    def test_other_seed_other_run(self):
        first, second = weights_of(self._run(11)), weights_of(self._run(12))
        assert np.any(first["layer_0/kernel"] != second["layer_0/kernel"])


class TestPrecision:
    @pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
    def test_trains_in_mixed_precision(self, policy):
        model = make_model(dtype=policy)
        optimizer = ContinualBackprop(keras.optimizers.Adam(0.01), **_OFTEN)
        if policy == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(
                optimizer, initial_scale=8.0
            )
        train(model, optimizer, make_data(80))
        wrapper = getattr(optimizer, "inner_optimizer", optimizer)
        if policy == "mixed_bfloat16":
            wrapper = optimizer
        assert wrapper.num_replaced()["layer_0"] > 3
        for layer in model.layers:
            assert layer.utility.dtype == "float32"
            assert np.all(np.isfinite(to_numpy(layer.kernel)))

    def test_float64_weights_stay_float64(self):
        model = make_model(dtype="float64")
        train(
            model,
            ContinualBackprop(keras.optimizers.SGD(0.01), **_OFTEN),
            make_data(60),
        )
        if keras.backend.backend() != "jax":  # It has no float64 by default.
            assert to_numpy(model.layers[0].kernel).dtype == "float64"
        assert np.any(_ages(model)[0] < 10)


def test_run_eagerly_is_the_same():
    runs = []
    for run_eagerly in (False, True):
        model = make_model((4, 6, 3))
        wrapper = ContinualBackprop(
            keras.optimizers.SGD(0.1),
            replacement_rate=0.5,
            maturity_threshold=1,
            seed=2,
        )
        # On PyTorch nothing is compiled either way.
        train(model, wrapper, make_data(12, (4, 6, 3)), run_eagerly=run_eagerly)
        runs.append(model)
        assert wrapper.num_replaced()["layer_0"] >= 3
    assert_same_weights(*runs, rtol=1e-5, atol=1e-6)


@keras.saving.register_keras_serializable(package="tests")
def squared_outgoing(outgoing_magnitude):
    return outgoing_magnitude**2


class TestConfig:
    SETTINGS = {
        "replacement_rate": 0.25,
        "maturity_threshold": 7,
        "decay_rate": 0.5,
        "transfer_mean": True,
        "reset_optimizer_state": False,
        "seed": 9,
        "name": "other_name",
    }

    @pytest.mark.parametrize(
        "utility",
        ["overall", "random", squared_outgoing],
        ids=lambda u: getattr(u, "__name__", u),
    )
    def test_round_trip(self, utility):
        inner = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.AdamW(0.125, weight_decay=0.5, clipnorm=2.0),
            dynamic_growth_steps=17,
        )
        wrapper = ContinualBackprop(inner, utility=utility, **self.SETTINGS)
        config = wrapper.get_config()
        text = json.dumps(config)
        loaded = json.loads(text)
        twin = ContinualBackprop.from_config(loaded)
        # The caller's dict is left as it was.
        assert json.dumps(loaded) == text
        assert json.dumps(twin.get_config()) == text
        for key, value in self.SETTINGS.items():
            assert getattr(twin, key) == value
        assert twin.utility == utility
        assert twin.inner_optimizer.dynamic_growth_steps == 17
        np.testing.assert_allclose(twin.learning_rate, 0.125)

    def test_keras_serialization(self):
        wrapper = ContinualBackprop(keras.optimizers.Adam(), **self.SETTINGS)
        serialized = json.loads(json.dumps(keras.optimizers.serialize(wrapper)))
        assert serialized["registered_name"] == (
            "keras_plasticity>ContinualBackprop"
        )
        twin = keras.optimizers.deserialize(serialized)
        assert isinstance(twin, ContinualBackprop)
        assert twin.get_config() == wrapper.get_config()

    def test_every_argument_is_in_the_config(self):
        import inspect

        arguments = set(inspect.signature(ContinualBackprop).parameters)
        config = ContinualBackprop(keras.optimizers.SGD()).get_config()
        assert set(config) == arguments - {"kwargs"}


class TestSaving:
    CASES = {
        "sgd": (lambda: keras.optimizers.SGD(0.1), "contribution"),
        "adam_overall": (lambda: keras.optimizers.Adam(0.01), "overall"),
        "random_utility": (
            lambda: keras.optimizers.SGD(0.1, momentum=0.9),
            "random",
        ),
        "half_accumulated": (
            lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=4),
            "contribution",
        ),
        "loss_scale": (
            lambda: keras.optimizers.LossScaleOptimizer(
                keras.optimizers.SGD(0.1), initial_scale=4.0
            ),
            squared_outgoing,
        ),
    }

    @pytest.mark.parametrize(
        "name",
        mostly_slow(
            CASES, "adam_overall", "random_utility", "half_accumulated"
        ),
    )
    def test_going_on_is_never_having_stopped(self, name, tmp_path):
        make_inner, utility = self.CASES[name]
        x, y = make_data(120)
        model = make_model(kernel_initializer="he_normal")
        settings = {**_OFTEN, "replacement_rate": 0.13}
        wrapper = ContinualBackprop(make_inner(), utility=utility, **settings)
        # 15 steps, so that with accumulation a step is open.
        train(model, wrapper, (x[:60], y[:60]))
        done = wrapper.num_replaced()
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert loaded.optimizer.num_replaced() == done
        for each in (model, loaded):
            each.fit(x[60:], y[60:], batch_size=4, shuffle=False, verbose=0)
        total = wrapper.num_replaced()
        if name != "half_accumulated":
            assert all(total[key] > done[key] > 0 for key in total)
        assert loaded.optimizer.num_replaced() == total
        assert_same_weights(loaded, model)
        for a, b in zip(loaded.layers, model.layers):
            for name in ("age", "utility", "mean_activation"):
                np.testing.assert_array_equal(
                    to_numpy(getattr(a, name)), to_numpy(getattr(b, name))
                )

    def test_state_is_in_variables(self):
        # Whatever is not there is neither saved nor carried by a JAX step.
        wrapper = ContinualBackprop(keras.optimizers.Adam(0.01), **_OFTEN)
        model = make_model()
        wrapper.build(model.trainable_variables)
        ids = [id(v) for v in wrapper.variables]
        assert len(set(ids)) == len(ids)
        for variable in wrapper.inner_optimizer.variables:
            assert id(variable) in ids
        assert id(wrapper._seed_generator.state) in ids
        # The model's own variables are not the optimizer's.
        assert not set(ids) & {id(v) for v in model.variables}


class TestBadInput:
    @pytest.mark.parametrize(
        "kwargs, message",
        [
            pytest.param(
                {"replacement_rate": rate},
                r"`replacement_rate` must be a number in \[0, 1\].*"
                rf"Received: replacement_rate={rate}",
                id=f"replacement_rate_{rate}",
            )
            for rate in (-0.1, 1.5, float("nan"), "often", None, True)
        ]
        + [
            pytest.param(
                {"decay_rate": rate},
                r"`decay_rate` must be a number in \[0, 1\).*"
                rf"Received: decay_rate={rate}",
                id=f"decay_rate_{rate}",
            )
            for rate in (-0.1, 1, 1.0, 2.0, float("nan"))
        ]
        + [
            pytest.param(
                {"maturity_threshold": threshold},
                "`maturity_threshold` must be a number of updates.*"
                rf"Received: maturity_threshold={threshold}",
                id=f"maturity_threshold_{threshold}",
            )
            for threshold in (-1, 2**24, "old", None)
        ]
        + [
            pytest.param(
                {"utility": "usefulness"},
                "'contribution', 'mean_corrected_contribution', 'adaptation', "
                "'overall', 'weight_magnitude', 'random'.*"
                "Received: utility='usefulness'",
                id="unknown_utility",
            ),
            pytest.param(
                {"utility": lambda weight: weight},
                "must take one or more of the arguments activation_magnitude",
                id="utility_of_unknown_arguments",
            ),
            pytest.param(
                {"utility": lambda: 0.0},
                "must take one or more of the arguments",
                id="utility_without_arguments",
            ),
            pytest.param(
                {"clipnorm": 1.0},
                "does not take `clipnorm`.*on the `inner_optimizer` instead",
                id="argument_of_the_inner_optimizer",
            ),
        ],
    )
    def test_argument(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            ContinualBackprop(keras.optimizers.SGD(), **kwargs)

    @pytest.mark.parametrize("inner", ["sgd", None, 0.1])
    def test_inner_is_not_an_optimizer(self, inner):
        with pytest.raises(TypeError, match="must be a `keras.optimizers.Opt"):
            ContinualBackprop(inner)

    @pytest.mark.parametrize("depth", [1, 2])
    def test_nested(self, depth):
        inner = ContinualBackprop(keras.optimizers.SGD())
        if depth == 2:
            inner = keras.optimizers.LossScaleOptimizer(inner)
        with pytest.raises(ValueError, match="units would be replaced twice"):
            ContinualBackprop(inner)

    def _build(self, model, inner=None, **kwargs):
        wrapper = ContinualBackprop(inner or keras.optimizers.SGD(), **kwargs)
        wrapper.build(model.trainable_variables)
        return wrapper

    def test_inner_is_built(self):
        inner = keras.optimizers.SGD()
        inner.build(make_model().trainable_variables)
        with pytest.raises(
            ValueError, match="`inner_optimizer` is already bui"
        ):
            self._build(make_model(), inner)

    def test_no_plastic_layer(self):
        with pytest.raises(ValueError, match="There is no plastic layer"):
            self._build(make_model(layer=keras.layers.Dense))

    def test_transfer_mean_needs_a_bias(self):
        with pytest.raises(
            ValueError, match="into the bias of layer 'layer_1', which has none"
        ):
            self._build(make_model(use_bias=False), transfer_mean=True)

    def test_apply_before_build(self):
        with pytest.raises(ValueError, match="must already be built"):
            ContinualBackprop(keras.optimizers.SGD()).apply([0.0])

    def test_number_of_gradients(self):
        model = make_model()
        wrapper = self._build(model)
        with pytest.raises(ValueError, match="one gradient for each variable"):
            wrapper.apply([ops.zeros((4, 6))], model.trainable_variables)

    def test_apply_to_another_model(self):
        wrapper = self._build(make_model())
        other = make_model()
        gradients = [ops.zeros(v.shape) for v in other.trainable_variables]
        with pytest.raises(ValueError, match="built on another model"):
            wrapper.apply(gradients, other.trainable_variables)

    def test_fit_another_model(self):
        wrapper = ContinualBackprop(keras.optimizers.SGD(0.1))
        train(make_model(), wrapper, make_data(4))
        other = make_model()
        start = weights_of(other)
        if keras.backend.backend() == "jax":
            # Keras' JAX trainer hands over values alone: nothing can tell
            # the models apart, but weights must be trained, not mixed up.
            train(other, wrapper, make_data(4))
            assert np.any(
                start["layer_0/kernel"] != weights_of(other)["layer_0/kernel"]
            )
            return
        with pytest.raises(ValueError, match="built on another model"):
            train(other, wrapper, make_data(4))
