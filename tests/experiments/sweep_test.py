"""Sweeps whose runs are made up: what is kept, redone, and refused."""

import concurrent.futures
import json
import os
import pathlib
import random
import signal
import sys

import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.util import tensor_util

from keras_plasticity import experiments
from keras_plasticity.experiments import command
from keras_plasticity.experiments import exit_status
from keras_plasticity.experiments import run_folder
from keras_plasticity.experiments.sweeps import driver
from keras_plasticity.experiments.sweeps import jobs
from keras_plasticity.experiments.sweeps import plan
from keras_plasticity.experiments.sweeps import worker
from keras_plasticity.experiments.sweeps.worker_process import WorkerDied
from keras_plasticity.experiments.table import read_table

SPACE = {"rate": [0.1, 0.2, 0.3], "l2": ["0", "1e-3"]}


def make_summary(job, values=None):
    """What a trainer would write: two seeds, two tasks."""
    rate = float(job.setting.get("rate", 0))
    values = values or [[rate, rate + 1], [rate + 2, rate + 3]]
    return {
        "problem": "stream",
        "metric": {"name": "loss", "lower_is_better": True, "scale": 1.0},
        "flags": {"seed": 4},
        "runs": [
            {
                "method": "bp",
                "num_learners": 2,
                "train_seconds": 1.0,
                "compile_seconds": 0.5,
                "per_task": [{"loss_per_learner": each} for each in values],
            }
        ],
    }


class FakeProcesses:
    """In place of `LocalProcesses`: jobs are done by a function."""

    do = staticmethod(lambda job: None)
    refused = None
    # So many that each is a run of its own.
    at_a_time = 1000

    def __init__(self, trainer, processes):
        del trainer, processes
        self._pool = concurrent.futures.ThreadPoolExecutor(1)

    def submit(self, job):
        return self._pool.submit(lambda: type(self).do(job) or whole(job))

    def check(self, arguments):
        type(self).checked = arguments
        return self._pool.submit(lambda: self.refused)

    def stop(self):
        self._pool.shutdown(wait=False, cancel_futures=True)

    def close(self, at_once=False):
        self._pool.shutdown(cancel_futures=True)


def whole(job, values=None):
    return jobs.Outcome(0, "", jobs.rows_of(make_summary(job, values), job))


@pytest.fixture
def trainer(tmp_path):
    path = tmp_path / "trainer.py"
    path.write_text("")
    return str(path)


@pytest.fixture
def do(monkeypatch):
    """Sets the function that does jobs, by `do(function)`."""
    executor = type("Executor", (FakeProcesses,), {})
    monkeypatch.setattr(driver, "LocalProcesses", executor)

    def set_function(function=lambda job: None):
        executor.do = staticmethod(function)
        return executor

    set_function()
    return set_function


def note(do, outcome):
    """Has jobs done by `outcome(job)`; returns the list of those done."""
    done = []

    def work(job):
        done.append(job)
        return outcome(job)

    do(work)
    return done


def read_hparams(folder):
    """The settings and results that TensorBoard's "HParams" shows of a run."""
    events = plugin_event_accumulator.EventAccumulator(str(folder)).Reload()
    contents = events.PluginTagToContent("hparams")
    start = hparams_metadata.parse_session_start_info_plugin_data(
        contents[hparams_metadata.SESSION_START_INFO_TAG]
    )
    settings = {
        name: getattr(value, value.WhichOneof("kind"))
        for name, value in start.hparams.items()
    }
    results = {
        tag: tensor_util.make_ndarray(events.Tensors(tag)[0].tensor_proto)
        for tag in events.Tags()["tensors"]
        if tag.startswith("result/")
    }
    return settings, {tag: float(value) for tag, value in results.items()}


