import copy
import math
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_plasticity import backend
from keras_plasticity import diagnostics
from keras_plasticity import keras_compat
from keras_plasticity import validation
from keras_plasticity.diagnosis.layer_activations import NotFinite
from keras_plasticity.diagnosis.layer_activations import Programs
from keras_plasticity.diagnosis.layer_activations import layer_activations
from keras_plasticity.diagnostics.rank import several_ranks
from keras_plasticity.graph import activations
from keras_plasticity.optimizers import UnitResetOptimizer
from keras_plasticity.optimizers import inner_optimizers
from keras_plasticity.training import AppendOnly
from keras_plasticity.training import TaskCallback
from keras_plasticity.weights import weights_of

_RANKS = (
    "effective_rank",
    "approximate_rank",
    "absolute_approximate_rank",
    "stable_rank",
    "hard_rank",
)
_UNITS = ("dead_units", "dormant_units", "inactive_units")
_SATURATION = ("saturated_units", "saturated_fraction")
_HISTOGRAMS = ("utility", "age")
# TensorBoard's group of each measure that is a number.
_TAGS = {
    **{name: f"representation/{name}" for name in _RANKS},
    "dead_units": "units/dead",
    "dormant_units": "units/dormant",
    "inactive_units": "units/inactive",
    "saturated_units": "units/saturated",
    "saturated_fraction": "units/saturated_fraction",
    "replaced_units": "units/replaced",
    "weight_magnitude": "weights/magnitude",
    "weight_change": "weights/change",
    "gradient_norm": "gradients/norm",
}
_MEASURES = (*_TAGS, *_HISTOGRAMS)
# Measures aggregated over layers by their mean; the others are summed, or
# computed on all entries jointly.
_MEANS = (*_RANKS, "saturated_fraction")


