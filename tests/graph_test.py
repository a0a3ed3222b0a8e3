import keras
import pytest

from keras_plasticity import graph
from keras_plasticity.layers import Dense


def _find(layer):
    return [consumer.name for consumer in graph.find_consumers(layer)]


def test_sequential():
    first, second, last = Dense(4), Dense(3, name="b"), Dense(2, name="c")
    keras.Sequential([keras.Input((5,)), first, second, last])
    assert _find(first) == ["b"]
    assert _find(second) == ["c"]
    assert _find(last) == []


def test_sequential_by_add():
    # `add` builds the model anew each time.
    layers = [Dense(4, name=name) for name in "abc"]
    model = keras.Sequential()
    model.add(keras.Input((5,)))
    for layer in layers:
        model.add(layer)
    assert [_find(layer) for layer in layers] == [["b"], ["c"], []]


def test_sequential_built_by_its_first_data():
    layers = [Dense(4, name=name) for name in "abc"]
    model = keras.Sequential(layers)
    model.build((None, 5))
    assert [_find(layer) for layer in layers] == [["b"], ["c"], []]


@pytest.mark.parametrize("kind", ["sequential", "functional"])
def test_reloaded_model(kind, tmp_path):
    model = keras.Sequential(
        [keras.Input((5,)), Dense(4, name="a"), Dense(3, name="b"), Dense(2)]
    )
    if kind == "functional":
        model = keras.Model(model.inputs, model.outputs)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert _find(loaded.get_layer("a")) == ["b"]


def test_cloned_model():
    model = keras.Sequential(
        [keras.Input((5,)), Dense(4, name="a"), Dense(3, name="b")]
    )
    clone = keras.models.clone_model(model)
    assert _find(clone.get_layer("a")) == ["b"]
    assert graph.find_consumers(clone.get_layer("a")) == [clone.get_layer("b")]
    assert _find(model.get_layer("a")) == ["b"]


@pytest.mark.parametrize(
    "between",
    [
        keras.layers.Activation("relu"),
        keras.layers.Dropout(0.5),
        keras.layers.LeakyReLU(),
        keras.layers.GaussianNoise(0.1),
        keras.layers.Identity(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_between(between):
    first = Dense(4)
    keras.Sequential(
        [
            keras.Input((5,)),
            first,
            between.from_config(between.get_config()),
            keras.layers.ReLU(),
            Dense(3, name="reader"),
        ]
    )
    assert _find(first) == ["reader"]


def test_two_readers():
    inputs = keras.Input((5,))
    hidden = Dense(4, name="hidden")
    h = hidden(inputs)
    outputs = [Dense(2, name="a")(h), Dense(3, name="b")(h)]
    keras.Model(inputs, outputs)
    assert sorted(_find(hidden)) == ["a", "b"]


def test_one_reader_of_many_names_is_found_once():
    inputs = keras.Input((5,))
    hidden = Dense(4)
    h = hidden(inputs)
    outputs = keras.layers.ReLU()(h)
    keras.Model(inputs, Dense(2, name="reader")(outputs))
    assert _find(hidden) == ["reader"]


def _sequential(*layers):
    keras.Sequential([keras.Input((5,)), *layers])
    return layers[0]


def _shared():
    layer = Dense(5, name="twice")
    return _sequential(layer, layer, Dense(2))


def _shared_reader():
    inputs = keras.Input((5,))
    first, reader = Dense(4), Dense(4, name="twice")
    keras.Model(inputs, reader(reader(first(inputs))))
    return first


def _shared_in_two_branches():
    # Two outputs, and nothing that reads both.
    inputs = keras.Input((5,))
    shared = Dense(4, name="twice")
    branches = [keras.layers.Dense(3)(inputs) for _ in range(2)]
    keras.Model(inputs, [Dense(2)(shared(b)) for b in branches])
    return shared


def _residual():
    inputs = keras.Input((5,))
    layer = Dense(5)
    total = keras.layers.Add()([inputs, layer(inputs)])
    keras.Model(inputs, Dense(2)(total))
    return layer


def _operation():
    inputs = keras.Input((5,))
    layer = Dense(5)
    keras.Model(inputs, Dense(2)(keras.ops.multiply(layer(inputs), 2.0)))
    return layer


def _subclassed():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden = Dense(4)
            self.last = Dense(2)

        def call(self, x):
            return self.last(self.hidden(x))

    model = Model()
    model(keras.ops.zeros((1, 5)))
    return model.hidden


@pytest.mark.parametrize(
    "make, message",
    [
        pytest.param(
            lambda: _sequential(
                Dense(4, name="hidden"), keras.layers.Dense(2, name="plain")
            ),
            r"'hidden' are read by 'plain' \(`Dense`\), which is not plastic.*"
            "Use `keras_plasticity.layers.Dense` for 'plain' too",
            id="reader_is_not_plastic",
        ),
        pytest.param(
            lambda: _sequential(
                Dense(4), keras.layers.LayerNormalization(), Dense(2)
            ),
            "`LayerNormalization`.*not known to keep units apart.*Dropout",
            id="unknown_layer_between",
        ),
        pytest.param(
            lambda: _sequential(Dense(4, activation="softmax"), Dense(2)),
            "activation `softmax` of layer.*mixes the units",
            id="softmax",
        ),
        pytest.param(
            lambda: _sequential(
                Dense(4), keras.layers.Activation("softmax"), Dense(2)
            ),
            "activation `softmax` of layer.*mixes the units",
            id="softmax_between",
        ),
        pytest.param(_shared, "'twice' is called more than once", id="shared"),
        pytest.param(
            _shared_reader, "'twice' is called more than once", id="reader"
        ),
        pytest.param(
            _shared_in_two_branches,
            "'twice' is called more than once",
            id="shared_in_two_branches",
        ),
        pytest.param(_residual, "`Add`.*not known to keep", id="residual"),
        pytest.param(
            _operation, "`Multiply`.*not known to keep", id="operation"
        ),
        pytest.param(
            _subclassed, "is not part of the graph of a", id="subclassed"
        ),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        graph.find_consumers(make())


def test_last_layer_may_have_any_activation():
    layer = _sequential(Dense(2, activation="softmax"))
    assert _find(layer) == []
