import math

import numpy as np

from keras_plasticity import validation
from keras_plasticity.streams import arguments


class OnlinePermutedImages:
    """A stream of classification tasks that differ in the order of the pixels.

    Each task, including the first, permutes the pixels of all images in the
    same new way, and shows each image once, in a new order. With the 60,000
    training images of MNIST and 800 tasks this is the Online Permuted MNIST of
    the paper.

    Both permutations depend on `seed` and the task's index alone, so any task
    can be generated without the ones before it. They are drawn from
    `numpy.random.default_rng([seed, index])`, first that of the pixels. For
    NumPy the seeds `[seed, 0]` and `seed` are the same: a program that draws
    initial weights, or seeds of them, from `default_rng(seed)` uses the random
    numbers of task 0 again. `default_rng([seed, 0, 1])` has others than any
    task.

    Args:
        images: NumPy array of shape `(images, ...)`, all axes but the first
            being pixels. Unsigned 8-bit integers are divided by 255; floats
            are not changed.
        labels: NumPy array of integers, of shape `(images,)`.
        num_tasks: Integer, the number of tasks. Defaults to `800`.
        examples_per_task: Integer, the number of examples in each task.
            If it is larger than the number of images, a task repeats the same
            shuffled images. Defaults to `None`: every image once.
        seed: Non-negative integer. Defaults to `0`.

    Attributes:
        num_pixels: Integer, the number of pixels of an image.

    Raises:
        ValueError: If the arrays do not fit each other or hold invalid values,
            or if an argument is out of range.

    Example:

    ```python
    images, labels = keras_plasticity.datasets.load_mnist()
    stream = keras_plasticity.streams.OnlinePermutedImages(images, labels)
    for index in range(len(stream)):
        x, y = stream.task(index)
        model.fit(x, y, batch_size=1, shuffle=False)
    ```

    References:

    - [Dohare et al., 2024](https://doi.org/10.1038/s41586-024-07711-7)
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        num_tasks: int = 800,
        examples_per_task: int | None = None,
        seed: int = 0,
    ):
        images, labels = arguments.labeled_images(images, labels)
        if examples_per_task is None:
            examples_per_task = len(images)
        self.num_pixels = math.prod(images.shape[1:])
        self.num_tasks = validation.check_integer("num_tasks", num_tasks, 1)
        self.examples_per_task = validation.check_integer(
            "examples_per_task", examples_per_task, 1
        )
        self.seed = arguments.check_seed(seed)
        # Each task reads all of them.
        images = np.asarray(images)
        self._images = images.reshape(len(images), self.num_pixels)
        self._labels = labels.astype("int32")

    def __len__(self) -> int:
        """The number of tasks."""
        return self.num_tasks

    def task(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Makes one task.

        Args:
            index: Integer in `[0, len(stream))`.

        Returns:
            Tuple `(x, y)`: the pixels, float32 of shape
            `(examples_per_task, num_pixels)`, and the labels, int32 of shape
            `(examples_per_task,)`.

        Raises:
            IndexError: If there is no such task.
        """
        index = arguments.check_index(index, self.num_tasks)
        rng = np.random.default_rng([self.seed, index])
        pixels = rng.permutation(self.num_pixels)
        order = rng.permutation(len(self._images))
        # Repeats the order, or cuts it.
        order = np.resize(order, self.examples_per_task)
        # Shuffling bytes is faster than shuffling floats.
        x = self._images[order].take(pixels, axis=1)
        return arguments.as_floats(x), self._labels[order]
