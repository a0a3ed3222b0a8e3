"""Sweeps by real processes, which are killed; and by a cluster of Ray."""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import keras
import pytest

from keras_plasticity import backend
from keras_plasticity import experiments
from keras_plasticity.experiments.sweeps import executors
from keras_plasticity.experiments.sweeps import jobs
from keras_plasticity.experiments.table import read_table
from keras_plasticity.files import is_alive
from tests.backend.whole_loops_test import has_whole_loops

_ROOT = pathlib.Path(__file__).parents[2]
_TRAINER = str(_ROOT / "examples" / "slowly_changing_regression.py")
_FLAGS = {
    "num_examples": "60",
    "examples_per_task": "20",
    "method": "linear",
}
_GRID = {"learning_rate": ["0.01", "0.02", "0.04"], "seed": ["0", "7"]}


def start(folder, *more, **changes):
    flags = {**_FLAGS, **changes}
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "keras_plasticity.experiments", "sweep"),
            *(_TRAINER, f"--log_dir={folder}", "--resume"),
            *(f"--grid={k}={','.join(v)}" for k, v in _GRID.items()),
            *(f"--{name}={value}" for name, value in flags.items()),
            *("--num_learners=2", *more),
        ],
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def results(folder):
    """The table without what no two sweeps share: how long it took."""
    return [
        {k: v for k, v in row.items() if not k.endswith("_seconds")}
        for row in read_table(f"{folder}/table.csv")
    ]


def workers_of(process):
    """The processes that a driver's threads have started."""
    found = []
    for thread in pathlib.Path(f"/proc/{process}/task").glob("*"):
        with contextlib.suppress(OSError):  # It has just ended.
            found += map(int, (thread / "children").read_text().split())
    return found


def first_workers_of(driver):
    """The workers of a driver, once there are any; none where it ends."""
    while driver.poll() is None:
        if workers := workers_of(driver.pid):
            return workers
        time.sleep(0.1)
    return []


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.exists("/proc/self/task"), reason="It looks for processes."
)
@pytest.mark.long
def test_processes_that_are_killed(tmp_path):
    """Drivers and workers, ten times at random; nothing is lost or twice."""
    pytest.importorskip("matplotlib")
    whole = start(tmp_path / "whole", "--processes=2")
    told, _ = whole.communicate(timeout=900)
    assert whole.returncode == 0, told
    rng = random.Random(0)
    kills = killed_workers = 0
    broken = None
    while kills < 10:
        if broken is None or broken.poll() is not None:
            broken = start(tmp_path / "broken", "--processes=2", "--retries=9")
        # A sweep takes half a minute on a slow machine, and less on others.
        time.sleep(rng.uniform(1, 8))
        workers = first_workers_of(broken) if kills % 2 else []
        if workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
            killed_workers += 1
        else:
            broken.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM]))
            broken.communicate(timeout=300)
        kills += 1
    if broken.poll() is not None:
        broken = start(tmp_path / "broken")
    told, _ = broken.communicate(timeout=900)
    assert broken.returncode == 0, told
    assert results(tmp_path / "broken") == results(tmp_path / "whole")
    assert len(results(tmp_path / "whole")) == 12
    assert killed_workers


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.exists("/proc/self/task"), reason="It looks for processes."
)
@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.long),
        (signal.SIGTERM, 143),
    ],
)
def test_a_signal_ends_a_sweep_in_order(tmp_path, number, status):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "a"
    # Runs of minutes, of which the checkpoint is what is left.
    sweep = start(folder, num_examples="2000000", method="bp")
    while sweep.poll() is None and not list(folder.glob("runs/*/bp/**/*tfev*")):
        time.sleep(0.1)
    time.sleep(2)
    workers = workers_of(sweep.pid)
    sweep.send_signal(number)
    told, _ = sweep.communicate(timeout=300)
    assert sweep.returncode == status, told
    assert f"Interrupted by {signal.Signals(number).name} after 0" in told
    assert f"--resume --log_dir={folder}" in told
    assert len(workers) == 1 and not is_alive(workers[0])
    assert list(folder.glob("runs/0000*/bp/checkpoint.npz"))


