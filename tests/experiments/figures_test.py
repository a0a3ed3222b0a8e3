"""Figures of runs that were made up: what is drawn, and that it fits."""

import numpy as np
import pytest

from keras_plasticity.experiments import PARTS
from keras_plasticity.experiments import figures


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, as Matplotlib has them."""
    matplotlib_figure = pytest.importorskip("matplotlib.figure")
    result = []
    savefig = matplotlib_figure.Figure.savefig

    def save(figure, *arguments, **settings):
        if settings["format"] == "png":
            result.append(figure)
        savefig(figure, *arguments, **settings)

    monkeypatch.setattr(matplotlib_figure.Figure, "savefig", save)
    return result


def make_summary(tasks_per_bin=1):
    return {
        "title": "A Problem, 2 learners",
        "metric": {
            "name": "test_accuracy",
            "label": "test accuracy (%)",
            "lower_is_better": False,
            "scale": 100.0,
        },
        "x_axis": {"label": "tasks", "per_task": 1},
        "tasks_per_bin": tasks_per_bin,
    }


def make_run(num_tasks=4, hidden_units=10, epochs=None, num_learners=2):
    """A run of one hidden layer, whose values are all different."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.uniform(0.1, 1, (*shape, num_learners)).tolist()

    tasks = []
    for task in range(num_tasks):
        record = {"task": task, "test_accuracy_per_learner": draw()}
        record["per_learner"] = {"weight_magnitude": draw()}
        if hidden_units:
            record |= {
                "num_units": hidden_units,
                "effective_rank": {"hidden": 0.0, "total": 0.0},
            }
            for name in ("dead_units", "effective_rank"):
                record["per_learner"][name] = draw()
        if epochs and task in (0, num_tasks - 1):
            record["epochs"] = {
                "training": draw(epochs),
                "test_accuracy": draw(epochs),
            }
        tasks.append(record)
    return {"num_learners": num_learners, "per_task": tasks, "published": []}


def check_curve(line, band, x, values):
    """Checks a line and its band: mean and standard error of two learners."""
    values = np.array(values, "float64")
    error = np.abs(values[:, 0] - values[:, 1]) / 2
    np.testing.assert_array_equal(line.get_xdata(), x)
    np.testing.assert_allclose(line.get_ydata(), values.mean(axis=1))
    corners = band.get_paths()[0].vertices
    for sign in (-1, 1):
        for point in zip(x, values.mean(axis=1) + sign * error):
            assert np.isclose(corners, point).all(axis=1).any()


def test_all_methods_look_different(drawn, tmp_path):
    styles = {figures._style(number) for number in range(len(PARTS))}
    assert len(styles) == len(PARTS) > 40
    labeled = {part.name: make_run(1) for part in PARTS}
    figures.draw(make_summary(), labeled, str(tmp_path / "figure"))
    assert len(drawn[0].axes[0].lines) == len(PARTS)


def test_diagnostics_against_tasks(drawn, tmp_path):
    labeled = {"bp": make_run(5), "linear": make_run(4, hidden_units=0)}
    path = str(tmp_path / "figure")
    pngs = figures.draw(make_summary(tasks_per_bin=2), labeled, path)
    assert list(pngs) == [path, f"{path}_diagnostics"]
    for name, png in pngs.items():
        assert (tmp_path / f"{name}.png").read_bytes() == png
        assert (tmp_path / f"{name}.svg").exists()
    _, figure = drawn
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "dead units (%)",
        "effective rank (% of units)",
        "mean weight magnitude",
    ]
    assert "measured before each task, bins of 2 tasks, the last 1 in none" in (
        figure.get_suptitle()
    )
    assert figure.get_supxlabel().endswith(
        "lines: means, bands: standard errors, over n learners"
    )
    scales = dict(dead_units=10, effective_rank=10, weight_magnitude=1)
    for axes, (name, scale) in zip(figure.axes, scales.items()):
        has = [run for run in labeled.values() if name in run["per_task"][0]]
        if name == "weight_magnitude":
            has = list(labeled.values())
        else:
            has = [labeled["bp"]]
        assert len(axes.lines) == len(has)
        assert axes.get_xlabel() == "tasks"
        for line, band, run in zip(axes.lines, axes.collections, has):
            values = [task["per_learner"][name] for task in run["per_task"]]
            bins = scale * np.reshape(values[:4], (2, 2, 2)).mean(axis=1)
            check_curve(line, band, [2, 4], bins)
    for axes in figure.axes[:2]:
        bottom, top = axes.get_ylim()
        assert bottom == 0.0 and top > axes.lines[0].get_ydata().max()
    # One entry a run, in their order, though two panels lack one of them.
    [legend] = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == [
        "bp (n=2)",
        "linear (n=2)",
    ]


