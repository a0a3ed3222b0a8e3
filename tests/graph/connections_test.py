import re

import keras
import pytest

import keras_plasticity
from keras_plasticity import graph
from keras_plasticity.layers import Dense
from keras_plasticity.layers import PlasticLayer


def _plastic_layers(model):
    return [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, PlasticLayer)
    ]


def _find(model, called=False):
    """Who reads whom, by name; not called, a model is not known."""
    if called:
        model(keras.ops.zeros((1, *model.input_shape[1:])))
    layers = _plastic_layers(model)
    found = graph.find_model(layers, model.trainable_variables)
    assert found is (model if called else None)
    result = {}
    all_found = graph.find_connections(
        layers, found, variables=model.trainable_variables
    )
    graph.check(all_found)
    for connections in all_found:
        result[connections.layer.name] = [
            consumer.name for consumer in connections.consumers
        ]
        assert (connections.skip_reason is None) == bool(connections.consumers)
    return result


_CALLED = pytest.mark.parametrize("called", [False, True])


@_CALLED
def test_sequential(called):
    layers = [Dense(4, name=name) for name in "abc"]
    model = keras.Sequential([keras.Input((5,)), *layers])
    assert _find(model, called) == {"a": ["b"], "b": ["c"], "c": []}


@_CALLED
def test_sequential_by_add(called):
    # `add` builds the model anew each time.
    layers = [Dense(4, name=name) for name in "abc"]
    model = keras.Sequential()
    model.add(keras.Input((5,)))
    for layer in layers:
        model.add(layer)
    assert _find(model, called) == {"a": ["b"], "b": ["c"], "c": []}


def test_sequential_built_by_its_first_data():
    layers = [Dense(4, name=name) for name in "abc"]
    model = keras.Sequential(layers)
    model.build((None, 5))
    assert _find(model) == {"a": ["b"], "b": ["c"], "c": []}


@pytest.mark.parametrize("kind", ["sequential", "functional"])
def test_reloaded_model(kind, tmp_path):
    model = keras.Sequential(
        [keras.Input((5,)), *(Dense(4, name=name) for name in "abc")]
    )
    if kind == "functional":
        model = keras.Model(model.inputs, model.outputs)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert _find(loaded) == {"a": ["b"], "b": ["c"], "c": []}


def test_cloned_model():
    model = keras.Sequential(
        [keras.Input((5,)), Dense(4, name="a"), Dense(3, name="b")]
    )
    clone = keras.models.clone_model(model)
    for each in (clone, model):
        assert _find(each) == {"a": ["b"], "b": []}
        (first, _) = graph.find_connections(_plastic_layers(each))
        assert list(first.consumers) == [each.get_layer("b")]


@_CALLED
def test_two_consumers(called):
    inputs = keras.Input((5,))
    h = Dense(4, name="hidden")(inputs)
    outputs = [Dense(2, name="a")(h), Dense(3, name="b")(h)]
    model = keras.Model(inputs, outputs)
    found = _find(model, called)
    assert sorted(found.pop("hidden")) == ["a", "b"]
    assert found == {"a": [], "b": []}


@_CALLED
def test_hidden_layer_that_is_also_an_output(called):
    inputs = keras.Input((5,))
    h = Dense(4, name="hidden")(inputs)
    model = keras.Model(inputs, [h, Dense(2, name="last")(h)])
    if called:
        model(keras.ops.zeros((1, 5)))
    layers = _plastic_layers(model)
    (hidden, _) = graph.find_connections(layers, model if called else None)
    # The graph alone has no mark of what a model returns.
    expected = "outputs of the model" if called else None
    assert hidden.skip_reason == expected


def _nested(kind, last=None):
    """Plastic layers inside a model inside another."""
    if kind == "functional":
        inputs = keras.Input((5,))
        x = Dense(4, name="a")(inputs)
        inner = keras.Model(inputs, Dense(4, name="b")(x))
    elif kind == "sequential":
        inner = keras.Sequential(
            [keras.Input((5,)), Dense(4, name="a"), Dense(4, name="b")]
        )
    else:

        class Inner(keras.Model):
            def __init__(self):
                super().__init__()
                self.a = Dense(4, name="a")
                self.b = Dense(4, name="b")

            def call(self, x):
                return self.b(keras.ops.relu(self.a(x)))

        inner = Inner()
    inputs = keras.Input((5,))
    x = Dense(5, name="before")(inputs)
    x = keras.layers.ReLU()(inner(x))
    return keras.Model(inputs, (last or Dense(2, name="last"))(x))


