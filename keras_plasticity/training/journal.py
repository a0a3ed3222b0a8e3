"""What only grows during a run, in a file to which it is appended."""

import json
import os
import zlib
from typing import Any


class AppendOnly(list):
    """A list in the state of a `TaskCallback` to which items are only added.

    A checkpoint writes those that are new. Without this it writes all of them
    again each time. Items must be such as JSON can hold, and must not change.

    Example:

    ```python
    class History(keras_plasticity.training.TaskCallback):
        def __init__(self):
            self.losses = []

        def on_task_end(self, task, results):
            self.losses.append(results["loss"].tolist())

        def get_state(self):
            return keras_plasticity.training.AppendOnly(self.losses)

        def set_state(self, state):
            self.losses = list(state)
    ```
    """


class Journal:
    """A file of the items of lists that only grow.

    A line is a list of the name of the list and the item. A checkpoint has the
    number of bytes that are its own and their checksum: what follows is of a
    later checkpoint, or of one that was not finished.

    Args:
        path: String, the file.
    """

    def __init__(self, path):
        self._path = path
        self._forget()

    def append(self, lists: dict[str, list]) -> dict[str, Any]:
        """Appends those items that are not in the file yet.

        Args:
            lists: Dict from name to a list with all of its items.

        Returns:
            Dict, what `read` needs to return these lists.

        Raises:
            OSError: If the file cannot be written.
        """
        if not os.path.exists(self._path):
            self._forget()
        lines = "".join(
            f"{json.dumps([name, item])}\n"
            for name, items in lists.items()
            for item in items[self._counts.get(name, 0) :]
        ).encode()
        # Not for appending: what another attempt left there is overwritten.
        number = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        with open(number, "r+b") as file:
            file.truncate(self._bytes)
            file.seek(self._bytes)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self._bytes += len(lines)
        self._checksum = zlib.crc32(lines, self._checksum)
        self._counts = {name: len(items) for name, items in lists.items()}
        return {
            "bytes": self._bytes,
            "checksum": self._checksum,
            "names": list(lists),
        }

    def read(self, state: dict[str, Any]) -> dict[str, list]:
        """Reads the lists of a checkpoint. The next items follow after them.

        Args:
            state: What `append` returned.

        Returns:
            Dict from name to list.

        Raises:
            ValueError: If the file does not hold them.
        """
        content = b""
        if state["bytes"]:
            with open(self._path, "rb") as file:
                content = file.read(state["bytes"])
        checksum = zlib.crc32(content)
        if (len(content), checksum) != (state["bytes"], state["checksum"]):
            raise ValueError(f"{self._path} is damaged")
        lists = {name: [] for name in state["names"]}
        for line in content.splitlines():
            name, item = json.loads(line)
            lists[name].append(item)
        self._bytes, self._checksum = len(content), checksum
        self._counts = {name: len(items) for name, items in lists.items()}
        return lists

    def _forget(self):
        self._bytes = 0
        self._checksum = 0
        self._counts = {}