def make_job(folder, run=0, **flags):
    setting = {"learning_rate": "0.01"}
    return jobs.Job(
        run,
        setting,
        jobs.arguments_of({**_FLAGS, **flags}, setting),
        str(folder / f"{run:04d}"),
    )


@pytest.mark.slow
def test_a_report_of_a_trainer(tmp_path):
    """Each method with its own flags; then on more seeds than before."""
    pytest.importorskip("matplotlib")
    for seeds in (2, 3):
        experiments.sweep(
            _TRAINER,
            {"replacement_rate": ["1e-3"]},
            log_dir=str(tmp_path),
            flags={
                **_FLAGS,
                "method": ["bp", "cbp,l2"],
                "l2": "1e-3",
                "num_learners": 2,
            },
            report_seeds=seeds,
            resume=True,
        )
        assert [
            (row["method"], row["seed"])
            for row in read_table(str(tmp_path / "report.csv"))
        ] == [
            (method, seed)
            for method in ("bp", "cbp,l2")
            for seed in range(2, 2 + seeds)
        ]


@pytest.mark.slow
def test_one_process_does_one_job_after_another(tmp_path):
    pytest.importorskip("matplotlib")
    executor = executors.LocalProcesses(_TRAINER, 1)
    refused = executor.check(
        [["--method=bp"], ["--method=bp", "--rat=3"], ["--method=no"]]
    )
    assert refused.result()[0] == 1
    assert "Unknown command line flag 'rat'" in refused.result()[1]
    first = executor.submit(make_job(tmp_path, 0)).result()
    second = executor.submit(make_job(tmp_path, 1, seed="3")).result()
    failed = executor.submit(make_job(tmp_path, 2, device="gpu")).result()
    again = executor.submit(make_job(tmp_path, 0)).result()
    executor.close()
    assert first.status == second.status == 0
    assert first.rows[0]["seed"] == 0 and second.rows[0]["seed"] == 3
    assert first.rows[0]["last_tenth"] != second.rows[0]["last_tenth"]
    assert again.rows[0]["last_tenth"] == first.rows[0]["last_tenth"]
    if failed.status:  # Where there is no GPU.
        assert failed.status == 2 and "--device=gpu" in failed.message
    log = (tmp_path / "0000" / jobs.LOG).read_text()
    assert "Slowly-Changing Regression" in log


_TRAINER_WITH_BATCHES = """
import os
from absl import flags
from keras_plasticity import backend, experiments

def define_flags(flag_values):
    flags.DEFINE_integer("batch_size", 1, "", flag_values=flag_values)
    experiments.define_flags(flag_values)

def run(flag_values):
    backend.compile_small_loops_whole(flag_values.batch_size)
    print(os.getpid(), os.environ.get("XLA_FLAGS"))

experiments.launch(define_flags, run)
"""


@pytest.mark.slow
def test_a_process_compiles_for_one_batch_size(tmp_path, monkeypatch):
    # That of dry runs does not matter, nor that of this process.
    monkeypatch.setenv("XLA_FLAGS", "")
    backend.compile_small_loops_whole(1)
    trainer = tmp_path / "trainer.py"
    trainer.write_text(_TRAINER_WITH_BATCHES)
    log = str(tmp_path / jobs.LOG)
    executor = executors.LocalProcesses(str(trainer), 1)
    for arguments in (["1", "--dry_run"], ["16"], ["16"], ["1"], ["1"]):
        first, *rest = arguments
        outcome = executor._pool.submit(
            executor._with_worker,
            lambda worker, words: worker.run(words, log),
            [f"--batch_size={first}", *rest],
        )
        assert outcome.result() == (0, "")
    executor.close()
    lines = pathlib.Path(log).read_text().splitlines()
    processes, xla = zip(*(line.split(" ", 1) for line in lines))
    is_split = keras.backend.backend() == "tensorflow" and has_whole_loops()
    assert processes[0] == processes[1] == processes[2]
    assert processes[3] == processes[4]
    assert (processes[2] != processes[3]) == is_split
    assert (xla[2] != xla[3]) == is_split
    assert xla[1] == xla[2] and xla[3] == xla[4]


