"""Every stock Keras optimizer inside `ContinualBackprop`."""

import threading

import keras
import numpy as np
import pytest

from keras_plasticity.optimizers import ContinualBackprop
from keras_plasticity.optimizers.slots import SlotTable
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import mostly_slow
from tests.helpers import to_numpy
from tests.helpers import train

# Square kernels: nothing can be told from shapes.
_DIMS = (5, 5, 5, 5, 3)

_OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05),
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "nesterov": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
    "sgd_ema": lambda: keras.optimizers.SGD(
        0.05, momentum=0.9, use_ema=True, ema_momentum=0.5
    ),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adam_amsgrad": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "adam_accumulating": lambda: keras.optimizers.Adam(
        0.01, gradient_accumulation_steps=2
    ),
    "adamw": lambda: keras.optimizers.AdamW(0.01),
    "adamax": lambda: keras.optimizers.Adamax(0.01),
    "adagrad": lambda: keras.optimizers.Adagrad(
        0.01, initial_accumulator_value=0.1
    ),
    "adadelta": lambda: keras.optimizers.Adadelta(0.1),
    "ftrl": lambda: keras.optimizers.Ftrl(0.01, initial_accumulator_value=0.2),
    "lamb": lambda: keras.optimizers.Lamb(0.01),
    "lion": lambda: keras.optimizers.Lion(0.01),
    "nadam": lambda: keras.optimizers.Nadam(0.01),
    "rmsprop": lambda: keras.optimizers.RMSprop(
        0.01, centered=True, momentum=0.9
    ),
    "adafactor": lambda: keras.optimizers.Adafactor(0.01),
    "muon": lambda: keras.optimizers.Muon(0.01),
    "schedule_free_adamw": lambda: keras.optimizers.ScheduleFreeAdamW(0.01),
    "loss_scaled_adam": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.01)
    ),
}
# Slots that hold an iterate, which begins as a copy of the weight.
_COPIES = {"schedule_free_adamw": "_momentum", "sgd_ema": "_average"}


def _innermost(optimizer):
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def _slots_by_weight(model, optimizer):
    """Yields `(weight, slot, axes)`; found by name, or by what Keras says."""
    optimizer = _innermost(optimizer)
    for index, weight in enumerate(
        w for layer in model.layers for w in (layer.kernel, layer.bias)
    ):
        prefix = weight.path.replace("/", "_") + "_"
        for slot in optimizer.variables:
            if slot.name.startswith(prefix) or slot.path.split("/")[
                -1
            ].startswith(prefix):
                yield weight, slot, tuple(range(len(weight.shape)))
        is_factored = isinstance(optimizer, keras.optimizers.Adafactor)
        if is_factored and len(weight.shape) == 2:
            # The mean square over columns, and over rows.
            yield weight, optimizer._r[index], (0,)
            yield weight, optimizer._c[index], (1,)


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        _OPTIMIZERS,
        "momentum",
        "sgd_ema",
        "adam",
        "adam_accumulating",
        "adafactor",
        "muon",
        "schedule_free_adamw",
        "loss_scaled_adam",
    ),
)
def test_slots_of_a_replaced_unit_begin_anew(name):
    model = make_model(_DIMS, kernel_initializer="glorot_uniform")
    # The same optimizer, untouched: what its slots begin with.
    fresh_model = make_model(_DIMS)
    fresh = _OPTIMIZERS[name]()
    _innermost(fresh).build(
        [w for layer in fresh_model.layers for w in (layer.kernel, layer.bias)]
    )
    wrapper = ContinualBackprop(
        _OPTIMIZERS[name](),
        # All five units are mature in the fifth update, and one is due.
        replacement_rate=0.2,
        maturity_threshold=4,
        utility="weight_magnitude",
        seed=1,
    )
    updates = 10 if name == "adam_accumulating" else 5
    model.compile(optimizer=wrapper, loss="mse")
    # Not `fit`, at whose end moving averages overwrite the weights.
    x, y = make_data(4 * updates, _DIMS)
    for i in range(updates):
        model.train_on_batch(x[4 * i : 4 * i + 4], y[4 * i : 4 * i + 4])
    assert list(wrapper.num_replaced().values()) == [1, 1, 1]

    # For each weight, which of its entries are new.
    new_entries = {}
    units = [np.flatnonzero(to_numpy(h.age) == 0) for h in model.layers[:-1]]
    for i, layer in enumerate(model.layers):
        kernel = np.zeros(layer.kernel.shape, bool)
        bias = np.zeros(layer.bias.shape, bool)
        if i > 0:
            kernel[units[i - 1]] = True
        if i < len(units):
            (unit,) = units[i]
            kernel[:, unit] = True
            bias[unit] = True
        new_entries[id(layer.kernel)] = kernel
        new_entries[id(layer.bias)] = bias
        for values in (layer.kernel, layer.bias):
            assert np.all(np.isfinite(to_numpy(values)))

    found = list(_slots_by_weight(model, wrapper))
    expected = list(_slots_by_weight(fresh_model, fresh))
    assert len(found) == len(expected)
    assert name == "sgd" or len(found) >= 8
    trained_slots = 0
    for (weight, slot, axes), (_, initial, _) in zip(found, expected):
        new = new_entries[id(weight)]
        if len(axes) < len(weight.shape):
            # A factor of a moment: its entry is one whole row or column.
            new = new.all(axis=1 - axes[0])
        values = to_numpy(slot)
        begin = to_numpy(initial)
        if slot.path.endswith(_COPIES.get(name, "no such slot")):
            begin = to_numpy(weight)
        np.testing.assert_allclose(
            values[new], begin[new], rtol=1e-6, err_msg=slot.path
        )
        assert np.all(np.isfinite(values))
        trained_slots += np.any(values[~new] != begin[~new])
    # The other units keep theirs. An accumulator is empty after an update,
    # and Adafactor does not use its full moment beside the two factors.
    unused = sum("accumulator" in s.path for _, s, _ in found)
    if name == "adam_accumulating":
        assert trained_slots >= len(found) - unused
    elif name == "adafactor":
        assert trained_slots >= len(found) - len(model.layers)
    else:
        assert trained_slots == len(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_trains_with_many_replacements(name):
    model = make_model(_DIMS)
    wrapper = ContinualBackprop(
        _OPTIMIZERS[name](),
        replacement_rate=0.15,
        maturity_threshold=1,
        utility="overall",
    )
    train(model, wrapper, make_data(60, _DIMS), epochs=2)
    assert all(n > 3 for n in wrapper.num_replaced().values())
    for layer in model.layers:
        assert np.all(np.isfinite(to_numpy(layer.kernel)))
        assert np.all(np.isfinite(to_numpy(layer.utility)))


def test_two_threads_find_their_own_slots():
    variables = [keras.Variable([1.0, 2.0]) for _ in range(2)]
    tables = [SlotTable() for _ in range(2)]
    second_listens = threading.Event()

    def build(variable, table):
        with table.listen():
            second_listens.set()
            keras.optimizers.SGD(0.1, momentum=0.9).build([variable])

    second = threading.Thread(target=build, args=(variables[1], tables[1]))
    with tables[0].listen():
        second.start()
        assert not second_listens.wait(0.2)
        keras.optimizers.SGD(0.1, momentum=0.9).build([variables[0]])
    second.join()
    for own, other in [(0, 1), (1, 0)]:
        assert len(tables[own].of(variables[own])) == 1
        assert not tables[own].of(variables[other])
