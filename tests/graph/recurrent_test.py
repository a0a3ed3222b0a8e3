"""Who reads the units of recurrent layers."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity import graph
from keras_plasticity import layers
from keras_plasticity.layers import PlasticLayer
from tests.helpers import observed_means
from tests.helpers import to_numpy

pytestmark = pytest.mark.usefixtures("fast_compilation")

_STEPS = 4


def _connections(model):
    """Dict from a layer's name to its `Connections`."""
    plastic = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, PlasticLayer)
    ]
    found = graph.find_connections(plastic, model)
    return {each.layer.name: each for each in found}


def _readers(model):
    """Dict from the name of a layer to the names of those that read it."""
    found = _connections(model)
    graph.check(list(found.values()))
    return {
        name: [consumer.name for consumer in each.consumers]
        for name, each in found.items()
        if each.skip_reason is None
    }


def _model(*between, features=3, steps=_STEPS, **kwargs):
    return keras.Sequential(
        [keras.Input((steps, features), **kwargs), *between]
    )


@pytest.mark.parametrize("steps", [None, _STEPS])
def test_stacked(steps):
    model = _model(
        layers.LSTM(5, return_sequences=True, name="first"),
        keras.layers.Dropout(0.1),
        keras.layers.LayerNormalization(),
        layers.GRU(4, return_sequences=True, name="second"),
        layers.SimpleRNN(3, name="third"),
        layers.Dense(2, name="head"),
        steps=steps,
    )
    assert _readers(model) == {
        "first": ["first (recurrent)", "second"],
        "second": ["second (recurrent)", "third"],
        "third": ["third (recurrent)", "head"],
    }
    (parameters,) = {len(_connections(model)["first"].parameters)}
    assert parameters == 2  # Of the normalization.


def test_sequences_behind_which_others_stand():
    inputs = keras.Input((_STEPS, 3))
    x = layers.GRU(5, return_sequences=True, name="gru")(inputs)
    convolved = layers.Conv1D(4, 2, name="conv")(x)
    pooled = keras.layers.GlobalAveragePooling1D()(x)
    flat = layers.Dense(2, name="flat")(keras.layers.Flatten()(x))
    outputs = [convolved, layers.Dense(2, name="dense")(pooled), flat]
    consumers = _connections(keras.Model(inputs, outputs))["gru"].consumers
    assert {c.name: each.features for c, each in consumers.items()} == {
        "gru (recurrent)": 5,
        "conv": 5,
        "dense": 5,
        "flat": _STEPS * 5,
    }


@pytest.mark.parametrize("steps", [None, _STEPS])
def test_time_distributed(steps):
    inputs = keras.Input((steps, 3))
    x = layers.GRU(5, return_sequences=True, name="gru")(inputs)
    hidden = layers.Dense(4, activation="tanh", name="hidden")
    x = keras.layers.TimeDistributed(hidden)(x)
    head = layers.Dense(2, name="head")
    model = keras.Model(inputs, keras.layers.TimeDistributed(head)(x))
    assert _readers(model) == {
        "gru": ["gru (recurrent)", "hidden"],
        "hidden": ["head"],
    }
    # As without the wrapper, which calls a layer for each step.
    results = []
    gru = model.get_layer("gru")
    for outputs in (model.output, head(hidden(gru.output))):
        each = keras.Model(inputs, outputs)
        each.compile(keras.optimizers.SGD(0.0), "mse")
        rng = np.random.default_rng(0)
        x = rng.normal(0, 1, (6, _STEPS, 3)).astype("float32")
        each.train_on_batch(x, np.ones((6, _STEPS, 2)))
        results.append([*observed_means(hidden).values()])
        count = to_numpy(hidden.statistics.count)
        assert count[0] / count[1] == 6
    for actual, expected in zip(*results, strict=True):
        assert np.any(actual)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("merge_mode", ["concat", "sum", "mul", "ave", None])
def test_bidirectional(merge_mode, kind):
    inputs = keras.Input((_STEPS, 3))
    first = layers.Dense(4, name="first")(inputs)
    wrapper = keras.layers.Bidirectional(
        getattr(layers, kind)(5, return_sequences=True, name="rnn"),
        merge_mode=merge_mode,
    )
    x = wrapper(first)
    if merge_mode is None:
        x = keras.layers.Concatenate()(list(x))
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    found = _connections(model)
    consumers = {c.name for c in found["first"].consumers}
    assert consumers == {"forward_rnn", "backward_rnn"}
    for name in ("forward_rnn", "backward_rnn"):
        if merge_mode in ("concat", None):
            assert found[name].skip_reason is None
            consumers = [c.name for c in found[name].consumers]
            assert consumers == [f"{name} (recurrent)", "head"]
        elif merge_mode == "mul" and name == "forward_rnn":
            assert found[name].skip_reason is None
        else:
            assert found[name].skip_reason is not None, merge_mode
    if merge_mode == "concat":
        feature_map = list(found["backward_rnn"].consumers.values())[-1]
        np.testing.assert_array_equal(
            feature_map.unit_of_feature, [-1] * 5 + [0, 1, 2, 3, 4]
        )


