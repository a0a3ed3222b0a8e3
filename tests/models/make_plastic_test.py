import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity import keras_compat
from keras_plasticity import layers
from keras_plasticity.models import make_plastic
from keras_plasticity.optimizers import ContinualBackprop
from tests.gradients import loss_and_gradients
from tests.helpers import to_numpy

_BACKEND = keras.backend.backend()


pytestmark = pytest.mark.usefixtures("fast_compilation")


@pytest.fixture(autouse=True)
def _weights_without_compilation(monkeypatch):
    """Initial weights from NumPy: JAX compiles for each shape, for long."""
    rng = np.random.default_rng(0)

    def draw(self, shape, dtype=None, **kwargs):
        if isinstance(self.seed, keras.random.SeedGenerator):
            # Of a unit that is replaced, inside a compiled step.
            return call(self, shape, dtype, **kwargs)
        scale = max(1, np.prod(shape[:-1])) ** -0.5
        return ops.convert_to_tensor(rng.normal(0, scale, shape), dtype)

    for kind in (
        keras.initializers.VarianceScaling,
        keras.initializers.TruncatedNormal,
    ):
        call = kind.__call__
        monkeypatch.setattr(kind, "__call__", draw)


# Models, each with what `make_plastic` has to make of its layers: whether
# units can be replaced, of those that become plastic. They are made of what
# `layer(kind, *args, name=name, ...)` returns.


def _sequential(layer):
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layer("Conv2D", 4, 3, name="first"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
            layer("Conv2D", 3, 2, activation="relu", name="second"),
            keras.layers.Flatten(),
            layer("Dense", 6, activation="tanh", name="hidden"),
            layer("Dense", 3, activation="softmax", name="last"),
        ]
    )


def _functional(layer):
    """A residual block, a gate, an attention, and a recurrent layer."""
    inputs = keras.Input((8, 2))
    # Only merged with others, and reads no units.
    stem = layer("Conv1D", 4, 3, name="stem")(inputs)
    x = layer("Conv1D", 6, 1, use_bias=False, name="expand")(stem)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Activation("silu")(x)
    x = layer("DepthwiseConv1D", 3, padding="same", name="depthwise")(x)
    gate = keras.layers.GlobalAveragePooling1D(keepdims=True)(x)
    gate = layer("Conv1D", 2, 1, activation="relu", name="squeeze")(gate)
    gate = layer("Conv1D", 6, 1, activation="sigmoid", name="excite")(gate)
    x = keras.layers.Multiply()([x, gate])
    x = layer("Conv1D", 4, 1, name="project")(x)
    x = keras.layers.Add()([stem, x])
    attention = layer("MultiHeadAttention", 2, 3, name="attention")
    x = keras.layers.Add()([x, attention(x, x)])
    x = keras.layers.LayerNormalization()(x)
    equation = {"equation": "abc,cd->abd", "bias_axes": "d"}
    x = layer("EinsumDense", output_shape=(None, 5), name="up", **equation)(x)
    x = ops.gelu(x)
    x = layer("EinsumDense", output_shape=(None, 4), name="down", **equation)(x)
    # Its units cannot be followed through the cell of the recurrent layer.
    x = layer("Dense", 4, name="before")(x)
    x = keras.layers.RNN(keras.layers.SimpleRNNCell(5))(x)
    return keras.Model(inputs, layer("Dense", 3, name="last")(x))


def _nested(layer):
    inputs = keras.Input((4,))
    inner = keras.Sequential(
        [
            keras.Input((5,)),
            layer("Dense", 6, activation="relu", name="a"),
            layer("Dense", 4, name="b"),
        ]
    )
    x = layer("Dense", 5, name="before")(inputs)
    x = keras.layers.ReLU()(inner(x))
    middle = keras.Model(inputs, layer("Dense", 4, name="after")(x))
    return keras.Sequential(
        [
            keras.Input((4,)),
            middle,
            keras.layers.Dropout(0.0),
            layer("Dense", 3, name="last"),
        ]
    )