_KINDS = pytest.mark.parametrize(
    "kind", ["functional", "sequential", "subclassed"]
)


@_CALLED
@_KINDS
def test_nested_model(kind, called):
    model = _nested(kind)
    assert _find(model, called) == {
        "before": ["a"],
        "a": ["b"],
        "b": ["last"],
        "last": [],
    }


@_CALLED
@_KINDS
def test_nested_model_read_by_a_plain_layer(kind, called):
    model = _nested(kind, keras.layers.Dense(2, name="plain"))
    with pytest.raises(ValueError, match="'b' cannot be followed.*'plain'"):
        _find(model, called)


def test_plastic_layers_inside_a_plain_model_that_is_not_called():
    inner = keras.Sequential(
        [keras.Input((5,)), Dense(4, name="a"), Dense(4, name="b")]
    )
    model = keras.Sequential(
        [keras.Input((5,)), inner, keras.layers.Dense(3, name="plain")]
    )
    # Nothing tells the layers that there is more than the inner model.
    with pytest.raises(ValueError, match="plain/kernel.*Call the model on"):
        _find(model)
    with pytest.raises(ValueError, match="'b' cannot be followed.*'plain'"):
        _find(model, called=True)


def test_twice_nested_model():
    inner = _nested("sequential")
    inputs = keras.Input((5,))
    model = keras.Model(inputs, Dense(3, name="end")(inner(inputs)))
    for called in (False, True):
        assert _find(model, called) == {
            "before": ["a"],
            "a": ["b"],
            "b": ["last"],
            "last": ["end"],
            "end": [],
        }


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.a = Dense(4, name="a")
        self.b = Dense(3, name="b")
        self.norm = keras.layers.BatchNormalization()

    def call(self, x, training=False):
        x = keras.ops.relu(self.norm(self.a(x), training=training))
        return self.b(keras.ops.reshape(x, (-1, 4)))


def test_subclassed_model():
    model = Subclassed()
    model(keras.ops.zeros((2, 5)))
    layers = _plastic_layers(model)
    found = graph.find_model(layers, model.trainable_variables)
    assert found is model
    (a, b) = graph.find_connections(layers, found)
    assert list(a.consumers) == [model.b]
    assert [p.variable.name for p in a.parameters] == ["gamma", "beta"]
    assert b.skip_reason == "outputs of the model"
    # Tracing leaves no marks.
    assert not model.a._inbound_nodes and not model.b._outbound_nodes


def test_model_with_several_inputs():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.a = Dense(4, name="a")
            self.b = Dense(3, name="b")

        def call(self, inputs):
            x, y = inputs
            return self.b(keras.ops.concatenate([y, self.a(x)], axis=-1))

    model = Model()
    model([keras.ops.zeros((2, 5)), keras.ops.zeros((2, 2))])
    layers = _plastic_layers(model)
    (a, _) = graph.find_connections(layers, model)
    (feature_map,) = a.consumers.values()
    assert feature_map.unit_of_feature.tolist() == [-1, -1, 0, 1, 2, 3]


class Untraceable(keras.Model):
    """Its `call` looks at the data."""

    def __init__(self):
        super().__init__()
        self.a = Dense(4, name="a")
        self.b = Dense(3, name="b")

    def call(self, x):
        if float(keras.ops.sum(x)) > 0:
            x = -x
        return self.b(self.a(x))


def test_what_cannot_be_traced_has_to_be_stated():
    model = Untraceable()
    model(keras.ops.zeros((2, 5)))
    layers = _plastic_layers(model)
    with pytest.raises(ValueError, match="cannot be traced.*connect"):
        graph.find_connections(layers, model)
    graph.connect(model.a, model.b)
    (a, b) = graph.find_connections(layers, model)
    graph.check([a, b])
    assert list(a.consumers) == [model.b] and a.skip_reason is None
    assert b.skip_reason == "read by no layer"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"unit_of_feature": [0, 1, 2]}, r"must have the shape \(4,\)"),
        ({"unit_of_feature": [0, 0, 1, 2]}, "same number of features"),
        ({"unit_of_feature": [0, 1, 2, 10**9]}, "array of integers from -1"),
        ({"unit_of_feature": [0.0, 1.5, 2.0, 3.0]}, "array of integers from"),
        ({"unit_of_feature": "abcd"}, "`unit_of_feature` must be an array of"),
    ],
)
def test_connect_what_does_not_fit(arguments, message):
    model = Untraceable()
    model(keras.ops.zeros((2, 5)))
    with pytest.raises(ValueError, match=message):
        graph.connect(model.a, model.b, **arguments)


