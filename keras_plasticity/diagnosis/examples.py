"""Takes the examples to measure on, in any form that `fit` takes."""

import warnings

import keras
import numpy as np

from keras_plasticity import validation

# A data set that holds more, or never ends, is no probe.
MOST_EXAMPLES = 10_000


def is_data_set(data):
    """Whether data come batch by batch."""
    return (
        isinstance(data, keras.utils.PyDataset)
        or hasattr(data, "as_numpy_iterator")  # tf.data
        or hasattr(data, "batch_sampler")  # PyTorch's DataLoader
        or hasattr(data, "__next__")  # A generator.
    )


def take_examples(name, data):
    """The same, or those that a `RecentExamples` holds."""
    if hasattr(data, "record"):
        return data.examples()
    return as_examples(name, data)


def as_examples(name, data):
    """Inputs and targets as arrays.

    Args:
        name: String, the name of the argument.
        data: Array of inputs (several come as a list or dict), a tuple
            `(x, y)`, or a data set of batches of these: a `PyDataset`, a
            `tf.data.Dataset`, a PyTorch `DataLoader`, or a generator.

    Returns:
        Tuple of a nest of arrays, and of the same for the targets, or `None`.

    Raises:
        ValueError: If there are no examples or too many, if arrays do not fit
            together, or if an entry is not a finite number.
    """
    if is_data_set(data):
        data = _read(name, data)
    return check_examples(name, data)


def check_examples(name, data):
    """The same for an array of inputs, or a tuple `(x, y)`."""
    if not isinstance(data, tuple):
        return check_arrays(name, data, None)
    if len(data) != 2:
        raise ValueError(
            f"`{name}` must be an array of inputs, or a tuple (x, y); "
            "several inputs come as a list or a dict. Received: a tuple "
            f"of length {len(data)}"
        )
    return check_arrays(name, *data)


def check_arrays(name, x, y):
    """The same for inputs, and targets or `None`."""

    def as_array(value):
        return validation.as_array(name, value)

    if x is None:
        raise validation.error(
            name, "a tuple (x, y), an array of inputs, or a data set", x
        )
    if y is not None:
        if all(as_array(target).ndim for target in keras.tree.flatten(y)):
            y = keras.tree.map_structure(as_array, y)
        else:
            y = as_array(y)  # A list of numbers.
    x = keras.tree.map_structure(as_array, x)
    arrays = keras.tree.flatten(x)
    if y is not None:
        arrays += keras.tree.flatten(y)
    shapes = [array.shape for array in arrays]
    lengths = {shape[0] if shape else 0 for shape in shapes}
    if len(lengths) != 1 or not min(lengths):
        raise ValueError(
            f"The arrays of `{name}` must have one entry for each example, "
            f"and one example at least. Received: arrays of shapes {shapes}"
        )
    for array in arrays:
        if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
            raise ValueError(
                f"`{name}` must be finite numbers. Received: an array of "
                f"shape {array.shape} and dtype {array.dtype}"
                + (
                    " with NaN or infinite values"
                    if array.dtype.kind == "f"
                    else ""
                )
            )
    return x, y


def _read(name, data):
    """All examples of a data set: inputs, or a tuple `(x, y)`."""
    kind = type(data).__name__
    if _is_endless(data):
        raise _too_many(name, kind, "one that never ends")
    taken = []
    num_examples = 0
    for batch in batches(data):
        x, y, weight = unpacked(batch)
        if any(each is None for each in keras.tree.flatten(x)):
            raise ValueError(
                f"The batches of `{name}` must be arrays of inputs, or tuples "
                f"(x, y). Received: a {kind} of {batch!r}"
            )
        if weight is not None and not taken:
            warnings.warn(
                f"`{name}` has sample weights. Measures do not use them: all "
                "examples count alike.",
                stacklevel=4,
            )
        arrays = keras.tree.map_structure(to_numpy, (x, y), none_is_leaf=False)
        leaves = keras.tree.flatten(arrays[0])
        num_examples += len(leaves[0]) if leaves and leaves[0].ndim else 1
        taken.append(arrays)
        if num_examples > MOST_EXAMPLES:
            raise _too_many(name, kind, f"one of more than {num_examples - 1}")
    if not num_examples:
        raise ValueError(
            f"`{name}` must hold at least one example. Received: an empty "
            f"{kind}"
        )
    try:
        x, y = keras.tree.map_structure(
            lambda *arrays: np.concatenate(arrays), *taken, none_is_leaf=False
        )
    except ValueError as error:
        shapes = [
            [array.shape for array in keras.tree.flatten(each) if array.ndim]
            for each in taken
        ]
        raise ValueError(
            f"The batches of `{name}` must have the same structure, and the "
            "same shapes but for the number of examples. Received: batches of "
            f"arrays of shapes {shapes[:5]}"
        ) from error
    return x if y is None else (x, y)


def num_batches(data):
    """The number of batches of a data set; `None` if it is endless or unknown.

    Args:
        data: A `PyDataset`, a `tf.data.Dataset` or a `DataLoader`.
    """
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches
    if hasattr(data, "cardinality"):
        number = int(data.cardinality())
        return number if number >= 0 else None
    try:
        return len(data)
    except TypeError:  # A DataLoader over an iterable has no length.
        return None


def batches(data):
    """Iterates once over the batches of a data set."""
    if isinstance(data, keras.utils.PyDataset):
        return (data[i] for i in range(data.num_batches))
    if hasattr(data, "as_numpy_iterator"):
        return data.as_numpy_iterator()
    return iter(data)


def unpacked(batch):
    """A batch as a tuple of inputs, targets and sample weights, or `None`."""
    if isinstance(batch, list):
        batch = tuple(batch)  # So come those of a DataLoader.
    return keras.utils.unpack_x_y_sample_weight(batch)


def to_numpy(value):
    """An array of a tensor of any backend, or of an array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value)


def _is_endless(data):
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches is None
    # Otherwise one that does not know its length has it read.
    return hasattr(data, "cardinality") and int(data.cardinality()) == -1


def _too_many(name, kind, received):
    return ValueError(
        f"`{name}` must be a data set of at most {MOST_EXAMPLES} examples, all "
        "of which are measured on. Take a part of it, such as "
        f"`dataset.take(10)`. Received: a {kind}, {received}"
    )
