import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity import layers
from keras_plasticity import weights_of
from keras_plasticity.optimizers import ReDo
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import to_numpy
from tests.helpers import train


def _hidden_activations(model, x):
    result = []
    for layer in model.layers[:-1]:
        x = to_numpy(layer(x))
        result.append(x)
    return result


def test_score_is_that_of_the_batch_before_its_update():
    model = make_model(activation="relu")
    x, y = make_data(8)
    expected = []
    for h in _hidden_activations(model, x):
        magnitude = np.abs(h).mean(axis=0)
        expected.append(magnitude / (magnitude.mean() + 1e-9))
    model.compile(ReDo(keras.optimizers.SGD(0.0), period=1), "mse")
    for _ in range(2):  # The first update is not checked.
        model.train_on_batch(x, y)
    for layer, score in zip(model.layers, expected):
        kept = to_numpy(layer.age) == 2
        assert 0 < kept.sum()
        np.testing.assert_allclose(
            to_numpy(layer.utility)[kept], score[kept], rtol=1e-5
        )


@pytest.mark.parametrize("score_updates", [1, 2, 4])
def test_score_is_the_mean_of_the_last_updates(score_updates):
    model = make_model((4, 6, 3), activation="relu")
    x, y = make_data(5 * 8)
    model.compile(
        ReDo(
            keras.optimizers.SGD(0.0),
            threshold=0,
            period=4,
            score_updates=score_updates,
        ),
        "mse",
    )
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    (h,) = _hidden_activations(model, x[(5 - score_updates) * 8 :])
    magnitude = np.abs(h).mean(axis=0)
    np.testing.assert_allclose(
        to_numpy(model.layers[0].utility),
        magnitude / (magnitude.mean() + 1e-9),
        rtol=1e-5,
        atol=1e-7,
    )


class TestRecycle:
    def _built(self, **kwargs):
        model = make_model((4, 12, 10, 3), activation="relu")
        optimizer = ReDo(keras.optimizers.Adam(0.01), seed=1, **kwargs)
        train(model, optimizer, make_data(16))
        return model, optimizer

    def test_dormant_units_are_replaced_at_once(self):
        model, optimizer = self._built(threshold=0.5)
        x, _ = make_data(50, seed=7)
        dormant = []
        for h in _hidden_activations(model, x):
            magnitude = np.abs(h).mean(axis=0)
            dormant.append(magnitude <= 0.5 * (magnitude.mean() + 1e-9))
        assert all(0 < d.sum() < len(d) for d in dormant)
        optimizer.recycle(model, x)
        assert list(optimizer.num_replaced().values()) == [
            d.sum() for d in dormant
        ]
        for i, mask in enumerate(dormant):
            layer, consumer = model.layers[i : i + 2]
            np.testing.assert_array_equal(to_numpy(layer.age) == 0, mask)
            np.testing.assert_array_equal(
                np.all(to_numpy(consumer.kernel) == 0, axis=1), mask
            )

    def test_nothing_else_changes(self):
        model, optimizer = self._built(threshold=0)
        before = [to_numpy(v) for v in model.trainable_variables]
        x, _ = make_data(50, seed=7)
        # Every unit is active for some of them.
        assert all(np.all(h.any(axis=0)) for h in _hidden_activations(model, x))
        optimizer.recycle(model, x)
        assert sum(optimizer.num_replaced().values()) == 0
        for value, variable in zip(before, model.trainable_variables):
            np.testing.assert_array_equal(
                value, to_numpy(variable), variable.path
            )

    def test_training_continues(self):
        model, optimizer = self._built(threshold=0.5)
        x, y = make_data(50, seed=7)
        optimizer.recycle(model, x)
        replaced = optimizer.num_replaced()
        model.fit(x, y, batch_size=10, verbose=0)
        assert optimizer.num_replaced() == replaced
        assert np.all(np.any(to_numpy(model.layers[1].kernel) != 0, axis=1))

    def test_before_it_is_built(self):
        optimizer = ReDo(keras.optimizers.SGD())
        with pytest.raises(ValueError, match="`ReDo` is not built yet.*Train"):
            optimizer.recycle(make_model(), make_data(2)[0])


def test_all_units_of_a_dead_layer_are_replaced():
    model = make_model((4, 6, 3), activation="relu", kernel_initializer="ones")
    model.layers[0].bias.assign(np.full(6, -100.0))
    optimizer = ReDo(keras.optimizers.SGD(0.1), period=1)
    train(model, optimizer, make_data(8))
    assert optimizer.num_replaced() == {"layer_0": 6}
    np.testing.assert_array_equal(to_numpy(model.layers[0].kernel), 1.0)
    np.testing.assert_array_equal(to_numpy(model.layers[0].bias), 0.0)


def test_config():
    optimizer = ReDo(
        keras.optimizers.SGD(),
        threshold=0.5,
        period=7,
        score_updates=3,
        seed=4,
        name="other",
    )
    twin = ReDo.from_config(optimizer.get_config())
    assert twin.get_config() == optimizer.get_config()
    assert (twin.threshold, twin.period, twin.score_updates) == (0.5, 7, 3)
    assert (twin.seed, twin.name) == (4, "other")


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("threshold", -0.1, "must be a number that is not negative"),
        ("threshold", float("nan"), "must be a number that is not negative"),
        ("threshold", float("inf"), "must be a number that is not negative"),
        ("threshold", "low", "must be a number that is not negative"),
        ("threshold", None, "must be a number that is not negative"),
        ("threshold", True, "must be a number that is not negative"),
        ("period", 0, "must be a positive integer"),
        ("period", -5, "must be a positive integer"),
        ("period", 2.0, "must be a positive integer"),
        ("period", True, "must be a positive integer"),
        ("period", "task", "must be a positive integer"),
        (
            "score_updates",
            0,
            "must be an integer of at least 1 and at most",
        ),
        ("score_updates", 1001, "must be an integer of at least 1 and at most"),
        ("score_updates", 1.5, "must be an integer of at least 1 and at most"),
    ],
)
def test_bad_argument(name, value, message):
    with pytest.raises(
        ValueError, match=f"`{name}` {message}.*Received: {name}={value}"
    ):
        ReDo(keras.optimizers.SGD(), **{name: value})


