"""Suites whose runs are made up: budgets, seeds, results, and what differs."""

import concurrent.futures
import copy
import csv
import itertools
import json
import pathlib
import shutil
import signal
import sys
import threading

import pytest

from keras_plasticity import experiments
from keras_plasticity.experiments import command
from keras_plasticity.experiments import exit_status
from keras_plasticity.experiments import run_folder
from keras_plasticity.experiments.suites import against
from keras_plasticity.experiments.suites import results as result_files
from keras_plasticity.experiments.suites import search
from keras_plasticity.experiments.suites.problems import PROBLEMS
from keras_plasticity.experiments.suites.problems import SIZES
from keras_plasticity.experiments.suites.problems import problems_of
from keras_plasticity.experiments.suites.problems import trainer_path
from keras_plasticity.experiments.sweeps import driver
from keras_plasticity.experiments.sweeps import executors
from keras_plasticity.experiments.sweeps import jobs
from keras_plasticity.experiments.sweeps.worker_process import WorkerDied
from tests.experiments import fake_ray

_ROOT = pathlib.Path(__file__).parents[2]
_REGRESSION = "slowly_changing_regression"
_MNIST = "online_permuted_mnist"
# What a method's error is, but for its setting and its seed.
_ERRORS = {"bp": 1.0, "cbp": 0.5, "l2": 0.5001, "clipped_sgd": 2.0}


def flags_of(job):
    return dict(word.lstrip("-").partition("=")[::2] for word in job.arguments)


def make_summary(job):
    """What a trainer would write. The best step size is the largest."""
    flags = {**flags_of(job), **job.setting}
    first, n = int(flags["seed"]), int(flags["num_learners"])
    error = _ERRORS.get(flags["method"], 3.0)
    error -= 0.1 * float(flags["learning_rate"])
    # By the seed, with each method otherwise.
    factor = {"bp": 2, "cbp": 3}.get(flags["method"], 1)
    values = [error + 0.02 * (factor * (first + i) % 5) for i in range(n)]
    is_regression = "num_examples" in flags
    if not is_regression:
        values = [1 - 0.1 * value for value in values]
    if flags["method"] == "dropout":
        values[0] = None
    name = "squared_error" if is_regression else "online_accuracy"
    metric = {
        "name": name,
        "label": name,
        "lower_is_better": is_regression,
        "scale": 1.0,
        "format": ".3f",
    }
    run = {
        "method": flags["method"],
        "settings": {},
        "num_learners": n,
        "seeds": list(range(first, first + n)),
        "steps_per_learner": 100,
        "train_seconds": 2.0,
        "compile_seconds": 1.0,
        "state_bytes_per_learner": 400,
        "published": [],
        "per_task": [{f"{name}_per_learner": values}] * 2,
    }
    return {
        "problem": _REGRESSION if is_regression else _MNIST,
        "title": "A problem",
        "metric": metric,
        "x_axis": {"label": "tasks", "per_task": 1},
        "tasks_per_bin": 1,
        "backend": "none",
        "flags": {"seed": first},
        "runs": [run],
    }


class FakeProcesses:
    """In place of `LocalProcesses`."""

    at_a_time = 1000
    refused = None
    done = None
    act = staticmethod(lambda job: None)

    # What the executors of all trainers were told, in order.
    told = None

    def __init__(self, trainer, processes):
        del processes
        self._name = pathlib.Path(trainer).stem
        self._pool = concurrent.futures.ThreadPoolExecutor(1)

    def submit(self, job):
        self.told.append((self._name, "train"))
        return self._pool.submit(self._do, job)

    def _do(self, job):
        type(self).done.append(job)
        outcome = type(self).act(job)
        if outcome is not None:
            return outcome
        summary = make_summary(job)
        pathlib.Path(job.log_dir).mkdir(parents=True, exist_ok=True)
        run_folder.write_json(f"{job.log_dir}/summary.json", summary)
        return jobs.Outcome(0, "", jobs.rows_of(summary, job))

    def check(self, arguments):
        type(self).checked = arguments
        self.told.append((self._name, "check"))
        return self._pool.submit(lambda: self.refused)

    def end_idle(self):
        self.told.append((self._name, "end idle"))

    def stop(self):
        self._pool.shutdown(wait=False, cancel_futures=True)

    def close(self, at_once=False):
        self._pool.shutdown(cancel_futures=True)


