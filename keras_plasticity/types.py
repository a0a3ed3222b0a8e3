"""Names for hints. No backend is imported for a type."""

from typing import Any

# A tensor of the active backend, or what Keras makes one of.
Tensor = Any
