"""The loss of a model, its gradients and second derivatives."""

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity.diagnosis import differentiation
from keras_plasticity.weights import weights_of
from tests.diagnosis.differences import flat
from tests.diagnosis.differences import gradient_of
from tests.diagnosis.differences import hessian_of
from tests.diagnosis.differences import values_of
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import mostly_slow
from tests.helpers import to_numpy

pytestmark = pytest.mark.usefixtures("fast_compilation")


def _model():
    """Batch statistics, noise, regularizers, and losses that layers add."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, "tanh", kernel_regularizer="l2"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5, seed=1),
            keras.layers.ActivityRegularization(l2=0.1),
            keras.layers.Dense(3),
        ]
    )
    model.compile("sgd", "mse")
    return model


def _loss(weights, x, y):
    """By hand, in float64."""
    kernel, bias, gamma, beta, last_kernel, last_bias = weights
    hidden = np.tanh(x @ kernel + bias)
    # The statistics are those of a layer that has seen nothing.
    normalized = gamma * hidden / np.sqrt(1.0 + 1e-3) + beta
    outputs = normalized @ last_kernel + last_bias
    # Keras divides by the number of examples here.
    activity = 0.1 * np.sum(normalized**2) / len(x)
    penalty = 0.01 * np.sum(kernel**2)
    return np.mean((outputs - y) ** 2) + activity + penalty


@pytest.mark.parametrize("batch_size", mostly_slow([None, 3], 3))
def test_derivatives_are_those_of_the_loss_by_hand(batch_size):
    model = _model()
    x, y = make_data(7)
    derivatives = differentiation.Differentiation(model)
    rng = np.random.default_rng(0)
    for _ in range(2):
        weights = values_of(model)
        loss = derivatives.loss(x, y, batch_size)
        assert loss == pytest.approx(_loss(weights, x, y), rel=1e-5)
        same, gradients = derivatives.loss_and_gradients(x, y, batch_size)
        assert same == pytest.approx(loss, rel=1e-6)
        expected = gradient_of(_loss, weights, x, y)
        np.testing.assert_allclose(flat(gradients), expected, atol=1e-5)
        vectors = [rng.normal(0, 1, w.shape) for w in weights]
        products = derivatives.hessian_vector_product(x, y, vectors, batch_size)
        expected = hessian_of(_loss, weights, x, y) @ flat(vectors)
        np.testing.assert_allclose(flat(products), expected, atol=1e-4)
        assert [w.shape for w in weights] == [p.shape for p in products]
        # What the weights are is not a part of what was compiled.
        for v in weights_of(model):
            v.assign(v + 0.1)


def _state(model):
    variables = [*model.variables, *model.metrics_variables]
    variables += model.optimizer.variables
    return [to_numpy(v) for v in variables], [
        float(ops.convert_to_numpy(n)) for n in model.losses
    ]


def test_nothing_changes():
    model = _model()
    x, y = make_data(8)
    model.fit(x, y, verbose=0)
    model(x, training=True)  # Whose losses are still to be read.
    before, losses_before = _state(model)
    derivatives = differentiation.Differentiation(model)
    derivatives.loss(x, y)
    derivatives.loss_and_gradients(x, y)
    derivatives.training_gradients(x, y, weights_of(model))
    derivatives.hessian_vector_product(x, y, values_of(model))
    after, losses_after = _state(model)
    for a, b in zip(after, before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert losses_after == losses_before
    model.fit(x, y, verbose=0)


def test_training_gradients_are_those_of_a_step():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5, seed=3),
            keras.layers.Dense(3, kernel_regularizer="l2"),
        ]
    )
    model.compile(keras.optimizers.SGD(1.0), "mse")
    x, y = make_data(8)
    before = values_of(model)
    derivatives = differentiation.Differentiation(model)
    weights = weights_of(model)
    gradients = derivatives.training_gradients(x, y, weights)
    # The same dropout again, and of some weights alone.
    again = derivatives.training_gradients(x, y, weights[::-1])[::-1]
    (last,) = derivatives.training_gradients(x, y, weights[-1:])
    np.testing.assert_array_equal(to_numpy(last), to_numpy(gradients[-1]))
    model.train_on_batch(x, y)
    after = values_of(model)
    for gradient, same, old, new in zip(
        gradients, again, before, after, strict=True
    ):
        np.testing.assert_allclose(to_numpy(gradient), old - new, atol=1e-5)
        np.testing.assert_allclose(
            to_numpy(gradient), to_numpy(same), rtol=1e-5, atol=1e-7
        )
    _, inference = derivatives.loss_and_gradients(x, y)
    assert not np.allclose(to_numpy(gradients[0]), inference[0], atol=1e-3)


@pytest.mark.parametrize("method", ["loss_and_gradients", "training"])
def test_small_gradients_do_not_underflow(method):
    def gradients(policy):
        keras.utils.set_random_seed(0)
        layers = [
            keras.layers.Dense(20, activation="tanh", dtype=policy),
            keras.layers.Dense(8000, dtype=policy),
        ]
        model = keras.Sequential([keras.Input((4,)), *layers])
        optimizer = keras.optimizers.SGD()
        if policy == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model.compile(optimizer, "mse")
        x = rng.normal(size=(256, 4)).astype("float32")
        y = np.zeros((256, 8000), "float32")
        derivatives = differentiation.Differentiation(model)
        if method == "training":
            found = derivatives.training_gradients(x, y, weights_of(model))
            return flat([to_numpy(each) for each in found])
        return flat(derivatives.loss_and_gradients(x, y)[1])

    rng = np.random.default_rng(0)
    expected = gradients("float32")
    rng = np.random.default_rng(0)
    actual = gradients("mixed_float16")
    assert np.abs(actual).min() > 0.0
    np.testing.assert_allclose(
        actual, expected, rtol=0.02, atol=0.02 * np.abs(expected).mean()
    )


def test_what_has_changed_is_seen():
    model = _model()
    x, y = make_data(6)
    derivatives = differentiation.Differentiation(model)
    size = sum(w.size for w in values_of(model))
    assert flat(derivatives.loss_and_gradients(x, y)[1]).size == size
    # Other targets, other statistics.
    assert derivatives.loss(x, y + 1) != derivatives.loss(x, y)
    loss = derivatives.loss(x, y)
    model.layers[1].moving_mean.assign(ops.ones(5))
    assert derivatives.loss(x, y) != loss
    model.layers[1].moving_mean.assign(ops.zeros(5))
    # Other weights that are trained.
    model.layers[0].trainable = False
    size -= 4 * 5 + 5
    assert flat(derivatives.loss_and_gradients(x, y)[1]).size == size
    # Another loss.
    model.compile("sgd", "mae")
    assert derivatives.loss(x, y) != loss
    assert derivatives.loss(x, y) == pytest.approx(
        model.evaluate(x, y, verbose=0), rel=1e-5
    )


def test_values_stay_with_their_variables_once_a_layer_is_frozen():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, "tanh"),
            keras.layers.LayerNormalization(),
            keras.layers.LayerNormalization(),
        ]
    )
    model.compile("sgd", "mse")
    # Of one shape, so that nothing fails where they are mixed.
    model.layers[1].gamma.assign(np.full(5, 0.1))
    model.layers[2].gamma.assign(np.full(5, 3.0))
    x, _ = make_data(6)
    derivatives = differentiation.Differentiation(model)
    gradients = []
    for trainable in (True, False, True):
        model.layers[1].trainable = trainable
        arguments = x, ops.ones((6, 5)), [model.layers[0].kernel]
        (gradient,) = derivatives.training_gradients(*arguments)
        gradients.append(to_numpy(gradient))
    for other in gradients[1:]:
        np.testing.assert_allclose(other, gradients[0], rtol=1e-5)


def test_a_frozen_normalization_is_seen():
    model = _model()
    x, y = make_data(6)
    gradients = []
    for derivatives in (differentiation.Differentiation(model),) * 2:
        kernel = model.layers[0].kernel
        (gradient,) = derivatives.training_gradients(x, y, [kernel])
        gradients.append(to_numpy(gradient))
        model.layers[1].trainable = False
    new = differentiation.Differentiation(model)
    (expected,) = new.training_gradients(x, y, [kernel])
    np.testing.assert_allclose(gradients[1], to_numpy(expected), rtol=1e-5)


def test_a_loss_of_ones_own_is_seen_after_each_compilation():
    class Model(keras.Sequential):
        factor = 1.0

        def compute_loss(self, x, y, outputs, *arguments, training=True):
            return self.factor * ops.mean(ops.square(outputs - y))

    model = Model([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("sgd")
    x, y = make_data(6)
    derivatives = differentiation.differentiation_of(model)
    loss = derivatives.loss(x, y)
    model.factor = 3.0
    model.compile("sgd")
    assert derivatives.loss(x, y) == pytest.approx(3 * loss, rel=1e-5)


@keras.saving.register_keras_serializable(package="tests")
class _CountsTraces(keras.layers.Layer):
    calls = 0

    def call(self, x):
        type(self).calls += 1
        return x


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="PyTorch compiles nothing"
)
def test_it_is_compiled_once():
    model = keras.Sequential(
        [keras.Input((4,)), _CountsTraces(), keras.layers.Dense(3)]
    )
    model.compile("sgd", "mse")
    x, y = make_data(6)
    derivatives = differentiation.differentiation_of(model)
    derivatives.loss_and_gradients(x, y)
    calls = _CountsTraces.calls
    for _ in range(3):
        model.layers[1].kernel.assign(model.layers[1].kernel + 1.0)
        derivatives = differentiation.differentiation_of(model)
        derivatives.loss_and_gradients(x, y)
    assert _CountsTraces.calls == calls


def test_a_model_that_is_done_with_is_not_kept():
    model = _model()
    x, y = make_data(6)
    derivatives = differentiation.differentiation_of(model)
    assert differentiation.differentiation_of(model) is derivatives
    derivatives.loss_and_gradients(x, y)
    reference = weakref.ref(derivatives)
    del model, derivatives
    gc.collect()
    assert reference() is None


def _two_losses():
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    both = keras.layers.Concatenate()([a, b])
    outputs = {
        "p": keras.layers.Dense(2, name="p")(both),
        "q": keras.layers.Dense(1, name="q")(both),
    }
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile(
        "sgd", {"p": "mse", "q": "mae"}, loss_weights={"p": 2.0, "q": 0.5}
    )
    return model


def test_several_inputs_and_losses():
    model = _two_losses()
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(0, 1, (5, 2)), "b": rng.normal(0, 1, (5, 3))}
    y = {"p": rng.normal(0, 1, (5, 2)), "q": rng.normal(0, 1, (5, 1))}
    derivatives = differentiation.Differentiation(model)
    loss, gradients = derivatives.loss_and_gradients(x, y, batch_size=2)
    inputs = np.concatenate([x["a"], x["b"]], axis=1)
    p = inputs @ to_numpy(model.get_layer("p").kernel) - y["p"]
    q = inputs @ to_numpy(model.get_layer("q").kernel) - y["q"]
    expected = 2.0 * np.mean(p**2) + 0.5 * np.mean(np.abs(q))
    assert loss == pytest.approx(expected, rel=1e-5)
    by_shape = {g.shape: g for g in gradients}
    np.testing.assert_allclose(
        by_shape[(5, 2)], 2.0 * inputs.T @ p / 5, rtol=1e-4
    )
    np.testing.assert_allclose(
        by_shape[(5, 1)], 0.5 * inputs.T @ np.sign(q) / 5, rtol=1e-4
    )
    # The model is trained afterwards as if nothing had been.
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)


def test_embeddings_and_weights_without_a_gradient():
    tokens, unused = keras.Input((3,), dtype="int32"), keras.Input((2,))
    embedded = keras.layers.Embedding(6, 2)(tokens)
    outputs = keras.layers.Dense(1)(keras.layers.Flatten()(embedded))
    spare = keras.layers.Dense(4)
    model = keras.Model([tokens, unused], outputs)
    spare.build((None, 2))
    model.spare = spare  # In no path to the loss.
    model.compile("sgd", "mse")
    x = [np.array([[0, 1, 1], [2, 0, 5]]), np.zeros((2, 2))]
    y = np.ones((2, 1))
    derivatives = differentiation.Differentiation(model)
    loss, gradients = derivatives.loss_and_gradients(x, y)
    by_shape = {g.shape: g for g in gradients}
    assert not by_shape[(2, 4)].any() and not by_shape[(4,)].any()
    used = np.any(by_shape[(6, 2)] != 0.0, axis=1)
    np.testing.assert_array_equal(used, [True, True, True, False, False, True])
    vectors = [np.ones(v.shape) for v in weights_of(model)]
    products = derivatives.hessian_vector_product(x, y, vectors)
    # The loss is quadratic in the last kernel: H e = X^T X e / 2 and so on;
    # so that the difference quotient of the gradient is the product.
    for v, vector in zip(weights_of(model), vectors):
        v.assign(v + 1e-3 * vector)
    _, moved = derivatives.loss_and_gradients(x, y)
    for product, a, b in zip(products, moved, gradients, strict=True):
        np.testing.assert_allclose(product, (a - b) / 1e-3, atol=2e-2)


def test_convolutions_and_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = keras.Sequential(
            [
                keras.Input((6, 6, 1)),
                keras.layers.Conv2D(3, 3, activation="relu"),
                keras.layers.MaxPooling2D(),
                keras.layers.Flatten(),
                keras.layers.Dense(2, dtype="float32"),
            ]
        )
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (5, 6, 6, 1)), np.array([0, 1, 1, 0, 1])
    derivatives = differentiation.Differentiation(model)
    loss, gradients = derivatives.loss_and_gradients(x, y, 2)
    assert loss == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-2)
    assert all(g.dtype == "float32" and g.any() for g in gradients)
    products = derivatives.hessian_vector_product(x, y, gradients)
    assert all(p.dtype == "float32" and p.any() for p in products)


def test_plastic_layers_leave_their_statistics_out():
    model, plain = make_model(), make_model(layer=keras.layers.Dense)
    x, y = make_data(5)
    both = []
    for each in (model, plain):
        each.compile("sgd", "mse")
        derivatives = differentiation.Differentiation(each)
        loss, gradients = derivatives.loss_and_gradients(x, y)
        products = derivatives.hessian_vector_product(x, y, gradients)
        both.append([np.array(loss), *gradients, *products])
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_losses_without_targets():
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(2, use_bias=False)(inputs)
    outputs = keras.layers.ActivityRegularization(l2=1.0)(hidden)
    model = keras.Model(inputs, outputs)
    model.compile("sgd")
    x, _ = make_data(5)
    loss, (gradient,) = differentiation.Differentiation(
        model
    ).loss_and_gradients(x, None)
    outputs = x @ to_numpy(weights_of(model)[0])
    assert loss == pytest.approx(np.sum(outputs**2) / 5, rel=1e-5)
    np.testing.assert_allclose(gradient, 2 * x.T @ outputs / 5, rtol=1e-4)


def test_models_without_a_loss():
    x, y = make_data(3)
    model = make_model()
    derivatives = differentiation.differentiation_of(model)
    with pytest.raises(ValueError, match="compiled with a loss.*not compiled"):
        derivatives.loss(x, y)
    model.compile("sgd")
    with pytest.raises(ValueError, match="compiled with a loss.*has no loss"):
        derivatives.loss_and_gradients(x, y)
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="must be built"):
        differentiation.Differentiation(model).loss(x, y)
    for value in (3, [], None):
        with pytest.raises(TypeError, match="`model` must be"):
            differentiation.differentiation_of(value)


def test_data_that_do_not_fit():
    x, y = make_data(3)
    for model in (_model(), make_model()):
        model.compile("sgd", "mse")
        derivatives = differentiation.Differentiation(model)
        for inputs, targets in ((x[:, :3], y), (x, y[:, :2])):
            shapes = rf"\[\(3, {inputs.shape[1]}\)\].*\[\(3, {targets.shape[1]}"
            with pytest.raises(ValueError, match=f"must fit model.*{shapes}"):
                derivatives.loss(inputs, targets)
        assert derivatives.loss(x, y) > 0  # It is as good as before.


def test_a_loss_that_is_not_finite():
    model = _model()
    x, y = make_data(3)
    y[0, 0] = np.nan
    loss, gradients = differentiation.Differentiation(model).loss_and_gradients(
        x, y
    )
    assert np.isnan(loss) and np.isnan(gradients[-1]).any()


def test_the_norm_of_the_gradient():
    model = _model()
    x, y = make_data(7)
    derivatives = differentiation.Differentiation(model)
    _, gradients = derivatives.loss_and_gradients(x, y)
    norm = derivatives.gradient_norm(x, y)
    assert norm == pytest.approx(np.linalg.norm(flat(gradients)), rel=1e-5)
    # Squares that float32 does not hold.
    model.compile("sgd", "mse", loss_weights=1e25)
    large = derivatives.gradient_norm(x, y)
    _, gradients = derivatives.loss_and_gradients(x, y)
    gradients = flat(gradients).astype("float64")
    assert large == pytest.approx(np.linalg.norm(gradients), rel=1e-5)
    # No gradient.
    model = make_model()
    model.compile("sgd", "mse")
    for v in weights_of(model):
        v.assign(ops.zeros(v.shape))
    x, y = np.ones((3, 4)), np.zeros((3, 3))
    assert differentiation.Differentiation(model).gradient_norm(x, y) == 0.0


def test_gradients_that_overflow_at_the_scale_of_the_optimizer():
    x, y = make_data(8)
    y = 1e3 * y

    def gradients(policy):
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            model = make_model(layer=keras.layers.Dense, seed=1)
            model.compile("sgd", "mse")
            found = differentiation.Differentiation(model)
            norm = found.gradient_norm(x, y)
            return norm, flat(found.loss_and_gradients(x, y)[1])
        finally:
            keras.config.set_dtype_policy(before)

    norm, actual = gradients("mixed_float16")
    expected_norm, expected = gradients("float32")
    assert np.abs(expected).max() * 2.0**15 > 2.0**16
    np.testing.assert_allclose(norm, expected_norm, rtol=0.01)
    np.testing.assert_allclose(actual, expected, atol=0.01 * expected_norm)


def test_what_is_not_finite_at_any_scale_is_told():
    tried = []

    def compute(scale):
        tried.append(float(scale))
        return [ops.array([1.0, np.inf])]

    differentiation._at_a_scale_that_fits(compute, ops.array(40.0), True)
    assert tried == [40.0, 2.5, 1.0]


def test_gradients_of_the_output_of_each_example():
    model = make_model(layer=keras.layers.Dense, dims=(4, 5, 1))
    x, _ = make_data(6)
    gradients = differentiation.Differentiation(model).output_gradients(x)

    def output(weights, x, y):
        kernel, bias, last_kernel, last_bias = weights
        hidden = np.tanh(x @ kernel + bias)
        return (hidden @ last_kernel + last_bias)[0, 0]

    for row, example in zip(gradients, x, strict=True):
        expected = gradient_of(output, values_of(model), example[None], None)
        # Of one output there are two directions.
        if row @ expected < 0:
            row = -row
        np.testing.assert_allclose(row, expected, atol=1e-5)


def test_gradients_of_several_outputs():
    model = _two_losses()
    rng = np.random.default_rng(0)
    x = {"a": rng.normal(0, 1, (5, 2)), "b": rng.normal(0, 1, (5, 3))}
    rows = differentiation.Differentiation(model).output_gradients(x)
    # For each output its inputs and 1, by what it has in the direction.
    inputs = np.concatenate([x["a"], x["b"], np.ones((5, 1))], axis=1)
    assert rows.shape == (5, 3 * inputs.shape[1])
    np.testing.assert_allclose(
        rows @ rows.T, inputs @ inputs.T, rtol=1e-4, atol=1e-5
    )
