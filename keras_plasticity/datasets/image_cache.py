"""Labelled images on disk, sorted by class, read as a memory map.

A cache is a folder with four files:

- `images.npy`: the images, sorted by class, those of one class in the order of
    the data.
- `labels.npy`: the labels in the order of the data, which determine the row of
    each image.
- `record.json`: the source of the cache, a checksum of the labels, one for each
    block of images written so far (a block is a range in the order of the
    data), and when all are written, size and time of `images.npy`.
- `lock`: empty. The process that builds or repairs the cache holds its lock.

The record is written after the data that it describes, and atomically. If the
process dies, the next one keeps the blocks whose checksums agree and writes the
others.
"""

import contextlib
import json
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
_FORMAT = 1
_BLOCK_BYTES = 128 * 2**20
_FILES = _RECORD, _LABELS, _IMAGES = "record.json", "labels.npy", "images.npy"


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


def load(folder: str | os.PathLike, source: Source):
    """Opens a cache; builds or repairs it first if needed.

    Args:
        folder: String, the folder of the cache.
        source: `Source`.

    Returns:
        Tuple `(images, labels)`: a read-only memory map, uint8 of shape
        `(num_images, *image_shape)`, sorted by class, and the labels, int32
        of shape `(num_images,)`.

    Raises:
        OSError: If the folder cannot be written, or the disk is full.
    """
    folder = pathlib.Path(folder)
    loaded = _load_finished(folder, source)
    if loaded is None:
        console = rich.console.Console()
        with _only_process(folder, source, console):
            # Another process may have finished it meanwhile.
            loaded = _load_finished(folder, source)
            if loaded is None:
                loaded = _finish(folder, source, console)
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


def _load_finished(folder, source):
    """What `load` returns, or `None` if the cache is not complete."""
    record = _read_record(folder, source)
    if record is None or record["finished"] is None:
        return None
    if _size_and_time(folder / _IMAGES) != record["finished"]:
        return None
    labels = _read_labels(folder, record)
    if labels is None:
        return None
    return np.load(folder / _IMAGES, mmap_mode="r"), np.sort(labels)


def _finish(folder, source, console):
    """Builds or repairs a cache, and returns what `load` returns."""
    # Imported here: `utils` needs TensorBoard.
    from keras_plasticity.utils import ProgressBar

    where = f"The cache of {source.title} in {folder}"
    record, labels = _read_record(folder, source), None
    if record is not None:
        labels = _read_labels(folder, record)
    images = _open_images(folder, source)
    progress = ProgressBar(
        rich.progress.MofNCompleteColumn(),
        console=console,
        # A block takes seconds: a short period would see only one.
        speed_estimate_period=600,
    )
    with progress:
        if labels is None or images is None:
            if any((folder / name).exists() for name in _FILES):
                console.print(
                    f"{where} is incomplete, damaged, or of another version "
                    "of the data or of this library. It is rebuilt.",
                    highlight=False,
                )
            record, labels = _start(folder, source, progress)
            images = _open_images(folder, source)
        _write_blocks(folder, source, record, labels, images, progress, where)
    images.flush()
    del images  # Closes the file, so that its time no longer changes.
    record["finished"] = _size_and_time(folder / _IMAGES)
    _write_record(folder, record)
    return np.load(folder / _IMAGES, mmap_mode="r"), np.sort(labels)


def _start(folder, source, progress):
    """Starts a cache: writes the labels, and reserves space for the images."""
    # Removed, not overwritten: a process that has them open keeps them.
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)
    bar = progress.add_task(f"{source.title}, labels", total=source.num_images)
    parts = []
    for part in source.labels():
        parts.append(part.astype("int32"))
        progress.advance(bar, len(part))
    labels = np.concatenate(parts)
    with atomic_write(folder / _LABELS) as temporary:
        with open(temporary, "wb") as file:
            np.save(file, labels, allow_pickle=False)
    with atomic_write(folder / _IMAGES) as temporary:
        _reserve_space(temporary, source)
    record = {
        "format": _FORMAT,
        "source": source.fingerprint,
        "labels": zlib.crc32(labels),
        "blocks": [None] * len(_blocks(source)),
        "finished": None,
    }
    _write_record(folder, record)
    return record, labels


def _write_blocks(folder, source, record, labels, images, progress, where):
    """Writes the missing blocks of images, and records each."""
    row_of_image = np.empty(len(labels), "int64")
    row_of_image[np.argsort(labels, kind="stable")] = np.arange(len(labels))
    bar = progress.add_task(f"{source.title}, images", total=len(labels))
    checksums = record["blocks"]
    done = sum(checksum is not None for checksum in checksums)
    if done:
        progress.console.print(
            f"{where} has {done} of {len(checksums)} blocks; they are checked.",
            highlight=False,
        )
    for number, (start, stop) in enumerate(_blocks(source)):
        # In ascending order, so that a block is written in one sweep.
        order = np.argsort(row_of_image[start:stop])
        rows = row_of_image[start:stop][order]
        if checksums[number] is not None:
            if zlib.crc32(images[rows]) == checksums[number]:
                progress.advance(bar, stop - start)
                continue
            progress.console.print(
                f"{where} is damaged: images {start} to {stop} are read again.",
                highlight=False,
            )
        block = np.empty((stop - start, *source.image_shape), "uint8")
        filled = 0
        for part in source.images(start, stop):
            block[filled : filled + len(part)] = part
            filled += len(part)
            progress.advance(bar, len(part))
        if filled != len(block):
            raise OSError(
                f"{source.title} gave {filled} of the images {start} to "
                f"{stop}. Its files may be damaged."
            )
        block = block[order]
        images[rows] = block
        checksums[number] = zlib.crc32(block)
        _write_record(folder, record)


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
            and len(record["blocks"]) == len(_blocks(source))
            and {"labels", "finished"} <= record.keys()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return record if fits else None


def _read_labels(folder, record):
    """The labels in the order of the data, or `None` if they are damaged."""
    try:
        labels = np.load(folder / _LABELS)
    except (OSError, ValueError, EOFError):
        return None
    return labels if zlib.crc32(labels) == record["labels"] else None


def _open_images(folder, source):
    """The images, writable; `None` if the file has another size."""
    shape = (source.num_images, *source.image_shape)
    try:
        # Read-only first: opening a short file to write would extend it.
        images = np.load(folder / _IMAGES, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    if images.shape != shape or images.dtype != "uint8":
        return None
    return np.load(folder / _IMAGES, mmap_mode="r+")


def _reserve_space(path, source):
    shape = (source.num_images, *source.image_shape)
    np.lib.format.open_memmap(path, "w+", "uint8", shape).flush()
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


def _size_and_time(path):
    """Size and modification time of a file; `None` if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


@contextlib.contextmanager
def _only_process(folder, source, console):
    """Context that holds the cache's lock; the system frees it on death."""
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
                    f"{folder}. Waiting for it.",
                    highlight=False,
                )
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
