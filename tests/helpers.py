"""Small models and data that several tests use."""

import contextlib
import functools
import inspect
import re
import textwrap
from unittest import mock

import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity.units.unit_statistics import OBSERVATIONS


def make_model(
    dims=(4, 6, 5, 3),
    layer=keras_plasticity.layers.Dense,
    activation="tanh",
    seed=0,
    before=(),
    **kwargs,
):
    """A chain of dense layers, the last one linear, with some layers `before`.

    The weights are those of a NumPy generator: the same for every kind of
    layer and on every backend.
    """
    layers = [keras.Input((dims[0],)), *before]
    for i, units in enumerate(dims[1:]):
        is_last = i == len(dims) - 2
        layers.append(
            layer(
                units,
                activation=None if is_last else activation,
                name=f"layer_{i}",
                **kwargs,
            )
        )
    model = keras.Sequential(layers)
    rng = np.random.default_rng(seed)
    for dense in model.layers[len(before) :]:
        shape = dense.kernel.shape
        dense.kernel.assign(rng.normal(0, shape[0] ** -0.5, shape))
        if dense.bias is not None:
            dense.bias.assign(rng.normal(0, 0.1, shape[1:]))
    return model


def observed_means(layer):
    """What a plastic layer last observed, where a plain optimizer stores it.

    Dict from observation to the mean over the examples, `(features,)`.
    """
    count = to_numpy(layer.statistics.count)[0]
    names = [name for name in OBSERVATIONS if name != "num_examples"]
    return {
        name: to_numpy(variable) / count
        for name, variable in layer.statistics.sums(names).items()
    }


def make_data(num, dims=(4, 6, 5, 3), seed=1):
    """Inputs and real-valued targets that the inputs say something about."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (num, dims[0])).astype("float32")
    y = np.sin(x @ rng.normal(0, 1, (dims[0], dims[-1])))
    return x, y.astype("float32")


def train(model, optimizer, data, batch_size=4, epochs=1, loss="mse", **kwargs):
    """Compiles and fits on the data in their order."""
    model.compile(optimizer=optimizer, loss=loss, **kwargs)
    model.fit(
        *data, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0
    )


def make_plain_model(**kwargs):
    """The same chain of Keras' own layers."""
    return make_model(layer=keras.layers.Dense, **kwargs)


def train_plain_model(optimizer, num=24, batch_size=4):
    """A new plain model, trained on `num` examples."""
    model = make_plain_model()
    train(model, optimizer, make_data(num), batch_size)
    return model


def weights_of(model):
    """Dict of all kernels and biases, as NumPy arrays."""
    result = {}
    for layer in model.layers:
        for name in ("kernel", "bias"):
            variable = getattr(layer, name, None)
            if variable is not None:
                result[f"{layer.name}/{name}"] = to_numpy(variable)
    return result


def assert_same_weights(actual, expected, **tolerance):
    """Equal bit for bit, or within `rtol` and `atol`."""
    actual, expected = weights_of(actual), weights_of(expected)
    assert actual.keys() == expected.keys() and actual
    for key in actual:
        if tolerance:
            np.testing.assert_allclose(
                actual[key], expected[key], err_msg=key, **tolerance
            )
        else:
            np.testing.assert_array_equal(
                actual[key], expected[key], err_msg=key
            )


def to_numpy(variable):
    value = variable.value if hasattr(variable, "value") else variable
    return np.array(ops.convert_to_numpy(value))


@contextlib.contextmanager
def changed_layer(layer, before=None, after=None):
    """Context in which a layer's input, or output, goes through a function."""
    call = layer.call

    def changed_call(x, *args, **kwargs):
        y = call(before(x) if before else x, *args, **kwargs)
        return after(y) if after else y

    with mock.patch.object(layer, "call", changed_call):
        yield


@keras.saving.register_keras_serializable(package="tests")
class CountedDraws(keras.initializers.Initializer):
    """Different weights at each draw, and yet known beforehand.

    The n-th draw from a new `SeedGenerator` has the columns
    `counted_draw(n, fan_in)`.
    """

    def __init__(self, seed=None):
        self.seed = seed

    def __call__(self, shape, dtype=None):
        n = 0.0
        if isinstance(self.seed, keras.random.SeedGenerator):
            # The second number of the state is how often it was drawn from.
            n = ops.cast(self.seed.next()[1] % 17, "float32")
        i = ops.arange(shape[0], dtype="float32")
        column = 0.4 * ops.sin(1.0 + 0.7 * i + 1.3 * n)
        column = ops.reshape(column, (-1,) + (1,) * (len(shape) - 1))
        # Not `broadcast_to`: PyTorch gives a view, which cannot be assigned to.
        return ops.cast(column * ops.ones(shape), dtype or "float32")

    def get_config(self):
        return {"seed": self.seed}


def counted_draw(n, size):
    return 0.4 * np.sin(1.0 + 0.7 * np.arange(size) + 1.3 * (n % 17))


def parameters(function):
    """List of the parameters of a function or a class.

    Some versions of Python look at `__new__` first, which Keras' base classes
    have, and which takes anything.
    """
    if inspect.isclass(function) and inspect.isfunction(function.__init__):
        _, *own = inspect.signature(function.__init__).parameters.values()
        return own
    return list(inspect.signature(function).parameters.values())


def mostly_slow(values, *kept):
    """Values for `parametrize`, of which all but some are marked `slow`."""
    return [
        value
        if value in kept
        else pytest.param(
            *(value if isinstance(value, tuple) else [value]),
            marks=pytest.mark.slow,
        )
        for value in values
    ]


def mostly_on_torch(values, *kept):
    """The same, but all of them run on PyTorch, which compiles nothing."""
    if keras.backend.backend() == "torch":
        return list(values)
    return mostly_slow(values, *kept)


@functools.cache  # A class is registered once.
def docstring_example(documented):
    """The names that the first code example of a docstring defines.

    Args:
        documented: Class or function.

    Returns:
        Dict from name to object.
    """
    _, code = re.split("```python\n", inspect.getdoc(documented), maxsplit=1)
    code = textwrap.dedent(code.split("```")[0].rstrip(" "))
    names = {"keras": keras, "keras_plasticity": keras_plasticity, "ops": ops}
    names["__name__"] = documented.__module__
    exec(code, names)
    return names
