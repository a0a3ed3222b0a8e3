import json

import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity.layers import OnlineNormalization
from keras_plasticity.optimizers import ContinualBackprop
from keras_plasticity.training import OnlineTrainer
from keras_plasticity.units.backward_pass import UNIT
from tests.gradients import loss_and_gradients
from tests.gradients import value_and_gradients
from tests.helpers import to_numpy

_STATE = ("moving_mean", "moving_variance", "scale_error", "shift_error")
# Fast enough that 60 steps go through several times their memory.
_DECAYS = {"forward_decay": 0.95, "backward_decay": 0.9}
_EPSILON = 1e-5
_RATE = 0.01


class PaperNormalization:
    """The equations of the paper, for one example, a vector, at a time."""

    def __init__(self, features):
        self.moving_mean = np.zeros(features)
        self.moving_variance = np.ones(features)
        self.scale_error = np.zeros(features)
        self.shift_error = np.zeros(features)

    def forward(self, batch):
        (x,) = batch
        f = _DECAYS["forward_decay"]
        self.stddev = np.sqrt(self.moving_variance + _EPSILON)
        self.y = (x - self.moving_mean) / self.stddev
        self.moving_variance = f * self.moving_variance + f * (1 - f) * (
            (x - self.moving_mean) ** 2
        )
        self.moving_mean = f * self.moving_mean + (1 - f) * x
        return self.y[None]

    def backward(self, batch):
        (upstream,) = batch
        b = _DECAYS["backward_decay"]
        h = upstream - (1 - b) * self.scale_error * self.y
        self.scale_error = self.scale_error + h * self.y
        gradient = h / self.stddev - (1 - b) * self.shift_error
        self.shift_error = self.shift_error + gradient
        return gradient[None]


class BatchNormalization(PaperNormalization):
    """What the layer says of batches and positions; features come last."""

    def forward(self, x):
        f = _DECAYS["forward_decay"] ** len(x)
        rows = x.reshape(-1, x.shape[-1])
        self.stddev = np.sqrt(self.moving_variance + _EPSILON)
        self.y = (x - self.moving_mean) / self.stddev
        mean, variance = rows.mean(axis=0), rows.var(axis=0)
        self.moving_variance = (
            f * self.moving_variance
            + (1 - f) * variance
            + f * (1 - f) * (mean - self.moving_mean) ** 2
        )
        self.moving_mean = f * self.moving_mean + (1 - f) * mean
        return self.y

    def backward(self, upstream):
        b = _DECAYS["backward_decay"] ** len(upstream)
        others = tuple(range(upstream.ndim - 1))
        h = upstream - (1 - b) * self.scale_error * self.y
        self.scale_error = self.scale_error + (h * self.y).mean(axis=others)
        gradient = h / self.stddev - (1 - b) * self.shift_error
        self.shift_error = self.shift_error + gradient.mean(axis=others)
        return gradient


class Reference:
    """A matrix, a normalization, and gradient descent on squared errors.

    They are averaged over the last axis, and summed over all others.
    """

    def __init__(self, normalization, kernel, layer_scaling, last):
        self.last = last
        self.normalization = normalization
        self.kernel = kernel.astype("float64")
        self.layer_scaling = layer_scaling
        features = len(normalization.moving_mean)
        self.gamma, self.beta = np.ones(features), np.zeros(features)

    def step(self, x, target, to_features_last, back):
        """Returns the outputs before the step, features last."""
        y = self.normalization.forward(to_features_last(x @ self.kernel))
        scaled = outputs = y * self.gamma + self.beta
        each = tuple(range(1, y.ndim))
        if self.layer_scaling:
            square = (scaled**2).mean(axis=each, keepdims=True)
            factor = 1 / np.sqrt(square + _EPSILON)
            outputs = scaled * factor
        gradient = 2 * (outputs - target) / self.last
        if self.layer_scaling:
            along = (gradient * outputs).mean(axis=each, keepdims=True)
            gradient = factor * (gradient - along * outputs)
        others = tuple(range(y.ndim - 1))
        normalized_gradient = gradient * self.gamma
        self.gamma = self.gamma - _RATE * (gradient * y).sum(axis=others)
        self.beta = self.beta - _RATE * gradient.sum(axis=others)
        gradient = self.normalization.backward(normalized_gradient)
        self.kernel = self.kernel - _RATE * x.T @ back(gradient)
        return outputs


