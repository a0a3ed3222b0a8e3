"""Docstrings as Keras writes them, for a parser of Google's style."""

import re

import griffe

_SECTIONS = {
    # What is not indented below them is no section to the parser.
    r"^(Examples?|References):\n(?=\n)": r"**\1**\n",
    r"^Call arguments:$": "Args: Call arguments",
}


class KerasDocstrings(griffe.Extension):
    """Renames the sections that only Keras has."""

    def on_instance(self, *, obj: griffe.Object, **kwargs):
        if obj.docstring is None:
            return
        for pattern, words in _SECTIONS.items():
            obj.docstring.value = re.sub(
                pattern, words, obj.docstring.value, flags=re.MULTILINE
            )
