"""Signals in the middle of a task of a trainer, and the command it prints."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import keras
import pytest

_ROOT = pathlib.Path(__file__).parents[2]
# Two tasks of half a second or more: so long take a thousand steps on PyTorch.
_EXAMPLES = 1000 if keras.backend.backend() == "torch" else 600_000
_LONG = [
    f"--num_examples={2 * _EXAMPLES}",
    f"--examples_per_task={_EXAMPLES}",
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
        # As on a terminal, even if a batch job runs the tests.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


def errors(folder):
    summary = json.loads((folder / "summary.json").read_text())
    return [
        task["squared_error_per_learner"]
        for task in summary["runs"][0]["per_task"]
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.long),
    ],
)
def test_a_signal_within_a_task(tmp_path, number, status):
    pytest.importorskip("matplotlib")
    whole = start(*_LONG, f"--log_dir={tmp_path / 'whole'}")
    stopped = start(*_LONG, f"--log_dir={tmp_path / 'stopped'}")
    folder = tmp_path / "stopped" / "cbp"
    while not list(folder.glob("*tfevents*")) and stopped.poll() is None:
        time.sleep(0.05)
    time.sleep(0.3)
    stopped.send_signal(number)
    _, told = stopped.communicate(timeout=300)
    assert stopped.returncode == status, told
    summary = json.loads((tmp_path / "stopped/summary.json").read_text())
    assert len(summary["per_task"]) < 2
    command = re.search("To resume: (.*)", told)[1]
    resumed = subprocess.run(
        command,
        shell=True,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
    )
    assert resumed.returncode == 0, resumed.stderr
    _, told = whole.communicate(timeout=300)
    assert whole.returncode == 0, told
    assert errors(tmp_path / "stopped") == errors(tmp_path / "whole")
