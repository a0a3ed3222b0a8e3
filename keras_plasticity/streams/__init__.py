"""Streams of tasks: NumPy arrays, deterministic by seed, addressed by index.

A stream is any object with a length, its number of tasks, and a method
`task(index)` that returns a tuple `(x, y)` of NumPy arrays with one entry for
each example, of the same shapes for every task. It may also have

- `test(index)`, which returns such a tuple of test examples, and
- `order(index, epoch)`, which returns the order in which an epoch goes through
    the examples of `task(index)`: a permutation of their indices.

What these return must depend on their arguments only, not on what was asked
before: `OnlineTrainer` calls `task` and `test` from a second thread, while the
task before is trained on, and a run that goes on from a checkpoint starts in
the middle of the stream.
"""

from keras_plasticity.streams.binary_class_pairs import (
    BinaryClassPairs as BinaryClassPairs,
)
from keras_plasticity.streams.online_permuted_images import (
    OnlinePermutedImages as OnlinePermutedImages,
)
from keras_plasticity.streams.slowly_changing_regression import (
    SlowlyChangingRegression as SlowlyChangingRegression,
)

__all__ = [
    "BinaryClassPairs",
    "OnlinePermutedImages",
    "SlowlyChangingRegression",
]
