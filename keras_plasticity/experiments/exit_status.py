"""How a trainer's process ends."""

import sys

WHOLE = 0
FAILED = 1
WRONG_FLAGS = 2
# A signal ended it in order, and it can be resumed: so much more than the
# signal's number, as shells have it (130 for Ctrl-C, 143 for SIGTERM).
INTERRUPTED = 128

ABOUT = (
    f"Exit status: {WHOLE} if all was done; {FAILED} if something failed, such "
    f"as a file that could not be written; {WRONG_FLAGS} for wrong flags; 130 "
    "after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, with what was finished "
    "written, and the command printed that resumes the run."
)


class Exit(SystemExit):
    """The end of a trainer, with a message that was printed.

    Args:
        message: String.
        status: Integer, the exit status.
    """

    def __init__(self, message, status):
        super().__init__(message)
        self.code = status


def end(message, status):
    """Prints a message and raises an `Exit`."""
    print(message, file=sys.stderr, flush=True)
    raise Exit(message, status)
