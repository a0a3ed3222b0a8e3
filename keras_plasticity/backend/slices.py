"""Which matrices XLA's CPU compiler sums faster in slices.

It turns a reduction into a slow loop, as it must not change the order in which
numbers are added: one number at a time, or with strides through memory. So some
twenty slices of a matrix are added first, in one loop over whole vectors, and
the much smaller result is summed by a product with ones. The ones depend on the
matrix, to hide from XLA that they are ones: it would turn the product into a
reduction again.
"""

import numpy as np

# Matrices with a number of entries in between are faster to sum in slices:
# smaller ones gain nothing, larger ones do not fit in the cache.
_FEWEST_TO_SLICE = 1000
_MOST_TO_SLICE = 1_500_000
# Bit pattern of a NaN whose payload no computation produces. The compiler does
# not know, so what is one unless an entry has it, it cannot tell to be one.
NEVER = np.int32(0x7FC5A3E1)


def is_sliced(shape):
    """Whether a matrix of this shape is faster to sum in slices."""
    return _FEWEST_TO_SLICE <= shape[0] * shape[1] <= _MOST_TO_SLICE


def number_of_slices(size):
    """The number of slices, 16 to 32 if possible, with the least remainder."""
    most = min(size, 32)
    return min(range(min(size, 16), most + 1), key=lambda n: (size % n, -n))
