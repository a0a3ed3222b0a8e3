"""What every stream of the library promises."""

import numpy as np
import pytest

from keras_plasticity import streams

_IMAGES = np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype="uint8")
_LABELS = np.arange(30) % 3

STREAMS = {
    "slowly_changing_regression": lambda seed: streams.SlowlyChangingRegression(
        num_tasks=5, examples_per_task=20, seed=seed
    ),
    "flip_one": lambda seed: streams.SlowlyChangingRegression(
        num_tasks=5, examples_per_task=20, seed=seed, flip_one=True
    ),
    "online_permuted_images": lambda seed: streams.OnlinePermutedImages(
        _IMAGES, _LABELS, num_tasks=5, seed=seed
    ),
    "label_permuted_images": lambda seed: streams.LabelPermutedImages(
        _IMAGES, _LABELS, num_tasks=5, seed=seed
    ),
    "binary_class_pairs": lambda seed: streams.BinaryClassPairs(
        _IMAGES,
        np.arange(30) % 10,
        num_tasks=5,
        train_images_per_class=2,
        test_images_per_class=1,
        seed=seed,
    ),
    "new_pairs_each_pass": lambda seed: streams.BinaryClassPairs(
        _IMAGES,
        np.arange(30) % 5,
        num_tasks=5,
        train_images_per_class=4,
        test_images_per_class=2,
        seed=seed,
        reshuffle_each_pass=True,
    ),
}


@pytest.fixture(params=STREAMS.values(), ids=STREAMS.keys())
def build(request):
    return request.param


def test_is_a_stream(build):
    assert isinstance(build(0), streams.Stream)


def test_has_a_length(build):
    assert len(build(0)) == 5


def test_tasks_have_one_shape_and_dtype(build):
    stream = build(0)
    kinds = set()
    for index in range(len(stream)):
        x, y = stream.task(index)
        assert len(x) == len(y) > 0
        assert np.isfinite(x).all() and np.isfinite(y).all()
        kinds.add((x.shape, str(x.dtype), y.shape, str(y.dtype)))
    assert len(kinds) == 1


def test_any_task_is_reached_without_those_before_it(build):
    in_order = [build(0).task(i) for i in range(5)]
    stream = build(0)
    for index in (4, 1, 1, 3):
        for array, expected in zip(stream.task(index), in_order[index]):
            np.testing.assert_array_equal(array, expected)


def test_tasks_differ_and_seeds_differ(build):
    x = [build(seed).task(index)[0] for seed in (0, 1) for index in (0, 1)]
    for i in range(4):
        for j in range(i):
            assert (x[i] != x[j]).any()


@pytest.mark.parametrize("index", [-1, 5, 1.5])
def test_a_task_that_is_not_there(build, index):
    with pytest.raises(IndexError, match=rf"Received: index={index}"):
        build(0).task(index)


def test_orders_are_permutations_of_a_tasks_examples(build):
    stream = build(0)
    if not hasattr(stream, "order"):
        return
    for index in range(len(stream)):
        for epoch in range(2):
            order = stream.order(index, epoch)
            assert sorted(order) == list(range(len(stream.task(index)[0])))


def test_test_examples_are_shaped_as_those_of_training(build):
    stream = build(0)
    if not hasattr(stream, "test"):
        return
    for index in range(len(stream)):
        for train, test in zip(stream.task(index), stream.test(index)):
            assert train.shape[1:] == test.shape[1:]
            assert train.dtype == test.dtype
