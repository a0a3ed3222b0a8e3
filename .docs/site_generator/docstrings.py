"""Docstrings as Keras writes them, for a parser of Google's style."""

import re
import textwrap

import griffe

# Titles of what is not indented, and so is no section to the parser.
_TITLES = re.compile(r"^(Examples?|References):\n(?=\n)", re.MULTILINE)
_CALL_ARGUMENTS = re.compile(r"^Call arguments:$", re.MULTILINE)
# The signature has the type: what is left is text, which may have colons.
_RESULTS = re.compile(r"^(Returns|Yields):\n((?: {4}.*\n?|\n)+)", re.MULTILINE)
# A session of the interpreter ends at an empty line.
_SESSION = re.compile(r"^(>>> (?:.+\n?)+)", re.MULTILINE)


class KerasDocstrings(griffe.Extension):
    """Renames the sections that only Keras has."""

    def on_instance(self, *, obj: griffe.Object, **kwargs):
        if obj.docstring is not None:
            obj.docstring.value = for_parser(obj.docstring.value)


def for_parser(text: str) -> str:
    """A docstring as the parser takes it."""
    text = _TITLES.sub(r"**\1**\n", text)
    text = _CALL_ARGUMENTS.sub("Args: Call arguments", text)
    text = _RESULTS.sub(
        lambda match: f"**{match[1]}**\n\n{textwrap.dedent(match[2])}", text
    )
    return _SESSION.sub(
        lambda match: f"```pycon\n{match[1].rstrip()}\n```\n", text
    )