def test_bidirectional_calls_both_layers():
    # On a GPU it would compute both at once, from their weights alone.
    wrapper = keras.layers.Bidirectional(layers.LSTM(5))
    wrapper.build((None, _STEPS, 3))
    plain = keras.layers.Bidirectional(keras.layers.LSTM(5))
    plain.build((None, _STEPS, 3))
    for name, answers in {
        "_can_attempt_fused_lstm": (False, True),
        "_can_attempt_fused_gru": (False, False),
    }.items():
        found = tuple(getattr(each, name)(None) for each in (wrapper, plain))
        assert found == answers


def test_returned_states():
    inputs = keras.Input((_STEPS, 3))
    h, _, c = layers.LSTM(5, return_state=True, name="lstm")(inputs)
    both = keras.layers.Concatenate()([h, c])
    outputs = [layers.Dense(2, name="dense")(both)]
    model = keras.Model(inputs, outputs)
    assert _readers(model) == {"lstm": ["lstm (recurrent)", "dense"]}
    feature_map = list(_connections(model)["lstm"].consumers.values())[-1]
    np.testing.assert_array_equal(feature_map.unit_of_feature, [*range(5)] * 2)
    assert not feature_map.has_common_means


def test_units_that_another_layer_carries_on():
    inputs = keras.Input((_STEPS, 3))
    _, h, c = layers.LSTM(5, return_state=True, name="encoder")(inputs)
    decoder = layers.LSTM(5, name="decoder")
    x = decoder(inputs, initial_state=[h, c])
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    with pytest.warns(UserWarning, match="'encoder': carried on as the state"):
        readers = _readers(model)
    assert readers == {"decoder": ["decoder (recurrent)", "head"]}


def test_no_reader_behind():
    model = _model(layers.LSTM(5, name="lstm"))
    (connections,) = _connections(model).values()
    assert connections.skip_reason == "outputs of the model"
    texts = []
    keras_plasticity.inspect(model, print_fn=texts.append)
    assert "lstm (recurrent)" in texts[0]


def test_stated_connections():
    lstm, head = layers.LSTM(5, name="lstm"), layers.Dense(2, name="head")
    head(lstm(np.ones((2, _STEPS, 3), "float32")))
    keras_plasticity.connect(lstm, head)
    found, _ = graph.find_connections([lstm, head])
    assert [c.name for c in found.consumers] == ["lstm (recurrent)", "head"]


class _OwnCell(keras.layers.Layer):
    state_size = 5

    def build(self, input_shape):
        self.dense = keras.layers.Dense(5)
        self.dense.build((None, input_shape[-1] + 5))

    def call(self, inputs, states, training=False):
        h = self.dense(ops.concatenate([inputs, states[0]], axis=-1))
        return h, [h]


class _OwnRNN(keras.layers.SimpleRNN):
    pass


def _twice(inputs):
    layer = layers.GRU(3, return_sequences=True, name="twice")
    return layer(layer(layers.Dense(3, name="before")(inputs)))


def _in_time(inner):
    return lambda inputs: keras.layers.TimeDistributed(inner, name="in_time")(
        layers.GRU(3, return_sequences=True, name="before")(inputs)
    )


_BEFORE = {
    "cell": (
        lambda x: keras.layers.RNN(keras.layers.LSTMCell(4), name="rnn")(x),
        r"'rnn' \(`RNN`\) calls cells, which cannot be followed. Use "
        "`keras_plasticity.layers.LSTM`",
    ),
    "own_cell": (
        lambda x: keras.layers.RNN(_OwnCell(), name="rnn")(x),
        r"'rnn' \(`RNN`\) calls cells, which cannot be followed",
    ),
    "stacked_cells": (
        lambda x: keras.layers.RNN(
            [keras.layers.GRUCell(3), keras.layers.GRUCell(2)], name="rnn"
        )(x),
        r"'rnn' \(`RNN`\) calls cells, which cannot be followed",
    ),
    "own_layer": (
        lambda x: _OwnRNN(4, name="own")(x),
        "'own' .`_OwnRNN`.",
    ),
    "plain": (
        lambda x: keras.layers.LSTM(4, name="plain")(x),
        "'plain' .`LSTM`. is not plastic.*Use `keras_plasticity.layers.LSTM`",
    ),
    "plain_bidirectional": (
        lambda x: keras.layers.Bidirectional(keras.layers.GRU(4), name="both")(
            x
        ),
        "the layers in 'both' .`Bidirectional`. are not plastic. Use "
        r"`keras.layers.Bidirectional\(keras_plasticity.layers.GRU\(",
    ),
}


