"""What is observed, and by whom, in all the ways that a step can be made."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity import layers
from keras_plasticity.optimizers import ContinualBackprop
from keras_plasticity.optimizers import ReDo
from keras_plasticity.optimizers import SelfNormalizedResets
from tests.gradients import loss_and_gradients
from tests.gradients import value_and_gradients
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import make_plain_model
from tests.helpers import mostly_on_torch
from tests.helpers import mostly_slow
from tests.helpers import to_numpy

_BACKEND = keras.backend.backend()
_MSE = keras.losses.MeanSquaredError()

pytestmark = pytest.mark.usefixtures("fast_compilation")


def _make_optimizer(rate=0.1, **kwargs):
    settings = {
        "replacement_rate": 0,
        "utility": "overall",
        "maturity_threshold": 2,
        "seed": 3,
        **kwargs,
    }
    return ContinualBackprop(keras.optimizers.SGD(rate), **settings)


def _statistics(model):
    return {
        f"{layer.name}/{name}": to_numpy(getattr(layer, name))
        for layer in model.layers
        if hasattr(layer, "statistics")
        for name in ("utility", "age", "mean_activation")
    }


def _assert_same_statistics(actual, expected, rtol=1e-5):
    actual, expected = _statistics(actual), _statistics(expected)
    assert actual.keys() == expected.keys()
    assert any(np.any(value) for value in expected.values())
    for name, value in expected.items():
        np.testing.assert_allclose(
            actual[name], value, rtol=rtol, atol=1e-7, err_msg=name
        )


def _apply(model, optimizer, gradients):
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    optimizer.apply(gradients, model.trainable_variables)


def _make_convolutional_model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, activation="relu", name="a"),
            keras.layers.Flatten(),
            layers.Dense(5, activation="relu", name="b"),
            layers.Dense(3, name="c"),
        ]
    )


_METHODS = {
    "ContinualBackprop": lambda: _make_optimizer(replacement_rate=0.2),
    "ReDo": lambda: ReDo(
        keras.optimizers.SGD(0.1), threshold=0.5, period=3, seed=3
    ),
    "SelfNormalizedResets": lambda: SelfNormalizedResets(
        keras.optimizers.SGD(0.1),
        min_threshold=4,
        initial_threshold=4,
        seed=3,
    ),
}


def _sum_of_squares(call, loss_fn, x, y):
    return ops.sum((call(x) - y) ** 2)


# Keras itself can train on an empty batch on TensorFlow only.
_BY_HAND = [True, False] if _BACKEND == "tensorflow" else [True]


def _train_on_batch(model, x, y, by_hand):
    if not by_hand:
        model.train_on_batch(x, y)
        return
    _, gradients = value_and_gradients(model, _sum_of_squares, _MSE, x, y)
    _apply(model, model.optimizer, gradients)


class TestNoExamples:
    @pytest.mark.parametrize("by_hand", _BY_HAND)
    @pytest.mark.parametrize(
        "method", mostly_on_torch(sorted(_METHODS), "ContinualBackprop")
    )
    @pytest.mark.parametrize(
        "kind",
        # TensorFlow's own convolution fails on an empty batch on a CPU.
        ["dense"]
        + [pytest.param("convolutional", marks=pytest.mark.slow)]
        * (_BACKEND != "tensorflow"),
    )
    def test_changes_nothing(self, method, kind, by_hand):
        if kind == "dense":
            x, y = make_data(24)
            models = [make_model(activation="relu") for _ in range(2)]
        else:
            rng = np.random.default_rng(0)
            x = rng.normal(0, 1, (24, 6, 6, 2)).astype("float32")
            y = rng.normal(0, 1, (24, 3)).astype("float32")
            models = [_make_convolutional_model() for _ in range(2)]
        for model, with_empty in zip(models, (False, True)):
            model.compile(_METHODS[method](), "mse")
            for i in range(0, 24, 4):
                _train_on_batch(model, x[i : i + 4], y[i : i + 4], by_hand)
                if with_empty:
                    _train_on_batch(model, x[:0], y[:0], by_hand)
        assert sum(models[0].optimizer.num_replaced().values()) > 0
        assert (
            models[0].optimizer.num_replaced()
            == models[1].optimizer.num_replaced()
        )
        for v, w in zip(models[0].weights, models[1].weights):
            np.testing.assert_array_equal(to_numpy(v), to_numpy(w), v.path)
        _assert_same_statistics(*models, rtol=0)

    @pytest.mark.parametrize("by_hand", _BY_HAND)
    def test_in_the_first_update(self, by_hand):
        model = make_model()
        model.compile(_make_optimizer(), "mse")
        x, y = make_data(4)
        _train_on_batch(model, x[:0], y[:0], by_hand)
        assert all(np.all(v == 0) for v in _statistics(model).values())
        _train_on_batch(model, x, y, by_hand)
        twin = make_model()
        twin.compile(_make_optimizer(), "mse")
        _train_on_batch(twin, x, y, by_hand)
        _assert_same_statistics(model, twin)

    def test_among_accumulated_steps(self):
        x, y = make_data(12)
        models = []
        for sizes in ((6, 6), (6, 0)):
            model = make_model()
            inner = keras.optimizers.SGD(0.0, gradient_accumulation_steps=2)
            optimizer = ContinualBackprop(inner, replacement_rate=0)
            model.compile(optimizer, "mse")
            for size in sizes:
                _train_on_batch(model, x[:size], y[:size], by_hand=True)
            models.append(model)
        _assert_same_statistics(*models)


class TestNotFinite:
    @pytest.mark.parametrize(
        "value", mostly_on_torch([np.inf, -np.inf, np.nan], np.inf)
    )
    @pytest.mark.parametrize(
        "utility",
        mostly_slow(["overall", "contribution", "weight_magnitude"], "overall"),
    )
    def test_never_enters_a_mean_and_is_told_once(self, value, utility):
        model = make_model()
        optimizer = _make_optimizer(utility=utility)
        for step in range(4):
            _, gradients = loss_and_gradients(model, _MSE, *make_data(4))
            if step == 2:
                before = _statistics(model)
                gradients = [
                    self._poison(g, value) if v.name.endswith("_sum") else g
                    for g, v in zip(gradients, model.trainable_variables)
                ]
            _apply(model, optimizer, gradients)
            if step == 2:
                after = _statistics(model)
        for name, statistic in after.items():
            assert np.all(np.isfinite(statistic)), name
            if name.startswith("layer_0") and not name.endswith("age"):
                # Of the unit, nothing was learnt.
                is_kept = utility != "weight_magnitude" or "mean" in name
                assert (statistic[1] == before[name][1]) == is_kept, name
                assert np.all(statistic[2:] != before[name][2:]), name
        told = "infinite or not a number.*Received by: layer_1, layer_2.*Look"
        with pytest.warns(UserWarning, match=told):
            optimizer.num_replaced()
        optimizer.num_replaced()  # A second warning would be an error.

    @staticmethod
    def _poison(gradient, value):
        gradient = to_numpy(gradient)
        gradient[1] = value
        return ops.convert_to_tensor(gradient)

    def test_is_told_at_the_end_of_fit(self):
        model = make_model()
        model.compile(_make_optimizer(), "mse")
        x, y = make_data(8)
        x[3, 1] = np.nan
        with pytest.warns(UserWarning, match="infinite or not a number"):
            model.fit(x, y, batch_size=4, verbose=0)


@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")
class TestHeads:
    """One head for each task, of one shared body."""

    @staticmethod
    def _make(num_heads=3, layer=layers.Dense):
        inputs = keras.Input((4,))
        hidden = layer(6, activation="relu", name="a")(inputs)
        hidden = layer(5, activation="relu", name="b")(hidden)
        heads = [layer(3, name=f"head_{i}")(hidden) for i in range(num_heads)]
        model = keras.Model(inputs, heads)
        rng = np.random.default_rng(0)
        for each in model.layers[1:]:
            each.kernel.assign(rng.normal(0, 1, each.kernel.shape))
        return model

    @pytest.mark.parametrize("task", mostly_on_torch([0, 1, 2], 1))
    def test_only_the_trained_head_speaks(self, task):
        x, y = make_data(24)
        model = self._make()
        loss = [None] * 3
        loss[task] = "mse"
        model.compile(_make_optimizer(), loss)
        single = keras.Sequential(
            [keras.Input((4,)), layers.Dense(6, "relu", name="a")]
            + [layers.Dense(5, "relu", name="b"), layers.Dense(3, name="c")]
        )
        twins = [model.get_layer(n) for n in ("a", "b", f"head_{task}")]
        for layer, twin in zip(single.layers, twins):
            layer.set_weights(twin.get_weights())
        single.compile(_make_optimizer(), "mse")
        for i in range(0, 24, 4):
            model.train_on_batch(x[i : i + 4], [y[i : i + 4]] * 3)
            single.train_on_batch(x[i : i + 4], y[i : i + 4])
        for name in ("a", "b"):
            layer, twin = model.get_layer(name), single.get_layer(name)
            np.testing.assert_array_equal(to_numpy(layer.age), 6)
            for statistic in ("utility", "mean_activation"):
                np.testing.assert_allclose(
                    to_numpy(getattr(layer, statistic)),
                    to_numpy(getattr(twin, statistic)),
                    rtol=1e-5,
                    err_msg=f"{name}/{statistic}",
                )

    def test_sequence_of_tasks(self):
        model = self._make()
        optimizer = _make_optimizer(replacement_rate=0.2)
        heads = [model.get_layer(f"head_{i}") for i in range(3)]
        num_before = 0
        for task in range(3):
            untrained = [h for i, h in enumerate(heads) if i != task]
            before = [to_numpy(h.bias) for h in untrained]
            loss = [None] * 3
            loss[task] = "mse"
            model.compile(optimizer, loss)
            x, y = make_data(40, seed=task)
            model.fit(x, [y] * 3, batch_size=4, verbose=0)
            num_replaced = sum(optimizer.num_replaced().values())
            assert num_replaced > num_before
            num_before = num_replaced
            for head, bias in zip(untrained, before):
                np.testing.assert_array_equal(to_numpy(head.bias), bias)
            # A unit begins anew for all tasks.
            (new,) = np.nonzero(to_numpy(model.get_layer("b").age) == 0)
            assert new.size
            for head in heads:
                np.testing.assert_array_equal(to_numpy(head.kernel)[new], 0)
                # The first of its activations is the mean of them.
                for variable in (
                    head.statistics.running_mean,
                    head.statistics.shrinkage,
                )[head not in untrained :]:
                    np.testing.assert_array_equal(to_numpy(variable)[new], 0)

    def test_a_model_for_each_task(self):
        whole = self._make()
        optimizer = _make_optimizer(replacement_rate=0.1)
        optimizer.build(whole.trainable_variables)
        for task in range(3):
            model = keras.Model(whole.inputs[0], whole.outputs[task])
            for seed in range(8):
                x, y = make_data(4, seed=10 * task + seed)
                _, gradients = loss_and_gradients(model, _MSE, x, y)
                optimizer.apply(gradients, model.trainable_variables)
        # Heads that are not trained now are never changed, so nor are those
        # whose units they read; their own statistics go on.
        replaced = optimizer.num_replaced()
        assert replaced["a"] > 0 and replaced["b"] == 0


@pytest.mark.skipif(
    _BACKEND == "jax", reason="Keras refuses another number of variables"
)
@pytest.mark.parametrize("frozen", ["layer_0", "layer_1", "layer_2"])
def test_layers_frozen_later(frozen):
    names = ["layer_0", "layer_1", "layer_2"]
    model = make_model(activation="relu")
    optimizer = _make_optimizer(replacement_rate=0.2)
    model.compile(optimizer, "mse")
    data = make_data(24)
    model.fit(*data, batch_size=4, verbose=0)
    before = optimizer.num_replaced()
    assert min(before.values()) > 0
    layer = model.get_layer(frozen)
    layer.trainable = False
    values = [to_numpy(v) for v in (layer.kernel, layer.bias)]
    model.compile(optimizer, "mse")
    model.fit(*data, batch_size=4, epochs=2, verbose=0)
    for value, variable in zip(values, (layer.kernel, layer.bias)):
        np.testing.assert_array_equal(value, to_numpy(variable))
    # Nor are those replaced whose units it reads.
    spared = (
        {frozen, names[names.index(frozen) - 1]}
        if frozen != names[0]
        else {frozen}
    )
    after = optimizer.num_replaced()
    for name, number in before.items():
        assert (after[name] == number) == (name in spared), name
    # And they go on when it is thawed.
    layer.trainable = True
    model.compile(optimizer, "mse")
    model.fit(*data, batch_size=4, epochs=2, verbose=0)
    assert all(
        number > after[name]
        for name, number in optimizer.num_replaced().items()
    )


@pytest.mark.skipif(
    _BACKEND == "jax", reason="Keras refuses another number of variables"
)
def test_normalization_frozen_later():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(6),
            keras.layers.LayerNormalization(
                gamma_initializer="random_normal", name="normalization"
            ),
            keras.layers.ReLU(),
            layers.Dense(3),
        ]
    )
    optimizer = _make_optimizer(replacement_rate=0.2)
    model.compile(optimizer, "mse")
    data = make_data(24)
    model.fit(*data, batch_size=4, verbose=0)
    layer = model.get_layer("normalization")
    layer.trainable = False
    gamma, before = to_numpy(layer.gamma), optimizer.num_replaced()
    model.compile(optimizer, "mse")
    model.fit(*data, batch_size=4, verbose=0)
    assert sum(optimizer.num_replaced().values()) > sum(before.values())
    np.testing.assert_array_equal(to_numpy(layer.gamma), gamma)


class TestByHand:
    """Loops by hand see the weights and gradients of the plain twin."""

    @staticmethod
    def _norm(values):
        return np.sqrt(
            sum(np.sum(np.square(to_numpy(v))) for v in values if v is not None)
        )

    def _trained(self, num=20, **kwargs):
        model = make_model(**kwargs)
        optimizer = _make_optimizer()
        for seed in range(num):
            _, gradients = loss_and_gradients(
                model, _MSE, *make_data(4, seed=seed)
            )
            _apply(model, optimizer, gradients)
        for layer in model.layers:
            layer.age.assign(np.full(layer.age.shape, 1e7))
        return model, optimizer

    @pytest.mark.parametrize("batch_size", mostly_on_torch([1, 1000], 1000))
    def test_norms(self, batch_size):
        model, _ = self._trained()
        plain = make_plain_model()
        plain.set_weights(
            [to_numpy(v) for v in keras_plasticity.weights_of(model)]
        )
        data = make_data(batch_size)
        _, gradients = loss_and_gradients(model, _MSE, *data)
        _, expected = loss_and_gradients(plain, _MSE, *data)
        assert self._norm(gradients) == pytest.approx(
            self._norm(expected), rel=1e-4
        )
        assert self._norm(model.trainable_variables) == pytest.approx(
            self._norm(plain.trainable_variables), rel=1e-4
        )

    def test_norms_of_a_plain_optimizer(self):
        # It stores what travels.
        model = make_model()
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(*make_data(24), verbose=0)
        values = keras_plasticity.weights_of(model)
        assert self._norm(model.trainable_variables) == pytest.approx(
            self._norm(values), rel=1e-6
        )

    @pytest.mark.parametrize(
        "factor", mostly_on_torch([1e-4, 0.5, 3.0, 65536.0], 1e-4)
    )
    def test_common_factor(self, factor):
        models = []
        for number in (1.0, factor):
            model = make_model()
            optimizer = _make_optimizer(rate=0.0)
            for seed in range(5):
                _, gradients = loss_and_gradients(
                    model, _MSE, *make_data(4, seed=seed)
                )
                _apply(model, optimizer, [number * g for g in gradients])
            models.append(model)
        _assert_same_statistics(*models)

    @pytest.mark.parametrize(
        "method", mostly_on_torch(["ReDo", "SelfNormalizedResets"], "ReDo")
    )
    def test_common_factor_in_other_methods(self, method):
        replaced = []
        for factor in (1.0, 1e-3):
            model = make_model(activation="relu")
            optimizer = _METHODS[method]()
            optimizer.learning_rate = 0.0
            for seed in range(6):
                _, gradients = loss_and_gradients(
                    model, _MSE, *make_data(3, seed=seed)
                )
                _apply(model, optimizer, [factor * g for g in gradients])
            replaced.append(optimizer.num_replaced())
        assert replaced[0] == replaced[1]
        assert sum(replaced[0].values()) > 0

    def test_sum_over_parts_of_a_batch(self):
        x, y = make_data(10)
        models = []
        for parts in ([slice(None)], [slice(3), slice(3, 10)]):
            model = make_model()
            # The deviation is from the mean of a part.
            optimizer = _make_optimizer(rate=0.0, utility="contribution")
            total = None
            for part in parts:
                _, gradients = loss_and_gradients(model, _MSE, x[part], y[part])
                gradients = [to_numpy(g) for g in gradients]
                if total is not None:
                    gradients = [a + b for a, b in zip(total, gradients)]
                total = gradients
            _apply(model, optimizer, [ops.convert_to_tensor(g) for g in total])
            models.append(model)
        _assert_same_statistics(*models)

    def test_weights_of(self):
        model, plain = make_model(), make_plain_model()
        found = keras_plasticity.weights_of(model)
        assert [(v.name, v.shape) for v in found] == [
            (v.name, v.shape) for v in plain.trainable_variables
        ]
        model.layers[1].trainable = False
        assert len(keras_plasticity.weights_of(model)) == len(found) - 2
        assert keras_plasticity.weights_of(plain) == plain.trainable_variables
        assert keras_plasticity.weights_of(model.layers[0]) == found[:2]

    @pytest.mark.parametrize("value", [5, None, "model", [1]])
    def test_weights_of_no_model(self, value):
        with pytest.raises(TypeError, match="must be a Keras layer or model"):
            keras_plasticity.weights_of(value)


def _sum_of_two_calls(call, loss_fn, x, y, other):
    return loss_fn(y, call(x)) + loss_fn(call(other), call(x))


class TestCalledSeveralTimes:
    @pytest.mark.parametrize(
        "transfer_mean", mostly_on_torch([False, True], True)
    )
    def test_mean_over_calls(self, transfer_mean):
        x, y = make_data(6)
        other, _ = make_data(6, seed=9)
        joined = np.concatenate([x, other, x])
        models = []
        for is_joined in (False, True):
            model = make_model()
            optimizer = _make_optimizer(
                0.0,
                utility="contribution",
                replacement_rate=0.2,
                transfer_mean=transfer_mean,
            )
            for _ in range(6):
                if is_joined:
                    _, gradients = loss_and_gradients(
                        model, _MSE, joined, np.zeros((18, 3), "float32")
                    )
                else:
                    _, gradients = value_and_gradients(
                        model, _sum_of_two_calls, _MSE, x, y, other
                    )
                _apply(model, optimizer, gradients)
            assert min(optimizer.num_replaced().values()) > 0
            models.append(model)
        _assert_same_statistics(*models)
        for v, w in zip(models[0].weights, models[1].weights):
            np.testing.assert_allclose(
                to_numpy(v), to_numpy(w), atol=1e-6, err_msg=v.path
            )

    def test_plain_optimizer(self):
        x, y = make_data(6)
        other, _ = make_data(6, seed=9)
        model = make_model()
        optimizer = keras.optimizers.SGD(0.01)
        for _ in range(30):
            _, gradients = value_and_gradients(
                model, _sum_of_two_calls, _MSE, x, y, other
            )
            _apply(model, optimizer, gradients)
        for layer in model.layers:
            for variable in layer.statistics.variables:
                assert np.all(np.abs(to_numpy(variable)) < 1e-15)


class TestInference:
    """With `training=False` a plastic model is its plain twin."""

    def test_nothing_is_observed(self):
        model = make_model()

        def loss(call, loss_fn, x, y):
            return loss_fn(y, model(x, training=False))

        if _BACKEND == "jax":
            pytest.skip("the same as the test of derivatives")
        _, gradients = value_and_gradients(model, loss, _MSE, *make_data(4))
        for variable, gradient in zip(model.trainable_variables, gradients):
            is_weight = any(
                variable is v for v in keras_plasticity.weights_of(model)
            )
            assert (gradient is not None) == is_weight

    @staticmethod
    def _functions(models, training=False):
        def make(model):
            variables = keras_plasticity.weights_of(model)

            def function(values, x):
                mapping = list(zip(variables, values))
                with keras.StatelessScope(state_mapping=mapping):
                    return model(x, training=training)

            return function, [v.value for v in variables]

        return [make(model) for model in models]

    @pytest.mark.skipif(_BACKEND != "jax", reason="transformations of JAX")
    def test_derivatives_on_jax(self):
        import jax

        x = make_data(3)[0]
        results = []
        for function, values in self._functions(
            [make_model(), make_plain_model()]
        ):

            def scalar(values, x):
                return ops.sum(function(values, x) ** 2)

            results.append(
                [
                    jax.jvp(lambda x: function(values, x), (x,), (x,)),
                    jax.jacfwd(function)(values, x),
                    jax.jacrev(function)(values, x),
                    jax.hessian(scalar)(values, x),
                    jax.vmap(jax.grad(scalar), (None, 0))(values, x[:, None]),
                ]
            )
        plastic, plain = map(jax.tree.leaves, results)
        assert len(plastic) == len(plain)
        for a, b in zip(plastic, plain):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    @pytest.mark.skipif(
        _BACKEND != "torch", reason="transformations of PyTorch"
    )
    @pytest.mark.filterwarnings("ignore:`torch.jit.script`")
    @pytest.mark.parametrize("training", [False, None, True])
    def test_derivatives_on_torch(self, training):
        import torch
        from torch.func import functional_call

        x = torch.as_tensor(make_data(3)[0], device="cpu")
        results = []
        for model in (make_model(), make_plain_model()):
            parameters = {
                name: p
                for name, p in model.named_parameters()
                if name.endswith(("kernel", "bias"))
            }

            def function(parameters, x):
                return functional_call(
                    model, parameters, (x,), {"training": training}
                )

            def scalar(parameters, x):
                return function(parameters, x).square().sum()

            by_example = torch.func.vmap(torch.func.grad(scalar), (None, 0))
            results.append(
                [
                    torch.func.jacrev(lambda x: function(parameters, x))(x),
                    torch.func.jacfwd(lambda x: function(parameters, x))(x),
                    torch.func.jvp(
                        lambda x: function(parameters, x), (x,), (x,)
                    ),
                    torch.func.hessian(lambda x: scalar(parameters, x))(x),
                    list(by_example(parameters, x[:, None]).values()),
                ]
            )
        plastic, plain = map(keras.tree.flatten, results)
        assert len(plastic) == len(plain)
        for a, b in zip(plastic, plain):
            np.testing.assert_allclose(
                to_numpy(a), to_numpy(b), rtol=1e-5, atol=1e-6
            )

    @pytest.mark.skipif(_BACKEND != "tensorflow", reason="tapes of TensorFlow")
    def test_derivatives_on_tensorflow(self):
        import tensorflow as tf

        x = tf.constant(make_data(3)[0])
        results = []
        for model in (make_model(), make_plain_model()):
            kernel = keras_plasticity.weights_of(model)[0].value
            with tf.GradientTape(persistent=True) as outer:
                outer.watch(x)
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    outputs = model(x, training=False)
                    loss = tf.reduce_sum(outputs**2)
                gradient = inner.gradient(loss, x)
            with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as forward:
                y = model(x, training=False)
            results.append(
                [
                    outer.jacobian(outputs, kernel),
                    outer.jacobian(gradient, x),
                    forward.jvp(y),
                ]
            )
        for a, b in zip(*results):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
