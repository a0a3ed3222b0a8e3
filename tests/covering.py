"""Which tests execute which lines of the package, for `mutants.py`.

It is recorded by coverage.py: `pip install pytest-cov`.
"""

import ast
import os
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as xml

_DATA = "coverage"
_TESTS = "tests.xml"
# What it takes to collect the tests of one more file.
_SECONDS_OF_FILE = 0.5


def record(folder, project, jobs: int = 1):
    """Runs the suite as CI does with PyTorch, and records what it executes.

    Args:
        folder: String, what it is recorded in.
        project: String, a folder with a copy of the project.
        jobs: Integer, the number of processes.
    """
    folder = os.path.abspath(folder)
    os.makedirs(folder, exist_ok=True)
    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "--brief"),
            *("-p", "no:cacheprovider", "-n", str(jobs), "--dist", "worksteal"),
            *("--cov=keras_plasticity", "--cov-context=test", "--cov-report="),
            f"--junit-xml={folder}/{_TESTS}",
        ],
        cwd=project,
        env={
            **os.environ,
            "COVERAGE_FILE": f"{folder}/{_DATA}",
            "PYTHONPATH": str(project),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        check=False,  # Tests that fail are left out.
    )


class Covering:
    """What was recorded.

    Args:
        folder: String, see `record`.
    """

    def __init__(self, folder):
        import coverage

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
        """The tests that execute a line and passed, the quickest first.

        Args:
            path: String, the module's path in the project.
            source: String, the module's text.
            line: Integer, or the line of a part of a statement.
            seconds: Float, how long they may take together.

        Returns:
            List of tests, as arguments of pytest, those of the module's own
            files before all others. For what is executed when the module is
            imported, they are those of any of its lines. The list is empty if
            there are none in this process.
        """
        tests = self._tests_of_lines(path, _lines_of_statement(source, line))
        tests = tests or self._tests_of_lines(path)
        stem = pathlib.Path(path).stem.strip("_")
        files, found = set(), []
        for test in sorted(
            tests, key=lambda t: (stem not in _file(t), tests[t])
        ):
            seconds -= tests[test]
            seconds -= _SECONDS_OF_FILE * (_file(test) not in files)
            if seconds < 0 and found:
                break
            files.add(_file(test))
            found.append(test)
        return found

    def _tests_of_lines(self, path, lines=None):
        """Dict from test to seconds, of some lines or of the whole module."""
        if path not in self._contexts:
            self._contexts[path] = self._contexts_of(path)
        contexts = self._contexts[path]
        tests = {}
        for line in contexts if lines is None else lines:
            for test in contexts.get(line, ()):
                test = test.rpartition("|")[0]
                if test and _case(test) in self._seconds:
                    tests[test] = self._seconds[_case(test)]
        return tests

    def _contexts_of(self, path):
        for name in self._data.measured_files():
            if name.endswith(f"/{path}"):
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
