"""The short form of the soak program; its long form is in BUILD_NOTES."""

import os
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[1]


_PARTS = {
    "kills": 1,
    "files": 5,
    "tasks": 30,
    "disks": 1,
    "clocks": 1,
    "folders": 1,
}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="It forks its runs.")
def test_a_few_of_all():
    pytest.importorskip("matplotlib")
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.soak",
            *(f"--{part}={number}" for part, number in _PARTS.items()),
            "--trainer=slowly_changing_regression",
        ],
        cwd=_ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for part in _PARTS:
        assert f"\n{part}" in run.stdout
