import os
import pathlib

import numpy as np

from keras_plasticity import validation
from keras_plasticity.datasets import image_cache
from keras_plasticity.datasets import prepared_data

_RESOLUTIONS = (8, 16, 32, 64)
_BATCH_SIZE = 1000


def load_imagenet(
    data_dir: str | None = None,
    cache_dir: str | None = None,
    resolution: int = 32,
) -> tuple[image_cache.CachedImages, np.ndarray]:
    """Loads the training images of downsampled ImageNet, sorted by class.

    They are those of `imagenet_resized` of `tensorflow_datasets`: 1.28
    million images of 1,000 classes. Its validation images are not used, as in
    the paper, which takes 700 training images of each class.

    The first call decodes all images into a cache and shows how long that will
    take. If it is interrupted, the next call resumes. Later calls map the
    cache into memory and decode nothing. One that is incomplete, or from
    another version of the data, is completed or rebuilt. Several processes may
    call this at once: one builds the cache, the others wait.

    Each image has a checksum, and is checked when it is read for the first
    time. If it is damaged, the cache is repaired from the data.

    Args:
        data_dir: String, a folder of `tensorflow_datasets` that holds
            `imagenet_resized`, from which it is read without downloading.
            Defaults to `None`: the default folder of `tensorflow_datasets`, to
            which it is downloaded if it is not there.
        cache_dir: String, a folder for the decoded images, 3.9 GB at a
            resolution of 32. Defaults to `None`: the folder
            `keras_plasticity` within that of `tensorflow_datasets`, or
            `~/.cache/keras_plasticity` (within `XDG_CACHE_HOME` if that is
            set). The first of them that already holds all images is used, or
            else the first that can be written.
        resolution: Integer, the height and width of the images in pixels: 8,
            16, 32 or 64. Defaults to 32.

    Returns:
        Tuple `(images, labels)`: a read-only array, uint8 of shape
        `(images, resolution, resolution, 3)`, sorted by class, and the
        classes, int32 of shape `(images,)` with values in [0, 1000). Within a
        class images keep the order of the data. `images` is indexed like a
        NumPy array, and read as it is indexed; `np.asarray(images)` is one,
        for which all images are checked.

    Raises:
        ImportError: If `tensorflow_datasets` is missing, or TensorFlow, with
            which it reads.
        FileNotFoundError: If `data_dir` does not hold the data.
        ConnectionError: If the data has to be downloaded and cannot be.
        OSError: If the cache cannot be written. Later, when `images` is
            indexed: if an image is damaged that cannot be repaired.
        ValueError: If there are no images of this resolution.
    """
    resolution = validation.check_choice("resolution", resolution, _RESOLUTIONS)
    if cache_dir is not None:
        cache_dir = validation.check_path("cache_dir", cache_dir)
    size = f"{resolution}x{resolution}"
    # The data of 64 x 64 pixels is downloaded in two parts.
    part = "_part1" if resolution == 64 else ""
    builder = prepared_data.prepared_builder(
        title=f"ImageNet at {size}",
        name=f"imagenet_resized/{size}",
        url="http://www.image-net.org/data/downsample/",
        probe=f"Imagenet{resolution}_train{part}_npz.zip",
        data_dir=data_dir,
    )
    source = _Source(builder, f"ImageNet at {size}")
    if cache_dir is None:
        cache_dir = _default_cache_dir(builder, source)
    return image_cache.load(_folder(cache_dir, builder), source)


def _folder(cache_dir, builder):
    # The name has a version, so that versions do not replace one another.
    return pathlib.Path(cache_dir) / builder.info.full_name


def _default_cache_dir(builder, source):
    # `data_dir` is <folder>/<name>/<resolution>/<version>.
    folder = pathlib.Path(builder.data_dir).parents[2]
    beside = folder / "keras_plasticity"
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    own = pathlib.Path(home) / "keras_plasticity"
    # A finished cache is only read, so its folder need not be writable.
    for cache_dir in (beside, own):
        if image_cache.is_finished(_folder(cache_dir, builder), source):
            return cache_dir
    return beside if os.access(folder, os.W_OK) else own


class _Source:
    """The training images of `imagenet_resized`, an `image_cache.Source`."""

    def __init__(self, builder, title):
        split = builder.info.splits["train"]
        self._builder = builder
        self.title = title
        self.num_images = split.num_examples
        self.image_shape = builder.info.features["image"].shape
        self.fingerprint = {
            "name": builder.info.full_name,
            "num_images": split.num_examples,
            "num_bytes": split.num_bytes,
            "images_in_each_file": list(split.shard_lengths),
        }

    def labels(self):
        yield from self._read(0, self.num_images, "label")

    def images(self, start, stop):
        return self._read(start, stop, "image")

    def _read(self, start, stop, feature):
        tfds = prepared_data.import_tensorflow_datasets(self.title)
        dataset = self._builder.as_dataset(
            split=f"train[{start}:{stop}]",
            decoders=tfds.decode.PartialDecoding({feature: True}),
            # File by file, so that a range has the order of the whole.
            read_config=tfds.ReadConfig(
                interleave_cycle_length=1, try_autocache=False
            ),
        )
        for batch in dataset.batch(_BATCH_SIZE).as_numpy_iterator():
            yield batch[feature]
