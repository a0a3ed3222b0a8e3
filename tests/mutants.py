"""Makes small faults in the package, and counts those that the tests notice.

    KERAS_BACKEND=torch python -m tests.mutants --mutants=300 --seed=0

A mutant is the package with one small change: a comparison flipped, a sign, a
constant, a deleted statement. The tests ought to fail with it. Each folder of
the package has the same share of the mutants, which are drawn by `--seed`, so
a larger `--mutants` continues with the same ones. For each mutant tests run
until one fails, hangs, or `--seconds` are over: with `--coverage` those of CI
that execute the changed line, as the suite has recorded there once; without
it, and for what is executed when a module is imported, those nearest to the
file, then those of its folder and `_MORE_TESTS`. Modules of another backend are
left out, and so are messages, docstrings and annotations. It all happens in
temporary copies of the project.

It prints a table, and the line of each survivor: a test that is missing, or a
change that nobody can see, which belongs into `EQUIVALENT`. With `--results`,
what is done is kept in a file, from which a later call continues.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from itertools import islice
from itertools import zip_longest

# As the tests have it, but before they import it.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras  # noqa: E402
import pytest  # noqa: E402
import tensorflow  # noqa: E402, F401

from tests.covering import Covering  # noqa: E402
from tests.covering import record  # noqa: E402
from tests.mutants_equivalent import EQUIVALENT  # noqa: E402
from tests.mutations import mutants_of  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
_PACKAGE = "keras_plasticity"
_BACKENDS = ("jax", "tensorflow", "torch")
# So many seconds after the last test should have begun, it hangs.
_HANGS = 180
_SECONDS = "KERAS_PLASTICITY_TEST_SECONDS"
_START = time.monotonic()
_NOT_COPIED = shutil.ignore_patterns(".git", ".*_cache", ".venv*", "logs")

# What is kept of a mutant.
_KEPT = ("path", "line", "text", "old", "new")

# Tests in other places that check what is computed in a folder.
_MORE_TESTS = {
    "": ["tests/training/saver_test.py", "tests/layers"],
    "backend": [
        "tests/optimizers/observations_test.py",
        "tests/graph/modules_test.py",
        "tests/optimizers",
    ],
    "callbacks": ["tests/docstrings_test.py"],
    "datasets": ["tests/examples"],
    "diagnosis": ["tests/callbacks"],
    "diagnostics": ["tests/callbacks", "tests/diagnosis"],
    "experiments": ["tests/examples", "tests/seeds_test.py"],
    "functional": [
        "tests/optimizers/continual_backprop_oracle_test.py",
        "tests/golden_traces_test.py",
    ],
    "graph": ["tests/keras_uses_test.py", "tests/nested_models_test.py"],
    "layers": [
        "tests/keras_features_test.py",
        "tests/quantization_test.py",
        "tests/graph/connections_test.py",
        "tests/optimizers/continual_backprop_test.py",
    ],
    "models": ["tests/docstrings_test.py", "tests/nested_models_test.py"],
    "native": ["tests/conformance_test.py"],
    "optimizers": [
        "tests/method_traces",
        "tests/seeds_test.py",
        "tests/nested_models_test.py",
    ],
    "streams": ["tests/seeds_test.py", "tests/docstrings_test.py"],
    "training": ["tests/docstrings_test.py", "tests/seeds_test.py"],
    "units": [
        "tests/graph",
        "tests/optimizers/continual_backprop_test.py",
        "tests/optimizers/unit_reset_optimizer_test.py",
        "tests/layers",
    ],
    "utils": ["tests/callbacks/plasticity_monitor_test.py"],
}


def draw(number: int, seed: int, folder=None) -> list[dict]:
    """Draws mutants, the same number in each folder.

    Args:
        number: Integer, of all folders together.
        seed: Integer.
        folder: String, the only folder to draw from; `""` for the modules
            beside the folders. Defaults to all folders.

    Returns:
        List of dicts: the file's `path`, the `line` and its `text`, what is
        replaced there (`old`, `new`), the whole file (`source`, `before`).
    """
    other = {*_BACKENDS} - {keras.backend.backend()}
    if "jax" in other:
        other.add("optax")
    folders = collections.defaultdict(list)
    for path in sorted((ROOT / _PACKAGE).rglob("*.py")):
        if path.stem.split("_")[0] in other or path.stem == "version":
            continue
        name = path.relative_to(ROOT).as_posix()
        if folder not in (None, _folder(name)):
            continue
        before = path.read_text()
        for mutant in mutants_of(before):
            each = dict(zip(("line", "old", "new", "source"), mutant))
            each["text"] = before.splitlines()[each["line"] - 1].strip()
            folders[_folder(name)].append(
                {"path": name, "before": before, **each}
            )
    for name, mutants in folders.items():
        random.Random(f"{seed} {name}").shuffle(mutants)
    # In turns, until there are enough.
    turns = zip_longest(*folders.values())
    drawn = (each for turn in turns for each in turn if _is_valid(each))
    return list(islice(drawn, number))


def _is_valid(mutant):
    try:
        return bool(mutant and compile(mutant["source"], "mutant", "exec"))
    except SyntaxError:
        return False


def _folder(path):
    return path.split("/")[1] if path.count("/") > 1 else ""


def tests_of(path: str) -> list[str]:
    """The test files for a module, those nearest to it first."""
    folder, stem = _folder(path), pathlib.Path(path).stem
    places = [f"tests/{folder}/" if folder else "tests/*", *_MORE_TESTS[folder]]
    places.append("tests/signatures_test.py")
    found = []
    for place in places:
        pattern = place if place.endswith((".py", "*")) else f"{place}/**/*"
        files = [
            each.relative_to(ROOT).as_posix()
            for each in ROOT.glob(pattern.replace("//", "/"))
            if each.name.endswith("_test.py")
        ]
        own = [each for each in files if stem.strip("_") in each]
        small = sorted(files, key=lambda each: (ROOT / each).stat().st_size)
        found += [*own, *small]
    left_out = ("tests/mutants_test.py", "tests/fuzz_test.py")
    return [each for each in dict.fromkeys(found) if each not in left_out]


def pytest_runtest_protocol(item, nextitem):
    """As a plugin of pytest, it leaves out what comes too late."""
    if time.monotonic() - _START > float(os.environ[_SECONDS]):
        return True


class Run:
    """A run of tests in a copy of the project, perhaps with a mutant.

    It is a fork, so that it need not import Keras and its backend once more.

    Args:
        folder: String, the folder of the copy.
        tests: List of files, or of tests.
        seconds: Integer, how long new tests are begun.
        mutant: Dict, from `draw`; `None` for the package as it is.
    """

    def __init__(self, folder, tests, seconds, mutant=None):
        self.folder = folder
        self.tests = tests
        self.mutant = mutant
        self._end = time.monotonic() + seconds + _HANGS
        self._write("source")
        self._process = os.fork()
        if not self._process:
            status = 1
            try:
                status = _test(folder, tests, seconds)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)

    def stop(self):
        """Ends it, with all processes that its tests have begun."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process, signal.SIGKILL)
        self._write("before")

    def _write(self, which):
        if self.mutant is not None:
            path = pathlib.Path(self.folder, self.mutant["path"])
            path.write_text(self.mutant[which])

    def has_failed(self):
        """Whether a test has failed, or hangs; `None` while they run."""
        process, status = os.waitpid(self._process, os.WNOHANG)
        if not process and time.monotonic() < self._end:
            return None
        self.stop()
        if not process:
            os.waitpid(self._process, 0)
        return not process or status != 0


