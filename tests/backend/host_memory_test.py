"""What Linux tells of memory, on machines that are made of files."""

import pytest

from keras_plasticity.backend import host_memory

_MACHINE = (
    "MemTotal:  9000 kB\nMemFree: 10 kB\nMemAvailable:    5000 kB\n"
    "Active(anon): 7 kB\nHugePages_Total: 0\n"
)
_NO_LIMIT = 9223372036854771712


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Function that writes files of the system, by their names."""
    for name, path in (
        ("_MACHINE", "meminfo"),
        ("_GROUPS_OF_PROCESS", "cgroup"),
        ("_GROUPS", "groups"),
    ):
        monkeypatch.setattr(host_memory, name, str(tmp_path / path))

    def write(groups, files=(), machine=_MACHINE):
        contents = {"meminfo": machine, "cgroup": groups, **dict(files)}
        for name, content in contents.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(content))

    return write


def group(folder, limit, used, files, version=2):
    """The files of a control group."""
    names = {
        2: ("memory.max", "memory.current", "inactive_file"),
        1: (
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    }[version]
    stat = f"anon 5\n{names[2]} {files}\nactive_file 3\n"
    contents = (limit, f"{used}\n", stat)
    return {
        f"groups/{folder}{name}": content
        for name, content in zip((*names[:2], "memory.stat"), contents)
    }


def test_without_a_limit_it_is_that_of_the_machine(machine):
    machine("0::/user.slice\n", group("user.slice/", "max", 900, 10))
    assert host_memory.free_and_total() == (5000 * 1024, 9000 * 1024)
    machine(
        "4:memory:/a\n",
        group("memory/a/", _NO_LIMIT, 900, 10, version=1),
    )
    assert host_memory.free_and_total() == (5000 * 1024, 9000 * 1024)


# What is used by copies of files is free.
@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/slurm/job_7\n", group("slurm/job_7/", 1000, 900, 50)),
        # The limit of a group around it.
        (
            "0::/slurm/job_7\n",
            group("slurm/job_7/", "max", 10, 5)
            | group("slurm/", 1000, 900, 50),
        ),
        # Within a container, in a namespace of its own or not.
        ("0::/\n", group("", 1000, 900, 50)),
        ("0::/docker/12ab\n", group("", 1000, 900, 50)),
        # Version 1, whose controllers may come in one.
        (
            "5:cpu,cpuacct:/x\n4:memory:/job\n0::/\n",
            group("memory/job/", 1000, 900, 50, version=1),
        ),
        (
            "4:memory,hugetlb:/docker/12ab\n1:name=systemd:/docker/12ab\n",
            group("memory/", 1000, 900, 50, version=1),
        ),
    ],
)
def test_the_limit_of_a_container_or_a_job(machine, groups, files):
    machine(groups, files)
    assert host_memory.free_and_total() == (150, 1000)


def test_the_least_counts(machine):
    files = group("a/b/", 3000, 100, 0) | group("a/", 2000, 1900, 0)
    machine("0::/a/b\n", files)
    assert host_memory.free_and_total() == (100, 2000)
    machine("0::/a/b\n", group("a/", 2000, 2100, 0))  # For a moment.
    assert host_memory.free_and_total() == (0, 2000)
    machine("0::/a/b\n", files, "MemTotal: 1 kB\nMemAvailable: 0 kB\n")
    assert host_memory.free_and_total() == (0, 1024)


def test_unknown(machine):
    machine("0::/\n", machine="MemFree: 10 kB\n")
    assert host_memory.free_and_total() is None


def test_where_there_are_no_such_files(machine):
    assert host_memory.free_and_total() is None


def test_a_group_alone(machine):
    machine("0::/\n", group("", 1000, 900, 50), machine="")
    assert host_memory.free_and_total() == (150, 1000)