def test_connect_plain_layers():
    layer = keras.layers.Dense(3)
    with pytest.raises(ValueError, match="takes two built layers of"):
        graph.connect(layer, layer)


def test_the_model_compiled_with_the_optimizer_is_preferred():
    inputs = keras.Input((5,))
    h = Dense(4, name="hidden")(inputs)
    model = keras.Model(inputs, Dense(2, name="last")(h))
    # One that only looks on has `hidden` among its outputs.
    watching = keras.Model(inputs, [h, model.output])
    for each in (watching, model):
        each(keras.ops.zeros((1, 5)))
    model.compile(optimizer="sgd", loss="mse")
    variables = model.trainable_variables
    layers = _plastic_layers(model)
    assert graph.find_model(layers, variables, model.optimizer) is model


def test_of_models_that_share_their_layers_the_last_called_is_preferred():
    inputs = keras.Input((5,))
    h = Dense(4, name="hidden")(inputs)
    model = keras.Model(inputs, Dense(2, name="last")(h))
    watching = [keras.Model(inputs, [h, model.output]) for _ in range(5)]
    layers = _plastic_layers(model)
    for each in (*watching, model, *watching, model):
        each(keras.ops.zeros((1, 5)))
        assert graph.find_model(layers, model.trainable_variables) is each


def _sequential(*layers):
    return keras.Sequential([keras.Input((5,)), *layers])


def _shared():
    layer = Dense(5, name="twice")
    return _sequential(layer, layer, Dense(2))


def _shared_consumer():
    inputs = keras.Input((5,))
    first, consumer = Dense(4), Dense(4, name="twice")
    return keras.Model(inputs, consumer(consumer(first(inputs))))


def _shared_in_two_branches():
    # Two outputs, and nothing that reads both.
    inputs = keras.Input((5,))
    shared = Dense(4, name="twice")
    branches = [keras.layers.Dense(3)(inputs) for _ in range(2)]
    return keras.Model(inputs, [Dense(2)(shared(b)) for b in branches])


@_CALLED
@pytest.mark.parametrize(
    "make, message",
    [
        pytest.param(
            lambda: _sequential(
                Dense(4, name="hidden"), keras.layers.Dense(2, name="plain")
            ),
            r"'hidden' cannot be followed.*'plain' \(`Dense`\) is not plastic"
            ".*Use `keras_plasticity.layers.Dense` for it too",
            id="consumer_is_not_plastic",
        ),
        pytest.param(
            lambda: _sequential(Dense(4), keras.layers.Softmax(), Dense(2)),
            r"'softmax\w*' \(`Softmax`\) is not known to keep units apart",
            id="unknown_layer_between",
        ),
        pytest.param(
            lambda: _sequential(
                Dense(4),
                keras.layers.Lambda(lambda x: keras.ops.flip(x, 1)),
                Dense(2),
            ),
            r"\(`Lambda`\) is not known to keep units apart",
            id="lambda",
        ),
        pytest.param(
            lambda: _sequential(Dense(4, activation="softmax"), Dense(2)),
            "activation `softmax` mixes units",
            id="softmax",
        ),
        pytest.param(
            lambda: _sequential(
                Dense(4), keras.layers.Activation("softmax"), Dense(2)
            ),
            "activation `softmax` of 'activation.*mixes units",
            id="softmax_between",
        ),
        pytest.param(
            lambda: _sequential(
                Dense(4, activation=lambda x: x - keras.ops.mean(x)), Dense(2)
            ),
            "activation `<lambda>` mixes units",
            id="own_activation",
        ),
        pytest.param(_shared, "'twice' is called 2 times", id="shared"),
        pytest.param(
            _shared_consumer, "'twice' is called 2 times", id="consumer"
        ),
        pytest.param(
            _shared_in_two_branches,
            "'twice' is called 2 times",
            id="shared_in_two_branches",
        ),
    ],
)
def test_refused(make, message, called):
    with pytest.raises(ValueError, match=message):
        _find(make(), called)


