import re

import keras

from keras_plasticity import validation
from keras_plasticity.layers.plastic_layer import PlasticLayer
from keras_plasticity.units.weight_view import WeightView


@keras.saving.register_keras_serializable(package="keras_plasticity")
class EinsumDense(PlasticLayer, keras.layers.EinsumDense):
    """A `keras.layers.EinsumDense` whose units can be replaced.

    It computes what `keras.layers.EinsumDense` computes and takes the same
    arguments. Its equation must have one axis of input features, which the
    kernel and the inputs share and the outputs lack, and one axis of units,
    which the kernel and the outputs share and the inputs lack, as in
    `"abc,cd->abd"` or `"...x,xy->...y"`. See `keras_plasticity.layers.Dense`
    for the statistics it carries.

    Args:
        equation: String, the einsum equation.
        *args: The other positional arguments of `keras.layers.EinsumDense`.
        replaceable: Boolean, whether the units may be replaced. Defaults to
            `True`.
        **kwargs: All other arguments of `keras.layers.EinsumDense`:
            `output_shape`, `activation`, `bias_axes`, ....

    Call arguments:
        inputs: Tensor of the shape that the equation takes.

    Returns:
        Tensor of the shape that the equation makes.

    Raises:
        ValueError: If the equation has more than one axis of units or of
            features, such as an attention's projections to several heads.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((10, 32)),
            keras_plasticity.layers.EinsumDense(
                "abc,cd->abd", output_shape=(None, 64), activation="relu"
            ),
            keras_plasticity.layers.EinsumDense(
                "abc,cd->abd", output_shape=(None, 32), bias_axes="d"
            ),
        ]
    )
    ```

    References:

    - [Dohare et al., 2023](https://arxiv.org/abs/2306.13812)
    """

    def __init__(self, equation, *args, **kwargs):
        find_labels(equation)
        super().__init__(equation, *args, **kwargs)

    def unit_view(self):
        return self._view(find_labels(self.equation).unit)

    def feature_view(self):
        return self._view(find_labels(self.equation).feature)

    def _view(self, label):
        axis = find_labels(self.equation).kernel.index(label)
        return WeightView(self.kernel, tuple(self.kernel.shape), (axis,))

    def bias_view(self):
        if self.bias is None:
            return None
        labels = find_labels(self.equation)
        shape = tuple(self.bias.shape)
        if labels.unit not in self.bias_axes:
            return None  # A bias shared by all units belongs to none of them.
        axis = len(shape) - _distance_to_end(labels.outputs, labels.unit)
        return WeightView(self.bias, shape, (axis,))

    def unit_initializer(self):
        initializer = self.kernel_initializer
        (unit_axis,) = self.unit_view().axes
        if unit_axis == 0 and hasattr(initializer, "input_axes"):
            # Not in the order that an initializer assumes.
            config = {
                **initializer.get_config(),
                "input_axes": (1,),
                "output_axes": (0,),
            }
            return type(initializer)(**config)
        return initializer

    def feature_axis(self, inputs):
        labels = find_labels(self.equation)
        return len(inputs.shape) - _distance_to_end(
            labels.inputs, labels.feature, len(inputs.shape)
        )

    def unit_axis(self, outputs):
        labels = find_labels(self.equation)
        return len(outputs.shape) - _distance_to_end(
            labels.outputs, labels.unit, len(outputs.shape)
        )

    def fold_constant_into_bias(self, feature, constant):
        outgoing = self.feature_view().take(feature)
        constant = keras.ops.cast(constant, outgoing.dtype)
        view = self.bias_view()
        shape = [1] * len(view.shape)
        shape[view.axes[0]] = view.size
        self.bias.assign_add(
            keras.ops.broadcast_to(
                keras.ops.reshape(constant * outgoing, shape), view.shape
            )
        )


class _Labels:
    def __init__(self, inputs, kernel, outputs):
        self.inputs = inputs
        self.kernel = kernel
        self.outputs = outputs
        self.unit = None
        self.feature = None


def find_labels(equation):
    """Finds the letters of an equation for the axes of units and features.

    Raises:
        ValueError: If there is not exactly one of each.
    """
    equation = validation.check_string("equation", equation)
    match = re.fullmatch(r"([\w.]+),(\w+)->([\w.]+)", equation.replace(" ", ""))
    if match:
        labels = _Labels(*match.groups())
        features = [
            c
            for c in labels.kernel
            if c in labels.inputs and c not in labels.outputs
        ]
        units = [
            c
            for c in labels.kernel
            if c in labels.outputs and c not in labels.inputs
        ]
        if len(features) == len(units) == 1 and len(labels.kernel) == 2:
            (labels.unit,) = units
            (labels.feature,) = features
            return labels
    raise ValueError(
        "A plastic `EinsumDense` needs an equation whose kernel has one axis "
        "of input features and one axis of units, such as 'abc,cd->abd'. Use "
        "`keras.layers.EinsumDense` for any other. "
        f"Received: equation={equation!r}"
    )


def _distance_to_end(labels, label, rank=None):
    """Distance from the axis of a label to the end of a tensor's shape."""
    after = labels[labels.index(label) + 1 :]
    if "." not in after:
        return len(after) + 1
    named = len(labels.replace(".", ""))
    return len(after.replace(".", "")) + 1 + rank - named
