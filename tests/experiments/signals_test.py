"""Signals in the middle of a task of a trainer, and the command it prints."""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
# A task of some ten seconds or more, wherever it runs.
_LONG = [
    "--num_examples=400000",
    "--examples_per_task=200000",
    "--num_learners=1",
    "--method=cbp",
    "--replacement_rate=0.01",
]


def start(*arguments):
    return subprocess.Popen(
        [
            sys.executable,
            str(_ROOT / "examples" / "slowly_changing_regression.py"),
            *arguments,
        ],
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def errors(folder):
    summary = json.loads((folder / "summary.json").read_text())
    return [
        task["squared_error_per_learner"]
        for task in summary["runs"][0]["per_task"]
    ]


def wait_for(path, process):
    while not path.exists() and process.poll() is None:
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_signal_within_a_task(tmp_path, number, status):
    pytest.importorskip("matplotlib")
    examples = _LONG
    if os.environ.get("KERAS_BACKEND") == "torch":
        examples = [*_LONG, "--num_examples=40000", "--examples_per_task=20000"]
    whole = start(*examples, f"--log_dir={tmp_path / 'whole'}")
    assert whole.wait(timeout=600) == 0
    seconds = json.loads((tmp_path / "whole/summary.json").read_text())[
        "train_seconds"
    ]
    stopped = start(*examples, f"--log_dir={tmp_path / 'stopped'}")
    wait_for(tmp_path / "stopped" / "settings.json", stopped)
    wait_for_events = tmp_path / "stopped" / "cbp"
    wait_for(wait_for_events, stopped)
    time.sleep(2 + 0.3 * seconds)
    stopped.send_signal(number)
    _, told = stopped.communicate(timeout=600)
    assert stopped.returncode == status, told
    command = re.search("To resume: (.*)", told)[1]
    resumed = subprocess.run(
        shlex.split(command),
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert errors(tmp_path / "stopped") == errors(tmp_path / "whole")
