import inspect
import json

import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity import layers
from keras_plasticity.units.unit_statistics import OBSERVATIONS
from tests.helpers import mostly_on_torch
from tests.helpers import observed_means
from tests.helpers import to_numpy

pytestmark = pytest.mark.usefixtures("fast_compilation")

_BATCH, _STEPS, _FEATURES, _UNITS = 4, 5, 3, 6
_NAMES = ("SimpleRNN", "GRU", "LSTM")
_CONVOLUTIONS = ("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
_kinds = pytest.mark.parametrize("name", mostly_on_torch(_NAMES, "LSTM"))
# What a layer may be asked for, and what it is then called with.
_VARIANTS = {
    "last": {},
    "sequences": {"return_sequences": True},
    "state": {"return_state": True},
    "sequences_and_state": {"return_sequences": True, "return_state": True},
    "backwards": {"go_backwards": True, "return_sequences": True},
    "unrolled": {"unroll": True},
    "relu": {"activation": "relu", "use_bias": False},
    "dropout": {"dropout": 0.3, "recurrent_dropout": 0.2, "seed": 1},
    "zero_output": {"zero_output_for_mask": True, "return_sequences": True},
}
_OF_ONE_KIND = {
    "before": ("GRU", {"reset_after": False}),
    "implementation": ("LSTM", {"implementation": 1}),
    "no_forget_bias": ("LSTM", {"unit_forget_bias": False}),
    "no_cudnn": ("GRU", {"use_cudnn": False}),
}


def _cases():
    """Tuples of name, kind, arguments, and whether there is a mask."""
    cases = [
        (f"{name}_{variant}", name, kwargs)
        for name in _NAMES
        for variant, kwargs in _VARIANTS.items()
    ]
    cases += [(key, *case) for key, case in _OF_ONE_KIND.items()]
    cases = [
        (*case, masked)
        for case in cases
        for masked in (False, True)
        # PyTorch's loop does not unroll with a mask (Keras 3.15.1).
        if not (masked and case[2].get("unroll"))
    ]
    kept = [
        case
        for case in cases
        if (case[0], case[-1])
        in (
            ("LSTM_zero_output", True),
            ("GRU_sequences_and_state", False),
            ("SimpleRNN_backwards", True),
        )
    ]
    return mostly_on_torch(cases, *kept)


def _make_models(name, masked=False, **kwargs):
    """A plain and a plastic one with the same random weights."""
    rng = np.random.default_rng(0)
    models = []
    for kind in (keras.layers, layers):
        inputs = keras.Input((_STEPS, _FEATURES))
        x = keras.layers.Masking(9.0)(inputs) if masked else inputs
        outputs = getattr(kind, name)(_UNITS, name="layer", **kwargs)(x)
        models.append(keras.Model(inputs, outputs))
    plain, plastic = [model.get_layer("layer").cell for model in models]
    for a, b in zip(plain.trainable_weights, plastic.trainable_weights):
        value = rng.normal(0, 0.5, a.shape)
        a.assign(value)
        b.assign(value)
    return models


def _make_inputs(masked=False):
    rng = np.random.default_rng(1)
    x = rng.normal(0, 1, (_BATCH, _STEPS, _FEATURES)).astype("float32")
    mask = np.ones((_BATCH, _STEPS), bool)
    if masked:
        mask = rng.random((_BATCH, _STEPS)) < 0.6
        mask[1] = False
        x[~mask] = 9.0
    return x, mask


def _assert_equal(actual, expected):
    actual, expected = map(keras.tree.flatten, (actual, expected))
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


def _cell_weights(model):
    return [to_numpy(w) for w in model.get_layer("layer").cell.weights]


def _observed_by_the_recurrent_kernel(layer):
    """As `observed_means`, of what the recurrent kernel reads."""
    statistics = layer.recurrent_statistics
    names = [name for name in OBSERVATIONS if name != "num_examples"]
    count = to_numpy(statistics.count)[0]
    return {
        name: to_numpy(variable) / count
        for name, variable in statistics.sums(names).items()
    }


@pytest.mark.parametrize("case, name, kwargs, masked", _cases())
def test_is_the_plain_layer(case, name, kwargs, masked):
    plain, plastic = _make_models(name, masked, **kwargs)
    x, _ = _make_inputs(masked)
    expected = plain(x)
    _assert_equal(plastic(x), expected)
    assert plastic.output_shape == plain.output_shape
    if not kwargs.get("dropout"):  # With it, each call draws numbers.
        _assert_equal(plastic(x, training=False), expected)
        _assert_equal(plastic(x, training=True), expected)

    targets = keras.tree.map_structure(lambda y: to_numpy(y) + 1, expected)
    before = _cell_weights(plastic)
    for model in (plain, plastic):
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(x, targets, batch_size=2, shuffle=False, verbose=0)
    assert np.any(_cell_weights(plastic)[1] != before[1])
    _assert_equal(_cell_weights(plastic), _cell_weights(plain))


def _states_read(model, name, x, mask, **kwargs):
    """What the recurrent kernel reads: the state before each step made."""
    layer = model.get_layer("layer")
    twin = getattr(keras.layers, name)(_UNITS, return_state=True, **kwargs)
    twin.build(x.shape)
    twin.set_weights([to_numpy(w) for w in layer.cell.trainable_weights])
    states = []
    for example, made in zip(x, mask):
        steps = example[made]
        if kwargs.get("go_backwards"):
            steps = steps[::-1]
            twin.go_backwards = False
        h = np.zeros(_UNITS)
        for t in range(len(steps)):
            states.append(h)
            _, h, *_ = twin(steps[None, : t + 1])
            h = to_numpy(h)[0]
    return np.array(states)


_READ = [
    (name, kwargs, masked)
    for name in _NAMES
    for kwargs in (
        {},
        {"return_sequences": True, "zero_output_for_mask": True},
        {"go_backwards": True},
    )
    for masked in (False, True)
]


@pytest.mark.parametrize(
    "name, kwargs, masked",
    mostly_on_torch(_READ, _READ[-1], _READ[8]),
)
def test_observes_what_the_recurrent_kernel_reads(name, kwargs, masked):
    _, model = _make_models(name, masked, **kwargs)
    x, mask = _make_inputs(masked)
    states = _states_read(
        model, name, x, mask, go_backwards=kwargs.get("go_backwards", False)
    )
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.train_on_batch(x, np.ones(model(x).shape))
    layer = model.get_layer("layer")
    recurrent = _observed_by_the_recurrent_kernel(layer)
    inputs = observed_means(layer)
    for means, read in ((recurrent, states), (inputs, x[mask])):
        for name, expected in {
            "activation_mean": read.mean(axis=0),
            "activation_magnitude": np.abs(read).mean(axis=0),
            # At first the centre is the batch's own mean.
            "activation_deviation": np.abs(read - read.mean(axis=0)).mean(0),
            "firing": (read > 0).mean(axis=0),
        }.items():
            np.testing.assert_allclose(
                means[name], expected, rtol=1e-4, atol=1e-6, err_msg=name
            )
    num_examples = to_numpy(layer.recurrent_statistics.count)
    assert num_examples[0] / num_examples[1] == _BATCH


def test_observes_nothing_where_all_steps_are_masked():
    _, model = _make_models("LSTM", masked=True)
    x = np.full((_BATCH, _STEPS, _FEATURES), 9.0, "float32")
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.train_on_batch(x, np.ones((_BATCH, _UNITS)))
    layer = model.get_layer("layer")
    for statistics in layer.all_statistics():
        assert to_numpy(statistics.count)[0] == 0
        for variable in statistics.sums(["activation_magnitude"]).values():
            np.testing.assert_array_equal(to_numpy(variable), 0)


def test_what_is_masked_may_be_no_number():
    _, model = _make_models("GRU")
    x, _ = _make_inputs()
    mask = np.ones((_BATCH, _STEPS), bool)
    mask[:, 2] = False
    layer = model.get_layer("layer")
    seen = x.copy()
    seen[:, 2] = np.nan
    weights = ops.convert_to_tensor(mask.astype("float32"))
    values = [v.value for v in layer.statistics.carriers()]
    new = layer.statistics._new_values(
        ops.convert_to_tensor(seen), (2,), values, weights
    )
    sums = dict(zip(("count", "activation_sum"), (new[4], new[0])))
    mean = to_numpy(sums["activation_sum"]) / to_numpy(sums["count"])[0]
    np.testing.assert_allclose(mean, x[mask].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("read", mostly_on_torch([0, 1, 2], 2))
def test_observes_whatever_output_the_loss_reads(read):
    inputs = keras.Input((_STEPS, _FEATURES))
    layer = layers.LSTM(_UNITS, return_state=True, seed=0)
    outputs = layer(inputs)[read]
    model = keras.Model(inputs, outputs)
    x, mask = _make_inputs()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.train_on_batch(x, np.zeros((_BATCH, _UNITS)))
    assert to_numpy(layer.recurrent_statistics.count)[0] > 0
    means = _observed_by_the_recurrent_kernel(layer)
    assert np.all(means["activation_magnitude"] > 0)


@_kinds
def test_weights_file_of_a_plain_model_and_back(name, tmp_path):
    path = tmp_path / "model.weights.h5"
    plain, plastic = _make_models(name)
    for variable in plain.weights:
        variable.assign(to_numpy(variable) + 1)
    plain.save_weights(path)
    plastic.load_weights(path)
    _assert_equal(_cell_weights(plastic), _cell_weights(plain))
    for variable in plastic.get_layer("layer").cell.trainable_weights:
        variable.assign(to_numpy(variable) + 1)
    plastic.save_weights(path)
    plain.load_weights(path)
    _assert_equal(_cell_weights(plastic), _cell_weights(plain))


@_kinds
def test_saved_model(name, tmp_path):
    path = tmp_path / "model.keras"
    _, plastic = _make_models(name, return_sequences=True)
    layer = plastic.get_layer("layer")
    layer.age.assign(np.arange(_UNITS))
    statistics = layer.recurrent_statistics
    statistics.running_mean.assign(np.arange(_UNITS) * 2.0**-64)
    plastic.save(path)
    loaded = keras.models.load_model(path)
    twin = loaded.get_layer("layer")
    assert type(twin) is getattr(layers, name)
    x, _ = _make_inputs()
    _assert_equal(loaded(x), plastic(x))
    _assert_equal(twin.age, layer.age)
    _assert_equal(
        twin.recurrent_statistics.running_mean, statistics.running_mean
    )


@pytest.mark.parametrize("name", [*_NAMES, *_CONVOLUTIONS])
def test_takes_the_arguments_of_the_plain_layer(name):
    plain, plastic = getattr(keras.layers, name), getattr(layers, name)
    required = {"name": "layer"}
    if name in _CONVOLUTIONS:
        required.update(filters=4, kernel_size=2)
    else:
        required["units"] = 4
    for change in (
        {},
        {"activation": "relu"},
        {"recurrent_initializer": "he_normal", "use_bias": False},
        {"return_sequences": True, "stateful": True},
        {"go_backwards": True, "dropout": 0.5, "trainable": False},
        {"dtype": "bfloat16"},
    ):
        kwargs = {**required, **change}
        config = plastic(**kwargs).get_config()
        expected = plain(**kwargs).get_config()
        config.pop("dtype"), expected.pop("dtype")
        assert config == expected
    layer = plastic(**required, replaceable=False)
    serialized = json.loads(json.dumps(keras.layers.serialize(layer)))
    assert serialized["registered_name"] == f"keras_plasticity>{name}"
    twin = keras.layers.deserialize(serialized)
    assert type(twin) is plastic and not twin.replaceable
    assert twin.get_config() == layer.get_config()
    signatures = [
        list(inspect.signature(kind.call).parameters)
        for kind in (plastic, plain)
    ]
    assert signatures[0] == signatures[1]


@pytest.mark.parametrize("name", _NAMES)
def test_views(name):
    _, model = _make_models(name)
    layer = model.get_layer("layer")
    gates = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}[name]
    kernel, recurrent, bias = map(to_numpy, layer.cell.trainable_weights)
    for unit in (0, 4):
        columns = [gate * _UNITS + unit for gate in range(gates)]
        (first, _), (second, _) = layer.incoming_weights()
        for view, weight in ((first, kernel), (second, recurrent)):
            np.testing.assert_array_equal(
                to_numpy(view.take(unit)), weight[:, columns]
            )
        np.testing.assert_array_equal(
            to_numpy(layer.bias_view().take(unit)), bias[..., columns]
        )
        (reader,) = layer.own_readers()
        np.testing.assert_array_equal(
            to_numpy(reader.feature_view().take(unit)), recurrent[unit]
        )
    np.testing.assert_array_equal(
        to_numpy(layer.feature_view().take(2)), kernel[2]
    )


_CONVOLUTIONAL = [
    (name, data_format)
    for name in _CONVOLUTIONS
    for data_format in ("channels_last", "channels_first")
]


@pytest.mark.parametrize(
    "name, data_format", mostly_on_torch(_CONVOLUTIONAL, _CONVOLUTIONAL[0])
)
def test_convolutional(name, data_format):
    backend, rank = keras.backend.backend(), int(name[-2])
    is_first = data_format == "channels_first"
    if is_first and backend == "tensorflow":
        pytest.skip("TensorFlow convolves channels_first on a GPU only.")
    shape = (_STEPS, 2, *[3] * rank) if is_first else (_STEPS, *[3] * rank, 2)
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (_BATCH, *shape)).astype("float32")
    results = []
    for kind in (keras.layers, layers):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input(shape),
                getattr(kind, name)(
                    4,
                    2,
                    padding="same",
                    data_format=data_format,
                    return_sequences=True,
                    name="layer",
                ),
            ]
        )
        outputs = to_numpy(model(x, training=True))
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.train_on_batch(x, outputs + 1)
        results.append((outputs, *_cell_weights(model)))
    _assert_equal(results[1], results[0])
    layer = model.get_layer("layer")
    axis = 2 if is_first else rank + 2
    assert layer.unit_axes(outputs) == layer.feature_axes(x) == (axis,)
    assert layer.unit_view().size == 4
    # The initial state, and all outputs but the last.
    read = np.moveaxis(outputs, axis, -1)[:, :-1].reshape(-1, 4)
    total = np.abs(read).mean(axis=0) * (_STEPS - 1) / _STEPS
    np.testing.assert_allclose(
        _observed_by_the_recurrent_kernel(layer)["activation_magnitude"],
        total,
        rtol=1e-4,
    )


