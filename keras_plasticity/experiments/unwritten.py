"""What of a run could not be written."""

import contextlib
from collections.abc import Iterator

from absl import logging


class Unwritten:
    """Keeps files that cannot be written from ending a run.

    The reason is told once. What is attempted again and succeeds is written.

    Attributes:
        reasons: Dict from what could not be written to the reason, a string.
    """

    def __init__(self):
        self.reasons = {}

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """A context that may fail with an `OSError`.

        Args:
            what: String, the name of what is written in it.
        """
        try:
            yield
        except OSError as error:
            self.add(what, error)
        else:
            self.reasons.pop(what, None)

    def add(self, what: str, error: OSError, is_told: bool = False):
        """Adds what has failed, and tells it the first time.

        Args:
            what: String, the name of what could not be written.
            error: `OSError`, the reason.
            is_told: Boolean, whether it is told already. Defaults to `False`.
        """
        if what not in self.reasons and not is_told:
            logging.warning(
                "%s cannot be written: %s. The run continues.", what, error
            )
        self.reasons[what] = str(error)

    def __str__(self):
        return "Not written: " + "; ".join(
            f"{what} ({reason})" for what, reason in self.reasons.items()
        )
