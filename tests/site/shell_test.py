"""The commands in the pages of the site are understood by what they call."""

import contextlib
import os
import re
import subprocess
import tomllib

import pytest

from keras_plasticity import experiments
from keras_plasticity.experiments import command
from keras_plasticity.experiments import method_file
from keras_plasticity.experiments.suites.problems import PROBLEMS
from tests.examples import trainers
from tests.site import pages

_PROGRAMS = ("pip", "python", "python3")
# What a shell would call is printed, its words apart by zeros.
_PROLOGUE = "set -eu\nPATH=\n" + "".join(
    f"{name}() {{ printf '%s\\0' {name} \"$@\"; printf '\\n\\0'; }}\n"
    for name in _PROGRAMS
)


def _calls(code):
    """The calls of programs that a block of commands makes, as words."""
    # A name with a slash is never that of a function.
    script = _PROLOGUE + code.replace(".venv/bin/", "")
    process = subprocess.run(
        ["/bin/bash"], input=script, text=True, capture_output=True
    )
    assert process.returncode == 0, process.stderr
    calls = process.stdout.split("\0\n\0")
    assert calls.pop() == ""
    return [call.split("\0") for call in calls]


def _all_calls():
    """The calls in all pages, each once, by a name of the page."""
    pages_with_code = {**pages.written(), **pages.generated()}
    found = {}
    for path, text in pages_with_code.items():
        for block in pages.blocks(text):
            if block.language == "shell":
                for call in _calls(block.code):
                    found.setdefault(tuple(call), path)
    return found


@pytest.fixture(scope="module")
def calls():
    return _all_calls()


def test_trainers_take_the_flags(calls):
    count = 0
    for call, path in calls.items():
        program, *arguments = call
        if program != "pip" and arguments[0].startswith("examples/"):
            count += 1
            try:
                _parse(*arguments)
            except (Exception, SystemExit) as error:
                pytest.fail(f"{path}: {' '.join(call)}: {error}")
    assert count > 100


def test_sweeps_and_suites_take_the_flags(calls):
    seen = set()
    for program, *arguments in calls:
        if arguments[:2] != ["-m", "keras_plasticity.experiments"]:
            continue
        seen.add(arguments[2])
        known, flags = command.make_parser().parse_known_args(arguments[2:])
        if arguments[2] == "sweep":
            for pair in known.grid:
                flags.append(f"--{pair.split(',')[0]}")
            _parse(known.trainer, *flags)
        else:
            assert flags == []
            # README has a line with words to fill in.
            problems = {*PROBLEMS, "PROBLEM"}
            assert set(known.problems.split(",")) <= problems
    assert seen == {"suite", "sweep"}


def test_extras_can_be_installed(calls):
    text = (pages.ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    asked, packages = set(), set()
    for program, *arguments in calls:
        if program == "pip":
            assert arguments.pop(0) == "install"
            if arguments[0] == "-e":
                asked |= set(re.findall(r"\w+", arguments[1]))
            elif arguments != ["--no-deps", "-e", "."]:
                packages |= set(arguments)
    assert asked and asked <= set(project["optional-dependencies"])
    # Those without TensorFlow and what reads data sets by it.
    needed = {re.split("[<>=]", each)[0] for each in project["dependencies"]}
    needed -= {"importlib_resources", "tensorflow", "tensorflow-datasets"}
    assert packages == needed | {"jax", "matplotlib"}


def test_other_calls_are_known(calls):
    known = {"examples", "-m venv", "-m keras_plasticity.experiments", "-c"}
    for program, *arguments in calls:
        if program != "pip":
            first = arguments[0].split("/")[0]
            if first == "-m":
                first = " ".join(arguments[:2])
            assert first in known


def _parse(script, *arguments):
    name = os.path.basename(script).removesuffix(".py")
    trainer = trainers.load(name)
    with contextlib.chdir(pages.ROOT), method_file.using(arguments):
        flag_values = trainers.parse(trainer, *arguments)
        if name != "compare":
            # It refuses flags that no chosen method needs.
            parts = method_file.known(experiments.PARTS)
            experiments.choose_methods(flag_values, {}, ["bp", "cbp"], parts)
