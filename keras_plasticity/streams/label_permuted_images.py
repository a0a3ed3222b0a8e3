import numpy as np

from keras_plasticity import validation
from keras_plasticity.streams import arguments


class LabelPermutedImages:
    """A stream of classification tasks that differ in the names of the classes.

    Each task, including the first, permutes the labels of all images in the
    same new way, and shows each image once, in a new order. The images stay as
    they are: what a network has learned of them is worth as much in the next
    task, but its last layer has to change.

    Both permutations depend on `seed` and the task's index alone, so any task
    can be generated without the ones before it. They are drawn from
    `numpy.random.default_rng([seed, index])`, first that of the classes, then
    that of the images. (For NumPy the seeds `[seed, 0]` and `seed` are the
    same, see `OnlinePermutedImages`.)

    Args:
        images: NumPy array of shape `(images, ...)`. Unsigned 8-bit integers
            are divided by 255; floats are not changed.
        labels: NumPy array of integers, of shape `(images,)`. The classes are
            those that are there.
        num_tasks: Integer, the number of tasks. Defaults to `800`.
        examples_per_task: Integer, the number of examples in each task.
            If it is larger than the number of images, a task repeats the same
            shuffled images. Defaults to `None`: every image once.
        seed: Non-negative integer. Defaults to `0`.

    Attributes:
        num_classes: Integer, the number of classes.

    Raises:
        ValueError: If the arrays do not fit each other or hold invalid values,
            or if an argument is out of range.

    Example:

    ```python
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8), "uint8")
    stream = keras_plasticity.streams.LabelPermutedImages(
        images, labels=np.arange(50) % 10, num_tasks=3
    )
    x, y = stream.task(0)  # Of shapes (50, 8, 8) and (50,).
    ```

    References:

    - [Elsayed and Mahmood, 2024](https://arxiv.org/abs/2404.00781), who permute
        the labels of other images
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
        self.num_tasks = validation.check_integer("num_tasks", num_tasks, 1)
        self.examples_per_task = validation.check_integer(
            "examples_per_task", examples_per_task, 1
        )
        self.seed = arguments.check_seed(seed)
        # Each task reads all of them.
        self._images = np.asarray(images)
        self._classes, self._labels = np.unique(
            labels.astype("int32"), return_inverse=True
        )
        self.num_classes = len(self._classes)

    def __len__(self) -> int:
        """The number of tasks."""
        return self.num_tasks

    def task(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Makes one task.

        Args:
            index: Integer in `[0, len(stream))`.

        Returns:
            Tuple `(x, y)`: the images, float32 of shape
            `(examples_per_task, ...)`, and the labels, int32 of shape
            `(examples_per_task,)`.

        Raises:
            IndexError: If there is no such task.
        """
        index = arguments.check_index(index, self.num_tasks)
        rng = np.random.default_rng([self.seed, index])
        classes = rng.permutation(self._classes)
        order = rng.permutation(len(self._images))
        # Repeats the order, or cuts it.
        order = np.resize(order, self.examples_per_task)
        x = arguments.as_floats(self._images[order])
        return x, classes[self._labels[order]]
