"""Runs whose files cannot be written go on, and say so."""

import errno
import json
import os
import pathlib
import shlex
import shutil
import signal

import pytest
from tensorboard.backend.event_processing import event_accumulator

from keras_plasticity import utils
from keras_plasticity.experiments import figures
from keras_plasticity.experiments import recorder
from keras_plasticity.experiments import run_settings
from keras_plasticity.experiments import unwritten
from keras_plasticity.experiments.lasting_writer import LastingWriter
from keras_plasticity.experiments.unwritten import Unwritten
from tests.examples.trainers import load
from tests.examples.trainers import run

_TINY = [
    "--num_examples=250",
    "--examples_per_task=50",
    "--num_learners=2",
    "--method=linear",
]


@pytest.fixture(scope="module")
def trainer():
    pytest.importorskip("matplotlib")
    return load("slowly_changing_regression")


def points(folder, tag):
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    return [
        (e.step, round(float(e.tensor_proto.float_val[0]), 4))
        for e in events.Tensors(tag)
    ]


def test_a_reason_is_told_once_until_it_is_written(monkeypatch):
    told = []
    monkeypatch.setattr(
        unwritten.logging, "warning", lambda text, *args: told.append(args[0])
    )
    lost = Unwritten()
    full, vanished = OSError("full"), OSError("vanished")
    lost.add("a", full)
    lost.add("a", vanished)
    lost.add("b", full, is_told=True)
    lost.add("b", full)
    assert told == ["a"]
    assert lost.reasons == {"a": "vanished", "b": "full"}
    with lost.attempt("a"):
        pass
    assert lost.reasons == {"b": "full"}
    with lost.attempt("a"):
        raise full
    assert told == ["a", "a"]
    assert str(lost) == "Not written: b (full); a (full)"


class TestLastingWriter:
    def test_nothing_is_lost(self, tmp_path, monkeypatch):
        unwritten = Unwritten()
        writer = LastingWriter(str(tmp_path), 0, unwritten)
        writer.scalar("a", 1.0, 0)
        writer.flush()
        writer.scalar("a", 2.0, 1)
        with monkeypatch.context() as patch:

            def write(self, event):
                # Half of it is on the disk.
                with open(self._path, "ab") as file:
                    file.write(event.SerializeToString()[:3])
                raise OSError(errno.ENOSPC, "No space left on device")

            patch.setattr(utils.SummaryWriter, "_write", write)
            writer.flush()
            assert "No space left" in str(unwritten)
            writer.scalar("a", 3.0, 2)
            writer.flush()
        writer.text("b", "more")
        with writer:
            writer.scalar("a", 4.0, 3)
        assert not unwritten.reasons
        assert points(tmp_path, "a") == [(0, 1), (1, 2), (2, 3), (3, 4)]

    def test_a_folder_that_vanishes(self, tmp_path):
        unwritten = Unwritten()
        writer = LastingWriter(str(tmp_path / "run"), 0, unwritten)
        writer.scalar("a", 1.0, 0)
        writer.flush()
        shutil.rmtree(tmp_path / "run")
        writer.scalar("a", 2.0, 1)
        writer.flush()
        assert "was removed while it was open" in str(unwritten)
        with writer:
            pass
        assert not unwritten.reasons
        assert points(tmp_path / "run", "a") == [(1, 2)]


def after_task(monkeypatch, number, function):
    on_task_end = recorder.Recorder.on_task_end

    def and_then(self, task, results):
        on_task_end(self, task, results)
        if task == number:
            function()

    monkeypatch.setattr(recorder.Recorder, "on_task_end", and_then)