class _Block(keras.layers.Layer):
    def __init__(self, layer, index):
        super().__init__(name=f"block_{index}")
        self.up = layer("Dense", 6, name=f"up_{index}")
        self.down = layer("Dense", 4, name=f"down_{index}")

    def call(self, x):
        return x + self.down(ops.relu(self.up(x)))


class Subclassed(keras.Model):
    def __init__(self, layer):
        super().__init__()
        self.stem = layer("Dense", 4, name="stem")
        self.blocks = [_Block(layer, i) for i in range(2)]
        self.hidden = layer("Dense", 5, activation="relu", name="hidden")
        self.last = layer("Dense", 3, name="last")

    def call(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.last(self.hidden(x))


def _subclassed(layer):
    model = Subclassed(layer)
    model(np.zeros((2, 4), "float32"))
    return model


_MODELS = {
    "sequential": (
        _sequential,
        {"first": True, "second": True, "hidden": True, "last": False},
    ),
    "functional": (
        _functional,
        {
            "expand": True,
            "depthwise": True,
            "squeeze": True,
            "excite": False,
            "project": False,
            # The projections of the attention.
            "query": False,
            "key": False,
            "value": True,
            "attention_output": False,
            "up": True,
            # What `before` reads, for that its units are not known.
            "down": True,
            "before": False,
        },
    ),
    "nested": (
        _nested,
        {"before": True, "a": True, "b": True, "after": True, "last": False},
    ),
    "subclassed": (
        _subclassed,
        {
            "up_0": True,
            "down_0": False,
            "up_1": True,
            "down_1": False,
            "hidden": True,
            "last": False,
        },
    ),
}
_models = pytest.mark.parametrize(
    "build, expected", _MODELS.values(), ids=_MODELS
)


def _plain(kind, *args, **kwargs):
    return getattr(keras.layers, kind)(*args, **kwargs)


def _plastic(expected):
    """Makes layers that are what `make_plastic` has to make of them."""

    def layer(kind, *args, name, **kwargs):
        if kind == "MultiHeadAttention":
            kwargs["replaceable"] = ["value"]
        elif name not in expected:
            return _plain(kind, *args, name=name, **kwargs)
        else:
            kwargs["replaceable"] = expected[name]
        return getattr(layers, kind)(*args, name=name, **kwargs)

    return layer


def _found(model):
    """The plastic layers, and whether they are replaceable, by name."""
    return {
        layer.name: layer.replaceable
        for layer in model._flatten_layers()
        if isinstance(layer, layers.PlasticLayer)
    }


def _data(model, num=12):
    rng = np.random.default_rng(0)
    shape = getattr(model, "input_shape", None) or (None, 4)
    x = rng.normal(0, 1, (num, *shape[1:])).astype("float32")
    return x, rng.normal(0, 1, (num, 3)).astype("float32")


def _compile(model, inner=None, **kwargs):
    kwargs = {"replacement_rate": 0.3, "maturity_threshold": 0, **kwargs}
    inner = inner or keras.optimizers.SGD(0.05)
    optimizer = ContinualBackprop(inner, seed=1, **kwargs)
    # A TensorFlow graph takes longer to make than to do without.
    model.compile(optimizer, "mse", run_eagerly=_BACKEND == "tensorflow")


def _fit(model, data):
    model.fit(*data, batch_size=4, shuffle=False, verbose=0)


def _values(variables):
    return [to_numpy(v) for v in variables]


def _assert_equal(variables, values):
    assert len(variables) == len(values) > 0
    for variable, value in zip(variables, values):
        np.testing.assert_array_equal(
            to_numpy(variable), value, err_msg=variable.path
        )


@_models
def test_becomes_plastic_in_place(build, expected):
    model = build(_plain)
    x, _ = _data(model)
    before = list(model.weights)
    values = _values(before)
    kinds = {layer.name: type(layer) for layer in model._flatten_layers()}
    outputs = model.predict(x, verbose=0)

    assert make_plastic(model) is model
    assert _found(model) == expected
    np.testing.assert_array_equal(model.predict(x, verbose=0), outputs)
    # The very same weights, and besides them statistics alone.
    after = {id(v) for v in model.weights}
    assert {id(v) for v in before} <= after
    for variable in model.weights:
        is_new = all(variable is not v for v in before)
        assert is_new == ("statistics" in variable.path)
    _assert_equal(before, values)
    for layer in model._flatten_layers():
        if layer.name in expected or layer.name == "attention":
            assert type(layer) is getattr(layers, kinds[layer.name].__name__)
        elif layer.name in kinds:
            assert type(layer) is kinds[layer.name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["functional", "nested", "subclassed"])
def test_trains_as_a_model_that_was_plastic_from_the_start(name):
    build, expected = _MODELS[name]
    # Not twice the same names: those tell layers apart.
    keras.backend.clear_session()
    model = build(_plain)
    make_plastic(model)
    keras.backend.clear_session()
    twin = build(_plastic(expected))
    assert [v.path for v in model.variables] == [v.path for v in twin.variables]
    if _BACKEND == "torch":
        # PyTorch sets the gradients of those it knows back to zero.
        numbers = [len(list(each.parameters())) for each in (model, twin)]
        assert numbers[0] == numbers[1] == len(model.variables)
    twin.set_weights(model.get_weights())
    data = _data(model)
    for each in (model, twin):
        _compile(each)
        _fit(each, data)
    replaced = model.optimizer.num_replaced()
    assert replaced == twin.optimizer.num_replaced()
    assert set(replaced) == {name for name in expected if expected[name]}
    assert all(number > 0 for number in replaced.values())
    _assert_equal(twin.weights, _values(model.weights))


def test_has_to_be_compiled_again():
    model = _nested(_plain)
    data = _data(model)
    model.compile("sgd", "mse")
    _fit(model, data)
    make_plastic(model)
    assert not model.compiled
    for call in (model.fit, model.train_on_batch):
        with pytest.raises(ValueError, match=r"call `compile\(\)`"):
            call(*data)
    _compile(model)
    _fit(model, data)
    assert all(model.optimizer.num_replaced().values())


def test_saved_model_is_plastic(tmp_path):
    build, expected = _MODELS["functional"]
    model = build(_plain)
    make_plastic(model)
    data = _data(model)
    _compile(model, keras.optimizers.Adam(0.01))
    _fit(model, data)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert _found(loaded) == expected
    np.testing.assert_array_equal(
        loaded.predict(data[0], verbose=0), model.predict(data[0], verbose=0)
    )
    for each in (model, loaded):
        _fit(each, data)
    replaced = model.optimizer.num_replaced()
    assert replaced == loaded.optimizer.num_replaced()
    assert all(number > 1 for number in replaced.values())
    _assert_equal(loaded.weights, _values(model.weights))


def test_weights_file_of_a_model_of_ones_own_class(tmp_path):
    path = tmp_path / "model.weights.h5"
    model = make_plastic(_subclassed(_plain))
    _compile(model)
    _fit(model, _data(model))
    model.save_weights(path)
    assert np.any(to_numpy(model.hidden.age) > 0)
    again = make_plastic(_subclassed(_plain))
    again.load_weights(path)
    _assert_equal(again.weights, _values(model.weights))
    # What is not plastic takes the weights alone.
    plain = _subclassed(_plain)
    plain.load_weights(path)
    x, _ = _data(model)
    np.testing.assert_array_equal(to_numpy(plain(x)), to_numpy(model(x)))


def test_again_changes_nothing():
    model = make_plastic(_nested(_plain))
    _compile(model)
    _fit(model, _data(model))
    weights, values = list(model.weights), _values(model.weights)
    make_plastic(model)
    assert _found(model) == _MODELS["nested"][1]
    assert [id(v) for v in model.weights] == [id(v) for v in weights]
    _assert_equal(weights, values)


def test_part_that_is_plastic_already():
    head = layers.Dense(3, name="last")
    hidden = layers.Dense(6, name="hidden", replaceable=False)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(5, name="first"), hidden, head]
    )
    statistics = [hidden.statistics, head.statistics]
    make_plastic(model)
    # What was said of them stays.
    assert _found(model) == {"first": True, "hidden": False, "last": True}
    assert [hidden.statistics, head.statistics] == statistics


