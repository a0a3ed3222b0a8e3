"""What streams promise, whatever their arguments."""

import copy

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from keras_plasticity import streams

_seeds = st.one_of(st.integers(0, 5), st.integers(0, 2**63))
_many = 10**6
_indices = st.lists(st.integers(0, _many - 1), min_size=1, max_size=4)


@st.composite
def _images(draw, fewest=1):
    """Images of which each has numbers of its own, and their classes."""
    num_classes = draw(st.integers(fewest, 7))
    per_class = draw(st.integers(2, 5))
    pixels = draw(st.sampled_from([(3,), (2, 2), (1, 2, 2)]))
    labels = np.arange(num_classes).repeat(per_class)
    labels = np.array(draw(st.permutations(labels.tolist())))
    images = np.arange(len(labels) * np.prod(pixels), dtype="float32")
    return images.reshape(-1, *pixels), labels, per_class


def _which(x):
    """The images that are shown, each told by the smallest of its numbers."""
    x = x.reshape(len(x), -1)
    return x.min(axis=1).astype(int) // x.shape[1]


@st.composite
def _regression(draw):
    num_bits = draw(st.integers(1, 8))
    return streams.SlowlyChangingRegression(
        num_tasks=_many,
        examples_per_task=draw(st.integers(1, 30)),
        flip_one=draw(st.booleans()),
        seed=draw(_seeds),
        num_bits=num_bits,
        num_slow_bits=draw(st.integers(0, num_bits)),
        num_target_units=draw(st.integers(1, 5)),
    )


@st.composite
def _permuted(draw):
    """A stream, and the labels of its images."""
    images, labels, _ = draw(_images())
    stream = streams.OnlinePermutedImages(
        images,
        labels,
        num_tasks=_many,
        examples_per_task=draw(st.none() | st.integers(1, 50)),
        seed=draw(_seeds),
    )
    return stream, labels


@st.composite
def _renamed(draw):
    """A stream, and the labels of its images."""
    images, labels, _ = draw(_images())
    stream = streams.LabelPermutedImages(
        images,
        labels,
        num_tasks=_many,
        examples_per_task=draw(st.none() | st.integers(1, 50)),
        seed=draw(_seeds),
    )
    return stream, labels


@st.composite
def _pairs(draw):
    """A stream, and the labels of its images."""
    images, labels, per_class = draw(_images(fewest=2))
    train = draw(st.integers(1, per_class - 1))
    stream = streams.BinaryClassPairs(
        images,
        labels,
        num_tasks=_many,
        train_images_per_class=train,
        test_images_per_class=draw(st.integers(1, per_class - train)),
        seed=draw(_seeds),
        reshuffle_each_pass=draw(st.booleans()),
    )
    return stream, labels


_streams = st.one_of(
    _regression(),
    st.one_of(_permuted(), _renamed(), _pairs()).map(lambda pair: pair[0]),
)


def _arrays(stream, index):
    """All arrays of a task."""
    arrays = [*stream.task(index)]
    if hasattr(stream, "test"):
        arrays += stream.test(index)
    if hasattr(stream, "order"):
        arrays += [stream.order(index, epoch) for epoch in (0, index)]
    return arrays


@given(_streams, _indices)
def test_a_task_depends_on_its_index_alone(stream, indices):
    fresh = [copy.deepcopy(stream) for _ in indices]
    for index, other in zip(indices, fresh):
        arrays = _arrays(stream, index)
        for array, expected in zip(arrays, _arrays(other, index), strict=True):
            np.testing.assert_array_equal(array, expected)
            # The caller's own: the next tasks do not change.
            array[:] = 0


@given(_permuted(), st.integers(0, _many - 1))
def test_each_image_is_shown_with_its_pixels_in_one_order(permuted, index):
    stream, labels = permuted
    x, y = stream.task(index)
    which = _which(x)
    once = which[: len(labels)]
    assert len(set(once.tolist())) == len(once)
    np.testing.assert_array_equal(which, np.resize(once, len(x)))
    np.testing.assert_array_equal(y, labels[which])
    places = x - which[:, None] * stream.num_pixels
    assert sorted(places[0]) == list(range(stream.num_pixels))
    assert (places == places[0]).all()


@given(_renamed(), st.integers(0, _many - 1))
def test_each_image_is_shown_with_a_new_name_of_its_class(renamed, index):
    stream, labels = renamed
    x, y = stream.task(index)
    which = _which(x)
    once = which[: len(labels)]
    assert len(set(once.tolist())) == len(once)
    np.testing.assert_array_equal(which, np.resize(once, len(x)))
    names = dict(zip(labels[which].tolist(), y.tolist()))
    np.testing.assert_array_equal(y, [names[each] for each in labels[which]])
    assert len(set(names.values())) == len(names)
    assert {*names.values()} <= {*labels.tolist()}


@given(_pairs(), st.integers(0, 10**5))
def test_a_task_has_two_classes_in_turn(pairs, index):
    stream, labels = pairs
    train, test = stream.train_images_per_class, stream.test_images_per_class
    shown = []
    for (x, y), number in (
        (stream.task(index), train),
        (stream.test(index), test),
    ):
        assert y.tolist() == [0, 1] * number
        shown.append(_which(x).reshape(number, 2).T)
    shown = np.concatenate(shown, axis=1)
    classes = labels[shown[:, 0]]
    assert classes[0] != classes[1]
    for each, images in zip(classes, shown):
        # In the order of the data, first those for training.
        expected = np.flatnonzero(labels == each)[: train + test]
        np.testing.assert_array_equal(images, expected)


@given(_pairs(), st.integers(0, 100))
def test_all_classes_are_met_equally_often(pairs, number):
    stream, labels = pairs
    # One pass, or two if the last class is paired with the first.
    length = stream.num_classes // 2
    if not stream.reshuffle_each_pass and stream.num_classes % 2:
        length = stream.num_classes
    met = []
    for index in range(number * length, (number + 1) * length):
        x, _ = stream.task(index)
        met += labels[_which(x[:2])].tolist()
    counts = np.bincount(met, minlength=stream.num_classes)
    if stream.reshuffle_each_pass and stream.num_classes % 2:
        assert sorted(counts)[0] == 0
        counts = np.delete(counts, np.argmin(counts))
    assert set(counts.tolist()) == {2 * length // len(counts)}
