"""XLA compiles the steps of a small network into one kernel, on a CPU."""

import os
import re
import subprocess
import sys

import keras
import pytest

from keras_plasticity import backend
from keras_plasticity.backend import xla_flags

_RUN = """
import keras
from keras_plasticity import backend, layers, optimizers, streams, training

backend.compile_small_loops_whole()

def build_model(learner):
    model = keras.Sequential(
        [
            keras.Input((20,)),
            layers.Dense(30, activation="relu"),
            layers.Dense(30, activation="relu"),
            layers.Dense(1),
        ]
    )
    optimizer = optimizers.ContinualBackprop(
        keras.optimizers.SGD(0.01), utility="overall", seed=0
    )
    model.compile(optimizer, "mse")
    return model

stream = streams.SlowlyChangingRegression(1, examples_per_task=100)
training.OnlineTrainer(build_model, jit_compile=True).fit(stream)
"""


def has_whole_loops():
    if keras.backend.backend() == "jax":
        import jax

        return jax.__version_info__ >= (0, 10)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tuple(map(int, tf.__version__.split(".")[:2])) >= (2, 21)
    return False


def _program_of_steps(folder):
    """XLA's program of the engine, without what is called in it."""
    subprocess.run(
        [sys.executable, "-c", _RUN],
        env={
            **os.environ,
            "XLA_FLAGS": f"--xla_dump_to={folder} --xla_dump_hlo_as_text",
            # What is read from JAX's cache is not written.
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "JAX_PLATFORMS": "cpu",
        },
        check=True,
    )
    programs = folder.glob("*cpu_after_optimizations.txt")
    largest = max(programs, key=lambda each: each.stat().st_size)
    return re.search(r"^ENTRY .*?^}", largest.read_text(), re.M | re.S).group()


@pytest.mark.skipif(
    not has_whole_loops(), reason="XLA of these versions has no such kernels."
)
def test_a_step_is_part_of_one_kernel(tmp_path):
    program = _program_of_steps(tmp_path)
    assert program.count("xla_cpu_small_call") == 1
    assert " while(" not in program


def test_batches_on_tensorflow(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    is_jax = keras.backend.backend() == "jax"
    for before in (None, 1):
        if before is not None:  # The run of a process before this one.
            backend.compile_small_loops_whole(before)
        backend.compile_small_loops_whole(16)
        is_set = xla_flags.are_small_loops_whole()
        assert is_set == (is_jax and has_whole_loops())
