import weakref
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity import functional
from keras_plasticity import keras_compat
from keras_plasticity import validation
from keras_plasticity.callbacks.boundary_callback import BoundaryCallback
from keras_plasticity.callbacks.kernels import find_kernels
from keras_plasticity.training import nests
from keras_plasticity.weights import weights_of


class DASH(BoundaryCallback):
    """Shrinks weights that point away from what the new task asks for.

    DASH is short for direction-aware shrinking. When a task begins, the
    direction `G` in which its loss falls is averaged over its batches, from
    `G = 0` on, by `G <- (1 - alpha) * G - alpha * gradient`. Then the incoming
    weights `w` of each unit are multiplied by how well they agree with it:

    `w <- w * clip(cos(w, G), min_factor, 1)`.

    In a convolution there is such a factor for each pair of an input channel
    and a unit, in a bias one for the whole vector. The output layer is among
    them. Normalizations, embeddings, recurrent and depthwise kernels stay as
    they are.

    The gradients are those of the compiled loss, with regularization, in
    training mode. Nothing but the weights is changed by computing them: no
    statistics of a `BatchNormalization`, and no state of a generator, so that
    all batches see the same dropout.

    It works in `keras_plasticity.training.OnlineTrainer`, which knows the new
    task's data, and in `fit`, which has to be given them: see
    `keras_plasticity.callbacks.BoundaryCallback`.

    Args:
        data: For `fit` only: the examples of the new task, a tuple `(x, y)` of
            arrays; or a function that takes the number of occasions before
            this one and returns such a tuple. Defaults to `None`.
        alpha: Float in (0, 1], the weight of each batch. Defaults to `0.3`.
        min_factor: Float in [0, 1], the least factor. Defaults to `0.3`.
        batch_size: Integer, the examples of a batch. Defaults to `256`.
        skip: Integer, the number of tasks that begin before it first acts.
            Defaults to `1`.
        epochs: Integer, for `fit` only: it acts every so many epochs. Defaults
            to `None`: at the beginning of each `fit`.
        reset_optimizer: `"all"` (default, as in the authors' code),
            `"changed"` or `"none"`: what of the optimizer starts anew.

    Example:

    ```python
    dash = keras_plasticity.callbacks.DASH(lambda task: (x, y))
    for task in range(3):
        model.fit(x, y, callbacks=[dash])
    ```

    References:

    - [Shin et al., 2024](https://arxiv.org/abs/2410.23495)
    """

    def __init__(
        self,
        data: tuple | Callable[[int], tuple] | None = None,
        alpha: float = 0.3,
        min_factor: float = 0.3,
        batch_size: int = 256,
        skip: int = 1,
        epochs: int | None = None,
        reset_optimizer: str = "all",
    ):
        super().__init__(skip, epochs, reset_optimizer)
        self.data = _check_data(data)
        self.alpha = validation.check_in_interval("alpha", alpha, "(0, 1]")
        self.min_factor = validation.check_in_interval(
            "min_factor", min_factor, "[0, 1]"
        )
        self.batch_size = validation.check_positive_integer(
            "batch_size", batch_size
        )

    def on_boundary(self, model, learner, task, x, y):
        if y is None:
            x, y = self._data_of(task)
        kernels = find_kernels(model)
        trainable = {id(variable) for variable in weights_of(model)}
        biases = {
            id(kernel.layer.bias): kernel.layer.bias
            for kernel in kernels
            if id(kernel.layer.bias) in trainable
        }
        biases = list(biases.values())
        variables = [kernel.variable for kernel in kernels] + biases
        directions = self._directions(model, variables, x, y)
        for kernel, direction in zip(kernels, directions):
            kernel.assign(
                functional.shrink_towards_direction(
                    kernel.matrices(),
                    kernel.matrices(direction),
                    self.min_factor,
                    axis=0 if kernel.is_convolution else 1,
                )
            )
        for bias, direction in zip(biases, directions[len(kernels) :]):
            shrunk = functional.shrink_towards_direction(
                ops.reshape(bias.value, (-1,)),
                ops.reshape(direction, (-1,)),
                self.min_factor,
            )
            bias.assign(ops.reshape(shrunk, bias.shape))
        return variables

    def _data_of(self, task):
        if self.data is None:
            raise ValueError(
                "`data` must be given in `fit`, which does not tell a callback "
                "its data: a tuple (x, y), or a function that returns one. "
                "Received: data=None"
            )
        data = self.data(task) if callable(self.data) else self.data
        return _check_data(data)

    def _directions(self, model, variables, x, y):
        """The average direction in which the loss falls, for each variable."""
        directions = [ops.zeros(v.shape, v.dtype) for v in variables]
        num_examples = len(keras.tree.flatten(x)[0])
        for start in range(0, num_examples, self.batch_size):
            part = slice(start, start + self.batch_size)
            x_part, y_part = nests.take((x, y), part)
            if not start:
                keras_compat.build_loss(model, x_part, y_part)
                advance = _advance_of(model, variables, self.alpha)
            directions = advance(directions, x_part, y_part)
        return directions

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "min_factor": self.min_factor,
            "batch_size": self.batch_size,
        }


