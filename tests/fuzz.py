"""Calls all that is public with odd arguments.

    KERAS_BACKEND=torch python -m tests.fuzz --cases=20000 --seed=0

A case takes a public function, constructor or method with valid arguments,
those of its recipe in `fuzz_recipes.py`, and replaces one or two of them by odd
values: `None`, NaN, -1, 2**70, strings, uneven lists, objects of other kinds.
The call has to work, and so has the use that the recipe makes of its result; or
it has to raise one `ValueError` or `TypeError` whose message names an argument
that was replaced, and says what was received. Anything else is a failure:
another error, a warning, or a case that takes longer than `--seconds`.

What is public is found from `__all__`. The program refuses to run if any of it,
or one of its arguments, has no recipe.

It prints how many cases were accepted and refused, and each failure once.
"""

import argparse
import collections
import contextlib
import dataclasses
import faulthandler
import importlib
import importlib.metadata
import inspect
import io
import os
import platform
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable

import keras

import keras_plasticity
from tests import fuzz_recipes
from tests.helpers import parameters
from tests.odd_values import ODD_VALUES

_PACKAGES = ("experiments", "utils")  # Besides those in `__all__`.
# NumPy 2 asks for it, Keras' tensors do not know it: see `pyproject.toml`.
_WARNING = "__array__ implementation doesn't accept a copy keyword"


class TooSlow(BaseException):
    """A case has taken too long. No `except Exception` catches it."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        case: String, the callable and what was replaced.
        kind: String, `"accepted"`, or the name of the error that refused.
        problem: String, what is wrong with it; empty if nothing is.
    """

    case: str
    kind: str
    problem: str = ""


def public_callables() -> dict[str, Callable]:
    """All public functions, constructors and methods.

    Of methods those count that are documented with arguments, and that neither
    Keras nor another base class from elsewhere has.
    """
    found = {
        f"keras_plasticity.{name}": getattr(keras_plasticity, name)
        for name in keras_plasticity.__all__
    }
    packages = [
        name.rpartition(".")[2]
        for name, value in found.items()
        if inspect.ismodule(value)
    ]
    for package in [*packages, *_PACKAGES]:
        module = importlib.import_module(f"keras_plasticity.{package}")
        for name in module.__all__:
            found[f"{package}.{name}"] = getattr(module, name)
    found = {name: each for name, each in found.items() if callable(each)}
    for name, kind in list(found.items()):
        if inspect.isclass(kind):
            for method, function in vars(kind).items():
                if _is_own_method(kind, method, function):
                    found[f"{name}.{method}"] = function
    return found


def _is_own_method(kind, name, function):
    function = getattr(function, "__func__", function)
    if name.startswith("_") or not inspect.isfunction(function):
        return False
    if "Args:" not in (function.__doc__ or ""):
        return False
    return not any(
        hasattr(base, name)
        for base in kind.__mro__
        if not base.__module__.startswith("keras_plasticity")
    )


def missing_recipes() -> list[str]:
    """What is public and has no recipe, and recipes of what is not there."""
    callables = public_callables()
    recipes = fuzz_recipes.RECIPES
    known = {*recipes, *fuzz_recipes.NOT_FUZZED}
    missing = [f"{name}: no recipe" for name in sorted({*callables} - known)]
    missing += [f"{name}: not public" for name in sorted(known - {*callables})]
    for name in sorted({*recipes} & {*callables}):
        missing += [
            f"{name}: no valid value for `{each}`"
            for each in _own_parameters(callables[name])
            if each not in recipes[name].arguments
        ]
    return missing