def run_sweep(trainer, folder, resume=False, **arguments):
    arguments = {"space": SPACE, **arguments}
    return experiments.sweep(
        trainer, log_dir=str(folder), resume=resume, **arguments
    )


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_the_table(trainer, do, tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    do()
    rows = run_sweep(trainer, tmp_path / "a", table_format=ending)
    assert read_table(str(tmp_path / "a" / f"table.{ending}")) == rows
    assert len(rows) == 6 * 2
    assert list(rows[0]) == jobs.columns(SPACE)
    assert rows[3] == {
        **{"run": 1, "flag.rate": "0.1", "flag.l2": "1e-3", "seed": 5},
        **{"problem": "stream", "method": "bp", "num_tasks": 2},
        **{"metric": "loss", "lower_is_better": True},
        **{"area_under_curve": 2.1, "last_tenth": 3.1},
        **{"train_seconds": 1.0, "compile_seconds": 0.5},
    }


def test_what_a_trainer_is_told(trainer, do, tmp_path):
    executor = do()
    seen = []
    do(lambda job: seen.append(job))
    run_sweep(
        trainer,
        tmp_path / "a",
        space={"rate": [0.1]},
        flags={"method": ["bp", "cbp,l2"], "flip": True, "seed": 3},
    )
    assert seen[0].arguments == [
        *("--on_nan=continue", "--method=bp", "--method=cbp,l2"),
        *("--flip=true", "--seed=3", "--rate=0.1"),
    ]
    assert executor.checked == [seen[0].arguments]
    assert seen[0].log_dir == str(tmp_path / "a" / "runs" / "0000")


def test_charts_have_a_row_for_each_setting(trainer, do, tmp_path):
    do()
    run_sweep(trainer, tmp_path / "a")
    folders = sorted((tmp_path / "a" / "tensorboard").iterdir())
    assert [folder.name for folder in folders] == [f"{i:04d}" for i in range(6)]
    settings, results = read_hparams(folders[3])
    assert settings == {"rate": 0.2, "l2": 0.001}
    assert results == pytest.approx(
        {"result/area_under_curve": 1.7, "result/last_tenth": 2.7}
    )


def test_a_worker_that_dies_is_replaced(trainer, do, tmp_path, capsys):
    attempts = []

    def die_twice(job):
        attempts.append(job.run)
        if attempts.count(job.run) <= 2 and job.run % 2:
            raise WorkerDied("the worker process ended: SIGKILL")
        if job.run == 4 and attempts.count(4) == 1:
            return jobs.Outcome(143, "", [])

    do(die_twice)
    rows = run_sweep(trainer, tmp_path / "a")
    do()
    assert rows == run_sweep(trainer, tmp_path / "b")
    assert attempts.count(1) == 3 and attempts.count(4) == 2
    told = capsys.readouterr().out
    assert "Run 1: the worker process ended: SIGKILL. It is tried" in told
    assert "Run 4: something sent it SIGTERM. It is tried again." in told


def make_groups(monkeypatch, executor):
    """Has jobs done side by side, as on JAX."""
    monkeypatch.setattr(executor, "at_a_time", 1)
    monkeypatch.setattr(
        plan.Plan, "_varied_side_by_side", lambda self: ["rate"]
    )


def whole_group(group):
    rows = [row for job in group.jobs for row in whole(job).rows]
    return jobs.Outcome(0, "", rows)


def test_side_by_side_the_table_is_the_same(trainer, do, tmp_path, monkeypatch):
    do()
    rows = run_sweep(trainer, tmp_path / "a")
    done = []

    def work(group):
        done.append([job.run for job in group.jobs])
        return whole_group(group)

    make_groups(monkeypatch, do(work))
    assert run_sweep(trainer, tmp_path / "b") == rows
    assert done == [[0, 2, 4], [1, 3, 5]]
    assert len(list((tmp_path / "b" / "tensorboard").iterdir())) == 6


def test_what_cannot_be_side_by_side(
    trainer, do, tmp_path, monkeypatch, capsys
):
    """Each on its own, so that one that fails is told by its setting."""
    do()
    rows = run_sweep(trainer, tmp_path / "a")

    def work(job):
        if len(job.jobs) > 1:
            return jobs.Outcome(1, "they differ", [])
        if job.run == 3:
            return jobs.Outcome(1, "too large", [])

    make_groups(monkeypatch, do(work))
    with pytest.raises(SystemExit, match="1 of 6 runs failed.*too large"):
        run_sweep(trainer, tmp_path / "b")
    told = capsys.readouterr().out
    assert "Runs 0 to 4 cannot be trained side by side: they differ" in told
    left = read_table(str(tmp_path / "b" / "table.csv"))
    assert left == [row for row in rows if row["run"] != 3]
    failures = (tmp_path / "b" / "failures.csv").read_text()
    assert failures.count("too large") == 1


def test_runs_that_fail_are_told_and_redone(trainer, do, tmp_path, capsys):
    attempts = []

    def fail(job):
        attempts.append(job.run)
        if job.run == 2:
            return jobs.Outcome(1, "the disk is full", [])
        if job.run == 3:
            raise WorkerDied("SIGSEGV")

    do(fail)
    with pytest.raises(SystemExit, match="2 of 6 runs failed") as error:
        run_sweep(trainer, tmp_path / "a", retries=1)
    assert error.value.code == exit_status.FAILED
    assert attempts.count(2) == 1 and attempts.count(3) == 2
    failures = (tmp_path / "a" / "failures.csv").read_text()
    assert "the disk is full" in failures and "SIGSEGV, 2 times" in failures
    executor = do()
    rows = run_sweep(trainer, tmp_path / "a", resume=True)
    assert len(rows) == 12 and executor.checked
    assert not (tmp_path / "a" / "failures.csv").exists()


@pytest.mark.parametrize("num_settings", [20, 30])
def test_what_optuna_proposed_stays_when_a_failed_run_is_redone(
    trainer, do, tmp_path, num_settings
):
    pytest.importorskip("optuna", reason="Optuna is not installed")
    arguments = {
        "space": {"rate": experiments.Range(0.1, 0.9), "l2": ["0", "1"]},
        "sampler": "optuna",
    }
    tried = {}

    def fail(job):
        tried[job.run] = job.setting
        if job.run in (1, 9):
            return jobs.Outcome(1, "the disk is full", [])

    do(fail)
    with pytest.raises(SystemExit, match="2 of 20 runs failed"):
        run_sweep(trainer, tmp_path / "a", num_settings=20, **arguments)
    redone = {}

    def do_better(job):
        redone[job.run] = job.setting
        # The best of all, around which Optuna would propose others.
        return whole(job, [[0.0, 0.0]] * 2) if job.run in (1, 9) else None

    do(do_better)
    rows = run_sweep(
        trainer,
        tmp_path / "a",
        resume=True,
        num_settings=num_settings,
        **arguments,
    )
    # Those that the sweep has grown by are new.
    assert set(redone) == {1, 9, *range(20, num_settings)}
    assert {run: redone[run] for run in (1, 9)} == {1: tried[1], 9: tried[9]}
    assert {row["run"] for row in rows} == {*range(num_settings)}
    settings = {(row["flag.rate"], row["flag.l2"]) for row in rows}
    assert len(settings) == num_settings


def test_proposals_of_another_sweep(trainer, do, tmp_path):
    pytest.importorskip("optuna", reason="Optuna is not installed")
    arguments = {
        "space": {"rate": experiments.Range(0.1, 0.9)},
        "sampler": "optuna",
        "num_settings": 2,
    }
    do()
    run_sweep(trainer, tmp_path / "a", **arguments)
    path = tmp_path / "a" / "proposed.json"
    for content in ('[{"l2": "0"}]', '[{"rate": 0.1}]', "[3]"):
        path.write_text(content)
        with pytest.raises(ValueError, match="must be a list of settings"):
            run_sweep(trainer, tmp_path / "a", resume=True, **arguments)
    path.unlink()
    rows = run_sweep(trainer, tmp_path / "a", resume=True, **arguments)
    assert len(json.loads(path.read_text())) == 2 == len(rows) / 2


def test_learners_that_diverge(trainer, do, tmp_path, capsys):
    do(lambda job: whole(job, [[1.0, None], [2.0, None]]))
    rows = run_sweep(trainer, tmp_path / "a", space={"rate": [0.1]})
    assert [row["last_tenth"] for row in rows] == [2.0, None]
    assert read_table(str(tmp_path / "a" / "table.csv")) == rows
    assert "1 of 2 diverged" in capsys.readouterr().out


@pytest.mark.parametrize("sampler", ["grid", "random", "optuna"])
def test_a_sweep_that_is_killed_again_and_again(trainer, do, tmp_path, sampler):
    """It ends with the table, byte for byte, of one that is not."""
    arguments = {}
    if sampler != "grid":
        space = {"rate": experiments.Range(0.1, 0.9), "l2": ["0", "1"]}
        arguments = {"space": space, "sampler": sampler, "num_settings": 20}
    if sampler == "optuna":
        pytest.importorskip("optuna", reason="Optuna is not installed")
    do()
    run_sweep(trainer, tmp_path / "whole", **arguments)

    class Kill(BaseException):
        pass

    rng = random.Random(0)
    ends = []
    jobs_left = [0]

    def end_now_and_then(job):
        jobs_left[0] -= 1
        if jobs_left[0] == -1 and len(ends) < 10:
            ends.append(rng.choice(["a kill", "a signal"]))
            if ends[-1] == "a kill":
                raise Kill
            signal.raise_signal(signal.SIGTERM)
        return whole(job)

    do(end_now_and_then)
    while len(ends) < 10:
        jobs_left[0] = rng.choice([0, 0, 0, 1])
        with pytest.raises((Kill, SystemExit)) as error:
            run_sweep(trainer, tmp_path / "broken", resume=True, **arguments)
        assert getattr(error.value, "code", 143) == 143
    assert len(set(ends)) == 2
    run_sweep(trainer, tmp_path / "broken", resume=True, **arguments)
    whole_table = (tmp_path / "whole" / "table.csv").read_bytes()
    assert (tmp_path / "broken" / "table.csv").read_bytes() == whole_table


def test_what_is_done_is_not_redone(trainer, do, tmp_path):
    do()
    rows = run_sweep(trainer, tmp_path / "a")
    done = []
    do(lambda job: done.append(job.run))
    assert run_sweep(trainer, tmp_path / "a", resume=True) == rows
    assert done == []


def test_a_drawn_sweep_can_grow(trainer, do, tmp_path):
    space = {"rate": experiments.Range(0.1, 0.9)}
    arguments = {"space": space, "sampler": "random"}
    do()
    rows = run_sweep(trainer, tmp_path / "a", num_settings=3, **arguments)
    done = []
    do(lambda job: done.append(job.run))
    more = run_sweep(
        trainer, tmp_path / "a", resume=True, num_settings=5, **arguments
    )
    assert more[:6] == rows and done == [3, 4]
    with pytest.raises(ValueError, match="num_settings=5 there"):
        run_sweep(
            trainer, tmp_path / "a", resume=True, num_settings=3, **arguments
        )


def test_interrupted_before_anything_is_done(trainer, do, tmp_path, capsys):

    def interrupt(job):
        if job.run == 0:
            signal.raise_signal(signal.SIGINT)

    do(interrupt)
    with pytest.raises(SystemExit, match="Interrupted by SIGINT") as error:
        run_sweep(trainer, tmp_path / "a")
    assert error.value.code == 130
    assert f"--resume --log_dir={tmp_path / 'a'}" in capsys.readouterr().err


def test_optuna_improves(trainer, do, tmp_path):
    pytest.importorskip("optuna", reason="Optuna is not installed")
    do()
    rows = run_sweep(
        trainer,
        tmp_path / "a",
        space={"rate": experiments.Range(0.0, 1.0)},
        sampler="optuna",
        num_settings=32,
    )
    rates = [float(row["flag.rate"]) for row in rows[::2]]
    assert len(set(rates)) == 32
    assert sum(rates[24:]) < 0.5 * sum(rates[:8])


def make_methods_summary(job):
    """Of two methods, one of which has its best rate at 0.1, one at 0.3."""
    rate = float(job.setting["rate"])
    names = [a.partition("=")[2] for a in job.arguments if "--method=" in a]
    flags = dict(a.lstrip("-").split("=") for a in job.arguments)
    summary = make_summary(job)
    summary["flags"]["seed"] = int(flags["seed"])
    n = int(flags.get("num_learners", 2))
    summary["runs"] = [
        {
            **summary["runs"][0],
            "method": name,
            "num_learners": n,
            "per_task": [{"loss_per_learner": [sign * rate] * n}] * 2,
        }
        for name, sign in (("bp", 1), ("cbp", -1))
        if name in names
    ]
    return summary


def test_the_best_are_reported_on_other_seeds(trainer, do, tmp_path, capsys):
    def outcome(job):
        return jobs.Outcome(0, "", jobs.rows_of(make_methods_summary(job), job))

    done = note(do, outcome)
    arguments = {
        "space": {"rate": [0.1, 0.2, 0.3], "seed": [4, 6]},
        "flags": {"method": ["bp", "cbp"]},
        "report_seeds": 3,
    }
    rows = run_sweep(trainer, tmp_path / "a", **arguments)
    assert {row["seed"] for row in rows} == {4, 5, 6, 7}
    reported = read_table(str(tmp_path / "a" / "report.csv"))
    assert [
        (row["method"], row["flag.rate"], row["seed"]) for row in reported
    ] == [("bp", "0.1", seed) for seed in (8, 9, 10)] + [
        ("cbp", "0.3", seed) for seed in (8, 9, 10)
    ]
    assert "--method=cbp" in done[-1].arguments
    assert "--method=bp" not in done[-1].arguments
    told = capsys.readouterr().out
    assert "On other seeds, the last tenth of loss" in told
    assert f"Report: {tmp_path / 'a' / 'report.csv'}" in told
    # Resumed, with as many and with more of them.
    del done[:]
    run_sweep(trainer, tmp_path / "a", resume=True, **arguments)
    assert done == []
    arguments["report_seeds"] = 4
    run_sweep(trainer, tmp_path / "a", resume=True, **arguments)
    assert len(done) == 2
    assert len(read_table(str(tmp_path / "a" / "report.csv"))) == 8


def methods_outcome(job, value_of=lambda method, setting: 1.0):
    """What a job of several methods gives: for each, the same value always."""
    pairs = [each.lstrip("-").partition("=") for each in job.arguments]
    flags = {name: value for name, _, value in pairs}
    count = int(flags.get("num_learners", 2))
    summary = make_summary(job)
    summary["flags"]["seed"] = int(flags.get("seed", 0))
    [run] = summary["runs"]
    summary["runs"] = []
    for name, _, method in pairs:
        if name == "method":
            values = [value_of(method, job.setting)] * count
            task = {"loss_per_learner": values}
            changes = {"method": method, "num_learners": count}
            summary["runs"].append({**run, **changes, "per_task": [task] * 2})
    return jobs.Outcome(0, "", jobs.rows_of(summary, job))


def is_report(job):
    return os.path.basename(job.log_dir).startswith("report")


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("bp", ["momentum=0.5"]),
        ("l2", ["l2=0.1", "momentum=0.5"]),
        ("cbp,l2", ["l2=0.1", "momentum=0.5", "replacement_rate=1e-3"]),
        # It has no momentum of that kind.
        ("adam", []),
        ("shrink_and_perturb_tasks", ["momentum=0.5", "notowards_first"]),
    ],
)
def test_a_method_is_reported_with_the_flags_it_takes(
    trainer, do, tmp_path, method, own
):
    done = note(do, methods_outcome)
    run_sweep(
        trainer,
        tmp_path / "a",
        space={"replacement_rate": ["1e-3"], "rate": [0.1]},
        flags={
            "method": [method, "l1"],
            **{"l2": 0.1, "momentum": 0.5, "notowards_first": True},
        },
        report_seeds=2,
    )
    [report] = [
        job
        for job in done
        if is_report(job) and f"--method={method}" in job.arguments
    ]
    always = {"on_nan=continue", f"method={method}", "rate=0.1"}
    always |= {"seed=2", "num_learners=2"}
    arguments = {each.removeprefix("--") for each in report.arguments}
    assert arguments == always | set(own)
    # The table has the columns of the sweep all the same.
    rows = read_table(str(tmp_path / "a" / "report.csv"))
    assert {row["flag.replacement_rate"] for row in rows} == {"1e-3"}


