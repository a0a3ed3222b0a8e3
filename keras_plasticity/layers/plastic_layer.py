"""The base class of plastic layers."""

import contextlib
import gc
import types
import weakref

import keras

from keras_plasticity import keras_compat
from keras_plasticity import validation
from keras_plasticity.units.unit_statistics import UnitStatistics
from keras_plasticity.units.weight_view import WeightView


class PlasticLayer(keras_compat.QuantizedAsOne):
    """Mixin that makes a Keras layer with a kernel plastic.

    It comes before the Keras layer among the base classes. By default the last
    axis of the kernel counts the units and the axis before it the input
    features, and inputs and outputs have their features in the last axis. A
    layer that differs overrides the methods below.

    Args:
        replaceable: Boolean, whether the layer's units may be replaced. With
            `False` any layer may read them; the layer still observes its own
            inputs. Defaults to `True`.

    Attributes:
        statistics: The layer's `UnitStatistics`, once it is built.
        replaceable: The argument; it may be changed until an optimizer is
            built.
    """

    # For layers whose class `make_plastic` changes: they never go through this
    # constructor.
    _replaceable = True
    # The optimizers that were built on the layer; `None` before the first.
    _optimizers = None
    # Whether what calls the layer has seen to it that its inputs are observed.
    _is_observed = False

    def __init__(self, *args, replaceable=True, **kwargs):
        super().__init__(*args, **kwargs)
        self.replaceable = replaceable

    @property
    def replaceable(self) -> bool:
        """Whether the layer's units may be replaced."""
        return self._replaceable

    @replaceable.setter
    def replaceable(self, value):
        value = validation.check_boolean("replaceable", value)
        if value != self._replaceable:
            self._check_no_optimizer(value)
        self._replaceable = value

    def note_optimizer(self, optimizer):
        """Notes that an optimizer was built on the layer as it is now.

        Args:
            optimizer: Optimizer, which is not kept alive.
        """
        if self._optimizers is None:
            self._optimizers = weakref.WeakSet()
        self._optimizers.add(optimizer)

    def _check_no_optimizer(self, replaceable):
        if self._optimizers:
            gc.collect()  # A model may have been compiled with a new one.
        for optimizer in self._optimizers or ():
            raise ValueError(
                f"`replaceable` of layer '{self.name}' cannot change any more: "
                f"a `{type(optimizer).__name__}` was built on the layer, with "
                "what it remembers of the units of each replaceable layer, "
                "and would go on as before. Set it before the first step of "
                "training, or compile the model with a new optimizer and "
                "leave no reference to this one. Received: "
                f"replaceable={replaceable}"
            )

    def get_config(self):
        config = super().get_config()
        if not self.replaceable:
            config["replaceable"] = False
        return config

    def build(self, input_shape):
        if self.quantization_mode is not None:
            # Keras would bypass `call`.
            self._refuse_quantization()
        super().build(input_shape)
        self.add_statistics()

    def add_statistics(self):
        """Creates the statistics; the kernel has to exist."""
        self.statistics = UnitStatistics(
            self,
            units=self.unit_view().size,
            features=self.feature_view().size,
            name="statistics",
        )
        self.statistics.build()

    def all_statistics(self) -> list[UnitStatistics]:
        """All that the layer observes with, once it is built."""
        return [self.statistics]

    def call(self, inputs, *args, **kwargs):
        return super().call(self._observe(inputs), *args, **kwargs)

    def _observe(self, inputs, axes=None, weights=None):
        """Returns the inputs, which a training step observes.

        Args:
            inputs: Tensor.
            axes: Tuple of integers. Defaults to `feature_axes(inputs)`.
            weights: See `UnitStatistics.observe`.
        """
        statistics = getattr(self, "statistics", None)
        if statistics is None:  # `make_plastic` traces.
            return inputs
        keras_compat.note_caller(self, statistics.callers)
        if self._is_observed or not statistics.observes_call():
            return inputs
        if axes is None:
            axes = self.feature_axes(inputs)
        return statistics.observe(inputs, axes, weights)

    def compute_output_spec(self, *args, **kwargs):
        statistics = getattr(self, "statistics", None)
        if statistics is not None:
            keras_compat.note_caller(self, statistics.callers)
        return super().compute_output_spec(*args, **kwargs)

    def own_readers(self) -> list:
        """Those who read the units and are a part of the layer.

        Returns:
            List of objects that read as a plastic layer does.
        """
        return []

    def incoming_weights(self) -> list[tuple[WeightView, object]]:
        """All incoming weights of each unit but its bias.

        Returns:
            List of pairs of a `WeightView` that counts units, the first of
            them `unit_view()`, and the initializer of these weights.
        """
        return [(self.unit_view(), self.unit_initializer())]

    def state_views(self) -> list[WeightView]:
        """What the layer keeps of each unit from one batch to the next."""
        return []

    def unit_view(self) -> WeightView:
        """The incoming weights of each unit."""
        shape = tuple(self.kernel.shape)
        return WeightView(self.kernel, shape, (len(shape) - 1,))

    def feature_view(self) -> WeightView:
        """The outgoing weights of each input feature."""
        shape = tuple(self.kernel.shape)
        return WeightView(self.kernel, shape, (len(shape) - 2,))

    def bias_view(self) -> WeightView | None:
        """The bias of each unit."""
        if self.bias is None:
            return None
        shape = tuple(self.bias.shape)
        return WeightView(self.bias, shape, (len(shape) - 1,))

    def unit_initializer(self):
        """The initializer of the incoming weights."""
        return self.kernel_initializer

    def unit_bias_initializer(self):
        """The initializer of the bias."""
        return self.bias_initializer

    def feature_initializer(self):
        """The initializer of the outgoing weights of the input features."""
        return self.unit_initializer()

    def feature_axes(self, inputs) -> tuple[int, ...]:
        """The axes of the inputs that count the features, not negative.

        In the order in which they count, the first one slowest.
        """
        return (len(inputs.shape) - 1,)

    def unit_axes(self, outputs) -> tuple[int, ...]:
        """The axes of the outputs that count the units, likewise."""
        return (len(outputs.shape) - 1,)

    def check_folds_constants(self, producer):
        """Raises a `ValueError` if constants cannot be folded into the bias."""
        if self.bias_view() is None:
            raise ValueError(
                "`transfer_mean=True` moves the mean contribution of the units "
                f"of layer '{producer.name}' into the bias of layer "
                f"'{self.name}', which has none for each unit. Give it "
                "`use_bias=True`, or set `transfer_mean=False`."
            )

    def fold_variables(self) -> list[keras.Variable]:
        """The variables that `fold_constant_into_bias` reads or assigns."""
        bias = [] if self.bias is None else [self.bias]
        return [self.feature_view().variable, *bias]

    def fold_constant_into_bias(self, feature, constant):
        """Adds to the bias what a constant input feature would contribute.

        Args:
            feature: Integer scalar tensor, the index of the feature.
            constant: Scalar tensor, the value of the feature.
        """
        outgoing = self.feature_view().take(feature)
        positions = tuple(range(len(outgoing.shape) - 1))
        if positions:
            outgoing = keras.ops.sum(outgoing, axis=positions)
        constant = keras.ops.cast(constant, outgoing.dtype)
        self.bias.assign_add(
            keras.ops.reshape(constant * outgoing, self.bias.shape)
        )

    @property
    def utility(self) -> keras.Variable:
        """Bias-corrected utility of each unit, float32 of shape `(units,)`."""
        return self._get_statistics().utility

    @property
    def age(self) -> keras.Variable:
        """Updates since each unit began, float32 of shape `(units,)`.

        Float32 counts exactly up to 2**24 = 16.8 million and stays there.
        """
        return self._get_statistics().age

    @property
    def mean_activation(self) -> keras.Variable:
        """Running mean activation of each unit, float32, shape `(units,)`."""
        return self._get_statistics().mean_activation

    def enable_lora(self, *args, **kwargs):
        raise ValueError(
            f"Plastic layer '{self.name}' cannot be adapted by LoRA, which "
            "freezes the kernel whose columns are to be replaced. Use "
            f"`keras.layers.{_keras_name(self)}` for it."
        )

    @property
    def dtype_policy(self):
        return super().dtype_policy

    @dtype_policy.setter
    def dtype_policy(self, value):
        if keras.dtype_policies.get(value).quantization_mode is not None:
            self._refuse_quantization()
        keras.Layer.dtype_policy.fset(self, value)

    def quantize(self, *args, **kwargs):
        self._refuse_quantization()

    def _refuse_quantization(self):
        raise ValueError(
            f"Plastic layer '{self.name}' cannot be quantized: its units are "
            "replaced while it trains. Load its weights into "
            f"`keras.layers.{_keras_name(self)}`, and quantize that, or leave "
            "it out by the argument `filters` of `model.quantize`."
        )

    def _get_statistics(self):
        if not self.built:
            # No AttributeError: PyTorch's modules replace its message.
            raise ValueError(
                f"Layer '{self.name}' carries statistics once it is built. "
                "Call it on data, or `build()` the model first."
            )
        return self.statistics


