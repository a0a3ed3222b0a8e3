"""A user's own parts of methods, from a file.

`--method_file=mine.py` names it. It defines `PARTS`, a list of `Part`s, which
`--method` may name like all others, and may define `SEARCH`, what `suite`
tunes: a dict from the name of a part to a dict from the name of a flag to a
`Range` or a list of values.
"""

import contextlib
import dataclasses
import importlib.util
import os
import traceback
from collections.abc import Mapping
from typing import Any

from absl import flags

from keras_plasticity import validation
from keras_plasticity.experiments.parts import PARTS
from keras_plasticity.experiments.parts import Part
from keras_plasticity.experiments.sweeps import space as spaces

# Flags belong to the module that calls `experiments.define_flags`.
flags.disclaim_key_flags()

NAME = "method_file"
# The parts of the file that the trainer of this process was started with.
_added = ()


@dataclasses.dataclass(frozen=True)
class MethodFile:
    """What a method file defines.

    Attributes:
        parts: Tuple of `Part`s.
        search: Dict from the name of a part to what is tuned.
    """

    parts: tuple[Part, ...] = ()
    search: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def define_flags(flag_values):
    flags.DEFINE_string(
        NAME,
        None,
        "A file of Python with parts of your own for --method, in a list "
        "`PARTS` of `keras_plasticity.experiments.Part`s.",
        flag_values=flag_values,
    )


def load(path: str | None) -> MethodFile:
    """Reads a method file.

    Args:
        path: String; `None` for no file.

    Returns:
        `MethodFile`.

    Raises:
        ValueError: If there is none, or if it cannot be used.
    """
    if path is None:
        return MethodFile()
    if not isinstance(path, str) or not os.path.isfile(path):
        raise ValueError(f"--{NAME} must be a file. Received: --{NAME}={path}")
    spec = importlib.util.spec_from_file_location("method_file", path)
    if spec is None:
        raise ValueError(
            f"--{NAME} must be a file of Python, `mine.py`. "
            f"Received: --{NAME}={path}"
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"--{NAME}={path} cannot be used: {type(error).__name__}: {error} "
            f"({os.path.basename(line.filename)}, line {line.lineno})"
        ) from error
    parts = getattr(module, "PARTS", None)
    if not isinstance(parts, (list, tuple)) or not parts:
        raise ValueError(
            f"--{NAME}={path} must define `PARTS`, a list of one or more "
            f"`keras_plasticity.experiments.Part`s. Received: PARTS={parts!r}"
        )
    known = [part.name for part in PARTS]
    for part in parts:
        if not isinstance(part, Part) or part.name in known:
            raise ValueError(
                f"--{NAME}={path} must define `PARTS`, a list of `Part`s with "
                "names that are not taken: "
                f"{getattr(part, 'name', repr(part))} cannot be one."
            )
        known.append(part.name)
    return MethodFile(tuple(parts), _checked_search(module, path, parts))


@contextlib.contextmanager
def using(arguments):
    """A context in which trainers know the parts of a file.

    Args:
        arguments: List of strings, flags of which one may name the file.

    Raises:
        ValueError: If the file cannot be used.
    """
    global _added
    before, _added = _added, load(_path_in(arguments)).parts
    try:
        yield
    finally:
        _added = before


def known(parts):
    """Tuple of some parts and of those of the method file, if there is one."""
    return (*parts, *_added)


def all_parts(path):
    """Tuple of all parts with those of a method file."""
    return (*PARTS, *load(path).parts)


def _path_in(arguments):
    arguments = list(arguments)
    for number, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if word.startswith("-") and name.lstrip("-") == NAME:
            rest = arguments[number + 1 : number + 2]
            return value if equals else next(iter(rest), "")
    return None


def _can_be_tuned(space):
    if not space:
        return True  # Its step size is all that there is to tune.
    try:
        spaces.check_space(space)
    except (TypeError, ValueError):
        return False  # That it is of `SEARCH` is for the caller to tell.
    return True


def _checked_search(module, path, parts):
    search = getattr(module, "SEARCH", {})
    names = {part.name: {flag.name for flag in part.flags} for part in parts}
    rule = (
        "a dict from the name of a part in `PARTS` to a dict from the name of "
        "one of its flags to a `Range` or a list of values, each once"
    )
    try:
        validation.check_mapping("SEARCH", search, rule=rule)
        for part, space in search.items():
            validation.check_mapping("SEARCH", space, rule=rule)
            if (
                part not in names
                or not set(space) <= names[part]
                or not _can_be_tuned(space)
            ):
                raise validation.error("SEARCH", rule, search)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--{NAME}={path}: {error}") from error
    return search
