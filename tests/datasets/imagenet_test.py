"""Reads a part of the real data where it is at hand."""

import json
import os
import pathlib
import subprocess
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


_INFO = {
    "name": "imagenet_resized",
    "configName": "8x8",
    "version": "0.1.0",
    "fileFormat": "tfrecord",
    "splits": [
        {
            "name": "train",
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "numBytes": "1000",
            "shardLengths": ["4", "3"],
        }
    ],
}
_LABELS = [5, 2, 5, 999, 0, 2, 5]


def _write_data(folder):
    """A folder of `tensorflow_datasets` with seven images; returns them."""
    import tensorflow as tf

    folder = folder / "imagenet_resized" / "8x8" / "0.1.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps(_INFO))
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), "uint8")
    for file, numbers in enumerate((range(4), range(4, 7))):
        name = f"imagenet_resized-train.tfrecord-{file:05d}-of-00002"
        with tf.io.TFRecordWriter(str(folder / name)) as writer:
            for i in numbers:
                example = tf.train.Example()
                feature = example.features.feature
                png = tf.io.encode_png(images[i]).numpy()
                feature["image"].bytes_list.value.append(png)
                feature["label"].int64_list.value.append(_LABELS[i])
                writer.write(example.SerializeToString())
    return images


# A bit that is wrong the second time is right again, from the data.
_LOAD = """
import sys
import numpy as np
from keras_plasticity import datasets
first, labels = map(np.array, datasets.load_imagenet(resolution=8))
with open(sys.argv[1], "r+b") as file:
    file.write(bytes([first[0, 0, 0, 0] ^ 1]))
second, _ = datasets.load_imagenet(resolution=8)
np.savez("loaded.npz", first=first, second=second, labels=labels)
"""


@pytest.mark.long
def test_no_folder_is_named(tmp_path):
    """All that `load_imagenet()` does, on data in the default folder."""
    tensorflow_datasets()
    data = tmp_path / "data"
    images = _write_data(data)
    path = data / "keras_plasticity/imagenet_resized/8x8/0.1.0/images.bin"
    environment = os.environ | {
        "HOME": str(tmp_path / "home"),
        "USERPROFILE": str(tmp_path / "home"),
        "TFDS_DATA_DIR": str(data),
        "XDG_CACHE_HOME": str(tmp_path / "own"),
        "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
    }
    process = subprocess.run(
        [sys.executable, "-c", _LOAD, str(path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr
    expected = images[np.argsort(_LABELS, kind="stable")]
    with np.load(tmp_path / "loaded.npz", allow_pickle=False) as loaded:
        np.testing.assert_array_equal(loaded["first"], expected)
        np.testing.assert_array_equal(loaded["second"], expected)
        np.testing.assert_array_equal(loaded["labels"], np.sort(_LABELS))
    assert "Damaged, and read again: 1." in " ".join(process.stdout.split())
    assert list(tmp_path.rglob("images.bin")) == [path]


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
