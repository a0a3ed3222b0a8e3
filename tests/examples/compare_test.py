import pytest

from tests.examples.trainers import load
from tests.examples.trainers import parse
from tests.examples.trainers import run

_TINY = ["--num_examples=400", "--examples_per_task=200", "--num_learners=2"]


@pytest.fixture(scope="module")
def compare():
    pytest.importorskip("matplotlib")
    return load("compare")


def test_two_runs_of_a_trainer(compare, tmp_path, capsys):
    trainer = load("slowly_changing_regression")
    folders = []
    for method in ("linear", "linear,l2"):
        folders.append(f"{tmp_path}/{method}/")
        run(trainer, folders[-1], *_TINY, f"--method={method}")
    capsys.readouterr()
    output = tmp_path / "both"
    flag_values = parse(compare, f"--output={output}", "--num_tasks=1")
    compare.run(flag_values, folders)
    sections = (output / "comparison.md").read_text().split("\n\n")
    assert [row.split(" | ")[0] for row in sections[1].splitlines()[2:4]] == [
        "| linear",
        "| linear,l2",
    ]
    assert "| linear - linear,l2 |" in sections[5]
    printed = capsys.readouterr().out.split("\n\n")
    for section, table in zip(sections[1::2], printed):
        assert section.startswith(table)


def test_a_folder_without_a_run(compare, tmp_path):
    with pytest.raises(SystemExit, match="There is no `summary.json`"):
        compare.run(parse(compare), [str(tmp_path)])


def test_without_any_folder(compare, capsys):
    with pytest.raises(SystemExit) as ended:
        compare.run(parse(compare), [])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Name the log folders")
