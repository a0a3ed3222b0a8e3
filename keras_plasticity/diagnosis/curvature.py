"""The curvature of a model's loss: eigenvalues of its second derivatives."""

import math

import keras
import numpy as np

from keras_plasticity import diagnostics
from keras_plasticity import validation
from keras_plasticity.diagnosis.arguments import check_data
from keras_plasticity.diagnosis.arguments import check_weights
from keras_plasticity.diagnosis.differentiation import differentiation_of

# Relative to the largest: less is rounding.
_RELATIVE_PRECISION = 1e-6


def hessian_rank(
    model: keras.Model,
    data,
    epsilon: float = 0.01,
    num_steps: int = 30,
    num_vectors: int = 1,
    batch_size: int = 256,
    seed: int | None = 0,
) -> float:
    """Share of directions in which a model's loss is curved at all.

    The share of the eigenvalues of the Hessian (the second derivatives of the
    loss by all trainable weights) with `|eigenvalue| > epsilon`. Where it
    collapses before training on a new task, training will fail (Prakash et
    al., 2025). See `keras_plasticity.diagnostics.hessian_rank`, and
    `keras_plasticity.diagnosis.hessian_spectrum` for how it is estimated, and
    what that costs.

    Args:
        model: A built and compiled `keras.Model`. It does not change.
        data: Tuple `(x, y)` of inputs and targets, each an array, or a list or
            dict of arrays, as the model takes them; or a data set of batches of
            these, as `keras_plasticity.measure` takes it. A few hundred
            examples of the task to come will do.
        epsilon: Float, not negative. Defaults to `0.01`.
        num_steps: Integer, how many eigenvalues of each vector are computed.
            Defaults to 30.
        num_vectors: Integer, how many random vectors the share is a mean of.
            Defaults to 1.
        batch_size: Integer, the number of examples computed at once. Defaults
            to 256.
        seed: Integer, of the random vectors, or `None`. Defaults to 0.

    Returns:
        Float between 0 and 1: times the number of weights it is the number of
        eigenvalues. NaN if the model has diverged.

    Raises:
        ValueError: If the model is not built or not compiled with a loss, if
            it has no trainable weights, or if the data are not inputs and
            targets that fit it, of finite numbers.

    Example:

    ```python
    rank = keras_plasticity.diagnosis.hessian_rank(model, (x, y))
    ```

    References:

    - [Prakash et al., 2025](https://arxiv.org/abs/2509.22335)
    """
    epsilon = validation.check_not_negative("epsilon", epsilon)
    values, weights = hessian_spectrum(
        model, data, num_steps, num_vectors, batch_size, seed
    )
    if not np.isfinite(values).all():
        return math.nan
    return diagnostics.hessian_rank(values, weights, epsilon)


def sharpness(
    model: keras.Model,
    data,
    num_steps: int = 30,
    batch_size: int = 256,
    seed: int | None = 0,
) -> float:
    """The largest curvature of a model's loss.

    The largest eigenvalue of the Hessian, the second derivatives of the loss
    by all trainable weights. Gradient descent with a learning rate above
    `2 / sharpness` diverges in this direction. See
    `keras_plasticity.diagnosis.hessian_spectrum` for how it is computed, and
    what that costs.

    Args:
        model: A built and compiled `keras.Model`. It does not change.
        data: As in
            `keras_plasticity.diagnosis.hessian_spectrum`.
        num_steps: Integer, the number of steps of the Lanczos algorithm.
            Defaults to 30.
        batch_size: Integer, the number of examples computed at once. Defaults
            to 256.
        seed: Integer, of the vector it starts with, or `None`. Defaults to 0.

    Returns:
        Float, not above the largest eigenvalue by more than rounding, and
        mostly within a few percent of it. NaN if the model has diverged.

    Raises:
        ValueError: As `keras_plasticity.diagnosis.hessian_spectrum`.

    Example:

    ```python
    sharpness = keras_plasticity.diagnosis.sharpness(model, (x, y))
    ```

    References:

    - [Cohen et al., 2021](https://arxiv.org/abs/2103.00065)
    """
    values, _ = hessian_spectrum(
        model, data, num_steps, 1, batch_size=batch_size, seed=seed
    )
    return float(np.max(values))