def test_own_elementwise_activation():
    model = _sequential(Dense(4, activation=lambda x: x * 2.0), Dense(2))
    assert sorted(map(len, _find(model).values())) == [0, 1]


def test_layer_that_is_never_called():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.a = Dense(4, name="a")
            self.b = Dense(3, name="b")
            self.a.build((None, 5))

        def call(self, x):
            return self.b(x)

    model = Model()
    model(keras.ops.zeros((2, 5)))
    found = graph.find_connections([model.a, model.b], model)
    errors = {each.layer.name: each.error for each in found}
    assert errors == {"a": "the model does not call it", "b": None}


@pytest.mark.parametrize(
    ("change", "is_refused"),
    [
        (lambda y: y * keras.ops.ones(2), False),
        (lambda y: y @ keras.ops.ones((2, 2)), True),
    ],
    ids=["vector", "matrix"],
)
def test_output_after_a_softmax(change, is_refused):
    """It may be scaled; weights would be a layer that is not plastic."""
    inputs = keras.Input((5,))
    outputs = change(keras.layers.Softmax()(Dense(2, name="last")(inputs)))
    model = keras.Model(inputs, outputs)
    (last,) = graph.find_connections(_plastic_layers(model), model)
    assert (last.error is not None) == is_refused
    if is_refused:
        assert "`Softmax`" in last.error


def test_concatenation_along_time():
    inputs = keras.Input((3, 5))
    a, b = Dense(4, name="a")(inputs), Dense(4, name="b")(inputs)
    # The same units at more times; and units of two layers, one after another.
    one = keras.layers.Concatenate(axis=1)([a, keras.ops.relu(a)])
    two = keras.ops.concatenate([keras.ops.tanh(b), inputs[:, :, :4]], axis=1)
    outputs = [Dense(2, name="c")(one), Dense(2, name="d")(two)]
    model = keras.Model(inputs, outputs)
    found = graph.find_connections(_plastic_layers(model), model)
    found = {each.layer.name: each for each in found}
    assert [each.name for each in found["a"].consumers] == ["c"]
    assert found["a"].error is found["a"].skip_reason is None
    assert not found["b"].consumers and found["b"].error is None
    assert "merged with others" in found["b"].skip_reason


def test_layer_that_is_not_replaceable():
    layer = Dense(4, name="hidden")
    model = _sequential(layer, keras.layers.Dense(2))
    layer.replaceable = False
    (hidden,) = graph.find_connections(_plastic_layers(model))
    graph.check([hidden])
    assert "is not plastic" in hidden.skip_reason
    model = _sequential(Dense(4, replaceable=False), Dense(2))
    (hidden, _) = graph.find_connections(_plastic_layers(model))
    assert hidden.skip_reason == "replaceable=False"
    model = keras.Sequential.from_config(model.get_config())
    assert not model.layers[0].replaceable and model.layers[1].replaceable


def test_model_that_is_not_called_nor_has_a_graph():
    model = Untraceable()
    model.a.build((None, 5))
    with pytest.raises(ValueError, match="'a' is not part of the graph"):
        graph.find_connections([model.a])


@_CALLED
def test_last_layer_may_have_any_activation(called):
    model = _sequential(Dense(2, activation="softmax", name="last"))
    assert _find(model, called) == {"last": []}


def test_layer_that_is_skipped_is_reported():
    inputs = keras.Input((5,))
    x = Dense(5, name="hidden")(inputs)
    x = keras.layers.Add(name="sum")([inputs, x])
    model = keras.Model(inputs, Dense(2)(x))
    found = graph.find_connections(_plastic_layers(model), model)
    with pytest.warns(UserWarning, match="'hidden': merged with.*'sum'"):
        graph.check(found)


