import contextlib

import keras

from keras_plasticity import keras_compat
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
        self._is_open = False

    def set_model(self, model: keras.Model):
        self._end_interrupted()  # Before any callback acts on the model.
        super().set_model(model)

    def on_train_begin(self, logs: dict | None = None):
        self._end_interrupted()

    def on_test_begin(self, logs: dict | None = None):
        self._end_interrupted()
        for optimizer in wrapped(self.model.optimizer):
            if isinstance(optimizer, HareAndTortoise):
                self._context.enter_context(optimizer.tortoise())
                self._is_open = True
                return
        raise ValueError(
            "`EvaluateTortoise` needs a model that is compiled with a "
            "`keras_plasticity.optimizers.HareAndTortoise`. "
            f"Received: optimizer={self.model.optimizer}"
        )

    def on_test_end(self, logs: dict | None = None):
        self._context.close()
        self._is_open = False

    def _end_interrupted(self):
        """Brings the hare back where an evaluation has not come to its end."""
        if self._is_open:
            keras_compat.end_evaluation(self.model)
            self.on_test_end()