def full_disk(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(utils.SummaryWriter, "_write", fail)


def test_a_full_disk_is_told_at_the_end(trainer, tmp_path, monkeypatch, capsys):
    expected = run(trainer, tmp_path / "whole", *_TINY)
    with monkeypatch.context() as patch:
        after_task(patch, 1, lambda: full_disk(patch))
        with pytest.raises(SystemExit) as error:
            run(trainer, tmp_path / "full", *_TINY)
    assert error.value.code == 1
    assert "All tasks are done, but not all" in str(error.value)
    told = capsys.readouterr().err
    assert "Not written: " in told
    for what in ("checkpoint.npz", "summary.json", "TensorBoard's", "figure"):
        assert what in told
    summary = run(trainer, tmp_path / "full", *_TINY, "--resume")
    key = "squared_error_per_learner"
    assert [task[key] for task in summary["runs"][0]["per_task"]] == [
        task[key] for task in expected["runs"][0]["per_task"]
    ]


def test_a_disk_that_is_full_for_a_while(
    trainer, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        after_task(patch, 1, lambda: full_disk(patch))
        after_task(patch, 3, patch.undo)
        run(trainer, tmp_path, *_TINY)
    assert "Not written" not in capsys.readouterr().err
    steps = [
        step
        for step, _ in points(
            tmp_path / "linear", "against_updates/squared_error"
        )
    ]
    assert steps == [50, 100, 150, 200, 250]


def test_a_folder_that_vanishes(trainer, tmp_path, monkeypatch):
    log_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        after_task(patch, 1, lambda: shutil.rmtree(log_dir))
        run(trainer, log_dir, *_TINY)
    assert len(list(log_dir.glob("*.png"))) == 1
    # It can be resumed, and made longer.
    summary = run(trainer, log_dir, *_TINY, "--resume", "--num_examples=300")
    assert [t["task"] for t in summary["per_task"]] == list(range(6))


def test_files_that_vanish_while_the_figure_is_drawn(
    trainer, tmp_path, monkeypatch
):
    draw = figures.draw

    def remove_and_draw(*args):
        for name in ("settings.json", "summary.json"):
            (tmp_path / name).unlink()
        return draw(*args)

    with monkeypatch.context() as patch:
        patch.setattr(figures, "draw", remove_and_draw)
        run(trainer, tmp_path, *_TINY)
    assert json.loads((tmp_path / "summary.json").read_text())["runs"]
    summary = run(trainer, tmp_path, *_TINY, "--resume", "--num_examples=300")
    assert [t["task"] for t in summary["per_task"]] == list(range(6))


def test_a_figure_that_cannot_be_drawn_to_a_file(
    trainer, tmp_path, monkeypatch, capsys
):
    def draw(*args):
        raise OSError("no such place")

    monkeypatch.setattr(figures, "draw", draw)
    with pytest.raises(SystemExit) as error:
        run(trainer, tmp_path, *_TINY)
    assert error.value.code == 1
    assert json.loads((tmp_path / "summary.json").read_text())["runs"]
    assert "no such place" in capsys.readouterr().err
    assert not pathlib.Path(tmp_path, "run.lock.json").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "python3 train.py --method=bp,l2 --resume=auto --log_dir=x",
            "python3 train.py --method=bp,l2",
        ),
        (
            "python3 -m a.train --log_dir x --seed=1",
            "python3 -m a.train --seed=1",
        ),
        ("./train.py -log_dir=x --overwrite --noresume", "./train.py"),
        ("python3 train.py --title='a b'", "python3 train.py '--title=a b'"),
    ],
)
@pytest.mark.parametrize("backend", ["", "jax"])
def test_the_command_that_resumes(monkeypatch, words, expected, backend):
    monkeypatch.setattr("sys.orig_argv", shlex.split(words))
    monkeypatch.setenv("KERAS_BACKEND", backend)
    assert run_settings.command_to_resume("logs/a run") == (
        f"{'KERAS_BACKEND=jax ' * bool(backend)}{expected} "
        "'--log_dir=logs/a run' --resume"
    )


def test_interrupted_with_a_full_disk_is_not_to_be_resumed(
    trainer, tmp_path, monkeypatch, capsys
):
    def end():
        full_disk(patch)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        after_task(patch, 1, end)
        with pytest.raises(SystemExit) as error:
            run(trainer, tmp_path, *_TINY)
    assert error.value.code == 1
    assert (
        "Interrupted by SIGTERM in linear, after 2 of 5 tasks. The check"
        in (capsys.readouterr().err)
    )