def test_a_method_of_a_file_is_reported(trainer, do, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from keras_plasticity.experiments import Flag\n"
        "from keras_plasticity.experiments import Part\n"
        "flag = Flag('strength', 'how much', 1.0)\n"
        "PARTS = [Part('mine', 'A part.', 'here', flags=(flag,))]\n"
    )
    done = note(do, methods_outcome)
    run_sweep(
        trainer,
        tmp_path / "a",
        space={"strength": ["1", "2"]},
        flags={"method": ["bp", "mine"], "method_file": str(path)},
        report_seeds=2,
    )
    bp, mine = done[-2:]
    assert f"--method_file={path}" in bp.arguments
    assert "--strength=1" not in bp.arguments
    assert "--strength=1" in mine.arguments


def test_a_method_of_the_trainer_alone_is_reported_with_all_flags(
    trainer, do, tmp_path
):
    done = note(do, methods_outcome)
    run_sweep(
        trainer,
        tmp_path / "a",
        space={"rate": [0.1], "l2": [0.1]},
        flags={"method": "theirs"},
        report_seeds=2,
    )
    assert "--l2=0.1" in done[-1].arguments


def test_a_report_that_fails_is_counted_beside_the_runs(
    trainer, do, tmp_path, capsys
):
    def work(job):
        if is_report(job):
            return jobs.Outcome(1, "the disk is full", [])
        if job.run == 0:
            return jobs.Outcome(1, "too large", [])
        return methods_outcome(job)

    do(work)
    with pytest.raises(
        SystemExit, match="3 of 5 runs failed.*The first one: too large"
    ):
        run_sweep(
            trainer,
            tmp_path / "a",
            space={"rate": [0.1, 0.2, 0.3]},
            flags={"method": ["bp", "cbp"]},
            report_seeds=2,
        )
    told = capsys.readouterr().out
    assert "Run 0 failed: too large" in told
    assert "Report of cbp failed: the disk is full" in told
    failures = (tmp_path / "a" / "failures.csv").read_text().splitlines()
    assert failures[1] == "0,0.1,too large"
    assert sorted(failures[2:]) == [
        "report of bp,0.2,the disk is full",
        "report of cbp,0.2,the disk is full",
    ]


