"""The parameters of all that is public, and their defaults.

A default that changes, changes the results of whoever relies on it. If one is
meant to: `python -m tests.signatures_test` writes the table anew.
"""

import inspect
import pathlib

from keras_plasticity.experiments.parts import COMMON_FLAGS
from keras_plasticity.experiments.parts import PARTS
from keras_plasticity.experiments.parts import Part
from tests import fuzz
from tests.helpers import parameters

_TABLE = pathlib.Path(__file__).with_name("data") / "signatures.txt"


def _default(value):
    """As Python would write it, where that does not depend on the run."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_default, value))})"
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    return value.name if isinstance(value, Part) else repr(value)


def signatures():
    """Lines: the name of a callable, then one for each of its parameters."""
    lines = []
    for name, each in sorted(fuzz.public_callables().items()):
        lines.append(name)
        if inspect.isclass(each) and issubclass(each, Exception):
            continue
        for parameter in parameters(each):
            star = {
                parameter.VAR_POSITIONAL: "*",
                parameter.VAR_KEYWORD: "**",
            }.get(parameter.kind, "")
            line = f"    {star}{parameter.name}"
            if parameter.default is not parameter.empty:
                line += f" = {_default(parameter.default)}"
            if parameter.kind is parameter.KEYWORD_ONLY:
                line += "  (by name only)"
            lines.append(line)
    of_parts = {part.name: part.flags for part in PARTS}
    for name, flags in {"all trainers": COMMON_FLAGS, **of_parts}.items():
        lines.append(f"flags of {name}")
        for flag in flags:
            lines.append(f"    {flag.name} = {flag.default!r}")
    return lines


def test_parameters_and_defaults():
    assert signatures() == _TABLE.read_text().splitlines(), (
        "If these are meant to change: python -m tests.signatures_test"
    )


if __name__ == "__main__":
    _TABLE.write_text("\n".join(signatures()) + "\n")
