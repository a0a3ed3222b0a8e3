"""Streams of tasks: NumPy arrays, deterministic by seed, addressed by index.

A stream is any object with a length, its number of tasks, and a method
`task(index)` that returns a tuple `(x, y)` of NumPy arrays with one entry for
each example, of the same shapes for every task.
"""

from keras_plasticity.streams.mnist import load_mnist as load_mnist
from keras_plasticity.streams.online_permuted_images import (
    OnlinePermutedImages as OnlinePermutedImages,
)
from keras_plasticity.streams.slowly_changing_regression import (
    SlowlyChangingRegression as SlowlyChangingRegression,
)

__all__ = ["OnlinePermutedImages", "SlowlyChangingRegression", "load_mnist"]