def test_a_report_on_other_seeds_has_a_folder_of_its_own(trainer, do, tmp_path):
    folders = []

    def work(job):
        if is_report(job):
            folders.append(os.path.basename(job.log_dir))
        return methods_outcome(job)

    do(work)
    for seeds in (2, 3):
        run_sweep(
            trainer,
            tmp_path / "a",
            space={"rate": [0.1, 0.2]},
            flags={"method": "bp"},
            report_seeds=seeds,
            resume=True,
        )
    assert folders == [
        "report-0000-bp-seeds-2-to-3",
        "report-0000-bp-seeds-2-to-4",
    ]


def test_a_report_that_grows_by_a_method(trainer, do, tmp_path):
    """The numbers of the others change, and their rows are theirs still."""
    rates = []

    def value_of(method, setting):
        rates.append(setting["rate"])
        is_first = setting["rate"] == rates[0]
        if method == "adam":
            return None if is_first else 1.0
        return 1.0 if is_first else 2.0

    do(lambda job: methods_outcome(job, value_of))
    arguments = {
        "space": {"rate": experiments.Range(0.1, 0.9)},
        "sampler": "random",
        "flags": {"method": ["adam", "bp", "cbp"]},
        "report_seeds": 2,
        "resume": True,
    }

    def reported():
        rows = read_table(str(tmp_path / "a" / "report.csv"))
        return [(row["run"], row["method"], row["seed"]) for row in rows]

    run_sweep(trainer, tmp_path / "a", num_settings=1, **arguments)
    assert reported() == [
        *((0, "bp", seed) for seed in (2, 3)),
        *((1, "cbp", seed) for seed in (2, 3)),
    ]
    run_sweep(trainer, tmp_path / "a", num_settings=2, **arguments)
    assert reported() == [
        *((0, "adam", seed) for seed in (2, 3)),
        *((1, "bp", seed) for seed in (2, 3)),
        *((2, "cbp", seed) for seed in (2, 3)),
    ]


