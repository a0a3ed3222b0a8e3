"""What may happen to a cache, on a source of twenty tiny images."""

import concurrent.futures as futures
import copy
import os
import pickle
import queue
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import rich.console

from keras_plasticity import streams
from keras_plasticity.datasets import image_cache
from keras_plasticity.utils import progress_bar

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
        # The first images of the ranges that were read, and all of them.
        self.starts = []
        self.read = []
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
            self.read.append(i)
            yield _IMAGES[i : i + 1] + self._version - 1


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(image_cache, "_BLOCK_BYTES", 18)


# The row of each image, and all rows.
_ORDER = np.argsort(_LABELS, kind="stable")
_SORTED = _IMAGES[_ORDER]


def check(loaded, version=1):
    images, labels = loaded
    np.testing.assert_array_equal(labels, _LABELS[_ORDER])
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(images, _SORTED + version - 1)


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


@pytest.mark.parametrize(
    "missing", [[], [1], [4, 5], [0, 2, 19], [3, 5, 10, 11], range(20)]
)
def test_progress_counts_the_images_that_were_missing(missing):
    row_of_image = np.argsort(_ORDER)
    images = _SORTED.copy()
    checksums = image_cache._checksums(images, np.arange(20))
    images[row_of_image[missing]] = 0
    checksums[row_of_image[missing]] = 0
    with progress_bar.ProgressBar(console=rich.console.Console()) as bar:
        image_cache._write_images(
            Source(), _LABELS, images, checksums, bar, "here"
        )
        counts = {each.description: each for each in bar.tasks}
    np.testing.assert_array_equal(images, _SORTED)
    assert counts["Toys, images"].total == len(missing)
    assert counts["Toys, images"].completed == len(missing)
    if len(missing) < 20:
        assert counts["Toys, check"].completed == 20 - len(missing)


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
    def refuse(path, *args, **kwargs):
        raise PermissionError(path)

    monkeypatch.setattr(np, "memmap", refuse)
    assert not image_cache.is_finished(folder, Source())


def test_a_folder_is_made(tmp_path):
    load_again(tmp_path / "a" / "b")
    assert sorted(os.listdir(tmp_path / "a" / "b")) == [
        "checksums.bin",
        "images.bin",
        "labels.bin",
        "lock",
        "record.json",
    ]


@pytest.mark.parametrize("dies_at", [0, 4, 19])
def test_a_cache_goes_on_where_the_process_died(tmp_path, capsys, dies_at):
    with pytest.raises(Killed):
        image_cache.load(tmp_path, Source(dies_at=dies_at))
    block = dies_at // 3
    assert load_again(tmp_path) == (0, _BLOCK_STARTS[block:])
    output = _output(capsys)
    said = f"has {3 * block} of 20 images. Damaged, and read again: 0."
    assert (said in output) == (block > 0)
    assert load_again(tmp_path) == (0, [])


def test_dying_in_the_labels_begins_again(tmp_path):
    with pytest.raises(Killed):
        image_cache.load(tmp_path, Source(dies_at="labels"))
    assert load_again(tmp_path) == (1, _BLOCK_STARTS)


def test_dying_at_any_write(tmp_path, monkeypatch):
    """At each file that is put in its place, before and after."""
    replace = os.replace
    for is_before in (True, False):
        for number in range(5):
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


