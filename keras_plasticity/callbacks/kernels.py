"""The kernels of a model's layers, seen as matrices."""

import dataclasses
import math

import keras
from keras import ops

from keras_plasticity import keras_compat
from keras_plasticity import validation
from keras_plasticity.weights import weights_of

_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel as a stack of matrices, `(positions, inputs, units)`.

    The kernel of a dense layer has one position; that of a convolution has
    those of its window.

    Attributes:
        layer: The Keras layer.
        variable: `keras.Variable`, the kernel.
        axes: Tuple of three tuples, the kernel's axes that count positions,
            inputs and units.
    """

    layer: keras.Layer
    variable: keras.Variable
    axes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    @property
    def is_convolution(self):
        """Whether the positions are those of a window."""
        return isinstance(self.layer, _CONVOLUTIONS + _TRANSPOSED)

    def matrices(self, tensor=None):
        """The kernel, or a tensor of its shape, as float32 matrices.

        Args:
            tensor: Tensor. Defaults to the kernel's value.

        Returns:
            Tensor of shape `(positions, inputs, units)`, float64 if the kernel
            is.
        """
        tensor = self.variable.value if tensor is None else tensor
        if self.variable.dtype != "float64":
            # Half precision is too coarse for what is done with matrices.
            tensor = ops.cast(tensor, "float32")
        moved = ops.transpose(tensor, self._order)
        sizes = [
            math.prod(self.variable.shape[axis] for axis in axes)
            for axes in self.axes
        ]
        return ops.reshape(moved, sizes)

    def assign(self, matrices):
        """Sets the kernel.

        Args:
            matrices: Tensor of the shape of `matrices()`, or of `joined()`.
        """
        shape = [self.variable.shape[axis] for axis in self._order]
        back = [self._order.index(axis) for axis in range(len(self._order))]
        value = ops.transpose(ops.reshape(matrices, shape), back)
        self.variable.assign(ops.cast(value, self.variable.dtype))

    def joined(self):
        """The kernel as one matrix, or one for each independent part.

        Returns:
            Tensor of shape `(..., inputs, units)`: the positions of a window
            count as inputs.
        """
        matrices = self.matrices()
        if not self.is_convolution:
            return matrices
        return ops.reshape(matrices, (-1, matrices.shape[-1]))

    @property
    def _order(self):
        return [axis for axes in self.axes for axis in axes]


def check_layers(layers):
    """Checks an argument: names of layers, or `None` for all of them."""
    if layers is None:
        return None
    rule = "a list of the names of layers, or `None` for all layers"
    layers = validation.check_list("layers", layers, str, rule)
    if not layers:
        raise validation.error("layers", rule, layers)
    return layers


def find_kernels(model, layers=None):
    """The trainable kernels of dense layers and convolutions.

    Those of `EinsumDense`, of which attention is made, are among them.

    Args:
        model: Built `keras.Model`.
        layers: List of layers of it, to look for kernels within these.
            Defaults to all.

    Returns:
        List of `Kernel`s, each once.

    Raises:
        ValueError: If there are none.
    """
    trainable = {id(variable) for variable in weights_of(model)}
    found = {}
    for root in [model] if layers is None else layers:
        for layer in keras_compat.in_order(root):
            axes = _axes(layer)
            if axes is None:
                continue
            variable = layer.kernel
            if id(variable) in trainable:
                found.setdefault(id(variable), Kernel(layer, variable, axes))
    if not found:
        where = "" if layers is None else f", in {[x.name for x in layers]}"
        raise ValueError(
            "There must be a trainable kernel of a `Dense` or `EinsumDense` "
            "layer or of a convolution to act on. Received: the model "
            f"'{model.name}' with the layers "
            f"{[each.name for each in model.layers]}{where}"
        )
    return list(found.values())


def _axes(layer):
    """The axes of a layer's kernel; `None` if it has none of these kinds."""
    if isinstance(layer, keras.layers.Dense):
        return (), (0,), (1,)
    if isinstance(layer, _CONVOLUTIONS + _TRANSPOSED):
        rank = len(layer.kernel.shape)
        window = tuple(range(rank - 2))
        inputs, units = (rank - 2,), (rank - 1,)
        if isinstance(layer, _TRANSPOSED):
            inputs, units = units, inputs
        return window, inputs, units
    if isinstance(layer, keras.layers.EinsumDense):
        return _axes_of_equation(layer.equation)
    return None


def _axes_of_equation(equation):
    """Of the kernel of an `EinsumDense`."""
    operands, outputs = equation.replace(" ", "").split("->")
    inputs, kernel = operands.split(",")
    axes = [], [], []
    for axis, letter in enumerate(kernel):
        if letter not in outputs:
            axes[1].append(axis)  # It is summed over.
        elif letter not in inputs:
            axes[2].append(axis)
        else:
            axes[0].append(axis)  # Of each there is a kernel of its own.
    return tuple(map(tuple, axes))