@pytest.fixture
def executor(monkeypatch):
    pytest.importorskip("matplotlib")
    fake = type("Executor", (FakeProcesses,), {"done": [], "told": []})
    monkeypatch.setattr(driver, "LocalProcesses", fake)
    return fake


def run_suite(folder, methods=("bp", "cbp", "l2"), **arguments):
    arguments = {"problems": [_REGRESSION], **arguments}
    return experiments.suite(
        "minutes", list(methods), log_dir=str(folder), **arguments
    )


def rows_of(folder):
    with open(folder / "results.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_methods_are_tuned_alike_and_reported_on_fresh_seeds(
    executor, tmp_path, capsys
):
    results = run_suite(tmp_path / "a")
    size = PROBLEMS[_REGRESSION].sizes["minutes"]
    problem = results["problems"][_REGRESSION]
    assert len(executor.done) == 3 * (size.num_settings + 1)
    assert not {*problem["tuning_seeds"]} & {*problem["report_seeds"]}
    of_method = {}
    for job in executor.done:
        flags = flags_of(job)
        of_method.setdefault(flags["method"], []).append(
            (flags["seed"], flags["num_learners"])
        )
    assert of_method["bp"] == of_method["cbp"] == of_method["l2"]
    assert of_method["bp"][-1] == ("0", str(size.report_seeds))
    # The setting with the lowest error, which is the largest step size.
    for method, entry in problem["methods"].items():
        tried = [
            float(job.setting["learning_rate"])
            for job in executor.done
            if flags_of(job)["method"] == method
        ]
        assert float(entry["setting"]["learning_rate"]) == max(tried)
        assert len(entry["last_tenth"]) == size.report_seeds
        assert entry["seconds_per_step"] == pytest.approx(
            2.0 / (100 * size.report_seeds)
        )
    assert json.loads((tmp_path / "a" / "results.json").read_text()) == results
    told = capsys.readouterr().out
    assert "[1/3] Slowly-Changing Regression, bp: 8 settings x 5" in told
    assert "n=30" in told and "tuned with 8 settings" in told
    text = (tmp_path / "a" / "results.md").read_text()
    assert "not told apart" in text and "n=30" in text


def test_the_table_and_the_figure(executor, tmp_path):
    run_suite(tmp_path / "a", problems=[_REGRESSION, _MNIST])
    rows = rows_of(tmp_path / "a")
    assert [(row["problem"], row["method"]) for row in rows][:3] in (
        [(_REGRESSION, method) for method in order]
        for order in (("cbp", "l2", "bp"), ("l2", "cbp", "bp"))
    )
    assert rows[2]["told_from_best"] == "yes"
    assert float(rows[2]["minus_best_low"]) > 0
    assert rows[0]["told_from_best"] == "" and rows[0]["told_from_bp"] == "yes"
    assert rows[5]["method"] == "bp" and float(rows[5]["minus_best"]) < 0
    for row in rows:
        low, value, high = (
            float(row[f"area_under_curve{end}"])
            for end in ("_low", "", "_high")
        )
        assert low < value < high
        assert f"--methods={row['method']}" in row["command"]
    png = (tmp_path / "a" / "results.png").read_bytes()
    assert png.startswith(b"\x89PNG")


