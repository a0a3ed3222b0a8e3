"""Activations that keep, or give back, gradients to all units."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_plasticity import validation
from keras_plasticity.layers import axes


class ConcatenatedActivation(keras.layers.Layer):
    """Base of activations that make two features of each one.

    The second of the two stands as many places behind the first as there are
    features before the activation.

    Args:
        axis: Integer, the axis that counts the features. Defaults to `-1`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.
    """

    def __init__(self, axis: int = -1, **kwargs: Any):
        super().__init__(**kwargs)
        self.axis = axes.check_axis("axis", axis)
        self.supports_masking = True

    def activate(self, x):
        """The two activations of each feature.

        Args:
            x: Tensor.

        Returns:
            Tuple of two tensors of the shape of `x`.
        """
        raise NotImplementedError

    def build(self, input_shape):
        axes.resolve(self.axis, input_shape)

    def call(self, inputs):
        return ops.concatenate(self.activate(inputs), axis=self.axis)

    def compute_mask(self, inputs, mask=None):
        if mask is None:
            return None
        axis = axes.resolve(self.axis, inputs.shape)
        if axis < len(mask.shape):
            mask = ops.concatenate([mask, mask], axis=axis)
        return mask

    def compute_output_shape(self, input_shape):
        shape = list(input_shape)
        axis = axes.resolve(self.axis, input_shape)
        if shape[axis] is not None:
            shape[axis] *= 2
        return tuple(shape)

    def get_config(self):
        return {**super().get_config(), "axis": self.axis}


@keras.saving.register_keras_serializable(package="keras_plasticity")
class CReLU(ConcatenatedActivation):
    """Concatenated ReLU: `[relu(x), relu(-x)]`.

    Of `n` features it makes `2 n`, of which one of `i` and `i + n` is active
    wherever `x[i]` is not zero: no unit dies. It has twice as many outputs as
    inputs, so the next layer has twice as many weights. To compare networks of
    about equal size, narrow the layers before it, by `1 / sqrt(2)` or by a
    half, as is usual; the trainers of this library keep the width.

    Units in front of it can be replaced: both features belong to the unit, as
    with a `keras.layers.Concatenate` of two activations, which is followed in
    the same way. What an optimizer observes of a unit is the mean over both,
    each of which has a running mean of its own: a unit that never changes has
    no mean-corrected contribution.

    For `keras_plasticity.optimizers.SelfNormalizedResets` a unit fires where
    one of the two is active, which is almost always, so that optimizer has
    nothing to replace here. Diagnostics count the features, one by one: a unit
    of one sign has one dead feature.

    Args:
        axis: Integer, the axis that counts the features, 1 for images with the
            channels first. Defaults to `-1`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: Tensor of any rank above 1.

    Returns:
        Tensor of the shape of `inputs`, but with twice the length along `axis`.

    Raises:
        ValueError: If `axis` is that of the batch or not one of the inputs'.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras_plasticity.layers.Dense(100),
            keras_plasticity.layers.CReLU(),
            keras_plasticity.layers.Dense(10),
        ]
    )
    ```

    References:

    - [Shang et al., 2016](https://arxiv.org/abs/1603.05201)
    - [Abbas et al., 2023](https://arxiv.org/abs/2303.07507), against loss of
        plasticity
    """

    def activate(self, x):
        return ops.relu(x), ops.relu(-x)


@keras.saving.register_keras_serializable(package="keras_plasticity")
class ConcatenatedELU(ConcatenatedActivation):
    """Concatenated ELU: `[elu(x), elu(-x)]`.

    A smooth relative of `keras_plasticity.layers.CReLU`, where widths, the
    replacement of units, firing and diagnostics are described. `elu(x)` is `x`
    where that is positive, else `exp(x) - 1`.

    Args:
        axis: Integer, the axis that counts the features, 1 for images with the
            channels first. Defaults to `-1`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: Tensor of any rank above 1.

    Returns:
        Tensor of the shape of `inputs`, but with twice the length along `axis`.

    Raises:
        ValueError: If `axis` is that of the batch or not one of the inputs'.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras_plasticity.layers.Dense(100),
            keras_plasticity.layers.ConcatenatedELU(),
            keras_plasticity.layers.Dense(10),
        ]
    )
    ```

    References:

    - [Clevert et al., 2016](https://arxiv.org/abs/1511.07289), ELU
    - [Shang et al., 2016](https://arxiv.org/abs/1603.05201), concatenation
    """

    def activate(self, x):
        return ops.elu(x), ops.elu(-x)


@keras.saving.register_keras_serializable(package="keras_plasticity")
class DeepFourier(ConcatenatedActivation):
    """Deep Fourier features: `[sin(x), cos(x)]`.

    For any `x` one of the two is close to a linear function of `x`, so that a
    deep network remains trainable as deep linear networks do. In the paper all
    hidden layers have them, together with L2 regularization or a regularizer
    of spectral norms. For about equal size it halves the number of units; the
    trainers of this library keep the width.

    Units in front of it can be replaced as with
    `keras_plasticity.layers.CReLU`: both features belong to the unit, of which
    optimizers observe the mean over both. For
    `keras_plasticity.optimizers.SelfNormalizedResets` a unit fires where one
    of them is positive, which says little of a periodic function.

    Args:
        axis: Integer, the axis that counts the features, 1 for images with the
            channels first. Defaults to `-1`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: Tensor of any rank above 1.

    Returns:
        Tensor of the shape of `inputs`, but with twice the length along `axis`.

    Raises:
        ValueError: If `axis` is that of the batch or not one of the inputs'.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras_plasticity.layers.Dense(50),
            keras_plasticity.layers.DeepFourier(),
            keras_plasticity.layers.Dense(10),
        ]
    )
    ```

    References:

    - [Lewandowski et al., 2024](https://arxiv.org/abs/2410.20634)
    """

    def activate(self, x):
        return ops.sin(x), ops.cos(x)


@keras.saving.register_keras_serializable(package="keras_plasticity")
class SmoothLeaky(keras.layers.Layer):
    """Smooth-Leaky: a leaky ReLU without a corner.

    `alpha * x + (1 - alpha) * x * sigmoid(c * x / p)`. Far from 0 its slope is
    `alpha` on the left and 1 on the right; `p / c` is the width of the passage
    between them. It has no weights, and units in front of it can be replaced.

    Args:
        alpha: Float, at least 0, the slope on the left. Defaults to `0.1`.
        p: Positive float. Defaults to `3.0`.
        c: Positive float. Defaults to `5.0`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: Tensor of any shape.

    Returns:
        Tensor of the shape of `inputs`.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras_plasticity.layers.Dense(100),
            keras_plasticity.layers.SmoothLeaky(),
            keras_plasticity.layers.Dense(10),
        ]
    )
    ```

    References:

    - [arXiv:2509.22562](https://arxiv.org/abs/2509.22562)
    """

    def __init__(
        self, alpha: float = 0.1, p: float = 3.0, c: float = 5.0, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.alpha = validation.check_not_negative("alpha", alpha)
        self.p = validation.check_positive("p", p)
        self.c = validation.check_positive("c", c)
        self.supports_masking = True

    def call(self, inputs):
        gate = ops.sigmoid(inputs * (self.c / self.p))
        return inputs * (self.alpha + (1.0 - self.alpha) * gate)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "p": self.p,
            "c": self.c,
        }


@keras.saving.register_keras_serializable(package="keras_plasticity")
class AdaLin(keras.layers.Layer):
    """Adaptive Linearization of ReLU: a leaky ReLU with a slope for each unit.

    `x` where it is positive, else `alpha * x`, where `alpha` is learned. The
    paper adds to an activation a learned linear part of each unit where the
    activation passes little gradient on; of ReLU that makes this function,
    which is all that this layer offers. A unit that is silent still learns its
    slope, so it does not stay dead.

    `keras.layers.PReLU` computes the same, but has a slope for each position
    of an image too unless `shared_axes` names their axes, and then keeps the
    slopes as an array with as many axes as an example, such as
    `(1, 1, channels)`, which methods of single weights cannot tell from a
    kernel. Here `axis` says what has a slope, and they are a vector.

    Units in front of it can be replaced, and a new unit has a new slope.

    Args:
        axis: Integer, the axis that counts the units, 1 for images with the
            channels first. Defaults to `-1`.
        alpha_initializer: Initializer of the slopes. Defaults to `"zeros"`:
            it starts as ReLU.
        alpha_regularizer: Optional regularizer of the slopes.
        alpha_constraint: Optional constraint of the slopes.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: Tensor of any rank above 1.

    Returns:
        Tensor of the shape of `inputs`.

    Attributes:
        alpha: Variable of shape `(units,)`.

    Raises:
        ValueError: If `axis` is that of the batch or not one of the inputs',
            or the number of units is not known.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras_plasticity.layers.Dense(100),
            keras_plasticity.layers.AdaLin(),
            keras_plasticity.layers.Dense(10),
        ]
    )
    ```

    References:

    - [Rohani et al., 2025](https://arxiv.org/abs/2505.09486)
    """

    def __init__(
        self,
        axis: int = -1,
        alpha_initializer: Any = "zeros",
        alpha_regularizer: Any = None,
        alpha_constraint: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.axis = axes.check_axis("axis", axis)
        self.alpha_initializer = validation.check_deserialized(
            "alpha_initializer",
            alpha_initializer,
            keras.initializers.get,
            "a Keras initializer or the name of one",
        )
        self.alpha_regularizer = validation.check_deserialized(
            "alpha_regularizer",
            alpha_regularizer,
            keras.regularizers.get,
            "a Keras regularizer or the name of one",
            optional=True,
        )
        self.alpha_constraint = validation.check_deserialized(
            "alpha_constraint",
            alpha_constraint,
            keras.constraints.get,
            "a Keras constraint or the name of one",
            optional=True,
        )
        self.supports_masking = True

    def build(self, input_shape):
        size = axes.known_size(self.axis, input_shape)
        self.alpha = self.add_weight(
            name="alpha",
            shape=(size,),
            initializer=self.alpha_initializer,
            regularizer=self.alpha_regularizer,
            constraint=self.alpha_constraint,
        )
        rank = len(input_shape)
        self.input_spec = keras.InputSpec(
            ndim=rank, axes={self.axis % rank: size}
        )

    def call(self, inputs):
        alpha = self.alpha
        if self.axis % len(inputs.shape) != len(inputs.shape) - 1:
            shape = [1] * len(inputs.shape)
            shape[self.axis] = -1
            alpha = ops.reshape(alpha, shape)
        return ops.relu(inputs) - alpha * ops.relu(-inputs)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "axis": self.axis,
            "alpha_initializer": keras.initializers.serialize(
                self.alpha_initializer
            ),
            "alpha_regularizer": keras.regularizers.serialize(
                self.alpha_regularizer
            ),
            "alpha_constraint": keras.constraints.serialize(
                self.alpha_constraint
            ),
        }


# The least squares fit of a leaky ReLU with the slope 0.01 at 2,001 points, at
# equal distances from -3 to 3 (SciPy's Levenberg-Marquardt, from 60 random
# starts; the best of them). Its error there is 0.0055 on average (root mean
# square) and 0.034 at most, at 0. As a leaky ReLU is an even function and a
# multiple of x, the denominator is even, and the numerator's odd part is 0.505
# times x times the denominator.
_NUMERATOR = (
    0.0335721029,
    0.505,
    1.65267508,
    2.00812273,
    0.930575487,
    0.152132761,
)
_DENOMINATOR = (0.0, 3.97648064, 0.0, 0.301252991)


@keras.saving.register_keras_serializable(package="keras_plasticity")
class Rational(keras.layers.Layer):
    """Rational activation: a quotient of polynomials that are learned.

    `P(x) / (1 + |Q(x)|)` with
    `P(x) = numerator[0] + numerator[1] * x + numerator[2] * x**2 + ...` and
    `Q(x) = denominator[0] * x + denominator[1] * x**2 + ...`. All units of the
    layer have the same coefficients, which are trained like other weights. It
    is computed in float32 at least, as powers leave the range of half
    precision soon.

    By default the degrees are 5 and 4, and it starts close to a leaky ReLU with
    the slope 0.01: the coefficients are our own least squares fit on [-3, 3],
    where it is off by 0.034 at most. Beyond, the two part: it approaches the
    line `0.505 * x + 3.09` on both sides.

    Units in front of it can be replaced; the coefficients stay, as they belong
    to all units. For `keras_plasticity.optimizers.SelfNormalizedResets` a unit
    fires where its output is positive.

    Args:
        numerator: Sequence of two or more floats, the initial coefficients
            of `P`, from the constant on. Defaults to `None`: those of the fit.
        denominator: Sequence of one or more floats, the initial coefficients
            of `Q`, from that of `x` on. Defaults to `None`: those of the fit.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: Tensor of any shape.

    Returns:
        Tensor of the shape of `inputs`.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras_plasticity.layers.Dense(100),
            keras_plasticity.layers.Rational(),
            keras_plasticity.layers.Dense(10),
        ]
    )
    ```

    References:

    - [Molina et al., 2020](https://arxiv.org/abs/1907.06732)
    - [Delfosse et al., 2021](https://arxiv.org/abs/2102.09407), for plasticity
    """

    def __init__(
        self,
        numerator: Sequence[float] | None = None,
        denominator: Sequence[float] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.initial_numerator = _check_coefficients(
            "numerator", _NUMERATOR if numerator is None else numerator, 2
        )
        self.initial_denominator = _check_coefficients(
            "denominator",
            _DENOMINATOR if denominator is None else denominator,
            1,
        )
        self.supports_masking = True

    def build(self, input_shape):
        self.numerator = self._add_coefficients(
            "numerator", self.initial_numerator
        )
        self.denominator = self._add_coefficients(
            "denominator", self.initial_denominator
        )

    def _add_coefficients(self, name, values):
        def initializer(shape, dtype=None):
            # An array: of a list, backends make float32 first.
            return ops.convert_to_tensor(np.array(values, "float64"), dtype)

        return self.add_weight(
            name=name,
            shape=(len(values),),
            initializer=initializer,
            autocast=False,
        )

    def call(self, inputs):
        is_half = self.compute_dtype in ("float16", "bfloat16")
        dtype = "float32" if is_half else self.compute_dtype
        x = ops.cast(inputs, dtype)
        numerator = ops.unstack(ops.cast(self.numerator, dtype))
        denominator = ops.unstack(ops.cast(self.denominator, dtype))
        result = _polynomial(numerator, x) / (
            1.0 + ops.abs(_polynomial(denominator, x) * x)
        )
        return ops.cast(result, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "numerator": self.initial_numerator,
            "denominator": self.initial_denominator,
        }


def _check_coefficients(name, values, least):
    """List of finite numbers, at least so many."""
    rule = f"a sequence of {least} or more finite numbers"
    values = validation.check_list(name, values, rule=rule)
    if len(values) < least:
        raise validation.error(name, rule, values)
    return [validation.check_number(name, value) for value in values]


def _polynomial(coefficients, x):
    """`coefficients[0] + coefficients[1] * x + ...`, by Horner's rule."""
    *rest, result = coefficients
    for coefficient in reversed(rest):
        result = result * x + coefficient
    return result
