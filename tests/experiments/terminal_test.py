from keras_plasticity.experiments import terminal


def test_a_table_on_a_narrow_terminal_cuts_nothing(monkeypatch, capsys):
    narrow = terminal.console.Console(width=40)
    monkeypatch.setattr(terminal, "_TERMINAL", narrow)
    records = [f"a_method_with_a_very_long_name_{i}" for i in range(20)]
    columns = {"method": str, "error": lambda record: "0.123±0.456"}
    terminal.print_table("Results", columns, records)
    rows = capsys.readouterr().out.splitlines()
    printed = "".join("".join(rows).replace("0.123±0.456", "").split())
    assert all(record in printed for record in records)


def test_progress_shows_tasks_and_the_last_figure(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "_TERMINAL", terminal.console.Console())
    bar = terminal.TaskProgress("bp", 8, lambda results: f"{results:.1f} %")
    with bar:
        bar.on_task_end(0, 90.0)
        bar.on_progress(1, 0.5)
    printed = capsys.readouterr().out
    for text in ("bp", "1.5/8 tasks", "90.0 %", "left"):
        assert text in printed


def test_time_left_of_long_tasks(monkeypatch, capsys):
    seconds = 0.0
    console = terminal.console.Console()
    monkeypatch.setattr(console, "get_time", lambda: seconds)
    monkeypatch.setattr(terminal, "_TERMINAL", console)
    bar = terminal.TaskProgress("bp", 10, str)
    with bar:
        for task in range(4):
            seconds += 600.0
            bar.on_task_end(task, task)
    assert "left 1:00:00" in capsys.readouterr().out


def test_nothing_is_markup(capsys):
    text = "logs/[/a] :smile: [red]b"
    terminal.print_settings("settings: ", {"log_dir": text})
    terminal.print_table(text, {text: str}, [text])
    terminal.print_start(text, text, {})
    assert capsys.readouterr().out.count(text) == 6
