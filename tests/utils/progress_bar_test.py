import io
import re
import sys
import types

import pytest
from rich import console
from rich import progress

from keras_plasticity.utils import progress_bar


@pytest.fixture
def clock(monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: seconds[0])
    return seconds


def make_bar(**kwargs):
    file = io.StringIO()
    return file, progress_bar.ProgressBar(
        progress.MofNCompleteColumn(),
        console=console.Console(file=file, **kwargs),
    )


def test_a_file_gets_a_line_a_minute(clock):
    file, bar = make_bar()
    lines = []
    with bar:
        task = bar.add_task("images", total=8)
        for _ in range(4):
            clock[0] += 40.0
            bar.advance(task)
            lines.append(file.getvalue().count("\n"))
        clock[0] += 60.0
        bar.update(task, completed=7)
        lines.append(file.getvalue().count("\n"))
    assert lines == [0, 1, 1, 2, 3]
    first = file.getvalue().splitlines()[0]
    assert "images" in first and "2/8" in first and "left" in first


def test_a_terminal_gets_one_bar(clock):
    file, bar = make_bar(force_terminal=True)
    with bar:
        task = bar.add_task("images", total=100)
        for _ in range(50):
            clock[0] += 100.0
            bar.advance(task)
    assert file.getvalue().count("\n") < 50


class _Notebook:
    """What `IPython.display` does with one cell."""

    def __init__(self):
        self.texts = []

    def display(self, data, raw, display_id):
        assert raw and display_id and not self.texts
        self.texts.append(data["text/plain"])
        return self

    def update(self, data, raw):
        assert raw and self.texts
        self.texts.append(data["text/plain"])


def test_a_notebook_gets_one_line_that_is_redrawn(clock, monkeypatch, recwarn):
    cell = _Notebook()
    ipython = types.ModuleType("IPython")
    ipython.display = cell
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    file, bar = make_bar(force_jupyter=True)
    with bar:
        task = bar.add_task("images", total=4)
        for _ in range(4):
            clock[0] += 0.3
            bar.advance(task)
    assert file.getvalue() == ""
    # At the start, after 0.6 and 1.2 seconds, and at the end.
    numbers = [re.findall(r"\d/4", text) for text in cell.texts]
    assert numbers == [[], ["2/4"], ["4/4"], ["4/4"]]
    assert all(text.count("\n") == 0 for text in cell.texts)
    assert not recwarn.list
