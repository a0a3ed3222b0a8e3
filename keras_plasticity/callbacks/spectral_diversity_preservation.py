from collections.abc import Sequence
from typing import Any

from keras_plasticity import functional
from keras_plasticity import validation
from keras_plasticity.callbacks.boundary_callback import BoundaryCallback
from keras_plasticity.callbacks.kernels import check_layers
from keras_plasticity.callbacks.kernels import find_kernels


class SpectralDiversityPreservation(BoundaryCallback):
    """Evens out the singular values of kernels when a task begins.

    Each singular value `s` of a kernel moves towards their mean:

    `s <- mean(s)**gamma * s**(1 - gamma)`, with all `s` raised to at least
    1e-4 before.

    The singular vectors stay as they are. A kernel has one row for each of a
    unit's inputs, at all positions of a window, and one column for each unit.
    Those of dense layers, of `EinsumDense` and of convolutions are changed,
    but for the last of them: an output layer has few units, and they are no
    choice of the network's. (With `layers`, those that it names are changed.)
    It is called SDP for short.

    It works in `keras_plasticity.training.OnlineTrainer` and in `fit`: see
    `keras_plasticity.callbacks.BoundaryCallback`.

    Args:
        gamma: Float in [0, 1]. With 0 nothing changes but values below 1e-4,
            with 1 a kernel becomes a multiple of an isometry. Defaults to
            `0.3`.
        layers: List of names of layers, as in the first learner's model.
            Defaults to all but the output layer.
        skip: Integer, the number of tasks that begin before it first acts.
            Defaults to `1`.
        epochs: Integer, for `fit` only: it acts every so many epochs. Defaults
            to `None`: at the beginning of each `fit`.
        reset_optimizer: `"all"`, `"changed"` or `"none"` (default, as in the
            authors' code): what of the optimizer starts anew.

    Example:

    ```python
    callback = keras_plasticity.callbacks.SpectralDiversityPreservation()
    for task in range(3):
        model.fit(x, y, callbacks=[callback])
    ```

    References:

    - [The authors' code](https://github.com/gracebml/LoP-NeurIPS)
    """

    def __init__(
        self,
        gamma: float = 0.3,
        layers: Sequence[str] | None = None,
        skip: int = 1,
        epochs: int | None = None,
        reset_optimizer: str = "none",
    ):
        super().__init__(skip, epochs, reset_optimizer)
        self.gamma = validation.check_in_interval("gamma", gamma, "[0, 1]")
        self.layers = check_layers(layers)

    def on_boundary(self, model, learner, task, x, y):
        if self.layers is None:
            kernels = find_kernels(model)
            if len(kernels) == 1:
                raise ValueError(
                    "`SpectralDiversityPreservation` leaves out the output "
                    f"layer, and the model '{model.name}' has no other kernel "
                    f"than that of '{kernels[0].layer.name}'. Name it in "
                    "`layers` to change it. Received: layers=None"
                )
            kernels = kernels[:-1]
        else:
            kernels = find_kernels(
                model, self.layers_named(model, learner, self.layers)
            )
        for kernel in kernels:
            kernel.assign(
                functional.even_out_singular_values(kernel.joined(), self.gamma)
            )
        return [kernel.variable for kernel in kernels]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "gamma": self.gamma,
            "layers": self.layers,
        }