def test_results_are_as_the_schema_says(executor, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(result_files.SCHEMA_PATH.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    executor.act = staticmethod(fail_l2)
    with pytest.raises(SystemExit):
        run_suite(tmp_path / "a", methods=("bp", "dropout", "l2"))
    results = result_files.read_results(str(tmp_path / "a" / "results.json"))
    jsonschema.validate(results, schema)
    for path in pathlib.Path(result_files.__file__).parent.glob("reference_*"):
        jsonschema.validate(result_files.read_results(str(path)), schema)
    for change in (
        lambda results: results.pop("size"),
        lambda results: results.update(schema=2),
        lambda results: results.update(more=1),
        lambda results: results["problems"][_REGRESSION]["methods"]["bp"].pop(
            "last_tenth"
        ),
    ):
        changed = copy.deepcopy(results)
        change(changed)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(changed, schema)


def fail_l2(job):
    if flags_of(job)["method"] == "l2":
        return jobs.Outcome(1, "the disk is full", [])


def test_a_method_that_fails_is_told_and_tried_again(executor, tmp_path):
    executor.act = staticmethod(fail_l2)
    with pytest.raises(SystemExit, match="1 of 3 failed.*l2") as error:
        run_suite(tmp_path / "a")
    assert error.value.code == exit_status.FAILED
    row = next(r for r in rows_of(tmp_path / "a") if r["method"] == "l2")
    assert row["status"].startswith("failed: ") and row["last_tenth"] == ""
    del executor.done[:]
    executor.act = staticmethod(lambda job: None)
    run_suite(tmp_path / "a", resume=True)
    assert {flags_of(job)["method"] for job in executor.done} == {"l2"}
    assert len(rows_of(tmp_path / "a")) == 3


def test_settings_that_all_diverge(executor, tmp_path):
    run_suite(tmp_path / "a", methods=("bp", "dropout"))
    row = rows_of(tmp_path / "a")[-1]
    assert row["method"] == "dropout"
    assert row["status"] == "all settings diverged"
    text = (tmp_path / "a" / "results.md").read_text()
    assert "all settings diverged" in text


def test_runs_that_were_removed_to_save_space(executor, tmp_path):
    whole = run_suite(tmp_path / "a", methods=["bp", "l2"])
    for folder in (tmp_path / "a").glob("*/*/*/runs"):
        shutil.rmtree(folder)
    assert not list((tmp_path / "a").glob("**/summary.json"))
    del executor.done[:]
    methods = ["bp", "l2", "cbp"]
    results = run_suite(tmp_path / "a", methods=methods, resume=True)
    assert {flags_of(job)["method"] for job in executor.done} == {"cbp"}
    entry = results["problems"][_REGRESSION]["methods"]["bp"]
    expected = whole["problems"][_REGRESSION]["methods"]["bp"]
    costs = {"seconds_per_step", "bytes_per_learner"}
    assert entry == {k: v for k, v in expected.items() if k not in costs}
    rows = {row["method"]: row for row in rows_of(tmp_path / "a")}
    assert [row["seconds_per_step"] for row in rows.values()].count("") == 2
    assert float(rows["cbp"]["bytes_per_learner"]) == 400
    text = (tmp_path / "a" / "results.md").read_text()
    assert text.count("| - | - |\n") == 2
    path = str(tmp_path / "a" / "results.json")
    assert result_files.read_results(path) == results
    schema = json.loads(result_files.SCHEMA_PATH.read_text())
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(results, schema)


@pytest.mark.parametrize("at", [0, 5, 8, 9, 20])
def test_interrupted_it_resumes(executor, tmp_path, capsys, at):
    expected = run_suite(tmp_path / "whole")
    total = len(executor.done)
    del executor.done[:]

    def interrupt(job):
        if len(executor.done) == at + 1:
            signal.raise_signal(signal.SIGTERM)

    executor.act = staticmethod(interrupt)
    with pytest.raises(SystemExit, match="interrupted") as error:
        run_suite(tmp_path / "a")
    assert error.value.code == 143
    assert f"--resume --log_dir={tmp_path / 'a'}" in capsys.readouterr().err
    executor.act = staticmethod(lambda job: None)
    assert run_suite(tmp_path / "a", resume=True) == expected
    # No more than what the signal met is done twice.
    assert len(executor.done) <= total + 8
    del executor.done[:]
    assert run_suite(tmp_path / "a", resume=True) == expected
    assert executor.done == []


def test_of_learners_that_diverge_nothing_is_told(executor, tmp_path):
    """One is the report's: its tuning went well."""

    def diverge(job):
        summary = make_summary(job)
        if flags_of(job)["method"] != "cbp" or flags_of(job)["seed"] != "0":
            return None
        for task in summary["runs"][0]["per_task"]:
            task["squared_error_per_learner"][3] = None
        pathlib.Path(job.log_dir).mkdir(parents=True)
        run_folder.write_json(f"{job.log_dir}/summary.json", summary)
        return jobs.Outcome(0, "", jobs.rows_of(summary, job))

    executor.act = staticmethod(diverge)
    results = run_suite(tmp_path / "a")
    row = rows_of(tmp_path / "a")[-1]
    assert (row["method"], row["n"], row["diverged"]) == ("cbp", "29", "1")
    assert row["told_from_best"] == row["told_from_bp"] == ""
    text = (tmp_path / "a" / "results.md").read_text()
    assert "n=29), 1 diverged | - | - |" in text
    rows = against.differences(results, results)
    told = {r["difference"] for r in rows if r["method"] == "cbp"}
    assert told == {"here: 1 of 30 diverged"}


class FakeWorker:
    """In place of `WorkerProcess`: it checks flags, and accepts them."""

    def __init__(self, *arguments):
        self.is_closed = False
        workers.append(self)

    def run(self, arguments, log):
        assert not self.is_closed and "--dry_run" in arguments
        return 0, ""

    def stop(self):
        pass

    kill = stop

    def close(self, at_once=False):
        self.is_closed = True


workers = []


@pytest.fixture
def cluster(executor, monkeypatch):
    """A cluster whose runs are made up, as those of `executor`."""
    ray = fake_ray.FakeRay()
    do = executor("", 1)._do
    del workers[:]
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(executors, "WorkerProcess", FakeWorker)
    monkeypatch.setattr(executors, "do_job", lambda worker, job: do(job))
    return ray


def test_on_a_cluster_of_ray(cluster, tmp_path):
    # Each method has two sweeps, whose settings are checked one after another.
    run_suite(tmp_path, ["bp", "cbp"], ray_address="auto")
    assert {row["method"] for row in rows_of(tmp_path)} == {"bp", "cbp"}
    assert cluster.addresses == ["auto"]
    assert not cluster.is_initialized()
    assert workers and all(worker.is_closed for worker in workers)


def test_trainers_share_a_connection(cluster, tmp_path):
    problems = [_REGRESSION, _MNIST]
    run_suite(tmp_path, ["bp"], problems=problems, ray_address="auto")
    assert [row["problem"] for row in rows_of(tmp_path)] == problems
    assert cluster.addresses == ["auto"]


def test_ray_is_connected_already(cluster, tmp_path):
    cluster.init("10.0.0.2:6379")
    for address in ("10.0.0.1:6379", "auto"):
        with pytest.raises(
            ConnectionError,
            match=f"Give its address, 10.0.0.2:6379, .* Received: {address}",
        ):
            run_suite(tmp_path / "a", ["bp"], ray_address=address)
    assert not list((tmp_path / "a").glob("**/runs"))
    run_suite(tmp_path / "a", ["bp"], ray_address="10.0.0.2:6379")
    assert [row["method"] for row in rows_of(tmp_path / "a")] == ["bp"]
    # It was not made here.
    assert cluster.is_initialized()


def test_no_process_waits_for_other_trainers(executor, tmp_path):
    problems = [_REGRESSION, _MNIST, "label_permuted_mnist"]
    run_suite(tmp_path / "a", ["bp", "l2"], problems=problems)
    first = [(name, "check") for name in (_REGRESSION, _MNIST)]
    checks = [each for pair in zip(first, _ends(first)) for each in pair]
    assert executor.told[:4] == checks
    # Two problems share a trainer, and its processes.
    rest = [each for each, _ in itertools.groupby(executor.told[4:])]
    ends = [index for index, each in enumerate(rest) if each[1] == "end idle"]
    assert [rest[index] for index in ends] == _ends(first)
    assert {name for name, _ in rest[: ends[0]]} == {_REGRESSION}
    assert {name for name, _ in rest[ends[0] + 1 :]} == {_MNIST}
    assert ends[1] == len(rest) - 1


def _ends(told):
    return [(name, "end idle") for name, _ in told]


def test_a_signal_ends_what_is_checked(executor, tmp_path, monkeypatch, capsys):
    is_stopped = threading.Event()

    def check(self, arguments):
        self.told.append((self._name, "check"))
        signal.raise_signal(signal.SIGINT)
        return self._pool.submit(is_stopped.wait, 5)

    monkeypatch.setattr(executor, "check", check)
    monkeypatch.setattr(executor, "stop", lambda self: is_stopped.set())
    with pytest.raises(SystemExit, match="interrupted") as error:
        run_suite(tmp_path / "a", problems=[_REGRESSION, _MNIST])
    assert error.value.code == 130
    assert executor.told == [(_REGRESSION, "check")] and not executor.done
    assert f"--resume --log_dir={tmp_path / 'a'}" in capsys.readouterr().err


def test_a_worker_that_dies_while_it_checks(executor, tmp_path, monkeypatch):
    whole = executor.check
    deaths = []

    def die_at_first(self, arguments):
        if len(deaths) == 3:
            return whole(self, arguments)
        deaths.append(arguments)
        future = concurrent.futures.Future()
        future.set_exception(WorkerDied("SIGKILL"))
        return future

    monkeypatch.setattr(executor, "check", die_at_first)
    run_suite(tmp_path / "a", ["bp"])
    assert len(deaths) == 3 and len(rows_of(tmp_path / "a")) == 1


def test_a_trainer_that_cannot_be_run(executor, tmp_path, monkeypatch):
    def die(self, arguments):
        return self._pool.submit(raise_it)

    def raise_it():
        raise WorkerDied("SIGKILL")

    monkeypatch.setattr(executor, "check", die)
    with pytest.raises(ValueError, match="cannot be run, .*: SIGKILL"):
        run_suite(tmp_path / "a")


def test_methods_can_be_added(executor, tmp_path):
    run_suite(tmp_path / "a", methods=["bp"])
    del executor.done[:]
    run_suite(tmp_path / "a", methods=["bp", "cbp"], resume=True)
    assert {flags_of(job)["method"] for job in executor.done} == {"cbp"}
    with pytest.raises(ValueError, match="The suite in --log_dir is another"):
        run_suite(tmp_path / "a", methods=["cbp"], resume=True)


def test_a_method_of_ones_own(executor, tmp_path):
    path = str(_ROOT / "examples" / "own_method.py")
    results = run_suite(
        tmp_path / "a",
        methods=["bp", "clipped_sgd"],
        problems=[_REGRESSION, _MNIST],
        method_file=path,
    )
    for problem in results["problems"].values():
        entry = problem["methods"]["clipped_sgd"]
        assert set(entry["setting"]) == {"learning_rate", "clip_norm"}
        assert f"--method_file={path}" in entry["command"]
    assert f"--method_file={path}" in executor.checked[-1]


_OWN_STEP_SIZE = """
import keras
from keras_plasticity.experiments import Flag, Part
PARTS = [
    Part(
        "mine",
        "SGD",
        flags=(Flag("learning_rate", "step size", 0.01, "(0, inf)"),),
        optimizer=lambda s: keras.optimizers.SGD(s["learning_rate"]),
        omits=("momentum",),
    )
]
"""


@pytest.mark.parametrize("count", [3, 12])
def test_step_sizes_of_a_list(executor, tmp_path, capsys, count):
    path = tmp_path / "mine.py"
    rates = [0.002 * (1 + index) for index in range(count)]
    search = {"mine": {"learning_rate": rates}}
    path.write_text(f"{_OWN_STEP_SIZE}SEARCH = {search}\n")
    run_suite(tmp_path / "a", methods=["mine"], method_file=str(path))
    *tuning, _ = executor.done
    tried = [float(job.setting["learning_rate"]) for job in tuning]
    # No more than other methods have, and in the order of the list where that
    # is all of them.
    assert len({*tried}) == len(tried) == min(count, 8)
    assert {*tried} <= {*rates} and (count > 8 or tried == rates)
    assert f"mine: {len(tried)} settings" in capsys.readouterr().out


def test_the_folder_of_data_is_of_trainers_that_read_some(executor, tmp_path):
    run_suite(
        tmp_path / "a",
        methods=["bp"],
        problems=[_REGRESSION, _MNIST],
        data_dir=str(tmp_path),
    )
    told = {
        ("data_dir" in flags_of(job), "num_examples" in flags_of(job))
        for job in executor.done
    }
    assert told == {(True, False), (False, True)}
    # It is none of what results depend on.
    results = result_files.read_results(str(tmp_path / "a" / "results.json"))
    assert "data_dir" not in results["problems"][_MNIST]["flags"]


def test_what_differs_from_other_results(executor, tmp_path, capsys):
    results = run_suite(tmp_path / "a")
    path = str(tmp_path / "a" / "results.json")
    run_suite(tmp_path / "b", against=path)
    assert "0 of 6 differ by more than chance" in capsys.readouterr().out
    # Of the same seeds, and others.
    for shift, how in ((0, "paired"), (100, "unpaired")):
        other = copy.deepcopy(results)
        entry = other["problems"][_REGRESSION]["methods"]["cbp"]
        for measure in ("area_under_curve", "last_tenth"):
            entry[measure] = {
                str(int(seed) + shift): value + 0.1 + 1e-3 * (int(seed) % 3)
                for seed, value in entry[measure].items()
            }
        del other["problems"][_REGRESSION]["methods"]["l2"]
        rows = against.differences(results, other)
        told = {(row["method"], row["by more than chance"]) for row in rows}
        assert told == {("bp", "no"), ("cbp", "yes"), ("l2", "-")}
        assert {row["seeds"] for row in rows if row["method"] == "cbp"} == {how}
    assert (tmp_path / "b" / "against.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["bp", "no"]}, "A method is one or more of"),
        ({"methods": []}, "`methods` must be a list of one or more"),
        ({"ray_address": 5}, "`ray_address` must be"),
        ({"methods": ["bp", "bp"]}, "`methods` must be .* each once"),
        ({"problems": ["mnist"]}, "`problems` must be .*label_permuted_mnist"),
        (
            {"problems": ["continual_imagenet"]},
            "`problems` must be .* of the size minutes",
        ),
        ({"problems": []}, "`problems` must be"),
        ({"processes": 0}, "`processes` must be a positive integer"),
        ({"method_file": "no.py"}, "--method_file must be a file"),
        ({"trainers": "nowhere"}, "A suite needs the trainers"),
        ({"against": "no.json"}, "There is no file of results"),
    ],
)
def test_arguments_that_cannot_be(executor, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run_suite(tmp_path / "a", **arguments)
    assert not (tmp_path / "a").exists() and executor.done == []


def test_what_to_resume_is_not_given(executor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--resume needs the folder of the"):
        experiments.suite("minutes", ["bp"], [_REGRESSION], resume=True)
    assert not list(tmp_path.iterdir()) and executor.done == []


def test_nodes_of_a_cluster_are_given_whole_paths(monkeypatch):
    monkeypatch.chdir(_ROOT)
    path = trainer_path(PROBLEMS[_REGRESSION], "examples")
    assert path == str(_ROOT / "examples" / f"{_REGRESSION}.py")


def test_a_size_that_is_not_there(executor, tmp_path):
    with pytest.raises(ValueError, match="`size` must be one of"):
        experiments.suite("days", log_dir=str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_a_method_that_a_trainer_refuses(executor, tmp_path):
    executor.refused = (0, "needs batches of at least 2 examples")
    with pytest.raises(ValueError, match="nothing was. needs batches"):
        run_suite(tmp_path / "a", methods=["batch_norm"])
    assert executor.done == []
    executor.refused = None
    run_suite(tmp_path / "a", methods=["bp"])  # As if nothing had been.


def test_another_suite_in_the_folder(executor, tmp_path):
    run_suite(tmp_path / "a")
    del executor.done[:]
    with pytest.raises(FileExistsError, match="holds another suite"):
        run_suite(tmp_path / "a")
    with pytest.raises(ValueError, match="size=minutes there, size=hours here"):
        experiments.suite(
            "hours", ["bp"], [_REGRESSION], str(tmp_path / "a"), resume=True
        )
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "results.json").write_text("{}")
    with pytest.raises(FileExistsError, match="no suite that wrote them"):
        run_suite(tmp_path / "b")
    assert executor.done == []


def test_results_of_another_schema(executor, tmp_path):
    results = run_suite(tmp_path / "a")
    path = tmp_path / "other.json"
    for change, message in (
        (lambda r: r.update(schema=0), "`schema` must be 1, and is 0"),
        (lambda r: r.update(problems={}), "`problems` must be an object"),
        (lambda r: r.pop("size"), "`size` must be a string"),
        (lambda r: r["problems"].update(x=3), "`problems/x` must be an object"),
        (
            lambda r: r["problems"][_REGRESSION].pop("methods"),
            "methods` must be a dict",
        ),
        (
            lambda r: r["problems"][_REGRESSION]["methods"]["bp"].update(
                last_tenth={"one": 1}
            ),
            "`last_tenth` must be an object from seed",
        ),
    ):
        changed = copy.deepcopy(results)
        change(changed)
        path.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=f"another schema.*{message}"):
            run_suite(tmp_path / "b", against=str(path))
    path.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        run_suite(tmp_path / "b", against=str(path))


def test_results_that_cannot_be_compared(executor, tmp_path):
    results = run_suite(tmp_path / "a", methods=["bp"])
    path = tmp_path / "other.json"
    for change, message in (
        (lambda r: r.update(size="hours"), "of the same size"),
        (
            lambda r: r["problems"][_REGRESSION]["flags"].update(
                num_examples="1"
            ),
            "has other tasks of slowly_changing_regression",
        ),
        (
            lambda r: r["problems"][_REGRESSION]["methods"].pop("bp"),
            "results of none of the methods",
        ),
    ):
        changed = copy.deepcopy(results)
        change(changed)
        path.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            run_suite(tmp_path / "b", methods=["bp"], against=str(path))
    assert not (tmp_path / "b").exists()


def test_the_command(executor, tmp_path, capsys):
    command.main(
        [
            *("suite", "--size=minutes", "--methods=bp cbp,l2"),
            *(f"--problems={_REGRESSION}", f"--log_dir={tmp_path / 'a'}"),
        ]
    )
    rows = rows_of(tmp_path / "a")
    assert {row["method"] for row in rows} == {"bp", "cbp,l2"}
    assert any('--methods="cbp,l2 "' in row["command"] for row in rows)
    assert "Results: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods=no"], "A method is one or more of"),
        (["--problems=no"], "`problems` must be"),
        (["--learning_rate=1"], "A suite has no such flag"),
        (["--against=reference"], "None of the|results of|reference"),
    ],
)
def test_commands_that_are_refused(executor, tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=message) as error:
        command.main(
            [
                *("suite", "--size=published", *arguments),
                f"--log_dir={tmp_path / 'a'}",
            ]
        )
    assert error.value.code == exit_status.WRONG_FLAGS


def test_step_sizes_alone_span_their_range(executor, tmp_path):
    run_suite(tmp_path / "a", methods=["bp"])
    each = PROBLEMS[_REGRESSION].learning_rate
    tried = [float(job.setting["learning_rate"]) for job in executor.done[:8]]
    assert (min(tried), max(tried)) == (each.low, each.high)
    steps = [b / a for a, b in zip(sorted(tried), sorted(tried)[1:])]
    assert steps == pytest.approx([(each.high / each.low) ** (1 / 7)] * 7, 1e-3)


def test_what_is_tuned_are_flags_of_the_methods():
    for part in experiments.PARTS:
        space = search.space_of([part], PROBLEMS[_REGRESSION], {})
        known = {flag.name: flag for flag in part.flags}
        for name, values in space.items():
            if name == "learning_rate":
                continue
            if isinstance(values, experiments.Range):
                values = (values.low, values.high)
            assert all(known[name].allows(float(value)) for value in values)
    for problem in PROBLEMS.values():
        assert set(problem.sizes) <= set(SIZES)
    assert set(problems_of("hours")) == set(PROBLEMS)
    assert set(problems_of("minutes")) == {*PROBLEMS} - {"continual_imagenet"}
