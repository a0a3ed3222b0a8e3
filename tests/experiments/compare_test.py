"""Joins runs that were made up, so nothing has to be trained."""

import json
import xml.etree.ElementTree

import pytest

from keras_plasticity import experiments
from tests.rendered_markdown import shown_tables


@pytest.fixture(autouse=True)
def _with_matplotlib():
    pytest.importorskip("matplotlib")


def write_run(folder, methods=("bp",), values=((0.5, 0.7),), **changes):
    """A `summary.json` with the same results for each method."""
    summary = {
        "problem": "online_permuted_mnist",
        "title": "Online Permuted MNIST, 2 learners",
        "metric": {
            "name": "online_accuracy",
            "label": "online accuracy (%)",
            "lower_is_better": False,
            "scale": 100.0,
            "format": ".2f",
        },
        "x_axis": {"label": "task", "per_task": 1},
        "tasks_per_bin": 1,
        "flags": {"seed": 0, "hidden_units": 100},
        "backend": "jax",
        "runs": [
            {
                "method": method,
                "settings": {"learning_rate": 0.01},
                "num_learners": 2,
                "train_seconds": 1.0,
                "compile_seconds": 0.5,
                "published": [[1, 60.0]],
                "per_task": [
                    {"task": i, "online_accuracy_per_learner": list(each)}
                    for i, each in enumerate(values)
                ],
            }
            for method in methods
        ],
    }
    summary = summary | changes
    folder.mkdir()
    (folder / "summary.json").write_text(json.dumps(summary))
    return str(folder)


def join(tmp_path, *folders, **arguments):
    experiments.compare(folders, str(tmp_path / "out"), **arguments)
    return tmp_path / "out"


def test_figure_and_table_of_several_runs(tmp_path):
    a = write_run(tmp_path / "a", ("bp", "cbp"), [(0.5, 0.7), (0.8, None)])
    b = write_run(tmp_path / "b", ("l2",), [(0.4, 0.4)])
    out = tmp_path / "out"
    printed = experiments.compare([a, b], str(out))
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "comparison.svg").read_text()
    table = (out / "comparison.md").read_text().splitlines()
    assert table[0] == "Online Permuted MNIST: online accuracy (%)"
    assert table[2].startswith("| method | learners | tasks | first | best |")
    rows = {line.split(" | ")[0]: line for line in table[4:]}
    assert list(rows) == ["| bp", "| cbp", "| l2"]
    last = "80.00 (1 of 2 learners)"
    assert f"| 2 | 60.00±10.00 | {last} | {last} | 60 at 1 |" in rows["| bp"]
    assert "| 1 | 40.00±0.00 |" in rows["| l2"]
    assert printed.splitlines() == table[2:]


def test_the_same_method_is_told_apart_by_its_settings(tmp_path):
    flags = {"seed": 0, "hidden_units": 100}
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", flags=flags | {"seed": 1})
    c = write_run(tmp_path / "c")
    lines = (join(tmp_path, a, b, c) / "comparison.md").read_text()
    assert f"| bp, seed=0 ({a}) |" in lines
    assert "| bp, seed=1 |" in lines
    assert f"| bp, seed=0 ({c}) |" in lines


def test_settings_of_another_method_tell_nothing(tmp_path):
    flags = {"seed": 0, "hidden_units": 100}
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", ("bp", "cbp"), flags=flags | {"rate": 0.1})
    summary = json.loads((tmp_path / "b" / "summary.json").read_text())
    summary["runs"][1]["settings"]["rate"] = 0.1
    (tmp_path / "b" / "summary.json").write_text(json.dumps(summary))
    lines = (join(tmp_path, a, b) / "comparison.md").read_text()
    assert "rate=" not in lines


def test_published_values_of_later_times_are_left_out(tmp_path):
    a = write_run(tmp_path / "a")
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    summary["runs"][0]["published"] = [[1, 60.0], [1000, 40.0]]
    (tmp_path / "a" / "summary.json").write_text(json.dumps(summary))
    table = (join(tmp_path, a) / "comparison.md").read_text()
    assert "| 60 at 1 |" in table


def test_the_beginning_of_longer_runs(tmp_path):
    a = write_run(tmp_path / "a", values=[(0.5, 0.5), (0.7, 0.7), (0.1, 0.1)])
    b = write_run(tmp_path / "b", ("l2",), values=[(0.4, 0.4)])
    out = join(tmp_path, a, b, num_tasks=2)
    lines = (out / "comparison.md").read_text().splitlines()
    # Half a second of compilation, and two thirds of one of training.
    assert lines[-2] == (
        "| bp | 2 | 2 | 50.00±0.00 | 70.00±0.00 | 70.00±0.00 | 60 at 1 | 1.2 |"
    )
    assert lines[-1].startswith("| l2 | 2 | 1 | 40.00±0.00 |")


def test_nobody_is_left(tmp_path):
    a = write_run(tmp_path / "a", values=[(None, None)])
    out = join(tmp_path, a)
    assert (
        "| diverged | diverged | diverged |"
        in (out / "comparison.md").read_text()
    )
    assert "2 of 2 diverged" in (out / "comparison.svg").read_text()


def test_tasks_that_fill_no_bin_are_told(tmp_path):
    values = [(0.5, 0.5)] * 5
    a = write_run(tmp_path / "a", values=values, tasks_per_bin=2)
    out = join(tmp_path, a)
    label = "bins of 2 tasks, the last 1 in none"
    assert label in (out / "comparison.md").read_text()
    assert label in (out / "comparison.svg").read_text()


def test_other_problems_are_refused(tmp_path):
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", problem="continual_imagenet")
    with pytest.raises(ValueError, match="different problems.*problem=conti"):
        join(tmp_path, a, b)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no `summary.json`"):
        join(tmp_path, str(tmp_path))
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(
        ValueError, match="summary.json is damaged: it is not JSON"
    ):
        join(tmp_path, str(tmp_path))
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match="not of these trainers"):
        join(tmp_path, str(tmp_path))


def test_runs_without_a_finished_task(tmp_path):
    a = write_run(tmp_path / "a", values=())
    with pytest.raises(ValueError, match="nothing to compare"):
        join(tmp_path, a)


@pytest.mark.parametrize(
    "text",
    [
        "$\\foo$",
        "<script>alert(1)</script>",
        "a--><script>",
        "a | b",
        "[a](javascript:b)",
        "\x01\udc80",
    ],
)
def test_names_are_shown_as_they_are(tmp_path, text):
    """Whatever a file, which may be another's, says of its run."""
    a = write_run(tmp_path / "a", ("bp", text), title=text)
    out = join(tmp_path, a)
    expected = text.encode("unicode_escape").decode()
    if text.isprintable():
        expected = text
    table = (out / "comparison.md").read_text()
    heading, _, table = table.partition("\n\n")
    assert "<" not in heading and "[" not in heading
    for rows in shown_tables(table):
        assert [row[0] for row in rows] == ["method", "bp", expected]
    svg = xml.etree.ElementTree.fromstring((out / "comparison.svg").read_text())
    assert not list(svg.iter("{http://www.w3.org/2000/svg}script"))
    if text.startswith("$"):  # As characters, not as a formula.
        assert f"<!-- {text} -->" in (out / "comparison.svg").read_text()
