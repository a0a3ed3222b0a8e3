import os
import subprocess
import sys

import pytest

from keras_plasticity import files
from keras_plasticity.files import atomic_write


@pytest.mark.parametrize("is_new", [True, False])
def test_the_file_is_replaced_at_the_end(tmp_path, is_new):
    path = tmp_path / "file.txt"
    if not is_new:
        path.write_text("old")
    with atomic_write(str(path)) as temporary:
        temporary.write_text("new")
        assert path.exists() != is_new
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_it_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, n=name, r=real: (done.append(n), r(*a))
        )
    with atomic_write(tmp_path / "file.txt") as temporary:
        temporary.write_text("new")
    # The file, and then the folder that names it.
    assert done == ["fsync", "replace", "fsync"]


def test_which_processes_are_alive():
    assert files.is_alive(os.getpid())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not files.is_alive(ended.pid)
