"""Checks of the arguments of streams."""

import math
from typing import Any

import numpy as np

from keras_plasticity import validation
from keras_plasticity.datasets.image_cache import CachedImages


def check_index(index: Any, num_tasks: int) -> int:
    """Checks that a stream has a task.

    Args:
        index: The index asked for.
        num_tasks: Integer, the number of tasks of the stream.

    Returns:
        The index as a Python integer.

    Raises:
        IndexError: If there is no such task.
    """
    if not validation.is_integer(index) or not 0 <= index < num_tasks:
        raise IndexError(
            f"`index` must be an integer in [0, {num_tasks}), the "
            f"stream's tasks. {validation.received('index', index)}"
        )
    return int(index)


def check_seed(seed: Any) -> int:
    """Checks that a seed is one for NumPy, which takes any size."""
    return validation.check_integer("seed", seed, 0, math.inf)


def labeled_images(images: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Converts images and their classes to arrays, and checks them.

    Args:
        images: Array, with one image for each index of its first axis.
        labels: Array, with the class of each image.

    Returns:
        Tuple of both as NumPy arrays; `CachedImages` as they are.

    Raises:
        ValueError: If there are no images, if they are neither unsigned 8-bit
            integers nor finite floats, or if there is not one integer label for
            each image.
    """
    if not isinstance(images, CachedImages):  # They are read task by task.
        images = validation.check_array("images", images)
    labels = validation.check_array("labels", labels)
    _check_images(images)
    _check_labels(labels, num_images=len(images))
    return images, labels


def as_floats(images: np.ndarray) -> np.ndarray:
    """Images as float32, of which bytes are divided by 255."""
    if images.dtype == np.uint8:
        images = images.astype("float32")
        images /= 255.0
    return images.astype("float32", copy=False)


def _check_images(images):
    if images.ndim < 2 or 0 in images.shape:
        raise ValueError(
            "`images` must be a non-empty array with one image for each index "
            "of its first axis. Received: an array of shape "
            f"images.shape={images.shape}"
        )
    is_float = np.issubdtype(images.dtype, np.floating)
    if images.dtype != np.uint8 and not is_float:
        raise ValueError(
            "`images` must be unsigned 8-bit integers or floats. Received: "
            f"images.dtype={images.dtype}"
        )
    if is_float:
        validation.check_finite("images", images)


def _check_labels(labels, num_images):
    if labels.shape != (num_images,):
        raise ValueError(
            "`labels` must hold one label for each image. Received: "
            f"{num_images} images, labels.shape={labels.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            "`labels` must be integers, the classes of the images. Received: "
            f"labels.dtype={labels.dtype}"
        )