def test_part_made_plastic_inside_a_model_that_was_built_before():
    inner = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, kernel_initializer="ones", name="a"),
            keras.layers.Dense(3, kernel_initializer="ones", name="b"),
        ]
    )
    model = keras.Sequential(
        [keras.Input((4,)), inner, keras.layers.Dense(2, name="last")]
    )
    make_plastic(inner)
    x, y = np.ones((4, 4), "float32"), np.ones((4, 2), "float32")
    model(x)
    optimizer = ContinualBackprop(keras.optimizers.SGD(0.0), replacement_rate=0)
    optimizer.build(model.trainable_variables)
    loss = keras.losses.MeanSquaredError()
    for _ in range(3):
        _, gradients = loss_and_gradients(model, loss, x, y)
        optimizer.apply(gradients, model.trainable_variables)
    # On PyTorch the gradients of what the model around it did not know of
    # would add up from step to step.
    mean = to_numpy(inner.get_layer("a").mean_activation)
    np.testing.assert_allclose(mean, 4.0, rtol=1e-6)


def test_frozen_part_stays_frozen():
    model = _nested(_plain)
    frozen = model.layers[0]
    frozen.trainable = False
    make_plastic(model)
    assert all("/last/" in v.path for v in model.trainable_variables)
    assert not frozen.trainable_variables
    values = _values(frozen.weights)
    _compile(model)
    _fit(model, _data(model))
    assert model.optimizer.num_replaced() == {}
    _assert_equal(frozen.weights, values)

    frozen.trainable = True
    _compile(model)
    _fit(model, _data(model))
    replaced = model.optimizer.num_replaced()
    assert set(replaced) == {"before", "a", "b", "after"}
    assert all(replaced.values())