def test_in_another_reset_method():
    inner = keras_plasticity.optimizers.ContinualBackprop(
        keras.optimizers.SGD()
    )
    with pytest.raises(
        ValueError,
        match="`inner_optimizer` of a `ReDo` must not itself be or hold a "
        "`ContinualBackprop`: units would be replaced twice",
    ):
        ReDo(keras.optimizers.LossScaleOptimizer(inner))


def _constant(value):
    return keras.initializers.Constant(value)


# The layer that reads the units, and what it draws for their weights.
_READERS = {
    "dense": lambda: [
        keras.layers.Flatten(),
        layers.Dense(5, kernel_initializer=_constant(0.7)),
    ],
    "convolution": lambda: [
        layers.Conv2D(5, 2, kernel_initializer=_constant(0.7)),
        keras.layers.Flatten(),
    ],
    "separable": lambda: [
        layers.SeparableConv2D(
            5,
            2,
            depthwise_initializer=_constant(0.7),
            pointwise_initializer=_constant(-0.2),
        ),
        keras.layers.Flatten(),
    ],
}


@pytest.mark.parametrize("outgoing", ["zero", "random"])
@pytest.mark.parametrize("reader", _READERS)
def test_outgoing_weights(reader, outgoing):
    model = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            layers.Conv2D(
                6, 2, activation="relu", kernel_initializer=_constant(0.4)
            ),
            *_READERS[reader](),
            keras.layers.ReLU(),
            layers.Dense(3),
        ]
    )
    first, second = (
        each for each in model.layers[:-1] if hasattr(each, "feature_view")
    )
    rng = np.random.default_rng(1)
    for weight in weights_of(model):
        weight.assign(rng.normal(0, 1, weight.shape))
    # Two units are dormant, and none of the second layer.
    first.bias.assign([0.0, -99.0, 0.0, 0.0, -99.0, 0.0])
    second.bias.assign(np.full(5, 99.0))
    optimizer = ReDo(
        keras.optimizers.Adam(0.01), threshold=0.0, outgoing=outgoing, seed=1
    )
    optimizer.build(model.trainable_variables)
    view = second.feature_view()
    before = to_numpy(view.variable)
    optimizer.recycle(model, rng.normal(size=(9, 4, 4, 2)).astype("float32"))
    assert list(optimizer.num_replaced().values()) == [2, 0]
    is_new = np.zeros((1, 1, 1, 6, 1), bool)
    is_new[..., [1, 4], :] = True
    new, old = (
        # The positions of a flat map, or of the kernel, then the channels.
        np.reshape(values, (1, 1, -1, 6, values.shape[-1]))
        for values in (to_numpy(view.variable), before)
    )
    is_new = np.broadcast_to(is_new, new.shape)
    expected = 0.7 if outgoing == "random" else 0.0
    np.testing.assert_allclose(new[is_new], expected, rtol=1e-6)
    np.testing.assert_array_equal(new[~is_new], old[~is_new])


def test_initial_weights_of_a_convolution_and_its_normalization():
    model = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            layers.Conv2D(6, 2, use_bias=False),
            keras.layers.LayerNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            layers.Dense(3),
        ]
    )
    rng = np.random.default_rng(1)
    for weight in weights_of(model):
        weight.assign(rng.normal(0, 1, weight.shape))
    convolution, normalization = model.layers[:2]
    optimizer = ReDo(
        keras.optimizers.Adam(0.1), threshold=0.0, new_weights="initial"
    )
    optimizer.build(model.trainable_variables)
    first = [to_numpy(w) for w in weights_of(model)]
    moved = [value + 1 for value in first]
    for weight, value in zip(weights_of(model), moved):
        weight.assign(value)
    normalization.beta.assign([0.0, -99.0, 0.0, 0.0, -99.0, 0.0])
    moved[2] = to_numpy(normalization.beta)
    optimizer.recycle(model, rng.normal(size=(8, 4, 4, 2)).astype("float32"))
    assert list(optimizer.num_replaced().values()) == [2]
    is_new = np.isin(np.arange(6), [1, 4])
    for weight, old, new in zip(weights_of(model)[:3], first, moved):
        expected = np.where(is_new, old, new)
        np.testing.assert_array_equal(to_numpy(weight), expected, weight.path)


@pytest.mark.parametrize(
    "name, values",
    [
        ("new_weights", "'drawn' or 'initial'"),
        ("shared_weights", "'outgoing' or 'incoming'"),
        ("reset_bias_slots", "`True` or `False`"),
    ],
)
def test_bad_choice(name, values):
    with pytest.raises(ValueError, match=f"`{name}` must be {values}.*one"):
        ReDo(keras.optimizers.SGD(), **{name: "one"})


def test_bad_outgoing():
    with pytest.raises(
        ValueError, match="`outgoing` must be 'zero' or 'random'.*one"
    ):
        ReDo(keras.optimizers.SGD(), outgoing="one")
