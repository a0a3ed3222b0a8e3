import numpy as np
import pytest

from keras_plasticity import streams


def make_images(num_images=12, shape=(2, 3), num_classes=4):
    """Images with a different number in each pixel, and their classes."""
    size = num_images * int(np.prod(shape))
    images = np.arange(size).reshape((num_images, *shape)).astype("uint8")
    return images, np.arange(num_images) % num_classes


def test_a_task_renames_the_classes_and_shuffles_the_examples():
    images, labels = make_images()
    stream = streams.LabelPermutedImages(images, labels, num_tasks=9, seed=1)
    x, y = stream.task(2)
    assert x.shape == (12, 2, 3) and x.dtype == np.float32
    assert y.shape == (12,) and y.dtype == np.int32
    shown = np.rint(x * 255).astype(int)[:, 0, 0] // 6
    assert sorted(shown) == list(range(12))
    assert list(shown) != list(range(12))
    np.testing.assert_array_equal(np.rint(x * 255), images[shown])
    # Each class has one new name, and no two have the same.
    names = {(labels[i], name) for i, name in zip(shown, y)}
    assert len(names) == 4
    assert {name for _, name in names} == {0, 1, 2, 3}
    assert any(label != name for label, name in names)


def test_tasks_differ_and_depend_on_seed_and_index_alone():
    images, labels = make_images(30, (3,), 10)
    stream = streams.LabelPermutedImages(images, labels, num_tasks=5, seed=3)
    again = streams.LabelPermutedImages(images, labels, num_tasks=9, seed=3)
    other = streams.LabelPermutedImages(images, labels, num_tasks=5, seed=4)
    for index in (4, 0, 4):
        x, y = stream.task(index)
        np.testing.assert_array_equal(x, again.task(index)[0])
        np.testing.assert_array_equal(y, again.task(index)[1])
        assert (x != other.task(index)[0]).any()
        assert (y != other.task(index)[1]).any()
    assert (stream.task(0)[0] != stream.task(1)[0]).any()
    assert (stream.task(0)[1] != stream.task(1)[1]).any()


def test_the_random_numbers_are_those_of_the_documented_seeds():
    images, labels = make_images(20, (3,), 5)
    stream = streams.LabelPermutedImages(images, labels, num_tasks=3, seed=7)
    for index in range(3):
        rng = np.random.default_rng([7, index])
        classes, order = rng.permutation(5), rng.permutation(20)
        x, y = stream.task(index)
        np.testing.assert_array_equal(y, classes[labels[order]])
        expected = images[order].astype("float32") / 255.0
        np.testing.assert_array_equal(x, expected)


def test_classes_are_those_that_are_there():
    images, _ = make_images(6)
    labels = np.array([-2, 7, 7, 40, -2, 40])
    stream = streams.LabelPermutedImages(images, labels)
    assert stream.num_classes == 3
    for index in range(5):
        assert {*stream.task(index)[1].tolist()} == {-2, 7, 40}


def test_all_orders_of_the_classes_are_drawn():
    images, labels = make_images(3, num_classes=3)
    stream = streams.LabelPermutedImages(images, labels, num_tasks=120)
    found = []
    for index in range(120):
        x, y = stream.task(index)
        found.append(tuple(y[np.argsort(x[:, 0, 0])]))
    assert len(set(found)) == 6
    assert min(map(found.count, found)) >= 8


def test_images_keep_their_values():
    x, _ = streams.LabelPermutedImages(np.array([[0, 51]], "uint8"), [0]).task(
        0
    )
    np.testing.assert_allclose(x, [[0.0, 0.2]], rtol=1e-7)
    x, _ = streams.LabelPermutedImages(np.array([[-1.0, 300.0]]), [0]).task(0)
    assert x.dtype == np.float32 and x.tolist() == [[-1.0, 300.0]]


@pytest.mark.parametrize("examples", [5, 12, 30])
def test_other_numbers_of_examples_cut_or_repeat_the_order(examples):
    images, labels = make_images()
    whole = streams.LabelPermutedImages(images, labels).task(7)
    x, y = streams.LabelPermutedImages(
        images, labels, examples_per_task=examples
    ).task(7)
    for i in range(examples):
        np.testing.assert_array_equal(x[i], whole[0][i % 12])
        assert y[i] == whole[1][i % 12]


def test_length():
    stream = streams.LabelPermutedImages(*make_images(), num_tasks=3)
    assert len(stream) == 3
    with pytest.raises(IndexError, match=r"\[0, 3\).*index=3"):
        stream.task(3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"labels": np.arange(5)}, "one label for each image.*12 images"),
        ({"labels": np.zeros(12)}, "integers.*labels.dtype=float64"),
        ({"images": np.zeros((0, 4), "uint8")}, r"non-empty.*\(0, 4\)"),
        ({"images": np.full((12, 4), np.nan)}, "48 NaN"),
        ({"num_tasks": 0}, "num_tasks=0"),
        ({"examples_per_task": 2.5}, "examples_per_task=2.5"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_arguments(arguments, message):
    images, labels = make_images()
    arguments = {"images": images, "labels": labels, **arguments}
    with pytest.raises(ValueError, match=message):
        streams.LabelPermutedImages(**arguments)
