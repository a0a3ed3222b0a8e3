from collections.abc import Sequence
from typing import Any

import keras

from keras_plasticity.functional.penalties import DISTANCES
from keras_plasticity.functional.penalties import distance_gradient
from keras_plasticity.optimizers.layer_weights import is_bias
from keras_plasticity.optimizers.layer_weights import is_embedding
from keras_plasticity.optimizers.layer_weights import kernel_of
from keras_plasticity.optimizers.new_weights import PartInitializer
from keras_plasticity.optimizers.new_weights import check_optional_initializer
from keras_plasticity.optimizers.new_weights import independent_initializer
from keras_plasticity.optimizers.penalty_optimizer import PenaltyOptimizer
from keras_plasticity.optimizers.settings import Schedule
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.validation import check_boolean
from keras_plasticity.validation import check_choice
from keras_plasticity.validation import check_seed


def _check_distance(name, value):
    return check_choice(name, value, DISTANCES)


@keras.saving.register_keras_serializable(package="keras_plasticity")
class L2Init(PenaltyOptimizer):
    """Optimizer wrapper that pulls weights towards their initial values.

    It is L2 Init, or regenerative regularization. The loss has the penalty

    `strength * 1/2 * sum((w - w0)**2)`,

    where `w0` are the values that the weights have when the optimizer is built
    on the model. Other distances are `strength * sum(|w - w0|)`, L1 Init, and
    `strength * sum(huber(w - w0))` with
    `huber(d) = 1/2 * d**2 if |d| <= 1 else |d| - 1/2`.

    The gradient of the penalty is added to that of the loss, and goes through
    the inner optimizer with it: Adam rescales both alike.

    It acts on kernels, biases and embeddings, those of the output layer
    included. As in the authors' code, normalization layers are left out, and
    so is any layer of weights without a kernel.

    Where a method that wraps this one replaces a unit, the initial values of
    the unit are its new weights from then on.

    With `target_initializer`, `w0` is drawn anew in each step, as if a new
    network were initialized. (The paper finds that worse.) Biases have a `w0`
    of 0 then, or with `draw_biases` one from the distribution of the layer's
    kernel. So it is in the authors' code, in which PyTorch initializes: for
    that, take `keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")`.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap.
        strength: Float, not negative, or a schedule of Keras. Defaults to
            `0.01`.
        distance: `"l2"`, `"l1"` or `"huber"`. Defaults to `"l2"`.
        exclude: Strings. Weights are left alone whose path, such as
            `"sequential/output/kernel"`, has one of them in it. Defaults to
            `()`.
        name: String, the optimizer's name.
        target_initializer: Keras initializer or its name, which draws what
            weights are pulled towards. Its own seed is not used. Defaults to
            `None`: the initial values.
        draw_biases: Boolean, whether `target_initializer` draws for biases,
            too. Defaults to `False`.
        seed: Integer, of what is drawn. Drawn at random by default.

    Example:

    ```python
    optimizer = keras_plasticity.optimizers.L2Init(
        keras.optimizers.Adam(1e-3), strength=1e-3
    )
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(x, y)
    ```

    References:

    - [Kumar et al., 2023](https://arxiv.org/abs/2308.11958)
    """

    distance = Setting(_check_distance)
    target_initializer = Setting(check_optional_initializer)
    draw_biases = Setting(check_boolean)
    seed = Setting(check_seed)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        strength: float | Schedule = 0.01,
        distance: str = "l2",
        exclude: Sequence[str] = (),
        name: str | None = None,
        target_initializer: str | keras.initializers.Initializer | None = None,
        draw_biases: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, strength, exclude, name, **kwargs)
        self.distance = distance
        self.target_initializer = target_initializer
        self.draw_biases = draw_biases
        self.seed = seed
        self._check_biases()
        if self.target_initializer is not None:
            self._seed_generator = self.add_seed_generator(seed)
        # By the id of a weight.
        self._initial = {}
        self._draws = {}
        self._kernel_shapes = {}

    def _check_biases(self):
        initializer = self.target_initializer
        if self.draw_biases and (
            initializer is None
            or independent_initializer(initializer, (1, 1)) is None
        ):
            raise ValueError(
                "`draw_biases=True` needs a `target_initializer` that draws "
                "independent numbers, such as 'glorot_uniform'. Received: "
                f"target_initializer={initializer}"
            )

    def choose(self, weights):
        chosen = [
            weight
            for weight in weights
            if is_embedding(weight) or kernel_of(weight, weights) is not None
        ]
        # Here, as `exclude` may leave a bias without its kernel.
        self._kernel_shapes = {
            id(weight): tuple(kernel_of(weight, weights).shape)
            for weight in filter(is_bias, chosen)
        }
        return chosen

    def add_state(self, weights):
        for weight in weights:
            if self.target_initializer is None:
                self._initial[id(weight)] = self.add_copy(weight, "initial")
            else:
                self._draws[id(weight)] = self._draw_of(weight)

    def _draw_of(self, weight):
        """What draws the targets of a weight; `None` for targets of 0."""
        shape, seed = tuple(weight.shape), self._seed_generator
        if is_bias(weight):
            if not self.draw_biases:
                return None
            initializer = independent_initializer(
                self.target_initializer, self._kernel_shapes[id(weight)], seed
            )
            return lambda dtype: initializer(shape, dtype=dtype)
        initializer = PartInitializer(self.target_initializer, shape, seed)
        return initializer.draw_whole

    def _target(self, weight):
        if self.target_initializer is None:
            return self._initial[id(weight)].value
        draw = self._draws[id(weight)]
        return 0.0 if draw is None else draw(weight.dtype)

    def penalty_gradient(self, weight):
        difference = weight.value - self._target(weight)
        return distance_gradient(difference, self.distance)

    def get_config(self) -> dict[str, Any]:
        names = ("distance", "target_initializer", "draw_biases", "seed")
        return {**super().get_config(), **self.settings(*names)}
