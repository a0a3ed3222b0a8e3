import contextlib

import keras
from keras import ops

from keras_plasticity import keras_compat
from keras_plasticity.layers.plastic_layer import PlasticLayer
from keras_plasticity.units.unit_statistics import UnitStatistics
from keras_plasticity.units.weight_view import WeightView


class _Recurrent(PlasticLayer):
    """A plastic layer whose units are also read by its recurrent kernel.

    Its kernels and its bias have the units of each gate side by side, all of
    one gate before those of the next.
    """

    # How many gates there are, the candidate for the new state among them.
    num_gates = 1

    def build(self, sequences_shape, initial_state_shape=None):
        # By the argument's name Keras knows which shape it is.
        super().build(sequences_shape)

    def add_statistics(self):
        super().add_statistics()
        self.recurrent_statistics = UnitStatistics(
            self,
            units=0,
            features=self.unit_view().size,
            name="recurrent_statistics",
        )
        self.recurrent_statistics.build()

    def all_statistics(self):
        return [self.statistics, self.recurrent_statistics]

    def own_readers(self):
        return [RecurrentReader(self)]

    def call(self, sequences, initial_state=None, mask=None, training=False):
        steps = None
        if mask is not None:
            (mask,) = keras.tree.flatten(mask)
            steps = _which_steps(mask)
        # Not that of `PlasticLayer`, which knows no masks.
        return super(PlasticLayer, self).call(
            self._observe(sequences, weights=steps),
            initial_state=initial_state,
            mask=mask,
            training=training,
        )

    def inner_loop(self, sequences, initial_state, mask, training=False):
        """Makes all steps of a batch, as in Keras' class, and observes them."""
        backwards = self.go_backwards
        if backwards and keras_compat.REVERSES_BACKWARD_SEQUENCES:
            sequences = ops.flip(sequences, axis=1)
            mask = None if mask is None else ops.flip(mask, axis=1)
            backwards = False
        if self.stateful:
            # PyTorch has to keep it for back-propagation, but it is assigned
            # to before that (tested with Keras 3.15.1).
            initial_state = keras.tree.map_structure(ops.copy, initial_state)
        statistics = getattr(self, "recurrent_statistics", None)
        observes = statistics is not None and statistics.observes_call()
        with _changed(
            self,
            go_backwards=backwards,
            return_sequences=self.return_sequences or observes,
        ):
            last_output, outputs, states = super().inner_loop(
                sequences, initial_state, mask=mask, training=training
            )
        if not observes:
            return last_output, outputs, states
        if mask is not None and backwards:
            mask = ops.flip(mask, axis=1)
        received, steps = _states_read(initial_state, outputs, mask)
        axes = self.unit_axes(received)

        def observe(tensor):
            return statistics.observe_beside(tensor, received, axes, steps)

        # Of what the layer returns, any part may be all that a loss reads.
        # (What is read twice is observed twice, and has the same means.)
        if self.return_sequences:
            outputs = observe(outputs)
        else:
            last_output = observe(last_output)
        if self.return_state:
            states = [observe(state) for state in states]
        return last_output, outputs, states

    def unit_view(self):
        return self._by_gate(self.cell.kernel)

    def incoming_weights(self):
        recurrent = self._by_gate(self.cell.recurrent_kernel)
        return [
            (self.unit_view(), self.unit_initializer()),
            (recurrent, self.recurrent_initializer),
        ]

    def _by_gate(self, variable):
        *sizes, last = variable.shape
        shape = (*sizes, self.num_gates, last // self.num_gates)
        return WeightView(variable, shape, (len(sizes) + 1,))

    def feature_view(self):
        return WeightView.of(self.cell.kernel, len(self.cell.kernel.shape) - 2)

    def bias_view(self):
        if self.cell.bias is None:
            return None
        return self._by_gate(self.cell.bias)

    def state_views(self):
        states = self.states if self.stateful else []
        return [
            WeightView.of(state, *self.unit_axes(state))
            for state in keras.tree.flatten(states)
        ]

    def fold_variables(self):
        bias = self.cell.bias
        return [self.cell.kernel, *([] if bias is None else [bias])]

    def fold_constant_into_bias(self, feature, constant):
        self.fold_into_bias(self.feature_view(), feature, constant, row=0)

    def fold_into_bias(self, view, feature, constant, row):
        """Adds to the bias what a constant would contribute in each step.

        Args:
            view: `WeightView` of a kernel that counts features.
            feature: Integer scalar tensor, the index of the constant feature.
            constant: Scalar tensor, the value of the feature.
            row: Integer, to which row of a bias that has several.
        """
        outgoing = view.take(feature)
        positions = tuple(range(len(outgoing.shape) - 1))
        if positions:
            outgoing = ops.sum(outgoing, axis=positions)
        change = ops.cast(constant, outgoing.dtype) * outgoing
        bias = self.cell.bias
        if len(bias.shape) > 1:
            rows = ops.expand_dims(ops.arange(bias.shape[0]), 1)
            change = ops.where(rows == row, change, 0.0)
        bias.assign_add(ops.cast(change, bias.dtype))


class RecurrentReader:
    """The recurrent kernel of a layer, as one more layer that reads its units.

    It reads the state before each step: the initial one, and the output of
    each step but the last. Steps that a mask leaves out do not count. Dropout
    inside the layer does not, either: what it drops is on average what it
    scales up.

    Args:
        layer: The recurrent layer.
    """

    def __init__(self, layer):
        self._layer = layer

    @property
    def name(self):
        return f"{self._layer.name} (recurrent)"

    @property
    def path(self):
        return f"{self._layer.path}/recurrent"

    @property
    def trainable(self):
        return self._layer.trainable

    @property
    def statistics(self):
        return self._layer.recurrent_statistics

    def feature_view(self):
        kernel = self._layer.cell.recurrent_kernel
        return WeightView.of(kernel, len(kernel.shape) - 2)

    def feature_initializer(self):
        return self._layer.recurrent_initializer

    def check_folds_constants(self, producer):
        self._layer.check_folds_constants(producer)
        if getattr(self._layer, "reset_after", True):
            return
        raise ValueError(
            "`transfer_mean=True` moves the mean contribution of the units of "
            f"layer '{self._layer.name}' into its biases, but with "
            "`reset_after=False` a gate comes before its recurrent kernel. "
            "Give it `reset_after=True`, or set `transfer_mean=False`."
        )

    def fold_variables(self):
        bias = self._layer.cell.bias
        kernel = self._layer.cell.recurrent_kernel
        return [kernel, *([] if bias is None else [bias])]

    def fold_constant_into_bias(self, feature, constant):
        self._layer.fold_into_bias(
            self.feature_view(), feature, constant, row=1
        )


class _LSTM(_Recurrent):
    num_gates = 4  # Input, forget, candidate, output.

    def unit_bias_initializer(self):
        if self.unit_forget_bias:
            return _ForgetBias(self.bias_initializer)
        return self.bias_initializer


class _ForgetBias(keras.initializers.Initializer):
    """What an LSTM draws for its bias with `unit_forget_bias=True`.

    Args:
        initializer: Keras initializer of all gates but that of forgetting.
        seed: `keras.random.SeedGenerator`, for the seed of `initializer`.
    """

    def __init__(self, initializer, seed=None):
        self.initializer = initializer
        if seed is not None and "seed" in initializer.get_config():
            config = {**initializer.get_config(), "seed": seed}
            self.initializer = type(initializer)(**config)

    def __call__(self, shape, dtype=None):
        units = shape[0] // _LSTM.num_gates
        draw = self.initializer
        ones = ops.ones((units,), dtype)
        return ops.concatenate(
            [draw((units,), dtype), ones, draw((2 * units,), dtype)]
        )

    def get_config(self):
        return {"initializer": self.initializer, "seed": None}


class _ConvLSTM(_LSTM):
    """Units are channels."""

    def feature_axes(self, inputs):
        return (self._channel_axis(inputs),)

    def unit_axes(self, outputs):
        return (self._channel_axis(outputs),)

    def _channel_axis(self, tensor):
        rank = len(tensor.shape)
        if self.data_format == "channels_last":
            return rank - 1
        return rank - 1 - self.cell.rank


def _is_recurrent(layer):
    return isinstance(layer, _Recurrent)


keras_compat.call_directions_alone(_is_recurrent)


@contextlib.contextmanager
def _changed(layer, **attributes):
    """Context in which a layer has other attributes."""
    before = {name: getattr(layer, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(layer, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(layer, name, value)


def _which_steps(mask):
    """The steps that a mask leaves, as ones, float32 of two axes."""
    return ops.cast(ops.reshape(mask, ops.shape(mask)[:2]), "float32")


def _states_read(initial_state, outputs, mask):
    """The states that a recurrent kernel reads.

    Args:
        initial_state: List of tensors, the first of which is read.
        outputs: Tensor, the outputs of all steps.
        mask: Boolean tensor, the steps that are made; `None` if all are.

    Returns:
        Tuple of a tensor that holds them, of the shape of `outputs`, and of
        ones and zeros: which of them are read; `None` if all are.
    """
    if keras.tree.is_nested(initial_state):
        initial_state = initial_state[0]
    first = ops.expand_dims(ops.stop_gradient(initial_state), 1)
    later = ops.stop_gradient(outputs)[:, :-1]
    received = ops.concatenate([ops.cast(first, later.dtype), later], axis=1)
    if mask is None:
        return received, None
    if keras.tree.is_nested(mask):
        mask = mask[0]
    steps = _which_steps(mask)
    # A step that is made reads the output of the one made before it.
    to_come = ops.sum(steps, axis=1, keepdims=True) - ops.cumsum(steps, axis=1)
    is_read = steps * ops.cast(to_come > 0.0, "float32")
    any_step = ops.max(steps, axis=1, keepdims=True)
    return received, ops.concatenate([any_step, is_read[:, :-1]], axis=1)


_DOCSTRING = """A `keras.layers.{name}` whose {units} can be replaced.

It computes what `keras.layers.{name}` computes and takes the same arguments;
with a plain Keras optimizer it trains to the same weights. See
`keras_plasticity.layers.Dense` for the statistics it carries.

A unit is {unit}. It is read by the layers behind, and by the layer's own
recurrent kernel in the next time step. For each of these readers its
contribution is the mean of |h| over batch and time, as the reader receives it,
times the mean of its absolute outgoing weights there. (The recurrent kernel
receives the initial state, too, and neither the last output nor the steps that
a mask leaves out.)

The incoming weights of a unit are its {columns} in every gate of the kernel, of
the recurrent kernel and of the bias. Where it is replaced they are drawn as the
layer itself draws them{forget_bias}; then its outgoing weights become zero, in
the recurrent kernel, too, so that a new unit does not read itself. The state of
a stateful layer becomes zero for it.

Args:
    *args: The positional arguments of `keras.layers.{name}`.
    replaceable: Boolean, whether the units may be replaced. Defaults to `True`.
    **kwargs: All other arguments of `keras.layers.{name}`: {arguments}, ....

Call arguments:
    sequences: Tensor of shape `(batch_size, steps, {features})`.
    initial_state: List of tensors, the state before the first step. Units that
        arrive this way are not replaced: their values are carried on. Defaults
        to zeros, or to the state of a stateful layer.
    mask: Boolean tensor of shape `(batch_size, steps)`, the steps to be made.
        Defaults to all.
    training: Boolean. Statistics are observed with `True`.

Returns:
    Tensor of shape `(batch_size, {outputs})`, or with `return_sequences=True`
    `(batch_size, steps, {outputs})`. With `return_state=True` a tuple of it and
    the state after the last step.

Example:

```python
model = keras.Sequential(
    [
        keras.Input({input_shape}),
        keras_plasticity.layers.{name}({example}, return_sequences=True),
        keras_plasticity.layers.{name}({example}),{between}
        keras_plasticity.layers.Dense(1),
    ]
)
```

References:

- [Dohare et al., 2023](https://arxiv.org/abs/2306.13812)
"""


def _documented(rank=0, forget_bias=""):
    """Class decorator that fills in the docstring of a public layer.

    Args:
        rank: Integer, the number of spatial axes; 0 without convolution.
        forget_bias: String, what there is to say of the bias.
    """
    sizes = ("depth", "height", "width")[3 - rank :]
    features = ", ".join([*sizes, "channels" if rank else "features"])

    def document(layer_class):
        layer_class.__doc__ = _DOCSTRING.format(
            name=layer_class.__name__,
            units="output channels" if rank else "units",
            unit="an output channel" if rank else "an entry of the output h",
            columns="slices" if rank else "columns",
            forget_bias=forget_bias,
            arguments="`filters`, `kernel_size`, `return_sequences`"
            if rank
            else "`units`, `activation`, `return_sequences`, `stateful`",
            features=features,
            outputs=", ".join([f"new_{s}" for s in sizes] + ["filters"])
            if rank
            else "units",
            input_shape=(10, *[8] * rank, 3),
            example='8, 3, padding="same"' if rank else "64",
            between="\n        keras.layers.Flatten()," if rank else "",
        )
        return layer_class

    return document


_FORGET_BIAS = " (1 in the bias of the forget gate, with `unit_forget_bias`)"


@_documented()
@keras.saving.register_keras_serializable(package="keras_plasticity")
class SimpleRNN(_Recurrent, keras.layers.SimpleRNN):
    pass


@_documented()
@keras.saving.register_keras_serializable(package="keras_plasticity")
class GRU(_Recurrent, keras.layers.GRU):
    num_gates = 3  # Update, reset, candidate.


@_documented(forget_bias=_FORGET_BIAS)
@keras.saving.register_keras_serializable(package="keras_plasticity")
class LSTM(_LSTM, keras.layers.LSTM):
    pass


@_documented(rank=1, forget_bias=_FORGET_BIAS)
@keras.saving.register_keras_serializable(package="keras_plasticity")
class ConvLSTM1D(_ConvLSTM, keras.layers.ConvLSTM1D):
    pass


@_documented(rank=2, forget_bias=_FORGET_BIAS)
@keras.saving.register_keras_serializable(package="keras_plasticity")
class ConvLSTM2D(_ConvLSTM, keras.layers.ConvLSTM2D):
    pass


@_documented(rank=3, forget_bias=_FORGET_BIAS)
@keras.saving.register_keras_serializable(package="keras_plasticity")
class ConvLSTM3D(_ConvLSTM, keras.layers.ConvLSTM3D):
    pass
