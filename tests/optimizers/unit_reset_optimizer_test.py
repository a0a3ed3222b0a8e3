"""What a method of a user's own can get wrong, and what it can rely on."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity.optimizers import ReDo
from keras_plasticity.optimizers import UnitResetOptimizer
from keras_plasticity.units.unit_statistics import OBSERVATIONS
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import to_numpy
from tests.helpers import train


class Nothing(UnitResetOptimizer):
    """Replaces no unit."""

    def update_statistics(self, units):
        pass


class ReplaceLast(UnitResetOptimizer):
    """Replaces the last unit of each layer in each third update."""

    observed = ("num_examples",)

    def add_state(self, units):
        units.seen = units.add_variable("seen", shape=())
        units.own = units.add_variable("own", initializer=5.0, restarts=True)

    def update_statistics(self, units):
        units.seen.assign_add(ops.reshape(units.num_examples(), ()))
        units.own.assign(units.own.value + 1.0)

    def num_due(self, units):
        return ops.cast(units.num_updates.value % 3 == 0, "int32")

    def choose(self, units):
        return ops.convert_to_tensor(units.size - 1)


@pytest.mark.parametrize(
    "name, value, message",
    [
        (
            "observed",
            ("activation",),
            "`observed` of `Method` must be a tuple of any of "
            "'activation_mean', .*Received: observed=\\('activation',\\)",
        ),
        ("observed", "firing", "must be a tuple of any of"),
        (
            "observed",
            ("activation_deviation",),
            "`observed` must have 'activation_mean' too",
        ),
        (
            "slots_to_reset",
            ("kernel",),
            "`slots_to_reset` of `Method` must be a tuple of any of "
            "'incoming', 'bias', 'outgoing'",
        ),
    ],
    ids=str,
)
def test_bad_attribute(name, value, message):
    method = type("Method", (Nothing,), {name: value})
    with pytest.raises(ValueError, match=message):
        method(keras.optimizers.SGD()).build(make_model().trainable_variables)


def test_variables_of_a_method():
    model = make_model()
    optimizer = ReplaceLast(keras.optimizers.SGD(0.1))
    train(model, optimizer, make_data(26))  # Seven updates, the last of two.
    assert optimizer.num_replaced() == {"layer_0": 2, "layer_1": 2}
    variables = {v.name: to_numpy(v) for v in optimizer.variables}
    for layer in model.layers[:-1]:
        path = layer.path.replace("/", "_")
        assert variables[f"{path}_seen"] == 26
        # The last unit was replaced in update 6 and has seen one since.
        expected = np.full(layer.units, 12.0)
        expected[-1] = 6.0
        np.testing.assert_array_equal(variables[f"{path}_own"], expected)
        np.testing.assert_array_equal(
            to_numpy(layer.age), np.where(expected == 6, 1, 7)
        )


def test_layers_observe_what_the_optimizer_needs():
    model = make_model()
    train(model, keras.optimizers.SGD(0.1), make_data(4))
    statistics = model.layers[1].statistics
    sums = statistics.sums(OBSERVATIONS)
    # A plain optimizer says nothing: all is observed.
    assert all(np.any(to_numpy(v)) for v in sums.values())
    ReDo(keras.optimizers.SGD(0.1)).build(model.trainable_variables)
    train(model, keras.optimizers.SGD(0.1), make_data(4))
    observed = {name for name, v in sums.items() if np.any(to_numpy(v))}
    assert observed == {"activation_magnitude", "num_examples"}


def test_slots_are_kept_on_request():
    optimizer = ReDo(keras.optimizers.SGD(), reset_optimizer_state=False)
    config = optimizer.get_config()
    assert config["reset_optimizer_state"] is False
    assert not ReDo.from_config(config).reset_optimizer_state
