"""Loads the tasks of all learners, checks them and cuts them into steps."""

import numpy as np


class TaskLoader:
    """Gets tasks from the learners' streams and checks them."""

    def __init__(self, streams, batch_size):
        self._streams = streams
        self._batch_size = batch_size
        self._expected = {}

    def load(self, task):
        """Gets one task of all learners.

        Args:
            task: Integer, its index.

        Returns:
            `TaskData`.

        Raises:
            ValueError: If a stream returns data that cannot be used.
        """
        x, y = self._get("task", task)
        test = None
        if all(hasattr(stream, "test") for stream in self._streams):
            test = self._get("test", task)
        return TaskData(x, y, self._batch_size, test)

    def load_ahead(self, tasks, executor):
        """Yields tasks with their data, and loads the next one meanwhile.

        Args:
            tasks: Range of the indices of tasks.
            executor: `concurrent.futures.Executor` that loads.

        Yields:
            Tuples of a task's index and its `TaskData`.
        """
        coming = None
        try:
            for task in tasks:
                if coming is None:
                    coming = executor.submit(self.load, task)
                data = coming.result()
                if task != tasks[-1]:
                    coming = executor.submit(self.load, task + 1)
                yield task, data
        finally:
            if coming is not None:
                coming.cancel()

    def orders(self, task, epoch):
        """The order of the examples in one epoch.

        Args:
            task: Integer, the task's index.
            epoch: Integer.

        Returns:
            List with an array of integers for each learner; `None` if the
            streams have no order for each epoch, only that of the task.
        """
        if not all(hasattr(stream, "order") for stream in self._streams):
            return None
        return [
            self._get_order(task, epoch, learner, stream)
            for learner, stream in enumerate(self._streams)
        ]

    def _get(self, method, task):
        pairs = []
        for learner, stream in enumerate(self._streams):
            pair = getattr(stream, method)(task)
            self._check(method, task, learner, pair)
            pairs.append(pair)
        x, y = zip(*pairs)
        return _stack_learners(x), _stack_learners(y)

    def _get_order(self, task, epoch, learner, stream):
        order = np.asarray(stream.order(task, epoch))
        (length,) = self._expected["task"][0][:1]
        if order.ndim != 1 or not np.array_equal(
            np.sort(order), np.arange(length)
        ):
            raise ValueError(
                "A stream's `order(index, epoch)` must return a permutation of "
                f"the indices of the task's {length} examples. Received for "
                f"task {task}, epoch {epoch} of the stream of learner "
                f"{learner}: an array of shape {order.shape} with other values"
            )
        return order

    def _check(self, method, task, learner, pair):
        where = f"{method}({task}) of the stream of learner {learner}"
        if (
            not isinstance(pair, tuple)
            or len(pair) != 2
            or not all(isinstance(a, np.ndarray) for a in pair)
        ):
            raise ValueError(
                f"A stream's `{method}(index)` must return a tuple `(x, y)` of "
                f"NumPy arrays. Received for {where}: {type(pair)}"
            )
        x, y = pair
        if x.ndim < 1 or y.ndim < 1 or len(x) != len(y):
            raise ValueError(
                "The arrays `x` and `y` of a task must have one entry for each "
                f"example. Received for {where}: x.shape={x.shape}, "
                f"y.shape={y.shape}"
            )
        if method == "task" and len(x) < self._batch_size:
            raise ValueError(
                "A task must have at least one batch of examples. Received "
                f"for {where}: {len(x)} examples, "
                f"batch_size={self._batch_size}"
            )
        for name, array in (("x", x), ("y", y)):
            if array.dtype.kind not in "fiub":
                raise ValueError(
                    f"The arrays of a task must be numbers. Received for "
                    f"{where}: {name}.dtype={array.dtype}"
                )
        received = (x.shape, x.dtype, y.shape, y.dtype)
        expected = self._expected.setdefault(method, received)
        if received != expected:
            raise ValueError(
                "All tasks of all learners must have the same shapes and "
                f"dtypes. Expected (x, y): {expected[:2]}, "
                f"{expected[2:]}. Received for {where}: "
                f"{received[:2]}, {received[2:]}"
            )


class TaskData:
    """One task of all learners, cut into steps.

    Args:
        x: Array of shape `(num_learners, examples, ...)`.
        y: Array of shape `(num_learners, examples, ...)`.
        batch_size: Integer.
        test: Tuple of two such arrays, the test data; `None` without any.
    """

    def __init__(self, x, y, batch_size, test=None):
        self.x = x
        self.y = y
        self.test = test
        self._batch_size = batch_size

    def in_order(self, orders):
        """The task with its examples in another order.

        Args:
            orders: List with an array of indices for each learner, or `None`.

        Returns:
            `TaskData`, without the test data.
        """
        if orders is None:
            return self
        x, y = (
            _stack_learners([a[order] for a, order in zip(arrays, orders)])
            for arrays in (self.x, self.y)
        )
        return TaskData(x, y, self._batch_size)

    def test_batches(self, most):
        """The test data in batches of at most `most` examples."""
        if self.test is None:
            return
        x, y = self.test
        for start in range(0, x.shape[1], most):
            part = slice(start, start + most)
            yield x[:, part], y[:, part]

    @property
    def bytes_per_learner(self):
        return (self.x.nbytes + self.y.nbytes) // len(self.x)

    def batches(self):
        """Full batches, then the remainder: arrays (learners, steps, batch)."""
        learners, examples = self.x.shape[:2]
        size = self._batch_size
        whole = examples // size * size
        parts = []
        for start, stop, size in (
            (0, whole, size),
            (whole, examples, examples - whole),
        ):
            if stop > start:
                parts.append(
                    [
                        a[:, start:stop].reshape(
                            (learners, (stop - start) // size, size)
                            + a.shape[2:]
                        )
                        for a in (self.x, self.y)
                    ]
                )
        return parts

    def chunks(self, steps):
        """The task as a list of pairs `(x, y)` of about `steps` steps."""
        result = []
        for x, y in self.batches():
            size = _even_size(x.shape[1], steps)
            for start in range(0, x.shape[1], size):
                chunk = slice(start, start + size)
                result.append((x[:, chunk], y[:, chunk]))
        return result

    def distinct_chunks(self, steps):
        """One chunk of each shape."""
        return {x.shape: (x, y) for x, y in self.chunks(steps)}.values()


def _even_size(total, most):
    """Size of the parts of `total`, at most `most`, preferably all equal."""
    number = -(-total // most)
    for candidate in range(number, min(4 * number, total) + 1):
        if total % candidate == 0:
            return total // candidate
    return -(-total // number)


def _stack_learners(arrays):
    # One learner's data is not copied.
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)