def test_a_report_has_no_seed_of_a_sweep_that_grew(trainer, do, tmp_path):
    numbers = []

    def value_of(method, setting):
        del method
        numbers.append(setting["num_learners"])
        return 1.0 if setting["num_learners"] == numbers[0] else 2.0

    do(lambda job: methods_outcome(job, value_of))
    for count in (1, 8):
        rows = run_sweep(
            trainer,
            tmp_path / "a",
            space={"num_learners": experiments.Range(1, 9)},
            sampler="random",
            num_settings=count,
            flags={"method": "bp"},
            report_seeds=2,
            resume=True,
        )
    reported = read_table(str(tmp_path / "a" / "report.csv"))
    last = max(row["seed"] for row in rows)
    assert [row["seed"] for row in reported] == [last + 1, last + 2]


def test_of_all_that_diverged_none_is_reported(trainer, do, tmp_path):
    do(lambda job: whole(job, [[1.0, None]]))
    run_sweep(trainer, tmp_path / "a", report_seeds=3)
    assert not (tmp_path / "a" / "report.csv").exists()


@pytest.mark.parametrize(
    ("space", "flags"),
    [
        ({"seed": [0, 1]}, {"num_learners": 1}),
        ({"seed": [4, 0, 2]}, {"num_learners": 2}),
        # Each number of learners is a setting of its own.
        ({"seed": [0, 3], "num_learners": [1, 3]}, {}),
    ],
)
def test_seeds_that_are_far_enough_apart(trainer, do, tmp_path, space, flags):
    do(methods_outcome)
    rows = run_sweep(
        trainer,
        tmp_path / "a",
        space={"rate": [0.1, 0.2], **space},
        flags={"method": "bp", **flags},
    )
    seeds = [(plan.setting_of(row), row["seed"]) for row in rows]
    assert len(set(seeds)) == len(seeds)


