"""Which tests are chosen for a line, from what was recorded."""

import json

import coverage
import pytest

from tests.covering import _FILES
from tests.covering import _SIGNATURES
from tests.covering import Covering
from tests.covering import _digest

_PATH = "keras_plasticity/seeds.py"
_SOURCE = """\
X = 1


def f(a):
    if a:
        return max(
            a,
            2,
        )
    return 3
"""
# Which lines a test executes, how long it takes, and how it ends.
_TESTS = {
    "tests/a_test.py::test_slow": ([5, 6, 7], 0.5, ""),
    "tests/a_test.py::TestF::test_it[a::b]": ([5, 10], 0.2, ""),
    "tests/seeds_test.py::test_own": ([5, 6, 7], 0.9, "<system-out/>"),
    "tests/a_test.py::test_fails": ([5], 0.1, "<failure/>"),
    "tests/a_test.py::test_skipped": ([5], 0.1, "<skipped/>"),
}
_SLOW, _IN_CLASS, _OWN, *_ = _TESTS


@pytest.fixture(name="covering")
def fixture_covering(tmp_path):
    data = coverage.CoverageData(str(tmp_path / "coverage"))
    file = str(tmp_path / "copy" / _PATH)
    # What importing it executes.
    data.add_lines({file: [1, 4]})
    cases = []
    for test, (lines, seconds, end) in _TESTS.items():
        data.set_context(f"{test}|run")
        data.add_lines({file: lines})
        place, _, name = test.replace(".py", "").partition("::")
        if name.startswith("TestF::"):
            place, name = f"{place}.TestF", name.removeprefix("TestF::")
        cases.append(
            f'<testcase classname="{place.replace("/", ".")}" name="{name}" '
            f'time="{seconds}">{end}</testcase>'
        )
    data.write()
    text = f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>"
    (tmp_path / "tests.xml").write_text(text)
    digests = {}
    for name in (_PATH, "tests/a_test.py", "tests/seeds_test.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        digests[name] = _digest(name)
    (tmp_path / _FILES).write_text(json.dumps(digests))
    return Covering(str(tmp_path), str(tmp_path))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # Where the module is imported: those of all lines.
        (1, [_SIGNATURES, _OWN, _IN_CLASS, _SLOW]),
        (5, [_OWN, _IN_CLASS, _SLOW]),
        (6, [_OWN, _SLOW]),
        # A part of a statement, with the lines before it.
        (8, [_OWN, _SLOW]),
        (10, [_IN_CLASS]),
    ],
)
def test_own_tests_and_quick_ones_come_first(covering, line, expected):
    assert covering.tests_of(_PATH, _SOURCE, line, seconds=60) == expected


def test_a_module_that_nothing_executes(covering):
    path = "keras_plasticity/weights.py"
    assert covering.tests_of(path, _SOURCE, 5, seconds=60) == []


@pytest.mark.parametrize(("seconds", "number"), [(0, 1), (2.2, 2), (3, 3)])
def test_until_the_seconds_are_over(covering, seconds, number):
    tests = covering.tests_of(_PATH, _SOURCE, 5, seconds)
    assert tests == [_OWN, _IN_CLASS, _SLOW][:number]


def test_what_has_changed_since_is_left_out(covering, tmp_path):
    (tmp_path / "tests/a_test.py").write_text("Another one.")
    again = Covering(str(tmp_path), str(tmp_path))
    assert again.tests_of(_PATH, _SOURCE, 5, seconds=60) == [_OWN]
    (tmp_path / _PATH).write_text("Another one.")
    again = Covering(str(tmp_path), str(tmp_path))
    assert again.tests_of(_PATH, _SOURCE, 5, seconds=60) == []
