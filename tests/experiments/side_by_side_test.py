"""Settings that one run trains side by side, as it would each on its own."""

import json

import keras
import numpy as np
import pytest
from absl import flags

from keras_plasticity import experiments
from keras_plasticity import training
from keras_plasticity.experiments import scores
from keras_plasticity.experiments import side_by_side
from keras_plasticity.experiments.sweeps import jobs
from keras_plasticity.experiments.sweeps import plan as plans
from tests.examples.trainers import load
from tests.examples.trainers import run

_TINY = ["--num_examples=300", "--examples_per_task=100", "--num_learners=2"]


def write(tmp_path, content):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(content))
    return str(path)


def parse(*arguments):
    flag_values = flags.FlagValues()
    experiments.define_flags(flag_values)
    flag_values(["trainer", *arguments])
    return flag_values


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (
            "cbp",
            [
                {"learning_rate": "0.01", "replacement_rate": "0.01"},
                {"learning_rate": "0.03", "replacement_rate": "0.001"},
                {"maturity_threshold": "20"},
            ],
        ),
        # What acts when a task begins does so by its own numbers.
        (
            "shrink_and_perturb_tasks",
            [{"shrink": "0.5"}, {"shrink": "0.9"}, {"perturb": "0.1"}],
        ),
    ],
)
def test_results_are_those_of_runs_of_their_own(tmp_path, method, settings):
    pytest.importorskip("matplotlib")
    trainer = load("slowly_changing_regression")
    arguments = [*_TINY, f"--method={method}"]
    together = run(
        trainer,
        tmp_path / "together",
        *arguments,
        f"--side_by_side={write(tmp_path, settings)}",
    )
    assert len(together["runs"]) == len(settings)
    for number, setting in enumerate(settings):
        alone = run(
            trainer,
            tmp_path / f"{number}",
            *arguments,
            *(f"--{name}={value}" for name, value in setting.items()),
        )
        own = together["runs"][number]
        assert own["side_by_side"] == number
        assert own["seeds"] == [0, 1]
        assert own["settings"] == alone["runs"][0]["settings"]
        np.testing.assert_allclose(
            scores.curves(together, own),
            scores.curves(alone, alone["runs"][0]),
            rtol=2e-5,
        )
        assert (
            own["state_bytes_per_learner"]
            == alone["runs"][0]["state_bytes_per_learner"]
        )
        charts = tmp_path / "together" / method / f"{number:04d}"
        assert list(charts.glob("*tfevents*"))
    # And the table of differences knows them by their settings.
    table = experiments.compare(
        [str(tmp_path / "together")], str(tmp_path / "compared")
    )
    assert f"{method}, " in table


class Probe(training.TaskCallback):
    """Keeps what it is told."""

    def __init__(self):
        self.told = []

    def on_task_begin(self, task, x, y):
        self.told.append((task, x["a"].tolist(), y.tolist()))

    def on_progress(self, task, done):
        self.told.append((task, done))

    def on_task_end(self, task, results):
        self.told.append((task, results["loss"].tolist()))

    def on_train_end(self, logs=None):
        self.told.append("end")

    def get_state(self):
        return self.told

    def set_state(self, state):
        self.told = state


class Learners:
    """In place of an `OnlineTrainer`."""

    num_learners = 5

    def model(self, learner):
        return f"model {learner}"

    def edit(self, learner):
        return f"edit {learner}"


def test_a_callback_knows_of_its_learners_only():
    probe = Probe()
    callback = side_by_side.OfLearners(probe, range(2, 4))
    callback.trainer = Learners()
    assert probe.trainer.num_learners == 2
    assert [probe.trainer.model(i) for i in (0, 1)] == ["model 2", "model 3"]
    assert probe.trainer.edit(1) == "edit 3"
    x, y = {"a": np.arange(10).reshape(5, 2)}, np.arange(5)
    callback.on_task_begin(7, x, y)
    callback.on_progress(7, 0.5)
    callback.on_task_end(7, {"loss": np.arange(5.0)})
    callback.on_train_end()
    told = [(7, [[4, 5], [6, 7]], [2, 3]), (7, 0.5), (7, [2.0, 3.0]), "end"]
    assert callback.get_state() == told
    callback.set_state([])
    assert probe.told == [] and callback.get_config() == {}


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ([], [], "a list of one or more objects"),
        ({"l2": "1"}, [], "must hold a JSON list"),
        (["l2"], [], "a list of one or more objects"),
        ([{"hidden_units": "3"}], [], "must have flags of methods"),
        ([{"l2": "1"}], ["--l2=2"], "not given otherwise.*with l2=1"),
        ([{"l2": "1"}], ["--diagnostics"], "leave out --diagnostics"),
        ([{"l2": "1"}], ["--tracker=csv"], "leave out --tracker"),
    ],
)
def test_files_that_cannot_be(tmp_path, content, more, message):
    path = write(tmp_path, content)
    flag_values = parse(f"--side_by_side={path}", *more)
    with pytest.raises(ValueError, match=message):
        side_by_side.read(flag_values, experiments.PARTS)


