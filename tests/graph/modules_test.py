"""Plastic layers that no `keras.Model` calls, in a training loop by hand."""

import warnings

import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity.layers import Dense
from tests.gradients import compiled_step
from tests.gradients import loss_and_gradients
from tests.helpers import to_numpy

pytestmark = pytest.mark.usefixtures("fast_compilation")

_BACKEND = keras.backend.backend()

if _BACKEND == "torch":
    import torch

    _Base = torch.nn.Module
elif _BACKEND == "tensorflow":
    import tensorflow as tf

    _Base = tf.Module
else:
    _Base = object

_X = np.random.default_rng(1).normal(size=(40, 4)).astype("float32")
_Y = np.sin(_X[:, :3] + _X[:, 1:])
_MSE = keras.losses.MeanSquaredError()


class Module(_Base):
    """A module of the backend's own, or on JAX a function, of some layers.

    Args:
        **layers: The layers, by name. A subclass calls them in `run`.
    """

    def __init__(self, **layers):
        super().__init__()
        self._names = tuple(layers)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self(_X[:1])

    @property
    def layers(self):
        return [getattr(self, name) for name in self._names]

    @property
    def trainable_variables(self):
        return [v for layer in self.layers for v in layer.trainable_variables]

    @property
    def non_trainable_variables(self):
        return []

    def run(self, call, x):
        """Calls the layers, each by `call(layer, x)`."""
        raise NotImplementedError

    def __call__(self, x, training=None):
        x = keras.ops.convert_to_tensor(x)
        return self.run(lambda layer, x: layer(x, training=training), x)

    def stateless_call(self, values, other_values, x, training=None):
        variables = self.trainable_variables
        values = dict(zip(map(id, variables), values))

        def call(layer, x):
            own = [values[id(v)] for v in layer.trainable_variables]
            outputs, _ = layer.stateless_call(own, [], x, training=training)
            return outputs

        return self.run(call, x), other_values


class Chain(Module):
    def run(self, call, x):
        return call(self.c, call(self.b, call(self.a, x)))


class Branches(Module):
    """`a` is read by `b` and `c`, and these by `d` side by side."""

    def run(self, call, x):
        x = call(self.a, x)
        x = [call(self.b, x), call(self.c, x)]
        return call(self.d, keras.ops.concatenate(x, axis=-1))


class TwoChains(Module):
    def run(self, call, x):
        x = [call(self.b, call(self.a, x)), call(self.d, call(self.c, x))]
        return keras.ops.concatenate(x, axis=-1)


class WithSequential(Module):
    def run(self, call, x):
        return call(self.c, call(self.body, x))


class TwoSequentials(Module):
    def run(self, call, x):
        return call(self.head, call(self.body, x))


def _hidden(units, name):
    return Dense(units, activation="tanh", name=name)


def _chain():
    return Chain(a=_hidden(6, "a"), b=_hidden(5, "b"), c=Dense(3, name="c"))


def _connect(*layers):
    for layer, consumer in zip(layers, layers[1:]):
        keras_plasticity.connect(layer, consumer)


def _connected_chain():
    module = _chain()
    _connect(*module.layers)
    inputs = keras.Input((4,))
    x = _hidden(5, "b")(_hidden(6, "a")(inputs))
    return module, keras.Model(inputs, Dense(3, name="c")(x))


def _connected_branches():
    a, b, c = _hidden(6, "a"), _hidden(5, "b"), _hidden(2, "c")
    # In the order of the model's graph, in which units are replaced.
    module = Branches(a=a, c=c, b=b, d=Dense(3, name="d"))
    keras_plasticity.connect(a, b)
    keras_plasticity.connect(a, c)
    keras_plasticity.connect(b, module.d, [0, 1, 2, 3, 4, -1, -1])
    keras_plasticity.connect(c, module.d, [-1] * 5 + [0, 1])
    inputs = keras.Input((4,))
    x = _hidden(6, "a")(inputs)
    x = [_hidden(5, "b")(x), _hidden(2, "c")(x)]
    x = keras.ops.concatenate(x, axis=-1)
    return module, keras.Model(inputs, Dense(3, name="d")(x))


def _two_connected_chains():
    a, c = _hidden(6, "a"), _hidden(5, "c")
    module = TwoChains(c=c, d=Dense(1, name="d"), a=a, b=Dense(2, name="b"))
    _connect(a, module.b)
    _connect(c, module.d)
    inputs = keras.Input((4,))
    x = [
        Dense(2, name="b")(_hidden(6, "a")(inputs)),
        Dense(1, name="d")(_hidden(5, "c")(inputs)),
    ]
    return module, keras.Model(inputs, keras.ops.concatenate(x, axis=-1))


def _connected_with_sequential():
    body = [_hidden(6, "a"), _hidden(5, "b")]
    module = WithSequential(
        body=keras.Sequential([keras.Input((4,)), *body]),
        c=Dense(3, name="c"),
    )
    # The other connection is in the part's own graph.
    _connect(body[1], module.c)
    return module, _connected_chain()[1]


