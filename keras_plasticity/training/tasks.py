"""Loads the tasks of all learners, checks them and plans their steps."""

import dataclasses

import keras
import numpy as np

from keras_plasticity.training import nests

_PARTS = ("x", "y", "sample_weight")


class TaskLoader:
    """Gets tasks from the learners' streams and checks them.

    Args:
        streams: List with the stream of each learner.
        batch_size: Integer.
        prepare: Function that is called with the `TaskData` of each task as
            soon as they are loaded.
    """

    def __init__(self, streams, batch_size, prepare=None):
        self._streams = streams
        self._batch_size = batch_size
        self._prepare = prepare
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
        data = self._get("task", task)
        test = None
        if all(hasattr(stream, "test") for stream in self._streams):
            test = self._get("test", task)
        data = TaskData(data, self._batch_size, test)
        if self._prepare is not None:
            self._prepare(data)
        return data

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

    def orders(self, task, epoch, num_examples, learners):
        """The order of the examples in one epoch.

        Args:
            task: Integer, the task's index.
            epoch: Integer.
            num_examples: Integer, the number of examples of the task.
            learners: Range of the learners that are asked for.

        Returns:
            List with an array of integers for each learner; `None` if the
            streams have no order for each epoch, only that of the task.
        """
        if not all(hasattr(stream, "order") for stream in self._streams):
            return None
        orders = []
        for learner in learners:
            order = np.asarray(self._streams[learner].order(task, epoch))
            if order.ndim != 1 or not np.array_equal(
                np.sort(order), np.arange(num_examples)
            ):
                raise ValueError(
                    "A stream's `order(index, epoch)` must return a "
                    f"permutation of the indices of the task's {num_examples} "
                    f"examples. Received for task {task}, epoch {epoch} of the "
                    f"stream of learner {learner}: an array of shape "
                    f"{order.shape} with other values"
                )
            orders.append(order)
        return orders

    def _get(self, method, task):
        data = []
        for learner, stream in enumerate(self._streams):
            where = f"{method}({task}) of the stream of learner {learner}"
            received = getattr(stream, method)(task)
            checked = _checked(received, method, where)
            self._check_size(checked, method, where)
            self._check_as_before(checked, method, where)
            data.append(nests.map_arrays(_cast_floats, checked))
        return nests.map_arrays(lambda *arrays: _stack_learners(arrays), *data)

    def _check_size(self, data, method, where):
        examples = len(nests.arrays(data)[0])
        if method == "test" and not examples:
            raise ValueError(
                "The test data of a task must have at least one example. "
                f"Received for {where}: 0 examples"
            )
        if method == "task" and examples < self._batch_size:
            raise ValueError(
                "A task must have at least one batch of examples. Received "
                f"for {where}: {examples} examples, "
                f"batch_size={self._batch_size}"
            )

    def _check_as_before(self, data, method, where):
        received = nests.map_arrays(lambda a: f"{a.dtype} {a.shape}", data)
        expected = self._expected.setdefault(method, received)
        if received != expected:
            raise ValueError(
                "All tasks of all learners must have the same shapes, dtypes "
                f"and structure. Expected {expected}. Received for {where}: "
                f"{received}"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """The batches of some training steps in a row, of one task's data.

    Attributes:
        steps: Integer, the number of steps.
        size: Integer, the number of examples a step.
        start: Integer, the first example, of all learners.
        order: Array of integers of shape `(num_learners, steps, size)`, which
            examples; `None` if they follow each other from `start` on.
    """

    steps: int
    size: int
    start: int
    order: np.ndarray | None = None

    def from_step(self, done):
        """Those that follow after so many steps."""
        order = None if self.order is None else self.order[:, done:]
        start = self.start + done * self.size
        return Batches(self.steps - done, self.size, start, order)

    @property
    def kind(self):
        """What a compiled program depends on."""
        return self.steps, self.size, self.order is not None


class TaskData:
    """One task of all learners.

    Args:
        data: Tuple `(x, y)` or `(x, y, sample_weight)` of nests of arrays of
            shape `(num_learners, examples, ...)`.
        batch_size: Integer.
        test: Such a tuple, the test data; `None` without any.

    Attributes:
        on_device: What `put` of a training loop has returned for `data`;
            `None` if they are not on the device yet.
    """

    def __init__(self, data, batch_size, test=None):
        self.data = data
        self.test = test
        self.batch_size = batch_size
        self.num_learners, self.num_examples = nests.arrays(data)[0].shape[:2]
        self.on_device = None

    def of(self, learners):
        """The data of some of the learners.

        Args:
            learners: Range of their indices.

        Returns:
            `TaskData`.
        """
        if len(learners) == self.num_learners:
            return self
        part = slice(learners.start, learners.stop)
        test = None if self.test is None else nests.take(self.test, part)
        return TaskData(nests.take(self.data, part), self.batch_size, test)

    @property
    def num_test_examples(self):
        return nests.arrays(self.test)[0].shape[1]

    @property
    def bytes_per_learner(self):
        total = sum(array.nbytes for array in nests.arrays(self.data))
        return total // self.num_learners

    def is_finite(self, learner):
        """Whether a learner's data are finite numbers."""
        return all(
            np.isfinite(array[learner]).all()
            for array in nests.arrays(self.data)
        )

    def first_batch(self, learner):
        """The data of a learner's first step."""
        return nests.map_arrays(
            lambda array: array[learner, : self.batch_size], self.data
        )

    def batches(self, most, orders=None):
        """One epoch: the full batches, then the remainder.

        Args:
            most: Integer, about how many steps there may be in a row.
            orders: List with the order of the examples for each learner;
                `None` for the one they are in.

        Returns:
            List of `Batches`.
        """
        whole, rest = divmod(self.num_examples, self.batch_size)
        result = []
        start = 0
        for steps, size in ((whole, self.batch_size), (min(rest, 1), rest)):
            for number in _parts(steps, most):
                stop = start + number * size
                order = None
                if orders is not None:
                    order = np.stack([each[start:stop] for each in orders])
                    order = order.reshape(-1, number, size).astype("int32")
                result.append(Batches(number, size, start, order))
                start = stop
        return result


def _checked(data, method, where):
    """What a stream has returned, as a tuple of nests of NumPy arrays."""
    if not isinstance(data, tuple):
        raise _wrong_form(method, where, str(type(data)))
    if len(data) not in (2, 3):
        raise _wrong_form(method, where, f"a tuple of length {len(data)}")
    data = nests.map_arrays(_to_numpy, data)
    named = _named_arrays(data)
    for name, array in named.items():
        if not isinstance(array, np.ndarray):
            raise _wrong_form(method, where, f"{name} of {type(array)}")
    if not nests.arrays(data[0]):
        raise _wrong_form(method, where, "no array in x")
    if (
        any(array.ndim < 1 for array in named.values())
        or len({len(array) for array in named.values()}) != 1
    ):
        shapes = ", ".join(f"{n}.shape={a.shape}" for n, a in named.items())
        raise ValueError(
            "All arrays of a task must have one entry for each example. "
            f"Received for {where}: {shapes}"
        )
    for name, array in named.items():
        if not _is_numeric(array):
            raise ValueError(
                f"The arrays of a task must be numbers. Received for {where}: "
                f"{name}.dtype={array.dtype}"
            )
    return (*data[:2], *_weights_of_outputs(*data[1:], where=where))


def _wrong_form(method, where, received):
    return ValueError(
        f"A stream's `{method}(index)` must return a tuple `(x, y)` of NumPy "
        "arrays, or of lists, tuples or dicts of them, which a third entry "
        f"`sample_weight` may follow. Received for {where}: {received}"
    )


def _named_arrays(data):
    """Dict from names such as `x`, `x[0]` or `y['label']` to arrays."""
    return {
        part + "".join(f"[{key!r}]" for key in path): array
        for part, nest in zip(_PARTS, data)
        for path, array in keras.tree.flatten_with_path(nest)
        if array is not None
    }


def _to_numpy(value):
    """An array or tensor of any kind as a NumPy array; else the value."""
    if isinstance(value, np.ndarray) or not hasattr(value, "__array__"):
        return value
    if keras.ops.is_tensor(value):
        return keras.ops.convert_to_numpy(value)
    return np.array(value)


def _is_numeric(array):
    try:
        return keras.backend.standardize_dtype(array.dtype) != "string"
    except ValueError:
        return False


def _cast_floats(array):
    """Floats in the type that Keras computes with, as `fit` casts them."""
    if keras.backend.is_float_dtype(array.dtype):
        return array.astype(keras.config.floatx(), copy=False)
    return array


def _weights_of_outputs(y, sample_weight=None, where=None):
    """Tuple of the sample weights of all outputs; empty without any."""
    if sample_weight is None:
        return ()
    if not keras.tree.is_nested(sample_weight):
        # For each of several outputs the same.
        return (keras.tree.map_structure(lambda _: sample_weight, y),)
    try:
        keras.tree.assert_same_structure(y, sample_weight)
    except ValueError as error:
        raise ValueError(
            "`sample_weight` must be one array, or one for each array of `y` "
            f"in the structure of `y`. Received for {where}: y with "
            f"{list(_named_arrays((None, y)))}, sample_weight with "
            f"{list(_named_arrays((None, None, sample_weight)))}"
        ) from error
    return (sample_weight,)


def _parts(total, most):
    """`total` in parts of about `most`, preferably all equal."""
    if not total:
        return []
    number = -(-total // most)
    for candidate in range(number, min(4 * number, total) + 1):
        if total % candidate == 0:
            return [total // candidate] * candidate
    size = -(-total // number)
    return [min(size, total - start) for start in range(0, total, size)]


def _stack_learners(arrays):
    # One learner's data is not copied.
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)
