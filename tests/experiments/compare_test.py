"""Joins runs that were made up, so nothing has to be trained."""

import json
import xml.etree.ElementTree

import numpy as np
import pytest

from keras_plasticity import experiments
from keras_plasticity.experiments.table import read_table
from keras_plasticity.experiments.table import write_table
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
    assert table[0] == (
        "Online Permuted MNIST: online accuracy (%), ± standard error"
    )
    assert table[2].startswith("| method | learners | tasks | first | last |")
    rows = {line.split(" | ")[0]: line for line in table[4:7]}
    assert list(rows) == ["| bp", "| cbp", "| l2"]
    last = "80.00 (1 of 2 learners)"
    assert (
        f"| 2 | 60.00±10.00 (n=2) | {last} | {last} | 60 at 1 |" in rows["| bp"]
    )
    assert "| 1 | 40.00±0.00 (n=2) |" in rows["| l2"]
    # The file has a heading above each.
    for table in printed.split("\n\n"):
        assert table in (out / "comparison.md").read_text()
    assert "n learners" in (out / "comparison.svg").read_text()


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
    assert lines[4] == (
        "| bp | 2 | 2 | 50.00±0.00 (n=2) | 70.00±0.00 (n=2) | "
        "70.00±0.00 (n=2) | 60 at 1 | 1.2 |"
    )
    assert lines[5].startswith("| l2 | 2 | 1 | 40.00±0.00 (n=2) |")


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
    sections = (out / "comparison.md").read_text().split("\n\n")
    assert len(sections) == 6
    for heading in sections[::2]:
        assert "<" not in heading and "[" not in heading
    for table in sections[1:4:2]:
        for rows in shown_tables(table):
            assert [row[0] for row in rows] == ["method", "bp", expected]
    for rows in shown_tables(sections[5]):
        assert {row[1] for row in rows[1:]} == {f"bp - {expected}"}
    svg = xml.etree.ElementTree.fromstring((out / "comparison.svg").read_text())
    assert not list(svg.iter("{http://www.w3.org/2000/svg}script"))
    if text.startswith("$"):  # As characters, not as a formula.
        assert f"<!-- {text} -->" in (out / "comparison.svg").read_text()


def test_who_is_ahead(tmp_path):
    """Differences are paired by seed, and luck is told from difference."""
    rng = np.random.default_rng(0)
    # Seeds differ by far more than methods do.
    luck = rng.normal(size=(1, 10))
    noise = rng.normal(size=(3, 20, 10))
    for name, values in {
        "worst": 4 + luck + 0.01 * noise[0],
        "mine": 3.9 + luck[:, ::-1] + 0.01 * noise[1],
        "same": 4 + luck + 0.01 * noise[2],
    }.items():
        experiments.save_results(
            str(tmp_path / name),
            name,
            values,
            seeds=range(10) if name != "mine" else range(9, -1, -1),
        )
    folders = [tmp_path / name for name in ("worst", "mine", "same")]
    table = experiments.compare(folders, str(tmp_path / "out"))
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.split("\n\n")[2].splitlines()[2:]
    ]
    ahead = {(row[0], row[1]): row[4] for row in rows}
    area = "area under the curve"
    assert ahead[area, "worst - mine"] == "mine"
    assert ahead[area, "worst - same"] == "not told apart"
    assert ahead["last tenth", "mine - same"] == "mine"
    assert all("n=10" in row[2] and "n=10" in row[3] for row in rows)


def test_a_baseline_halves_the_pairs(tmp_path):
    folders = [
        write_run(tmp_path / name, (name,), [(0.5, 0.7)]) for name in "abcd"
    ]

    def pairs(**arguments):
        text = (
            join(tmp_path, *folders, **arguments) / "comparison.md"
        ).read_text()
        return {
            row.split(" | ")[1] for row in text.splitlines() if " - " in row
        }

    assert len({row for row in pairs() if len(row) == 5}) == 6
    assert {row for row in pairs(baseline="c") if len(row) == 5} == {
        *("a - c", "b - c", "d - c")
    }
    with pytest.raises(ValueError, match="`baseline` must be one of.*a; b; c"):
        join(tmp_path, *folders, baseline="e")


def test_of_more_than_six_the_first_is_compared(tmp_path):
    folders = [write_run(tmp_path / n, (n,), [(0.5, 0.7)]) for n in "abcdefg"]
    text = (join(tmp_path, *folders) / "comparison.md").read_text()
    pairs = {row.split(" | ")[1] for row in text.splitlines() if " - a " in row}
    assert pairs == {f"{name} - a" for name in "bcdefg"}
    assert "b - c" not in text


def test_nobody_wins_by_those_that_diverged(tmp_path):
    a = write_run(tmp_path / "a", ("a",), [(0.9, 0.95, 0.9, None)])
    b = write_run(tmp_path / "b", ("b",), [(0.1, 0.11, 0.12, 0.1)])
    c = write_run(tmp_path / "c", ("c",), [(None,) * 4])
    for name in "abc":
        path = tmp_path / name / "summary.json"
        summary = json.loads(path.read_text())
        summary["runs"][0] |= {"num_learners": 4, "seeds": [0, 1, 2, 3]}
        path.write_text(json.dumps(summary))
    text = (join(tmp_path, a, b, c) / "comparison.md").read_text()
    rows = [row for row in text.splitlines() if row.startswith("| area")]
    assert "1 seeds without a pair" in rows[0] and "n=3" in rows[0]
    assert rows[0].endswith("| not told: of a 1 diverged |")
    assert rows[1].endswith("| not told: no pair without one that diverged |")
    assert "1.00 (95 %: 1.00 to 1.00, n=4)" in rows[2]  # b is above c.
    assert "| diverged (n=4) |" in text


