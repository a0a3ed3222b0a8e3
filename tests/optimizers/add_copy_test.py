"""What a replaced unit's entries in slots of several beginnings become."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity.optimizers import ContinualBackprop
from keras_plasticity.optimizers import OptimizerWrapper
from tests.helpers import docstring_example
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import mostly_slow
from tests.helpers import to_numpy

_DIMS = (4, 5, 3)


class SlotOptimizer(keras.optimizers.Optimizer):
    """Moves weights, and one slot of each, along the gradients."""

    def __init__(self, name_of_slot, make_initializer):
        super().__init__(learning_rate=0.1)
        self.name_of_slot = name_of_slot
        self.make_initializer = make_initializer

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.slots = [
            self.add_variable_from_reference(
                variable, self.name_of_slot, self.make_initializer(variable)
            )
            for variable in variables
        ]

    def update_step(self, gradient, variable, learning_rate):
        slot = self.slots[self._get_variable_index(variable)]
        self.assign_add(slot, gradient + 1.0)
        self.assign_sub(variable, 0.1 * gradient)


def _ramp(shape, dtype=None):
    return ops.reshape(ops.arange(np.prod(shape), dtype=dtype), shape)


def _array(variable):
    """A function that returns an array of the variable's shape."""
    array = np.linspace(1.0, 2.0, int(np.prod(variable.shape)))
    array = array.reshape(variable.shape).astype("float32")
    return lambda shape, dtype=None: ops.convert_to_tensor(array, dtype)


def _keyword(variable):
    return lambda shape, *, dtype: _ramp(shape, dtype)


def _copy(variable):
    """A function that does not look at the shape it is asked for."""
    return lambda shape, dtype=None: ops.copy(ops.convert_to_tensor(variable))


# The name of the slot, and its initializer; `None` where a slot begins as the
# weight that it belongs to.
_SLOTS = {
    "average_of_zeros": ("average", lambda variable: "zeros"),
    "momentum_of_zeros": ("momentum", lambda variable: "zeros"),
    "function": ("slot", lambda variable: _ramp),
    "function_by_keyword": ("slot", _keyword),
    "array": ("slot", _array),
    "constant_array": (
        "slot",
        lambda variable: keras.initializers.Constant(
            np.arange(np.prod(variable.shape)).reshape(variable.shape)
        ),
    ),
    "copy": ("slot", _copy),
}


def _replace_one_unit(inner):
    """The model after an update in which it lost a unit, and that unit."""
    model = make_model(_DIMS, kernel_initializer="he_normal")
    optimizer = ContinualBackprop(
        inner, replacement_rate=0.2, maturity_threshold=2, seed=1
    )
    model.compile(optimizer, "mse")
    x, y = make_data(12, _DIMS)
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    assert optimizer.num_replaced() == {"layer_0": 1}
    (unit,) = np.flatnonzero(to_numpy(model.layers[0].age) == 0)
    return model, unit


def _entries(model, unit):
    """Yields each weight, and which of its entries are new."""
    hidden, output = model.layers
    for weight, index in (
        (hidden.kernel, np.s_[:, unit]),
        (hidden.bias, unit),
        (output.kernel, unit),
    ):
        is_new = np.zeros(weight.shape, bool)
        is_new[index] = True
        yield weight, is_new


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        _SLOTS, "average_of_zeros", "function_by_keyword", "array", "copy"
    ),
)
def test_slot_returns_to_its_own_beginning(name):
    name_of_slot, make_initializer = _SLOTS[name]
    inner = SlotOptimizer(name_of_slot, make_initializer)
    model, unit = _replace_one_unit(inner)
    for weight, is_new in _entries(model, unit):
        slot = to_numpy(inner.slots[inner._get_variable_index(weight)])
        initializer = keras.initializers.get(make_initializer(weight))
        begin = to_numpy(initializer(weight.shape, dtype=weight.dtype))
        np.testing.assert_array_equal(slot[is_new], begin[is_new])
        assert np.all(slot[~is_new] != begin[~is_new])


def test_copy_starts_again_as_the_new_weights():
    PullBack = docstring_example(OptimizerWrapper)["PullBack"]
    wrapper = PullBack(keras.optimizers.SGD(0.1), strength=0.1)
    model, unit = _replace_one_unit(wrapper)
    start = make_model(_DIMS)
    pairs = zip(_entries(model, unit), _entries(start, unit))
    for (weight, is_new), (first, _) in pairs:
        copy = to_numpy(wrapper._initial[weight.path])
        weight, first = to_numpy(weight), to_numpy(first)
        np.testing.assert_array_equal(copy[is_new], weight[is_new])
        np.testing.assert_array_equal(copy[~is_new], first[~is_new])
        assert np.any(weight[is_new] != first[is_new])
        assert np.all(weight[~is_new] != first[~is_new])


def test_copy_is_of_its_own():
    # What trains the weight must leave the copy.
    PullBack = docstring_example(OptimizerWrapper)["PullBack"]
    model = make_model(_DIMS, layer=keras.layers.Dense)
    wrapper = PullBack(keras.optimizers.SGD(0.1))
    start = [to_numpy(v) for v in model.trainable_variables]
    model.compile(wrapper, "mse")
    for _ in range(2):  # On JAX, the arrays of the first are given away.
        model.fit(*make_data(8, _DIMS), batch_size=4, verbose=0)
    for variable, value in zip(model.trainable_variables, start):
        copy = to_numpy(wrapper._initial[variable.path])
        np.testing.assert_array_equal(copy, value)
        assert np.any(to_numpy(variable) != value)
