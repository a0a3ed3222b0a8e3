import json

import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity.optimizers import ContinualBackprop
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

    def test_a_mean_moves_through_a_separable_convolution(self):
        """By the weights that the same step has trained."""

        def trained(replacement_rate):
            model = keras.Sequential(
                [
                    keras.Input((6, 1)),
                    keras_plasticity.layers.Conv1D(
                        2, 1, activation=lambda x: 0.0 * x + 0.5, name="conv"
                    ),
                    keras_plasticity.layers.SeparableConv1D(
                        3, 2, depth_multiplier=2, name="reader"
                    ),
                ]
            )
            rng = np.random.default_rng(0)
            reader = model.get_layer("reader")
            for kernel in (reader.depthwise_kernel, reader.pointwise_kernel):
                kernel.assign(rng.normal(0, 1, kernel.shape))
            wrapper = ContinualBackprop(
                keras.optimizers.SGD(0.1),
                # One unit in the third step.
                replacement_rate=replacement_rate,
                maturity_threshold=2,
                transfer_mean=True,
            )
            x = rng.normal(0, 1, (12, 6, 1)).astype("float32")
            y = rng.normal(0, 1, (12, 5, 3)).astype("float32")
            train(model, wrapper, (x, y))
            return model

        before, after = trained(0.0), trained(0.5)
        (unit,) = np.flatnonzero(to_numpy(after.get_layer("conv").age) == 0)
        reader = before.get_layer("reader")
        depthwise = to_numpy(reader.depthwise_kernel)[:, unit].sum(0)
        pointwise = to_numpy(reader.pointwise_kernel).reshape(2, 2, 3)[unit]
        np.testing.assert_allclose(
            to_numpy(after.get_layer("reader").bias) - to_numpy(reader.bias),
            0.5 * depthwise @ pointwise,
            rtol=1e-4,
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


class TestAccumulationAndLossScale:
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


@keras.saving.register_keras_serializable(package="tests")
def squared_outgoing(outgoing_magnitude):
    return outgoing_magnitude**2


class TestConfig:
    @pytest.mark.parametrize(
        "utility",
        ["overall", "random", squared_outgoing],
        ids=lambda u: getattr(u, "__name__", u),
    )
    def test_round_trip(self, utility):
        wrapper = ContinualBackprop(keras.optimizers.SGD(), utility=utility)
        text = json.dumps(wrapper.get_config())
        twin = ContinualBackprop.from_config(json.loads(text))
        assert json.dumps(twin.get_config()) == text
        assert twin.utility == utility


class TestSaving:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "utility",
        ["overall", "random", squared_outgoing],
        ids=lambda u: getattr(u, "__name__", u),
    )
    def test_going_on_is_never_having_stopped(self, utility, tmp_path):
        x, y = make_data(120)
        model = make_model(kernel_initializer="he_normal")
        settings = {**_OFTEN, "replacement_rate": 0.13}
        wrapper = ContinualBackprop(
            keras.optimizers.Adam(0.01), utility=utility, **settings
        )
        train(model, wrapper, (x[:60], y[:60]))
        done = wrapper.num_replaced()
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert loaded.optimizer.num_replaced() == done
        for each in (model, loaded):
            each.fit(x[60:], y[60:], batch_size=4, shuffle=False, verbose=0)
        total = wrapper.num_replaced()
        assert all(total[key] > done[key] > 0 for key in total)
        assert loaded.optimizer.num_replaced() == total
        assert_same_weights(loaded, model)


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
                "Received: utility=usefulness",
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
        ],
    )
    def test_argument(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            ContinualBackprop(keras.optimizers.SGD(), **kwargs)

    def _build(self, model, inner=None, **kwargs):
        wrapper = ContinualBackprop(inner or keras.optimizers.SGD(), **kwargs)
        wrapper.build(model.trainable_variables)
        return wrapper

    def test_transfer_mean_needs_a_bias(self):
        with pytest.raises(
            ValueError, match="into the bias of layer 'layer_1', which has none"
        ):
            self._build(make_model(use_bias=False), transfer_mean=True)

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