class PlasticityMonitor(keras.callbacks.Callback, TaskCallback):
    """Monitors the plasticity of a network while it trains.

    It is a callback for `model.fit`, with any Keras model, and for
    `keras_plasticity.training.OnlineTrainer`. It changes nothing in the model
    or its training.

    In `fit` it measures before the first epoch (step 0, or `initial_epoch`)
    and after each epoch (step: the number of epochs done). A later `fit` that
    starts at an earlier epoch, such as one for each task, continues from the
    last step. In `OnlineTrainer` it measures each learner before each task
    (step: the task), and adds what the task has changed when it ends. Layers
    go by their names in the first learner's model.

    Each measure has a value for each layer and in total:

    - `effective_rank`, `approximate_rank`, `absolute_approximate_rank`,
        `stable_rank`, `hard_rank`: see `keras_plasticity.diagnostics`. Total:
        mean.
    - `dead_units`, `dormant_units`, `inactive_units`: likewise, with their
        default thresholds. Total: sum.
    - `saturated_units`, `saturated_fraction`: likewise, of layers with a
        bounded activation (tanh, sigmoid and their like), within 5 % of its
        range of an extreme. Total: sum, and mean.
    - `weight_magnitude`, `weight_change`: mean absolute entry of the kernels,
        and of their change since the last measurement (in `OnlineTrainer`:
        during the task). Total: over the entries of all kernels.
    - `gradient_norm`: norm of the gradient of the loss on the probe, computed
        in inference mode. Total: norm of all weights' gradients. The loss is
        assumed to be a mean over examples: with `reduction="sum"`, set
        `batch_size` to the number of examples of the probe.
    - `replaced_units`: units that the optimizer replaced since the last
        measurement (in `OnlineTrainer`: during the task). Total: sum.
    - `utility`, `age`: histograms in TensorBoard only, of the first learner.

    Activations are measured in every hidden layer, after its non-linearity: a
    hidden layer has a kernel, and its outputs lead to another layer with one.
    Weights are measured in every layer with a kernel, the last one included.
    The positions of a feature map count as examples, its channels as units.

    For three layers of 100 units and 2,000 examples all of this takes less
    than a tenth of a second. Singular values take most of the time: seconds a
    layer for 2,000 examples of 2,000 units. In that case choose `measures`
    without ranks, fewer examples, or a smaller `max_rows`.

    Args:
        probe_data: The examples to measure on. An array of inputs (for a model
            with several inputs, a list or dict); a tuple `(x, y)`, which adds
            the gradient norm; or, in `OnlineTrainer` only, an integer: that
            many examples from the start of the coming task, with their targets
            (the paper takes 2,000).
        log_dir: String, the folder of the TensorBoard logs; or an open
            `SummaryWriter` from `keras_plasticity.utils`, which is left open.
            Defaults to `None`: no logs.
        layers: List of names of the layers whose activations are measured.
            Defaults to all hidden layers.
        measures: List of names of measures. Defaults to all for which there
            are data.
        batch_size: Integer, the number of examples computed at once: fewer
            need less memory, and more time. Defaults to 2000.
        max_rows: Integer, the number of rows (examples, or positions) of a
            layer's activations whose singular values are computed. They are
            drawn evenly from all rows. Defaults to 2000.

    Attributes:
        history: List with a dict for each measurement: `"step"`; for each
            measure a dict from layer, and from `"total"`, to a number, the
            mean over learners; and `"per_learner"`, a dict from measure to the
            list of the learners' totals. A measure is left out if no layer has
            it, or if all learners have diverged. The total of a learner that
            has diverged is `None`. The history can be written as JSON.

    Example:

    ```python
    monitor = keras_plasticity.callbacks.PlasticityMonitor(
        (x_test[:2000], y_test[:2000]), log_dir="logs/run"
    )
    model.fit(x, y, epochs=10, callbacks=[monitor])
    monitor.history[-1]["dead_units"]  # {"dense": 3.0, "total": 3.0}
    ```

    References:

    - [Dohare et al., 2024](https://doi.org/10.1038/s41586-024-07711-7)
    """

    def __init__(
        self,
        probe_data: Any,
        log_dir: Any = None,
        layers: Sequence[str] | None = None,
        measures: Sequence[str] | None = None,
        batch_size: int = 2000,
        max_rows: int = 2000,
    ):
        super().__init__()
        self._batch_size = validation.check_positive_integer(
            "batch_size", batch_size
        )
        self._max_rows = validation.check_positive_integer("max_rows", max_rows)
        self.history = []
        self._num_examples, self._x, self._y = _check_probe(probe_data)
        has_targets = self._num_examples is not None or self._y is not None
        self._measures = _check_measures(measures, has_targets)
        self._layers = _check_layers(layers)
        self._log_dir = _check_log_dir(log_dir)
        self._writer = None
        # Kernels and replaced units of each learner at the last measurement.
        self._before = {}
        self._diverged = set()
        # The step that was measured before the run was interrupted.
        self._measured_before = None
        # The step of epoch 0 of this `fit`.
        self._first_step = 0
        # The names of the first learner's layers.
        self._names = None
        self._programs = Programs()

    def on_train_begin(self, logs=None):
        self._before = {}
        self._names = None

    def on_epoch_begin(self, epoch, logs=None):
        if self._before:
            return
        if self._num_examples is not None:
            raise ValueError(
                "`probe_data` must be an array of inputs, or a tuple (x, y), "
                "in `fit`: only `OnlineTrainer` knows the tasks from which an "
                "integer takes examples. "
                f"Received: probe_data={self._num_examples}"
            )
        model = self.model
        last = self.history[-1]["step"] if self.history else None
        self._first_step = 0
        if last is None or epoch > last:
            self._add(epoch, {0: self._measure(model, self._x, self._y)}, 1)
            self._write_histograms(epoch, model)
        else:
            # This has been measured at the end of the `fit` before.
            self._first_step = last - epoch
        self._before = {0: self._state(model)}

    def on_epoch_end(self, epoch, logs=None):
        model = self.model
        after = self._state(model)
        measured = self._measure(model, self._x, self._y)
        if measured is not None:
            changes = self._changes(self._before[0], after)
            measured = None if changes is None else {**measured, **changes}
        step = self._first_step + epoch + 1
        self._add(step, {0: measured}, 1)
        self._write_histograms(step, model)
        self._before = {0: after}

    def on_task_begin(self, task, x, y):
        self._before = {}
        self._first_names()
        measured = {}
        for learner in range(self.trainer.num_learners):
            if learner in self._diverged:
                continue
            model = self.trainer.model(learner)
            probe_x, probe_y = self._x, self._y
            if self._num_examples is not None:
                probe_x, probe_y = keras.tree.map_structure(
                    lambda array: array[learner, : self._num_examples],
                    (x, y),
                    none_is_leaf=False,
                )
            names = self._names_in_first(model)
            measured[learner] = _renamed(
                self._measure(model, probe_x, probe_y, names), names
            )
            self._before[learner] = self._state(model)
        self._add(task, measured, self.trainer.num_learners)

    def _first_names(self):
        """The names of the first learner's layers."""
        if self._names is None:
            self._names = _names(self.trainer.model(0))
        return self._names

    def on_task_end(self, task, results):
        broken = np.flatnonzero(~np.isfinite(results["loss"]))
        self._diverged.update(broken.tolist())
        changes = {}
        for learner, before in self._before.items():
            if learner not in self._diverged:
                model = self.trainer.model(learner)
                changes[learner] = _renamed(
                    self._changes(before, self._state(model)),
                    self._names_in_first(model),
                )
                if learner == 0:
                    self._write_histograms(task, model)
        self._add(task, changes, self.trainer.num_learners)
        self._before = {}

    def on_train_end(self, logs=None):
        self._before = {}
        if self._writer is None:
            return
        self._writer.flush()
        if self._writer is not self._log_dir:
            self._writer.close()
            self._writer = None

    def get_config(self) -> dict[str, Any]:
        return {"measures": list(self._measures)}

    def get_state(self) -> dict[str, Any]:
        """The state to resume from.

        Returns:
            Dict of lists, dicts, plain values, and arrays: within a task, the
            weights at its start.
        """
        return {
            "history": AppendOnly(self.history[:-1]),
            # The end of a task may add to it.
            "last": copy.deepcopy(self.history[-1:]),
            "diverged": sorted(self._diverged),
            "before": {
                str(learner): state for learner, state in self._before.items()
            },
        }

    def set_state(self, state: Mapping[str, Any]):
        """Continues the history of another monitor.

        Args:
            state: What its `get_state` returned.
        """
        validation.check_mapping(
            "state",
            state,
            ("history", "last", "diverged", "before"),
            "what `get_state` returned",
        )
        self.history = copy.deepcopy([*state["history"], *state["last"]])
        self._diverged = set(state["diverged"])
        self._before = {
            int(learner): each for learner, each in state["before"].items()
        }
        if self._before:
            self._measured_before = self.history[-1]["step"]

    def _names_in_first(self, model):
        """Dict from a layer's name in a learner's model to the first's."""
        return dict(zip(_names(model), self._first_names()))

    def _measure(self, model, x, y, names=None):
        """Measures a learner; `None` if it has diverged.

        Args:
            model: The learner's model.
            x: Inputs of the probe.
            y: Targets of the probe, or `None`.
            names: Dict from the names of this model's layers to those of the
                first learner's, where they differ.
        """
        measured = {}
        if self._wants(*_RANKS, *_UNITS, *_SATURATION):
            layers = self._layers
            if layers is not None and names is not None:
                in_this_model = {first: name for name, first in names.items()}
                layers = [in_this_model.get(name, name) for name in layers]
            try:
                measured = self._measure_activations(model, x, layers)
            except NotFinite:
                return None
        if self._wants("weight_magnitude"):
            kernels = _kernels(model)
            measured["weight_magnitude"] = _by_layer_and_total(
                diagnostics.weight_magnitude, kernels
            )
        if self._wants("gradient_norm") and y is not None:
            gradients = _gradients(model, x, y, self._batch_size)
            measured["gradient_norm"] = _by_layer_and_total(
                diagnostics.gradient_norm, gradients
            )
        return _if_finite(measured)

    def _measure_activations(self, model, x, layers):
        of_layers = layer_activations(
            model,
            x,
            layers,
            self._batch_size,
            self._max_rows,
            self._programs,
        )
        numbers = {}
        for layer, each in of_layers.items():
            if self._wants(*_RANKS):
                names = [name for name in _RANKS if self._wants(name)]
                numbers[layer] = several_ranks(each.rows(), names)
            else:
                numbers[layer] = {}
            numbers[layer] |= {
                "dead_units": each.units.dead(),
                "dormant_units": each.units.dormant(),
                "inactive_units": each.units.inactive(),
            }
            if each.extremes is not None:
                numbers[layer] |= {
                    "saturated_units": each.units.saturated(),
                    "saturated_fraction": each.units.saturated_fraction(),
                }
        measured = {}
        for name in self._measures:
            values = {
                layer: each[name]
                for layer, each in numbers.items()
                if name in each
            }
            if values:
                total = sum(values.values())
                if name in _MEANS:
                    total /= len(values)
                measured[name] = _with_total(values, total)
        return measured

    def _state(self, model):
        """What `_changes` compares: kernels, and counts of replaced units."""
        optimizer = _unit_reset_optimizer(model)
        state = {}
        if self._wants("weight_change"):
            state["kernels"] = _kernels(model)
        if self._wants("replaced_units") and optimizer is not None:
            state["replaced"] = optimizer.num_replaced()
        return state

    def _changes(self, before, after):
        """What has changed in a learner; `None` if it has diverged."""
        changes = {}
        if "replaced" in after:
            counts = {
                layer: count - before["replaced"].get(layer, 0)
                for layer, count in after["replaced"].items()
            }
            changes["replaced_units"] = _with_total(
                counts, sum(counts.values())
            )
        if "kernels" in after:
            changes["weight_change"] = _by_layer_and_total(
                lambda pairs: diagnostics.weight_change(*zip(*pairs)),
                {
                    layer: list(zip(before["kernels"][layer], kernels))
                    for layer, kernels in after["kernels"].items()
                },
            )
        return _if_finite(changes)

    def _wants(self, *names):
        return any(name in self._measures for name in names)

    def _add(self, step, measured, num_learners):
        """Adds measures to the history and to TensorBoard.

        Args:
            step: Integer. If it is the last one in the history, its entry is
                extended.
            measured: Dict from learner to a dict from measure to a dict from
                layer to number, or to `None`.
            num_learners: Integer.
        """
        if not self.history or self.history[-1]["step"] != step:
            self.history.append({"step": step, "per_learner": {}})
        entry = self.history[-1]
        found = [each for each in measured.values() if each is not None]
        for name in found[0] if found else ():
            entry[name] = {
                layer: sum(each[name][layer] for each in found) / len(found)
                for layer in found[0][name]
            }
            entry["per_learner"][name] = [
                None
                if measured.get(learner) is None
                else measured[learner][name]["total"]
                for learner in range(num_learners)
            ]
            if self._log_dir is not None:
                for layer, number in entry[name].items():
                    self._get_writer(step).scalar(
                        f"{_TAGS[name]}/{layer}", number, step
                    )
        if self._writer is not None:
            self._writer.flush()

    def _write_histograms(self, step, model):
        optimizer = _unit_reset_optimizer(model)
        if self._log_dir is None or optimizer is None:
            return
        names = optimizer.num_replaced()
        for layer in keras_compat.sublayers(model):
            # Only these have utilities.
            name = layer.name if layer.name in names else layer.path
            if name not in names:
                continue
            for measure in filter(self._wants, _HISTOGRAMS):
                values = keras.ops.convert_to_numpy(getattr(layer, measure))
                if np.isfinite(values).all():
                    self._get_writer(step).histogram(
                        f"{measure}/{name}", values, step
                    )

    def _get_writer(self, step):
        if hasattr(self._log_dir, "scalar"):
            self._writer = self._log_dir
        elif self._writer is None:
            # Imported here, so that TensorBoard is only needed for logs.
            from keras_plasticity.utils import SummaryWriter

            # What an interrupted run measured at the start of a task stays.
            first_step = step + (step == self._measured_before)
            self._writer = SummaryWriter(self._log_dir, first_step=first_step)
        return self._writer


