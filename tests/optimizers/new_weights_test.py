import keras
import numpy as np
import pytest

from keras_plasticity.optimizers.new_weights import PartInitializer
from keras_plasticity.units.weight_view import WeightView
from tests.helpers import to_numpy

_INITIALIZERS = {
    "zeros": keras.initializers.Zeros(),
    "ones": keras.initializers.Ones(),
    "constant": keras.initializers.Constant(0.3),
    "random_normal": keras.initializers.RandomNormal(0.5, 0.2, seed=1),
    "random_uniform": keras.initializers.RandomUniform(-0.1, 0.3, seed=1),
    "truncated_normal": keras.initializers.TruncatedNormal(0.1, 0.2, seed=1),
    "glorot_normal": keras.initializers.GlorotNormal(seed=1),
    "glorot_uniform": keras.initializers.GlorotUniform(seed=1),
    "he_normal": keras.initializers.HeNormal(seed=1),
    "he_uniform": keras.initializers.HeUniform(seed=1),
    "lecun_normal": keras.initializers.LecunNormal(seed=1),
    "lecun_uniform": keras.initializers.LecunUniform(seed=1),
    "variance_scaling_fan_out": keras.initializers.VarianceScaling(
        2.0, "fan_out", "untruncated_normal", seed=1
    ),
    "variance_scaling_fan_avg": keras.initializers.VarianceScaling(
        0.5, "fan_avg", "uniform", seed=1
    ),
    "variance_scaling_truncated": keras.initializers.VarianceScaling(
        0.5, "fan_avg", "truncated_normal", seed=1
    ),
}


def _draw(initializer, shape, times):
    variable = keras.Variable(np.zeros(shape))
    view = WeightView(variable, shape, (len(shape) - 1,))
    draw = PartInitializer(initializer, shape, keras.random.SeedGenerator(3))
    unit = keras.ops.convert_to_tensor(1)
    return np.stack([to_numpy(draw(view, unit)) for _ in range(times)])


# Of a dense layer, and of a convolution.
@pytest.mark.parametrize("shape", [(2000, 10), (5, 5, 20, 30)], ids=str)
@pytest.mark.parametrize("name", _INITIALIZERS)
def test_parts_are_distributed_as_the_whole(name, shape):
    initializer = _INITIALIZERS[name]
    times = 3 if shape[0] == 2000 else 12
    parts = _draw(initializer, shape, times)
    assert parts.shape == (times,) + shape[:-1]
    whole = to_numpy(initializer(shape, "float32"))
    # Standard error of mean and deviation of this many numbers, five times.
    error = 5 / np.sqrt(min(parts.size, whole.size))
    scale = whole.std()
    np.testing.assert_allclose(
        parts.mean(), whole.mean(), atol=error * scale + 1e-6
    )
    np.testing.assert_allclose(parts.std(), scale, rtol=error, atol=1e-6)
    # The tails too: uniform and truncated weights end where the whole does.
    # (A quantile, as Keras' truncated normal on PyTorch lets one number in
    # some hundred thousand pass.)
    tails = [np.quantile(np.abs(a), 0.99) for a in (parts, whole)]
    np.testing.assert_allclose(*tails, rtol=0.06)


@pytest.mark.parametrize("name", ["he_normal", "random_uniform"])
def test_draws_differ_although_the_initializer_is_seeded(name):
    parts = _draw(_INITIALIZERS[name], (6, 4), 5)
    assert len(np.unique(parts, axis=0)) == 5


def test_orthogonal_draws_a_column_of_the_whole():
    parts = _draw(keras.initializers.Orthogonal(gain=2.0, seed=1), (6, 4), 3)
    assert parts.shape == (3, 6)
    # Columns of an orthogonal kernel have the length `gain`.
    np.testing.assert_allclose(np.linalg.norm(parts, axis=1), 2.0, rtol=1e-4)
    assert len(np.unique(parts, axis=0)) == 3


def test_function():
    def ramp(shape, dtype):
        return keras.ops.reshape(
            keras.ops.arange(np.prod(shape), dtype=dtype), shape
        )

    np.testing.assert_array_equal(_draw(ramp, (3, 4), 1)[0], [1, 5, 9])


def test_constant_array_gives_the_units_own_column():
    value = np.arange(9.0).reshape(3, 3)
    parts = _draw(keras.initializers.Constant(value), (3, 3), 1)
    np.testing.assert_array_equal(parts[0], [1, 4, 7])


def test_identity_gives_the_units_own_column():
    parts = _draw(keras.initializers.Identity(), (4, 3), 2)
    np.testing.assert_array_equal(parts, [[0, 1, 0, 0]] * 2)


@pytest.mark.parametrize("initializer", ["zeros", "ones"])
def test_bias(initializer):
    parts = _draw(keras.initializers.get(initializer), (7,), 2)
    np.testing.assert_array_equal(parts, [initializer == "ones"] * 2)


@pytest.mark.parametrize("rows", [3, 12, 20])
def test_columns_of_an_orthogonal_matrix_are_those_of_a_whole_one(rows):
    """The columns of one unit of three gates, as of a recurrent kernel."""
    initializer = keras.initializers.Orthogonal(gain=1.5, seed=1)
    kernel = keras.Variable(np.zeros((rows, 12), "float32"))
    view = WeightView(kernel, (rows, 3, 4), (2,))
    generator = keras.random.SeedGenerator(3)
    draw = PartInitializer(initializer, (rows, 12), generator)
    moments = []
    for draw_part in (
        lambda: view.take_from(draw.draw_whole("float32"), 2),
        lambda: draw(view, 2),
    ):
        parts = np.stack([to_numpy(draw_part()) for _ in range(400)])
        assert parts.shape == (400, rows, 3)
        products = np.einsum("nri,nrj->nij", parts, parts)
        squares = [products**2, parts**2, parts[:, 0] * parts[:, 1]]
        moments.append([np.mean(each, axis=0) for each in squares])
    for expected, actual in zip(*moments):
        np.testing.assert_allclose(actual, expected, atol=0.08)
    # Orthonormal but for the gain: the columns, or else the rows.
    lengths = np.linalg.norm(parts, axis=1) / 1.5
    assert (np.abs(lengths - 1).max() < 1e-4) == (rows >= 12)
