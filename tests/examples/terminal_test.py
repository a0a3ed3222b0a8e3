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
