import json

import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity.layers import InputNormalization
from keras_plasticity.optimizers import ContinualBackprop
from keras_plasticity.training import OnlineTrainer
from tests.helpers import to_numpy

_STATE = ("mean", "variance", "num_examples")
_SIZES = (1, 1, 5, 2, 1, 7, 3)


def draw(num, shape, seed=0):
    """Inputs that are far from centred, each feature in its own way."""
    rng = np.random.default_rng(seed)
    offset = rng.normal(0, 3, shape)
    scale = rng.uniform(0.1, 4, shape)
    return (offset + scale * rng.normal(0, 1, (num, *shape))).astype("float32")


def moments(batches, momentum, others):
    """Weighted moments of all examples: what the docstring says, literally."""
    sizes = [len(batch) for batch in batches]
    weights = []
    for i, size in enumerate(sizes):
        # Those that its examples would have one at a time, shared by all.
        later = sum(sizes[i + 1 :])
        alone = [momentum ** (later + j) for j in range(size)]
        weights += [np.mean(alone)] * size
    x = np.concatenate(batches).astype("float64")
    weights = np.reshape(weights, (-1,) + (1,) * (x.ndim - 1))
    weights = np.broadcast_to(weights, x.shape)
    mean = np.average(x, axis=others, weights=weights, keepdims=True)
    variance = np.average(
        (x - mean) ** 2, axis=others, weights=weights, keepdims=True
    )
    return mean, variance


def batches_of(shape, sizes=_SIZES, seed=0):
    x = draw(sum(sizes), shape, seed)
    return np.split(x, np.cumsum(sizes)[:-1])


@pytest.mark.parametrize("momentum", [1.0, 0.8])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((4,), -1),
        ((4,), 1),
        ((3, 2, 4), -1),
        ((4, 3, 2), 1),
        ((3, 2, 4), [1, 2, 3]),
        ((3, 2, 4), [-1, 1]),
        ((3, 1), 2),
    ],
    ids=str,
)
def test_all_examples_so_far(shape, axis, momentum):
    epsilon = 1e-3
    layer = InputNormalization(axis, momentum, epsilon)
    named = axis if isinstance(axis, list) else [axis]
    named = [a % (len(shape) + 1) for a in named]
    others = tuple(i for i in range(len(shape) + 1) if i not in named)
    seen = []
    for batch in batches_of(shape):
        seen.append(batch)
        outputs = layer(batch, training=True)
        mean, variance = moments(seen, momentum, others)
        # Inputs are of the size of 4, and a mean of them may be close to 0.
        np.testing.assert_allclose(
            to_numpy(layer.mean),
            mean.reshape(layer.mean.shape),
            rtol=1e-5,
            atol=1e-6,
        )
        np.testing.assert_allclose(
            to_numpy(layer.variance),
            variance.reshape(layer.variance.shape),
            rtol=1e-4,
            atol=1e-6,
        )
        expected = (batch - mean) / np.sqrt(variance + epsilon)
        np.testing.assert_allclose(
            to_numpy(outputs), expected, rtol=1e-4, atol=1e-4
        )
    assert float(to_numpy(layer.num_examples)) == sum(_SIZES)
    assert [len(layer.mean.shape), *layer.mean.shape] == [
        len(named),
        *((None, *shape)[a] for a in sorted(named)),
    ]


def test_without_momentum_batches_do_not_matter():
    x = draw(60, (5,))
    state = []
    for sizes in ([60], [1] * 60, [7] * 8 + [4]):
        layer = InputNormalization()
        for batch in np.split(x, np.cumsum(sizes)[:-1]):
            layer(batch, training=True)
        state.append([to_numpy(getattr(layer, name)) for name in _STATE])
    for other in state[1:]:
        for a, b in zip(state[0], other):
            np.testing.assert_allclose(a, b, rtol=1e-5)


def test_large_inputs_keep_their_differences():
    x = 1000 + np.random.default_rng(0).normal(0, 0.1, (400, 3))
    x = x.astype("float32")
    layer = InputNormalization()
    for batch in np.split(x, 20):
        layer(batch, training=True)
    np.testing.assert_allclose(
        to_numpy(layer.variance), x.astype("float64").var(axis=0), rtol=1e-3
    )


def test_features_that_do_not_change():
    layer = InputNormalization()
    for _ in range(5):
        outputs = to_numpy(
            layer(np.full((1, 2), 7.3, "float32"), training=True)
        )
        np.testing.assert_allclose(outputs, 0.0, atol=1e-3)
    np.testing.assert_allclose(to_numpy(layer.variance), 0.0, atol=1e-10)
    outputs = to_numpy(layer(np.ones((1, 2), "float32"), training=True))
    assert np.all(np.isfinite(outputs)) and np.all(outputs < -1)