def _flip(path, position, bit=0):
    """Flips a bit; nothing that the system knows of the file tells it."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    with open(path, "r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (
        before.st_size,
        before.st_mtime_ns,
    )


def _output(capsys):
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["images.bin", "checksums.bin"])
def test_one_bit_is_noticed_when_its_image_is_read(tmp_path, capsys, name):
    load_again(tmp_path)
    # The last image of the last class is the last of the data.
    _flip(tmp_path / name, -1)
    capsys.readouterr()
    source = Source()
    images, _ = image_cache.load(tmp_path, source)
    np.testing.assert_array_equal(images[:19], _SORTED[:19])
    assert (source.read, capsys.readouterr().out) == ([], "")
    np.testing.assert_array_equal(images[18:], _SORTED[18:])
    assert source.read == [19]
    assert _output(capsys) == (
        f"The cache of Toys in {tmp_path} has 20 of 20 images. "
        "Damaged, and read again: 1."
    )
    np.testing.assert_array_equal(images[18:], _SORTED[18:])
    assert source.read == [19]
    assert load_again(tmp_path) == (0, [])


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize(
    "name", ["images.bin", "checksums.bin", "labels.bin", "record.json"]
)
def test_any_bit_of_any_file_is_noticed(tmp_path, name, is_open):
    rng = np.random.default_rng(0)
    for _ in range(15):
        loaded = image_cache.load(tmp_path, Source())
        position = rng.integers((tmp_path / name).stat().st_size)
        _flip(tmp_path / name, position, rng.integers(8))
        check(loaded if is_open else image_cache.load(tmp_path, Source()))
        load_again(tmp_path)
        assert load_again(tmp_path) == (0, [])


def test_all_that_is_damaged_is_repaired_at_once(tmp_path):
    load_again(tmp_path)
    for position in (0, 7, 50):
        _flip(tmp_path / "images.bin", position)
    source = Source()
    images, _ = image_cache.load(tmp_path, source)
    assert images[0, 0, 0, 0] == _SORTED[0, 0, 0, 0]
    # Those between them in a block are read, and nothing else.
    damaged = _ORDER[[0, 1, 8]]
    assert set(damaged) <= set(source.read)
    assert {i // 3 for i in source.read} == {i // 3 for i in damaged}
    source.read.clear()
    np.testing.assert_array_equal(images, _SORTED)
    assert source.read == []


def test_one_bit_of_an_unfinished_cache_is_noticed(tmp_path):
    with pytest.raises(Killed):
        image_cache.load(tmp_path, Source(dies_at=10))
    # The first image of class 0 is the second of the data, in block 0.
    _flip(tmp_path / "images.bin", 0)
    assert load_again(tmp_path) == (0, [1, 9, 12, 15, 18])


def test_a_record_that_says_too_much(tmp_path):
    """Images that were never written are not served, whatever it says."""
    with pytest.raises(Killed):
        image_cache.load(tmp_path, Source(dies_at=10))
    record = tmp_path / "record.json"
    record.write_text(record.read_text().replace("false", "true"))
    assert load_again(tmp_path) == (0, [9, 12, 15, 18])


def test_a_copy_is_as_good(tmp_path):
    load_again(tmp_path)
    os.utime(tmp_path / "images.bin", (1, 1))
    assert load_again(tmp_path) == (0, [])


@pytest.mark.parametrize("reason", ["no data", "no permission"])
def test_damage_that_cannot_be_repaired(tmp_path, monkeypatch, reason):
    class Lost(Source):
        def images(self, start, stop):
            raise RuntimeError("no data")

    load_again(tmp_path)
    _flip(tmp_path / "images.bin", 0)
    images, _ = image_cache.load(tmp_path, Lost())
    if reason == "no permission":
        (tmp_path / "lock").unlink()
        (tmp_path / "lock").mkdir()
        reason = "must be in a folder that can be written"
    for _ in range(2):  # It is not taken for right the second time.
        with pytest.raises(
            OSError,
            match=f"images.bin is damaged.*delete.*Received: .*{reason}",
        ):
            images[0]
    np.testing.assert_array_equal(images[1:], _SORTED[1:])


def test_a_disk_that_damages_what_is_written(tmp_path, monkeypatch):
    load_again(tmp_path)
    _flip(tmp_path / "images.bin", 0)
    images, _ = image_cache.load(tmp_path, Source())
    monkeypatch.setattr(image_cache, "_finish", lambda *a, **k: None)
    with pytest.raises(OSError, match="damaged again just after.*`cache_dir`"):
        images[0]


def _replace_by_copy(path):
    """Puts a copy in the place of a file, which open maps do not see."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def test_damage_that_another_process_has_repaired(tmp_path, capsys):
    load_again(tmp_path)
    source = Source()
    images, _ = image_cache.load(tmp_path, source)
    _flip(tmp_path / "images.bin", 0)
    _replace_by_copy(tmp_path / "images.bin")
    _flip(tmp_path / "images.bin", 0)  # The copy is right again.
    capsys.readouterr()
    np.testing.assert_array_equal(images, _SORTED)
    assert (source.read, capsys.readouterr().out) == ([], "")


def test_another_file_is_checked_again(tmp_path):
    load_again(tmp_path)
    images, _ = image_cache.load(tmp_path, Source())
    images[5]
    _flip(tmp_path / "images.bin", 0)
    _replace_by_copy(tmp_path / "images.bin")
    _flip(tmp_path / "images.bin", 0)
    _flip(tmp_path / "images.bin", 6 * 5)
    # Row 0 leads to the other file, where row 5 was not checked.
    np.testing.assert_array_equal(images[:6], _SORTED[:6])


def test_files_that_vanish_under_an_open_map(tmp_path):
    """They are written again where there is damage."""
    load_again(tmp_path)
    _flip(tmp_path / "images.bin", 0)
    source = Source()
    images, _ = image_cache.load(tmp_path, source)
    for name in ("images.bin", "record.json"):
        (tmp_path / name).unlink()
    np.testing.assert_array_equal(images, _SORTED)
    assert source.num_label_passes == 1
    assert load_again(tmp_path) == (0, [])


