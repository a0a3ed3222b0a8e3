"""Step by step against runs of the paper authors' own code.

`data/*.npz` holds what their PyTorch program did; see `Trace`. New incoming
weights are a constant there, so that no random generator has to agree.
"""

import json
import os

import keras
import numpy as np
import pytest

import keras_plasticity
from tests.gradients import compiled_step
from tests.gradients import loss_and_gradients
from tests.helpers import to_numpy

_DATA = os.path.join(os.path.dirname(__file__), "data")
_UTILITIES = {
    "contribution": "contribution",
    "zero_contribution": "mean_corrected_contribution",
    "adaptable_contribution": "overall",
}


class Trace:
    """One recorded run, and the same network and optimizer in Keras."""

    def __init__(self, name):
        with np.load(os.path.join(_DATA, f"{name}.npz")) as data:
            self.data = {key: data[key] for key in data.files}
        self.config = json.loads(str(self.data["config"]))
        self.x, self.y = self.data["x"], self.data["y"]

    def build(self):
        config = self.config
        dims = config["dims"]
        initializer = keras.initializers.Constant(config["new_incoming_weight"])
        layers = [keras.Input((dims[0],))]
        for i, units in enumerate(dims[1:]):
            is_last = i == len(dims) - 2
            layers.append(
                keras_plasticity.layers.Dense(
                    units,
                    activation=None if is_last else config["activation"],
                    kernel_initializer=initializer,
                )
            )
        model = keras.Sequential(layers)
        for i, layer in enumerate(model.layers):
            layer.kernel.assign(self.data[f"init_kernel_{i}"])
            layer.bias.assign(self.data[f"init_bias_{i}"])
        optimizer = keras_plasticity.optimizers.ContinualBackprop(
            keras.optimizers.SGD(config["learning_rate"]),
            replacement_rate=config["replacement_rate"],
            maturity_threshold=config["maturity_threshold"],
            decay_rate=config["decay_rate"],
            utility=_UTILITIES[config["utility"]],
        )
        if config["loss"] == "nll":
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        else:
            loss = keras.losses.MeanSquaredError()
        return model, optimizer, loss


class Recorder(keras.callbacks.Callback):
    """Notes age and utility of the hidden layers after each step."""

    def __init__(self):
        super().__init__()
        self.ages = []
        self.utilities = []
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.note(self.model, logs["loss"])

    def note(self, model, loss):
        hidden = model.layers[:-1]
        self.ages.append([to_numpy(h.age) for h in hidden])
        self.utilities.append([to_numpy(h.utility) for h in hidden])
        self.losses.append(float(loss))

    def assert_follows(self, trace):
        steps = len(self.ages)
        assert steps > 0
        for i in range(len(trace.config["dims"]) - 2):
            # A unit is 0 updates old right after it was replaced, only then.
            replaced = np.stack([ages[i] for ages in self.ages]) == 0
            expected = trace.data[f"replaced_{i}"][:steps]
            assert expected.sum() > 0
            np.testing.assert_array_equal(replaced, expected)
            utilities = np.stack([u[i] for u in self.utilities])
            # At age 1 and batch 1 a unit's deviation from its mean is 0. It
            # is here; the authors' float32 division leaves up to 3e-6.
            np.testing.assert_allclose(
                utilities[~expected],
                trace.data[f"utility_{i}"][:steps][~expected],
                rtol=1e-3,
                atol=4e-6,
            )
            np.testing.assert_array_equal(utilities[expected], 0.0)


def _assert_final_weights(model, trace):
    for i, layer in enumerate(model.layers):
        for name in ("kernel", "bias"):
            np.testing.assert_allclose(
                to_numpy(getattr(layer, name)),
                trace.data[f"final_{name}_{i}"],
                rtol=0,
                atol=1e-5,
                err_msg=f"{name} of layer {i}",
            )


@pytest.mark.parametrize(
    "name",
    [
        "dense_contribution",
        "dense_mean_corrected_contribution",
        "dense_overall",
    ],
)
def test_fit(name):
    trace = Trace(name)
    model, optimizer, loss = trace.build()
    recorder = Recorder()
    model.compile(optimizer=optimizer, loss=loss)
    model.fit(
        trace.x.reshape((-1,) + trace.x.shape[2:]),
        trace.y.reshape((-1,) + trace.y.shape[2:]),
        batch_size=trace.config["batch"],
        shuffle=False,
        verbose=0,
        callbacks=[recorder],
    )
    recorder.assert_follows(trace)
    _assert_final_weights(model, trace)
    assert (
        list(optimizer.num_replaced().values())
        == trace.config["replacements_per_layer"]
    )


# JAX without compilation takes 100 ms a step, so there the loop ends after the
# first replacement, in step 139; `test_stateless_apply` has all steps.
@pytest.mark.parametrize("method", ["apply_gradients", "apply"])
def test_loop_by_hand(method):
    trace = Trace("dense_overall")
    steps = 160 if keras.backend.backend() == "jax" else len(trace.x)
    model, optimizer, loss_fn = trace.build()
    recorder = Recorder()
    optimizer.build(model.trainable_variables)
    for x, y in zip(trace.x[:steps], trace.y[:steps]):
        loss, gradients = loss_and_gradients(model, loss_fn, x, y)
        if method == "apply":
            optimizer.apply(gradients, model.trainable_variables)
        else:
            optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        recorder.note(model, loss)
    if steps == len(trace.x):
        _assert_final_weights(model, trace)
    recorder.assert_follows(trace)
    np.testing.assert_allclose(
        recorder.losses, trace.data["losses"][:steps], rtol=1e-4, atol=1e-6
    )


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="`stateless_apply` is for JAX."
)
def test_stateless_apply():
    trace = Trace("dense_overall")
    model, optimizer, loss_fn = trace.build()
    recorder = Recorder()
    step = compiled_step(model, optimizer, loss_fn)
    for x, y in zip(trace.x, trace.y):
        recorder.note(model, step(x, y))
    recorder.assert_follows(trace)
    np.testing.assert_allclose(
        recorder.losses, trace.data["losses"], rtol=1e-3, atol=1e-6
    )
    _assert_final_weights(model, trace)
