"""FIRE, DASH and SDP against their formulas in NumPy, written anew."""

import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity import callbacks
from tests.gradients import loss_and_gradients
from tests.helpers import to_numpy


def conv_model(layers=keras.layers, seed=0):
    """Kernels of many shapes, some layers without a bias."""
    inputs = keras.Input((9, 8, 3))
    x = layers.Conv2D(4, (3, 2), strides=2, activation="tanh", name="conv")(
        inputs
    )
    x = layers.Conv2D(6, 1, use_bias=False, activation="relu", name="one")(x)
    x = layers.Conv2DTranspose(2, (2, 3), activation="tanh", name="back")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Reshape((15, 4))(x)
    x = layers.Conv1D(5, 3, activation="tanh", name="line")(x)
    x = keras.layers.EinsumDense(
        "abc,cde->abde", (13, 2, 3), bias_axes="de", name="heads"
    )(x)
    x = keras.layers.Flatten()(x)
    x = layers.Dense(7, activation="relu", use_bias=False, name="hidden")(x)
    outputs = layers.Dense(3, name="output")(x)
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(seed)
    for variable in keras_plasticity.weights_of(model):
        variable.assign(rng.normal(0, 0.5, variable.shape))
    model.compile("sgd", "mse")
    return model


def data(num=11, seed=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (num, 9, 8, 3)).astype("float32")
    return x, rng.normal(0, 1, (num, 3)).astype("float32")


def values(model):
    return {
        f"{layer.name}/{v.name}": to_numpy(v).astype("float64")
        for layer in model.layers
        for v in layer.weights
        if not keras_plasticity.weights.is_statistic(v)
    }


def numpy_fire(kernel, iterations, positions=1):
    """Of one matrix, inputs times units."""
    w = kernel.T  # As the authors have it: units times inputs.
    x = w / np.linalg.norm(w)
    for _ in range(iterations):
        x = 1.5 * x - 0.5 * x @ x.T @ x
    return (x * np.sqrt(w.shape[0] / w.shape[1]) / positions).T


LAYERS = [keras.layers, keras_plasticity.layers]


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("iterations", [3, 10])
def test_fire(layers, iterations):
    model = conv_model(layers)
    expected = values(model)
    for name in ("conv", "one", "line", "back"):
        kernel = expected[f"{name}/kernel"]
        window = kernel.shape[:-2]
        for index in np.ndindex(window):
            matrix = kernel[index].T if name == "back" else kernel[index]
            new = numpy_fire(matrix, iterations, np.prod(window))
            kernel[index] = new.T if name == "back" else new
    heads = expected["heads/kernel"]
    expected["heads/kernel"] = numpy_fire(
        heads.reshape(5, 6), iterations
    ).reshape(heads.shape)
    for name in ("hidden", "output"):
        kernel = expected[f"{name}/kernel"]
        expected[f"{name}/kernel"] = numpy_fire(kernel, iterations)
    callbacks.FIRE(iterations).on_boundary(model, 0, 1, None, None)
    for key, value in values(model).items():
        np.testing.assert_allclose(value, expected[key], atol=1e-5, err_msg=key)


def test_fire_of_some_layers_and_of_attention():
    inputs = keras.Input((5, 6))
    x = keras.layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="output")(x))
    model.compile("sgd", "mse")
    before = to_numpy(model.get_layer("output").kernel).copy()
    kernels = {
        v.path: to_numpy(v).astype("float64")
        for v in model.get_layer("attention").weights
    }
    fire = callbacks.FIRE(layers=["attention"], skip=0)
    changed = fire.on_boundary(model, 0, 1, None, None)
    assert len(changed) == 4
    for v in changed:
        # Queries, keys and values go to heads, the output comes from them.
        shape = (8, 6) if "output" in v.path.split("/")[-2] else (6, 8)
        new = numpy_fire(kernels[v.path].reshape(shape), 10)
        np.testing.assert_allclose(
            to_numpy(v).reshape(shape), new, atol=1e-5, err_msg=v.path
        )
    np.testing.assert_array_equal(
        to_numpy(model.get_layer("output").kernel), before
    )


