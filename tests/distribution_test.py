"""On several devices: the same as on one, and the same on all of them."""

import contextlib
import json
import os
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests import distributed
from tests.helpers import mostly_slow

_BACKEND = keras.backend.backend()
# The others are the like of these.
_METHODS = mostly_slow(
    [
        "ContinualBackprop",
        "ReDo",
        "SelfNormalizedResets",
        "ReGraMa",
        "CPR",
        "CCBP",
    ],
    "ContinualBackprop",
    "SelfNormalizedResets",
    "CCBP",
)
# They replace no unit as a whole.
_PARTIAL = ("CPR", "CCBP")
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _start(path, name, *arguments):
    """Starts one of the programs of `distributed.py`."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": _BACKEND,
        # Several CPUs can be had everywhere, several GPUs cannot.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        # Compilation takes nearly all the time.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    # Not a pipe: nobody reads those of all workers at once.
    with open(f"{path}.log", "w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.distributed", str(path), name]
            + [json.dumps(argument) for argument in arguments],
            cwd=_ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _finish(process, path):
    try:
        status = process.wait(timeout=240)
        assert status == 0, f"exit status {status}"
    except Exception as e:
        logs = sorted(path.parent.glob("*.log"))
        e.add_note("\n".join(log.read_text() for log in logs))
        raise
    finally:
        process.kill()
    with np.load(path) as data:
        return {key: data[key] for key in data.files}


def _assert_equal(result, first, second, method="ContinualBackprop", atol=0.0):
    keys = [key for key in result if key.startswith(first)]
    assert len(keys) > 20
    for key in keys:
        np.testing.assert_allclose(
            result[key],
            result[second + key.removeprefix(first)],
            atol=atol,
            rtol=atol,
            err_msg=key,
        )
    is_replaced = result[f"{first}replaced"] > 2
    if method == "ContinualBackprop":
        assert all(is_replaced)
    elif method not in _PARTIAL:
        # Normalized channels are neither dormant nor silent.
        assert any(is_replaced)


@pytest.mark.skipif(_BACKEND != "jax", reason="`keras.distribution` of JAX")
@pytest.mark.parametrize(
    "kind, method",
    [
        ("data", "ContinualBackprop"),
        ("data", "SelfNormalizedResets"),
        ("data", "CCBP"),
        pytest.param("data", "ReDo", marks=pytest.mark.slow),
        pytest.param("data", "ReGraMa", marks=pytest.mark.slow),
        pytest.param("data", "CPR", marks=pytest.mark.slow),
        pytest.param("model", "CCBP", marks=pytest.mark.slow),
        ("model", "ContinualBackprop"),
    ],
)
def test_distribution(tmp_path, kind, method):
    path = tmp_path / "result.npz"
    result = _finish(_start(path, "jax_distribution", kind, method), path)
    assert result["devices"] == 4
    _assert_equal(result, "several_", "single_", method, 1e-5)


@pytest.mark.skipif(_BACKEND == "torch", reason="one device only")
def test_recurrent_layers_and_attention(tmp_path):
    path = tmp_path / "result.npz"
    built = ("ContinualBackprop", "sequences")
    if _BACKEND == "jax":
        process = _start(path, "jax_distribution", "data", *built)
    else:
        process = _start(path, "mirrored", *built)
    result = _finish(process, path)
    assert result["devices"] == (4 if _BACKEND == "jax" else 2)
    _assert_equal(result, "several_", "single_", atol=1e-5)
    if _BACKEND == "tensorflow":
        _assert_equal(result, "several_", "other_")


@pytest.mark.skipif(_BACKEND != "tensorflow", reason="`tf.distribute`")
@pytest.mark.parametrize("method", _METHODS)
def test_mirrored_strategy(tmp_path, method):
    path = tmp_path / "result.npz"
    result = _finish(_start(path, "mirrored", method), path)
    assert result["devices"] == 2
    _assert_equal(result, "several_", "other_", method)
    _assert_equal(result, "several_", "single_", method, 1e-5)


@pytest.mark.skipif(_BACKEND != "tensorflow", reason="`tf.distribute`")
def test_mirrored_strategy_of_one_device():
    import tensorflow as tf

    models = []
    for scope in (None, tf.distribute.MirroredStrategy(["CPU:0"]).scope()):
        with scope or contextlib.nullcontext():
            model, optimizer = distributed._build()
            distributed._train(model, optimizer)
        models.append(distributed._arrays(model, optimizer, ""))
    for name, value in models[0].items():
        np.testing.assert_allclose(models[1][name], value, atol=1e-6)
    assert all(number > 2 for number in models[1]["replaced"])


@pytest.mark.skipif(_BACKEND != "tensorflow", reason="`tf.distribute`")
@pytest.mark.parametrize("num_examples", mostly_slow([17, 22], 17))
def test_replicas_of_unequal_size(tmp_path, num_examples):
    path = tmp_path / "result.npz"
    result = _finish(_start(path, "uneven", num_examples), path)
    assert result["devices"] == 2
    names = [
        k.removeprefix("single_") for k in result if k.startswith("single")
    ]
    assert len(names) == 8
    for name in names:
        value = result[f"single_{name}"]
        assert np.any(value != 0)
        np.testing.assert_allclose(
            result[f"several_{name}"], value, rtol=1e-5, err_msg=name
        )


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.mark.skipif(_BACKEND != "tensorflow", reason="`tf.distribute`")
def test_multi_worker_mirrored_strategy(tmp_path):
    ports = _free_ports(2)
    paths = [tmp_path / f"{worker}.npz" for worker in range(2)]
    workers = [
        _start(path, "multi_worker", worker, ports)
        for worker, path in enumerate(paths)
    ]
    try:
        first, second = map(_finish, workers, paths)
    finally:
        for worker in workers:
            worker.kill()
    assert first["devices"] == 2
    path = tmp_path / "single.npz"
    single = _finish(_start(path, "one_device"), path)
    others = {k.replace("several_", "other_"): v for k, v in second.items()}
    _assert_equal({**first, **others}, "several_", "other_")
    _assert_equal({**first, **single}, "several_", "single_", atol=1e-5)