def test_forget_bias_is_drawn_as_the_layer_draws_it():
    layer = layers.LSTM(3, bias_initializer=keras.initializers.RandomNormal())
    config = layer.unit_bias_initializer().get_config()
    config["seed"] = keras.random.SeedGenerator(1)
    draw = type(layer.unit_bias_initializer())(**config)
    bias = to_numpy(draw((12,), "float32"))
    np.testing.assert_array_equal(bias[3:6], 1)
    assert len(np.unique(bias)) == 10
    layer = layers.LSTM(3, unit_forget_bias=False)
    assert layer.unit_bias_initializer() is layer.bias_initializer


def test_refuses_lora_and_quantization():
    layer = layers.LSTM(3, name="layer")
    layer.build((None, 4, 2))
    with pytest.raises(ValueError, match="'layer' cannot be quantized"):
        layer.quantize("int8")
    with pytest.raises(ValueError, match="'layer' cannot be adapted by LoRA"):
        layer.enable_lora(2)


def test_half_precision_and_inference():
    _, model = _make_models("LSTM", dtype="mixed_bfloat16")
    layer = model.get_layer("layer")
    assert layer.recurrent_statistics.running_mean.dtype == "float32"
    x, _ = _make_inputs()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.predict(x, verbose=0)
    assert to_numpy(layer.recurrent_statistics.count)[0] == 0
    model.train_on_batch(x, np.ones((_BATCH, _UNITS)))
    assert to_numpy(layer.recurrent_statistics.count)[0] > 0


def test_statistics_are_documented_attributes():
    layer = keras_plasticity.layers.GRU(_UNITS)
    layer.build((None, _STEPS, _FEATURES))
    for name in ("utility", "age", "mean_activation"):
        assert getattr(layer, name).shape == (_UNITS,)
    assert len(layer.statistics.unit_variables()) == 3
    assert not layer.recurrent_statistics.unit_variables()