def test_seeds_that_optuna_may_not_propose(trainer, do, tmp_path):
    pytest.importorskip("optuna", reason="Optuna is not installed")
    do()
    with pytest.raises(ValueError, match="seed=0 and seed=1 with num_learn"):
        run_sweep(
            trainer,
            tmp_path / "a",
            space={"seed": [0, 1], "rate": experiments.Range(0, 1)},
            flags={"num_learners": 2},
            sampler="optuna",
            num_settings=4,
        )
    assert not (tmp_path / "a").exists()


def test_seeds_that_two_runs_share(trainer, do, tmp_path):
    """Of a trainer that trains two learners unless it is told otherwise."""
    do(methods_outcome)
    with pytest.raises(
        ValueError, match="apart.*the seed 1 of bp in run 0 and in run 1"
    ):
        run_sweep(
            trainer,
            tmp_path / "a",
            space={"seed": [0, 1]},
            flags={"method": "bp"},
        )
    rows = read_table(str(tmp_path / "a" / "table.csv"))
    assert len(rows) == 2  # Those of whichever ended first.


def test_what_to_resume_has_to_be_told(trainer, do, tmp_path, monkeypatch):
    executor = do()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--resume needs the folder.*--log_d"):
        experiments.sweep(trainer, SPACE, resume=True)
    assert not hasattr(executor, "checked")
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("status", [128, 200, 255, 1000, 3, -1])
def test_an_exit_status_that_is_no_signal(trainer, do, tmp_path, status):
    attempts = []

    def work(job):
        attempts.append(job.run)
        if job.run == 1:
            # As of `sys.exit(status)`, which has no other message.
            return jobs.Outcome(status, str(status), [])

    do(work)
    with pytest.raises(
        SystemExit, match=f"1 of 6 runs failed.*: exit status {status}"
    ):
        run_sweep(trainer, tmp_path / "a")
    assert attempts == list(range(6))
    failures = (tmp_path / "a" / "failures.csv").read_text().splitlines()
    assert failures[1:] == [f"1,0.1,1e-3,exit status {status}"]