class _DenseOfOnesOwn(keras.layers.Dense):
    pass


def test_what_cannot_be_plastic_stays_as_it_is():
    x = inputs = keras.Input((6, 4))
    adapted = keras.layers.Dense(4, name="adapted")
    quantized = keras.layers.Dense(4, name="quantized")
    for layer in (
        keras.layers.Dense(4, name="hidden_0"),
        adapted,
        keras.layers.Dense(4, name="hidden_1"),
        quantized,
        keras.layers.Dense(4, name="hidden_2"),
        _DenseOfOnesOwn(4, name="own"),
        keras.layers.TimeDistributed(keras.layers.Dense(4, name="inside")),
        keras.layers.EinsumDense("abc,bcd->abd", (6, 4), name="positions"),
        keras.layers.Dense(5, name="good"),
        keras.layers.Dense(3, name="last"),
    ):
        x = layer(x)
    model = keras.Model(inputs, x)
    adapted.enable_lora(2)
    quantized.quantize("int8")
    message = "leaves 2 layers.*'adapted': LoRA adapts it.*'quantized': it is q"
    with pytest.warns(UserWarning, match=message):
        make_plastic(model)
    assert _found(model) == {"good": True, "last": False}


class _Embedded(keras.Model):
    """Takes integers, which no shape tells."""

    def __init__(self):
        super().__init__()
        self.embedding = keras.layers.Embedding(7, 4, name="embedding")
        self.hidden = keras.layers.Dense(5, name="hidden")
        self.last = keras.layers.Dense(3, name="last")

    def call(self, x):
        if "int" not in keras.backend.standardize_dtype(x.dtype):
            raise TypeError("It takes integers.")
        return self.last(ops.relu(self.hidden(self.embedding(x))))


def test_inputs_can_be_given():
    model = _Embedded()
    model(ops.zeros((2, 6), "int32"))
    with pytest.raises(ValueError, match="cannot be traced.*takes integers"):
        make_plastic(model)
    assert not _found(model)
    make_plastic(model, inputs=keras.KerasTensor((2, 6), "int32"))
    assert _found(model) == {"embedding": True, "hidden": True, "last": False}