def test_fire_keeps_zeros():
    model = conv_model()
    kernel = to_numpy(model.get_layer("conv").kernel).copy()
    kernel[1, 0] = 0
    model.get_layer("conv").kernel.assign(kernel)
    callbacks.FIRE().on_boundary(model, 0, 1, None, None)
    new = to_numpy(model.get_layer("conv").kernel)
    assert np.isfinite(new).all() and new[0, 0].any()
    assert not new[1, 0].any()


def _clipped_cosine(w, g, minimum):
    norms = max(np.linalg.norm(w), 1e-8) * max(np.linalg.norm(g), 1e-8)
    return np.clip(np.sum(w * g) / norms, minimum, 1.0)


def numpy_dash(key, w, g, minimum):
    """Of one weight of `conv_model`, with its direction."""
    result = w.copy()
    if "bias" in key:
        return w * _clipped_cosine(w, g, minimum)
    if key.split("/")[0] in ("conv", "one", "line", "back"):
        for i in range(w.shape[-2]):
            for j in range(w.shape[-1]):
                result[..., i, j] *= _clipped_cosine(
                    w[..., i, j], g[..., i, j], minimum
                )
        return result
    columns = w.reshape(w.shape[0], -1), g.reshape(w.shape[0], -1)
    flat = result.reshape(w.shape[0], -1)
    for j in range(flat.shape[1]):
        flat[:, j] *= _clipped_cosine(
            columns[0][:, j], columns[1][:, j], minimum
        )
    return flat.reshape(w.shape)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize(("alpha", "minimum"), [(0.2, 0.05), (1.0, 0.0)])
def test_dash(layers, alpha, minimum):
    x, y = data()
    before = values(conv_model(layers))
    # Its statistics of normalization may change: they are not used.
    other = conv_model()
    directions = {key: 0.0 for key in before}
    keys = [
        f"{layer.name}/{v.name}"
        for layer in other.layers
        for v in layer.trainable_variables
    ]
    for start in range(0, 11, 4):  # The last batch has three.
        batch = slice(start, start + 4)
        _, gradients = loss_and_gradients(
            other, keras.losses.MeanSquaredError(), x[batch], y[batch]
        )
        for key, gradient in zip(keys, gradients):
            directions[key] = (1 - alpha) * directions[key] - alpha * to_numpy(
                gradient
            ).astype("float64")
    expected = {
        key: value
        if key.startswith("norm")
        else numpy_dash(key, value, directions[key], minimum)
        for key, value in before.items()
    }
    model = conv_model(layers)
    dash = callbacks.DASH((x, y), alpha, minimum, batch_size=4)
    dash.on_boundary(model, 0, 1, None, None)
    for key, value in values(model).items():
        np.testing.assert_allclose(
            value, expected[key], rtol=2e-3, atol=2e-4, err_msg=key
        )
    # The data of the engine come first.
    again = conv_model(layers)
    callbacks.DASH(None, alpha, minimum, batch_size=4).on_boundary(
        again, 0, 1, x, y
    )
    for key, value in values(again).items():
        np.testing.assert_array_equal(value, values(model)[key])


def test_dash_leaves_states_as_they_are():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5, seed=1),
            keras.layers.Dense(3),
        ]
    )
    model.compile("sgd", "mse")
    before = [to_numpy(v).copy() for v in model.non_trainable_variables]
    rng = np.random.default_rng(0)
    dash = callbacks.DASH(
        (rng.normal(size=(9, 4)) + 5, rng.normal(size=(9, 3))), batch_size=2
    )
    kernel = to_numpy(model.layers[0].kernel).copy()
    dash.on_boundary(model, 0, 1, None, None)
    assert (to_numpy(model.layers[0].kernel) != kernel).any()
    assert len(before) == 3
    for old, v in zip(before, model.non_trainable_variables):
        np.testing.assert_array_equal(to_numpy(v), old)


def test_dash_needs_data_in_fit():
    model = conv_model()
    with pytest.raises(ValueError, match="`data` must be given in `fit`"):
        model.fit(*data(), verbose=0, callbacks=[callbacks.DASH(skip=0)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(data=np.ones(3)), "`data` must be `None`, a tuple"),
        (dict(data=(1, 2)), "`data` must be `None`, a tuple"),
        (dict(data=(np.ones(3), np.ones(4))), "one entry for each example"),
        (dict(alpha=0), r"`alpha` must be a number in \(0, 1\]"),
        (dict(min_factor=1.5), r"`min_factor` must be a number in \[0, 1\]"),
        (dict(batch_size=0), "`batch_size` must be a positive integer"),
    ],
)
def test_dash_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        callbacks.DASH(**arguments)


