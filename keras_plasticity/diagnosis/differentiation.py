"""The loss of a model and its derivatives, as functions of the weights."""

import functools
import weakref

import keras
import numpy as np

from keras_plasticity import backend
from keras_plasticity import keras_compat
from keras_plasticity import validation
from keras_plasticity.diagnosis.arguments import check_built
from keras_plasticity.diagnosis.constants import constants_of
from keras_plasticity.training import nests
from keras_plasticity.weights import weights_of

# By what a scale of the loss is divided at which gradients overflow.
_SCALE_DIVISOR = 16.0


class NoLossError(ValueError):
    """There is no loss to differentiate."""


class Differentiation:
    """Derivatives of a model's loss on data, by its trainable weights.

    The loss is the one that the model was compiled with, with what its layers
    add (`add_loss`, regularizers), in inference mode but for
    `training_gradients`. The weights are those of
    `keras_plasticity.weights_of(model)`, in their order. Nothing in the model
    changes, and weights that have changed since are seen.

    Each method is compiled when it is first called, and again where the shapes
    of the data, the model's variables or its compilation have changed. So keep
    the instance: `differentiation_of(model)` does. It does not keep the model.

    Data come as arrays, or nests of arrays as the model takes them, and are
    computed `batch_size` examples at once. What is returned is the mean over
    all examples, as it is for all losses that are means over examples
    themselves: with `reduction="sum"`, leave out `batch_size`.

    Args:
        model: A built `keras.Model`. For `output_gradients` it need not be
            compiled.
    """

    def __init__(self, model):
        self._model = weakref.ref(model)
        # What the programs were made for: dict from `id` to variable.
        self._variables = {}
        self._compilation = None
        self._programs = {}

    def loss(self, x, y, batch_size=None):
        """The loss.

        Args:
            x: Array, or nest of arrays: inputs.
            y: Array, or nest of arrays: targets; or `None`.
            batch_size: Integer. Defaults to all examples.

        Returns:
            Float.

        Raises:
            ValueError: If the model is not built, or not compiled.
        """
        return float(self._mean("loss", x, y, batch_size)[0])

    def data_loss(self, x, y, batch_size=None):
        """The loss without regularization, which large weights increase.

        Where a model computes its loss in a way of its own, it is all of it.

        Args:
            x: Array, or nest of arrays: inputs.
            y: Array, or nest of arrays: targets; or `None`.
            batch_size: Integer. Defaults to all examples.

        Returns:
            Float.

        Raises:
            ValueError: If the model is not built, or not compiled.
        """
        return float(self._mean("data_loss", x, y, batch_size)[0])

    def loss_and_gradients(self, x, y, batch_size=None):
        """The loss, and its gradient by each weight.

        Args:
            x: Array, or nest of arrays: inputs.
            y: Array, or nest of arrays: targets; or `None`.
            batch_size: Integer. Defaults to all examples.

        Returns:
            Tuple of a float and of a list of NumPy arrays, zeros for a weight
            that the loss does not depend on.

        Raises:
            ValueError: If the model is not built, or not compiled.
        """
        loss, *gradients = self._mean("gradients", x, y, batch_size)
        return float(loss), gradients

    def gradient_norm(self, x, y):
        """The norm of the gradient of the loss by all weights.

        It is computed where the gradient is: for many small batches.

        Args:
            x: Array, or nest of arrays: inputs.
            y: Array, or nest of arrays: targets; or `None`.

        Returns:
            Float.

        Raises:
            ValueError: If the model is not built, or not compiled.
        """
        return float(self._mean("gradient_norm", x, y, None)[0])

    def training_gradients(self, x, y, weights):
        """The gradients of the loss as a step of training computes them.

        That is in training mode, with the dropout that comes next. Still
        nothing in the model changes, so a second call has the same dropout.

        Args:
            x: Array, or nest of arrays: inputs of one batch.
            y: Array, or nest of arrays: targets of one batch; or `None`.
            weights: List of `keras.Variable`s, by which to differentiate.

        Returns:
            List of tensors, in float32 at least: zeros for a weight that the
            loss does not depend on.

        Raises:
            ValueError: If the model is not built, or not compiled.
        """
        with keras_compat.keep_losses(self._check_model()):
            self._build_loss(x, y)
            _, *gradients = self._run(
                "training_gradients", x, y, weights=weights
            )
        return gradients

    def hessian_vector_product(self, x, y, vectors, batch_size=None):
        """The product of the loss's second derivatives and a vector.

        It takes about twice the time and memory of a gradient.

        Args:
            x: Array, or nest of arrays: inputs.
            y: Array, or nest of arrays: targets; or `None`.
            vectors: List of arrays of the shapes of the weights.
            batch_size: Integer. Defaults to all examples.

        Returns:
            List of NumPy arrays of the shapes of the weights.

        Raises:
            ValueError: If the model is not built, or not compiled.
        """
        return self._mean("curvature", x, y, batch_size, list(vectors))

    def output_gradients(self, x):
        """The gradient by all weights of one number for each example.

        That number is the output or, of several outputs, their combination
        by a direction that is the same for all examples: it is drawn once,
        evenly from all directions. (Their sum would not do, which is always 1
        after a softmax.)

        Args:
            x: Array, or nest of arrays: inputs.

        Returns:
            NumPy array of shape `(examples, weights)`.

        Raises:
            ValueError: If the model is not built.
        """
        model = self._check_model(needs_loss=False)
        size = len(keras.tree.flatten(x)[0])
        gradients = None
        with keras_compat.keep_losses(model):
            for i in range(size):
                example = nests.take(x, slice(i, i + 1))
                row = _as_array(self._run("output_gradients", example, None)[0])
                if gradients is None:
                    gradients = np.empty((size, len(row)), row.dtype)
                gradients[i] = row
        return gradients

    def _mean(self, name, x, y, batch_size, *others):
        """Mean over the examples of what a program returns, as arrays."""
        model = self._check_model()
        with keras_compat.keep_losses(model):
            total = self._weighted_sum(name, x, y, batch_size, *others)
        return [_as_array(each) for each in total]

    def _weighted_sum(self, name, x, y, batch_size, *others):
        """Sum of what a program returns, each batch by its share."""
        total = None
        num_examples = len(keras.tree.flatten(x)[0])
        batch_size = min(batch_size or num_examples, num_examples)
        for start in range(0, num_examples, batch_size):
            batch = nests.take((x, y), slice(start, start + batch_size))
            if total is None:
                self._build_loss(*batch)
            results = self._run(name, *batch, *others)
            share = min(batch_size, num_examples - start) / num_examples
            results = [share * result for result in results]
            if total is not None:
                results = [a + b for a, b in zip(total, results)]
            total = results
        return total

    def _build_loss(self, x, y):
        model = self._model()
        try:
            keras_compat.build_loss(model, x, y)
        except Exception as error:  # Whatever a backend raises.
            raise _misfit(model, x, y, error) from error

    def _run(self, name, *arguments, weights=None):
        """Runs a program on values of the variables, and other arguments."""
        model = self._model()
        of_model = weights_of(model)
        weights = of_model if weights is None else weights
        loss = keras_compat.compiled_loss(model)
        variables = [*weights, *of_model, *model.variables]
        variables += loss.variables if loss else []
        variables = {id(v): v for v in variables}
        compilation = compilation_of(model)
        is_same = variables.keys() == self._variables.keys()
        if not is_same or self._compilation is not compilation:
            # Kept, so that no other object takes the place of one of them.
            self._variables = variables
            self._compilation = compilation
            self._programs = {}
        variables = [*variables.values()]
        # The values go by their order, which is another one once a layer is
        # frozen; and it may compute otherwise then, as a normalization does.
        orders = weights, of_model, variables
        key = name, constants_of(model), *(tuple(map(id, o)) for o in orders)
        if key not in self._programs:
            function, program = _PROGRAMS[name]
            function = functools.partial(function, self._model, variables)
            self._programs[key] = backend.compiled(
                functools.partial(program, function)
            )
        values = [keras.ops.convert_to_tensor(v) for v in variables]
        size = len(weights)
        run = functools.partial(
            self._programs[key], values[:size], values[size:]
        )
        try:
            return _at_a_scale_that_fits(
                lambda scale: run(scale, *arguments),
                _loss_scale(model),
                name in _SCALED,
            )
        except NoLossError:
            raise
        except Exception as error:  # Whatever a backend raises.
            # TensorFlow raises it as an error of another class.
            if NoLossError.__name__ in f"{type(error).__mro__} {error}":
                raise NoLossError(str(error)) from error
            raise _misfit(model, *arguments[:2], error) from error

    def _check_model(self, needs_loss=True):
        model = self._model()
        check_built(model)
        if needs_loss and not model.compiled:
            raise ValueError(
                "`model` must be compiled with a loss: call "
                f"`model.compile(loss=...)`. Received: model '{model.name}', "
                "which is not compiled"
            )
        return model