def test_other_seeds_make_no_pairs(tmp_path):
    flags = {"seed": 2, "hidden_units": 100}
    a = write_run(tmp_path / "a", ("a",))
    b = write_run(tmp_path / "b", ("b",), flags=flags)
    text = (join(tmp_path, a, b) / "comparison.md").read_text()
    assert text.count("| not told: no seed in common |") == 2


@pytest.mark.parametrize("seeds", [[0], [0, 0], "01", [0, "1"], [[], 1]])
def test_seeds_that_cannot_be(tmp_path, seeds):
    a = write_run(tmp_path / "a")
    path = tmp_path / "a" / "summary.json"
    summary = json.loads(path.read_text())
    summary["runs"][0]["seeds"] = seeds
    path.write_text(json.dumps(summary))
    with pytest.raises(ValueError, match="`seeds` of a run must be a list"):
        join(tmp_path, a)


def table_rows(**changes):
    """Rows of two settings and three seeds."""
    return [
        {
            **{"problem": "online_permuted_mnist", "method": "l2"},
            **{"seed": seed, "num_tasks": 2, "metric": "online_accuracy"},
            **{"lower_is_better": False, "area_under_curve": 0.5 + 0.1 * l2},
            **{"last_tenth": 0.6 + 0.01 * seed, "flag.l2": str(l2)},
            **changes,
        }
        for l2 in (0.1, 0.2)
        for seed in range(3)
    ]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table(tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    path = str(tmp_path / f"table.{ending}")
    write_table(path, table_rows())
    text = (join(tmp_path, path) / "comparison.md").read_text()
    assert "| l2, l2=0.1 | 2 | 0.51 (95 %: 0.51 to 0.51, n=3) |" in text
    svg = (tmp_path / "out" / "comparison.svg").read_text()
    assert "95 % bootstrap interval" in svg and "(n=3)" in svg
    assert "| l2, l2=0.1 - l2, l2=0.2 |" in text


@pytest.mark.parametrize("cell", ["", "inf", "-inf", "nan", "1e999"])
def test_a_learner_of_a_table_that_diverged(tmp_path, cell):
    path = tmp_path / "table.csv"
    rows = table_rows()
    rows[4] |= {"area_under_curve": cell, "last_tenth": cell}
    write_table(str(path), rows)
    text = (join(tmp_path, str(path)) / "comparison.md").read_text()
    assert "| l2, l2=0.1 | 2 | 0.51 (95 %: 0.51 to 0.51, n=3) |" in text
    assert "n=2), 1 diverged |" in text


def test_a_table_as_excel_writes_it(tmp_path):
    path = tmp_path / "table.csv"
    write_table(str(path), table_rows())
    expected = read_table(str(path))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_table(str(path)) == expected


def test_a_table_and_runs(tmp_path):
    a = write_run(tmp_path / "a", values=[(0.5, 0.7), (0.4, 0.4), (0.1, 0.1)])
    path = str(tmp_path / "table.csv")
    write_table(path, table_rows())
    text = (join(tmp_path, a, path) / "comparison.md").read_text()
    # Of the longer run the first two tasks, in percent as its summary says.
    assert "| bp | 2 | 50.00 (95 %:" in text
    assert "| l2, l2=0.1 | 2 | 51.00 (95 %:" in text
    with pytest.raises(
        ValueError, match="measures of 2 tasks.*those of 1 task"
    ):
        join(tmp_path, a, path, num_tasks=1)
    write_table(path, table_rows(problem="continual_imagenet"))
    with pytest.raises(ValueError, match="different problems.*problem=contin"):
        join(tmp_path, a, path)


def test_tables_that_cannot_be_compared(tmp_path):
    path = str(tmp_path / "table.csv")
    with pytest.raises(FileNotFoundError, match="no such table"):
        join(tmp_path, path)
    write_table(path, [{"method": "bp", "seed": 0}])
    with pytest.raises(
        ValueError, match="another schema: it has no column problem, num_tasks"
    ):
        join(tmp_path, path)
    for column, value in (
        ("seed", "x"),
        ("num_tasks", 1.5),
        ("lower_is_better", "perhaps"),
        ("last_tenth", "high"),
    ):
        write_table(path, table_rows(**{column: value}))
        with pytest.raises(
            ValueError, match=f"{value!r}.* column {column}|{value}"
        ):
            join(tmp_path, path)
    write_table(path, table_rows(seed=0))
    with pytest.raises(
        ValueError, match="two rows of l2, l2=0.1 with the seed"
    ):
        join(tmp_path, path)
    write_table(path, table_rows() + table_rows(num_tasks=3, method="bp"))
    with pytest.raises(ValueError, match="measures of 3 tasks"):
        join(tmp_path, path)
    write_table(path, [])
    with pytest.raises(ValueError, match="no rows"):
        join(tmp_path, path)
    (tmp_path / "table.csv").write_text("a,b\n1\n")
    with pytest.raises(ValueError, match="line 2 has not as many cells"):
        join(tmp_path, path)
    (tmp_path / "table.parquet").write_text("no")
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match="table.parquet is no table"):
        join(tmp_path, str(tmp_path / "table.parquet"))
