"""Seeds of all that draws random numbers."""

import hashlib
from typing import Any

from keras_plasticity import validation

# A PyTorch seed of Keras is an int32.
_NUM_SEEDS = 2**31
_LARGEST_SEED = 2**64


def derived_seed(seed: int | None, *use: Any) -> int | None:
    """The seed of one use of a user's seed.

    Keras and NumPy draw the same numbers wherever they are given the same
    seed. On PyTorch, what a `keras.random.SeedGenerator` draws with seed
    `s + 1` is even what one with seed `s` draws, from its second draw on.
    Derived seeds are as good as random: numbers that are drawn for different
    uses, or from seeds in a row, have nothing in common.

    Args:
        seed: Integer, as the user gave it, or `None`.
        *use: What the seed is for: strings or integers.

    Returns:
        Integer in `[0, 2**31)`, the same on all machines and backends. `None`,
        which stands for a random seed, if `seed` is `None`.

    Raises:
        ValueError: If `seed` is neither an integer nor `None`.

    Example:

    >>> keras_plasticity.derived_seed(0, "initial weights")
    429504107
    >>> keras_plasticity.derived_seed(1, "initial weights")
    1064275866
    >>> keras_plasticity.derived_seed(0, "dropout", 2)
    1649792662
    """
    if seed is None:
        return None
    if not validation.is_integer(seed) or abs(int(seed)) > _LARGEST_SEED:
        raise validation.error(
            "seed", "an integer of at most 64 bits, or `None`", seed
        )
    text = repr([int(seed), *map(str, use)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "little") % _NUM_SEEDS
