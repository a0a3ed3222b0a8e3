from collections.abc import Callable
from typing import Any

from keras import ops

from keras_plasticity import functional
from keras_plasticity import validation
from keras_plasticity.callbacks.boundary_callback import BoundaryCallback
from keras_plasticity.callbacks.kernels import find_kernels
from keras_plasticity.diagnosis.differentiation import differentiation_of
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
            arrays, of which `y` may be `None`; or a function that takes the
            number of occasions before this one and returns such a tuple.
            Defaults to `None`.
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
        if x is None:
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
        directions = [0.0] * len(variables)
        differentiation = differentiation_of(model)
        num_examples = len(nests.arrays(x)[0])
        for start in range(0, num_examples, self.batch_size):
            batch = nests.take((x, y), slice(start, start + self.batch_size))
            gradients = differentiation.training_gradients(*batch, variables)
            directions = [
                (1.0 - self.alpha) * direction - self.alpha * gradient
                for direction, gradient in zip(
                    directions, gradients, strict=True
                )
            ]
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
    arrays = nests.map_arrays(
        lambda array: validation.check_array("data", array, rule), data
    )
    flat = nests.arrays(arrays)
    if not nests.arrays(arrays[0]) or any(not each.ndim for each in flat):
        raise validation.error("data", rule, data)
    if len({len(each) for each in flat}) > 1 or not len(flat[0]):
        raise validation.error(
            "data", f"{rule}, with one entry for each example", data
        )
    return arrays