_MASK = np.arange(20) % 3 == 0
_INDICES = {
    "integer": 3,
    "negative": -1,
    "NumPy integer": np.int64(7),
    "array without axes": np.array(7),
    "slice": slice(4, 9),
    "slice with steps": slice(None, None, -3),
    "empty slice": slice(5, 5),
    "beyond the end": slice(15, 99),
    "all": slice(None),
    "integers": np.array([5, 0, 5, -2]),
    "integers of two axes": np.array([[5, 0], [1, 19]]),
    "list": [3, 1, 1],
    "empty list": [],
    "booleans": _MASK,
    "list of booleans": list(map(bool, _MASK)),
    "mask of pixels": _SORTED > 60,
    "mask of two axes": (_SORTED > 60)[:, :, 0, 0],
    "ellipsis": ...,
    "new axis": None,
    "nothing": (),
    "true": True,
    "false": False,
    "pixel": (3, 1, 2, 0),
    "rows and columns": (slice(2, 7), 1),
    "ellipsis first": (..., 0),
    "new axis first": (None, 4),
    "integers of two": (np.array([1, 19]), np.array([0, 1])),
    "booleans and slice": (_MASK, slice(1)),
}


@pytest.mark.parametrize("index", _INDICES.values(), ids=_INDICES.keys())
@pytest.mark.parametrize("row", [0, 8, 19])
def test_indices_are_those_of_numpy(tmp_path, index, row):
    """A row that is damaged is repaired where, and as soon as, it is read."""
    load_again(tmp_path)
    _flip(tmp_path / "images.bin", 6 * row + 3)
    source = Source()
    images, _ = image_cache.load(tmp_path, source)
    rows = np.broadcast_to(np.arange(20)[:, None, None, None], _SORTED.shape)
    for _ in range(2):
        found, expected = images[index], _SORTED[index]
        assert type(found) is type(expected)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected, strict=True)
        if np.isin(row, rows[index]):
            assert source.read == [_ORDER[row]]


@pytest.mark.parametrize(
    "index",
    [20, -21, 1.5, "a", [20], np.ones(3, bool), (0, 0, 0, 0, 0)],
    ids=str,
)
def test_what_is_no_index_is_the_error_of_numpy(tmp_path, index):
    images, _ = image_cache.load(tmp_path, Source())
    with pytest.raises(IndexError) as expected:
        _SORTED[index]
    with pytest.raises(IndexError) as error:
        images[index]
    assert str(error.value) == str(expected.value)


def test_it_is_an_array(tmp_path):
    images, _ = image_cache.load(tmp_path, Source())
    assert (len(images), images.shape, images.ndim) == (20, (20, *_SHAPE), 4)
    assert images.dtype == np.uint8
    assert not np.asarray(images).flags.writeable
    assert not images[2:5].flags.writeable
    assert np.array(images).flags.writeable
    for dtype in ("uint8", "float32"):
        array = np.asarray(images, dtype)
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, _SORTED)
    with pytest.raises(ValueError, match="copy"):
        np.asarray(images, "float32", copy=False)
    np.testing.assert_array_equal(list(images), _SORTED)
    assert np.mean(images) == np.mean(_SORTED)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(images), _SORTED)


@pytest.mark.parametrize("way", ["asarray", "iteration", "copy", "pickle"])
def test_no_way_to_the_pixels_is_unchecked(tmp_path, way):
    load_again(tmp_path)
    _flip(tmp_path / "images.bin", 60)
    images, _ = image_cache.load(tmp_path, Source())
    found = {
        "asarray": np.asarray,
        "iteration": lambda images: np.stack(list(images)),
        "copy": copy.deepcopy,
        "pickle": lambda images: pickle.loads(pickle.dumps(images)),
    }[way](images)
    np.testing.assert_array_equal(found, _SORTED)


def test_a_pickle_has_no_pixels(tmp_path):
    images, _ = image_cache.load(tmp_path, Source())
    size = len(pickle.dumps(images))
    images._images = np.zeros((10_000, *_SHAPE), "uint8")
    assert len(pickle.dumps(images)) == size


def test_each_image_is_checked_once(tmp_path, monkeypatch):
    images, _ = image_cache.load(tmp_path, Source())
    checked = []
    agree = image_cache._agree

    def note(images, checksums, rows):
        checked.extend(rows)
        return agree(images, checksums, rows)

    monkeypatch.setattr(image_cache, "_agree", note)
    for index in (slice(3, 6), [5, 9, 9, 4], slice(3, 6), (..., 0), _MASK, 7):
        images[index]
    assert sorted(checked) == list(range(20))
    assert checked[:4] == [3, 4, 5, 9]