def test_inference_leaves_all_state_alone():
    layer = InputNormalization(epsilon=1e-12)
    x = draw(9, (4,))
    # Nothing is known yet.
    np.testing.assert_allclose(to_numpy(layer(x)), x, rtol=1e-6)
    layer(x, training=True)
    before = [to_numpy(v) for v in layer.variables]
    outputs = to_numpy(layer(x[:2] + 1))
    layer(x, training=False)
    layer.trainable = False
    layer(x + 5, training=True)
    for variable, value in zip(layer.variables, before, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), value)
    expected = (x[:2] + 1 - x.mean(axis=0)) / x.std(axis=0)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    assert not layer.trainable_variables


@pytest.mark.parametrize("momentum", [1.0, 0.9])
@pytest.mark.parametrize("first", [True, False])
def test_no_examples(momentum, first):
    layer = InputNormalization(momentum=momentum)
    if not first:
        layer(draw(6, (4,)), training=True)
    else:
        layer.build((None, 4))
    before = [to_numpy(v) for v in layer.variables]
    layer(np.zeros((0, 4), "float32"), training=True)
    for variable, value in zip(layer.variables, before, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), value)


def make_model(seed=0, continual=False, dtype=None, momentum=1.0):
    kinds = keras_plasticity.layers if continual else keras.layers
    model = keras.Sequential(
        [
            keras.Input((4,)),
            InputNormalization(name="norm", dtype=dtype, momentum=momentum),
            kinds.Dense(6, activation="relu", name="hidden"),
            kinds.Dense(2, name="head"),
        ]
    )
    rng = np.random.default_rng(seed)
    for name in ("hidden", "head"):
        kernel = model.get_layer(name).kernel
        kernel.assign(rng.normal(0, 0.5, kernel.shape))
    optimizer = keras.optimizers.SGD(0.05)
    if continual:
        optimizer = ContinualBackprop(
            optimizer, replacement_rate=0.05, maturity_threshold=3, seed=seed
        )
    model.compile(optimizer, "mse")
    return model


def make_data(num, seed=0):
    x = draw(num, (4,), seed)
    return x, np.sin(x[:, :2])


class Stream:
    def __init__(self, seed=0):
        self.seed = seed

    def __len__(self):
        return 2

    def task(self, index):
        return make_data(20, 10 * self.seed + index)


def assert_same(actual, expected, **tolerance):
    for a, b in zip(actual.variables, expected.variables, strict=True):
        np.testing.assert_allclose(
            to_numpy(a), to_numpy(b), err_msg=a.path, **tolerance
        )


@pytest.mark.parametrize("continual", [False, True], ids=["plain", "cbp"])
def test_online_trainer(continual):
    together = OnlineTrainer(
        lambda learner: make_model(learner, continual), num_learners=3
    )
    results = together.fit(lambda learner: Stream(learner))
    for learner in range(3):
        alone = OnlineTrainer(make_model(learner, continual))
        expected = alone.fit(Stream(learner))
        np.testing.assert_allclose(
            results["loss"][:, learner], expected["loss"][:, 0], rtol=1e-4
        )
        assert_same(
            together.model(learner), alone.model(), rtol=1e-3, atol=1e-5
        )
        norm = alone.model().get_layer("norm")
        x = np.concatenate([Stream(learner).task(i)[0] for i in range(2)])
        np.testing.assert_allclose(
            to_numpy(norm.mean), x.mean(axis=0), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            to_numpy(norm.variance), x.var(axis=0), rtol=1e-3
        )


def test_fit_equals_online_trainer():
    fitted = make_model()
    trainer = OnlineTrainer(make_model())
    trainer.fit(Stream())
    for index in range(2):
        x, y = Stream().task(index)
        fitted.fit(x, y, batch_size=1, shuffle=False, verbose=0)
    assert_same(trainer.model(), fitted, rtol=1e-4, atol=1e-5)
    assert float(to_numpy(fitted.get_layer("norm").num_examples)) == 40


@pytest.mark.parametrize("momentum", [1.0, 0.9])
def test_a_saved_model_goes_on_exactly(momentum, tmp_path):
    model = make_model(momentum=momentum)
    x, y = make_data(24)
    fit = dict(batch_size=3, shuffle=False, verbose=0)
    model.fit(x[:12], y[:12], **fit)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(loaded, model, rtol=0)
    for each in (model, loaded):
        each.fit(x[12:], y[12:], **fit)
    assert_same(loaded, model, rtol=0)


def test_mixed_precision():
    full, mixed = (make_model(dtype=dtype) for dtype in (None, "mixed_float16"))
    x, y = make_data(200)
    for model in (full, mixed):
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    norm = mixed.get_layer("norm")
    assert keras.backend.standardize_dtype(norm(x).dtype) == "float16"
    assert {v.dtype for v in norm.variables} == {"float32"}
    for name in _STATE:
        np.testing.assert_allclose(
            to_numpy(getattr(norm, name)),
            to_numpy(getattr(full.get_layer("norm"), name)),
            rtol=0.01,
            atol=0.01,
        )


