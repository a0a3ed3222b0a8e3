"""Measures a model, and what has changed in it since."""

import math

import keras
import numpy as np

from keras_plasticity import diagnostics
from keras_plasticity import keras_compat
from keras_plasticity.diagnosis import curvature
from keras_plasticity.diagnosis import measures as table
from keras_plasticity.diagnosis import readiness
from keras_plasticity.diagnosis import tangent_kernel
from keras_plasticity.diagnosis.differentiation import differentiation_of
from keras_plasticity.diagnosis.layer_activations import NotFinite
from keras_plasticity.diagnosis.layer_activations import Programs
from keras_plasticity.diagnosis.layer_activations import layer_activations
from keras_plasticity.diagnostics.rank import several_ranks
from keras_plasticity.graph import activations
from keras_plasticity.optimizers import UnitResetOptimizer
from keras_plasticity.optimizers import inner_optimizers
from keras_plasticity.weights import weights_of

# Layers whose kernels have their units last, and nothing else beside them.
_WITH_UNITS_LAST = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Dense,
)


class Measurement:
    """Measures models of one structure, with programs that are kept.

    Args:
        names: List of names of measures.
        layers: List of names of layers; `None` for all hidden layers.
        batch_size: Integer, the number of examples computed at once.
        max_rows: Integer, the rows whose singular values are computed.

    Attributes:
        num_units: Dict from each layer that was measured last to the number of
            its units.
    """

    def __init__(self, names, layers, batch_size, max_rows):
        self.names = names
        self._layers = layers
        self._batch_size = batch_size
        self._max_rows = max_rows
        self._programs = Programs()
        self.num_units = {}
        self._num_gradient_units = {}

    def wants(self, *names):
        return any(name in self.names for name in names)

    def num_units_of(self, measure):
        """The units among which a measure counted last.

        Args:
            measure: String, its name.

        Returns:
            Dict from layer to the number of its units.
        """
        if measure == "gradient_dormant_units":
            return self._num_gradient_units
        return self.num_units

    def measure(self, model, x, y=None, layers=None):
        """Measures a model.

        Args:
            model: A built `keras.Model`.
            x: Nest of arrays: inputs of the probe.
            y: Nest of arrays: its targets, or `None`.
            layers: List of names of layers, in the place of the instance's.

        Returns:
            Dict from measure to a dict from layer, and from `"total"`, to
            number, without measures that no layer has; `None` if a number is
            not finite, since the network has diverged.
        """
        # Activations do not tell: TensorFlow's `relu` of NaN is 0.
        if not _is_finite(model):
            return None
        measured = {}
        layers = self._layers if layers is None else layers
        if self._wants_from("activations"):
            try:
                measured = self._of_activations(model, x, layers)
            except NotFinite:
                return None
        if self._wants_from("weights"):
            kernels = kernels_of(model)
            for name, measure in (
                ("weight_magnitude", diagnostics.weight_magnitude),
                ("isometry_deviation", diagnostics.isometry_deviation),
            ):
                if self.wants(name):
                    measured[name] = _by_layer_and_total(measure, kernels)
        if self._wants_from("gradients") and y is not None:
            measured.update(self._of_gradients(model, x, y, layers))
        if self._wants_from("loss") and y is not None:
            measured.update(self._of_loss(model, x, y))
        if self._wants_from("examples"):
            rank = tangent_kernel.tangent_kernel_rank(model, (x, None))
            measured["tangent_kernel_rank"] = with_total({}, rank)
        return if_finite(measured) and {
            name: measured[name] for name in self.names if measured.get(name)
        }

    def _wants_from(self, source):
        return any(
            name in table.MEASURES
            and table.MEASURES[name].source == source
            and not table.MEASURES[name].is_change
            for name in self.names
        )

    def _of_activations(self, model, x, layers):
        found = layer_activations(
            model,
            x,
            layers,
            self._batch_size,
            self._max_rows,
            self._programs,
        )
        self.num_units = {
            name: each.units.num_units for name, each in found.items()
        }
        numbers = {name: self._of_layer(each) for name, each in found.items()}
        return _with_totals(numbers, self.names)

    def _of_layer(self, layer):
        units = layer.units
        numbers = {
            "dead_units": units.dead(),
            "dormant_units": units.dormant(),
            "inactive_units": units.inactive(),
        }
        if layer.extremes is not None:
            numbers["saturated_units"] = units.saturated()
            numbers["saturated_fraction"] = units.saturated_fraction()
        if layer.num_regions:
            numbers["linear_units"] = units.linear()
            numbers["linear_fraction"] = units.linear_fraction()
        if self.wants(*table.RANKS):
            names = [name for name in table.RANKS if self.wants(name)]
            numbers.update(several_ranks(layer.rows(), names))
        return numbers

    def _of_gradients(self, model, x, y, layers):
        variables = weights_of(model)
        if not variables:
            return {}
        _, gradients = differentiation_of(model).loss_and_gradients(
            x, y, self._batch_size
        )
        gradients = dict(zip(map(id, variables), gradients))
        measured = {}
        if self.wants("gradient_norm"):
            measured["gradient_norm"] = _by_layer_and_total(
                diagnostics.gradient_norm,
                {
                    name: [gradients[id(v)] for v in own]
                    for name, own in _by_layer(model, variables).items()
                },
            )
        if self.wants("gradient_dormant_units"):
            kernels = _unit_kernels(model)
            hidden = self._programs.hidden_layers(
                model, x, layers, self._batch_size
            )
            numbers = {}
            self._num_gradient_units = {}
            for name in hidden:
                gradient = gradients.get(id(kernels.get(name)))
                if gradient is not None:
                    count = diagnostics.gradient_dormant_units(gradient)
                    numbers[name] = {"gradient_dormant_units": count}
                    num_units = gradient.shape[-1]
                    self._num_gradient_units[name] = num_units
                    # An activation such as `CReLU` may make others of them.
                    self.num_units.setdefault(name, num_units)
            measured.update(_with_totals(numbers, self.names))
        return measured

    def _of_loss(self, model, x, y):
        """Measures of the whole model that need many gradients of its loss."""
        totals = {}
        if self.wants("optimization_readiness"):
            totals["optimization_readiness"] = readiness.optimization_readiness(
                model, (x, y), batch_size=self._batch_size
            )
        if self.wants("hessian_rank", "sharpness"):
            values, weights = curvature.hessian_spectrum(
                model, (x, y), batch_size=self._batch_size
            )
            if not np.isfinite(values).all():
                return {"sharpness": {"total": np.nan}}
            totals["hessian_rank"] = diagnostics.hessian_rank(values, weights)
            totals["sharpness"] = float(np.max(values))
        return {name: with_total({}, n) for name, n in totals.items()}

    def state(self, model, x=None):
        """What `changes` compares.

        Args:
            model: A built `keras.Model`.
            x: Nest of arrays: inputs of the probe, if outputs are compared.

        Returns:
            Dict that holds kernels, counts of replaced units and outputs, as
            far as a measure needs them.
        """
        optimizer = unit_reset_optimizer(model)
        state = {}
        if self.wants("weight_change", "weight_growth"):
            kernels = kernels_of(model)
        if self.wants("weight_change"):
            state["kernels"] = kernels
        if self.wants("weight_growth"):
            state["magnitude"] = _by_layer_and_total(
                diagnostics.weight_magnitude, kernels
            )
        if self.wants("replaced_units") and optimizer is not None:
            state["replaced"] = optimizer.num_replaced()
        if self.wants("output_churn") and x is not None:
            state["outputs"] = self._programs.outputs(
                model, x, self._batch_size
            )
        return state

    def changes(self, before, after, first):
        """What has changed in a model.

        Args:
            before: Its `state`.
            after: A later one.
            first: The `state` of the beginning; its magnitudes count.

        Returns:
            Dict from measure to a dict from layer, and from `"total"`, to
            number; `None` if a number is not finite.
        """
        changes = {}
        if "replaced" in after:
            counts = {
                layer: count - before["replaced"].get(layer, 0)
                for layer, count in after["replaced"].items()
            }
            changes["replaced_units"] = with_total(counts, sum(counts.values()))
        if "outputs" in after and "outputs" in before:
            changes["output_churn"] = with_total(
                {}, _churn(before["outputs"], after["outputs"])
            )
        if "magnitude" in after:
            changes["weight_growth"] = {
                layer: diagnostics.weight_growth(
                    [np.array(first["magnitude"][layer])], [np.array(magnitude)]
                )
                for layer, magnitude in after["magnitude"].items()
            }
        if "kernels" in after:
            changes["weight_change"] = _by_layer_and_total(
                lambda pairs: diagnostics.weight_change(*zip(*pairs)),
                {
                    layer: list(zip(before["kernels"][layer], kernels))
                    for layer, kernels in after["kernels"].items()
                },
            )
        return if_finite(changes)