@pytest.mark.parametrize(
    ("code", "status", "message"),
    [
        (None, 0, ""),
        (200, 200, "200"),
        ("the disk is full", 1, "the disk is full"),
        ((1, 2), 1, "(1, 2)"),
    ],
)
def test_how_a_trainer_exits(tmp_path, code, status, message):
    def run(flag_values):
        sys.exit(code)

    result = worker.run_trainer(
        lambda flag_values: None, run, str(tmp_path / "trainer.py"), []
    )
    assert result == (status, message)


def test_a_setting_that_is_refused(trainer, do, tmp_path):
    do().refused = (3, "--l2 belongs to methods with l2.")
    with pytest.raises(
        ValueError, match="nothing was trained. --l2 belongs.*\n.*--rate=0.2"
    ):
        run_sweep(trainer, tmp_path / "a")
    do().refused = None
    run_sweep(trainer, tmp_path / "a")  # As if nothing had been.


def test_a_sweep_that_is_there(trainer, do, tmp_path):
    do()
    run_sweep(trainer, tmp_path / "a")
    with pytest.raises(FileExistsError, match="holds another sweep"):
        run_sweep(trainer, tmp_path / "a")
    with pytest.raises(ValueError, match="table=csv there, table=parquet"):
        run_sweep(trainer, tmp_path / "a", resume=True, table_format="parquet")
    with pytest.raises(ValueError, match="space=.* there, space=.* here"):
        run_sweep(trainer, tmp_path / "a", resume=True, space={"rate": [1]})


def test_two_sweeps_on_one_folder(trainer, do, tmp_path):
    executor = do()
    lock = run_folder.lock_folder(str(tmp_path / "a"))
    with pytest.raises(ValueError, match="being written to by another run"):
        run_sweep(trainer, tmp_path / "a")
    assert not hasattr(executor, "checked")
    run_folder.unlock_folder(str(tmp_path / "a"), lock)
    run_sweep(trainer, tmp_path / "a")


