"""How much memory the host has for this process.

A container, or a job of a cluster, may use less than the machine has: Linux
holds that limit in control groups, and ends processes that go beyond it.
"""

import pathlib

_MACHINE = "/proc/meminfo"
_GROUPS_OF_PROCESS = "/proc/self/cgroup"
_GROUPS = "/sys/fs/cgroup"
# Of version 2 and 1: where groups lie, and the files with the limit, with what
# is used, and the name of what is used by copies of files, which can be let go.
_VERSIONS = (
    ("", "memory.max", "memory.current", "inactive_file"),
    (
        "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def free_and_total() -> tuple[int, int] | None:
    """Bytes that are free without swapping, and all; `None` if unknown."""
    amounts = [*_of_machine(), *_of_groups()]
    if not amounts:
        return None
    free, total = map(min, zip(*amounts))
    return max(0, free), total


def _of_machine():
    """Pair of the bytes free and all; nothing where the system is no Linux."""
    numbers = _numbers(pathlib.Path(_MACHINE))
    # In versions of Linux before 3.14 the first one is missing.
    if {"MemAvailable", "MemTotal"} <= numbers.keys():
        yield 1024 * numbers["MemAvailable"], 1024 * numbers["MemTotal"]


def _of_groups():
    """The same pair of each control group with a limit that holds here."""
    try:
        lines = pathlib.Path(_GROUPS_OF_PROCESS).read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for root, limit, usage, files in _VERSIONS:
            if root not in controllers.split(","):
                continue
            group = pathlib.PurePosixPath(path.lstrip("/"))
            # The limits of the groups around it hold, too. Within a container,
            # the path may be that outside, of which only the root is here.
            for each in (group, *group.parents):
                yield from _of_group(
                    pathlib.Path(_GROUPS, root, each), limit, usage, files
                )


def _of_group(folder, limit, usage, files):
    try:
        total = int((folder / limit).read_text())
        used = int((folder / usage).read_text())
    except (OSError, ValueError):  # It is not there, or has no limit: "max".
        return
    yield total - used + _numbers(folder / "memory.stat").get(files, 0), total


def _numbers(path):
    """Dict of the numbers in a file with a name and a number in each line."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = [line.replace(":", " ").split()[:2] for line in lines]
    return {name: int(number) for name, number in pairs}
