"""Recorded runs of other methods' own public code.

Each `tests/data/<method>_*.npz` is one run; its `config` names the repository
and says in words what was done. What a method drew is in the file, so that no
random generator has to agree.
"""

import glob
import itertools
import json
import os
import re

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
    paths = sorted(glob.glob(os.path.join(_DATA, f"{prefix}*.npz")))
    assert paths, prefix
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
    """One recorded run, and the same network and loss in Keras.

    Args:
        name: String, the file.
        layers: Module that has the layers with weights. Defaults to the
            plastic ones.
        before: List of Keras layers in front of the network.
    """

    def __init__(self, name, layers=keras_plasticity.layers, before=()):
        self._layers_module = layers
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
        self.model = self._build_model(before)
        self.layers = [
            layer for layer in self.model.layers if hasattr(layer, "kernel")
        ]
        for i, layer in enumerate(self.layers):
            layer.kernel.assign(self.data[f"init_kernel_{i}"])
            layer.bias.assign(self.data[f"init_bias_{i}"])
        self.loss = keras.losses.MeanSquaredError()
        if "cross-entropy" in self.config["loss"]:
            self.loss = keras.losses.SparseCategoricalCrossentropy(
                from_logits=True
            )
        # The authors' code in JAX computes in float32, and Adam divides by
        # what may be small.
        is_exact = "torch sgd" in self.config["optimizer"].lower()
        self.tolerance = 2e-5 if is_exact else 1e-4

    def _build_model(self, before):
        layers = [keras.Input(self.data["x"].shape[2:]), *before]
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
                    self._layers_module.Conv2D(
                        units, kernel.shape[:2], **arguments
                    )
                )
                continue
            if i > 0 and self.data[f"init_kernel_{i - 1}"].ndim == 4:
                layers.append(keras.layers.Flatten())
            layers.append(self._layers_module.Dense(units, **arguments))
        return keras.Sequential(layers)

    def set_draws(self, step):
        for i, draw in enumerate(self.draws[:-1]):
            if f"redraw_kernel_{i}" in self.data:  # At every step the same.
                draw.value = self.data[f"redraw_kernel_{i}"]
            elif f"new_kernel_{i}" in self.data:
                draw.value = self.data[f"new_kernel_{i}"][step]

    def weights(self):
        """The kernels and the biases, two lists of float64 arrays."""
        return (
            [to_numpy(layer.kernel).astype("float64") for layer in self.layers],
            [to_numpy(layer.bias).astype("float64") for layer in self.layers],
        )

    def train(
        self,
        optimizer,
        after_step=lambda step: None,
        end_step=lambda step: None,
        penalty=None,
    ):
        """Trains on the recorded batches and compares the weights.

        Args:
            optimizer: The optimizer.
            after_step: Function of the number of updates before this one.
            end_step: The same, called once the weights have been compared.
            penalty: Function of kernels and biases, before an update, that
                returns what the recorded loss has beside the loss of the model.
        """
        model = self.model
        optimizer.build(model.trainable_variables)
        snapshots = self.data["snap_steps"].tolist()
        compiled = None
        if keras.backend.backend() == "jax":
            compiled = compiled_step(model, optimizer, self.loss)
        # Some runs have each batch several times.
        order = self.data.get("order", range(len(self.data["x"])))
        for step, batch in enumerate(order):
            x, y = self.data["x"][batch], self.data["y"][batch]
            self.set_draws(step)
            extra = 0.0 if penalty is None else penalty(*self.weights())
            if compiled is not None:
                loss = compiled(x, y)
            else:
                loss, gradients = loss_and_gradients(model, self.loss, x, y)
                optimizer.apply_gradients(
                    zip(gradients, model.trainable_variables)
                )
            np.testing.assert_allclose(
                loss + extra,
                self.data["losses"][step],
                rtol=1e-3,
                err_msg=str(step),
            )
            after_step(step)
            if step + 1 in snapshots:
                self.compare_weights(snapshots.index(step + 1))
            if step + 1 == len(self.data["losses"]):
                self.compare_weights()
            end_step(step)
        assert step + 1 == len(self.data["losses"])

    def compare_weights(self, snapshot=None):
        """Compares all weights with a snapshot, or with the final ones."""
        if snapshot is None:
            self.compare("final_{}_{}")
        else:
            self.compare("{}_{}_t", snapshot)

    def fit(self, callback, boundary=40):
        """Trains by `fit`, with a callback that acts at a boundary.

        Compares the weights every ten updates, and right before and after the
        callback's action, at which the optimizer starts anew.

        Args:
            callback: `BoundaryCallback` with `skip=0`.
            boundary: Integer, the number of updates before it.
        """
        model = self.model
        model.compile(inner_optimizer(self.config["optimizer"]), self.loss)
        x, y = self.data["x"], self.data["y"]
        ends = self.data["snap_steps"].tolist()
        assert boundary in ends and ends[-1] == len(x) == self.config["steps"]
        seen = _After(self)
        start = 0
        for end in ends:
            if start == boundary:
                self.compare("before_{}_{}")
            logs = model.fit(
                np.concatenate(x[start:end]),
                np.concatenate(y[start:end]),
                batch_size=x.shape[1],
                shuffle=False,
                verbose=0,
                callbacks=[callback, seen] if start == boundary else [],
            ).history
            np.testing.assert_allclose(
                logs["loss"],
                self.data["losses"][start:end].mean(),
                rtol=1e-4,
                err_msg=str(end),
            )
            if end != boundary:  # There, the file has what is after it.
                self.compare("{}_{}_t", ends.index(end))
            start = end
        self.compare("final_{}_{}")
        assert seen.was_called

    def compare(self, key, index=()):
        """Compares all weights with those of the file.

        Args:
            key: String, of the arrays: for `"kernel"` or `"bias"`, and the
                number of the layer.
            index: Integer, the snapshot, if there are several.
        """
        for i, layer in enumerate(self.layers):
            for name in ("kernel", "bias"):
                np.testing.assert_allclose(
                    to_numpy(getattr(layer, name)),
                    self.data[key.format(name, i)][index],
                    rtol=0,
                    atol=self.tolerance,
                    err_msg=f"{key} {name} {i} {index}",
                )