def hessian_spectrum(
    model: keras.Model,
    data,
    num_steps: int = 30,
    num_vectors: int = 1,
    batch_size: int = 256,
    seed: int | None = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of the second derivatives of a model's loss.

    The Lanczos algorithm with full reorthogonalization, from a random vector,
    finds the largest and the smallest eigenvalues, and some in between that
    stand for all of them: each has a weight, its share of all eigenvalues. The
    mean over several vectors is more exact. With no more weights than
    `num_steps`, all eigenvalues are computed instead, each with the same
    weight.

    The loss is the one the model was compiled with, with its regularization,
    in inference mode: of the mean over all examples. It has to be twice
    differentiable on the backend, and be computed in float32.

    Each step takes about twice as long as computing the loss and its gradient
    once, and all of them need the memory of `num_steps` copies of the weights.

    Args:
        model: A built and compiled `keras.Model`. It does not change.
        data: Tuple `(x, y)` of inputs and targets, each an array, or a list or
            dict of arrays, as the model takes them; or a data set of batches of
            these, as `keras_plasticity.measure` takes it.
        num_steps: Integer, how many eigenvalues of each vector are computed.
            Defaults to 30.
        num_vectors: Integer, the number of random vectors. Defaults to 1.
        batch_size: Integer, the number of examples computed at once. Defaults
            to 256.
        seed: Integer, of the random vectors, or `None`. Defaults to 0.

    Returns:
        Tuple of two arrays: the eigenvalues in ascending order, and their
        weights, which add up to 1. If the model has diverged, all eigenvalues
        are NaN.

    Raises:
        ValueError: If the model is not built or not compiled with a loss, if
            it has no trainable weights, or if the data are not inputs and
            targets that fit it, of finite numbers.

    Example:

    ```python
    eigenvalues, weights = keras_plasticity.diagnosis.hessian_spectrum(
        model, (x, y)
    )
    sharpness = max(eigenvalues)
    mean = np.sum(weights * eigenvalues)
    ```

    References:

    - [Ghorbani et al., 2019](https://arxiv.org/abs/1901.10159)
    """
    derivatives = differentiation_of(model)
    x, y = check_data(data)
    num_steps = validation.check_positive_integer("num_steps", num_steps)
    num_vectors = validation.check_positive_integer("num_vectors", num_vectors)
    batch_size = validation.check_positive_integer("batch_size", batch_size)
    rng = np.random.default_rng(validation.check_seed("seed", seed))
    shapes = [v.shape for v in check_weights(model)]
    size = sum(map(math.prod, shapes))

    def product(vector):
        parts = _unflattened(vector, shapes)
        products = derivatives.hessian_vector_product(x, y, parts, batch_size)
        return np.concatenate([np.ravel(each) for each in products])

    if size <= num_steps:
        values = _eigenvalues([product(row) for row in np.eye(size)])
        weights = np.ones(size)
    else:
        found = [
            lanczos(product, rng.normal(size=size), num_steps)
            for _ in range(num_vectors)
        ]
        values, weights = map(np.concatenate, zip(*found))
    order = np.argsort(values)
    return values[order], weights[order] / weights.sum()


def lanczos(product, start, num_steps):
    """Eigenvalues of a symmetric matrix by the Lanczos algorithm.

    Args:
        product: Function from a vector to the matrix times this vector.
        start: Array, the vector to start with.
        num_steps: Integer, at least 1, the number of steps.

    Returns:
        Tuple of two arrays of at most `num_steps` numbers: approximations of
        eigenvalues, NaN if the matrix is not finite, and their weights. The
        weight of an eigenvalue is the squared length of what of the normalized
        `start` lies in its direction: over random vectors, its share of all.
    """
    basis = np.zeros((num_steps, len(start)), "float32")
    basis[0] = start / np.linalg.norm(start)
    diagonal, beside = [], []
    for i in range(num_steps):
        vector = np.asarray(product(basis[i]), "float32")
        if not np.isfinite(vector).all():
            return np.full(1, np.nan), np.ones(1)
        diagonal.append(float(basis[i] @ vector))
        for _ in range(2):  # Once is not enough, twice is.
            vector = vector - (basis[: i + 1] @ vector) @ basis[: i + 1]
        length = float(np.linalg.norm(vector))
        largest = max(map(abs, [*diagonal, *beside]))
        if length <= _RELATIVE_PRECISION * largest or i == num_steps - 1:
            break
        beside.append(length)
        basis[i + 1] = vector / length
    matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    values, vectors = np.linalg.eigh(matrix)
    return values, vectors[0] ** 2


def _eigenvalues(rows):
    """All eigenvalues of a symmetric matrix, up to rounding."""
    matrix = np.array(rows, "float64")
    if not np.isfinite(matrix).all():
        return np.full(len(matrix), np.nan)
    return np.linalg.eigvalsh((matrix + matrix.T) / 2)


def _unflattened(vector, shapes):
    """A vector as a list of arrays of some shapes."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    parts = np.split(vector, ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes)]
