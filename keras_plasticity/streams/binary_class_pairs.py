import numpy as np

from keras_plasticity import validation
from keras_plasticity.streams import arguments

SCALES = ("unit", "raw", "centered")


class BinaryClassPairs:
    """A stream of binary classification tasks, each with a new pair of classes.

    The classes are shuffled once, by `seed`, and taken two at a time, over and
    over: with 1,000 classes there are 500 pairs, and task 500 is task 0 again,
    with the same images. With an odd number of classes the last one is paired
    with the first, and the second pass has the other pairs.

    With `reshuffle_each_pass` the classes are shuffled again before each
    further pass, and so are met again in other pairs; a pair comes back only by
    chance. With an odd number of classes, each pass then leaves one out. The
    images of a class are the same in every pass.

    In the order of the data, the first `train_images_per_class` images of a
    class are for training and the next `test_images_per_class` for testing;
    the rest is not used. With the 1,000 classes of ImageNet at 32 x 32 pixels
    this is the Continual ImageNet of the paper, which trains on each task for
    250 epochs and tests after the last one.

    Everything depends on `seed` and the task's index alone, so any task can be
    generated without the ones before it. The order of the classes is drawn from
    `numpy.random.default_rng(seed)`, in pass `p` after the first from
    `default_rng([seed, p, 0, 2])`, and the order of an epoch from
    `default_rng([seed, index, epoch, 1])`. A program that draws initial
    weights, or seeds of them, from `default_rng(seed)` uses the random numbers
    of the first order again; `default_rng([seed, 0, 1])` has others.

    Args:
        images: NumPy array of shape `(images, ...)`, most often
            `(images, height, width, channels)`, of unsigned 8-bit integers or
            floats. A memory map, or what `load_imagenet` returns, is read
            task by task.
        labels: NumPy array of integers of shape `(images,)`, the classes, in
            any order. They need not be consecutive.
        num_tasks: Integer, the number of tasks. Defaults to `2000`.
        train_images_per_class: Integer. Defaults to `600`.
        test_images_per_class: Integer. Defaults to `100`.
        scale: How unsigned 8-bit integers are scaled: `"unit"` (default)
            divides them by 255, `"centered"` maps them to [-1, 1], `"raw"`
            leaves them in [0, 255]. Floats are not changed.
        seed: Non-negative integer. Defaults to `0`.
        reshuffle_each_pass: Boolean, whether to pair the classes anew in each
            pass over them. Defaults to `False`: tasks repeat, as in the paper.

    Attributes:
        num_classes: Integer, the number of classes in the data. Each task has
            two of them.
        image_shape: Tuple, the shape of one image.

    Raises:
        ValueError: If the arrays do not fit each other or hold invalid values,
            if there are too few classes or too few images of a class, or if an
            argument is out of range.

    Example:

    ```python
    images, labels = keras_plasticity.datasets.load_imagenet()
    stream = keras_plasticity.streams.BinaryClassPairs(images, labels)
    for index in range(len(stream)):
        x, y = stream.task(index)
        for epoch in range(250):
            order = stream.order(index, epoch)
            model.fit(x[order], y[order], batch_size=100, shuffle=False)
        model.evaluate(*stream.test(index))
    ```

    References:

    - [Dohare et al., 2024](https://doi.org/10.1038/s41586-024-07711-7)
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        num_tasks: int = 2000,
        train_images_per_class: int = 600,
        test_images_per_class: int = 100,
        scale: str = "unit",
        seed: int = 0,
        reshuffle_each_pass: bool = False,
    ):
        images, labels = arguments.labeled_images(images, labels)
        self.num_tasks = validation.check_integer("num_tasks", num_tasks, 1)
        self.train_images_per_class = validation.check_integer(
            "train_images_per_class", train_images_per_class, 1
        )
        self.test_images_per_class = validation.check_integer(
            "test_images_per_class", test_images_per_class, 1
        )
        self.scale = validation.check_choice("scale", scale, SCALES)
        self.seed = arguments.check_seed(seed)
        self.reshuffle_each_pass = validation.check_boolean(
            "reshuffle_each_pass", reshuffle_each_pass
        )
        self._images = images
        self._by_class = np.argsort(labels, kind="stable")
        classes, self._starts, counts = np.unique(
            labels[self._by_class], return_index=True, return_counts=True
        )
        self._check_classes(classes, counts)
        self.num_classes = len(classes)
        self.image_shape = images.shape[1:]
        self._first_order = self._class_order(0)

    def __len__(self) -> int:
        """The number of tasks."""
        return self.num_tasks

    def task(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The training examples of a task, the two classes alternating.

        Args:
            index: Integer in `[0, len(stream))`.

        Returns:
            Tuple `(x, y)`: the images, float32 of shape
            `(2 * train_images_per_class, *image_shape)`, and their labels
            within the pair, 0 or 1, int32 of shape
            `(2 * train_images_per_class,)`.

        Raises:
            IndexError: If there is no such task.
        """
        return self._examples(index, 0, self.train_images_per_class)

    def test(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The test examples of a task, the two classes alternating.

        Args:
            index: Integer in `[0, len(stream))`.

        Returns:
            Tuple `(x, y)` as that of `task`, of
            `2 * test_images_per_class` examples.

        Raises:
            IndexError: If there is no such task.
        """
        return self._examples(
            index, self.train_images_per_class, self.test_images_per_class
        )

    def order(self, index: int, epoch: int) -> np.ndarray:
        """The order in which an epoch goes through the training examples.

        Args:
            index: Integer in `[0, len(stream))`, the task.
            epoch: Non-negative integer, the pass over the task.

        Returns:
            Integers of shape `(2 * train_images_per_class,)`, a permutation
            of the indices of `task(index)`.

        Raises:
            IndexError: If there is no such task.
            ValueError: If `epoch` is no non-negative integer.
        """
        index = arguments.check_index(index, self.num_tasks)
        epoch = validation.check_integer("epoch", epoch, minimum=0)
        # Without the fourth number, epoch 0 of task 0 would draw the same
        # numbers as the order of the classes.
        rng = np.random.default_rng([self.seed, index, epoch, 1])
        return rng.permutation(2 * self.train_images_per_class)

    def _examples(self, index, first, number):
        index = arguments.check_index(index, self.num_tasks)
        starts = self._starts[self._pair(index)] + first
        rows = starts + np.arange(number)[:, None]
        x = self._scaled(self._images[self._by_class[rows.ravel()]])
        return x, np.tile(np.arange(2, dtype="int32"), number)

    def _pair(self, index):
        """The two classes of a task."""
        if self.reshuffle_each_pass:
            number, place = divmod(index, self.num_classes // 2)
            return self._class_order(number)[2 * place : 2 * place + 2]
        places = (2 * index + np.arange(2)) % self.num_classes
        return self._first_order[places]

    def _class_order(self, number):
        """The order of the classes in one of the passes over them."""
        # Four numbers, the last one unlike that of `order`: the same random
        # numbers are never drawn for two things.
        seed = [self.seed, number, 0, 2] if number else self.seed
        return np.random.default_rng(seed).permutation(self.num_classes)

    def _scaled(self, images):
        x = images.astype("float32", copy=False)
        if images.dtype == np.uint8 and self.scale == "unit":
            x /= 255.0
        elif images.dtype == np.uint8 and self.scale == "centered":
            x /= 127.5
            x -= 1.0
        return x

    def _check_classes(self, classes, counts):
        if len(classes) < 2:
            raise ValueError(
                "`labels` must name at least 2 classes, for a task has two. "
                f"Received: {len(classes)} class, {classes[0]}"
            )
        needed = self.train_images_per_class + self.test_images_per_class
        least = int(np.argmin(counts))
        if counts[least] < needed:
            raise ValueError(
                "Every class must have `train_images_per_class + "
                f"test_images_per_class` = {needed} images. Class "
                f"{classes[least]} has {counts[least]}; "
                f"{np.count_nonzero(counts < needed)} of {len(classes)} "
                "classes have too few. Ask for fewer images, or leave these "
                "classes out of `images` and `labels`. Received: "
                f"train_images_per_class={self.train_images_per_class}, "
                f"test_images_per_class={self.test_images_per_class}"
            )