class TestErrors:
    @pytest.mark.parametrize("model", [None, "model", keras.layers.Dense(3)])
    def test_not_a_model(self, model):
        with pytest.raises(TypeError, match="takes a `keras.Model`. Received"):
            make_plastic(model)

    @pytest.mark.parametrize(
        "make", [lambda: Subclassed(_plain), keras.Sequential]
    )
    def test_not_built(self, make):
        model = make()
        with pytest.raises(ValueError, match=f"'{model.name}' is not built"):
            make_plastic(model)

    @pytest.mark.parametrize(
        "hidden, reason",
        [
            ([], "'last': outputs of the model"),
            (
                [keras.layers.Dense(4, name="a"), keras.layers.Softmax()],
                "'a': 'softmax.*is not known to keep units apart",
            ),
            (
                [keras.layers.Dense(4, "softmax", name="a")],
                "'a': its activation `softmax` mixes units",
            ),
        ],
        ids=["outputs", "refused", "softmax"],
    )
    def test_no_unit_can_be_replaced(self, hidden, reason):
        last = keras.layers.Dense(3, name="last")
        model = keras.Sequential([keras.Input((4,)), *hidden, last])
        model.compile("sgd", "mse")
        with pytest.raises(ValueError, match=f"could be replaced. {reason}"):
            make_plastic(model)
        # All is as it was.
        assert not _found(model)
        assert type(last) is keras.layers.Dense
        data = _data(model)
        _fit(model, data)

    def test_no_layer_of_a_known_kind(self):
        model = keras.Sequential([keras.Input((4,)), keras.layers.ReLU()])
        with pytest.raises(ValueError, match="no layer of a known kind"):
            make_plastic(model)


# Models that others have made.

_APPLICATIONS = {
    # Two of the three in each of 16 blocks, and the first one of all.
    "ResNet50": ({}, {"Conv2D": 33}),
    # What expands and what squeezes, and the depthwise ones.
    "MobileNetV3Small": (
        {"include_preprocessing": False},
        {"Conv2D": 23, "DepthwiseConv2D": 11},
    ),
    "EfficientNetB0": ({}, {"Conv2D": 35, "DepthwiseConv2D": 16}),
    # In each of 18 blocks the depthwise one and the wide one.
    "ConvNeXtTiny": (
        {"include_preprocessing": False},
        {"Conv2D": 18, "Dense": 18},
    ),
}


@pytest.mark.parametrize("name", _APPLICATIONS)
def test_keras_applications(name):
    kwargs, expected = _APPLICATIONS[name]
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(32, 32, 3), classes=4, **kwargs
    )
    x = np.random.default_rng(0).random((2, 32, 32, 3), "float32")
    # JAX would compile for half a minute to compute what all others give.
    is_called = _BACKEND != "jax" or name == "ResNet50"
    outputs = to_numpy(model(x)) if is_called else None
    make_plastic(model)
    if is_called:
        np.testing.assert_array_equal(to_numpy(model(x)), outputs)
    replaceable = {}
    for layer in model._flatten_layers():
        if getattr(layer, "replaceable", False):
            kind = type(layer).__name__
            replaceable[kind] = replaceable.get(kind, 0) + 1
    assert replaceable == expected

    optimizer = ContinualBackprop(
        keras.optimizers.SGD(0.01), replacement_rate=0.02, maturity_threshold=0
    )
    model.compile(optimizer, "sparse_categorical_crossentropy")
    if _BACKEND == "torch":  # The others compile for a minute and more.
        loss = model.train_on_batch(x, np.array([0, 1]))
        assert np.isfinite(loss)
        # Of 50 units or more, one at least.
        assert all(
            optimizer.num_replaced()[layer.name] > 0
            for layer in model._flatten_layers()
            if getattr(layer, "replaceable", False) and layer.age.shape[0] >= 50
        )
    else:
        optimizer.build(model.trainable_variables)
    assert len(optimizer.num_replaced()) == sum(expected.values())