def test_a_table_of_another_schema(trainer, do, tmp_path):
    executor = do()
    run_sweep(trainer, tmp_path / "a")
    del executor.checked
    path = tmp_path / "a" / "table.csv"
    text = path.read_text()
    path.write_text(text.replace("flag.l2", "flag.l1"))
    with pytest.raises(ValueError, match="another schema.*flag.l2.*flag.l1"):
        run_sweep(trainer, tmp_path / "a", resume=True)
    path.write_text(text.replace("last_tenth", "last"))
    with pytest.raises(ValueError, match="it has no column last_tenth"):
        run_sweep(trainer, tmp_path / "a", resume=True)
    path.write_text(text.replace(",0.1,", ",0.5,"))
    with pytest.raises(ValueError, match="another setting as run 0: rate=0.5"):
        run_sweep(trainer, tmp_path / "a", resume=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "table.csv").write_text(text)
    with pytest.raises(FileExistsError, match="no sweep that wrote it"):
        run_sweep(trainer, tmp_path / "b")
    assert os.listdir(tmp_path / "b") == ["table.csv"] or "run.lock" in (
        os.listdir(tmp_path / "b")
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": "no.py"}, "`trainer` must be the file of a trainer"),
        ({"flags": {"rate": 1}}, "`flags` must not have what `space` varies"),
        ({"flags": {"log_dir": "a"}}, "must not have `log_dir`, which a sweep"),
        ({"flags": {"a": None}}, "`flags` must be a dict"),
        ({"space": {"resume": [True]}}, "must not have `resume`"),
        ({"sampler": "all"}, "`sampler` must be one of"),
        ({"sampler": "random"}, "needs `num_settings`"),
        ({"num_settings": 3}, "The sampler `grid` takes all combinations"),
        (
            {"space": {"rate": experiments.Range(0, 1)}},
            "The sampler `grid` takes all combinations",
        ),
        (
            {"space": {"seed": [3, 0, 4]}, "flags": {"num_learners": 2}},
            "at least `num_learners` apart.*seed=3 and seed=4 with num_learn",
        ),
        (
            {"space": {"seed": [0, 1], "num_learners": [1, 3]}},
            "seed=0 and seed=1 with num_learners=3",
        ),
        ({"measure": "best"}, "`measure` must be"),
        ({"processes": 0}, "`processes` must be a positive integer"),
        ({"table_format": "xls"}, "`table_format` must be"),
    ],
)
def test_arguments_that_cannot_be(trainer, do, tmp_path, changes, message):
    do()
    arguments = {"trainer": trainer, "folder": tmp_path / "a", **changes}
    with pytest.raises(ValueError, match=message):
        run_sweep(**arguments)
    assert not (tmp_path / "a").exists()


def test_a_cluster_that_is_not_there(trainer, do, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    executor = do()
    with pytest.raises(ConnectionError, match="no cluster of Ray at 127.0.0.1"):
        run_sweep(trainer, tmp_path / "a", ray_address="127.0.0.1:9")
    assert not hasattr(executor, "checked")


def run_command(*arguments):
    command.main(["sweep", *arguments])


def test_the_command(trainer, do, tmp_path, capsys):
    seen = []
    do(lambda job: seen.append(job))
    run_command(
        *(trainer, f"--log_dir={tmp_path / 'a'}", "--grid=rate=0.1,0.2"),
        *("--method=bp", "--method", "cbp", "--noflip", "--seed=-1"),
    )
    assert [job.setting["rate"] for job in seen] == ["0.1", "0.2"]
    assert seen[0].arguments[1:-1] == [
        *("--method=bp", "--method=cbp", "--noflip", "--seed=-1")
    ]
    told = capsys.readouterr().out
    assert "2/2 runs" in told and "The best by the last tenth" in told
    assert f"Table: {tmp_path / 'a' / 'table.csv'}" in told


def test_the_command_draws(trainer, do, tmp_path):
    do()
    run_command(
        *(trainer, f"--log_dir={tmp_path / 'a'}", "--range=rate=0.1..0.9:log"),
        *("--num_settings=4", "--table=csv"),
    )
    assert len(read_table(str(tmp_path / "a" / "table.csv"))) == 8
    plan = json.loads((tmp_path / "a" / "sweep.json").read_text())
    assert plan["sampler"] == "random"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is nothing to vary"),
        (["--grid=rate=1", "--range=rate=1..2"], "each flag once.*rate twice"),
        (["--grid=rate=1", "word"], "arguments but the trainer's file are"),
        (["--grid=rate"], "--grid must be NAME=VALUE"),
        (["--grid=rate=1", "--rate=2"], "what `space` varies"),
    ],
)
def test_commands_that_are_refused(
    trainer, do, tmp_path, capsys, arguments, message
):
    do()
    with pytest.raises(SystemExit, match=message) as error:
        run_command(trainer, f"--log_dir={tmp_path / 'a'}", *arguments)
    assert error.value.code == exit_status.WRONG_FLAGS
    assert not pathlib.Path(tmp_path / "a" / "sweep.json").exists()
