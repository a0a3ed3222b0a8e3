"""The folder of a run: locked, told apart, and read with care."""

import io
import json
import os
import subprocess
import sys
import textwrap

import pytest

from keras_plasticity.experiments import run_folder
from keras_plasticity.experiments import summary as summary_file

_SETTINGS = {"method": ["bp"], "seed": 0, "num_tasks": 5}


def open_folder(log_dir, settings=None, **kwargs):
    return run_folder.open_folder(
        log_dir, "a_problem", "bp-seed0", settings or _SETTINGS, **kwargs
    )


def closed(log_dir, **kwargs):
    folder = open_folder(log_dir, **kwargs)
    folder.close()
    return folder


def test_a_new_run_and_one_to_resume(tmp_path):
    log_dir = str(tmp_path / "a" / "run")
    assert not closed(log_dir).is_resumed
    assert json.loads((tmp_path / "a/run/settings.json").read_text()) == (
        _SETTINGS
    )
    assert closed(log_dir, resume=True).is_resumed
    assert closed(log_dir, resume="auto").is_resumed
    with pytest.raises(FileExistsError, match="Use --resume to continue"):
        open_folder(log_dir)
    assert not closed(log_dir, overwrite=True).is_resumed
    grown = _SETTINGS | {"num_tasks": 7}
    with pytest.raises(ValueError, match="num_tasks=5 there, num_tasks=7 here"):
        open_folder(log_dir, grown, resume=True)
    closed(log_dir, settings=grown, may_grow=["num_tasks"], resume=True)
    with pytest.raises(ValueError, match="num_tasks=7 there, num_tasks=5 here"):
        open_folder(log_dir, may_grow=["num_tasks"], resume=True)


@pytest.mark.parametrize("log_dir", ["", "  "])
def test_no_name(log_dir):
    with pytest.raises(ValueError, match="--log_dir must be the name of a fol"):
        open_folder(log_dir)


@pytest.mark.parametrize("what", ["file", "within_a_file", "no_lock"])
def test_what_is_no_folder_to_write_to(tmp_path, what):
    log_dir = tmp_path / "run"
    log_dir.write_text("a file")
    if what == "within_a_file":
        log_dir = log_dir / "more"
    elif what == "no_lock":
        log_dir = tmp_path / "folder"
        (log_dir / "run.lock").mkdir(parents=True)
    with pytest.raises(ValueError, match="a folder that can be written. Recei"):
        open_folder(str(log_dir))


@pytest.mark.skipif(os.getuid() == 0, reason="Root may write anywhere.")
def test_a_folder_that_is_read_only(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(ValueError, match="that can be written.*Permission"):
        open_folder(str(tmp_path / "run"))


class TestTwoProcesses:
    @pytest.fixture
    def other(self, tmp_path):
        """Another process that holds the folder."""
        program = f"""
            import sys
            from keras_plasticity.experiments import run_folder
            folder = run_folder.open_folder(
                {str(tmp_path)!r}, "a_problem", "bp", {_SETTINGS!r}
            )
            print("open", flush=True)
            sys.stdin.read()
            folder.close()
            """
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), "--seed=1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()
        process.communicate()

    def test_one_is_refused_while_the_other_runs(self, tmp_path, other):
        for arguments in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(ValueError) as error:
                open_folder(str(tmp_path), **arguments)
            assert f"another run, process {other.pid} on " in str(error.value)
            assert "--seed=1" in str(error.value)
        other.communicate()
        assert closed(str(tmp_path), resume=True).is_resumed

    def test_the_lock_of_a_dead_process_is_taken_over(self, tmp_path, other):
        other.kill()
        other.wait()
        assert closed(str(tmp_path), resume=True).is_resumed


def test_within_one_process_a_folder_is_one_run_s(tmp_path):
    first = open_folder(str(tmp_path))
    with pytest.raises(ValueError, match=f"process {os.getpid()} on "):
        open_folder(str(tmp_path), resume=True)
    first.close()
    closed(str(tmp_path), resume=True)