class _After(keras.callbacks.Callback):
    """Compares the weights after a callback has acted, before any update."""

    def __init__(self, trace):
        super().__init__()
        self._trace = trace
        self.was_called = False

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:
            self._trace.compare("after_{}_{}")
            self.was_called = True


def inner_optimizer(description):
    """The Keras optimizer that a trace's config describes."""
    words = re.findall(r"[a-z_][a-z0-9_]*|[0-9.e-]+", description.lower())
    kind = next(word for word in words if word in ("sgd", "adam"))
    # Such as "lr 0.05", "{'lr': 0.05}" and "betas 0.9 0.999".
    if "betas" in words:
        words.insert(words.index("betas") + 2, "b2")
    values = {
        name: float(number)
        for name, number in itertools.pairwise(words)
        if number[0].isdigit()
    }
    if kind == "sgd":
        # PyTorch's momentum is the same at a constant learning rate.
        return keras.optimizers.SGD(values["lr"], values.get("momentum", 0.0))
    # Both divide by sqrt(v / (1 - beta_2^t)) + epsilon; so does this.
    return CorrectedAdam(
        values["lr"],
        values.get("b1", values.get("betas", 0.9)),
        values.get("b2", 0.999),
        values.get("eps", 1e-8),
    )


class CorrectedAdam(keras.optimizers.Adam):
    """Adam with its epsilon beside the corrected second moment.

    Keras' own has it beside the uncorrected one, which is another number in
    the first updates.
    """

    def __init__(self, learning_rate, beta_1, beta_2, epsilon, **kwargs):
        super().__init__(learning_rate, beta_1, beta_2, epsilon, **kwargs)

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