def _two_connected_sequentials():
    body = keras.Sequential(
        [keras.Input((4,)), _hidden(6, "a"), _hidden(5, "b")]
    )
    head = keras.Sequential([keras.Input((5,)), Dense(3, name="c")])
    _connect(body.layers[1], head.layers[0])
    return TwoSequentials(body=body, head=head), _connected_chain()[1]


def _optimizer():
    return keras_plasticity.optimizers.ContinualBackprop(
        keras.optimizers.SGD(0.1, momentum=0.5),
        replacement_rate=0.1,
        maturity_threshold=2,
        seed=3,
    )


def _train(model, optimizer):
    """A loop by hand, on JAX of pure functions."""
    if _BACKEND == "jax":
        step = compiled_step(model, optimizer, _MSE)
    else:

        def step(x, y):
            _, gradients = loss_and_gradients(model, _MSE, x, y)
            optimizer.apply(gradients, model.trainable_variables)

    for i in range(0, len(_X), 4):
        step(_X[i:][:4], _Y[i:][:4])


def _plastic_layers(model):
    parts = [
        part
        for layer in model.layers
        for part in getattr(layer, "layers", [layer])
    ]
    return {part.name: part for part in parts if isinstance(part, Dense)}


def _check_same(module, model, optimizers):
    """The same weights, statistics and replacements."""
    one, other = [optimizer.num_replaced() for optimizer in optimizers]
    assert one == other and min(one.values()) > 0
    layers, expected = _plastic_layers(module), _plastic_layers(model)
    assert layers.keys() == expected.keys()
    for name, layer in layers.items():
        for kind in ("kernel", "bias", "age", "utility"):
            np.testing.assert_allclose(
                to_numpy(getattr(layer, kind)),
                to_numpy(getattr(expected[name], kind)),
                rtol=1e-5,
                atol=1e-6,
                err_msg=f"{name}/{kind}",
            )


def _copy_weights(module, model):
    for name, layer in _plastic_layers(module).items():
        _plastic_layers(model)[name].set_weights(layer.get_weights())


@pytest.mark.parametrize(
    "make",
    [
        _connected_chain,
        _connected_branches,
        _two_connected_chains,
        _connected_with_sequential,
        _two_connected_sequentials,
    ],
)
def test_trains_as_the_same_model_of_keras(make):
    module, model = make()
    _copy_weights(module, model)
    optimizers = [_optimizer(), _optimizer()]
    for each, optimizer in zip((module, model), optimizers):
        _train(each, optimizer)
    _check_same(module, model, optimizers)


def test_message_without_any_connection():
    module = _chain()
    with pytest.raises(ValueError, match=r"'a' is not part.*connect\(layer, c"):
        _train(module, _optimizer())


def test_message_of_a_layer_that_is_not_connected():
    module = _chain()
    _connect(module.b, module.c)
    with pytest.raises(ValueError, match=r"'a' cannot be followed.*connect\("):
        _optimizer().build(module.trainable_variables)
    module.a.replaceable = False
    optimizer = _optimizer()
    optimizer.build(module.trainable_variables)
    assert set(optimizer.num_replaced()) == {"b"}


def test_message_where_other_variables_are_trained():
    body = keras.Sequential([keras.Input((4,)), _hidden(6, "a"), Dense(3)])
    module = WithSequential(body=body, c=keras.layers.Dense(3))
    with pytest.raises(ValueError, match=r"'dense.*/kernel', for.*connect\("):
        _train(module, _optimizer())


def test_layers_that_read_each_other_are_judged_as_all():
    module = _chain()
    a, b, c = module.layers
    _connect(a, b, c)
    keras_plasticity.connect(c, b, [0, 1, 2, -1, -1, -1])
    b.replaceable = False
    optimizer = _optimizer()
    optimizer.build(module.trainable_variables)
    assert set(optimizer.num_replaced()) == {"a", "c"}


@pytest.mark.skipif(_BACKEND != "torch", reason="PyTorch's optimizers")
class TestOptimizersOfTorch:
    def _step(self, module, optimizer):
        optimizer.zero_grad()
        module(_X).square().mean().backward()
        optimizer.step()

    @pytest.mark.parametrize("kind", ["SGD", "Adam"])
    def test_warns_once(self, kind):
        module = _chain()
        optimizer = getattr(torch.optim, kind)(module.parameters())
        with pytest.warns(UserWarning, match=f"`{kind}` trains.*'a'.*stay 0"):
            self._step(module, optimizer)
        self._step(module, optimizer)  # A warning would be an error.

    def test_does_not_warn_of_plain_layers(self):
        module = Chain(**{name: keras.layers.Dense(3) for name in "abc"})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._step(module, torch.optim.SGD(module.parameters()))
        assert not [w for w in caught if "trains" in str(w.message)]

    def test_does_not_warn_of_optimizers_of_keras(self):
        module = _chain()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _train(module, keras.optimizers.SGD())
        assert not [w for w in caught if "trains" in str(w.message)]
