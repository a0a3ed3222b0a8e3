"""What may happen to a cache, on a source of twenty tiny images."""

import concurrent.futures as futures
import os
import queue
import subprocess
import sys

import numpy as np
import pytest
import rich.console

from keras_plasticity.datasets import image_cache

_SHAPE = (2, 3, 1)
_LABELS = np.array([3, 0, 7, 0, 3, 3, 7, 0, 0, 3, 7, 7, 0, 3, 0, 7, 3, 3, 0, 7])
_IMAGES = np.arange(120, dtype="uint8").reshape(20, *_SHAPE)
# Blocks of three images, the last one of two.
_BLOCK_STARTS = list(range(0, 20, 3))


class Killed(BaseException):
    """In the place of a signal that ends the process."""


class Source:
    """Twenty images; it notes which are read, and may die at one of them."""

    title = "Toys"
    num_images = 20
    image_shape = _SHAPE

    def __init__(self, version=1, dies_at=None):
        self.fingerprint = {"name": "toys", "version": version}
        self.starts = []
        self.num_label_passes = 0
        self._version = version
        self._dies_at = dies_at

    def labels(self):
        self.num_label_passes += 1
        for start in range(0, 20, 8):
            if self._dies_at == "labels" and start:
                raise Killed
            yield _LABELS[start : start + 8]

    def images(self, start, stop):
        self.starts.append(start)
        for i in range(start, stop):
            if i == self._dies_at:
                raise Killed
            yield _IMAGES[i : i + 1] + self._version - 1


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(image_cache, "_BLOCK_BYTES", 18)


def check(loaded, version=1):
    images, labels = loaded
    order = np.argsort(_LABELS, kind="stable")
    np.testing.assert_array_equal(labels, _LABELS[order])
    np.testing.assert_array_equal(images, _IMAGES[order] + version - 1)
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable
    assert labels.dtype == np.int32


def load_again(folder, version=1):
    """Loads, and tells what had to be read: label passes and blocks."""
    source = Source(version)
    check(image_cache.load(folder, source), version)
    return source.num_label_passes, source.starts


def test_images_are_sorted_by_class_and_read_once(tmp_path, capsys):
    assert load_again(tmp_path) == (1, _BLOCK_STARTS)
    assert "Toys, images" in capsys.readouterr().out
    assert load_again(tmp_path) == (0, [])
    assert capsys.readouterr().out == ""


def test_a_cache_is_finished_when_nothing_is_left_to_write(
    tmp_path, monkeypatch
):
    folder = tmp_path / "cache"
    assert not image_cache.is_finished(folder, Source())
    assert not folder.exists()
    with pytest.raises(Killed):
        image_cache.load(folder, Source(dies_at=4))
    assert not image_cache.is_finished(folder, Source())
    load_again(folder)
    assert image_cache.is_finished(folder, Source())
    assert not image_cache.is_finished(folder, Source(version=2))

    # Permissions do not bind an administrator: only say that they do.
    load = np.load

    def refuse(path, *args, **kwargs):
        if path.name == "images.npy":
            raise PermissionError(path)
        return load(path, *args, **kwargs)

    monkeypatch.setattr(np, "load", refuse)
    assert not image_cache.is_finished(folder, Source())


def test_a_folder_is_made(tmp_path):
    load_again(tmp_path / "a" / "b")
    assert sorted(os.listdir(tmp_path / "a" / "b")) == [
        "images.npy",
        "labels.npy",
        "lock",
        "record.json",
    ]


@pytest.mark.parametrize("dies_at", [0, 4, 19])
def test_a_cache_goes_on_where_the_process_died(tmp_path, capsys, dies_at):
    with pytest.raises(Killed):
        image_cache.load(tmp_path, Source(dies_at=dies_at))
    block = dies_at // 3
    assert load_again(tmp_path) == (0, _BLOCK_STARTS[block:])
    assert ("blocks; they are checked" in capsys.readouterr().out) == (
        block > 0
    )
    assert load_again(tmp_path) == (0, [])


def test_dying_in_the_labels_begins_again(tmp_path):
    with pytest.raises(Killed):
        image_cache.load(tmp_path, Source(dies_at="labels"))
    assert load_again(tmp_path) == (1, _BLOCK_STARTS)


def test_dying_at_any_write(tmp_path, monkeypatch):
    """At each file that is put in its place, before and after."""
    replace = os.replace
    for is_before in (True, False):
        for number in range(11):
            folder = tmp_path / f"{is_before} {number}"
            left = [number]

            def dying_replace(source, target):
                left[0] -= 1
                if left[0] < 0 and is_before:
                    raise Killed
                replace(source, target)
                if left[0] < 0:
                    raise Killed

            monkeypatch.setattr(os, "replace", dying_replace)
            with pytest.raises(Killed):
                image_cache.load(folder, Source())
            monkeypatch.setattr(os, "replace", replace)
            load_again(folder)
            assert load_again(folder) == (0, [])