def differentiation_of(model):
    """The `Differentiation` of a model, always the same one.

    Args:
        model: A built `keras.Model`.

    Returns:
        `Differentiation`. It is kept for as long as the model is.

    Raises:
        TypeError: If it is no model.
    """
    validation.check_model("model", model)
    if model not in _kept:
        _kept[model] = Differentiation(model)
    return _kept[model]


def compilation_of(model):
    """An object that is another one after each `compile` of a model."""
    return _compilations.get(model)


_kept = weakref.WeakKeyDictionary()
# Something new for each time that a model is compiled.
_compilations = weakref.WeakKeyDictionary()


def _note_compiled(model):
    _compilations[model] = object()


keras_compat.after_compile(_note_compiled)


def _loss_scale(model):
    """What a step multiplies the loss by, so that no gradient underflows."""
    one = keras.ops.ones((), "float32")
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return one
    return keras.ops.cast(optimizer.scale_loss(one), "float32")


def _at_a_scale_that_fits(compute, scale, is_scaled):
    """What is computed of a scaled loss, at a smaller scale if it overflows.

    An optimizer leaves out a step whose gradients in half precision overflow,
    and takes a smaller scale then. So what it has now may be too large.

    Args:
        compute: Function of a scale that returns a list of tensors.
        scale: Scalar tensor, of the optimizer.
        is_scaled: Boolean, whether what is computed depends on it.

    Returns:
        What `compute` returns: finite unless it is not at a scale of 1 either.
    """
    results = compute(scale)
    factor = float(scale) if is_scaled else 1.0
    while factor > 1.0 and not _are_finite(results):
        factor = max(factor / _SCALE_DIVISOR, 1.0)
        results = compute(keras.ops.full_like(scale, factor))
    return results


