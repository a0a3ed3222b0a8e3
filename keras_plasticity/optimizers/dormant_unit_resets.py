"""What methods have in common that replace units of a low score."""

from keras import ops

from keras_plasticity.optimizers.periods import follows_period
from keras_plasticity.optimizers.settings import Hyperparameter
from keras_plasticity.optimizers.unit_reset_optimizer import UnitResetOptimizer
from keras_plasticity.validation import check_not_negative


class DormantUnitResets(UnitResetOptimizer):
    """Base class of methods that check now and then which units are dormant.

    A subclass has a setting `period`.
    """

    threshold = Hyperparameter(check_not_negative)

    def is_check(self, units):
        """Whether this update is followed by a check, a boolean tensor.

        Args:
            units: `HiddenUnits`.
        """
        return follows_period(units.num_updates.value, self.now("period"))

    def mark_dormant(self, units, score, is_check=True):
        """Marks the units of a layer that are dormant.

        Args:
            units: `HiddenUnits`.
            score: Tensor of shape `(size,)`.
            is_check: Boolean, or boolean tensor, whether there is a check.
        """
        units.utility.assign(ops.where(is_check, score, units.utility.value))
        self.mark(units, is_check & (score <= self.now("threshold")))
