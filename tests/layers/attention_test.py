import json

import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity import layers
from keras_plasticity.models import make_plastic
from keras_plasticity.optimizers import ContinualBackprop
from tests.helpers import to_numpy

pytestmark = pytest.mark.usefixtures("fast_compilation")

_BACKEND = keras.backend.backend()
_KINDS = {
    "MultiHeadAttention": {"num_heads": 2, "key_dim": 3},
    "GroupQueryAttention": {
        "head_dim": 3,
        "num_query_heads": 4,
        "num_key_value_heads": 2,
    },
}
_kinds = pytest.mark.parametrize("kind", _KINDS)


def _make(kind, source=layers, **kwargs):
    return getattr(source, kind)(**_KINDS[kind], **kwargs)


def _model(attention, last=layers.Dense, **kwargs):
    inputs = keras.Input((5, 6))
    x = attention(inputs, inputs, **kwargs)
    x = keras.layers.GlobalAveragePooling1D()(inputs + x)
    return keras.Model(inputs, last(3, name="last")(x))


def _data(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (8, 5, 6)).astype("float32")
    return x, rng.normal(0, 1, (8, 3)).astype("float32")


def _compile(model, inner=None, **kwargs):
    kwargs = {"replacement_rate": 0.3, "maturity_threshold": 0, **kwargs}
    optimizer = ContinualBackprop(
        inner or keras.optimizers.SGD(0.05), seed=1, **kwargs
    )
    model.compile(optimizer, "mse", run_eagerly=_BACKEND == "tensorflow")


def _fit(model, data, **kwargs):
    model.fit(*data, batch_size=4, shuffle=False, verbose=0, **kwargs)


def _is_own(variable):
    return "statistics" not in variable.path


def _weights(model):
    return {v.path: to_numpy(v) for v in model.weights if _is_own(v)}


def _rows(model):
    """What `inspect` says of each layer: its row of the table as one text."""
    texts = []
    keras_plasticity.inspect(model, print_fn=texts.append)
    rows = {}
    for line in texts[0].splitlines():
        if line.startswith("│"):
            cells = [cell.strip() for cell in line[1:-1].split("│")]
            if cells[1]:
                name = cells[0].split()[0]
                rows[name] = ["" for _ in cells]
            for i, cell in enumerate(cells):
                rows[name][i] = f"{rows[name][i]} {cell}".strip()
    return {name: row[2:] for name, row in rows.items()}


@_kinds
def test_is_the_plain_layer(kind):
    x, _ = _data()
    mask = np.random.default_rng(1).random((8, 5, 5)) > 0.3
    mask[..., 0] = True
    plain, plastic = _make(kind, keras.layers), _make(kind)
    for layer in (plain, plastic):
        layer.build((None, 5, 6), (None, 5, 6))
    for variable, other in zip(plain.weights, plain.weights):
        variable.assign(to_numpy(other))
    by_name = {v.path.split("/", 1)[1]: v for v in plain.weights}
    for variable in plastic.weights:
        if "statistics" not in variable.path:
            name = variable.path.split("/", 1)[1]
            variable.assign(to_numpy(by_name[name]))
    for kwargs in (
        {},
        {"use_causal_mask": True},
        {"attention_mask": mask},
        {"return_attention_scores": True},
        {"training": True},
    ):
        expected = plain(x, x, **kwargs)
        for each, wanted in zip(
            keras.tree.flatten(plastic(x, x, **kwargs)),
            keras.tree.flatten(expected),
        ):
            np.testing.assert_array_equal(to_numpy(each), to_numpy(wanted))


@_kinds
def test_rate_zero_is_the_inner_optimizer(kind):
    weights = []
    for source, kwargs in (
        (layers, {"replaceable": ["value"], "name": "attention"}),
        (keras.layers, {"name": "attention"}),
    ):
        keras.utils.set_random_seed(3)
        model = _model(
            _make(kind, source, dropout=0.2, seed=1, **kwargs),
            source.Dense,
        )
        inner = keras.optimizers.Adam(0.01)
        if source is layers:
            _compile(model, inner, replacement_rate=0.0)
        else:
            model.compile(inner, "mse", run_eagerly=_BACKEND == "tensorflow")
        rng = np.random.default_rng(0)
        for variable in [v for v in model.weights if _is_own(v)]:
            variable.assign(rng.normal(0, 0.5, variable.shape))
        _fit(model, _data())
        weights.append(_weights(model))
    plastic, plain = weights
    assert plastic.keys() == plain.keys()
    for path, value in plain.items():
        np.testing.assert_array_equal(plastic[path], value, err_msg=path)


@_kinds
@pytest.mark.parametrize(
    "replaceable", [True, False, ["value"], ["output"], []]
)
def test_serialization(kind, replaceable):
    layer = _make(kind, replaceable=replaceable, dropout=0.1, name="attention")
    serialized = json.loads(json.dumps(keras.layers.serialize(layer)))
    assert serialized["registered_name"] == f"keras_plasticity>{kind}"
    twin = keras.layers.deserialize(serialized)
    assert type(twin) is getattr(layers, kind)
    assert twin.get_config() == layer.get_config()
    assert twin.replaceable == replaceable
    twin.build((None, 5, 6), (None, 5, 6))
    found = {x.name for x in twin._flatten_layers() if _is_replaceable(x)}
    names = ["value", "output"] if replaceable is True else replaceable or []
    assert found == {n.replace("output", "attention_output") for n in names}