def _are_finite(tensors):
    return all(
        bool(keras.ops.all(keras.ops.isfinite(each))) for each in tensors
    )


def _loss(reference, variables, others, x, y, weights, training=False):
    """The loss of a batch, where all variables have the values given.

    Args:
        reference: Function that returns the model.
        variables: List of `keras.Variable`s, the weights first.
        others: List of tensors, the values of all variables but the weights.
        x: Tensor, or nest of tensors.
        y: Tensor, or nest of tensors.
        weights: List of tensors, the values of the weights.
        training: Boolean, whether the model is in training mode.

    Returns:
        Scalar tensor.
    """
    model = reference()
    scope = keras.StatelessScope(
        state_mapping=list(zip(variables, [*weights, *others])),
        collect_losses=True,
    )
    with scope:
        outputs = model(x, training=training)
        is_without = keras_compat.compiled_loss(model) is None
        if is_without and not model.losses and _has_keras_loss(model):
            raise NoLossError(
                "`model` must be compiled with a loss: call "
                f"`model.compile(loss=...)`. Received: model '{model.name}', "
                "which has no loss"
            )
        loss = model.compute_loss(x, y, outputs, training=training)
    return _at_least_float32(loss)


def _data_loss(reference, variables, others, x, y, weights):
    """The loss of a batch without what layers add to it; see `_loss`."""
    model = reference()
    compiled = keras_compat.compiled_loss(model)
    if compiled is None or not _has_keras_loss(model):
        return _loss(reference, variables, others, x, y, weights)
    scope = keras.StatelessScope(
        state_mapping=list(zip(variables, [*weights, *others]))
    )
    with scope:
        return _at_least_float32(compiled(y, model(x, training=False)))