def _test(folder, tests, seconds):
    """Runs tests in a new process; returns their exit status."""
    os.setsid()
    log = os.open(f"{folder}.log", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.chdir(folder)
    # All that is of this project comes from the copy.
    sys.path[:] = [folder, *(p for p in sys.path if p not in ("", str(ROOT)))]
    for name in list(sys.modules):
        if name.split(".")[0] in ("tests", _PACKAGE):
            del sys.modules[name]
    os.environ["PYTHONPATH"] = folder
    os.environ[_SECONDS] = str(seconds)
    # Compiled files would hide changes within a second.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-p", "tests.mutants"]
    if not any("::" in test for test in tests):
        arguments += ["-m", "not slow"]
    return pytest.main([*arguments, *tests])


def run(
    mutants: list[dict],
    results=None,
    jobs: int = 1,
    seconds: int = 60,
    tests=None,
    coverage=None,
) -> list[dict]:
    """Runs the tests with each mutant.

    Args:
        mutants: List, from `draw`.
        results: String, a file of JSON lines to continue, and to append to.
        jobs: Integer, how many to run at once.
        seconds: Integer, how long new tests are begun.
        tests: List of test files. Defaults to those of `tests_of`.
        coverage: String, a folder that `record` has made, or is to make.
            Defaults to none.

    Returns:
        List of dicts like the mutants, without their source and with
        `outcome`: `"noticed"`, `"equivalent"` or `"survived"`.
    """
    known = {}
    if results is not None and os.path.exists(results):
        for line in pathlib.Path(results).read_text().splitlines():
            each = json.loads(line)
            known[key(each)] = each
    known |= {each: {"outcome": "equivalent"} for each in EQUIVALENT}
    left_out = set()
    new = [mutant for mutant in mutants if key(mutant) not in known]
    near = {m["path"]: tests or tests_of(m["path"]) for m in new}

    def finish(run):
        failed = run.has_failed()
        if failed is None:
            return False
        if run.mutant is None:
            if failed:
                log = pathlib.Path(f"{run.folder}.log").read_text()
                print(f"Left out, as tests fail without a mutant: {log}")
                left_out.add(frozenset(run.tests))
            return True
        done = {name: run.mutant[name] for name in _KEPT}
        done["outcome"] = "noticed" if failed else "survived"
        known[key(run.mutant)] = done
        if results is not None:
            with open(results, "a") as file:
                file.write(json.dumps(done) + "\n")
        return True

    with contextlib.ExitStack() as stack:
        folders = []
        for _ in range(jobs):
            parent = stack.enter_context(tempfile.TemporaryDirectory())
            folders.append(f"{parent}/project")
            shutil.copytree(ROOT, folders[-1], ignore=_NOT_COPIED)
        if coverage is not None and not os.path.exists(coverage):
            record(coverage, folders[0], jobs)
        chosen = [near[mutant["path"]] for mutant in new]
        if coverage is not None:
            covering = Covering(coverage, ROOT)
            names = "path", "before", "line"
            chosen = [
                covering.tests_of(*[mutant[n] for n in names], seconds) or tests
                for mutant, tests in zip(new, chosen, strict=True)
            ]
        # First without a mutant, once for each folder. Of those that were
        # recorded it is known that they passed.
        whole = {
            frozenset(tests): tests
            for tests in chosen
            if not any("::" in test for test in tests)
        }
        waiting = [(tests, None) for tests in whole.values()]
        waiting += zip(chosen, new, strict=True)
        running = []
        stack.callback(lambda: [each.stop() for each in running])
        while waiting or running:
            while folders and waiting:
                those, mutant = waiting.pop(0)
                if frozenset(those) in left_out:
                    continue
                running.append(Run(folders.pop(), those, seconds, mutant))
            time.sleep(0.1)
            for each in [each for each in running if finish(each)]:
                running.remove(each)
                folders.append(each.folder)
    return [
        {name: mutant[name] for name in _KEPT}
        | {"outcome": known[key(mutant)]["outcome"]}
        for mutant in mutants
        if key(mutant) in known
    ]


def key(mutant):
    """What a mutant is known by."""
    # Not by number, which changes with what is above.
    return tuple(mutant[name] for name in ("path", "text", "old", "new"))


def table(results: list[dict]) -> str:
    """The counts by folder, and the survivors, as Markdown."""
    counts = collections.defaultdict(collections.Counter)
    for each in results:
        for folder in (_folder(each["path"]) or "top level", "all"):
            counts[folder][each["outcome"]] += 1
    lines = ["| folder | mutants | noticed | equivalent | survived |"]
    lines.append("|---|---|---|---|---|")
    for folder in sorted(counts, key=lambda name: (name == "all", name)):
        count = counts[folder]
        numbers = [count[k] for k in ("noticed", "equivalent", "survived")]
        cells = [folder, sum(numbers), *numbers]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines.append("")
    for each in results:
        if each["outcome"] == "survived":
            place = f"{each['path']}:{each['line']}: `{each['text']}`"
            lines.append(f"- {place}: `{each['old']}` -> `{each['new']}`")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help='only this one; "" for top level')
    parser.add_argument("--jobs", type=int, default=1, help="how many at once")
    parser.add_argument(
        "--seconds", type=int, default=60, help="for the tests of one mutant"
    )
    parser.add_argument("--results", help="file to continue and append to")
    parser.add_argument(
        "--coverage",
        help="folder with what the tests execute, recorded first where there "
        "is none",
    )
    args = parser.parse_args()
    mutants = draw(args.mutants, args.seed, args.folder)
    results = run(
        mutants,
        args.results,
        args.jobs,
        args.seconds,
        coverage=args.coverage,
    )
    print(table(results))


if __name__ == "__main__":
    main()
