"""Files that are replaced whole."""

import contextlib
import errno
import itertools
import os
import pathlib
import socket
from collections.abc import Iterator

_counter = itertools.count()


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike, previous: str | os.PathLike | None = None
) -> Iterator[pathlib.Path]:
    """Context in which a file is written that then replaces another.

    Whatever interrupts it, there is the old file or the new one, whole: the
    new one is written under a name of its own, flushed to the disk and renamed.

    Args:
        path: String, the file.
        previous: String, a file in the same folder as which the old one is
            kept. At one instant there is only this one. Defaults to `None`.

    Yields:
        `pathlib.Path`, the file to write, in the same folder. Those that
        killed processes of this machine left behind are removed.

    Example:

    ```python
    with atomic_write("settings.json") as temporary:
        temporary.write_text(json.dumps(settings))
    ```
    """
    path = pathlib.Path(path)
    host = socket.gethostname()
    _remove_left_behind(path, host)
    temporary = path.with_name(
        f"{path.name}.{host}.{os.getpid()}.{next(_counter)}.tmp"
    )
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        # A folder may have vanished or become read-only, which is told already.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sync_folder(folder: pathlib.Path):
    """Flushes the names of the files in a folder to the disk."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows does it by itself.
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    except OSError as error:
        # Some file systems of virtual machines flush no folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(number)


def is_alive(process: int) -> bool:
    """Whether a process of this machine is running; `True` if unknown."""
    if os.name == "nt":
        return True  # There, to ask by `os.kill` would end it.
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # It is another user's.
    return True


def _remove_left_behind(path, host):
    for name in path.parent.glob(f"{path.name}.{host}.*.tmp"):
        process = name.name.removeprefix(f"{path.name}.{host}.").split(".")[0]
        if process.isdecimal() and not is_alive(int(process)):
            name.unlink(missing_ok=True)
