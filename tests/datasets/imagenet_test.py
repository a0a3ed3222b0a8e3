"""Reads a part of the real data where it is at hand."""

import os
import sys

import numpy as np
import pytest

from keras_plasticity import datasets
from keras_plasticity.datasets import image_cache
from keras_plasticity.datasets import imagenet
from tests.data_sets import data_dir
from tests.data_sets import tensorflow_datasets


@pytest.fixture(scope="module")
def builder():
    tfds = tensorflow_datasets()
    return tfds.builder(
        "imagenet_resized/32x32", data_dir=data_dir("imagenet_resized/32x32")
    )


class _Part(imagenet._Source):
    """The images before `num_images`; all of them take ten seconds."""

    def __init__(self, builder, num_images):
        super().__init__(builder, "ImageNet")
        self.num_images = num_images
        self.fingerprint["num_images"] = num_images


def test_images_are_those_of_tensorflow_datasets(builder, tmp_path):
    source = _Part(builder, 3000)
    images, labels = image_cache.load(tmp_path, source)
    assert images.shape == (3000, 32, 32, 3)
    assert images.dtype == np.uint8
    assert (np.diff(labels) >= 0).all()
    examples = list(
        builder.as_dataset(
            split="train[:3000]", as_supervised=True
        ).as_numpy_iterator()
    )
    order = np.argsort([label for _, label in examples], kind="stable")
    for row in range(0, 3000, 7):
        image, label = examples[order[row]]
        assert labels[row] == label
        np.testing.assert_array_equal(images[row], image)


def test_any_range_has_the_order_of_the_whole(builder):
    source = _Part(builder, 3000)
    whole = np.concatenate(list(source.images(0, 3000)))
    # The second range lies in both of the subset's files.
    for start, stop in ((1, 2), (1500, 2700)):
        part = np.concatenate(list(source.images(start, stop)))
        np.testing.assert_array_equal(part, whole[start:stop])


def test_load_imagenet_uses_the_cache(builder, tmp_path, monkeypatch):
    """What it asks of the cache, without reading 100,000 images."""
    asked = []
    monkeypatch.setattr(
        image_cache,
        "load",
        lambda folder, source: asked.append((folder, source)),
    )
    datasets.load_imagenet(
        builder.data_dir.rpartition("imagenet_resized")[0], tmp_path
    )
    [(folder, source)] = asked
    assert folder == tmp_path / "imagenet_resized" / "32x32" / "0.1.0"
    assert source.num_images == builder.info.splits["train"].num_examples
    assert source.image_shape == (32, 32, 3)
    assert source.fingerprint["name"] == "imagenet_resized/32x32/0.1.0"


class _Info:
    full_name = "imagenet_resized/32x32/0.1.0"


class _Builder:
    info = _Info()

    def __init__(self, folder):
        self.data_dir = str(folder / self.info.full_name)


class _OneImage:
    title = "One image"
    fingerprint = {}
    num_images = 1
    image_shape = (2, 2, 3)

    def labels(self):
        yield np.zeros(1, int)

    def images(self, start, stop):
        yield np.zeros((1, 2, 2, 3), "uint8")


def test_the_default_cache_is_beside_the_data(tmp_path, monkeypatch):
    builder = _Builder(tmp_path)
    folder = imagenet._default_cache_dir(builder, _OneImage())
    assert folder == tmp_path / "keras_plasticity"
    # Permissions do not bind an administrator: only say that they are none.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = imagenet._default_cache_dir(builder, _OneImage())
    assert folder == tmp_path / "cache" / "keras_plasticity"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = imagenet._default_cache_dir(builder, _OneImage())
    assert folder == tmp_path / "home" / ".cache" / "keras_plasticity"


@pytest.mark.parametrize("can_write", [True, False])
def test_a_finished_cache_is_used_wherever_it_is(
    tmp_path, monkeypatch, can_write
):
    monkeypatch.setattr(os, "access", lambda path, mode: can_write)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    builder = _Builder(tmp_path)
    beside = tmp_path / "keras_plasticity"
    own = tmp_path / "cache" / "keras_plasticity"
    # First there is one in the second place only, then in both.
    for made in (own, beside):
        image_cache.load(made / builder.info.full_name, _OneImage())
        assert imagenet._default_cache_dir(builder, _OneImage()) == made


def test_a_data_dir_without_the_data(tmp_path):
    tensorflow_datasets()
    with pytest.raises(
        FileNotFoundError, match="'imagenet_resized/32x32' in it.*data_dir="
    ):
        datasets.load_imagenet(str(tmp_path))


def test_no_network_and_no_data(monkeypatch, tmp_path):
    tfds = tensorflow_datasets()
    builder = tfds.builder("imagenet_resized/64x64", data_dir=tmp_path)
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: builder)
    asked = []

    def no_network(request, timeout):
        asked.append(request.full_url)
        raise OSError("no such host")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(ConnectionError, match="`data_dir`.*no such host"):
        datasets.load_imagenet(resolution=64)
    assert asked == [
        "http://www.image-net.org/data/downsample/"
        "Imagenet64_train_part1_npz.zip"
    ]


def test_a_download_that_is_refused(monkeypatch, tmp_path):
    tfds = tensorflow_datasets()
    builder = tfds.builder("imagenet_resized/32x32", data_dir=tmp_path)
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: builder)
    monkeypatch.setattr(
        "keras_plasticity.datasets.prepared_data._check_reachable",
        lambda url: None,
    )

    def refused():
        raise tfds.download.DownloadError("HTTP code: 403")

    monkeypatch.setattr(builder, "download_and_prepare", refused)
    with pytest.raises(ConnectionError, match="FOLDER becomes one by.*403"):
        datasets.load_imagenet()


def test_without_tensorflow_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        ImportError, match="ImageNet at 32x32 is read.*pip install tensorflow"
    ):
        datasets.load_imagenet()


@pytest.mark.parametrize("resolution", [0, 28, "32", None])
def test_bad_resolution(resolution):
    with pytest.raises(
        ValueError, match=rf"\(8, 16, 32, 64\). .*resolution={resolution}"
    ):
        datasets.load_imagenet(resolution=resolution)