def numpy_sdp(matrix, gamma):
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    s = np.maximum(s, 1e-4)
    return (u * (s.mean() ** gamma * s ** (1 - gamma))) @ v


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_sdp(layers, gamma):
    model = conv_model(layers)
    expected = values(model)
    for name in ("conv", "one", "line", "hidden"):
        kernel = expected[f"{name}/kernel"]
        matrix = kernel.reshape(-1, kernel.shape[-1])
        expected[f"{name}/kernel"] = numpy_sdp(matrix, gamma).reshape(
            kernel.shape
        )
    heads = expected["heads/kernel"]
    expected["heads/kernel"] = numpy_sdp(heads.reshape(5, 6), gamma).reshape(
        heads.shape
    )
    back = expected["back/kernel"]  # Window, units, inputs.
    moved = np.moveaxis(back, 2, -1)
    new = numpy_sdp(moved.reshape(-1, 2), gamma).reshape(moved.shape)
    expected["back/kernel"] = np.moveaxis(new, -1, 2)
    sdp = callbacks.SpectralDiversityPreservation(gamma)
    sdp.on_boundary(model, 0, 1, None, None)
    for key, value in values(model).items():
        np.testing.assert_allclose(value, expected[key], atol=1e-5, err_msg=key)


def test_sdp_of_layers_by_name():
    model = conv_model()
    before = values(model)
    callbacks.SpectralDiversityPreservation(
        layers=["output", "one"]
    ).on_boundary(model, 0, 1, None, None)
    changed = {
        key
        for key, value in values(model).items()
        if (value != before[key]).any()
    }
    assert changed == {"output/kernel", "one/kernel"}


def test_sdp_without_a_hidden_layer():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    sdp = callbacks.SpectralDiversityPreservation()
    with pytest.raises(ValueError, match="no other kernel than that of 'dens"):
        sdp.on_boundary(model, 0, 1, None, None)


@pytest.mark.parametrize(
    "callback",
    [
        callbacks.FIRE(),
        callbacks.DASH((np.ones((2, 4)), np.ones((2, 4)))),
        callbacks.SpectralDiversityPreservation(),
    ],
)
def test_a_model_without_kernels(callback):
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization(name="norm")]
    )
    with pytest.raises(ValueError, match="must be a trainable kernel.*norm"):
        callback.on_boundary(model, 0, 1, None, None)


def test_frozen_kernels_stay():
    model = conv_model()
    model.get_layer("conv").trainable = False
    before = values(model)["conv/kernel"]
    callbacks.FIRE().on_boundary(model, 0, 1, None, None)
    np.testing.assert_array_equal(values(model)["conv/kernel"], before)


def test_half_precision():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, dtype="float16"),
            keras.layers.Dense(2, dtype="bfloat16"),
        ]
    )
    fire = callbacks.FIRE()
    fire.on_boundary(model, 0, 1, None, None)
    callbacks.SpectralDiversityPreservation().on_boundary(
        model, 0, 1, None, None
    )
    kernel = keras.ops.convert_to_numpy(
        keras.ops.cast(model.layers[0].kernel, "float32")
    )
    np.testing.assert_allclose(kernel @ kernel.T, 1.5 * np.eye(4), atol=0.01)


@pytest.mark.parametrize("kind", ["FIRE", "SpectralDiversityPreservation"])
@pytest.mark.parametrize("layers", ["conv", [], [3], 3])
def test_layers_must_be_names(kind, layers):
    with pytest.raises(ValueError, match="`layers` must be a list of the name"):
        getattr(callbacks, kind)(layers=layers)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="`iterations` must be a positive int"):
        callbacks.FIRE(0)
    with pytest.raises(ValueError, match=r"`gamma` must be a number in \[0, 1"):
        callbacks.SpectralDiversityPreservation(-0.1)
