import copy
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_plasticity import keras_compat
from keras_plasticity import validation
from keras_plasticity.diagnosis import examples
from keras_plasticity.diagnosis import measurement
from keras_plasticity.diagnosis import measures as table
from keras_plasticity.diagnosis import thresholds as limits
from keras_plasticity.diagnosis.recent_examples import RecentExamples
from keras_plasticity.training import AppendOnly
from keras_plasticity.training import TaskCallback
from keras_plasticity.training import nests


class PlasticityMonitor(keras.callbacks.Callback, TaskCallback):
    """Monitors the plasticity of a network while it trains.

    It is a callback for `model.fit`, with any Keras model, and for
    `keras_plasticity.training.OnlineTrainer`. It changes nothing in the model
    or its training.

    In `fit` it measures before the first epoch (step 0, or `initial_epoch`)
    and after each epoch (step: the number of epochs done). A later `fit` that
    starts at an earlier epoch, such as one for each task, continues from the
    last step. The totals of all measures are added to Keras' `logs`, where the
    progress bar and the callbacks that come after this one find them:
    `EarlyStopping(monitor="effective_rank", mode="max")`, `ModelCheckpoint`,
    `CSVLogger` and others.

    In `OnlineTrainer` it measures each learner before each task (step: the
    task), and adds what the task has changed when it ends. Layers go by their
    names in the first learner's model.

    Each measure has a value for each layer and in total:

    - `effective_rank`, `approximate_rank`, `absolute_approximate_rank`,
        `stable_rank`, `hard_rank`: see `keras_plasticity.diagnostics`. Total:
        mean.
    - `dead_units`, `dormant_units`, `inactive_units`: likewise, with their
        default thresholds. Total: sum.
    - `saturated_units`, `saturated_fraction`: likewise, of layers with a
        bounded activation (tanh, sigmoid and their like), within 5 % of its
        range of an extreme. Total: sum, and mean.
    - `linear_units`, `linear_fraction`: likewise, of layers whose activation
        is linear in a region. Total: sum, and mean.
    - `gradient_dormant_units`: likewise, of dense and convolutional layers, by
        the gradient of the loss on the probe. Total: sum.
    - `weight_magnitude`, `weight_change`, `weight_growth`: mean absolute entry
        of the kernels, that of their change since the last measurement (in
        `OnlineTrainer`: during the task), and by what factor the magnitude has
        grown since the first. Total: over the entries of all kernels.
    - `gradient_norm`: norm of the gradient of the loss on the probe, computed
        in inference mode. Total: norm of all weights' gradients. The loss is
        assumed to be a mean over examples: with `reduction="sum"`, set
        `batch_size` to the number of examples of the probe.
    - `output_churn`: mean squared change of the outputs for the probe since
        the last measurement, of the whole model. It needs a probe that stays
        the same: arrays, or a data set.
    - `replaced_units`: units that the optimizer replaced since the last
        measurement (in `OnlineTrainer`: during the task). Total: sum.
    - `utility`, `age`: histograms in TensorBoard only, of the first learner.

    And, for the whole model and only where `measures` names them, since they
    take longer:

    - `isometry_deviation`: see `keras_plasticity.diagnostics`; the product of
        each kernel and its transpose.
    - `optimization_readiness`: the gradients of 128 batches of four examples;
        see `keras_plasticity.diagnosis`.
    - `tangent_kernel_rank`: the gradients of 32 examples, one by one, and the
        memory for them.
    - `hessian_rank`, `sharpness`: second derivatives of the loss. Each of up
        to 40 steps of the Lanczos algorithm takes twice the time of the
        gradient on the whole probe, and as much memory as the weights.

    Activations are measured in every hidden layer, after its non-linearity: a
    hidden layer has a kernel, and its outputs lead to another layer with one.
    Weights are measured in every layer with a kernel, the last one included.
    The positions of a feature map count as examples, its channels as units.
    All is measured in inference mode: dropout is off, and normalization layers
    use their moving averages, which lag behind in the first thousand updates.

    What it computes is compiled at the first measurement and kept. Then it
    costs about as much as five training steps on the whole probe, and the
    singular values: of a layer of 100 units next to nothing, of 2,000 units
    and as many examples seconds. In that case choose `measures` without ranks,
    fewer examples, or a smaller `max_rows`.

    Args:
        probe_data: The examples to measure on. An array of inputs (for a model
            with several inputs, a list or dict); a tuple `(x, y)`, which adds
            measures of gradients; a data set of batches of these (`PyDataset`,
            `tf.data`, a PyTorch `DataLoader`), read once; a
            `keras_plasticity.diagnosis.RecentExamples`, what was last trained
            on; or, in `OnlineTrainer` only, an integer: that many examples
            from the start of the coming task, with their targets (the paper
            takes 2,000).
        log_dir: String, the folder of the TensorBoard logs; or an open
            `SummaryWriter` from `keras_plasticity.utils`, which is left open.
            Totals come first there, in the group `all_layers`. Defaults to
            `None`: no logs.
        layers: List of names of the layers whose activations are measured.
            Defaults to all hidden layers.
        measures: List of names of measures. Defaults to all for which there
            are data, without those that take longer.
        batch_size: Integer, the number of examples computed at once: fewer
            need less memory, and more time. Defaults to 2000.
        max_rows: Integer, the number of rows (examples, or positions) of a
            layer's activations whose singular values are computed. They are
            drawn evenly from all rows. Defaults to 2000.
        thresholds: Dict from the name of a measure to a number. Where the
            total is beyond it for the first time (above, or below where less
            is worse: ranks and `optimization_readiness`), a warning says what
            is wrong, and where. Of measures that count units it is a fraction
            of all units that are measured: `{"dead_units": 0.2}` warns when
            more than a fifth are dead. Defaults to `None`: no warnings.

    Attributes:
        history: List with a dict for each measurement: `"step"`; for each
            measure a dict from layer, and from `"total"`, to a number, the
            mean over learners; and `"per_learner"`, a dict from measure to the
            list of the learners' totals. A measure is left out if no layer has
            it, or if all learners have diverged. The total of a learner that
            has diverged is `None`. The history can be written as JSON.
        num_units: Integer, the number of units in the layers whose activations
            are measured, those of one learner; `None` before the first
            measurement.

    Example:

    ```python
    monitor = keras_plasticity.callbacks.PlasticityMonitor(
        (x_test[:2000], y_test[:2000]),
        log_dir="logs/run",
        thresholds={"dead_units": 0.2},
    )
    stop = keras.callbacks.EarlyStopping(
        monitor="effective_rank", mode="max", patience=3
    )
    model.fit(x, y, epochs=10, callbacks=[monitor, stop])
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
        thresholds: Mapping[str, float] | None = None,
    ):
        super().__init__()
        batch_size = validation.check_positive_integer("batch_size", batch_size)
        max_rows = validation.check_positive_integer("max_rows", max_rows)
        self.history = []
        self.num_units = None
        # The number of examples of each task, those last trained on, or the
        # examples themselves.
        self._num_examples, self._recent = None, None
        self._x, self._y = None, None
        if isinstance(probe_data, (int, np.integer, np.bool_)):
            self._num_examples = _check_number_of_examples(probe_data)
        elif isinstance(probe_data, RecentExamples):
            self._recent = probe_data
        else:
            self._x, self._y = examples.as_examples("probe_data", probe_data)
        names = table.check_measures(
            measures, self._x is None or self._y is not None, "probe_data"
        )
        if "output_churn" in names and self._x is None:
            if measures is not None:
                raise ValueError(
                    "The measure 'output_churn' compares the outputs for the "
                    "same examples: give `probe_data` as arrays or as a data "
                    f"set. Received: probe_data={probe_data!r}"
                )
            names.remove("output_churn")
        self._layers = table.check_layers(layers)
        self._measurement = measurement.Measurement(
            names, self._layers, batch_size, max_rows
        )
        self._thresholds = limits.Thresholds(thresholds, names)
        self._log_dir = _check_log_dir(log_dir)
        self._writer = None
        # What each learner was at the last measurement, and at the first.
        self._before = {}
        self._first = {}
        self._diverged = set()
        # The step that was measured before the run was interrupted.
        self._measured_before = None
        # The step of epoch 0 of this `fit`.
        self._first_step = 0
        # The names of the first learner's layers.
        self._names = None
        # The names of measures that stand in the logs of `fit`.
        self._logged = set()

    def on_train_begin(self, logs=None):
        self._before = {}
        self._names = None

    def on_epoch_begin(self, epoch, logs=None):
        if self._before:
            return
        if self._num_examples is not None:
            raise ValueError(
                "`probe_data` must be an array of inputs, a tuple (x, y), a "
                "data set or `RecentExamples` in `fit`: only `OnlineTrainer` "
                "knows the tasks from which an integer takes examples. "
                f"Received: probe_data={self._num_examples}"
            )
        model = self.model
        last = self.history[-1]["step"] if self.history else None
        self._first_step = 0
        if last is not None and epoch <= last:
            # This has been measured at the end of the `fit` before.
            self._first_step = last - epoch
        elif self._recent is None or len(self._recent):
            self._add(epoch, {0: self._measure(model, *self._probe())}, 1)
            self._write_histograms(epoch, model)
        self._before = {0: self._state(model, 0)}

    def on_epoch_end(self, epoch, logs=None):
        model = self.model
        after = self._state(model, 0)
        measured = self._measure(model, *self._probe())
        if measured is not None:
            changes = self._changes(0, after)
            measured = None if changes is None else {**measured, **changes}
        step = self._first_step + epoch + 1
        self._add(step, {0: measured}, 1)
        self._write_histograms(step, model)
        self._before = {0: after}
        if logs is not None:
            self._log(logs, measured)
        if measured is not None:
            self._check(measured, f"After epoch {epoch + 1}")

    def on_task_begin(self, task, x, y):
        if self._recent is not None:
            raise ValueError(
                "`probe_data` must be an array of inputs, a tuple (x, y), a "
                "data set or a number of examples in `OnlineTrainer`. "
                "Received: a `RecentExamples`, which nobody fills there"
            )
        self._before = {}
        self._first_names()
        measured = {}
        for learner in range(self.trainer.num_learners):
            if learner in self._diverged:
                continue
            model = self.trainer.model(learner)
            probe_x, probe_y = self._x, self._y
            if self._num_examples is not None:
                own = learner, slice(self._num_examples)
                probe_x, probe_y = nests.take((x, y), own)
            names = self._names_in_first(model)
            of_learner = self._measure(model, probe_x, probe_y, names)
            if of_learner is not None:
                when = f"Before task {task}"
                if self.trainer.num_learners > 1:
                    when = f"{when}, in learner {learner}"
                self._check(of_learner, when)
            measured[learner] = _renamed(of_learner, names)
            self._before[learner] = self._state(model, learner)
        self._add(task, measured, self.trainer.num_learners)

    def _first_names(self):
        """The names of the first learner's layers."""
        if self._names is None:
            self._names = measurement.names_of(self.trainer.model(0))
        return self._names

    def on_task_end(self, task, results):
        broken = np.flatnonzero(~np.isfinite(results["loss"]))
        self._diverged.update(broken.tolist())
        changes = {}
        for learner in self._before:
            if learner not in self._diverged:
                model = self.trainer.model(learner)
                changes[learner] = _renamed(
                    self._changes(learner, self._state(model, learner)),
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
        return {"measures": list(self._measurement.names)}

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
            "num_units": self.num_units,
            "diverged": sorted(self._diverged),
            "before": _with_names(self._before),
            "first": _with_names(self._first),
        }

    def set_state(self, state: Mapping[str, Any]):
        """Continues the history of another monitor.

        Args:
            state: What its `get_state` returned.
        """
        validation.check_mapping(
            "state",
            state,
            ("history", "last", "num_units", "diverged", "before", "first"),
            "what `get_state` returned",
        )
        self.history = copy.deepcopy([*state["history"], *state["last"]])
        self.num_units = state["num_units"]
        self._diverged = set(state["diverged"])
        self._before = _with_numbers(state["before"])
        self._first = _with_numbers(state["first"])
        if self._before:
            self._measured_before = self.history[-1]["step"]

    def _names_in_first(self, model):
        """Dict from a layer's name in a learner's model to the first's."""
        return dict(zip(measurement.names_of(model), self._first_names()))

    def _probe(self):
        """Inputs and targets, in `fit`."""
        if self._recent is not None:
            return self._recent.examples()
        return self._x, self._y

    def _state(self, model, learner):
        """What `_changes` compares."""
        state = self._measurement.state(model, self._x)
        if "magnitude" in state:
            first = {"magnitude": state["magnitude"]}
            self._first.setdefault(learner, first)
        return state

    def _changes(self, learner, after):
        """What has changed in a learner; `None` if it has diverged."""
        return self._measurement.changes(
            self._before[learner], after, self._first.get(learner)
        )

    def _measure(self, model, x, y, names=None):
        """Measures a learner; `None` if it has diverged.

        Args:
            model: The learner's model.
            x: Inputs of the probe.
            y: Targets of the probe, or `None`.
            names: Dict from the names of this model's layers to those of the
                first learner's, where they differ.
        """
        layers = self._layers
        if layers is not None and names is not None:
            in_this_model = {first: name for name, first in names.items()}
            layers = [in_this_model.get(name, name) for name in layers]
        measured = self._measurement.measure(model, x, y, layers)
        self.num_units = sum(self._measurement.num_units.values())
        return measured

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
                    tag = table.tag(name, layer)
                    self._get_writer(step).scalar(tag, number, step)
        if self._writer is not None:
            self._writer.flush()

    def _check(self, measured, when):
        self._thresholds.check(measured, self._measurement.num_units_of, when)

    def _log(self, logs, measured):
        """Adds the totals to the logs of `fit`; NaN if it has diverged."""
        totals = dict.fromkeys(self._logged, float("nan"))
        if measured is not None:
            totals = {name: each["total"] for name, each in measured.items()}
        taken = [name for name in totals if name in logs]
        if taken:
            raise ValueError(
                "The names of metrics must not be those of measures of "
                "`PlasticityMonitor`. Give the metric another name; of "
                "monitors, a `fit` takes one, with all measures. Received: "
                f"{taken} in the logs already"
            )
        self._logged = set(totals)
        logs.update(totals)

    def _write_histograms(self, step, model):
        optimizer = measurement.unit_reset_optimizer(model)
        if self._log_dir is None or optimizer is None:
            return
        names = optimizer.num_replaced()
        for layer in keras_compat.sublayers(model):
            # Only these have utilities.
            name = layer.name if layer.name in names else layer.path
            if name not in names:
                continue
            for measure in filter(self._measurement.wants, table.HISTOGRAMS):
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


def _renamed(measured, names):
    """Measures under other names of layers; `None` stays `None`."""
    return measured and {
        measure: {names.get(name, name): n for name, n in values.items()}
        for measure, values in measured.items()
    }


def _with_names(states):
    """Dict from the number of a learner, as a string, to its state."""
    return {str(learner): state for learner, state in states.items()}


def _with_numbers(states):
    return {int(learner): state for learner, state in states.items()}


def _check_number_of_examples(value):
    is_right = validation.is_integer(value)
    if not is_right or not 1 <= value <= validation.LARGEST_INTEGER:
        raise validation.error(
            "probe_data",
            "a positive number of examples, an array of inputs, a tuple "
            "(x, y), a data set, or `RecentExamples`",
            value,
        )
    return int(value)


def _check_log_dir(log_dir):
    if log_dir is None or hasattr(log_dir, "scalar"):
        return log_dir
    return validation.check_path("log_dir", log_dir)