def _names(model):
    """The names under which measures are reported: the layers', the model's."""
    return [*activations.layer_names(model).values(), model.name]


def _renamed(measured, names):
    """Measures under other names of layers; `None` stays `None`."""
    return measured and {
        measure: {names.get(name, name): n for name, n in values.items()}
        for measure, values in measured.items()
    }


def _kernels(model):
    """Dict from layer to the list of its kernels, as arrays."""
    return {
        name: [np.array(keras.ops.convert_to_numpy(v)) for v in own]
        for name, own in _by_layer(model, activations.kernels(model)).items()
    }


def _gradients(model, x, y, batch_size):
    """Dict from layer to its gradients of the loss on a probe, as arrays."""
    variables = weights_of(model)
    if not variables:
        return {}
    num_examples = len(keras.tree.flatten(x)[0])
    sums = {}
    for start in range(0, num_examples, batch_size):
        batch_x, batch_y = keras.tree.map_structure(
            lambda array: keras.ops.convert_to_tensor(
                array[start : start + batch_size]
            ),
            (x, y),
            none_is_leaf=False,
        )

        def loss():
            output = model(batch_x, training=False)
            return model.compute_loss(batch_x, batch_y, output, training=False)

        share = min(batch_size, num_examples - start) / num_examples
        for v, gradient in zip(variables, backend.gradients(loss, variables)):
            if gradient is not None:
                gradient = keras.ops.convert_to_numpy(gradient)
                sums[id(v)] = sums.get(id(v), 0.0) + share * gradient
    return {
        name: [sums.get(id(v), np.zeros(v.shape)) for v in own]
        for name, own in _by_layer(model, variables).items()
    }


