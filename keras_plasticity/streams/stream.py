from typing import Any
from typing import Protocol
from typing import runtime_checkable


@runtime_checkable
class Stream(Protocol):
    """What `OnlineTrainer` trains on: tasks that are addressed by index.

    Any object with a method `task` is a stream. It may also have

    - `__len__()`, which returns the number of its tasks: an endless stream has
        none, and is trained on with `fit(stream, num_tasks=...)`,
    - `test(index)`, which returns the test examples of a task as `task` does
        its training examples, and
    - `order(index, epoch)`, which returns the order in which an epoch goes
        through the examples of `task(index)`: a permutation of their indices.

    The examples are those that `model.fit` takes: arrays, or lists, tuples or
    dicts of arrays for models with several inputs or outputs, with weights of
    the examples or without. Tensors of the backend will do; floats are cast to
    `keras.config.floatx()`.

    What these return must depend on their arguments only, not on earlier calls:
    `OnlineTrainer` calls `task` and `test` from a second thread while it trains
    on the task before, and a run that resumes from a checkpoint starts in the
    middle of the stream.

    Example:

    ```python
    class Noise:
        def __len__(self):
            return 10

        def task(self, index):
            rng = np.random.default_rng(index)
            return rng.normal(size=(100, 4)), rng.normal(size=(100, 1))
    ```
    """

    def task(self, index: int) -> tuple[Any, ...]:
        """The training examples of a task.

        Args:
            index: Integer in `[0, len(stream))`, or any from 0 if the stream
                has no length.

        Returns:
            Tuple `(x, y)` or `(x, y, sample_weight)` of arrays with one entry
            for each example, or of lists, tuples or dicts of such arrays, of
            the same structure and shapes for every task.
        """