def test_classes_are_read_pair_by_pair(tmp_path, monkeypatch):
    """The stream neither reads nor checks images of other classes."""
    loaded = image_cache.load(tmp_path, Source())
    stream = streams.BinaryClassPairs(
        *loaded, train_images_per_class=2, test_images_per_class=1, scale="raw"
    )
    assert not loaded[0]._is_checked.any()
    x, y = stream.task(0)
    assert loaded[0]._is_checked.sum() == 4
    plain = streams.BinaryClassPairs(
        _SORTED,
        loaded[1],
        train_images_per_class=2,
        test_images_per_class=1,
        scale="raw",
    )
    np.testing.assert_array_equal(x, plain.task(0)[0])
    np.testing.assert_array_equal(y, plain.task(0)[1])


def test_a_stream_that_reads_all_images(tmp_path):
    images, labels = image_cache.load(tmp_path, Source())
    task = streams.OnlinePermutedImages(images, labels).task(3)
    plain = streams.OnlinePermutedImages(_SORTED, labels).task(3)
    np.testing.assert_array_equal(task[0], plain[0])


_DIE = """
import os, signal
from keras_plasticity.datasets import image_cache
from tests.datasets.image_cache_test import Source
class Dies(Source):
    def images(self, start, stop):
        if start == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().images(start, stop)
image_cache._BLOCK_BYTES = 18
image_cache.load({folder!r}, Dies())
"""


@pytest.mark.slow
def test_a_process_that_is_killed(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", _DIE.format(folder=str(tmp_path))],
        stdout=subprocess.DEVNULL,
        timeout=300,
    )
    assert process.returncode == -signal.SIGKILL
    assert load_again(tmp_path) == (0, [9, 12, 15, 18])


def _truncate(path, num_bytes):
    with open(path, "r+b") as file:
        file.truncate(num_bytes)


@pytest.mark.parametrize(
    "damage",
    {
        "images cut short": lambda f: _truncate(f / "images.bin", 100),
        "longer images": lambda f: _truncate(f / "images.bin", 121),
        "no images": lambda f: (f / "images.bin").unlink(),
        "empty images": lambda f: _truncate(f / "images.bin", 0),
        "checksums cut short": lambda f: _truncate(f / "checksums.bin", 79),
        "no checksums": lambda f: (f / "checksums.bin").unlink(),
        "empty checksums": lambda f: _truncate(f / "checksums.bin", 0),
        "a bit of the labels": lambda f: _flip(f / "labels.bin", -1),
        "labels cut short": lambda f: _truncate(f / "labels.bin", 40),
        "labels cut shorter": lambda f: _truncate(f / "labels.bin", 41),
        "empty labels": lambda f: _truncate(f / "labels.bin", 0),
        "no labels": lambda f: (f / "labels.bin").unlink(),
        "no record": lambda f: (f / "record.json").unlink(),
        "half a record": lambda f: _truncate(f / "record.json", 20),
        "no JSON": lambda f: (f / "record.json").write_text("\0"),
        "bytes": lambda f: (f / "record.json").write_bytes(b"\xff\xfe"),
        "other JSON": lambda f: (f / "record.json").write_text("[1]"),
        "no object": lambda f: (f / "record.json").write_text("null"),
        "older library": lambda f: (f / "record.json").write_text(
            (f / "record.json")
            .read_text()
            .replace('"format": 2', '"format": 1')
        ),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_other_damage_is_noticed_and_all_rebuilt(tmp_path, capsys, damage):
    load_again(tmp_path)
    capsys.readouterr()
    damage[1](tmp_path)
    assert load_again(tmp_path) == (1, _BLOCK_STARTS)
    output = _output(capsys)
    assert "The cache of Toys in " in output
    assert "It is rebuilt." in output
    assert load_again(tmp_path) == (0, [])


def test_another_version_is_noticed_and_open_maps_stay(tmp_path, capsys):
    old = image_cache.load(tmp_path, Source())
    check(old)
    assert load_again(tmp_path, version=2) == (1, _BLOCK_STARTS)
    output = _output(capsys)
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
    assert not list(tmp_path.glob("*images*"))
    load_again(tmp_path)


def test_files_of_older_versions_are_removed(tmp_path):
    for name in ("images.npy", "labels.npy"):
        np.save(tmp_path / name, _IMAGES)
    (tmp_path / "record.json").write_text('{"format": 1}')
    assert load_again(tmp_path) == (1, _BLOCK_STARTS)
    assert not list(tmp_path.glob("*.npy"))


def test_a_folder_whose_name_looks_like_markup(tmp_path, capsys):
    folder = tmp_path / "[/red] :smile:"
    with pytest.raises(Killed):
        image_cache.load(folder, Source(dies_at=4))
    load_again(folder)
    assert "[/red] :smile: has 3 of 20" in _output(capsys)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Choose another `cache_dir`"):
        image_cache.load(tmp_path / "file" / "cache", Source())