def _own_parameters(function):
    """Names of parameters that have one; not `self`, `*args`, `**kwargs`."""
    return [
        parameter.name
        for parameter in parameters(function)
        if parameter.name != "self"
        and parameter.kind
        not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def run_case(rng: random.Random, seconds: float) -> Outcome:
    """Runs one case.

    Args:
        rng: `random.Random` that chooses it.
        seconds: Float, how long it may take.
    """
    recipes = fuzz_recipes.RECIPES
    names = list(recipes)
    (name,) = rng.choices(names, [recipes[each].weight for each in names])
    recipe = recipes[name]
    fuzzed = [each for each in recipe.arguments if each not in recipe.fixed]
    replaced = rng.sample(fuzzed, min(len(fuzzed), rng.choice([1, 1, 2])))
    labels = {each: _choose_value(rng, recipe, each) for each in replaced}
    return call(name, labels, seconds)


def call(name: str, labels: dict[str, str], seconds: float) -> Outcome:
    """Calls something public with odd values for some arguments.

    Args:
        name: String, the name of a recipe.
        labels: Dict from argument to the name of an odd value.
        seconds: Float, how long it may take.
    """
    recipe = fuzz_recipes.RECIPES[name]
    case = f"{name}({', '.join(f'{k}={v}' for k, v in labels.items())})"
    try:
        with _limits(seconds):
            arguments = {
                key: ODD_VALUES[labels[key]]() if key in labels else make()
                for key, make in recipe.arguments.items()
            }
            recipe.use(recipe.call(**arguments))
    except TooSlow:
        return Outcome(case, "slow", f"took more than {seconds} s")
    except recipe.raises as error:
        return Outcome(case, type(error).__name__)
    except (ValueError, TypeError) as error:
        kind = "TypeError" if isinstance(error, TypeError) else "ValueError"
        return Outcome(case, kind, _unclear(error, recipe, labels))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Outcome(case, type(error).__name__, _last_lines(error))
    return Outcome(case, "accepted")


def _choose_value(rng, recipe, name):
    return rng.choice(
        [each for each in ODD_VALUES if each not in recipe.never.get(name, ())]
    )


def _unclear(error, recipe, labels):
    """What is missing in an error's message; empty if nothing is."""
    message = str(error)
    words = [word for name in labels for word in recipe.words.get(name, ())]
    given = [label.strip("'") for label in labels.values()]
    named = [name for name in [*labels, *words] if _mentions(message, name)]
    if not named:
        return f"names none of {[*labels]}: {_last_lines(error)}"
    if not any(text in message for text in ["eceived", *given]):
        return f"does not say what was received: {_last_lines(error)}"
    return ""


def _mentions(message, name):
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message) is not None


def _last_lines(error):
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if "keras_plasticity" in frame.filename:
            name = os.path.basename(frame.filename)
            place = f" at {name}:{frame.lineno}"
    return f"{type(error).__name__}{place}: {str(error)[:300]!r}"


@contextlib.contextmanager
def _limits(seconds):
    """Context without output and warnings, that ends after some seconds."""

    def stop(*_):
        raise TooSlow

    # If the time passes in a call that does not come back to Python.
    faulthandler.dump_traceback_later(10 * seconds, exit=True)
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", _WARNING, DeprecationWarning)
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


def run(cases: int, seed: int, seconds: float = 60.0) -> list[Outcome]:
    """Runs cases, in a temporary working directory.

    Args:
        cases: Integer, the number of cases.
        seed: Integer, which cases.
        seconds: Float, how long a case may take.

    Returns:
        List with an `Outcome` for each case.
    """
    missing = missing_recipes()
    if missing:
        sys.exit("See tests/fuzz_recipes.py:\n" + "\n".join(missing))
    rng = random.Random(seed)
    outcomes = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for _ in range(cases):
            outcomes.append(run_case(rng, seconds))
    return outcomes


def failures(outcomes: list[Outcome]) -> list[str]:
    """Each case with a problem, once."""
    return list(
        dict.fromkeys(f"{o.case}: {o.problem}" for o in outcomes if o.problem)
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="how long a case may take"
    )
    arguments = parser.parse_args()
    start = time.monotonic()
    outcomes = run(arguments.cases, arguments.seed, arguments.seconds)
    took = time.monotonic() - start
    failed = failures(outcomes)
    for line in failed:
        print(line)
    counts = collections.Counter(o.kind for o in outcomes if not o.problem)
    backend = keras.backend.backend()
    packages = {"keras", "numpy", backend}
    print(
        f"{len(outcomes)} cases of {len(fuzz_recipes.RECIPES)} callables with "
        f"seed {arguments.seed}: "
        + ", ".join(f"{n} {kind}" for kind, n in counts.most_common())
        + f", {sum(bool(o.problem) for o in outcomes)} failures; {took:.0f} s"
    )
    print(
        ", ".join(
            f"{name} {importlib.metadata.version(name)}"
            for name in sorted(packages)
        )
        + f", Python {platform.python_version()}, {platform.machine()} with "
        f"{os.cpu_count()} cores"
    )
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
