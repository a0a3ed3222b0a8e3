import io


def test_a_table_on_a_narrow_terminal_cuts_nothing(
    import_trainer, monkeypatch, capsys
):
    terminal = import_trainer("terminal")
    narrow = terminal.console.Console(width=40)
    monkeypatch.setattr(terminal, "_TERMINAL", narrow)
    records = [f"a_method_with_a_very_long_name_{i}" for i in range(20)]
    columns = {"method": str, "error": lambda record: "0.123±0.456"}
    terminal.print_table("Results", columns, records)
    rows = capsys.readouterr().out.splitlines()
    printed = "".join("".join(rows).replace("0.123±0.456", "").split())
    assert all(record in printed for record in records)


def test_progress_in_a_file_is_a_line_now_and_then(
    import_trainer, monkeypatch, capsys
):
    terminal = import_trainer("terminal")
    monkeypatch.setattr(terminal, "_TERMINAL", terminal.console.Console())
    clock = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    bar = terminal.TaskProgress("bp", 8, lambda results: f"{results:.1f} %")
    with bar:
        printed = []
        for task in range(4):
            clock[0] += 40.0
            bar.on_task_end(task, 90.0 + task)
            printed += [capsys.readouterr().out]
    assert [line.count("\n") for line in printed] == [0, 1, 0, 1]
    for text in ("bp", "2.0/8 tasks", "91.0 %"):
        assert text in printed[1]


def test_progress_on_a_terminal_is_one_bar(import_trainer, monkeypatch):
    terminal = import_trainer("terminal")
    screen = terminal.console.Console(force_terminal=True, file=io.StringIO())
    monkeypatch.setattr(terminal, "_TERMINAL", screen)
    monkeypatch.setattr(terminal, "_SECONDS_BETWEEN_LINES", 0.0)
    with terminal.TaskProgress("bp", 100, str) as bar:
        for task in range(50):
            bar.on_task_end(task, task)
    assert screen.file.getvalue().count("\n") < 50
