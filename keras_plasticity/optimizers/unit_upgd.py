import keras
import numpy as np
from keras import ops

from keras_plasticity import functional
from keras_plasticity.functional.matrices import at_least_float32
from keras_plasticity.optimizers.hidden_network import HiddenNetwork
from keras_plasticity.optimizers.hidden_network import is_unit_statistic
from keras_plasticity.optimizers.hidden_units import each_once
from keras_plasticity.optimizers.inner_optimizers import wrapped
from keras_plasticity.optimizers.unit_reset_optimizer import UnitResetOptimizer
from keras_plasticity.optimizers.upgd import UPGD
from keras_plasticity.units.feature_map import FeatureMap
from keras_plasticity.units.weight_view import WeightView
from keras_plasticity.weights import is_statistic


@keras.saving.register_keras_serializable(package="keras_plasticity")
class UnitUPGD(UPGD):
    """Optimizer wrapper that protects useful units and perturbs the others.

    It is `UPGD` with a utility for each hidden unit, where that has one for
    each weight. The utility of a unit is what the loss would rise by without
    it, to first order: `-dloss/dgate`, if a gate of 1 multiplied the unit where
    other layers read it. No gate is needed, for this equals

    `-(sum of gradient * weight, over all weights that read the unit)`,

    the weights being as they were before the update. Of a unit that several
    layers read, or that is several features behind a `Flatten`, it is the sum
    over all of them. With `u` its bias-corrected running mean after `t`
    updates, a unit is protected by

    - `S = sigmoid(u / ((1 - utility_decay**t) * max(u)))`, the maximum being
        over all hidden units of the model (`scope="global"`), or
    - `S = sigmoid(u / norm(u))`, the Euclidean norm being over the units of
        its layer (`scope="local"`).

    With `D` the change that the inner optimizer makes, and `e` from a standard
    normal distribution, the weights that a unit reads with and its bias become

    `w <- (1 - learning_rate * decay) * w
    + (1 - S) * (D - learning_rate * noise_stddev * e)`,

    and so do its entries in the gamma and beta of a normalization, or in the
    slopes of a `PReLU`, on the way to those that read it. With
    `protecting=False` the step is not gated, but the noise is, as in `UPGD`,
    which also says what becomes of a maximum that is not positive.

    All other weights, such as those of the output layer, take the inner
    optimizer's step and the decay: they have neither gates nor noise. Hidden
    units are those of plastic layers that other plastic layers read. Layers
    that are frozen when the optimizer is built, or have `replaceable=False`,
    have no such units, and neither have those that a frozen layer reads.

    An update is one step that the inner optimizer makes: with gradient
    accumulation, utilities are those of the accumulated gradient. Weights whose
    gradient is `None` say nothing of the units that they read.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        scope: `"global"` (default) or `"local"`, which units are compared.
        protecting: Boolean, whether the inner optimizer's step is gated, too.
            Defaults to `True`.
        utility_decay: Float in [0, 1), the decay rate of the running mean of
            the utility. Defaults to `0.999`.
        decay: Float, not negative, or a schedule of Keras: the part of a
            weight that a step of size 1 takes off. Defaults to `0.001`.
        noise_stddev: Float, not negative, or a schedule of Keras, the standard
            deviation of the noise that is added to the gradient. Defaults to
            `0.001`.
        noise_refresh_steps: Integer, the number of updates that noise is drawn
            ahead for. Defaults to `10000`.
        seed: Integer, of the noise. Drawn at random by default.
        exclude: Strings. Weights are left to the inner optimizer whose path,
            such as `"sequential/hidden/bias"`, has one of them in it. Units
            none of whose weights are left have no part in the maximum. Defaults
            to `()`.
        name: String, the optimizer's name.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras_plasticity.layers.Dense(300, activation="relu"),
            keras_plasticity.layers.Dense(150, activation="relu"),
            keras_plasticity.layers.Dense(10),
        ]
    )
    optimizer = keras_plasticity.optimizers.UnitUPGD(
        keras.optimizers.SGD(0.01), utility_decay=0.9999, noise_stddev=0.1
    )
    model.compile(optimizer=optimizer, loss="mse")
    ```

    References:

    - [Elsayed and Mahmood, 2024](https://arxiv.org/abs/2404.00781)
    """

    _network = None

    def _prepare_build(self, variables):
        if self.built:
            return
        # An optimizer around this one may have shown it all variables before,
        # and keep to itself the statistics by which layers are found.
        if self._network is None or any(map(is_unit_statistic, variables)):
            network = HiddenNetwork()
            network.find(self, variables)
            self._network = network

    def build_inner(self, variables):
        super().build_inner([v for v in variables if self._is_for_inner(v)])

    def make_step(self, grads, variables):
        pairs = [
            (gradient, variable)
            for gradient, variable in zip(grads, variables)
            if self._is_for_inner(variable)
        ]
        super().make_step([g for g, _ in pairs], [v for _, v in pairs])

    def finalize_variable_values(self, var_list):
        super().finalize_variable_values(
            [v for v in var_list if self._is_for_inner(v)]
        )

    def _is_for_inner(self, variable):
        """Whether the inner optimizer has to know of a variable.

        Statistics of units, which Keras' own optimizers can make no moving
        averages of, concern those only that find layers by them.
        """
        return not is_unit_statistic(variable) or any(
            isinstance(each, (UnitResetOptimizer, UnitUPGD))
            for each in wrapped(self.inner_optimizer)
        )

    def _choose(self, variables):
        chosen = super()._choose(variables)
        # Ids of the weights that change, which are not all that are read.
        self._changed = {id(weight) for weight in chosen}
        self._network.check(variables)
        layers = [
            _LayerUnits(connections, self._changed)
            for connections in self._network.take_connections(self)
        ]
        self._layers = [layer for layer in layers if layer.owned]
        if not self._layers:
            raise ValueError(
                f"`{type(self).__name__}` has no hidden unit to act on: there "
                "must be a plastic layer that another one reads, both of them "
                "trainable, and `exclude` must leave a weight of it. Received: "
                f"exclude={list(self.exclude)}, and the weights "
                f"{[v.path for v in variables if not is_statistic(v)]}"
            )
        # What reads the units has to be known, even if it is left alone.
        readers = [
            view.variable for layer in self._layers for view, _ in layer.readers
        ]
        return each_once([*chosen, *readers])

    def add_state(self, weights):
        for layer in self._layers:
            layer.utility = self.add_variable(
                (layer.size,), dtype="float32", name=f"{layer.path}_utility"
            )
        masks = {}
        for view, feature_map in self._owned():
            key = id(view.variable)
            masks[key] = np.logical_or(
                _is_of_unit(view, feature_map), masks.get(key, False)
            )
        # Which entries of a weight belong to units, if not all do.
        self._masks = {
            key: mask.astype("float32")
            for key, mask in masks.items()
            if not mask.all()
        }
        self._add_noise([weight for weight in weights if id(weight) in masks])

    def _owned(self):
        return [pair for layer in self._layers for pair in layer.owned]

    def _find_protections(self, weights, values, gradients, step, correction):
        known = {
            id(weight): (value, gradient)
            for weight, value, gradient in zip(weights, values, gradients)
        }
        utilities = []
        for layer in self._layers:
            utility = layer.utility_now(known)
            if utility is None:
                utility = ops.convert_to_tensor(layer.utility)
            else:
                utility = self._update_utility(layer.utility, utility, step)
            utilities.append(utility)
        found = {}
        protections = self._protect(utilities, correction)
        for layer, protection in zip(self._layers, protections):
            for view, feature_map in layer.owned:
                key = id(view.variable)
                each = view.spread(feature_map.to_features(protection, 0.0))
                if key in found:
                    # A parameter of several layers' units.
                    each = ops.maximum(each, found[key])
                found[key] = each
        return [found.get(id(weight)) for weight in weights]

    def _change_weights(self, rate, weights, values, protections):
        changed = [
            each
            for each in zip(weights, values, protections)
            if id(each[0]) in self._changed
        ]
        columns = zip(*changed) if changed else ([], [], [])
        super()._change_weights(rate, *columns)

    def _draw_noise(self, weight):
        noise = super()._draw_noise(weight)
        if id(weight) in self._masks:
            noise = ops.multiply(noise, self._masks[id(weight)])
        return noise


