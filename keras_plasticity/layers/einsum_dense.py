import dataclasses
import re

import keras

from keras_plasticity import validation
from keras_plasticity.layers.plastic_layer import PlasticLayer
from keras_plasticity.units.weight_view import WeightView


@keras.saving.register_keras_serializable(package="keras_plasticity")
class EinsumDense(PlasticLayer, keras.layers.EinsumDense):
    """A `keras.layers.EinsumDense` whose units can be replaced.

    It computes what `keras.layers.EinsumDense` computes and takes the same
    arguments. Axes of the kernel that the inputs share and the outputs lack
    count the input features; those that the outputs share and the inputs lack
    count the units. There must be at least one of each, and no others. In
    `"abc,cd->abd"` a unit is an index of `d`, in `"abc,cde->abde"`, which is
    an attention's projection to several heads, a pair of indices of `d` and
    `e`. See `keras_plasticity.layers.Dense` for the statistics it carries.

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
        ValueError: If the kernel has no axis of units or none of features, or
            one that both the inputs and the outputs have.

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
        return WeightView.of(self.kernel, *find_labels(self.equation).unit_axes)

    def feature_view(self):
        labels = find_labels(self.equation)
        return WeightView.of(self.kernel, *labels.feature_axes)

    def bias_view(self):
        if self.bias is None:
            return None
        labels = find_labels(self.equation)
        if not set(labels.units) <= set(self.bias_axes):
            # A bias shared by several units belongs to none of them.
            return None
        # It has the axes of the outputs from the first of `bias_axes` on.
        outputs = labels.outputs.replace(".", "")
        first = min(map(outputs.index, self.bias_axes))
        axes = [outputs.index(c) - first for c in labels.units]
        return WeightView.of(self.bias, *axes)

    def unit_initializer(self):
        initializer = self.kernel_initializer
        labels = find_labels(self.equation)
        axes = (labels.feature_axes, labels.unit_axes)
        if not hasattr(initializer, "input_axes"):
            return initializer
        if None not in (initializer.input_axes, initializer.output_axes):
            return initializer
        # Not in the order that an initializer assumes.
        config = initializer.get_config()
        config["input_axes"], config["output_axes"] = axes
        return type(initializer)(**config)

    def feature_axes(self, inputs):
        labels = find_labels(self.equation)
        return _find_axes(labels.inputs, labels.features, len(inputs.shape))

    def unit_axes(self, outputs):
        labels = find_labels(self.equation)
        return _find_axes(labels.outputs, labels.units, len(outputs.shape))

    def fold_constant_into_bias(self, feature, constant):
        outgoing = self.feature_view().take(feature)
        constant = keras.ops.cast(constant, outgoing.dtype)
        view = self.bias_view()
        outgoing = keras.ops.reshape(constant * outgoing, (view.size,))
        self.bias.assign_add(
            keras.ops.broadcast_to(view.along(outgoing), view.shape)
        )


@dataclasses.dataclass(frozen=True)
class _Labels:
    """The letters of an equation.

    Attributes:
        inputs: String, those of the inputs.
        kernel: String, those of the kernel.
        outputs: String, those of the outputs.
        features: String, those of the kernel that count input features, in
            its order.
        units: String, those of the kernel that count units, likewise.
    """

    inputs: str
    kernel: str
    outputs: str
    features: str
    units: str

    @property
    def feature_axes(self):
        """The axes of the kernel that count features."""
        return tuple(self.kernel.index(c) for c in self.features)

    @property
    def unit_axes(self):
        """The axes of the kernel that count units."""
        return tuple(self.kernel.index(c) for c in self.units)


def find_labels(equation):
    """Finds the letters of an equation for the axes of units and features.

    Raises:
        ValueError: If a letter of the kernel stands for neither, or if there
            are none for the units or none for the features.
    """
    equation = validation.check_string("equation", equation)
    match = re.fullmatch(r"([\w.]+),(\w+)->([\w.]+)", equation.replace(" ", ""))
    if match:
        inputs, kernel, outputs = match.groups()
        features = [c for c in kernel if c in inputs and c not in outputs]
        units = [c for c in kernel if c in outputs and c not in inputs]
        is_each_once = len(set(kernel)) == len(kernel) == len(features + units)
        if features and units and is_each_once:
            return _Labels(
                inputs, kernel, outputs, "".join(features), "".join(units)
            )
    raise ValueError(
        "A plastic `EinsumDense` needs an equation in which each axis of the "
        "kernel counts either input features or units, and both are there, "
        "such as 'abc,cd->abd' or 'abc,cde->abde'. Use "
        "`keras.layers.EinsumDense` for any other. "
        f"Received: equation={equation!r}"
    )


def _find_axes(labels, wanted, rank):
    """The axes of a tensor that some of its labels stand for."""
    before, _, after = labels.partition("...")
    return tuple(
        before.index(c) if c in before else rank - len(after) + after.index(c)
        for c in wanted
    )
