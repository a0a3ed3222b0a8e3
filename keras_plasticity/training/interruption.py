"""Signals that end a run after the steps that are being computed."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

# Ctrl-C, what batch systems send before they take a machine away, and a
# terminal that is closed (which Windows does not have).
_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)
]
_active = None


class Interruption:
    """What `catch_signals` has caught.

    Attributes:
        signal: `signal.Signals`, the first one that was received; `None`
            without any.
    """

    def __init__(self):
        self.signal = None
        self._handlers = {}

    def _catch(self):
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            # One that the program handles itself or ignores, as `nohup` makes
            # it, is none of ours.
            if handler in (signal.SIG_DFL, signal.default_int_handler):
                self._handlers[number] = handler
                signal.signal(number, self._receive)

    def _receive(self, number, frame):
        del frame
        self.signal = signal.Signals(number)
        self._restore()
        # Not `print`, which the signal may have interrupted. The terminal may
        # be gone, as the signal says.
        with contextlib.suppress(OSError):
            os.write(
                2,
                f"\n{self.signal.name}: stopping after the steps that are "
                "being computed. Once more stops at once.\n".encode(),
            )

    def _restore(self):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def only_remembers(handler) -> bool:
    """Whether a handler of a signal is that of an `Interruption`."""
    return isinstance(getattr(handler, "__self__", None), Interruption)


@contextlib.contextmanager
def catch_signals(raises: bool = True) -> Iterator[Interruption]:
    """A context in which the first signal is only remembered.

    It may be Ctrl-C, SIGTERM or SIGHUP. Whoever trains looks at it between
    calls of the device, and ends in order. The second signal does what it does
    outside of this context: it ends the process at once.

    Within another one, the context is that one. Python calls handlers in the
    main thread only: elsewhere none is caught.

    Args:
        raises: Boolean, whether SIGTERM and SIGHUP end the process at the end
            of the context. Defaults to `True`.

    Yields:
        The `Interruption`.
    """
    global _active
    if (
        _active is not None
        or threading.current_thread() is not threading.main_thread()
    ):
        yield _active or Interruption()
        return
    caught = _active = Interruption()
    try:
        caught._catch()
        yield caught
    finally:
        _active = None
        caught._restore()
        if raises and caught.signal not in (None, signal.SIGINT):
            signal.raise_signal(caught.signal)