def _check_data(data):
    if data is None or callable(data):
        return data
    rule = (
        "`None`, a tuple (x, y) of arrays, or a function that returns such a "
        "tuple"
    )
    if not isinstance(data, tuple) or len(data) != 2:
        raise validation.error("data", rule, data)
    arrays = keras.tree.map_structure(
        lambda array: validation.check_array("data", array, rule), data
    )
    flat = keras.tree.flatten(arrays)
    if not flat or any(not each.ndim for each in flat):
        raise validation.error("data", rule, data)
    if len({len(each) for each in flat}) > 1 or not len(flat[0]):
        raise validation.error(
            "data", f"{rule}, with one entry for each example", data
        )
    return arrays


class _Advance:
    """Takes a batch into the directions, compiled.

    It is compiled once for each shape of a batch, and does not keep the model.

    Args:
        model: `keras.Model`.
        variables: List of variables, by which the loss is differentiated.
        others: List of all other variables that it depends on.
        loss: What Keras has made of the compiled loss.
        alpha: Float, see `DASH`.
    """

    def __init__(self, model, variables, others, loss, alpha):
        self._model = weakref.ref(model)
        self._alpha = alpha
        self._variables = variables
        self._others = others
        self._loss = loss
        self._compute = backend.compiled(self._directions)

    def is_for(self, variables, others, loss, alpha):
        """Whether it computes what it would if it were made now."""
        same = [*map(id, variables)] == [*map(id, self._variables)]
        same = same and [*map(id, others)] == [*map(id, self._others)]
        return same and loss is self._loss and alpha == self._alpha

    def __call__(self, directions, x, y):
        values, others = (
            [ops.convert_to_tensor(variable) for variable in each]
            for each in (self._variables, self._others)
        )
        return self._compute(values, others, directions, x, y)

    def _directions(self, values, others, directions, x, y):
        model = self._model()

        def compute_loss(values):
            scope = keras.StatelessScope(
                state_mapping=[
                    *zip(self._variables, values, strict=True),
                    *zip(self._others, others, strict=True),
                ],
                collect_losses=True,
            )
            with scope:
                outputs = model(x, training=True)
                return model.compute_loss(x, y, outputs, training=True)

        _, gradients = backend.value_and_gradients(compute_loss, values)
        return [
            (1.0 - self._alpha) * direction
            - (0.0 if gradient is None else self._alpha * gradient)
            for direction, gradient in zip(directions, gradients, strict=True)
        ]


_kept = weakref.WeakKeyDictionary()


def _advance_of(model, variables, alpha):
    """The `_Advance` of a model: the last one, if nothing has changed."""
    loss = keras_compat.compiled_loss(model)
    known = {*map(id, variables)}
    others = [*model.variables, *(loss.variables if loss else [])]
    others = list({id(v): v for v in others if id(v) not in known}.values())
    kept = _kept.get(model)
    made_of = variables, others, loss, alpha
    if kept is None or not kept.is_for(*made_of):
        kept = _kept[model] = _Advance(model, *made_of)
    return kept
