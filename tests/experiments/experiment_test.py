"""What all trainers share, tried on the one that needs no data."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing import plugin_event_multiplexer
from tensorboard.plugins.hparams import plugin_data_pb2

from keras_plasticity.callbacks import tracker
from keras_plasticity.experiments import recorder
from keras_plasticity.experiments import run_settings
from tests.examples.trainers import load
from tests.examples.trainers import parse
from tests.examples.trainers import run

_ROOT = pathlib.Path(__file__).parents[2]
_TRAINER = _ROOT / "examples" / "slowly_changing_regression.py"
_TINY = ["--num_examples=400", "--examples_per_task=100", "--num_learners=2"]


@pytest.fixture(scope="module")
def trainer():
    pytest.importorskip("matplotlib")
    return load("slowly_changing_regression")


def errors(summary):
    return [
        [task["squared_error_per_learner"] for task in record["per_task"]]
        for record in summary["runs"]
    ]


@pytest.mark.slow
@pytest.mark.long
def test_a_longer_run_goes_on_where_a_shorter_one_ended(
    trainer, tmp_path, capsys
):
    arguments = [*_TINY, "--method=bp", "--method=cbp"]
    expected = run(trainer, tmp_path / "a", *arguments)
    run(trainer, tmp_path / "b", *arguments, "--num_examples=200")
    capsys.readouterr()
    resumed = run(trainer, tmp_path / "b", *arguments, "--resume")
    assert errors(resumed) == errors(expected)
    output = capsys.readouterr().out
    assert "bp: resumed from task 2." in output
    assert "cbp: resumed from task 2." in output
    # What TensorBoard shows.
    events = plugin_event_accumulator.EventAccumulator(
        str(tmp_path / "b" / "bp")
    )
    events.Reload()
    tasks = [e.step for e in events.Tensors("against_tasks/squared_error")]
    assert tasks == [0, 1, 2, 3]
    steps = [e.step for e in events.Tensors("against_updates/squared_error")]
    assert steps == [100, 200, 300, 400]


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_run_goes_on(tmp_path):
    """A real kill, at whatever instant it is."""
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    command = [
        sys.executable,
        str(_TRAINER),
        "--num_examples=2400",
        "--examples_per_task=200",
        "--num_learners=2",
        "--method=cbp",
        "--replacement_rate=0.01",
    ]

    def start(log_dir, *arguments):
        return subprocess.Popen(
            [*command, f"--log_dir={log_dir}", *arguments],
            env=environment,
            stdout=subprocess.DEVNULL,
        )

    checkpoint = tmp_path / "killed" / "cbp" / "checkpoint.npz"
    whole = start(tmp_path / "whole")
    killed = start(tmp_path / "killed")
    while not checkpoint.exists() and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait(timeout=60)
    assert whole.wait(timeout=600) == 0
    assert start(tmp_path / "killed", "--resume").wait(timeout=600) == 0
    summaries = [
        json.loads((tmp_path / name / "summary.json").read_text())
        for name in ("whole", "killed")
    ]
    assert len(errors(summaries[0])[0]) == 12
    assert errors(summaries[0]) == errors(summaries[1])


def test_with_nothing_to_resume_a_run_is_new(trainer, tmp_path, capsys):
    run(trainer, tmp_path, *_TINY, "--method=linear", "--resume")
    assert "no run to resume" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--seed=3"], "seed=0 there, seed=3 here"),
        (["--method=bp"], r"method=\['linear'\] there"),
        (["--learning_rate=0.1"], "linear: learning_rate=0.01 there, .*=0.1 h"),
        (["--num_examples=200"], "num_examples=400 there, .*=200 here"),
    ],
)
def test_other_settings_are_not_resumed(trainer, tmp_path, changed, message):
    run(trainer, tmp_path, *_TINY, "--method=linear")
    given = [*_TINY, "--resume", *changed]
    if "--method=bp" not in changed:
        given.append("--method=linear")
    with pytest.raises(SystemExit, match=f"has other settings.*{message}"):
        run(trainer, tmp_path, *given)


@pytest.mark.slow
def test_another_backend_is_not_resumed(trainer, tmp_path, monkeypatch):
    arguments = [*_TINY, "--method=linear"]
    run(trainer, tmp_path, *arguments)
    settings = tmp_path / "settings.json"
    backend = keras.backend.backend()
    content = settings.read_text().replace(f'"{backend}"', '"another"')
    settings.write_text(content)
    with pytest.raises(SystemExit, match=f"another there, backend={backend} h"):
        run(trainer, tmp_path, *arguments, "--resume")


@pytest.mark.slow
def test_defaults_that_are_given_and_what_to_do_may_change(
    trainer, tmp_path, capsys
):
    arguments = [*_TINY, "--method=linear"]
    expected = run(trainer, tmp_path / "a", *arguments)
    run(trainer, tmp_path / "b", *arguments, "--num_examples=200")
    capsys.readouterr()
    resumed = run(
        trainer,
        tmp_path / "b",
        *arguments,
        "--resume",
        "--learning_rate=0.01",
        "--on_nan=continue",
    )
    assert "linear: resumed from task 2." in capsys.readouterr().out
    assert errors(resumed) == errors(expected)


def test_of_other_methods_only_their_names_are_told(trainer, tmp_path):
    run(trainer, tmp_path, *_TINY, "--method=linear")
    with pytest.raises(SystemExit) as error:
        run(trainer, tmp_path, *_TINY, "--resume", "--method=bp")
    assert str(error.value).endswith(
        "--overwrite to remove that run: method=['linear'] there, "
        "method=['bp'] here"
    )


def test_a_dry_run_checks_and_leaves_nothing(trainer, tmp_path, capsys):
    folder = tmp_path / "a"
    flags = parse(trainer, f"--log_dir={folder}", *_TINY, "--dry_run")
    assert trainer.run(flags) == {}
    assert capsys.readouterr().out == "" and not folder.exists()
    wrong = parse(trainer, *_TINY, "--dry_run", "--method=bp", "--l2=0.1")
    with pytest.raises(SystemExit, match="--l2 belongs to methods with"):
        trainer.run(wrong)


def test_help_lists_all_flags(trainer):
    key_flags = parse(trainer).get_key_flags_for_module(trainer)
    shared = {"method", "learning_rate", "num_learners", "log_dir", "resume"}
    assert {"num_examples"} | shared <= {flag.name for flag in key_flags}


def test_an_interruption_says_how_to_go_on(
    trainer, tmp_path, capsys, monkeypatch
):
    on_task_end = recorder.Recorder.on_task_end

    def interrupt(self, task, results):
        on_task_end(self, task, results)
        if task == 2:
            raise KeyboardInterrupt

    arguments = [*_TINY, "--method=linear"]
    with monkeypatch.context() as patch:
        patch.setattr(recorder.Recorder, "on_task_end", interrupt)
        with pytest.raises(SystemExit):
            run(trainer, tmp_path, *arguments)
    told = capsys.readouterr().err
    assert "Interrupted by SIGINT in linear, after 3 of 4 tasks." in told
    assert f"--log_dir={tmp_path} --resume" in told
    run(trainer, tmp_path, *arguments, "--resume")


def test_a_batch_that_is_larger_than_a_task():
    with pytest.raises(ValueError, match="has 500 ex.*--batch_size=1000"):
        run_settings.check_batch_size([], 1000, 500)


def test_batches_of_one_are_not_normalized(trainer, tmp_path):
    with pytest.raises(SystemExit, match="batch_norm needs batches.*size 1"):
        run(trainer, tmp_path, *_TINY, "--method=batch_norm")


def test_diagnostics_of_bounded_units(trainer, tmp_path):
    arguments = ["--method=bp", "--activation=tanh", "--diagnostics"]
    [record] = run(trainer, tmp_path, *_TINY, *arguments)["runs"]
    for task in record["per_task"]:
        assert 0 <= task["saturated_units"]["total"] <= 5
        assert 1 <= task["effective_rank"]["total"] <= 5


@pytest.mark.slow
def test_another_run_is_refused_unless_it_is_to_be_overwritten(
    trainer, tmp_path
):
    arguments = [*_TINY, "--method=linear"]
    run(trainer, tmp_path, *arguments, "--seed=3")
    (tmp_path / "of_the_user.txt").write_text("stays")
    with pytest.raises(SystemExit, match="Use --resume .*--overwrite"):
        run(trainer, tmp_path, *arguments)
    overwritten = run(trainer, tmp_path, *arguments, "--overwrite")
    expected = run(trainer, tmp_path / "new", *arguments)
    assert errors(overwritten) == errors(expected)
    assert (tmp_path / "of_the_user.txt").exists()
    with pytest.raises(SystemExit, match="--overwrite removes it. Give one"):
        run(trainer, tmp_path, *arguments, "--overwrite", "--resume")


def test_what_cannot_be_told_to_be_a_run_is_not_removed(trainer, tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(SystemExit, match="has no settings.json"):
        run(trainer, tmp_path, *_TINY, "--overwrite")
    assert (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("flag", ["--resume", "--overwrite"])
def test_to_go_on_takes_a_folder(trainer, flag):
    with pytest.raises(SystemExit, match=f"{flag} needs the folder"):
        trainer.run(parse(trainer, flag))


@pytest.mark.slow
def test_tensorboard_shows_first_what_is_looked_for(trainer, tmp_path):
    arguments = [*_TINY, "--method=bp", "--method=cbp", "--diagnostics"]
    summary = run(trainer, tmp_path, *arguments)
    names = {each.parent for each in tmp_path.rglob("*tfevents*")}
    rows = [f"{m}/seed_{s}" for m in ("bp", "cbp") for s in (0, 1)]
    assert names == {tmp_path / name for name in (".", "bp", "cbp", *rows)}
    root = event_accumulator.EventAccumulator(str(tmp_path))
    root.Reload()
    assert {"figure/against_tasks", "figure/diagnostics", "results"} <= set(
        root.Tags()["tensors"]
    )
    for record in summary["runs"]:
        events = event_accumulator.EventAccumulator(
            str(tmp_path / record["method"])
        )
        events.Reload()
        plugins = {
            tag: events.SummaryMetadata(tag).plugin_data.plugin_name
            for tag in events.Tags()["tensors"]
        }
        # Groups are sorted by name, and the first two are open.
        charts = sorted(t for t in plugins if plugins[t] != "text")
        assert charts[:2] == [
            "against_tasks/squared_error",
            "against_updates/squared_error",
        ]
        for tag, plugin in plugins.items():
            if plugin == "scalars":
                assert len(events.Tensors(tag)) == 4  # One for each task.
        for seed in (0, 1):
            [hparams] = rows_of(tmp_path / record["method"] / f"seed_{seed}")
            assert hparams["method"].string_value == record["method"]
            assert hparams["seed"].number_value == seed
            assert hparams["learning_rate"].number_value == pytest.approx(0.01)
            is_cbp = record["method"] == "cbp"
            assert ("replacement_rate" in hparams) == is_cbp


@pytest.mark.slow
def test_a_tracker_gets_what_figures_show(trainer, tmp_path):
    arguments = [*_TINY, "--method=linear", "--diagnostics", "--tracker=csv"]
    run(trainer, tmp_path, *arguments, "--num_examples=200")
    summary = run(trainer, tmp_path, *arguments, "--resume")
    with open(tmp_path / "linear" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    [record] = summary["runs"]
    for task, row in zip(record["per_task"], rows, strict=True):
        assert int(row.pop("step")) == task["task"]
        assert {name: float(cell) for name, cell in row.items()} == {
            "squared_error": task["squared_error"],
            "squared_error_standard_error": (
                task["squared_error_standard_error"]
            ),
            "weight_magnitude": task["weight_magnitude"]["total"],
            "learners": 2,
        }


def test_a_tracker_that_is_not_installed(trainer, tmp_path, monkeypatch):
    installed = {"matplotlib": True}
    monkeypatch.setattr(tracker.importlib.util, "find_spec", installed.get)
    with pytest.raises(SystemExit, match="--tracker=wandb needs wandb: pip"):
        run(trainer, tmp_path, *_TINY, "--tracker=csv", "--tracker=wandb")
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_fails_does_not_end_the_run(
    trainer, tmp_path, monkeypatch, capsys
):
    def fail(*_):
        raise RuntimeError("No network")

    monkeypatch.setattr(tracker.Tracker, "log", fail)
    arguments = [*_TINY, "--num_examples=100", "--method=linear"]
    arguments.append("--tracker=csv")
    with pytest.raises(SystemExit, match="not all of it could be written"):
        run(trainer, tmp_path, *arguments)
    assert "--tracker=csv (No network)" in capsys.readouterr().err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["per_task"]) == 1


def rows_of(folder):
    """The rows of a folder in TensorBoard's table HParams, as it reads it."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRun(str(folder), "run").Reload()
    contents = multiplexer.PluginRunToTagToContent("hparams")["run"]
    rows = [
        plugin_data_pb2.HParamsPluginData.FromString(content)
        for tag, content in contents.items()
        if tag.endswith("session_start_info")
    ]
    return [dict(row.session_start_info.hparams) for row in rows]