@pytest.mark.parametrize("number", [3, 4, 6])
def test_of_many_that_are_skipped_three_are_named(number):
    x = inputs = keras.Input((5,))
    for i in range(number):
        x = keras.layers.Add()([x, Dense(5, name=f"hidden_{i}")(x)])
    model = keras.Model(inputs, Dense(2)(x))
    found = graph.find_connections(_plastic_layers(model), model)
    with pytest.warns(UserWarning, match=f"units of {number} ") as warned:
        graph.check(found)
    message = str(warned[0].message)
    assert message.count("'hidden_") == 3
    more = re.findall("and [0-9]+ more", message)
    assert more == ([f"and {number - 3} more"] if number > 3 else [])


def test_plastic_layer_inside_time_distributed():
    layer = Dense(4, name="inner")
    wrapper = keras.layers.TimeDistributed(layer)
    last = Dense(2, name="last")
    model = keras.Sequential([keras.Input((3, 5)), wrapper, last])
    assert _find(model, called=True) == {"inner": ["last"], "last": []}
    block = keras.Sequential([keras.Input((5,)), Dense(4, name="within")])
    model = keras.Sequential(
        [keras.Input((3, 5)), keras.layers.TimeDistributed(block), last]
    )
    with pytest.raises(
        ValueError, match="'within' cannot.*calls it once for each time step"
    ):
        _find(model, called=True)


@_CALLED
@pytest.mark.parametrize(
    "end",
    [
        keras.layers.Softmax,
        lambda: keras.layers.Activation("softmax"),
        lambda: keras.layers.Lambda(lambda x: keras.ops.argmax(x, -1)),
    ],
    ids=["softmax", "activation", "lambda"],
)
def test_anything_may_follow_the_last_layer_with_weights(end, called):
    model = _sequential(Dense(4, name="a"), Dense(3, name="b"), end())
    assert _find(model, called) == {"a": ["b"], "b": []}


@_CALLED
def test_layers_of_different_dtypes(called):
    layers = [
        Dense(4, name="a", dtype="mixed_bfloat16"),
        Dense(4, name="b"),
        Dense(3, name="c", dtype="float16"),
    ]
    assert _find(_sequential(*layers), called) == {
        "a": ["b"],
        "b": ["c"],
        "c": [],
    }


@_CALLED
def test_cast_by_the_model(called):
    inputs = keras.Input((5,))
    x = Dense(4, name="a", dtype="mixed_bfloat16")(inputs)
    x = keras.ops.cast(x, "float32")
    x = Dense(3, name="b", dtype="mixed_bfloat16")(x)
    model = keras.Model(inputs, keras.ops.cast(x, "float32"))
    assert _find(model, called) == {"a": ["b"], "b": []}


def test_condition_on_the_units_themselves():
    inputs = keras.Input((5,))
    x = Dense(4, name="a")(inputs)
    x = keras.ops.where(x > 0, x, 0.1 * x) ** 2
    model = keras.Model(inputs, Dense(3, name="b")(x))
    assert _find(model) == {"a": ["b"], "b": []}


def test_normalization_inside_time_distributed():
    norm = keras.layers.BatchNormalization()
    model = keras.Sequential(
        [
            keras.Input((3, 5)),
            Dense(4, name="a"),
            keras.layers.TimeDistributed(norm),
            Dense(2, name="b"),
        ]
    )
    (a, _) = graph.find_connections(_plastic_layers(model), model)
    assert [p.variable for p in a.parameters] == [norm.gamma, norm.beta]


@pytest.mark.parametrize(
    "between",
    [
        lambda x: keras.layers.Flatten()(x),
        # What is read is not the axis of length 1.
        lambda x: keras.layers.Permute((3, 1, 2))(x),
        lambda x: keras.ops.repeat(x, 2, axis=-1),
    ],
    ids=["flatten", "permute", "repeat"],
)
def test_a_layer_of_one_unit(between):
    inputs = keras.Input((3, 4, 1))
    x = keras_plasticity.layers.Conv2D(1, 2, name="one")(inputs)
    model = keras.Model(inputs, Dense(2, name="head")(between(x)))
    assert _find(model) == {"one": ["head"], "head": []}


def test_units_along_the_batch_are_not_taken_for_one():
    inputs = keras.Input(batch_shape=(1, 3, 4))
    x = Dense(2, name="a")(inputs)
    x = keras.ops.transpose(x, (2, 0, 1))  # Units, batch, positions.
    model = keras.Model(inputs, Dense(2, name="b")(x))
    with pytest.raises(ValueError, match="`Transpose`. takes units apart"):
        _find(model)
