"""The imaginary error function, in NumPy."""

import numpy as np


def erfi(x):
    """Its Taylor series in float64, of whose terms none cancels another."""
    x = np.asarray(x, "float64")
    power = np.array(x)
    total = np.array(x)
    for k in range(1, 400):
        power = power * x * x / k
        total = total + power / (2 * k + 1)
    return 2 / np.sqrt(np.pi) * total