def test_where_no_unit_is_dead_that_is_to_be_seen(drawn, tmp_path):
    run = make_run(3)
    for task in run["per_task"]:
        task["per_learner"]["dead_units"] = [0.0, 0.0]
    figures.draw(make_summary(), {"bp": run}, str(tmp_path / "figure"))
    assert drawn[-1].axes[0].get_ylim() == (0.0, 1.0)


def test_epochs_of_the_first_and_the_last_task(drawn, tmp_path):
    labeled = {"bp": make_run(3, epochs=4), "cbp": make_run(3, epochs=4)}
    path = str(tmp_path / "figure")
    assert list(figures.draw(make_summary(), labeled, path))[-1] == (
        f"{path}_epochs"
    )
    figure = drawn[-1]
    assert [axes.get_title() for axes in figure.axes] == [
        "first task",
        "last task of 3",
        "",
        "",
    ]
    panels = iter(figure.axes)
    for name, label in (
        ("training", "training accuracy (%)"),
        ("test_accuracy", "test accuracy (%)"),
    ):
        for task in (0, 2):
            axes = next(panels)
            assert axes.get_ylabel() == (label if task == 0 else "")
            for line, band, run in zip(
                axes.lines, axes.collections, labeled.values(), strict=True
            ):
                values = run["per_task"][task]["epochs"][name]
                check_curve(line, band, [1, 2, 3, 4], np.multiply(values, 100))


def test_runs_of_which_there_is_less(drawn, tmp_path):
    """One has only begun, of one only the first task's epochs are known."""
    short, long = make_run(1, epochs=2), make_run(5, epochs=2, num_learners=3)
    del long["per_task"][-1]
    figures.draw(make_summary(), {"a": short, "b": long}, str(tmp_path / "f"))
    titles = [axes.get_title() for axes in drawn[-1].axes]
    # The last task of the first run is its first one.
    assert titles == ["first task", ""]
    labels = [t.get_text() for t in drawn[-1].legends[0].get_texts()]
    assert labels == ["a (n=2)", "b (n=3)"]


def test_figures_of_an_earlier_run_are_removed(drawn, tmp_path):
    path = str(tmp_path / "figure")
    figures.draw(make_summary(), {"bp": make_run(2, epochs=2)}, path)
    assert len(list(tmp_path.iterdir())) == 6
    run = make_run(2)
    for task in run["per_task"]:
        del task["per_learner"]
    figures.draw(make_summary(), {"bp": run}, path)
    assert {each.name for each in tmp_path.iterdir()} == {
        "figure.png",
        "figure.svg",
    }


@pytest.mark.parametrize("number", [1, 20, 44, 100])
def test_the_legend_lies_within_the_figure(number):
    matplotlib_figure = pytest.importorskip("matplotlib.figure")
    figure = matplotlib_figure.Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for i in range(number):
        axes.plot([0, 1], [i, i], label=f"a_method_of_thirty_characters_{i}")
    figures._add_legend(figure)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    inside, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= inside.x0 and inside.x1 <= whole.x1
    assert whole.y0 <= inside.y0 and inside.y1 <= whole.y1
    # Most of the width is for the curves.
    assert axes.get_window_extent().width > 0.3 * whole.width
