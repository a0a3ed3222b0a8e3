from typing import Protocol
from typing import runtime_checkable

import numpy as np


@runtime_checkable
class Stream(Protocol):
    """What `OnlineTrainer` trains on: tasks that are addressed by index.

    Any object with a length and a method `task` is a stream. It may also have

    - `test(index)`, which returns the test examples of a task as `task` does
        its training examples, and
    - `order(index, epoch)`, which returns the order in which an epoch goes
        through the examples of `task(index)`: a permutation of their indices.

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

    def __len__(self) -> int:
        """The number of tasks."""

    def task(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The training examples of a task.

        Args:
            index: Integer in `[0, len(stream))`.

        Returns:
            Tuple `(x, y)` of arrays with one entry for each example, of the
            same shapes for every task.
        """
