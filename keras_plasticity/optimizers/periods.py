"""When something happens that does not happen in every update."""

from keras_plasticity.types import Tensor


def follows_period(number: Tensor, period: Tensor) -> Tensor:
    """Whether an update is the first one after a whole number of periods.

    These are the updates `period + 1`, `2 * period + 1`, and so on: a rule of
    several authors, who count updates from 0 and leave out 0.

    Args:
        number: Int32 scalar tensor, the number of the update, from 1 on.
        period: Int32 scalar tensor, positive.

    Returns:
        Boolean scalar tensor.
    """
    # Not `number > 1`: beyond 2**31 - 1 it is negative.
    return ((number - 1) % period == 0) & (number != 1)


def ends_period(number: Tensor, period: Tensor) -> Tensor:
    """Whether an update is the last one of a period.

    Args:
        number: Int32 scalar tensor, the number of the update, from 1 on.
        period: Int32 scalar tensor, positive.

    Returns:
        Boolean scalar tensor.
    """
    return number % period == 0
