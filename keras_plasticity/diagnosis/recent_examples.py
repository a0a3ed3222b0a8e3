from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_plasticity import validation
from keras_plasticity.diagnosis import examples


class RecentExamples:
    """The examples that a model was last trained on: a rolling window.

    It is a probe for `keras_plasticity.callbacks.PlasticityMonitor`,
    `keras_plasticity.measure` and `keras_plasticity.diagnose` where data are
    never the same twice, as in production. In `fit`, `record(data)` passes a
    data set on and remembers what goes by. In a loop of one's own, `add` each
    batch.

    Args:
        num_examples: Integer, how many are remembered. Defaults to 1000.

    Example:

    ```python
    recent = keras_plasticity.diagnosis.RecentExamples(500)
    monitor = keras_plasticity.callbacks.PlasticityMonitor(recent)
    model.fit(recent.record(dataset), epochs=2, callbacks=[monitor])
    ```

    And in a loop by hand:

    ```python
    for x, y in batches:
        model.train_on_batch(x, y)
        recent.add(x, y)
    keras_plasticity.measure(model, recent)["dead_units"]["total"]
    ```
    """

    def __init__(self, num_examples: int = 1000):
        self._num_examples = validation.check_positive_integer(
            "num_examples", num_examples
        )
        self._batches = []  # Pairs of nests of arrays, the last one at the end.

    def __len__(self) -> int:
        return sum(_size(batch) for batch in self._batches)

    def add(self, x: Any, y: Any = None):
        """Adds a batch of examples.

        Args:
            x: Array of inputs, or a list or dict of arrays.
            y: The same of targets. Defaults to `None`: there are none.

        Raises:
            ValueError: If the arrays do not fit together, or do not fit those
                that were added before.
        """
        x, y = keras.tree.map_structure(
            examples.to_numpy, (x, y), none_is_leaf=False
        )
        x, y = examples.check_arrays("x", x, y)
        if self._batches:
            _check_alike(self._batches[-1], (x, y))
        # What does not count any more need not be kept.
        last = keras.tree.map_structure(
            lambda array: np.array(array[-self._num_examples :]),
            (x, y),
            none_is_leaf=False,
        )
        self._batches.append(last)
        while len(self) - _size(self._batches[0]) >= self._num_examples:
            del self._batches[0]

    def record(self, data: Iterable) -> keras.utils.PyDataset:
        """A data set that remembers its examples when they are taken.

        Args:
            data: A `PyDataset`, `tf.data.Dataset` or PyTorch `DataLoader` of
                batches, one that comes to an end.

        Returns:
            `keras.utils.PyDataset` of the same batches, for `fit`.

        Raises:
            ValueError: If it is anything else, or does not know how many
                batches it has.
        """
        return _Recorded(self, data)

    def examples(self) -> tuple[Any, Any]:
        """The examples that are remembered, the oldest ones first.

        Returns:
            Tuple of inputs and targets, arrays or nests of arrays; the targets
            are `None` if there are none.

        Raises:
            ValueError: If there are no examples yet.
        """
        if not self._batches:
            raise ValueError(
                "There must be examples before something is measured on them: "
                "train on `recent.record(data)`, or `add` what you train on. "
                "Received: a `RecentExamples` without any"
            )
        return keras.tree.map_structure(
            lambda *arrays: np.concatenate(arrays)[-self._num_examples :],
            *self._batches,
            none_is_leaf=False,
        )


class _Recorded(keras.utils.PyDataset):
    """Batches of another data set, remembered as they are taken."""

    def __init__(self, recent, data):
        super().__init__()  # One worker: it remembers them in order.
        is_sequence = isinstance(data, keras.utils.PyDataset)
        if not examples.is_data_set(data) or hasattr(data, "__next__"):
            raise validation.error(
                "data",
                "a `PyDataset`, a `tf.data.Dataset` or a `DataLoader` (arrays "
                "and generators can be wrapped in a `PyDataset`)",
                data,
            )
        self._num_batches = examples.num_batches(data)
        if self._num_batches is None:
            raise ValueError(
                "`data` must know how many batches it has. Received: a "
                f"{type(data).__name__} that is endless, or does not know; "
                "for `tf.data`, set `assert_cardinality`"
            )
        self._recent = recent
        self._data = data
        self._is_sequence = is_sequence
        self._iterator = None

    def __len__(self):
        return self._num_batches

    def __getitem__(self, index):
        batch = self._data[index] if self._is_sequence else self._next()
        x, y, _ = examples.unpacked(batch)
        self._recent.add(x, y)
        return batch

    def _next(self):
        # An epoch of it takes as many batches as there are, in its own order.
        if self._iterator is not None:
            for batch in self._iterator:
                return batch
        self._iterator = examples.batches(self._data)
        return next(self._iterator)

    def on_epoch_begin(self):
        self._iterator = None
        if self._is_sequence:
            self._data.on_epoch_begin()

    def on_epoch_end(self):
        if self._is_sequence:
            self._data.on_epoch_end()


def _size(batch):
    return len(keras.tree.flatten(batch)[0])


def _check_alike(before, after):
    shapes = [
        [a.shape[1:] for a in keras.tree.flatten(each) if a is not None]
        for each in (before, after)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`x` and `y` must be of the shapes of the batches before. "
            f"Received: examples of shapes {shapes[1]}. Expected: {shapes[0]}"
        )
