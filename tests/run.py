"""Installs the project in a fresh environment and passes all of its tests.

    python3 tests/run.py

It needs Python 3.11 or newer and nothing else: it makes a virtual environment
(`--environment`, by default `.venv-tests`), installs the project with the
three backends, checks the format, and runs the test suite once for each
backend: with PyTorch, which is the quickest, all of it, but for what is marked
`long` and, where a slow test has many cases, two thirds of them; with JAX and
TensorFlow what depends on the backend most, by another third of the cases, and
a small sample of the rest, but for tests marked `slow`. With `--all` or
`--backend` it runs all tests. It prints each command before it runs, and one
line for each backend that says how many tests ran.

    python3 tests/run.py --versions=oldest
    python3 tests/run.py --versions=newest

test other versions than pip would take, each in an environment of its own: the
oldest ones that are stated, and the newest ones, Keras' nightly build and
others' pre-releases among them. With `--backend` only that backend is
installed, but for TensorFlow, which reads data sets. PyTorch brings several GB
of CUDA packages with it then.

The tests of the trainers read data sets from the `tensorflow_datasets` folder
that the environment variable `KERAS_PLASTICITY_DATA_DIR` names, and are
skipped, with the reason, where there is none.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent
BACKENDS = ("jax", "tensorflow", "torch")
# Which tests each of them runs, as arguments of pytest; see `conftest.py`.
_WHICH = {
    "jax": ["-m", "not slow", "--brief", "--sample", "0"],
    "tensorflow": ["-m", "not slow", "--brief", "--sample", "1"],
    "torch": ["--brief"],
}
# The CPU build where there is one to be had; plain `torch` would bring several
# GB of CUDA packages with it.
TORCH = "torch==2.13.0"
OLDEST = "tests/oldest_versions.txt"
# What is imported is compiled for the first process only: many tests begin
# others, which import Keras and a backend, too.
_COMPILE_ONCE = {"PYTHONDONTWRITEBYTECODE": ""}
# Packages of other versions warn of other things, which is no error.
_WARNINGS = ["-Wdefault"]


def run(*command, **environment):
    """Prints a command and runs it; returns its status and its lines."""
    settings = [f"{key}={value}" for key, value in environment.items()]
    print("$", *settings, *command, flush=True)
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **_COMPILE_ONCE, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    return process.wait(), lines


def require(*command, **environment):
    status, _ = run(*command, **environment)
    if status:
        sys.exit(f"Failed with exit status {status}: {' '.join(command)}")


def install(python, *packages):
    """Installs packages, again where a download breaks off."""
    # Of 25,000 files few are ever imported: Python compiles those by itself,
    # see `_COMPILE_ONCE`.
    options = ("-q", "--no-compile")
    command = (python, "-m", "pip", "install", *options, *packages)
    for _ in range(2):
        if run(*command)[0] == 0:
            return
        print("Failed; once more in 10 seconds.", flush=True)
        time.sleep(10)
    require(*command)


def install_project(python, versions, backends):
    if versions is None:
        install(python, TORCH)
        install(python, "-e", ".[jax,torch,figures,sweep,test]")
        return
    extras = [name for name in backends if name != "tensorflow"]
    project = f".[{','.join([*extras, 'figures', 'sweep', 'test'])}]"
    if versions == "oldest":
        install(python, "-c", OLDEST, "-e", project)
        return
    latest = ("--pre", "--upgrade", "--upgrade-strategy", "eager")
    install(python, *latest, "-e", project)
    # It has the same files as `keras`, but pip does not take it for that.
    require(python, "-m", "pip", "uninstall", "-q", "-y", "keras")
    install(python, "--pre", "--no-deps", "--force-reinstall", "keras-nightly")


def test(python, backend, arguments, which, cache):
    """Runs the suite on one backend; returns whether it passed, and a line."""
    start = time.monotonic()
    status, lines = run(
        python,
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",
        # No process is left with all the long tests.
        "--dist",
        "worksteal",
        "-rs",
        *which,
        *arguments,
        KERAS_BACKEND=backend,
        TF_CPP_MIN_LOG_LEVEL="3",
        # On JAX most of the time goes into compiling, often what another test
        # has compiled before.
        # There are as many processes as cores.
        OMP_NUM_THREADS="1",
        TF_NUM_INTRAOP_THREADS="1",
        TF_NUM_INTEROP_THREADS="1",
        JAX_COMPILATION_CACHE_DIR=cache,
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    )
    # TensorFlow may have the last word: look for the line with the counts.
    counts = [
        line for line in lines if re.search(r"\d+ (passed|failed|err)", line)
    ]
    counts = re.sub(
        r"[=\n]| in .*", "", counts[-1] if counts else "no test ran"
    )
    seconds = time.monotonic() - start
    return status == 0, f"{backend}: {counts.strip()} ({seconds:.0f} s)"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--environment",
        help="folder of the virtual environment, made if it is not there; "
        "default: .venv-tests, or .venv-oldest, or .venv-newest",
    )
    parser.add_argument(
        "--backend", choices=BACKENDS, help="only this backend; default: all"
    )
    parser.add_argument(
        "--versions",
        choices=("oldest", "newest"),
        help="versions of other packages; default: those that pip takes",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="run all tests on all backends",
    )
    parser.add_argument(
        "--skip_lint",
        action="store_true",
        help="do not check the format",
    )
    parser.add_argument(
        "pytest_arguments", nargs="*", help="passed on to pytest, after --"
    )
    arguments = parser.parse_args()

    name = arguments.environment or f".venv-{arguments.versions or 'tests'}"
    environment = ROOT / name
    if not (environment / "bin" / "python").exists():
        print(f"$ python3 -m venv {name}", flush=True)
        venv.create(environment, with_pip=True)
    python = str(environment / "bin" / "python")
    backends = [arguments.backend] if arguments.backend else BACKENDS
    install_project(python, arguments.versions, backends)
    if not arguments.skip_lint:
        require(python, "-m", "ruff", "check", ".")
        require(python, "-m", "ruff", "format", "--check", ".")

    rest = arguments.pytest_arguments
    if arguments.versions:
        rest = [*_WARNINGS, *rest]
    passed = True
    lines = []
    for backend in backends:
        which = []
        if not arguments.all and not arguments.backend:
            which = _WHICH[backend]
        with tempfile.TemporaryDirectory() as cache:
            ok, line = test(python, backend, rest, which, cache)
        passed = passed and ok
        lines.append(line)
    print("\n".join(lines))
    if not passed:
        sys.exit("Some tests failed.")


if __name__ == "__main__":
    main()
