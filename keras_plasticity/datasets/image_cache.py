"""Labelled images on disk, sorted by class, each checked when first read.

A cache is a folder of five files:

- `images.bin`: the images, sorted by class, those of one class in the order of
    the data.
- `checksums.bin`: one for each image of that file, 0 until it is written.
- `labels.bin`: the labels in the order of the data, which determine the row of
    each image.
- `record.json`: the source of the cache, a checksum of the labels, and whether
    all images have been written.
- `lock`: empty. The process that builds or repairs the cache holds its lock.

To build a cache, to go on where a process died and to repair what is damaged
are one thing: images that do not agree with their checksums are read from the
source. So it does not matter what was on the disk first when a process died.
"""

import contextlib
import json
import math
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any
from typing import Protocol

import numpy as np
import rich.console
import rich.progress

from keras_plasticity.files import atomic_write

try:
    import fcntl
except ImportError:
    fcntl = None  # Windows, where the cache is not locked.

# To be increased when older caches can no longer be used.
_FORMAT = 2
_BLOCK_BYTES = 128 * 2**20
_RECORD, _LABELS, _IMAGES, _CHECKSUMS = _FILES = (
    "record.json",
    "labels.bin",
    "images.bin",
    "checksums.bin",
)
_FILES_OF_FORMAT_1 = ("labels.npy", "images.npy")