@pytest.mark.parametrize("make, message", _BEFORE.values(), ids=_BEFORE)
def test_refused_readers(make, message):
    inputs = keras.Input((_STEPS, 3))
    x = layers.Dense(4, name="before")(inputs)
    model = keras.Model(inputs, make(x))
    with pytest.raises(ValueError, match="'before' cannot.*" + message):
        _readers(model)


_OTHERS = {
    "twice": (_twice, "layer 'twice' is called 2 times"),
    "plain_time_distributed": (
        _in_time(keras.layers.Dense(2)),
        "the layer in 'in_time' .`TimeDistributed`. is not plastic. Put "
        "`keras_plasticity.layers.Dense` into it",
    ),
    "recurrent_in_time": (
        lambda x: keras.layers.TimeDistributed(layers.GRU(2, name="inner"))(
            keras.layers.Reshape((2, 2, 3))(x)
        ),
        "'inner' cannot.* calls it once for each time step",
    ),
    "mixing_gate": (
        lambda x: layers.Dense(2)(
            layers.LSTM(3, recurrent_activation="softmax")(x)
        ),
        "its recurrent activation `softmax` mixes units",
    ),
    "mixing_activation": (
        lambda x: layers.Dense(2)(layers.GRU(3, activation="softmax")(x)),
        "its activation `softmax` mixes units",
    ),
}


@pytest.mark.parametrize("make, message", _OTHERS.values(), ids=_OTHERS)
def test_refused(make, message):
    inputs = keras.Input((_STEPS, 3))
    model = keras.Model(inputs, make(inputs))
    with pytest.raises(ValueError, match=message):
        _readers(model)


def test_make_plastic():
    inputs = keras.Input((_STEPS, 3))
    x = keras.layers.Masking()(inputs)
    x = keras.layers.Bidirectional(
        keras.layers.LSTM(5, return_sequences=True, name="lstm")
    )(x)
    x = keras.layers.GRU(4, return_sequences=True, name="gru")(x)
    x = keras.layers.SimpleRNN(3, name="simple")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
    data = np.random.default_rng(0).normal(0, 1, (8, _STEPS, 3))
    before = to_numpy(model(data))
    assert keras_plasticity.models.make_plastic(model) is model
    np.testing.assert_array_equal(to_numpy(model(data)), before)
    assert _readers(model) == {
        "forward_lstm": ["forward_lstm (recurrent)", "gru"],
        "backward_lstm": ["backward_lstm (recurrent)", "gru"],
        "gru": ["gru (recurrent)", "simple"],
        "simple": ["simple (recurrent)", "head"],
    }
    if keras.backend.backend() != "torch":
        return  # Four loops take long to compile.
    optimizer = keras_plasticity.optimizers.ContinualBackprop(
        keras.optimizers.Adam(0.01), replacement_rate=0.2, maturity_threshold=1
    )
    model.compile(optimizer, "mse")
    model.fit(data, np.ones((8, 2)), batch_size=2, verbose=0)
    assert min(optimizer.num_replaced().values()) > 0
    assert len(optimizer.num_replaced()) == 4


def test_make_plastic_leaves_cells_alone():
    model = _model(
        keras.layers.LSTM(5, return_sequences=True, name="lstm"),
        keras.layers.GRU(4, return_sequences=True, name="gru"),
        keras.layers.RNN(keras.layers.LSTMCell(3), name="rnn"),
        keras.layers.Dense(2),
    )
    keras_plasticity.models.make_plastic(model)
    # The units of `gru` are read by cells.
    kinds = [type(model.get_layer(name)) for name in ("lstm", "gru", "rnn")]
    assert kinds == [layers.LSTM, layers.GRU, keras.layers.RNN]
    assert not model.get_layer("gru").replaceable
    assert _readers(model) == {"lstm": ["lstm (recurrent)", "gru"]}