def axes_with_steps(find_axes, tensor):
    """Axes of a tensor that has a time step beside the batch.

    Args:
        find_axes: Function from a tensor of one time step to its axes.
        tensor: Tensor, or anything with a shape.

    Returns:
        Tuple of integers.
    """
    batch_size, _, *sizes = tensor.shape
    step = types.SimpleNamespace(shape=(batch_size, *sizes))
    return tuple(axis + 1 for axis in find_axes(step))


@contextlib.contextmanager
def _observed_in_all_steps(layer, inputs):
    """Context in which `TimeDistributed` calls a layer for each time step.

    Yields:
        The inputs of all steps, which are observed at once: the centre of
        deviations contains the whole batch.
    """
    if not isinstance(layer, PlasticLayer) or layer.own_readers():
        yield inputs
        return
    inputs = layer._observe(inputs, axes_with_steps(layer.feature_axes, inputs))
    layer._is_observed = True
    try:
        yield inputs
    finally:
        layer._is_observed = False


keras_compat.around_time_steps(_observed_in_all_steps)


def _keras_name(layer):
    return type(layer).__name__


def _check_can_be_quantized(layer):
    if isinstance(layer, PlasticLayer):
        layer._refuse_quantization()


keras_compat.check_before_quantizing(_check_can_be_quantized)