def names_of(model):
    """The names under which measures are reported: the layers', the model's."""
    return [*activations.layer_names(model).values(), model.name]


def kernels_of(model):
    """Dict from layer to the list of its kernels, as arrays."""
    return {
        name: [np.array(keras.ops.convert_to_numpy(v)) for v in own]
        for name, own in _by_layer(model, activations.kernels(model)).items()
    }


def unit_reset_optimizer(model):
    """The model's `UnitResetOptimizer`, inside other wrappers too, if any."""
    for optimizer in inner_optimizers.wrapped(
        getattr(model, "optimizer", None)
    ):
        if isinstance(optimizer, UnitResetOptimizer):
            return optimizer
    return None


def with_total(values, total):
    if "total" in values:
        raise ValueError(
            "`PlasticityMonitor` calls the sum over all layers 'total'. Give "
            "the layer of that name another one."
        )
    return {**values, "total": total}


def _is_finite(model):
    """Whether all weights of a model are finite numbers."""
    return all(
        np.isfinite(keras.ops.convert_to_numpy(v)).all()
        for v in weights_of(model)
    )


def if_finite(measured):
    """Drops measures without layers; `None` if a number is not finite."""
    numbers = [n for values in measured.values() for n in values.values()]
    if not all(map(math.isfinite, numbers)):
        return None
    return {name: values for name, values in measured.items() if values}