def _by_layer(model, variables):
    """Dict from the name of a layer to those of the variables it owns."""
    names = {**activations.layer_names(model), id(model): model.name}
    remaining = {id(v): v for v in variables}
    result = {}
    # A layer comes after those that it is a part of: the last owner is the
    # innermost.
    owners = {}
    layers = [model, *keras_compat.sublayers(model)]
    for layer in layers:
        parts = {
            id(v)
            for part in keras_compat.children(layer)
            for v in part.variables
        }
        for v in layer.variables:
            if id(v) in remaining and id(v) not in parts:
                owners[id(v)] = names[id(layer)]
    for key, v in remaining.items():
        result.setdefault(owners.get(key, model.name), []).append(v)
    return result


def _unit_reset_optimizer(model):
    """The model's `UnitResetOptimizer`, inside other wrappers too, if any."""
    for optimizer in inner_optimizers.wrapped(
        getattr(model, "optimizer", None)
    ):
        if isinstance(optimizer, UnitResetOptimizer):
            return optimizer
    return None


def _by_layer_and_total(measure, arrays):
    """A measure of each layer's arrays, and of all arrays jointly."""
    if not arrays:
        return {}
    everything = [array for own in arrays.values() for array in own]
    return _with_total(
        {layer: measure(own) for layer, own in arrays.items()},
        measure(everything),
    )