class Source(Protocol):
    """Where the images of a cache come from.

    Attributes:
        title: String, the name of the images on the terminal.
        fingerprint: Dict that JSON can hold, which identifies the data and its
            version.
        num_images: Integer.
        image_shape: Tuple, the shape of an image of unsigned 8-bit integers.
    """

    title: str
    fingerprint: dict[str, Any]
    num_images: int
    image_shape: tuple[int, ...]

    def labels(self) -> Iterator[np.ndarray]:
        """All labels in the order of the data, as arrays of integers."""

    def images(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """The images `start` to `stop` of that order, as uint8 arrays."""


class CachedImages:
    """The images of a cache: a read-only array of unsigned 8-bit integers.

    It has the indices of a NumPy array, and gives NumPy arrays. Each image is
    checked when it is read for the first time. If one is damaged, the cache is
    repaired from the data.

    `np.asarray(images)` maps all of them into memory, and checks them all.

    Args:
        folder: `pathlib.Path`, the folder of the cache.
        source: `Source`.
        maps: The images and their checksums, as `_map_files` gives them.

    Attributes:
        shape: Tuple, the number of images and the shape of one.
        dtype: The NumPy dtype uint8.
        ndim: Integer, the length of `shape`.
    """

    def __init__(self, folder, source, maps):
        self._folder = folder
        self._source = source
        self._use(maps)
        self.shape = self._images.shape
        self.dtype = self._images.dtype
        self.ndim = self._images.ndim
        self._rows = np.arange(len(self))

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        found = self._images[index]  # First: it may be no index at all.
        if self._is_repaired(self._unchecked(index)):
            found = self._images[index]
        return found

    def __array__(self, dtype=None, copy=None):
        return np.array(self[:], dtype=dtype, copy=copy)

    def __reduce__(self):
        # Not the pixels: another process maps the files as well.
        return _load_images, (self._folder, self._source)

    def _unchecked(self, index):
        """The rows that an index reads, perhaps more, of those not checked."""
        first = (*index, ...)[0] if isinstance(index, tuple) else index
        try:
            is_checked = self._is_checked[first]
        except IndexError:  # A mask of several axes.
            first = ...
            is_checked = self._is_checked
        if np.all(is_checked):
            return self._rows[:0]
        return np.unique(self._rows[first])

    def _is_repaired(self, rows):
        """Checks some rows. Returns whether they had to be repaired."""
        if not len(self._damaged(rows)):
            return False
        path = self._folder / _IMAGES
        try:
            with _only_process(self._folder, self._source) as console:
                # Another process may have repaired it meanwhile.
                self._use(_map_files(self._folder, self._source))
                if len(self._damaged(rows)):
                    _finish(self._folder, self._source, console, is_quiet=True)
                    self._use(_map_files(self._folder, self._source))
        except Exception as error:  # Whatever reading the data may raise.
            raise OSError(
                f"{path} is damaged, and could not be repaired from the data "
                f"of {self._source.title}. Make sure that they are there and "
                "that the folder can be written, or delete the folder and "
                f"load the images again. Received: {error}"
            ) from error
        if len(self._damaged(rows)):
            raise OSError(
                f"{path} is damaged again just after it was repaired. The disk "
                "may be failing: choose a `cache_dir` on another one."
            )
        return True

    def _damaged(self, rows):
        """Those of some rows that are damaged; the others are checked now."""
        rows = rows[~self._is_checked[rows]]
        is_right = _agree(self._images, self._checksums, rows)
        self._is_checked[rows[is_right]] = True
        return rows[~is_right]

    def _use(self, maps):
        if maps is not None:
            # What is indexed is to be a plain array.
            self._images, self._checksums = (
                each.view(np.ndarray) for each in maps
            )
            self._is_checked = np.zeros(len(self._images), bool)


def load(folder: str | os.PathLike, source: Source):
    """Opens a cache; builds or repairs it first if needed.

    Args:
        folder: String, the folder of the cache.
        source: `Source`.

    Returns:
        Tuple `(images, labels)`: `CachedImages` of shape
        `(num_images, *image_shape)`, sorted by class, and the labels, int32
        of shape `(num_images,)`.

    Raises:
        OSError: If the folder cannot be written, or the disk is full.
    """
    folder = pathlib.Path(folder)
    loaded = _load_finished(folder, source)
    if loaded is None:
        with _only_process(folder, source) as console:
            # Another process may have finished it meanwhile.
            loaded = _load_finished(folder, source)
            if loaded is None:
                _finish(folder, source, console)
                loaded = _load_finished(folder, source)
    return loaded


def is_finished(folder: str | os.PathLike, source: Source) -> bool:
    """Whether `load` would open a cache without writing to it.

    Args:
        folder: String, the folder of the cache; it need not exist.
        source: `Source`.

    Returns:
        Boolean; `False` for a cache that cannot be read.
    """
    try:
        return _load_finished(pathlib.Path(folder), source) is not None
    except OSError:
        return False


def _load_images(folder, source):
    return load(folder, source)[0]


def _load_finished(folder, source):
    """What `load` returns, or `None` if the cache is not complete."""
    record = _read_record(folder, source)
    if record is None or not record["finished"]:
        return None
    labels = _read_labels(folder, record)
    maps = _map_files(folder, source)
    if labels is None or maps is None:
        return None
    return CachedImages(folder, source, maps), np.sort(labels)


def _finish(folder, source, console, is_quiet=False):
    """Builds a cache, or repairs it: all images are checked."""
    # Imported here: `utils` needs TensorBoard.
    from keras_plasticity.utils import ProgressBar

    where = f"The cache of {source.title} in {folder}"
    record = _read_record(folder, source)
    labels = None if record is None else _read_labels(folder, record)
    maps = _map_files(folder, source, "r+")
    progress = ProgressBar(
        rich.progress.MofNCompleteColumn(),
        console=console,
        # A block takes seconds: a short period would see only one.
        speed_estimate_period=600,
    )
    with contextlib.nullcontext() if is_quiet else progress:
        if labels is None or maps is None:
            if any((folder / name).exists() for name in _FILES):
                console.print(
                    f"{where} is incomplete, damaged, or of another version "
                    "of the data or of this library. It is rebuilt."
                )
            record, labels = _start(folder, source, progress)
            maps = _map_files(folder, source, "r+")
        _write_images(source, labels, *maps, progress, where)
    for each in maps:
        each.flush()
    _write_record(folder, record | {"finished": True})


def _start(folder, source, progress):
    """Starts a cache: writes the labels, and reserves space for the images."""
    # Removed, not overwritten: a process that has them open keeps them.
    for name in (*_FILES, *_FILES_OF_FORMAT_1):
        (folder / name).unlink(missing_ok=True)
    bar = progress.add_task(f"{source.title}, labels", total=source.num_images)
    parts = []
    for part in source.labels():
        parts.append(part.astype("int32"))
        progress.advance(bar, len(part))
    labels = np.concatenate(parts)
    with atomic_write(folder / _LABELS) as temporary:
        labels.tofile(temporary)
    for name, (dtype, shape) in _arrays(source).items():
        with atomic_write(folder / name) as temporary:
            _reserve_space(temporary, dtype, shape, source)
    record = {
        "format": _FORMAT,
        "source": source.fingerprint,
        "labels": zlib.crc32(labels),
        "finished": False,
    }
    _write_record(folder, record)
    return record, labels


def _write_images(source, labels, images, checksums, progress, where):
    """Checks the images that are written, and writes all others."""
    is_written = checksums != 0
    is_missing = ~is_written
    if is_written.any():
        written = np.flatnonzero(is_written)
        bar = progress.add_task(f"{source.title}, check", total=len(written))
        for rows in np.array_split(written, 1 + len(written) // 10_000):
            is_missing[rows] = ~_agree(images, checksums, rows)
            progress.advance(bar, len(rows))
        damaged = np.count_nonzero(is_missing & is_written)
        progress.console.print(
            f"{where} has {len(written)} of {len(labels)} images. "
            f"Damaged, and read again: {damaged}."
        )
    row_of_image = np.empty(len(labels), "int64")
    row_of_image[np.argsort(labels, kind="stable")] = np.arange(len(labels))
    is_missing = is_missing[row_of_image]  # Now in the order of the data.
    bar = progress.add_task(
        f"{source.title}, images", total=np.count_nonzero(is_missing)
    )
    for start, stop in _blocks(source):
        missing = start + np.flatnonzero(is_missing[start:stop])
        if not len(missing):
            continue
        start, stop = int(missing[0]), int(missing[-1]) + 1
        block = np.empty((stop - start, *source.image_shape), "uint8")
        filled = 0
        for part in source.images(start, stop):
            block[filled : filled + len(part)] = part
            done = is_missing[start + filled :][: len(part)]
            progress.advance(bar, np.count_nonzero(done))
            filled += len(part)
        if filled != len(block):
            raise OSError(
                f"{source.title} gave {filled} of the images {start} to "
                f"{stop}. Its files may be damaged."
            )
        # In ascending order, so that a block is written in one sweep.
        missing = missing[np.argsort(row_of_image[missing])]
        rows = row_of_image[missing]
        images[rows] = block[missing - start]
        checksums[rows] = _checksums(images, rows)


def _checksums(images, rows):
    """A checksum of each of some rows. That of zeros is not zero."""
    sums = (zlib.crc32(images[row]) for row in rows)
    return np.fromiter(sums, "uint32", len(rows))


def _agree(images, checksums, rows):
    """Which of some rows agree with their checksums: an array of booleans."""
    return _checksums(images, rows) == checksums[rows]


def _blocks(source):
    size = int(np.prod(source.image_shape))
    length = max(1, _BLOCK_BYTES // size)
    return [
        (start, min(start + length, source.num_images))
        for start in range(0, source.num_images, length)
    ]


def _read_record(folder, source):
    """The record, or `None` if it is missing or of another source."""
    try:
        record = json.loads((folder / _RECORD).read_text())
        fits = (
            record["format"] == _FORMAT
            and record["source"] == source.fingerprint
            and {"labels", "finished"} <= record.keys()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return record if fits else None


def _read_labels(folder, record):
    """The labels in the order of the data, or `None` if they are damaged."""
    try:
        labels = np.fromfile(folder / _LABELS, "int32")
    except OSError:
        return None
    return labels if zlib.crc32(labels) == record["labels"] else None


def _map_files(folder, source, mode="r"):
    """Images and checksums as memory maps; `None` where a size is wrong."""
    maps = []
    for name, (dtype, shape) in _arrays(source).items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            return None
        if size != np.dtype(dtype).itemsize * math.prod(shape):
            return None
        maps.append(np.memmap(folder / name, dtype, mode, shape=shape))
    return maps


def _arrays(source):
    """What lies in each file of numbers alone: its dtype and shape."""
    shape = (source.num_images, *source.image_shape)
    return {_IMAGES: ("uint8", shape), _CHECKSUMS: ("uint32", shape[:1])}


def _reserve_space(path, dtype, shape, source):
    np.memmap(path, dtype, "w+", shape=shape).flush()
    size = path.stat().st_size
    try:
        # A full disk is an error now, not a crash in the middle.
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise OSError(
            error.errno,
            f"The cache of {source.title} needs {size / 1e9:.1f} GB of free "
            "disk. Free as much, or choose another `cache_dir`. Received: "
            f"{error.strerror}",
            str(path.parent),
        ) from error


def _write_record(folder, record):
    with atomic_write(folder / _RECORD) as temporary:
        temporary.write_text(json.dumps(record))


@contextlib.contextmanager
def _only_process(folder, source):
    """Context that holds the cache's lock; the system frees it on death.

    Yields:
        `rich.console.Console`, to tell what happens to the cache.
    """
    # Of a folder's name, nothing is markup.
    console = rich.console.Console(markup=False, emoji=False, highlight=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w")
    except OSError as error:
        raise OSError(
            error.errno,
            f"The cache of {source.title} must be in a folder that can be "
            "written. Choose another `cache_dir`. Received: "
            f"{error.strerror}",
            str(folder),
        ) from error
    with lock as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                console.print(
                    f"Another process makes the cache of {source.title} in "
                    f"{folder}. Waiting for it."
                )
                fcntl.flock(file, fcntl.LOCK_EX)
        yield console
