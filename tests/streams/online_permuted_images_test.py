import numpy as np
import pytest

from keras_plasticity import streams


def make_images(num_images=6, shape=(2, 3, 1)):
    """Images with a different number in each pixel, and their indices."""
    size = num_images * int(np.prod(shape))
    images = np.arange(size).reshape((num_images, *shape)).astype("uint8")
    return images, np.arange(num_images)


def test_a_task_permutes_pixels_and_examples():
    images, labels = make_images()
    x, y = streams.OnlinePermutedImages(images, labels, num_tasks=2).task(0)
    assert x.shape == (6, 6)
    assert x.dtype == np.float32
    assert y.shape == (6,)
    assert y.dtype == np.int32
    assert sorted(y) == list(range(6))
    pixels = np.rint(x * 255).astype(int)
    # The first image's pixels are 0, 1, ..., so they spell the permutation.
    permutation = pixels[list(y).index(0)]
    assert sorted(permutation) == list(range(6))
    assert list(permutation) != list(range(6))
    np.testing.assert_array_equal(
        pixels, images.reshape(6, 6)[y][:, permutation]
    )


def test_tasks_differ_and_depend_on_seed_and_index_alone():
    images, labels = make_images(20, (30,))
    stream = streams.OnlinePermutedImages(images, labels, num_tasks=5, seed=3)
    again = streams.OnlinePermutedImages(images, labels, num_tasks=9, seed=3)
    other = streams.OnlinePermutedImages(images, labels, num_tasks=5, seed=4)
    for index in (4, 0, 4):
        x, y = stream.task(index)
        np.testing.assert_array_equal(x, again.task(index)[0])
        np.testing.assert_array_equal(y, again.task(index)[1])
        assert (x != other.task(index)[0]).any()
        assert (y != other.task(index)[1]).any()
    assert (stream.task(0)[0] != stream.task(1)[0]).any()
    assert (stream.task(0)[1] != stream.task(1)[1]).any()


def test_the_random_numbers_are_those_of_the_documented_seeds():
    images, labels = make_images(20, (30,))
    stream = streams.OnlinePermutedImages(images, labels, num_tasks=3, seed=7)
    for index in range(3):
        seeds = [[7, index], 7] if index == 0 else [[7, index]]
        for seed in seeds:
            rng = np.random.default_rng(seed)
            pixels, order = rng.permutation(30), rng.permutation(20)
            x, y = stream.task(index)
            np.testing.assert_array_equal(y, order)
            expected = images[order][:, pixels].astype("float32") / 255.0
            np.testing.assert_array_equal(x, expected)
    # What the documentation offers to other parts of a program.
    free = np.random.default_rng([7, 0, 1]).permutation(30)
    assert not np.array_equal(free, np.random.default_rng(7).permutation(30))


def test_uint8_is_scaled_to_one_and_floats_are_kept():
    images = np.array([[0, 51, 255]], "uint8")
    x, _ = streams.OnlinePermutedImages(images, [0]).task(0)
    np.testing.assert_allclose(sorted(x[0]), [0.0, 0.2, 1.0], rtol=1e-7)
    images = np.array([[-1.0, 0.5, 300.0]])
    x, _ = streams.OnlinePermutedImages(images, [0]).task(0)
    assert x.dtype == np.float32
    assert sorted(x[0]) == [-1.0, 0.5, 300.0]


def test_fewer_examples_are_the_first_of_the_same_order():
    images, labels = make_images()
    whole = streams.OnlinePermutedImages(images, labels).task(7)
    part = streams.OnlinePermutedImages(
        images, labels, examples_per_task=4
    ).task(7)
    np.testing.assert_array_equal(part[0], whole[0][:4])
    np.testing.assert_array_equal(part[1], whole[1][:4])


def test_more_examples_than_images_cycle_through_the_same_order():
    images, labels = make_images()
    whole = streams.OnlinePermutedImages(images, labels).task(7)
    x, y = streams.OnlinePermutedImages(
        images, labels, examples_per_task=15
    ).task(7)
    assert x.shape == (15, 6)
    for i in range(15):
        np.testing.assert_array_equal(x[i], whole[0][i % 6])
        assert y[i] == whole[1][i % 6]


def test_length_and_number_of_pixels():
    stream = streams.OnlinePermutedImages(*make_images(), num_tasks=3)
    assert len(stream) == 3
    assert stream.num_pixels == 6
    assert len(streams.OnlinePermutedImages(*make_images())) == 800


@pytest.mark.parametrize("index", [-1, 3, 1.0, True])
def test_there_is_no_such_task(index):
    stream = streams.OnlinePermutedImages(*make_images(), num_tasks=3)
    with pytest.raises(IndexError, match=rf"\[0, 3\).*index={index}"):
        stream.task(index)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"labels": np.arange(5)}, "one label for each image.*6 images"),
        ({"labels": np.zeros((6, 1), int)}, r"labels.shape=\(6, 1\)"),
        ({"labels": np.zeros(6)}, "integers.*labels.dtype=float64"),
        ({"images": np.zeros((0, 4), "uint8")}, r"non-empty.*\(0, 4\)"),
        ({"images": np.zeros(6, "uint8")}, r"non-empty.*\(6,\)"),
        ({"images": np.zeros((6, 4), "int32")}, "images.dtype=int32"),
        ({"images": np.full((6, 4), np.nan)}, "24 NaN"),
        ({"num_tasks": 0}, "num_tasks=0"),
        ({"examples_per_task": 0}, "examples_per_task=0"),
        ({"examples_per_task": 2.5}, "examples_per_task=2.5"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": None}, "seed=None"),
    ],
)
def test_bad_arguments(arguments, message):
    images, labels = make_images()
    arguments = {"images": images, "labels": labels, **arguments}
    with pytest.raises(ValueError, match=message):
        streams.OnlinePermutedImages(**arguments)
