"""What `mutants.py` changes, and what it says of three mutants."""

import json
import os
import subprocess
import sys

import pytest

from tests import mutants
from tests.mutations import mutants_of

_SOURCE = '''
"""A module: 1 + 1."""

__all__ = ["f"]


def f(x: int = 1, axis: list[2] = None):
    """Returns 3."""
    if not x < 2 and g(x, 0):
        raise ValueError(f"{x + 4} is less than 5")
    self.x = max(x, True)
    y = "text"
    logging.info("%d", 6)
    return -x
'''
_EXPECTED = {
    ("1", "(2)"),
    ("1", "(0)"),
    ("not x < 2 and g(x, 0)", "(not x < 2 or g(x, 0))"),
    ("not x < 2 and g(x, 0)", "(not (not x < 2 and g(x, 0)))"),
    ("not x < 2", "(x < 2)"),
    ("x < 2", "(x <= 2)"),
    ("x < 2", "(x >= 2)"),
    ("2", "(3)"),
    ("2", "(1)"),
    ("g(x, 0)", "(g(0, x))"),
    ("0", "(1)"),
    ("0", "(-1)"),
    ('raise ValueError(f"{x + 4} is less than 5")', "pass"),
    ("self.x = max(x, True)", "pass"),
    ("max", "(min)"),
    ("True", "(False)"),
    ("return -x", "return None"),
    ("-x", "(x)"),
}


def test_changes():
    found = mutants_of(_SOURCE)
    assert {(old, new) for _, old, new, _ in found} == _EXPECTED
    lines = _SOURCE.splitlines()
    for line, old, new, text in found:
        assert old in lines[line - 1]
        changed = lines[line - 1].replace(old, new)
        # The first of it in the line, or another one.
        assert text.splitlines()[line - 1] == changed or old in ("1", "2", "0")
        compile(text, "mutant", "exec")


@pytest.mark.slow
def test_every_folder_has_its_share_and_its_tests():
    package = mutants.ROOT / "keras_plasticity"
    number = 1 + len(list(package.glob("*/__init__.py")))
    drawn = mutants.draw(2 * number, seed=0)
    folders = [mutants._folder(each["path"]) for each in drawn]
    assert len(set(folders)) == number
    assert folders[:number] == folders[number:]
    assert drawn[:20] == mutants.draw(20, seed=0)
    assert drawn[:number] != mutants.draw(number, seed=1)
    for each in drawn:
        tests = mutants.tests_of(each["path"])
        assert tests and all((mutants.ROOT / test).exists() for test in tests)
    of_saver = mutants.tests_of("keras_plasticity/training/saver.py")
    assert of_saver[0] == "tests/training/saver_test.py"


# In a process of its own, as it forks.
_PROGRAM = """
import json
from tests import mutants

wanted = {
    ("decay_rate > 0", "(decay_rate <= 0)"),
    ("1.0 - decay_rate", "(1.0 + decay_rate)"),
    ("value - mean", "(value + mean)"),
}
chosen = [
    each
    for each in mutants.draw(10**6, 0, "functional")
    if each["path"].endswith("running_mean.py")
    and (each["old"], each["new"]) in wanted
]
mutants.EQUIVALENT[mutants.key(chosen[0])] = "For this test."
tests = ["tests/functional/running_mean_test.py"]
print("RESULTS", json.dumps([
    [each["new"] == chosen[0]["new"], each["outcome"]]
    for each in mutants.run(chosen, tests=tests)
]))
"""


@pytest.mark.slow
def test_three_mutants():
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        cwd=mutants.ROOT,
        env={**os.environ, "PYTHONPATH": str(mutants.ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("RESULTS")]
    outcomes = sorted(json.loads(line.removeprefix("RESULTS")))
    assert outcomes == [
        [False, "noticed"],
        [False, "noticed"],
        [True, "equivalent"],
    ]


def test_table():
    done = [
        {"path": "keras_plasticity/seeds.py", "outcome": "noticed"},
        {
            "path": "keras_plasticity/graph/trace.py",
            "outcome": "survived",
            "line": 3,
            "text": "x = 1",
            "old": "1",
            "new": "(2)",
        },
    ]
    assert (
        mutants.table(done)
        == """\
| folder | mutants | noticed | equivalent | survived |
|---|---|---|---|---|
| graph | 1 | 0 | 0 | 1 |
| top level | 1 | 1 | 0 | 0 |
| all | 2 | 1 | 0 | 1 |

- keras_plasticity/graph/trace.py:3: `x = 1`: `1` -> `(2)`"""
    )
