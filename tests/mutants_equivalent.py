"""Mutants that change nothing that anybody sees; see `mutants.py`."""

# Dict to the reason from a mutant: its path, line, old and new text.
EQUIVALENT = {
    (
        "keras_plasticity/validation.py",
        "is_above = is_integer(value) and value > maximum",
        "value > maximum",
        "(value >= maximum)",
    ): "The maximum itself was accepted before.",
}