def test_no_gradient_goes_through_the_moments():
    # Of a batch that is normalized by itself, the sum does not depend on it.
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(3, use_bias=False, name="matrix"),
            InputNormalization(name="norm", epsilon=1e-6),
        ]
    )
    model.compile(keras.optimizers.SGD(1.0), lambda y, outputs: outputs)
    x = draw(8, (2,))
    kernel = model.get_layer("matrix").kernel
    before = to_numpy(kernel)
    model.train_on_batch(x, np.zeros((8, 3), "float32"))
    stddev = (x @ before).std(axis=0)
    expected = np.mean(x, axis=0)[:, None] / stddev / 3
    change = before - to_numpy(kernel)
    np.testing.assert_allclose(change, expected, rtol=1e-3)


def test_masks_are_passed_on():
    inputs = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(5, 3, mask_zero=True)(inputs)
    x = InputNormalization()(x)
    model = keras.Model(inputs, [x, keras.layers.GlobalAveragePooling1D()(x)])
    each, mean = map(to_numpy, model(np.array([[1, 2, 0, 0]])))
    np.testing.assert_allclose(mean[0], each[0, :2].mean(axis=0), rtol=1e-5)


def test_serialization():
    layer = InputNormalization(axis=(1, -1), momentum=0.99, epsilon=1e-3)
    serialized = json.loads(json.dumps(keras.layers.serialize(layer)))
    assert (
        serialized["registered_name"] == "keras_plasticity>InputNormalization"
    )
    twin = keras.layers.deserialize(serialized)
    assert twin.get_config() == layer.get_config()
    assert (twin.axis, twin.momentum, twin.epsilon) == ([1, -1], 0.99, 1e-3)
    assert InputNormalization().get_config()["axis"] == -1


def test_shapes():
    layer = InputNormalization()
    assert layer.compute_output_shape((None, 7, 3)) == (None, 7, 3)
    assert layer(keras.Input((None, 3))).shape == (None, None, 3)
    x = draw(2, (5, 3))
    outputs = layer(ops.convert_to_tensor(x), training=True)
    rows = x.reshape(-1, 3)
    expected = (x - rows.mean(axis=0)) / rows.std(axis=0)
    np.testing.assert_allclose(
        to_numpy(outputs), expected, rtol=1e-3, atol=1e-3
    )


def test_an_unknown_number_of_positions():
    model = keras.Sequential(
        [
            keras.Input((None, 3)),
            InputNormalization(name="norm"),
            keras.layers.Dense(3),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x = draw(6, (5, 3))
    model.fit(x, x, batch_size=4, shuffle=False, verbose=0)
    norm = model.get_layer("norm")
    rows = x.reshape(-1, 3)
    np.testing.assert_allclose(to_numpy(norm.mean), rows.mean(0), rtol=1e-4)
    np.testing.assert_allclose(to_numpy(norm.variance), rows.var(0), rtol=1e-4)
    assert float(to_numpy(norm.num_examples)) == 6


def test_it_does_not_stand_between_units_and_who_reads_them():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras_plasticity.layers.Dense(3, name="hidden"),
            InputNormalization(),
            keras_plasticity.layers.Dense(2),
        ]
    )
    optimizer = ContinualBackprop(keras.optimizers.SGD(0.1))
    with pytest.raises(
        ValueError, match=r"'hidden' cannot be.*\(`InputNorm.*`keras_plasticity"
    ):
        optimizer.build(model.trainable_variables)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"axis": 0}, "`axis` must be an integer or several.*axis=0"),
        ({"axis": []}, r"`axis` must be.*Received: axis=\[\]"),
        ({"axis": [1, 0]}, r"`axis` must be.*Received: axis=\[1, 0\]"),
        ({"axis": "last"}, "`axis` must be.*axis=last"),
        ({"momentum": 0.0}, r"`momentum` must be a number in \(0, 1\]"),
        ({"momentum": 1.1}, "Received: momentum=1.1"),
        ({"momentum": None}, r"`momentum` must be a number in \(0, 1\]"),
        ({"epsilon": 0}, "`epsilon` must be a positive number.*epsilon=0"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        InputNormalization(**arguments)


def test_bad_shapes():
    for axis in (2, -2):
        with pytest.raises(ValueError, match=f"Received: axis={axis}"):
            InputNormalization(axis).build((None, 3))
    with pytest.raises(ValueError, match="number of features must be known"):
        InputNormalization().build((None, 3, None))
    with pytest.raises(ValueError, match="must name each axis once"):
        InputNormalization([1, -1]).build((None, 3))
