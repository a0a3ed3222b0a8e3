import math
from collections.abc import Sequence
from typing import Any

from keras_plasticity import functional
from keras_plasticity import validation
from keras_plasticity.callbacks.boundary_callback import BoundaryCallback
from keras_plasticity.callbacks.kernels import check_layers
from keras_plasticity.callbacks.kernels import find_kernels


class FIRE(BoundaryCallback):
    """Makes all kernels nearly isometric when a task begins.

    It leaves each kernel `W` as close to what it was as an isometry can be:
    its singular vectors stay, its singular values all become nearly 1. With
    `X = W / ||W||`, in the Frobenius norm,

    `X <- 1.5 X - 0.5 X X^T X`, `iterations` times, and
    `W <- X * sqrt(units / inputs) / positions`.

    A convolution has such a matrix for each of the `positions` of its window;
    a dense layer has one. Kernels of `EinsumDense`, of which attention is
    made, are matrices from all that is summed over to all units. The output
    layer is among them; biases, normalizations, embeddings, recurrent and
    depthwise kernels stay as they are.

    A small singular value grows by half in an iteration: after 10 of them, one
    that was below 1 % of the norm is still far from 1. That is so in the
    authors' code, too. There a kernel of zeros becomes NaN; here it stays.

    It works in `keras_plasticity.training.OnlineTrainer` and in `fit`: see
    `keras_plasticity.callbacks.BoundaryCallback`.

    Args:
        iterations: Integer, at least 1. Defaults to `10`.
        layers: List of names of layers, as in the first learner's model.
            Defaults to all of them.
        skip: Integer, the number of tasks that begin before it first acts.
            Defaults to `1`.
        epochs: Integer, for `fit` only: it acts every so many epochs. Defaults
            to `None`: at the beginning of each `fit`.
        reset_optimizer: `"all"` (default, as in the authors' code),
            `"changed"` or `"none"`: what of the optimizer starts anew.

    Example:

    ```python
    fire = keras_plasticity.callbacks.FIRE()
    for task in range(3):
        model.fit(x, y, callbacks=[fire])
    ```

    References:

    - [Han et al., 2026](https://arxiv.org/abs/2602.08040)
    """

    def __init__(
        self,
        iterations: int = 10,
        layers: Sequence[str] | None = None,
        skip: int = 1,
        epochs: int | None = None,
        reset_optimizer: str = "all",
    ):
        super().__init__(skip, epochs, reset_optimizer)
        self.iterations = validation.check_positive_integer(
            "iterations", iterations
        )
        self.layers = check_layers(layers)

    def on_boundary(self, model, learner, task, x, y):
        layers = None
        if self.layers is not None:
            layers = self.layers_named(model, learner, self.layers)
        kernels = find_kernels(model, layers)
        for kernel in kernels:
            matrices = kernel.matrices()
            positions, inputs, units = matrices.shape
            scale = math.sqrt(units / inputs)
            if kernel.is_convolution:
                scale /= positions
            kernel.assign(
                scale * functional.orthogonalize(matrices, self.iterations)
            )
        return [kernel.variable for kernel in kernels]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "iterations": self.iterations,
            "layers": self.layers,
        }
