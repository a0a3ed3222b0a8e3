"""Where computation happens, and how exactly.

What changes the device of a process is tried in processes of their own.
"""

import os
import subprocess
import sys
import types

import keras
import numpy as np
import pytest

from keras_plasticity import backend

_BACKEND = keras.backend.backend()
# The device of a new tensor, in the main thread and in another one.
_USE_CPU = """
import concurrent.futures
import keras
from keras_plasticity import backend

def device():
    return str(keras.ops.zeros(()).device).lower()

backend.use_device("cpu")
with concurrent.futures.ThreadPoolExecutor(1) as thread:
    devices = [device(), thread.submit(device).result()]
assert all("cpu" in name for name in devices), devices
assert backend.platform() == "cpu"
backend.use_device("cpu")  # Once more changes nothing.
"""


def _run(code, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr


def test_platform_is_that_of_a_new_tensor():
    # Such as "cpu", "cuda:0" or "/job:localhost/replica:0/.../device:CPU:0".
    device = str(keras.ops.zeros(()).device).lower()
    assert ("cpu" in device) == (backend.platform() == "cpu")


def test_all_threads_use_the_device():
    # What is not the CPU, as if Keras had found it.
    _run(_USE_CPU, KERAS_TORCH_DEVICE="meta")


@pytest.mark.skipif(_BACKEND != "jax", reason="of JAX")
def test_jax_looks_for_no_other_device():
    _run(
        _USE_CPU
        + """
import jax
assert jax.config.jax_platforms == "cpu"
assert {device.platform for device in jax.devices()} == {"cpu"}
""",
        JAX_PLATFORMS="",
    )


@pytest.mark.skipif(_BACKEND != "jax", reason="of JAX")
def test_platform_is_that_of_the_default_device():
    import jax

    with jax.default_device(jax.devices("cpu")[0]):
        assert backend.platform() == "cpu"
    with jax.default_device("cpu"):
        assert backend.platform() == "cpu"


@pytest.mark.parametrize("name", ["cuda", "", None, 0])
def test_bad_devices(name):
    with pytest.raises(ValueError, match="`name` must be 'cpu' or 'gpu'"):
        backend.use_device(name)


def test_a_device_that_is_not_there():
    if "gpu" in backend._active.platforms():
        pytest.skip("there is a GPU")
    message = f"device that {_BACKEND} .* which are: cpu. Received: name=gpu"
    with pytest.raises(ValueError, match=message):
        backend.use_device("gpu")


@pytest.mark.skipif(_BACKEND != "tensorflow", reason="of TensorFlow")
def test_too_late_for_another_device(monkeypatch):
    import tensorflow as tf

    def set_visible_devices(devices, kind):
        raise RuntimeError("cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "set_visible_devices", set_visible_devices)
    with pytest.raises(RuntimeError, match="before TensorFlow .* name=cpu"):
        backend.use_device("cpu")


def _precision():
    """The backend's own words for the precision that is set."""
    if _BACKEND == "jax":
        import jax

        return jax.config.jax_default_matmul_precision
    if _BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.config.experimental.tensor_float_32_execution_enabled()
    import torch

    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )


def test_precision_of_products():
    expected = {
        "jax": ("tensorfloat32", "highest"),
        "tensorflow": (True, False),
        "torch": (("high", True, True), ("highest", False, False)),
    }[_BACKEND]
    backend.set_matmul_precision("tensorfloat32")
    assert _precision() == expected[0]
    backend.set_matmul_precision("float32")
    assert _precision() == expected[1]
    x = np.float32([[1.0, 1.0 + 2.0**-20]])
    product = keras.ops.convert_to_numpy(keras.ops.matmul(x, x.T))
    np.testing.assert_allclose(product, x @ x.T, rtol=1e-7)


@pytest.mark.parametrize("precision", ["float16", "highest", "", None, 32])
def test_bad_precisions(precision):
    message = "must be 'float32' or 'tensorfloat32'. Received: precision="
    with pytest.raises(ValueError, match=message):
        backend.set_matmul_precision(precision)


def test_free_memory():
    free = backend.free_memory()
    if backend.platform() == "cpu":
        assert free is None or 2**20 < free < 2**50
    elif _BACKEND != "tensorflow":
        assert 2**20 < free < 2**50


@pytest.mark.skipif(backend.platform() != "cpu", reason="Of the host.")
def test_a_share_of_the_memory(monkeypatch):
    monkeypatch.setattr(backend, "_processes", 1)
    monkeypatch.setattr(
        backend.host_memory, "free_and_total", lambda: (700, 900)
    )
    for processes, expected in ((1, 700), (2, 450), (3, 300)):
        backend.share_memory(processes)
        assert backend.free_memory() == expected
    # Others use more than their shares.
    monkeypatch.setattr(
        backend.host_memory, "free_and_total", lambda: (200, 900)
    )
    assert backend.free_memory() == 200
    monkeypatch.setattr(backend.host_memory, "free_and_total", lambda: None)
    assert backend.free_memory() is None


@pytest.mark.skipif(_BACKEND != "jax", reason="of JAX")
@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        ({"bytes_limit": 100, "bytes_in_use": 30}, (70, 100)),
        ({"bytes_in_use": 30}, None),
        (None, None),
    ],
)
def test_free_memory_of_an_accelerator_on_jax(stats, expected, monkeypatch):
    device = types.SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    monkeypatch.setattr(backend._active, "_device", lambda: device)
    assert backend._active.free_and_total_memory() == expected


@pytest.mark.skipif(_BACKEND != "torch", reason="of PyTorch")
def test_free_memory_of_an_accelerator_on_torch(monkeypatch):
    import torch

    on_card = types.SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(keras.ops, "zeros", lambda shape: on_card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100, 900))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 50)
    assert backend._active.platform() == "gpu"
    assert backend._active.free_and_total_memory() == (120, 900)
