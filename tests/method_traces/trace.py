"""Recorded runs of other methods' own public code.

Each `tests/data/<method>_*.npz` is one run; its `config` names the repository
and says in words what was done. What a method drew is in the file, so that no
random generator has to agree.
"""

import glob
import json
import os

import keras
import numpy as np
from keras import ops

import keras_plasticity
from tests.gradients import compiled_step
from tests.gradients import loss_and_gradients
from tests.gradients import read_when_run
from tests.helpers import to_numpy

_DATA = os.path.join(os.path.dirname(__file__), "..", "data")


def traces(prefix):
    """The names of the traces of a method, for `parametrize`."""
    paths = sorted(glob.glob(os.path.join(_DATA, f"{prefix}_*.npz")))
    return [os.path.splitext(os.path.basename(path))[0] for path in paths]


class RecordedDraws(keras.initializers.Initializer):
    """Gives a kernel the values that a trace says it was redrawn with."""

    def __init__(self):
        self.value = None

    def __call__(self, shape, dtype=None):
        if self.value is None:  # While the layer is built.
            return ops.zeros(shape, dtype)
        return read_when_run(self._read, shape)

    def _read(self):
        # Not NaN: the unit that is taken has numbers only.
        return np.nan_to_num(self.value).astype("float32")

    def get_config(self):
        return {}


class Trace:
    """One recorded run, and the same network and loss in Keras."""

    def __init__(self, name):
        with np.load(os.path.join(_DATA, f"{name}.npz")) as data:
            self.data = {key: data[key] for key in data.files}
        self.config = json.loads(str(self.data["config"]))
        self.settings = self.config["hyperparameters"]
        # Of weights; the authors' code of most is in JAX.
        self.tolerance = 1e-4
        self.num_layers = sum(
            key.startswith("init_kernel_") for key in self.data
        )
        self.draws = [RecordedDraws() for _ in range(self.num_layers)]
        self.model = self._build_model()
        self.layers = [layer for layer in self.model.layers if layer.weights]
        for i, layer in enumerate(self.layers):
            layer.kernel.assign(self.data[f"init_kernel_{i}"])
            layer.bias.assign(self.data[f"init_bias_{i}"])
        self.loss = keras.losses.MeanSquaredError()
        if "cross-entropy" in self.config["loss"]:
            self.loss = keras.losses.SparseCategoricalCrossentropy(
                from_logits=True
            )

    def _build_model(self):
        layers = [keras.Input(self.data["x"].shape[2:])]
        for i in range(self.num_layers):
            kernel = self.data[f"init_kernel_{i}"]
            is_last = i == self.num_layers - 1
            arguments = {
                "activation": None if is_last else "relu",
                "kernel_initializer": self.draws[i],
            }
            units = kernel.shape[-1]
            if kernel.ndim == 4:
                layers.append(
                    keras_plasticity.layers.Conv2D(
                        units, kernel.shape[:2], **arguments
                    )
                )
                continue
            if i > 0 and self.data[f"init_kernel_{i - 1}"].ndim == 4:
                layers.append(keras.layers.Flatten())
            layers.append(keras_plasticity.layers.Dense(units, **arguments))
        return keras.Sequential(layers)

    def set_draws(self, step):
        for i, draw in enumerate(self.draws[:-1]):
            if f"redraw_kernel_{i}" in self.data:  # At every step the same.
                draw.value = self.data[f"redraw_kernel_{i}"]
            else:
                draw.value = self.data[f"new_kernel_{i}"][step]

    def train(self, optimizer, after_step):
        """Trains on the recorded batches and compares the weights."""
        model = self.model
        optimizer.build(model.trainable_variables)
        snapshots = self.data["snap_steps"].tolist()
        compiled = None
        if keras.backend.backend() == "jax":
            compiled = compiled_step(model, optimizer, self.loss)
        for step, (x, y) in enumerate(zip(self.data["x"], self.data["y"])):
            self.set_draws(step)
            if compiled is not None:
                loss = compiled(x, y)
            else:
                loss, gradients = loss_and_gradients(model, self.loss, x, y)
                optimizer.apply_gradients(
                    zip(gradients, model.trainable_variables)
                )
            np.testing.assert_allclose(
                loss, self.data["losses"][step], rtol=1e-3, err_msg=str(step)
            )
            after_step(step)
            if step + 1 in snapshots:
                self._compare_weights(snapshots.index(step + 1))
        assert step + 1 == self.config["steps"]
        self._compare_weights()

    def _compare_weights(self, snapshot=None):
        for i, layer in enumerate(self.layers):
            for name in ("kernel", "bias"):
                expected = self.data[f"final_{name}_{i}"]
                if snapshot is not None:
                    expected = self.data[f"{name}_{i}_t"][snapshot]
                np.testing.assert_allclose(
                    to_numpy(getattr(layer, name)),
                    expected,
                    rtol=0,
                    atol=self.tolerance,
                    err_msg=f"{name} {i}, snapshot {snapshot}",
                )


def inner_optimizer(description):
    """The Keras optimizer that a trace's config describes."""
    description = description.replace("optax ", "").replace("torch ", "")
    kind, *words = description.split()
    values = dict(zip(words[::2], map(float, words[1::2])))
    if kind == "sgd":
        return keras.optimizers.SGD(values["lr"])
    # optax divides by sqrt(v / (1 - beta_2^t)) + epsilon; so does this.
    return OptaxAdam(
        values["lr"],
        values.get("b1", 0.9),
        values.get("b2", 0.999),
        values.get("eps", 1e-8),
    )


class OptaxAdam(keras.optimizers.Adam):
    """Adam with its epsilon beside the corrected second moment.

    Keras' own has it beside the uncorrected one, which is another number in
    the first updates.
    """

    def __init__(self, learning_rate, beta_1, beta_2, epsilon):
        super().__init__(learning_rate, beta_1, beta_2, epsilon)

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        m, v = self._momentums[index], self._velocities[index]
        step = ops.cast(self.iterations + 1, variable.dtype)
        m.assign(m + (1 - self.beta_1) * (gradient - m))
        v.assign(v + (1 - self.beta_2) * (gradient**2 - v))
        corrected_m = m / (1 - self.beta_1**step)
        corrected_v = v / (1 - self.beta_2**step)
        variable.assign_sub(
            ops.cast(learning_rate, variable.dtype)
            * corrected_m
            / (ops.sqrt(corrected_v) + self.epsilon)
        )