def _with_total(values, total):
    if "total" in values:
        raise ValueError(
            "`PlasticityMonitor` calls the sum over all layers 'total'. Give "
            "the layer of that name another one."
        )
    return {**values, "total": total}


def _if_finite(measured):
    """Drops measures without layers; `None` if a number is not finite."""
    numbers = [n for values in measured.values() for n in values.values()]
    if not all(map(math.isfinite, numbers)):
        return None
    return {name: values for name, values in measured.items() if values}


def _check_probe(probe_data):
    """Returns the number of examples, or the inputs and the targets."""
    if isinstance(probe_data, (int, np.integer, np.bool_)):
        if (
            not validation.is_integer(probe_data)
            or not 1 <= probe_data <= validation.LARGEST_INTEGER
        ):
            raise validation.error(
                "probe_data",
                "a positive number of examples, an array of inputs, or a tuple "
                "(x, y)",
                probe_data,
            )
        return int(probe_data), None, None
    x, y = probe_data, None
    if isinstance(probe_data, tuple):
        if len(probe_data) != 2:
            raise ValueError(
                "`probe_data` must be an array of inputs, or a tuple (x, y); "
                "several inputs come as a list or a dict. Received: a tuple "
                f"of length {len(probe_data)}"
            )
        x, y = probe_data
        if all(_as_array(target).ndim for target in keras.tree.flatten(y)):
            y = keras.tree.map_structure(_as_array, y)
        else:
            y = _as_array(y)  # A list of numbers.
    x = keras.tree.map_structure(_as_array, x)
    arrays = keras.tree.flatten(x)
    if y is not None:
        arrays += keras.tree.flatten(y)
    shapes = [array.shape for array in arrays]
    lengths = {shape[0] if shape else 0 for shape in shapes}
    if len(lengths) != 1 or not min(lengths):
        raise ValueError(
            "The arrays of `probe_data` must have one entry for each example, "
            f"and one example at least. Received: arrays of shapes {shapes}"
        )
    for array in arrays:
        if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
            raise ValueError(
                "`probe_data` must be finite numbers. Received: an array of "
                f"shape {array.shape} and dtype {array.dtype}"
                + (
                    " with NaN or infinite values"
                    if array.dtype.kind == "f"
                    else ""
                )
            )
    return None, x, y


def _check_measures(measures, has_targets):
    if measures is None:
        return [
            name for name in _MEASURES if has_targets or name != "gradient_norm"
        ]
    rule = f"a list of some of {list(_MEASURES)}"
    measures = validation.check_list("measures", measures, str, rule)
    if not set(measures) <= set(_MEASURES):
        raise validation.error("measures", rule, measures)
    if "gradient_norm" in measures and not has_targets:
        raise ValueError(
            "The measure 'gradient_norm' needs targets: give `probe_data` as "
            f"a tuple (x, y). Received: measures={measures}"
        )
    return [name for name in _MEASURES if name in measures]


def _check_layers(layers):
    if layers is None:
        return None
    rule = "a list of the names of layers, or `None` for all hidden layers"
    names = validation.check_list("layers", layers, str, rule)
    if not names:
        raise validation.error("layers", rule, layers)
    return names


def _check_log_dir(log_dir):
    if log_dir is None or hasattr(log_dir, "scalar"):
        return log_dir
    return validation.check_path("log_dir", log_dir)


def _as_array(value):
    return validation.as_array("probe_data", value)
