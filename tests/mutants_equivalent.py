"""Mutants that change nothing that anybody sees; see `mutants.py`."""

# Dict from path, old and new text to the reason.
EQUIVALENT = {}
