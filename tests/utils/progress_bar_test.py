import io

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
