"""New weights of one unit: draws from a layer's own initializer, or others."""

import math

import keras

from keras_plasticity.validation import check_deserialized

# Initializers whose elements are independent and equally distributed whatever
# the shape, so that a part of a weight can be drawn alone.
_SHAPE_FREE = (
    keras.initializers.Ones,
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
    keras.initializers.Zeros,
)
# The same, but with a scale that depends on the shape of the whole weight.
_VARIANCE_SCALING = (
    keras.initializers.GlorotNormal,
    keras.initializers.GlorotUniform,
    keras.initializers.HeNormal,
    keras.initializers.HeUniform,
    keras.initializers.LecunNormal,
    keras.initializers.LecunUniform,
    keras.initializers.VarianceScaling,
)
# Standard deviation of a unit normal cut off at two standard deviations.
_TRUNCATED_STDDEV = 0.87962566103423978


def check_optional_initializer(name, value):
    """Checks an argument that is a Keras initializer or `None`.

    Args:
        name: String.
        value: The argument.

    Returns:
        Keras initializer, or `None`.
    """
    rule = "`None`, a Keras initializer or the name of one"
    return check_deserialized(
        name, value, keras.initializers.get, rule, optional=True
    )


class PartInitializer:
    """Draws one unit's part of a weight.

    The initializer is copied with `seed_generator` for its seed: a seeded
    Keras initializer returns the same numbers at every call.

    A draw costs as much as the numbers of one unit, except for initializers
    whose numbers depend on each other or on their position (identity, an
    array, a function): these draw the whole weight, of which the unit's own
    part is taken. Columns of an orthogonal matrix are drawn without the others.

    Args:
        initializer: A Keras initializer, or a function `(shape, dtype)`.
        shape: Tuple, of the whole weight.
        seed_generator: `keras.random.SeedGenerator` to draw from. By default
            the initializer's own seed is used.
    """

    def __init__(self, initializer, shape, seed_generator=None):
        self._shape = shape
        independent = independent_initializer(
            initializer, shape, seed_generator
        )
        self._draws_whole = independent is None
        if independent is not None:
            initializer = independent
        elif isinstance(initializer, keras.initializers.Initializer):
            initializer = _reseed(initializer, seed_generator)
        self._initializer = initializer
        self._is_orthogonal = type(initializer) is keras.initializers.Orthogonal

    def __call__(self, view, index, dtype=None):
        """Draws the part of a weight that belongs to one index of a view.

        Args:
            view: `WeightView` of the weight.
            index: Integer scalar tensor.
            dtype: String. Defaults to that of the weight.

        Returns:
            Tensor of shape `view.part_shape`.
        """
        dtype = view.variable.dtype if dtype is None else dtype
        if self._is_orthogonal and _counts_columns(view):
            return self._draw_columns(view.part_shape, dtype)
        if self._draws_whole:
            return view.take_from(self.draw_whole(dtype), index)
        return self._initializer(view.part_shape, dtype=dtype)

    def _draw_columns(self, shape, dtype):
        """Columns of a random orthogonal matrix.

        Any of them are distributed as the first ones. Of a matrix with fewer
        rows than columns, whose rows are orthonormal, they are the upper part
        of columns of a square one.
        """
        *sizes, columns = self._shape
        rows = math.prod(sizes)
        number = math.prod(shape) // rows
        frame = self._initializer((max(rows, columns), number), dtype=dtype)
        return keras.ops.reshape(frame[:rows], shape)

    def draw_whole(self, dtype):
        """Draws the whole weight.

        Args:
            dtype: String.

        Returns:
            Tensor of the weight's shape.
        """
        whole = self._initializer(self._shape, dtype=dtype)
        return keras.ops.convert_to_tensor(whole)


class InitialPart:
    """Returns the values that one unit's part of a weight once had.

    It is called as a `PartInitializer` is.

    Args:
        values: `keras.Variable` of the weight's shape.
    """

    def __init__(self, values):
        self._values = values

    def __call__(self, view, index, dtype=None):
        return view.take_from(self.draw_whole(dtype), index)

    def draw_whole(self, dtype=None):
        return keras.ops.convert_to_tensor(self._values, dtype)


def _counts_columns(view):
    """Whether an index of a view has some columns of the weight to itself."""
    last = len(view.variable.shape) - 1
    return view.shape[:last] == tuple(view.variable.shape)[:last] and all(
        axis >= last for axis in view.axes
    )


def independent_initializer(initializer, shape, seed_generator=None):
    """What an initializer draws for one element of a weight.

    Args:
        initializer: A Keras initializer, or a function `(shape, dtype)`.
        shape: Tuple, of the whole weight.
        seed_generator: `keras.random.SeedGenerator` to draw from.

    Returns:
        Keras initializer that draws any number of such elements; `None` if
        the elements of a weight are not independent.
    """
    kind = type(initializer)
    if kind is keras.initializers.Constant and _is_scalar(initializer.value):
        return initializer
    if kind in _SHAPE_FREE:
        return _reseed(initializer, seed_generator)
    if kind in _VARIANCE_SCALING:
        return _fixed_scale(initializer, shape, seed_generator)
    return None


def _is_scalar(value):
    return isinstance(value, (int, float, bool))


def _reseed(initializer, seed_generator):
    config = initializer.get_config()
    if "seed" not in config or seed_generator is None:
        return initializer
    return type(initializer)(**{**config, "seed": seed_generator})


def _fixed_scale(initializer, shape, seed_generator):
    """The distribution of a `VarianceScaling` on a weight of this shape."""
    fan_in, fan_out = _fans(shape, initializer)
    fan = {
        "fan_in": fan_in,
        "fan_out": fan_out,
        "fan_avg": (fan_in + fan_out) / 2,
    }[initializer.mode]
    variance = initializer.scale / max(1.0, fan)
    if initializer.distribution == "uniform":
        limit = math.sqrt(3 * variance)
        return keras.initializers.RandomUniform(
            -limit, limit, seed=seed_generator
        )
    if initializer.distribution == "untruncated_normal":
        return keras.initializers.RandomNormal(
            stddev=math.sqrt(variance), seed=seed_generator
        )
    return keras.initializers.TruncatedNormal(
        stddev=math.sqrt(variance) / _TRUNCATED_STDDEV, seed=seed_generator
    )


def _fans(shape, initializer):
    if getattr(initializer, "input_axes", None) is not None:
        return (
            math.prod(shape[axis] for axis in initializer.input_axes),
            math.prod(shape[axis] for axis in initializer.output_axes),
        )
    if len(shape) == 1:
        return shape[0], shape[0]
    positions = math.prod(shape[:-2])
    return positions * shape[-2], positions * shape[-1]