def _is_replaceable(layer):
    return isinstance(layer, layers.PlasticLayer) and layer.replaceable


@_kinds
def test_replaces_units_and_is_saved(kind, tmp_path):
    attention = _make(kind, replaceable=["value"])
    model = _model(attention, use_causal_mask=True)
    data = _data()
    _compile(model, keras.optimizers.Adam(0.01))
    _fit(model, data)
    (replaced,) = model.optimizer.num_replaced().items()
    assert replaced[0] == "value" and replaced[1] > 2
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        _fit(each, data)
    assert model.optimizer.num_replaced() == loaded.optimizer.num_replaced()
    for one, other in zip(model.weights, loaded.weights):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


def test_inspect_says_why_units_are_left_alone():
    model = _model(_make("GroupQueryAttention", use_gate=True))
    rows = _rows(model)
    assert rows["value"][0] == "attention_output, 2 features a unit"
    assert rows["value"][-1] == "yes"
    for name in ("query", "key"):
        assert "no outgoing weights of their own" in rows[name][-1]
    assert rows["gate"][-1].startswith("no: used as a gate")
    assert rows["attention_output"][-1].startswith("no: merged with others")
    optimizer = ContinualBackprop(keras.optimizers.SGD(0.1))
    with pytest.warns(UserWarning, match="/attention_output': merged with"):
        optimizer.build(model.trainable_variables)


class _Blocks(keras.Model):
    """Attention of unknown length, in a model of one's own."""

    def __init__(self, **kwargs):
        super().__init__()
        self.embedding = keras.layers.Embedding(
            9, 6, mask_zero=True, name="embedding"
        )
        self.hidden = keras.layers.Dense(8, activation="relu", name="hidden")
        self.attention = keras.layers.MultiHeadAttention(2, 3, **kwargs)
        self.last = keras.layers.Dense(3, name="last")

    def call(self, tokens, training=False):
        x = self.hidden(self.embedding(tokens))
        y = self.attention(x, x, use_causal_mask=True, training=training)
        return self.last(ops.mean(y, axis=1))


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"dropout": 0.1}, {"value_dim": 5}, {"flash_attention": True}],
    ids=["plain", "dropout", "value_dim", "flash"],
)
def test_make_plastic_in_a_model_of_ones_own(kwargs):
    if _BACKEND == "jax" and "value_dim" in kwargs:
        pytest.skip("Keras 3.15.1 cannot compute it on JAX")
    flash = "flash_attention" in kwargs
    model = _Blocks(**({} if flash else kwargs))
    tokens = np.random.default_rng(0).integers(0, 9, (4, 7))
    before = to_numpy(model(tokens))
    # A device without it can do no more than be traced.
    model.attention._flash_attention = flash
    inputs = keras.KerasTensor((None, None), "int32")
    make_plastic(model, inputs)
    assert type(model.attention) is layers.MultiHeadAttention
    if not flash:
        np.testing.assert_array_equal(to_numpy(model(tokens)), before)
    found = {
        layer.name: layer.replaceable
        for layer in model._flatten_layers()
        if isinstance(layer, layers.PlasticLayer)
    }
    assert found == {
        "embedding": True,
        "hidden": True,
        "query": False,
        "key": False,
        "value": True,
        "attention_output": True,
        "last": False,
    }


def test_shared_attention_is_refused():
    attention = _make("MultiHeadAttention", name="attention")
    inputs = keras.Input((5, 6))
    x = attention(attention(inputs, inputs), inputs)
    model = keras.Model(inputs, layers.Dense(3)(x))
    optimizer = ContinualBackprop(keras.optimizers.SGD(0.1))
    message = "'attention/value' is called 2 times.*Give 'attention' `replac"
    with pytest.raises(ValueError, match=message):
        optimizer.build(model.trainable_variables)


@pytest.mark.parametrize("kind", ["shared", "lora"])
def test_make_plastic_tells_what_it_leaves(kind):
    attention = _make("MultiHeadAttention", keras.layers, name="attention")
    inputs = keras.Input((5, 6))
    x = attention(inputs, inputs)
    if kind == "shared":
        x = attention(x, x)
    hidden = keras.layers.Dense(4, name="hidden")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="last")(hidden))
    message = "'attention/value' is called 2 times.*of its own"
    if kind == "lora":
        attention.value_dense.enable_lora(2)
        message = "'attention/value': LoRA adapts it.*before it is"
    with pytest.warns(UserWarning, match=message):
        make_plastic(model)
    assert type(attention) is keras.layers.MultiHeadAttention
    names = {x.name for x in model._flatten_layers() if _is_replaceable(x)}
    assert names == {"hidden"}


def test_lora_and_quantization_are_refused():
    layer = _make("MultiHeadAttention")
    layer.build((None, 5, 6), (None, 5, 6))
    with pytest.raises(ValueError, match="cannot be adapted by LoRA"):
        layer.value_dense.enable_lora(2)
    model = _model(_make("MultiHeadAttention"))
    with pytest.raises(ValueError, match="cannot be quantized"):
        model.quantize("int8")
    with pytest.raises(ValueError, match="cannot be quantized.*dtype='int8"):
        _model(_make("MultiHeadAttention", dtype="int8_from_float32"))


@pytest.mark.parametrize("value", ["value", ["query"], None, 1, [["value"]]])
def test_bad_argument(value):
    with pytest.raises(ValueError, match="`replaceable` must be a boolean, or"):
        _make("MultiHeadAttention", replaceable=value)