def test_nothing_to_resume(tmp_path, monkeypatch):
    assert not closed(str(tmp_path / "batch"), resume=True).is_resumed
    monkeypatch.setattr(run_folder, "_is_terminal", lambda: True)
    with pytest.raises(ValueError, match="no run to resume.*--resume=auto"):
        open_folder(str(tmp_path / "terminal"), resume=True)
    assert not closed(str(tmp_path / "auto"), resume="auto").is_resumed


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("writes", [True, False])
def test_a_terminal_is_what_reads_and_writes(
    tmp_path, monkeypatch, reads, writes
):
    class Stream(io.StringIO):
        def __init__(self, is_terminal):
            super().__init__()
            self.isatty = lambda: is_terminal

    monkeypatch.setattr(sys, "stdin", Stream(reads))
    monkeypatch.setattr(sys, "stdout", Stream(writes))
    if reads and writes:
        with pytest.raises(ValueError, match="no run to resume"):
            open_folder(str(tmp_path / "run"), resume=True)
    else:
        assert not closed(str(tmp_path / "run"), resume=True).is_resumed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "settings.json is damaged: it is not JSON"),
        ("{", "settings.json is damaged: it is not JSON"),
        ("[]", "settings.json is damaged: it must hold a JSON object"),
        ("7", "settings.json is damaged: it must hold a JSON object"),
        ("{}", "its entry `method` must be a list of names"),
        ('{"method": "bp"}', "its entry `method` must be a list of names"),
        ('{"method": ["../.."]}', "its entry `method` must be a list of name"),
        ('{"method": [".."]}', "its entry `method` must be a list of names"),
        ('{"method": ["."]}', "its entry `method` must be a list of names"),
        ('{"method": [""]}', "its entry `method` must be a list of names"),
        ('{"method": ["/tmp"]}', "its entry `method` must be a list of names"),
        ('{"method": null}', "its entry `method` must be a list of names"),
        ("[" * 100_000, "settings.json is damaged: it is not JSON"),
        (b"\xff\xfe", "settings.json is damaged: it is not JSON"),
    ],
)
@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_damaged_settings(tmp_path, content, message, flag):
    path = tmp_path / "settings.json"
    path.write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )
    with pytest.raises(ValueError, match=message) as error:
        open_folder(str(tmp_path), **{flag: True})
    assert str(path) in str(error.value)
    # It is free for the next one.
    path.unlink()
    closed(str(tmp_path))


def test_a_folder_that_was_removed_is_made_again(tmp_path):
    folder = open_folder(str(tmp_path / "run"))
    for each in (tmp_path / "run").iterdir():
        each.unlink()
    (tmp_path / "run").rmdir()
    folder.keep()
    folder.close()
    assert closed(str(tmp_path / "run"), resume=True).is_resumed


_RUN = {
    "method": "bp",
    "settings": {},
    "num_learners": 1,
    "train_seconds": 1.0,
    "compile_seconds": 0.5,
    "published": [],
    "per_task": [],
}
_TASK = {"loss_per_learner": [None]}
_SUMMARY = {
    "problem": "a",
    "title": "A",
    "metric": {
        "name": "loss",
        "label": "loss",
        "lower_is_better": True,
        "scale": 1.0,
        "format": ".3f",
    },
    "x_axis": {"label": "tasks", "per_task": 1},
    "tasks_per_bin": 1,
    "backend": "jax",
    "flags": {},
    "runs": [_RUN],
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is damaged: it is not JSON"),
        ("[]", r"must hold a JSON object, and holds '\[\]'"),
        ('"text"', "must hold a JSON object"),
        ("{}", "it has no `problem`, `title`, `metric`"),
        ({"runs": {}}, "it has no `runs`"),
        ({"runs": [7]}, "it has no method, .* in `runs`"),
        ({"runs": [_RUN | {"per_task": None}]}, "no `per_task` in `runs`"),
        *(
            (
                {"runs": [_RUN, _RUN | {"method": "cbp", "per_task": tasks}]},
                "of cbp, task 1 has no `loss_per_learner` with a number, or "
                "null, for each of 1 learners",
            )
            for tasks in (
                [_TASK, {}],
                [_TASK, None],
                [_TASK, {"accuracy_per_learner": [0.5]}],
                [_TASK, {"loss_per_learner": [0.5, 0.5]}],
                [_TASK, {"loss_per_learner": 0.5}],
                [_TASK, {"loss_per_learner": ["0.5"]}],
                [_TASK, {"loss_per_learner": [True]}],
            )
        ),
        ({"metric": {"name": "loss"}}, "no `label`.* in `metric`"),
        ({"x_axis": {"label": "a", "per_task": "b"}}, "`per_task` in `x_axis`"),
    ],
)
def test_damaged_summaries(tmp_path, content, message):
    path = tmp_path / "summary.json"
    if isinstance(content, dict):
        content = json.dumps(_SUMMARY | content)
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        summary_file.read_summary(str(tmp_path))
    assert str(path) in str(error.value)


def test_a_summary_that_is_whole(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(_SUMMARY))
    assert summary_file.read_summary(str(tmp_path)) == _SUMMARY
    with pytest.raises(FileNotFoundError, match="There is no `summary.json`"):
        summary_file.read_summary(str(tmp_path / "elsewhere"))


def test_a_number_that_json_does_not_have_is_not_written(tmp_path):
    path = tmp_path / "content.json"
    run_folder.write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON compliant"):
        run_folder.write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"loss": 1.0}
