"""The script itself, on any machine, and how it reads pytest."""

import importlib
import json
import pathlib
import subprocess
import sys

import keras
import pytest

_FOLDER = pathlib.Path(__file__).parent
_BACKEND = keras.backend.backend()


def start(*arguments):
    return subprocess.run(
        [sys.executable, str(_FOLDER / "on_gpu.py"), *arguments],
        capture_output=True,
        text=True,
    )


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.syspath_prepend(_FOLDER)  # As for a script.
    return importlib.import_module("on_gpu")


@pytest.mark.slow
@pytest.mark.long
def test_tiny(tmp_path):
    path = tmp_path / "results.json"
    result = start("--tiny", f"--out={path}", "--backends", _BACKEND)
    assert result.returncode == 0, result.stdout + result.stderr
    content = json.loads(path.read_text())
    assert content["left_out"] == []
    (traces,) = content["tests"]
    assert traces["ended"] and traces["passed"] == 1
    assert traces["failed"] == []
    rows = [cell["row"] for cell in content["cells"]]
    eager = ["bp", "cbp"] if _BACKEND == "torch" else []
    assert rows == ["copy", "bp", "stats", "cbp", *eager]
    for cell in content["cells"]:
        assert 0 < cell["least"] <= cell["microseconds"] <= cell["most"]
        assert cell["peak_bytes"] > 2**20
    for text in ("| us/step |", "| cbp |", "GB/s", "1 passed, 0 failed"):
        assert text in result.stdout


@pytest.mark.slow
def test_what_does_not_fit_is_left_out(tmp_path):
    path = tmp_path / "results.json"
    result = start(
        *("--tiny", f"--out={path}", "--backends", _BACKEND, "--seconds=1")
    )
    assert result.returncode == 1
    content = json.loads(path.read_text())
    assert content["cells"] == []
    assert all("not compiled in time" in e for e in content["left_out"])
    assert len(content["left_out"]) >= 4
    assert "NOT ENDED" in result.stdout
    assert f"left out: {_BACKEND} copy" in result.stdout


def test_outcomes_of_tests(on_gpu):
    lines = [
        "tests/a_test.py::test_b[1 - x] PASSED                     [ 50%]",
        "tests/a_test.py::test_c SKIPPED (of another backend)      [100%]",
        "[gw1] [ 33%] FAILED tests/a_test.py::test_d[x y] ",
        "tests/a_test.py::test_e ",
        "FAILED tests/a_test.py::test_d[x y] - AssertionError",
    ]
    assert on_gpu.outcomes(lines) == {
        "tests/a_test.py::test_b[1 - x]": "PASSED",
        "tests/a_test.py::test_c": "SKIPPED",
        "tests/a_test.py::test_d[x y]": "FAILED",
    }


@pytest.mark.parametrize("backend", ["jax", "torch", "tensorflow"])
def test_cells(on_gpu, backend):
    cells = on_gpu.cells(backend, tiny=False)
    names = [on_gpu.name_of(cell) for cell in cells]
    assert len(set(names)) == len(names)
    assert all(20 <= cell["steps"] <= 20_000 for cell in cells)
    assert ("eager" in {cell["mode"] for cell in cells}) == (backend == "torch")
    assert f"{backend} engine, mnist 3x100, 1 learner, stats" in names
    assert cells[0]["row"] == "copy"


def test_table(on_gpu):
    """A step of 20 us, of which the memory alone takes 10."""
    cell = {
        **on_gpu.cells("jax", tiny=False)[1],
        **{"microseconds": 20.0, "least": 19.0, "most": 21.0},
        **{"wall_microseconds": 25.0, "compile_seconds": 3.0},
        "peak_bytes": 5e9,
    }
    assert (cell["problem"], cell["row"]) == ("regression", "bp")
    # 4 passes over 105 weights of 30 learners.
    moved = 4 * 4 * 105 * 30
    copy = {"mode": "copy", "size": 10**6, "microseconds": 8e7 / moved}
    eager = {"mode": "eager", "problem": "regression", "row": "bp"}
    eager |= {key: cell[key] for key in cell if key not in eager}
    eager |= {"learners": 1, "microseconds": 940.0}
    lines = on_gpu.table({"cells": [cell, copy, eager]})
    row = [word.strip() for word in lines[2].split("|")[1:-1]]
    assert row[:6] == ["jax", "engine", "regression", "30", "bp", "20.0"]
    assert row[6:] == ["19.0-21.0", "25.0", "940", "10.0", "3.0", "5.00"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backends", "numpy"], "invalid choice: 'numpy'"),
        (["--precision=float16"], "invalid choice: 'float16'"),
        (["--seconds=soon"], "invalid float value: 'soon'"),
    ],
)
def test_bad_arguments(on_gpu, arguments, message, capsys):
    with pytest.raises(SystemExit):
        on_gpu.main(arguments)
    assert message in capsys.readouterr().err
