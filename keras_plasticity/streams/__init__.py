"""Streams of tasks: NumPy arrays, deterministic by seed, addressed by index."""

from keras_plasticity.streams.binary_class_pairs import (
    BinaryClassPairs as BinaryClassPairs,
)
from keras_plasticity.streams.label_permuted_images import (
    LabelPermutedImages as LabelPermutedImages,
)
from keras_plasticity.streams.online_permuted_images import (
    OnlinePermutedImages as OnlinePermutedImages,
)
from keras_plasticity.streams.slowly_changing_regression import (
    SlowlyChangingRegression as SlowlyChangingRegression,
)
from keras_plasticity.streams.stream import Stream as Stream

__all__ = [
    "BinaryClassPairs",
    "LabelPermutedImages",
    "OnlinePermutedImages",
    "SlowlyChangingRegression",
    "Stream",
]