class _LayerUnits:
    """The units of a hidden layer, and the weights on both sides of them.

    Not a tuple, in which Keras would find the model's weights and take them for
    the optimizer's own.

    Args:
        connections: `Connections` of the layer.
        changed: Set of the ids of the weights that may be changed.

    Attributes:
        size: Integer, the number of units.
        path: String, of the layer, as a part of a variable's name.
        utility: `keras.Variable` of shape `(size,)`, the running mean.
        owned: List of pairs of a `WeightView`, of a weight that may be changed,
            and the `FeatureMap` from what it counts to the units.
        readers: The same for the weights that read the units.
    """

    def __init__(self, connections, changed):
        layer = connections.layer
        bias_view = layer.bias_view()
        self.size = layer.unit_view().size
        self.path = layer.path.replace("/", "_")
        self.utility = None
        identity = FeatureMap(np.arange(self.size), self.size)
        owned = [(view, identity) for view, _ in layer.incoming_weights()]
        if bias_view is not None:
            owned.append((bias_view, identity))
        owned += [
            (WeightView.of(each.variable, *each.axes), each.feature_map)
            for each in connections.parameters
        ]
        self.owned = [pair for pair in owned if id(pair[0].variable) in changed]
        self.readers = [
            (consumer.feature_view(), feature_map)
            for consumer, feature_map in connections.consumers.items()
        ]

    def utility_now(self, known):
        """The utility of each unit in an update.

        Args:
            known: Dict from the id of a weight to its value and its gradient.

        Returns:
            Tensor of shape `(size,)`; `None` if nothing that reads the units
            took part.
        """
        utilities = []
        for view, feature_map in self.readers:
            if id(view.variable) in known:
                value, gradient = map(
                    at_least_float32, known[id(view.variable)]
                )
                utility = functional.first_order_utility(value, gradient)
                utilities.append(feature_map.sum_to_units(view.sum(utility)))
        return sum(utilities) if utilities else None


def _is_of_unit(view, feature_map):
    """Which entries of a weight belong to a unit: an array that broadcasts."""
    mask = feature_map.unit_of_feature >= 0
    if mask.all():
        return np.True_
    mask = mask.reshape([view.shape[axis] for axis in view.axes])
    mask = np.transpose(mask, np.argsort(view.axes))
    mask = mask.reshape(
        [n if i in view.axes else 1 for i, n in enumerate(view.shape)]
    )
    if view.shape != tuple(view.variable.shape):
        mask = np.broadcast_to(mask, view.shape).reshape(view.variable.shape)
    return mask
