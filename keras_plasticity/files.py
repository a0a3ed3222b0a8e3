"""Files that are replaced whole."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Context in which a file is written that then replaces another.

    Whatever interrupts it, there is the old file or the new one, whole: the
    new one is written under a temporary name, flushed to the disk and renamed.

    Args:
        path: String, the file.

    Yields:
        `pathlib.Path`, the temporary file to write: `path` with `.tmp` after
        it. One that a killed process left behind is overwritten.

    Example:

    ```python
    with atomic_write("settings.json") as temporary:
        temporary.write_text(json.dumps(settings))
    ```
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