@pytest.mark.parametrize(
    ("value", "message"), [("-1", "must be in"), ("many", "--l2=many")]
)
def test_a_value_that_cannot_be(tmp_path, value, message):
    path = write(tmp_path, [{"l2": value}])
    with pytest.raises(flags.IllegalFlagValueError, match=message):
        side_by_side.read(parse(f"--side_by_side={path}"), experiments.PARTS)


def test_a_file_that_is_not_there(tmp_path):
    flag_values = parse(f"--side_by_side={tmp_path / 'no.json'}")
    with pytest.raises(ValueError, match="a file that can be read"):
        side_by_side.read(flag_values, experiments.PARTS)


def make_plan(tmp_path, space, **more):
    trainer = tmp_path / "trainer.py"
    trainer.write_text("")
    return plans.Plan(
        str(trainer), space, more, "grid", None, 0, "area_under_curve"
    )


def groups(plan, done=(), at_a_time=1):
    found = [
        plan.job(run, setting, "logs")
        for run, setting in enumerate(plan.next_settings([], []))
    ]
    left = plan.side_by_side(found, at_a_time, lambda job: job.run in done)
    return left, [[job.run for job in each.jobs] for each in left]


@pytest.fixture
def jax(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")


@pytest.mark.usefixtures("jax")
def test_what_shares_a_program(tmp_path):
    plan = make_plan(
        tmp_path,
        {
            "learning_rate": [0.1, 0.2],
            "momentum": [0, 0.5, 0.9],
            "activation": ["relu", "tanh"],
        },
        num_examples=100,
    )
    left, runs = groups(plan)
    # Of each activation the one without momentum, and the others.
    assert runs == [[0, 6], [1, 7], [2, 4, 8, 10], [3, 5, 9, 11]]
    assert left[2].varied == ["learning_rate", "momentum"]
    assert left[2].arguments == [
        *("--on_nan=continue", "--num_examples=100", "--activation=relu")
    ]


@pytest.mark.usefixtures("jax")
def test_a_group_for_each_process(tmp_path):
    plan = make_plan(tmp_path, {"l2": [0.1, 0.2, 0.3, 0.4, 0.5]})
    assert groups(plan, at_a_time=2)[1] == [[0, 1, 2], [3, 4]]
    assert groups(plan, at_a_time=9)[1] == [[0], [1], [2], [3], [4]]
    assert isinstance(groups(plan, at_a_time=9)[0][0], jobs.Job)


@pytest.mark.usefixtures("jax")
def test_a_group_is_resumed_as_it_was(tmp_path):
    plan = make_plan(tmp_path, {"l2": [0.1, 0.2, 0.3, 0.4, 0.5]})
    first, second = groups(plan, at_a_time=2)[0]
    [left], _ = groups(plan, done=(3, 4), at_a_time=2)
    assert left.log_dir == first.log_dir
    [left], runs = groups(plan, done=(0, 1, 2, 3), at_a_time=2)
    assert runs == [[4]] and left.log_dir.endswith("0004")
    [_, left], runs = groups(plan, done=(1,), at_a_time=2)
    assert runs == [[0, 2], [3, 4]] and left.log_dir == second.log_dir


@pytest.mark.parametrize(
    ("space", "more"),
    [
        ({"hidden_units": [1, 2]}, {}),
        ({"activation": ["relu", "tanh"]}, {}),
        ({"l2": [1, 2]}, {"diagnostics": True}),
        ({"l2": [1, 2]}, {"tracker": "csv"}),
    ],
)
@pytest.mark.usefixtures("jax")
def test_runs_of_their_own(tmp_path, space, more):
    assert groups(make_plan(tmp_path, space, **more))[1] == [[0], [1]]


def test_other_backends_train_one_after_another(tmp_path, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    plan = make_plan(tmp_path, {"l2": [1, 2]})
    assert groups(plan)[1] == [[0], [1]]
