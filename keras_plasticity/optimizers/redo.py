from typing import Any

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity import functional
from keras_plasticity.optimizers.dormant_unit_resets import DormantUnitResets
from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.settings import Setting
from keras_plasticity.validation import check_boolean
from keras_plasticity.validation import check_choice
from keras_plasticity.validation import check_integer
from keras_plasticity.validation import check_positive_integer


def _check_outgoing(name, value):
    return check_choice(name, value, ("zero", "random"))


def _check_new_weights(name, value):
    return check_choice(name, value, ("drawn", "initial"))


def _check_shared_weights(name, value):
    return check_choice(name, value, ("outgoing", "incoming"))


class _Period(Hyperparameter):
    def validate(self, optimizer, value):
        check_positive_integer(self.name, value)
        if optimizer.built:
            check_integer(self.name, value, optimizer.score_updates)
        return value


class _ScoreUpdates(Hyperparameter):
    def validate(self, optimizer, value):
        return check_integer(self.name, value, 1, optimizer.period)


@keras.saving.register_keras_serializable(package="keras_plasticity")
class ReDo(DormantUnitResets):
    """Optimizer wrapper that recycles dormant units.

    The score of a hidden unit is its mean absolute activation, relative to the
    mean of its layer:

    `score[i] = mean(|h[i]|) / (mean over units of mean(|h|) + 1e-9)`,

    over the examples and, in a convolution, over all positions. Units whose
    score is at most `threshold` are dormant. After every `period` updates all
    dormant units of all layers are replaced: their incoming weights and biases
    are drawn from the layer's initializers, their outgoing weights are zero.
    Where both ends of a weight are replaced it is zero. With
    `outgoing="random"` outgoing weights are drawn, after all incoming ones.

    Other public code that goes by the name of ReDo differs in

    - a weight of which both ends are replaced: with
        `shared_weights="incoming"` it is what it is for the unit that it enters
        ([timoklein](https://github.com/timoklein/redo),
        [LucMc](https://github.com/LucMc/continual-learning) and Kumar et al.);
    - what new units have: with `new_weights="initial"` the incoming weights and
        biases that they had when the optimizer was built, instead of others
        (Kumar et al., whose checks come one update earlier, and who leave the
        slots as they are: `reset_optimizer_state=False`);
    - the slots of biases: with `reset_bias_slots=True` they begin anew, too
        (timoklein, whose biases are drawn as well: by the `bias_initializer`
        of a layer; its counts of steps for single variables, which begin anew
        there, Keras' optimizers do not have).

    Checks follow update `period + 1`, `2 * period + 1`, and so on, as in the
    authors' code. The entries of the replaced units in the slots of the inner
    optimizer (momentum, velocity, ...) return to their initial values for
    kernels; the slots of biases, and counts of steps, stay as they are.

    The authors take scores from a separate batch of 256 examples, after the
    update. Here they come from the batches that the network was trained on, as
    the consumers of the units received them: from the batch of the checked
    update, or from those of the last `score_updates` updates. A score needs
    some hundred examples, or units that merely had nothing to do are taken for
    dormant: with batches of less, raise `score_updates`. `recycle` makes a
    check on examples of a separate batch, exactly as the authors do. They draw
    new weights from Xavier's uniform distribution, whatever the network began
    with, and set biases to zero.

    `layer.utility` holds the scores of the last check.

    Args:
        inner_optimizer: The `keras.optimizers.Optimizer` to wrap, not yet
            built.
        threshold: Float, not negative, the largest score of a dormant unit.
            Defaults to `0.025`.
        period: Positive integer, the number of updates between two checks.
            Defaults to `1000`.
        score_updates: Integer in [1, `period`], the number of updates before
            a check over which scores are averaged. Defaults to `1`.
        seed: Integer, of the new weights. Drawn at random by default.
        name: String, the optimizer's name.
        outgoing: `"zero"` or `"random"`, what becomes of the outgoing weights
            of a replaced unit. Defaults to `"zero"`.
        new_weights: `"drawn"` or `"initial"`, the incoming weights, the bias,
            and the parameters of normalization on its way, of a replaced unit.
            Defaults to `"drawn"`.
        shared_weights: `"outgoing"` or `"incoming"`, which of the two a weight
            counts as whose both ends are replaced at once. Defaults to
            `"outgoing"`.
        reset_bias_slots: Boolean, whether the slots of biases begin anew as
            those of kernels do. Of no use with `reset_optimizer_state=False`.
            Defaults to `False`.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    ```python
    optimizer = keras_plasticity.optimizers.ReDo(
        keras.optimizers.Adam(1e-3), threshold=0.1, period=100
    )
    model.compile(optimizer=optimizer, loss="mse")
    model.fit(x, y, batch_size=256)
    optimizer.num_replaced()  # {"dense": 4, "dense_1": 0}
    ```

    References:

    - [Sokar et al., 2023](https://arxiv.org/abs/2302.12902)
    - [Kumar et al., 2023](https://arxiv.org/abs/2308.11958), who compare it
    """

    observed = ("activation_magnitude",)
    period = _Period(dtype="int32")
    score_updates = _ScoreUpdates(dtype="int32")
    outgoing = Setting(_check_outgoing)
    new_weights = Setting(_check_new_weights)
    shared_weights = Setting(_check_shared_weights)
    reset_bias_slots = Setting(check_boolean)

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer,
        threshold: float = 0.025,
        period: int = 1000,
        score_updates: int = 1,
        seed: int | None = None,
        name: str | None = None,
        outgoing: str = "zero",
        new_weights: str = "drawn",
        shared_weights: str = "outgoing",
        reset_bias_slots: bool = False,
        **kwargs: Any,
    ):
        super().__init__(inner_optimizer, seed=seed, name=name, **kwargs)
        self.threshold = threshold
        self.period = period
        self.score_updates = score_updates
        self.outgoing = outgoing
        self.new_weights = new_weights
        self.shared_weights = shared_weights
        self.reset_bias_slots = reset_bias_slots

    @property
    def draws_outgoing(self):
        return self.outgoing == "random"

    @property
    def replaces_last_layer_first(self):
        # All incoming weights are drawn before any outgoing ones become zero.
        return self.shared_weights == "outgoing"

    @property
    def slots_to_reset(self):
        of_bias = ("bias",) if self.reset_bias_slots else ()
        return ("incoming", "outgoing", *of_bias)

    def add_state(self, units):
        if self.new_weights == "initial":
            units.keep_initial_weights()
        units.magnitude = units.add_variable("magnitude")

    def update_statistics(self, units):
        number = units.num_updates.value
        period = self.now("period")
        # From 1 to `period`, at which the check is: see `is_check`.
        position = (number - 2) % period + 1
        in_mean = ops.maximum(position - period + self.now("score_updates"), 1)
        magnitude = functional.running_mean(
            units.magnitude.value,
            units.activation_magnitude(),
            1.0 / ops.cast(in_mean, "float32"),
        )
        units.magnitude.assign(magnitude)
        score = functional.dormancy_score(magnitude)
        self.mark_dormant(units, score, self.is_check(units))

    def recycle(self, model: keras.Model, x: Any):
        """Replaces the units that are dormant on a batch of examples.

        Args:
            model: The `keras.Model` that the optimizer was built on.
            x: Inputs of the model. They are not trained on.

        Raises:
            ValueError: If the optimizer is not built yet.
        """
        with backend.no_gradient():
            hidden = self.observe(model, x)
            for units in hidden:
                magnitude = units.activation_magnitude()
                score = functional.dormancy_score(magnitude)
                self.mark_dormant(units, score)
            self.replace_due(hidden)

    def get_config(self) -> dict[str, Any]:
        names = ["threshold", "period", "score_updates", "outgoing"]
        names += ["new_weights", "shared_weights", "reset_bias_slots"]
        return {**super().get_config(), **self.settings(*names)}