_TRAINER_WITH_WEIGHTS = """
import os
from absl import flags
from keras_plasticity import backend, experiments

def define_flags(flag_values):
    flags.DEFINE_integer("weights", 0, "", flag_values=flag_values)
    experiments.define_flags(flag_values)

def run(flag_values):
    asked = []
    backend.use_device = asked.append
    problem = experiments.Problem(
        name="p", title="P", metric="loss", result="loss", metric_label="loss",
        examples_per_task=10, num_probe_examples=10, defaults={},
        published=lambda method: [], num_weights=flag_values.weights,
    )
    experiments.configure_backend(flag_values, problem)
    print(os.getpid(), *asked)

experiments.launch(define_flags, run)
"""


@pytest.mark.slow
def test_a_process_keeps_its_device(tmp_path):
    trainer = tmp_path / "trainer.py"
    trainer.write_text(_TRAINER_WITH_WEIGHTS)
    log = str(tmp_path / jobs.LOG)
    executor = executors.LocalProcesses(str(trainer), 1)
    for words in (
        # Dry runs do not choose.
        ["--weights=7", "--dry_run"],
        ["--weights=9000000"],
        ["--weights=8000000"],
        ["--weights=7"],
        ["--weights=8", "--device=cpu"],
    ):
        outcome = executor._pool.submit(
            executor._with_worker,
            lambda worker, words: worker.run(words, log),
            words,
        )
        assert outcome.result() == (0, "")
    executor.close()
    lines = [
        line.split() for line in pathlib.Path(log).read_text().splitlines()
    ]
    (checked, *chosen), *rest = lines
    assert not chosen
    assert rest[0] == rest[1] == [checked]
    assert rest[2] == rest[3] == [rest[2][0], "cpu"]
    assert rest[2][0] != checked


_TRAINER_OF_SHARES = """
import os
from keras_plasticity import backend
from keras_plasticity import experiments

def define_flags(flag_values):
    pass

def run(flag_values):
    backend.host_memory.free_and_total = lambda: (500, 600)
    backend.platform = lambda: "cpu"
    print(backend.free_memory(), os.environ["OMP_NUM_THREADS"])

experiments.launch(define_flags, run)
"""


@pytest.mark.slow
def test_processes_share_memory_and_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    trainer = tmp_path / "trainer.py"
    trainer.write_text(_TRAINER_OF_SHARES)
    log = tmp_path / jobs.LOG
    executor = executors.LocalProcesses(str(trainer), 3)
    done = executor._with_worker(
        lambda worker, arguments: worker.run(arguments, str(log)), []
    )
    executor.close()
    assert done == (0, "")
    assert log.read_text() == "200 2\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("print('hello')", "is no trainer, which would call"),
        ("import no_such_module", "ModuleNotFoundError: No module named"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
    ],
)
def test_files_that_are_no_trainers(tmp_path, text, message):
    path = tmp_path / "trainer.py"
    path.write_text(text)
    executor = executors.LocalProcesses(str(path), 1)
    error = executor.check([[]]).exception()
    executor.close()
    assert message in str(error)


@pytest.fixture
def _same_handler_of_sigterm():
    """A node of Ray that this process starts sets one, for good."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_same_handler_of_sigterm")
def test_a_cluster_of_two_nodes_of_which_one_is_killed(tmp_path):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    pytest.importorskip("matplotlib")
    from ray import cluster_utils

    whole = start(tmp_path / "whole")
    told, _ = whole.communicate(timeout=900)
    assert whole.returncode == 0, told
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1}
    )
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        sweep = start(
            tmp_path / "nodes", f"--ray={cluster.address}", "--retries=5"
        )
        runs = tmp_path / "nodes" / "runs"
        # Until each node trains.
        while sweep.poll() is None and len(list(runs.glob("*/log.txt"))) < 2:
            time.sleep(0.2)
        cluster.remove_node(node, allow_graceful=False)
        told, _ = sweep.communicate(timeout=900)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert sweep.returncode == 0, told
    assert "It is tried again" in told, told
    assert results(tmp_path / "nodes") == results(tmp_path / "whole")
