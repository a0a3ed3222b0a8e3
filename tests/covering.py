"""Which tests execute which lines of the package, for `mutants.py`.

It is recorded by coverage.py: `pip install pytest-cov`.
"""

import ast
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as xml

_DATA = "coverage"
_TESTS = "tests.xml"
_FILES = "files.json"
_SIGNATURES = "tests/signatures_test.py::test_parameters_and_defaults"
# What it takes to collect the tests of one more file.
_SECONDS_OF_FILE = 0.5


def record(folder, project, jobs: int = 1):
    """Runs the suite, but for the longest tests, and records what it executes.

    Args:
        folder: String, what it is recorded in.
        project: String, a folder with a copy of the project.
        jobs: Integer, the number of processes.
    """
    unfinished = f"{os.path.abspath(folder)}.unfinished"
    os.makedirs(unfinished, exist_ok=True)
    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-m", "not long"),
            *("-n", str(jobs), "--dist", "worksteal"),
            *("--cov=keras_plasticity", "--cov-context=test", "--cov-report="),
            f"--junit-xml={unfinished}/{_TESTS}",
        ],
        cwd=project,
        env={
            **os.environ,
            "COVERAGE_FILE": f"{unfinished}/{_DATA}",
            "PYTHONPATH": str(project),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        check=False,  # Tests that fail are left out.
    )
    digests = {
        each.relative_to(project).as_posix(): _digest(each.read_text())
        for each in pathlib.Path(project).rglob("*.py")
    }
    pathlib.Path(unfinished, _FILES).write_text(json.dumps(digests))
    os.rename(unfinished, folder)


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


class Covering:
    """What was recorded, as far as files are still what they were then.

    Args:
        folder: String, see `record`.
        project: String, the folder of the project now.
    """

    def __init__(self, folder, project):
        import coverage

        digests = json.loads(pathlib.Path(folder, _FILES).read_text())
        self._same = {
            path
            for path, digest in digests.items()
            if os.path.exists(f"{project}/{path}")
            and _digest(pathlib.Path(project, path).read_text()) == digest
        }

        self._data = coverage.CoverageData(f"{folder}/{_DATA}")
        self._data.read()
        cases = xml.parse(f"{folder}/{_TESTS}").iter("testcase")
        # Those that were skipped or failed have a child that says so.
        self._seconds = {
            (case.get("classname"), case.get("name")): float(case.get("time"))
            for case in cases
            if all(child.tag.startswith("system") for child in case)
        }
        self._contexts = {}

    def tests_of(self, path: str, source: str, line: int, seconds: float):
        """The tests that execute a line and passed, the nearest first.

        Args:
            path: String, the module's path in the project.
            source: String, the module's text.
            line: Integer, or the line of a part of a statement.
            seconds: Float, how long they may take together.

        Returns:
            List of tests, as arguments of pytest, those of the module's own
            files and folder before all others. For what is executed when the
            module is imported, they are those of any of its lines, and of
            signatures. The list is empty if there are none in this process.
        """
        tests = self._tests_of_lines(path, _lines_of_statement(source, line))
        # Defaults are among what is executed when a module is imported.
        found = [] if tests else [_SIGNATURES]
        tests = tests or self._tests_of_lines(path)
        folder, stem = pathlib.Path(path).parent.name, pathlib.Path(path).stem
        places = (stem.strip("_"), f"tests/{folder}/")

        def order(test):
            return [place not in _file(test) for place in places], tests[test]

        files = set()
        for test in sorted(tests, key=order):
            seconds -= tests[test]
            seconds -= _SECONDS_OF_FILE * (_file(test) not in files)
            if seconds < 0 and files:
                break
            files.add(_file(test))
            found.append(test)
        return found if files else []

    def _tests_of_lines(self, path, lines=None):
        """Dict from test to seconds, of some lines or of the whole module."""
        if path not in self._contexts:
            self._contexts[path] = self._contexts_of(path)
        contexts = self._contexts[path]
        tests = {}
        for line in contexts if lines is None else lines:
            for test in contexts.get(line, ()):
                test = test.rpartition("|")[0]
                is_known = _case(test) in self._seconds
                if test and is_known and _file(test) in self._same:
                    tests[test] = self._seconds[_case(test)]
        return tests

    def _contexts_of(self, path):
        for name in self._data.measured_files():
            if name.endswith(f"/{path}") and path in self._same:
                return self._data.contexts_by_lineno(name)
        return {}


def _file(test):
    return test.partition("::")[0]


def _case(test):
    """The name of a test in the XML file."""
    file, _, name = test.partition("::")
    function, bracket, parameters = name.partition("[")
    *classes, function = function.split("::")
    place = [file.removesuffix(".py").replace("/", "."), *classes]
    return ".".join(place), function + bracket + parameters


def _lines_of_statement(source, line):
    """The lines from the innermost statement's first one up to a line."""
    first = max(
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt) and node.lineno <= line <= node.end_lineno
    )
    return range(first, line + 1)
