"""The few things that each backend does its own way."""

import contextlib
import os

import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity import backend
from keras_plasticity.backend import xla_flags
from tests.helpers import to_numpy


def _as_for_xla():
    """Contexts in which parts of arrays are written: XLA has its own way."""
    if keras.backend.backend() != "tensorflow":
        return [contextlib.nullcontext]
    from keras_plasticity.backend import tensorflow as tensorflow_backend

    return [contextlib.nullcontext, tensorflow_backend.tracing_for_xla]


@pytest.fixture(params=_as_for_xla(), ids=lambda each: each.__name__)
def tracing(request):
    with request.param():
        yield


@pytest.mark.parametrize("times", [0, 1, 5])
def test_repeat_runs_the_body_so_often(times):
    count = keras.Variable(0, dtype="int32", trainable=False)
    total = keras.Variable(np.zeros(3, "float32"))

    def body():
        count.assign(ops.add(count, 1))
        total.assign(ops.add(total, ops.cast(count, "float32")))

    with backend.no_gradient():
        backend.repeat(ops.convert_to_tensor(times), body, [count, total])
    assert to_numpy(count) == times
    np.testing.assert_array_equal(
        to_numpy(total), [times * (times + 1) / 2] * 3
    )


@pytest.mark.parametrize(
    ("shape", "axis"),
    # A large array is written in another way than a small one.
    [
        ((5,), 0),
        ((3, 4), 0),
        ((3, 4), 1),
        ((2, 3, 4), 1),
        ((5000,), 0),
        ((70, 80), 0),
        ((70, 80), 1),
        ((20, 30, 40), 1),
        ((400, 500), 1),
    ],
)
@pytest.mark.usefixtures("tracing")
def test_assign_part_writes_one_row_or_column(shape, axis):
    before = np.arange(np.prod(shape), dtype="float32").reshape(shape)
    variable = keras.Variable(before)
    new = -1.0 - np.arange(before.size // shape[axis], dtype="float32")
    new = new.reshape(shape[:axis] + shape[axis + 1 :])
    index = ops.convert_to_tensor(shape[axis] - 2)
    with backend.no_gradient():
        backend.assign_part(
            variable, shape, (axis,), (index,), ops.convert_to_tensor(new)
        )
    expected = np.moveaxis(before.copy(), axis, 0)
    expected[shape[axis] - 2] = new
    np.testing.assert_array_equal(
        to_numpy(variable), np.moveaxis(expected, 0, axis)
    )


@pytest.mark.usefixtures("tracing")
def test_assign_part_in_another_shape_on_two_axes():
    # Row 1 of group 2 of a grouped convolution's kernel.
    before = np.arange(2 * 3 * 12, dtype="float32").reshape(2, 3, 12)
    variable = keras.Variable(before)
    new = -np.arange(1.0, 2 * 4 + 1).reshape(2, 4)
    with backend.no_gradient():
        backend.assign_part(
            variable,
            (2, 3, 3, 4),
            (2, 1),
            (ops.convert_to_tensor(2), ops.convert_to_tensor(1)),
            ops.convert_to_tensor(new),
        )
    expected = before.copy()
    expected[:, 1, 8:] = new
    np.testing.assert_array_equal(to_numpy(variable), expected)


# On JAX in slices: with and without a remainder, or single rows; and whole.
@pytest.mark.parametrize(
    "shape", [(784, 10), (127, 101), (53, 31), (6, 600), (20, 60), (1, 4)]
)
@pytest.mark.parametrize("axis", [0, 1])
def test_magnitudes(shape, axis):
    matrix = np.random.default_rng(0).normal(0, 1, shape).astype("float32")
    function = (backend.column_magnitudes, backend.row_magnitudes)[axis]
    np.testing.assert_allclose(
        to_numpy(function(ops.convert_to_tensor(matrix))),
        np.abs(matrix).sum(axis=axis),
        rtol=1e-5,
    )


def test_magnitudes_of_what_is_not_finite():
    matrix = np.ones((50, 40), "float32")
    matrix[0, 0] = np.nan
    matrix[3, 1] = np.inf
    for axis, function in enumerate(
        (backend.column_magnitudes, backend.row_magnitudes)
    ):
        np.testing.assert_array_equal(
            to_numpy(function(ops.convert_to_tensor(matrix))),
            np.abs(matrix).sum(axis=axis),
        )


def test_after_backward_changes_no_gradient():
    rng = np.random.default_rng(0)
    gradients = [
        rng.normal(0, 1, shape).astype("float32")
        for shape in [(3, 4), (4,), (4, 2), (2,)]
    ]
    # Of the values, one is not finite, as with a loss scale that is too large.
    gradients[1][0] = np.inf
    gradients[3][0] = np.nan

    def order(*tensors):
        result = backend.after_backward([tensors[0], None, *tensors[1:]])
        assert result.pop(1) is None
        return result

    if keras.backend.backend() == "jax":
        import jax

        order = jax.jit(order)
    tensors = [ops.convert_to_tensor(g) for g in gradients]
    for result, expected in zip(order(*tensors), gradients):
        np.testing.assert_array_equal(to_numpy(result), expected)


def test_gradients_of_a_function():
    w = keras.Variable([[1.0, 2.0], [3.0, 4.0]])
    b = keras.Variable([1.0, -1.0])
    unused = keras.Variable([7.0])
    x = np.array([[1.0, 2.0]], "float32")

    def loss():
        return ops.sum(ops.square(ops.matmul(x, w) + b))

    first, second, third = backend.gradients(loss, [w, b, unused])
    output = x @ [[1.0, 2.0], [3.0, 4.0]] + [1.0, -1.0]
    np.testing.assert_allclose(to_numpy(first), 2 * x.T @ output)
    np.testing.assert_allclose(to_numpy(second), 2 * output[0])
    assert third is None or not to_numpy(third).any()


def test_gradients_change_nothing():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, kernel_regularizer="l2"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5, seed=1),
            keras.layers.ActivityRegularization(l2=0.1),
            keras.layers.Dense(2),
        ]
    )
    model.compile("sgd", "mse", metrics=["mae"])
    rng = np.random.default_rng(0)
    x = ops.convert_to_tensor(rng.normal(0, 1, (5, 3)).astype("float32"))
    y = ops.convert_to_tensor(rng.normal(0, 1, (5, 2)).astype("float32"))
    model.train_on_batch(x, y)
    variables = [*model.variables, *model.optimizer.variables]
    variables += model.metrics_variables
    before = [to_numpy(v) for v in variables]
    grads = [getattr(v.value, "grad", None) for v in model.trainable_variables]
    grads = [None if g is None else to_numpy(g) for g in grads]

    def loss():
        # Moving statistics, seeds, trackers: all would change.
        return model.compute_loss(x, y, model(x, training=True), training=True)

    gradients = backend.gradients(loss, model.trainable_variables)
    assert all(to_numpy(g).shape for g in gradients)
    assert any(to_numpy(g).any() for g in gradients)
    for variable, value in zip(variables, before):
        np.testing.assert_array_equal(to_numpy(variable), value)
    for variable, value in zip(model.trainable_variables, grads):
        grad = getattr(variable.value, "grad", None)
        if value is not None:
            np.testing.assert_array_equal(to_numpy(grad), value)


