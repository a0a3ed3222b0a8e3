"""Step by step against a run of the authors' code: C-CHAIN."""

import keras
import numpy as np
from keras import ops

import keras_plasticity
from keras_plasticity.units.backward_pass import UNIT
from tests.gradients import loss_and_gradients
from tests.helpers import to_numpy
from tests.method_traces.trace import Trace

_GAMMA = 0.9


def _value_loss(y, values):
    """Of the values of the actions taken; `y` has their indices, targets."""
    taken = ops.one_hot(ops.cast(y[:, 0], "int32"), values.shape[-1])
    error = ops.sum(taken * values, axis=-1) - y[:, 1]
    return ops.mean(ops.square(error))


def _forward(weights, x):
    for i, (kernel, bias) in enumerate(zip(weights[::2], weights[1::2])):
        x = x @ kernel + bias
        if i < len(weights) // 2 - 1:
            x = np.maximum(x, 0)
    return x


def test_c_chain():
    batch = 4
    recent = keras_plasticity.layers.RecentInputs(batch)
    trace = Trace("cchain_ddqn", before=[recent])
    data, model = trace.data, trace.model
    # Adam amplifies: another last digit of the first weights changes the last
    # ones by up to 2e-4.
    trace.tolerance = 5e-4
    # PyTorch's epsilon.
    optimizer = keras_plasticity.optimizers.ChurnRegularization(
        keras.optimizers.Adam(3e-3, epsilon=1e-8)
    )
    variables = model.trainable_variables
    optimizer.build(variables)
    weights = keras_plasticity.weights_of(model)

    def values_of_weights():
        return [to_numpy(weight) for weight in weights]

    target = before = values_of_weights()
    snapshots = data["snap_steps"].tolist()
    for step in range(trace.config["steps"]):
        online = values_of_weights()
        if step:
            # They draw these examples from a replay buffer.
            churn = _forward(online, data["reg_state"][step])
            churn = churn - _forward(before, data["reg_state"][step])
            np.testing.assert_allclose(
                np.sqrt(np.mean(churn**2)),
                np.sqrt(data["reg_loss"][step]),
                rtol=1e-2,
                atol=1e-4,
            )
            recent.examples.assign(UNIT * data["reg_state"][step])
            recent.scales.assign(np.full(batch, UNIT))
        optimizer.coefficient = float(data["coefficient"][step])
        following = data["next_state"][step]
        best = _forward(online, following).argmax(-1)
        bootstrapped = _forward(target, following)[np.arange(batch), best]
        go_on = 1 - data["is_terminal"][step].astype("float32")
        targets = data["reward"][step] + _GAMMA * go_on * bootstrapped
        y = np.stack([data["action"][step], targets], -1).astype("float32")
        loss, gradients = loss_and_gradients(
            model, _value_loss, data["state"][step], y
        )
        np.testing.assert_allclose(
            to_numpy(loss), data["losses"][step], rtol=1e-3, atol=1e-5
        )
        optimizer.apply_gradients(zip(gradients, variables))
        before = online
        if (9950 + step + 1) % 20 == 0:
            target = values_of_weights()
        if step + 1 in snapshots:
            trace.compare_weights(snapshots.index(step + 1))
    trace.compare_weights()
