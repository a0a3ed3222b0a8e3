import contextlib

import keras

from keras_plasticity.optimizers import HareAndTortoise
from keras_plasticity.optimizers.inner_optimizers import wrapped


class EvaluateTortoise(keras.callbacks.Callback):
    """Has `fit` and `evaluate` evaluate the tortoise instead of the hare.

    While a model that `keras_plasticity.optimizers.HareAndTortoise` trains is
    evaluated, it has the tortoise's weights: the running means. Training goes
    on with the weights that it had before. The loss and the metrics of the
    training data, which `fit` computes on the way, are the hare's.

    Example:

    ```python
    model.compile(
        keras_plasticity.optimizers.HareAndTortoise(keras.optimizers.Adam()),
        loss="mse",
    )
    model.fit(
        x,
        y,
        validation_split=0.5,
        callbacks=[keras_plasticity.callbacks.EvaluateTortoise()],
    )
    ```

    References:

    - [Lee et al., 2024](https://arxiv.org/abs/2406.02596)
    """

    def __init__(self):
        super().__init__()
        self._context = contextlib.ExitStack()

    def on_test_begin(self, logs: dict | None = None):
        for optimizer in wrapped(self.model.optimizer):
            if isinstance(optimizer, HareAndTortoise):
                self._context.enter_context(optimizer.tortoise())
                return
        raise ValueError(
            "`EvaluateTortoise` needs a model that is compiled with a "
            "`keras_plasticity.optimizers.HareAndTortoise`. "
            f"Received: optimizer={self.model.optimizer}"
        )

    def on_test_end(self, logs: dict | None = None):
        self._context.close()