def _flip(path, position):
    before = path.stat().st_mtime_ns
    with open(path, "r+b") as file:
        file.seek(position, os.SEEK_END)
        byte = file.read(1)
        file.seek(position, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    # Where the clock of files is coarse the time could stay the same.
    os.utime(path, ns=(before, before + 10**9))


def test_one_bit_is_noticed_and_its_block_read_again(tmp_path, capsys):
    load_again(tmp_path)
    # The last image of the last class is the last of the data.
    _flip(tmp_path / "images.npy", -1)
    capsys.readouterr()
    assert load_again(tmp_path) == (0, [18])
    output = " ".join(capsys.readouterr().out.split())
    assert "is damaged: images 18 to 20 are read again" in output
    assert load_again(tmp_path) == (0, [])


def test_one_bit_of_an_unfinished_cache_is_noticed(tmp_path):
    with pytest.raises(Killed):
        image_cache.load(tmp_path, Source(dies_at=10))
    # The first image of class 0 is the second of the data, in block 0.
    _flip(tmp_path / "images.npy", -20 * 6)
    assert load_again(tmp_path) == (0, [0, 9, 12, 15, 18])


def test_a_copy_is_checked_once_and_nothing_is_read(tmp_path, capsys):
    load_again(tmp_path)
    os.utime(tmp_path / "images.npy", (1, 1))
    capsys.readouterr()
    assert load_again(tmp_path) == (0, [])
    assert "they are checked" in capsys.readouterr().out
    assert load_again(tmp_path) == (0, [])
    assert capsys.readouterr().out == ""


def _truncate(path, num_bytes):
    with open(path, "r+b") as file:
        file.truncate(num_bytes)


@pytest.mark.parametrize(
    "damage",
    {
        "images cut short": lambda f: _truncate(f / "images.npy", 200),
        "no images": lambda f: (f / "images.npy").unlink(),
        "empty images": lambda f: _truncate(f / "images.npy", 0),
        "images of another shape": lambda f: np.save(
            f / "images.npy", _IMAGES[:3]
        ),
        "a bit of the labels": lambda f: _flip(f / "labels.npy", -1),
        "labels cut short": lambda f: _truncate(f / "labels.npy", 100),
        "no labels": lambda f: (f / "labels.npy").unlink(),
        "no record": lambda f: (f / "record.json").unlink(),
        "half a record": lambda f: _truncate(f / "record.json", 20),
        "no JSON": lambda f: (f / "record.json").write_text("\0"),
        "bytes": lambda f: (f / "record.json").write_bytes(b"\xff\xfe"),
        "other JSON": lambda f: (f / "record.json").write_text("[1]"),
        "no object": lambda f: (f / "record.json").write_text("null"),
        "older library": lambda f: (f / "record.json").write_text(
            (f / "record.json")
            .read_text()
            .replace('"format": 1', '"format": 0')
        ),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_other_damage_is_noticed_and_all_rebuilt(tmp_path, capsys, damage):
    load_again(tmp_path)
    capsys.readouterr()
    damage[1](tmp_path)
    assert load_again(tmp_path) == (1, _BLOCK_STARTS)
    output = " ".join(capsys.readouterr().out.split())
    assert "The cache of Toys in " in output
    assert "It is rebuilt." in output
    assert load_again(tmp_path) == (0, [])


def test_another_version_is_noticed_and_open_maps_stay(tmp_path, capsys):
    old = image_cache.load(tmp_path, Source())
    assert load_again(tmp_path, version=2) == (1, _BLOCK_STARTS)
    output = " ".join(capsys.readouterr().out.split())
    assert "another version" in output
    check(old, version=1)


@pytest.fixture
def messages(monkeypatch):
    """What is printed, as a queue."""
    printed = queue.Queue()

    def print_(console, text=None, **kwargs):
        if isinstance(text, str):  # Not the progress bar.
            printed.put(text)

    monkeypatch.setattr(rich.console.Console, "print", print_)
    return printed


def test_two_at_once(tmp_path, messages):
    class Slow(Source):
        def labels(self):
            # The other one must have found the lock taken.
            message = messages.get(timeout=60)
            assert "Another process makes the cache of Toys" in message
            return super().labels()

    sources = [Slow(), Slow()]
    with futures.ThreadPoolExecutor(2) as threads:
        loads = [
            threads.submit(image_cache.load, tmp_path, source)
            for source in sources
        ]
        for load in loads:
            check(load.result(timeout=60))
    assert sorted(source.starts for source in sources) == [[], _BLOCK_STARTS]


_HOLD_LOCK = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(600)
"""


def test_another_process_is_waited_for_until_it_dies(tmp_path, messages):
    with subprocess.Popen(
        [sys.executable, "-S", "-c", _HOLD_LOCK, str(tmp_path / "lock")],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "locked\n"
            with futures.ThreadPoolExecutor(1) as threads:
                source = Source()
                load = threads.submit(image_cache.load, tmp_path, source)
                try:
                    message = messages.get(timeout=60)
                    assert "Another process makes the cache of Toys" in message
                    assert not load.done() and not source.num_label_passes
                finally:
                    # The thread would wait for it.
                    process.kill()
                check(load.result(timeout=60))
        finally:
            process.kill()


def test_a_source_that_ends_early(tmp_path):
    class Short(Source):
        def images(self, start, stop):
            return super().images(start, min(stop, 19))

    with pytest.raises(OSError, match="Toys gave 1 of the images 18 to 20"):
        image_cache.load(tmp_path, Short())
    assert load_again(tmp_path) == (0, [18])


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full, raising=False)
        with pytest.raises(OSError, match="0.0 GB of free.*`cache_dir`"):
            image_cache.load(tmp_path, Source())
    assert not list(tmp_path.glob("*images.npy*"))
    load_again(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Choose another `cache_dir`"):
        image_cache.load(tmp_path / "file" / "cache", Source())