def make_model(shape, inputs=6, optimizer=None, seed=0, dtype=None, **kwargs):
    model = keras.Sequential(
        [
            keras.Input((inputs,)),
            keras.layers.Dense(
                int(np.prod(shape)), use_bias=False, name="matrix"
            ),
            keras.layers.Reshape(shape),
            OnlineNormalization(name="norm", dtype=dtype, **_DECAYS, **kwargs),
        ]
    )
    rng = np.random.default_rng(seed)
    kernel = model.get_layer("matrix").kernel
    kernel.assign(rng.normal(0, 1, kernel.shape))
    # Summed, so that the errors of many positions are not small.
    model.compile(
        optimizer=optimizer or keras.optimizers.SGD(_RATE),
        loss=keras.losses.MeanSquaredError(reduction="sum"),
    )
    return model


def make_data(num, shape, inputs=6, seed=1):
    """Inputs that are far from centred, and targets."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0.5, 1, (num, inputs)).astype("float32")
    return x, rng.normal(0, 1, (num, *shape)).astype("float32")


def state_of(model):
    norm = model.get_layer("norm")
    return {name: to_numpy(getattr(norm, name)) for name in _STATE}


def assert_same(actual, expected, **tolerance):
    actual, expected = actual.variables, expected.variables
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected):
        np.testing.assert_allclose(
            to_numpy(a), to_numpy(b), err_msg=a.path, **tolerance
        )


@pytest.mark.parametrize(
    ("reference", "batch_size", "shape", "axis", "layer_scaling"),
    [
        (PaperNormalization, 1, (4,), -1, False),
        (PaperNormalization, 1, (4,), 1, True),
        (BatchNormalization, 5, (4,), -1, True),
        (BatchNormalization, 1, (2, 3, 4), -1, False),
        (BatchNormalization, 3, (2, 3, 4), -1, True),
        (BatchNormalization, 3, (4, 2, 3), 1, False),
    ],
    ids=["paper", "scaled", "batch", "positions", "images", "first"],
)
def test_reference(reference, batch_size, shape, axis, layer_scaling):
    """Outputs, all state, and the gradients by what they do to weights."""
    model = make_model(shape, axis=axis, layer_scaling=layer_scaling)
    matrix, _, norm = model.layers
    features = shape[axis - 1] if axis > 0 else shape[axis]
    expected = Reference(
        reference(features),
        to_numpy(matrix.kernel),
        layer_scaling,
        last=shape[-1],
    )

    def to_features_last(x):
        return np.moveaxis(x.reshape(-1, *shape), axis, -1)

    def back(gradient):
        gradient = np.moveaxis(gradient, -1, axis)
        return gradient.reshape(len(gradient), -1)

    for step in range(60):
        x, target = make_data(batch_size, shape, seed=step)
        # Before the step, the inputs are normalized as they are in it.
        outputs = to_numpy(model(x))
        model.train_on_batch(x, target)
        expected_outputs = expected.step(
            x, np.moveaxis(target, axis, -1), to_features_last, back
        )
        np.testing.assert_allclose(
            np.moveaxis(outputs, axis, -1),
            expected_outputs,
            rtol=1e-3,
            atol=1e-4,
        )
        for name in _STATE:
            np.testing.assert_allclose(
                to_numpy(getattr(norm, name)),
                getattr(expected.normalization, name),
                rtol=1e-3,
                atol=1e-4,
                err_msg=f"{name}, step {step}",
            )
        for name, variable in (
            ("kernel", matrix.kernel),
            ("gamma", norm.gamma),
            ("beta", norm.beta),
        ):
            np.testing.assert_allclose(
                to_numpy(variable),
                getattr(expected, name),
                rtol=1e-3,
                atol=1e-4,
                err_msg=f"{name}, step {step}",
            )
    # That was no trivial comparison.
    for name, start in zip(_STATE, (0, 1, 0, 0)):
        change = getattr(expected.normalization, name) - start
        assert np.all(np.abs(change) > 1e-3), name


def test_gradient_becomes_orthogonal_to_what_was_normalized():
    """What the accumulators are for: large batches do it exactly."""
    shape = (3,)
    model = make_model(
        shape, optimizer=keras.optimizers.SGD(0.0), layer_scaling=False
    )
    for step in range(40):
        model.train_on_batch(*make_data(64, shape, seed=step % 2))
    before = state_of(model)
    model.train_on_batch(*make_data(64, shape, seed=0))
    model.train_on_batch(*make_data(64, shape, seed=1))
    after = state_of(model)
    # The sum over a cycle of `h * y`, and of the gradient, is zero.
    for name in ("scale_error", "shift_error"):
        assert np.all(np.abs(before[name]) > 1e-3)
        np.testing.assert_allclose(after[name], before[name], atol=1e-5)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda: keras.optimizers.Adam(0.1),
        lambda: keras.optimizers.AdamW(0.1, weight_decay=0.5, clipnorm=1e-3),
        lambda: ContinualBackprop(keras.optimizers.SGD(0.1)),
        lambda: keras_plasticity.optimizers.L2(
            keras.optimizers.SGD(0.1), l2=0.5
        ),
    ],
    ids=["adam", "clipped_and_decayed", "cbp", "l2"],
)
def test_optimizers_leave_the_errors_alone(make_optimizer):
    models = []
    for optimizer in (keras.optimizers.SGD(0.1), make_optimizer()):
        model = make_plastic_model(optimizer)
        variables = {v.name: v for v in model.get_layer("norm").variables}
        variables["scale_error_sum"].assign(UNIT * np.array([1.0, -2.0, 3.0]))
        variables["shift_error_sum"].assign(UNIT * np.array([-0.5, 1.0, 2.0]))
        variables["num_calls"].assign([UNIT])
        model.train_on_batch(*make_data(4, (2,)))
        models.append(model)
    expected, actual = map(state_of, models)
    for name in _STATE:
        np.testing.assert_allclose(
            actual[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name
        )
    assert not np.allclose(actual["scale_error"], [1.0, -2.0, 3.0], atol=1e-3)


def make_plastic_model(optimizer, seed=0):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras_plasticity.layers.Dense(3, name="hidden"),
            OnlineNormalization(name="norm", **_DECAYS),
            keras.layers.ReLU(),
            keras_plasticity.layers.Dense(2, name="head"),
        ]
    )
    rng = np.random.default_rng(seed)
    for name in ("hidden", "head"):
        kernel = model.get_layer(name).kernel
        kernel.assign(rng.normal(0, 0.5, kernel.shape))
    model.compile(optimizer=optimizer, loss="mse")
    return model


def make_continual(seed=0):
    optimizer = ContinualBackprop(
        keras.optimizers.SGD(0.05),
        replacement_rate=0.05,
        maturity_threshold=3,
        seed=seed,
    )
    return make_plastic_model(optimizer, seed)


def test_replaced_units_start_anew():
    model = make_plastic_model(
        ContinualBackprop(
            keras.optimizers.SGD(0.0),
            replacement_rate=1.0,
            maturity_threshold=0,
        )
    )
    norm = model.get_layer("norm")
    norm.gamma.assign([3.0, 3.0, 3.0])
    norm.beta.assign([2.0, 2.0, 2.0])
    model.train_on_batch(*make_data(4, (2,)))
    ages = to_numpy(model.get_layer("hidden").age)
    new = ages == 0
    assert new.any()
    np.testing.assert_array_equal(to_numpy(norm.gamma), np.where(new, 1, 3))
    np.testing.assert_array_equal(to_numpy(norm.beta), np.where(new, 0, 2))


class Stream:
    def __init__(self, seed=0):
        self.seed = seed

    def __len__(self):
        return 2

    def task(self, index):
        return make_data(20, (2,), seed=10 * self.seed + index)


def build_learner(learner, continual):
    if continual:
        return make_continual(learner)
    return make_plastic_model(keras.optimizers.SGD(0.05), learner)


@pytest.mark.parametrize("continual", [False, True], ids=["plain", "cbp"])
def test_online_trainer(continual):
    together = OnlineTrainer(
        lambda learner: build_learner(learner, continual), num_learners=3
    )
    results = together.fit(lambda learner: Stream(learner))
    for learner in range(3):
        alone = OnlineTrainer(build_learner(learner, continual))
        expected = alone.fit(Stream(learner))
        np.testing.assert_allclose(
            results["loss"][:, learner], expected["loss"][:, 0], rtol=1e-4
        )
        assert_same(
            together.model(learner), alone.model(), rtol=1e-3, atol=1e-5
        )
        state = state_of(alone.model())
        assert np.all(np.abs(state["scale_error"]) > 1e-6)


def test_fit_equals_online_trainer():
    fitted = build_learner(0, continual=False)
    trainer = OnlineTrainer(build_learner(0, continual=False))
    trainer.fit(Stream())
    for index in range(2):
        x, y = Stream().task(index)
        fitted.fit(x, y, batch_size=1, shuffle=False, verbose=0)
    assert_same(trainer.model(), fitted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [1e-3, 64.0])
def test_factor_of_all_gradients(factor):
    models = []
    for number in (1.0, factor):
        model = make_model((4,))
        loss = keras.losses.MeanSquaredError()
        optimizer = keras.optimizers.SGD(0.0)
        optimizer.build(model.trainable_variables)
        for seed in range(3):
            data = make_data(5, (4,), seed=seed)
            _, gradients = loss_and_gradients(model, loss, *data)
            gradients = [number * g for g in gradients]
            optimizer.apply(gradients, model.trainable_variables)
        models.append(model)
    expected, actual = map(state_of, models)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-5, err_msg=name)


def _loss_of_one_call(call, loss_fn, x, target):
    return loss_fn(target, call(x))


def _loss_of_two_calls(call, loss_fn, x, target):
    return loss_fn(target, call(x)) + loss_fn(target, call(x))


def test_called_twice_in_a_step():
    errors = []
    for function in (_loss_of_one_call, _loss_of_two_calls):
        model = make_model((4,))
        norm = model.get_layer("norm")
        norm.forward_decay = 1 - 1e-7  # Both calls normalize alike.
        loss = keras.losses.MeanSquaredError()
        optimizer = keras.optimizers.SGD(0.0)
        optimizer.build(model.trainable_variables)
        for seed in range(3):
            data = make_data(5, (4,), seed=seed)
            _, gradients = value_and_gradients(model, function, loss, *data)
            optimizer.apply(gradients, model.trainable_variables)
        errors.append([to_numpy(norm.scale_error), to_numpy(norm.shift_error)])
    # The mean of two equal errors, and not their sum.
    assert np.all(errors[0] != np.zeros(4))
    np.testing.assert_allclose(errors[1], errors[0], rtol=1e-3)


def test_no_examples():
    model = make_model((4,))
    norm = model.get_layer("norm")
    model.train_on_batch(*make_data(6, (4,)))
    before = state_of(model)
    norm(np.zeros((0, 4), "float32"), training=True)
    for name, value in state_of(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_a_saved_model_goes_on_exactly(tmp_path):
    path = tmp_path / "model.keras"
    model = build_learner(0, continual=False)
    x, y = make_data(24, (2,))
    model.fit(x[:12], y[:12], batch_size=1, shuffle=False, verbose=0)
    model.save(path)
    loaded = keras.models.load_model(path)
    assert_same(loaded, model, rtol=0)
    assert np.all(state_of(loaded)["shift_error"] != 0)
    for each in (model, loaded):
        each.fit(x[12:], y[12:], batch_size=1, shuffle=False, verbose=0)
    assert_same(loaded, model, rtol=0)


def test_serialization():
    layer = OnlineNormalization(
        axis=1,
        forward_decay=0.9,
        backward_decay=0.8,
        epsilon=1e-3,
        layer_scaling=False,
        gamma_initializer="zeros",
        beta_regularizer="l2",
        gamma_constraint="non_neg",
    )
    serialized = json.loads(json.dumps(keras.layers.serialize(layer)))
    assert (
        serialized["registered_name"] == "keras_plasticity>OnlineNormalization"
    )
    twin = keras.layers.deserialize(serialized)
    assert twin.get_config() == layer.get_config()
    assert (twin.axis, twin.forward_decay, twin.backward_decay) == (1, 0.9, 0.8)
    assert (twin.epsilon, twin.layer_scaling) == (1e-3, False)


def test_without_scale_or_center():
    for scale, center in ((True, False), (False, True), (False, False)):
        layer = OnlineNormalization(scale=scale, center=center)
        layer.build((None, 3))
        assert (layer.gamma is not None) == scale
        assert (layer.beta is not None) == center
        assert len(keras_plasticity.weights_of(layer)) == scale + center
        assert layer(np.ones((2, 3), "float32")).shape == (2, 3)


def test_mixed_precision():
    full, mixed = (
        make_model((4,), dtype=dtype) for dtype in (None, "mixed_bfloat16")
    )
    x, target = make_data(60, (4,))
    for model in (full, mixed):
        model.fit(x, target, batch_size=1, shuffle=False, verbose=0)
    norm = mixed.get_layer("norm")
    assert keras.backend.standardize_dtype(mixed(x).dtype) == "bfloat16"
    assert {v.dtype for v in norm.variables} == {"float32"}
    for name, value in state_of(full).items():
        np.testing.assert_allclose(
            state_of(mixed)[name], value, rtol=0.05, atol=0.05, err_msg=name
        )


def test_inference_leaves_all_state_alone():
    model = make_model((4,), layer_scaling=False)
    x, target = make_data(20, (4,))
    model.fit(x, target, batch_size=1, verbose=0)
    before = [to_numpy(v) for v in model.variables]
    outputs = model.predict(x, verbose=0)
    model.evaluate(x, target, verbose=0)
    model(x)
    norm = model.get_layer("norm")
    norm.trainable = False
    assert norm.trainable_variables == []
    norm(np.ones((3, 4), "float32"), training=True)
    for variable, value in zip(model.variables, before):
        np.testing.assert_array_equal(to_numpy(variable), value)
    mean, variance = (
        to_numpy(v) for v in (norm.moving_mean, norm.moving_variance)
    )
    inputs = x @ to_numpy(model.get_layer("matrix").kernel)
    expected = (inputs - mean) / np.sqrt(variance + _EPSILON)
    expected = expected * to_numpy(norm.gamma) + to_numpy(norm.beta)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"axis": 0}, "`axis` must be an integer.*Received: axis=0"),
        ({"axis": [1, 2]}, r"`axis` must be an integer.*axis=\[1, 2\]"),
        (
            {"forward_decay": 1.0},
            r"`forward_decay` must be a number in \[0, 1\)",
        ),
        ({"backward_decay": -0.1}, "Received: backward_decay=-0.1"),
        ({"epsilon": 0}, "`epsilon` must be a positive number.*epsilon=0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        OnlineNormalization(**arguments)


def test_bad_shapes():
    for axis in (2, -2):
        with pytest.raises(ValueError, match=f"Received: axis={axis}"):
            OnlineNormalization(axis=axis).build((None, 3))
    with pytest.raises(ValueError, match="number of features must be known"):
        OnlineNormalization().build((None, 3, None))
