"""Checkpoints that cannot be written, and what is kept of them."""

import errno
import json
import os
import pathlib

import numpy as np
import pytest
from absl import logging

from keras_plasticity import files
from keras_plasticity.training import AppendOnly
from keras_plasticity.training import CheckpointError
from keras_plasticity.training import TaskCallback
from keras_plasticity.training import saver
from keras_plasticity.training.journal import Journal
from tests.training.checkpoint_test import fit

pytestmark = pytest.mark.usefixtures("fast_compilation")


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(saver, "_MAX_SHARE", float("inf"))
    return str(tmp_path / "run" / "checkpoint.npz")


class During(TaskCallback):
    """Calls functions at the ends of tasks."""

    def __init__(self, **functions):
        self._functions = functions

    def on_task_end(self, task, results):
        self._functions.get(f"task_{task}", lambda: None)()


def full_disk(monkeypatch):
    def fsync(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk_does_not_end_the_run(path, monkeypatch, caplog):
    os.mkdir(os.path.dirname(path))
    expected, *_ = fit()
    with monkeypatch.context() as patch:
        full_disk(patch)
        with caplog.at_level(logging.WARNING):
            results, trainer, _ = fit(path)
    np.testing.assert_array_equal(results["loss"], expected["loss"])
    assert trainer.checkpoint_error.errno == errno.ENOSPC
    said = [r for r in caplog.records if "cannot be written" in r.getMessage()]
    assert len(said) == 1 and path in said[0].getMessage()
    assert not [n for n in os.listdir(os.path.dirname(path)) if "tmp" in n]


def test_it_is_tried_again(path, monkeypatch):
    os.mkdir(os.path.dirname(path))
    with monkeypatch.context() as patch:
        free = During(
            task_1=lambda: full_disk(patch), task_3=lambda: patch.undo()
        )
        _, trainer, counter = fit(path, callbacks_before=[free])
    assert trainer.checkpoint_error is None
    results, resumed, after = fit(
        path, resume=True, callbacks_before=[During()]
    )
    assert resumed.resumed_from is None
    assert after.tasks == counter.tasks == list(range(5))
    np.testing.assert_array_equal(results["loss"], fit()[0]["loss"])


def test_a_folder_that_is_not_there(path):
    _, trainer, _ = fit(path)
    assert isinstance(trainer.checkpoint_error, FileNotFoundError)


def test_a_folder_that_vanishes_and_comes_back(path):
    """All that only grows is written again."""
    folder = pathlib.Path(path).parent
    folder.mkdir()

    def vanish():
        for each in folder.iterdir():
            each.unlink()
        folder.rmdir()

    changes = During(task_2=vanish, task_3=folder.mkdir)
    fit(path, callbacks_before=[changes])
    results, _, counter = fit(path, resume=True, callbacks_before=[During()])
    assert counter.tasks == list(range(5))
    np.testing.assert_array_equal(results["loss"], fit()[0]["loss"])


def test_what_only_grows_is_written_once(path, monkeypatch):
    os.mkdir(os.path.dirname(path))

    class History(TaskCallback):
        def __init__(self):
            self.items = []

        def on_task_end(self, task, results):
            self.items.append({"task": task, "text": "x" * 10_000})

        def get_state(self):
            return {"items": AppendOnly(self.items), "more": np.arange(3)}

        def set_state(self, state):
            self.items = list(state["items"])
            np.testing.assert_array_equal(state["more"], np.arange(3))

    sizes = []

    def note():
        sizes.append(os.path.getsize(path))

    history = History()
    fit(path, callbacks_before=[history, During(task_1=note, task_4=note)])
    assert sizes[1] - sizes[0] < 1000
    journal = pathlib.Path(path).with_name("checkpoint.npz.journal.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert sum(name.endswith("/items") for name, _ in lines) == 5
    again = History()
    fit(path, resume=True, callbacks_before=[again, During()])
    assert again.items == history.items


@pytest.mark.parametrize(
    ("seconds", "within_task", "expected"),
    [
        # The last one took 2 seconds, so the next comes after 100.
        (99, False, False),
        (101, False, True),
        (99, True, False),
        (101, True, True),
    ],
)
def test_checkpoints_take_a_fiftieth_of_the_time(
    monkeypatch, seconds, within_task, expected
):
    now = 1000.0
    monkeypatch.setattr(saver.time, "perf_counter", lambda: now)
    each = saver.Saver("checkpoint.npz", {})
    each._seconds = 2.0
    now += seconds
    assert each.is_due(within_task) == expected


def test_checkpoints_within_a_task_are_a_minute_apart(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(saver.time, "perf_counter", lambda: now)
    each = saver.Saver("checkpoint.npz", {})
    assert each.is_due() and not each.is_due(within_task=True)
    now += 59.0
    assert not each.is_due(within_task=True)
    now += 2.0
    assert each.is_due(within_task=True)
    assert not saver.Saver(None, {}).is_due()


class TestJournal:
    def test_a_later_append_overwrites_what_was_not_finished(self, tmp_path):
        path = tmp_path / "journal"
        journal = Journal(path)
        first = journal.append({"a": [1, 2], "b": []})
        journal.append({"a": [1, 2, 3], "b": [{"c": None}]})
        resumed = Journal(path)
        assert resumed.read(first) == {"a": [1, 2], "b": []}
        last = resumed.append({"a": [1, 2, 4], "b": []})
        assert Journal(path).read(last) == {"a": [1, 2, 4], "b": []}

    @pytest.mark.parametrize("at", [0, 5, 20])
    def test_a_bit_that_flips(self, tmp_path, at):
        path = tmp_path / "journal"
        state = Journal(path).append({"a": list(range(9))})
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match="journal is damaged"):
            Journal(path).read(state)


class TestAtomicWrite:
    def test_what_a_killed_process_left_is_removed(self, tmp_path):
        path = tmp_path / "a.json"
        with files.atomic_write(path) as temporary:
            temporary.write_text("whole")
        # The numbers of processes end far below.
        dead = path.with_name(
            f"{temporary.name.rsplit('.', 3)[0]}.999999999.0.tmp"
        )
        dead.write_text("half")
        other = path.with_name("a.json.elsewhere.999999999.0.tmp")
        other.write_text("of another machine")
        with files.atomic_write(path) as temporary:
            temporary.write_text("more")
        assert {p.name for p in tmp_path.iterdir()} == {"a.json", other.name}

    def test_two_at_once(self, tmp_path):
        path = tmp_path / "a.json"
        with files.atomic_write(path) as one, files.atomic_write(path) as two:
            assert one != two
            one.write_text("one")
            two.write_text("two")
        assert path.read_text() == "one"

    def test_an_error_leaves_the_file(self, tmp_path):
        path = tmp_path / "a.json"
        path.write_text("before")
        with pytest.raises(ZeroDivisionError):
            with files.atomic_write(path) as temporary:
                temporary.write_text("half")
                1 / 0
        assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
        assert path.read_text() == "before"


def test_a_callback_that_cannot_restore(path):
    os.mkdir(os.path.dirname(path))

    class Fickle(TaskCallback):
        def get_state(self):
            return {"old": 1}

        def set_state(self, state):
            self.value = state["new"]

    fit(path, num_tasks=1, callbacks_before=[Fickle()])
    with pytest.raises(CheckpointError, match="`Fickle`.*KeyError: 'new'"):
        fit(path, resume=True, callbacks_before=[Fickle()])
