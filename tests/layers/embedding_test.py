import json

import keras
import numpy as np
import pytest

from keras_plasticity import graph
from keras_plasticity import layers
from keras_plasticity.models import make_plastic
from keras_plasticity.optimizers import ContinualBackprop
from tests.helpers import to_numpy

pytestmark = pytest.mark.usefixtures("fast_compilation")

_WORDS, _UNITS = 7, 4


def _model(source=layers, **kwargs):
    inputs = keras.Input((5,), dtype="int32")
    embedding = source.Embedding(_WORDS, _UNITS, name="embedding", **kwargs)
    x = keras.layers.GlobalAveragePooling1D()(embedding(inputs))
    return keras.Model(inputs, source.Dense(3, name="last")(x))


def _data():
    rng = np.random.default_rng(0)
    x = rng.integers(0, _WORDS, (8, 5)).astype("int32")
    return x, rng.normal(0, 1, (8, 3)).astype("float32")


def _compile(model, inner, **kwargs):
    model.compile(
        ContinualBackprop(inner, seed=1, **kwargs),
        "mse",
        run_eagerly=keras.backend.backend() == "tensorflow",
    )


def test_statistics_and_replacement():
    model = _model(embeddings_initializer=keras.initializers.Constant(0.3))
    embedding, last = model.get_layer("embedding"), model.get_layer("last")
    rng = np.random.default_rng(1)
    table = rng.normal(0, 1, (_WORDS, _UNITS)).astype("float32")
    kernel = rng.normal(0, 1, (_UNITS, 3)).astype("float32")
    embedding.embeddings.assign(table)
    last.kernel.assign(kernel)
    _compile(
        model,
        keras.optimizers.SGD(0.0),
        replacement_rate=0.25,
        maturity_threshold=0,
        decay_rate=0.5,
    )
    x, y = _data()
    before = to_numpy(model(x))
    model.train_on_batch(x, y)
    h = table.astype("float64")[x].mean(axis=1)
    utility = np.abs(h).mean(0) * np.abs(kernel).mean(1)
    unit = utility.argmin()
    mean = h.mean(0)
    utility[unit] = mean[unit] = 0
    np.testing.assert_allclose(to_numpy(embedding.utility), utility, rtol=1e-5)
    np.testing.assert_allclose(
        to_numpy(embedding.mean_activation), mean, rtol=1e-5, atol=1e-7
    )
    assert model.optimizer.num_replaced() == {"embedding": 1}
    new = table.copy()
    new[:, unit] = 0.3
    np.testing.assert_array_equal(to_numpy(embedding.embeddings), new)
    change = np.outer(h[:, unit], kernel[unit])
    np.testing.assert_allclose(
        to_numpy(model(x)), before - change, rtol=1e-5, atol=1e-6
    )


def test_rate_zero_is_the_inner_optimizer():
    weights = []
    for source in (layers, keras.layers):
        keras.utils.set_random_seed(0)
        model = _model(source, mask_zero=True)
        inner = keras.optimizers.Adam(0.1)
        if source is layers:
            _compile(model, inner, replacement_rate=0.0)
        else:
            model.compile(inner, "mse", run_eagerly=not model.run_eagerly)
        model.fit(*_data(), batch_size=4, shuffle=False, verbose=0)
        weights.append(
            [to_numpy(w) for w in model.weights if "statistics" not in w.path]
        )
    for plastic, plain in zip(*weights):
        np.testing.assert_array_equal(plastic, plain)


def test_make_plastic_and_a_file(tmp_path):
    model = _model(keras.layers)
    x, y = _data()
    outputs = to_numpy(model(x))
    make_plastic(model)
    np.testing.assert_array_equal(to_numpy(model(x)), outputs)
    embedding = model.get_layer("embedding")
    assert type(embedding) is layers.Embedding and embedding.replaceable
    _compile(
        model,
        keras.optimizers.Adam(0.01),
        replacement_rate=0.3,
        maturity_threshold=0,
    )
    model.fit(x, y, batch_size=4, verbose=0, shuffle=False)
    assert model.optimizer.num_replaced()["embedding"] > 0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.fit(x, y, batch_size=4, verbose=0, shuffle=False)
    for one, other in zip(model.weights, loaded.weights):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


def test_serialization():
    layer = layers.Embedding(3, 2, mask_zero=True, replaceable=False)
    serialized = json.loads(json.dumps(keras.layers.serialize(layer)))
    twin = keras.layers.deserialize(serialized)
    assert type(twin) is layers.Embedding and not twin.replaceable
    assert twin.get_config() == layer.get_config()
    layer = layers.Embedding(3, 2, weights=[np.full((3, 2), 0.5)])
    np.testing.assert_array_equal(to_numpy(layer.embeddings), 0.5)


def test_it_reads_no_units():
    inputs = keras.Input((5,))
    x = keras.ops.cast(layers.Dense(4, name="hidden")(inputs), "int32")
    x = keras.layers.Flatten()(layers.Embedding(3, 2)(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    optimizer = ContinualBackprop(keras.optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="'embedding.*takes indices"):
        optimizer.build(model.trainable_variables)
    (embedding,) = [x for x in model.layers if type(x) is layers.Embedding]
    hidden = model.get_layer("hidden")
    with pytest.raises(ValueError, match="`consumer` must be a layer that rea"):
        graph.connect(hidden, embedding)


def test_lora_and_quantization_are_refused():
    layer = layers.Embedding(3, 2)
    layer.build()
    with pytest.raises(ValueError, match="cannot be adapted by LoRA"):
        layer.enable_lora(1)
    with pytest.raises(ValueError, match="cannot be quantized"):
        layer.quantize("int8")