def _with_totals(numbers, names):
    """Turns a dict from layer to measures into one from measure to layers.

    Args:
        numbers: Dict from layer to a dict from measure to number.
        names: List of the measures to take.

    Returns:
        Dict from measure to a dict from layer, and `"total"`, to number.
    """
    measured = {}
    for name in names:
        values = {
            layer: each[name] for layer, each in numbers.items() if name in each
        }
        if values:
            total = sum(values.values())
            if table.MEASURES[name].total == "mean":
                total /= len(values)
            measured[name] = with_total(values, total)
    return measured


def _by_layer_and_total(measure, arrays):
    """A measure of each layer's arrays, and of all arrays jointly."""
    if not arrays:
        return {}
    everything = [array for own in arrays.values() for array in own]
    return with_total(
        {layer: measure(own) for layer, own in arrays.items()},
        measure(everything),
    )


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


def _unit_kernels(model):
    """Dict from the name of a layer to its kernel, where that has units."""
    names = activations.layer_names(model)
    return {
        names[id(layer)]: layer.kernel
        for layer in keras_compat.sublayers(model)
        if isinstance(layer, _WITH_UNITS_LAST) and layer.built
    }


def _churn(before, after):
    """The churn of all outputs together."""
    return diagnostics.output_churn(
        *(
            np.concatenate([np.ravel(array) for array in arrays])
            for arrays in (before, after)
        )
    )
