"""How much of a unit is reset, by what it is useful for."""

import math
from collections.abc import Callable

from keras import ops

from keras_plasticity import validation
from keras_plasticity.types import Tensor


def _sigmoid(distance: Tensor) -> Tensor:
    return 2.0 * ops.sigmoid(-distance)


def _exponential(distance: Tensor) -> Tensor:
    return ops.exp(-distance)


def _softplus(distance: Tensor) -> Tensor:
    return ops.softplus(-distance) / math.log(2.0)


def _linear(distance: Tensor) -> Tensor:
    return ops.maximum(1.0 - distance, 0.0)


# Each is 1 at a distance of 0 and falls beyond it.
_TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "exponential": _exponential,
    "linear": _linear,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
}
TRANSFORMS = tuple(_TRANSFORMS)


def reset_share(
    utility: Tensor,
    sharpness: float = 16.0,
    threshold: float = 1.0,
    transform: str = "sigmoid",
) -> Tensor:
    """How much of a unit a calibrated partial reset renews at most.

    It is 1 for units of a utility up to `threshold`, and falls with the
    distance `d = sharpness * (utility - threshold)` of all others:

    - `"sigmoid"`: `2 * sigmoid(-d)`;
    - `"exponential"`: `exp(-d)`;
    - `"softplus"`: `softplus(-d) / log(2)`;
    - `"linear"`: `1 - d`, at least 0.

    Args:
        utility: Float tensor of any shape.
        sharpness: Float, not negative. Defaults to `16`.
        threshold: Float. Defaults to `1`.
        transform: String, see above. Defaults to `"sigmoid"`.

    Returns:
        Tensor of the shape of `utility`, in [0, 1].

    Example:

    >>> ops.convert_to_numpy(keras_plasticity.functional.reset_share(
    ...     ops.convert_to_tensor([0.5, 1.0, 1.25]), sharpness=2.0,
    ...     transform="linear"))
    array([1. , 1. , 0.5], dtype=float32)
    """
    validation.check_choice("transform", transform, TRANSFORMS)
    utility, sharpness, threshold = validation.check_tensors(
        utility=utility, sharpness=sharpness, threshold=threshold
    )
    distance = sharpness * (utility - threshold)
    return ops.minimum(_TRANSFORMS[transform](distance), 1.0)