def _misfit(model, x, y, error):
    """The error to raise where something cannot be computed."""
    inputs, targets = (
        [np.shape(array) for array in keras.tree.flatten(each)]
        for each in (x, y)
    )
    return ValueError(
        f"The data must fit model '{model.name}', and it must be "
        f"differentiable on {keras.backend.backend()}. Received: inputs of "
        f"shapes {inputs}, targets of shapes {targets}: {error}"
    )


def _has_keras_loss(model):
    """Whether a model's loss is computed by Keras' own method."""
    return type(model).compute_loss is keras.Model.compute_loss


def _combined_output(reference, variables, others, x, y, weights):
    """The outputs for one example, combined to one; see `_loss`."""
    del y
    scope = keras.StatelessScope(
        state_mapping=list(zip(variables, [*weights, *others])),
        collect_losses=True,
    )
    with scope:
        outputs = keras.tree.flatten(reference()(x, training=False))
    outputs = keras.ops.concatenate(
        [keras.ops.reshape(_at_least_float32(each), (-1,)) for each in outputs]
    )
    direction = np.random.default_rng(0).normal(size=outputs.shape)
    direction /= np.linalg.norm(direction)
    return keras.ops.sum(outputs * keras.ops.cast(direction, outputs.dtype))


def _loss_program(function, weights, others, scale, x, y):
    del scale
    with backend.no_gradient():
        return [function(others, x, y, weights)]


def _gradients_program(function, weights, others, scale, x, y):
    function = functools.partial(function, others, x, y)
    if not weights:
        return [function(weights)]
    loss, gradients = backend.value_and_gradients(
        lambda weights: keras.ops.multiply(function(weights), scale), weights
    )
    gradients = _as_gradients(gradients, weights)
    return [keras.ops.divide(each, scale) for each in (loss, *gradients)]


def _gradient_norm_program(function, *arguments):
    _, *gradients = _gradients_program(function, *arguments)
    largest = keras.ops.max(
        keras.ops.stack([keras.ops.max(keras.ops.abs(g)) for g in gradients])
    )
    # Squares of what is first divided by it do not overflow.
    divisor = keras.ops.where(largest > 0, largest, 1.0)
    squares = [keras.ops.sum(keras.ops.square(g / divisor)) for g in gradients]
    return [largest * keras.ops.sqrt(sum(squares))]


def _flat_gradients_program(function, *arguments):
    _, *gradients = _gradients_program(function, *arguments)
    return [
        keras.ops.concatenate([keras.ops.reshape(g, (-1,)) for g in gradients])
    ]


def _curvature_program(function, weights, others, scale, x, y, vectors):
    del scale
    function = functools.partial(function, others, x, y)
    vectors = [keras.ops.cast(v, w.dtype) for v, w in zip(vectors, weights)]
    products = backend.hessian_vector_product(function, weights, vectors)
    return _as_gradients(products, weights)


# Of which scalar, and what of it.
_PROGRAMS = {
    "curvature": (_loss, _curvature_program),
    "data_loss": (_data_loss, _loss_program),
    "gradient_norm": (_loss, _gradient_norm_program),
    "gradients": (_loss, _gradients_program),
    "loss": (_loss, _loss_program),
    "output_gradients": (_combined_output, _flat_gradients_program),
    "training_gradients": (
        functools.partial(_loss, training=True),
        _gradients_program,
    ),
}


# Those whose loss is scaled before it is differentiated.
_SCALED = [
    "gradient_norm",
    "gradients",
    "output_gradients",
    "training_gradients",
]


def _as_gradients(gradients, weights):
    """Gradients in float32 at least, and zeros in the place of `None`."""
    return [
        _at_least_float32(keras.ops.zeros_like(w) if g is None else g)
        for g, w in zip(gradients, weights)
    ]


def _at_least_float32(tensor):
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return keras.ops.cast(tensor, keras.backend.result_type(dtype, "float32"))


def _as_array(tensor):
    return np.array(keras.ops.convert_to_numpy(tensor))