@pytest.mark.parametrize("sizes", [(1,), (7,), (3, 3), (40, 2, 100)])
def test_count_true(sizes):
    rng = np.random.default_rng(sum(sizes))
    masks = [rng.random(size) < 0.5 for size in sizes]
    masks[0][:] = True
    counts = backend.count_true([ops.convert_to_tensor(m) for m in masks])
    assert keras.backend.standardize_dtype(counts.dtype) == "int32"
    assert to_numpy(counts).tolist() == [int(mask.sum()) for mask in masks]


@pytest.mark.parametrize("before", [None, "", "--xla_dump_to=a"])
def test_the_flag_of_small_loops(before, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if before is not None:
        monkeypatch.setenv("XLA_FLAGS", before)
    xla_flags.compile_small_loops_whole()
    once = os.environ["XLA_FLAGS"]
    first, *rest = once.split()[::-1]
    assert first.startswith("--xla_backend_extra_options=xla_cpu_small_while")
    assert rest == (before or "").split()
    xla_flags.compile_small_loops_whole()
    assert os.environ["XLA_FLAGS"] == once


@pytest.mark.parametrize("before", [None, "", "--xla_dump_to=a"])
def test_the_flag_of_small_loops_is_taken_back(before, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if before is not None:
        monkeypatch.setenv("XLA_FLAGS", before)
    for _ in range(2):
        xla_flags.compile_small_loops_whole()
        assert xla_flags.are_small_loops_whole()
        xla_flags.compile_small_loops_apart()
        assert not xla_flags.are_small_loops_whole()
        assert os.environ.get("XLA_FLAGS", "") == (before or "")


@pytest.mark.parametrize("number", [0, 2**22])
def test_the_users_extra_options_of_xla_stay(number, monkeypatch):
    flags = (
        "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold="
        f"{number}"
    )
    monkeypatch.setenv("XLA_FLAGS", flags)
    backend.compile_small_loops_whole()
    assert os.environ["XLA_FLAGS"] == flags
    # Taken back is only what the library has set.
    backend.compile_small_loops_whole(16)
    assert os.environ["XLA_FLAGS"] == flags


def test_quotient():
    rng = np.random.default_rng(0)
    for divisor in [1, 3, 100, 511, 512, 999, *(10**n for n in range(3, 10))]:
        multiples = np.arange(min(2000, 2**31 // divisor)) * divisor
        numbers = np.concatenate(
            [
                rng.integers(0, 2**31 - 1, 10_000),
                multiples,
                multiples[1:] - 1,
                [2**31 - 1],
            ]
        ).astype("int32")
        result = backend.quotient(ops.convert_to_tensor(numbers), divisor)
        np.testing.assert_array_equal(
            ops.convert_to_numpy(result), numbers // divisor
        )


def test_compiled_functions_take_nests_of_arrays():
    def function(weights, data):
        return [keras.ops.matmul(data["x"], w) for w in weights]

    compiled = backend.compiled(function)
    for rows in (2, 3, 2):
        x = np.arange(rows * 2.0, dtype="float32").reshape(rows, 2)
        weights = [np.full((2, n), n, "float32") for n in (1, 3)]
        results = compiled(weights, {"x": x})
        for result, w in zip(results, weights):
            result = keras.ops.convert_to_numpy(result)
            np.testing.assert_allclose(result, x @ w)


def test_value_and_gradients_inside_a_compiled_function():
    def function(tensors):
        def loss(tensors):
            a, b, _ = tensors
            return keras.ops.sum(a * a * b)

        return backend.value_and_gradients(loss, tensors)

    a = np.array([1.0, -2.0], "float32")
    b = np.array([3.0, 0.5], "float32")
    value, gradients = backend.compiled(function)([a, b, a])
    assert float(value) == 5.0
    expected = [[6.0, -2.0], [1.0, 4.0], [0.0, 0.0]]
    for gradient, numbers in zip(gradients, expected):
        if gradient is None:
            numbers, gradient = 0.0, np.zeros(())
        gradient = keras.ops.convert_to_numpy(gradient)
        np.testing.assert_allclose(gradient, numbers)


def test_hessian_vector_product_inside_a_compiled_function():
    def function(tensors, vectors):
        def loss(tensors):
            a, b, c, _ = tensors
            # Quadratic in `a`, linear in `c`.
            return ops.sum(a * a * b) + ops.sum(c)

        products = backend.hessian_vector_product(loss, tensors, vectors)
        return [
            ops.zeros_like(tensor) if product is None else product
            for tensor, product in zip(tensors, products)
        ]

    a = np.array([1.0, -2.0], "float32")
    b = np.array([3.0, 0.5], "float32")
    v = np.array([2.0, 1.0], "float32")
    w = np.array([-1.0, 4.0], "float32")
    products = backend.compiled(function)([a, b, a, a], [v, w, v, w])
    expected = [2 * b * v + 2 * a * w, 2 * a * v, 0 * v, 0 * v]
    for product, numbers in zip(products, expected):
        np.testing.assert_allclose(to_numpy(product), numbers)


def test_no_second_derivatives():
    tensors = [ops.convert_to_tensor([1.0, 2.0])]
    (product,) = backend.hessian_vector_product(
        lambda tensors: ops.sum(tensors[0]), tensors, tensors
    )
    assert product is None or not to_numpy(product).any()


def test_compiled_functions_take_none():
    def function(data, others):
        assert others is None and data[1] is None
        return data[0] + 1.0

    result = backend.compiled(function)((np.ones(2, "float32"), None), None)
    np.testing.assert_array_equal(to_numpy(result), [2.0, 2.0])


def test_window():
    vector = ops.arange(10, dtype="float32") * 2
    start = ops.convert_to_tensor([3], dtype="int32")
    part = backend.window(vector, start, 4)
    np.testing.assert_array_equal(to_numpy(part), [6, 8, 10, 12])


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="PyTorch is told what to trace."
)
def test_within_what_is_traced():
    """As outside, but that both ways are computed and one is selected."""
    from keras_plasticity.backend import torch as torch_backend

    vector = ops.arange(10, dtype="float32")
    variables = [keras.Variable(np.zeros(2)), keras.Variable(np.ones(2))]
    with torch_backend.tracing():
        for start in (0, 3, 6):
            found = backend.window(vector, ops.full((1,), start, "int32"), 4)
            np.testing.assert_array_equal(
                to_numpy(found), np.arange(start, start + 4)
            )
        for condition in (False, True):
            scope = keras.StatelessScope(
                [(variable, variable.value) for variable in variables]
            )
            with scope:
                number = backend.keep_if(
                    ops.convert_to_tensor(condition),
                    lambda: variables[0].assign(ops.full((2,), 5.0)) is None,
                    variables,
                )
                values = [to_numpy(v) for v in variables]
            assert int(number) == 0
            expected = [5.0 * condition, 1.0]
            np.testing.assert_array_equal(values, np.outer(expected, [1, 1]))