def _keras_hub():
    try:
        import keras_hub
    # A new Keras may lack private names of its.
    except ImportError as error:
        pytest.skip(f"KerasHub's models are not tried: {error}")
    return keras_hub


def _bert():
    keras_hub = _keras_hub()
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=50,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        max_sequence_length=6,
    )
    model = keras_hub.models.BertTextClassifier(
        backbone, num_classes=3, preprocessor=None
    )
    x = {
        "token_ids": np.arange(12).reshape(2, 6),
        "segment_ids": np.zeros((2, 6), "int32"),
        "padding_mask": np.ones((2, 6), "int32"),
    }
    return model, x


def _vit():
    keras_hub = _keras_hub()
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=16,
    )
    model = keras_hub.models.ViTImageClassifier(
        backbone, num_classes=3, preprocessor=None
    )
    x = np.random.default_rng(0).random((2, 16, 16, 3), "float32")
    return model, x


def _language_model(name, **kwargs):
    keras_hub = _keras_hub()
    backbone = getattr(keras_hub.models, f"{name}Backbone")(
        vocabulary_size=20,
        num_layers=2,
        hidden_dim=8,
        intermediate_dim=16,
        **kwargs,
    )
    kind = getattr(keras_hub.models, f"{name}CausalLM")
    model = kind(backbone=backbone, preprocessor=None)
    x = {
        "token_ids": np.arange(12).reshape(2, 6),
        "padding_mask": np.ones((2, 6), "int32"),
    }
    return model, x


def _gpt2():
    return _language_model("GPT2", num_heads=2, max_sequence_length=6)


def _llama():
    return _language_model("Llama", num_query_heads=4, num_key_value_heads=2)


def _gemma():
    return _language_model(
        "Gemma", num_query_heads=4, num_key_value_heads=2, head_dim=2
    )


@pytest.mark.parametrize("make", [_bert, _vit, _gpt2, _llama, _gemma])
def test_keras_hub(make):
    model, x = make()
    is_causal = make not in (_bert, _vit)
    y = x["token_ids"] if is_causal else np.array([0, 1])
    outputs = model.predict(x, verbose=0)
    make_plastic(model)
    np.testing.assert_array_equal(model.predict(x, verbose=0), outputs)
    found = [
        (layer, layer.unit_view().size)
        for layer in model._flatten_layers()
        if isinstance(layer, layers.PlasticLayer) and layer.replaceable
    ]
    # In each of two blocks the values of the attention, and the wide ones.
    names = [layer.name for layer, _ in found]
    assert names.count("value") == 2
    wide = 8 if make is _gemma else 16  # It has a gate of the other half.
    assert [size for _, size in found].count(wide) >= 2
    model.compile(
        ContinualBackprop(
            keras.optimizers.Adam(0.01),
            replacement_rate=0.2,
            maturity_threshold=0,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    if _BACKEND == "torch":
        history = model.fit(x, y, epochs=2, verbose=0, shuffle=False)
        assert np.all(np.isfinite(history.history["loss"]))
        assert all(model.optimizer.num_replaced().values())
    else:
        keras_compat.build_for_training(model, x, y)
    assert len(model.optimizer.num_replaced()) == len(found)


@pytest.mark.skipif(_BACKEND != "torch", reason="the others compile for long")
def test_keras_hub_with_a_cache():
    """What a model writes token by token is what it says of all at once."""
    model, x = _gpt2()
    make_plastic(model)
    outputs = model.predict(x, verbose=0)
    # Of two layers, keys and values, for six tokens of two heads.
    cache = ops.zeros((2, 2, 2, 6, 2, 4))
    for i in range(6):
        tokens = ops.convert_to_tensor(x["token_ids"][:, i : i + 1])
        logits, _, cache = model.call_with_cache(tokens, cache, i)
        np.testing.assert_allclose(
            to_numpy(logits)[:, 0], outputs[:, i], rtol=1e-4, atol=1e-6
        )


def test_public_name():
    assert keras_plasticity.models.make_plastic is make_plastic
