"""Flags of XLA, the compiler of JAX and of TensorFlow."""

import os

_NAME = "xla_cpu_small_while_loop_byte_threshold"
# Bytes that an iteration may read and write: about those of a step of a
# network of 100,000 weights. A step of a larger one is worth a second thread.
# By the odd number, processes that this one starts, which inherit it, know that
# it is not the user's, who would take the even one of the documentation.
_BYTES = 2**22 - 1
_OPTION = f"--xla_backend_extra_options={_NAME}={_BYTES}"


def compile_small_loops_whole():
    """Has XLA compile each loop of small steps into one kernel, on a CPU.

    XLA calls a kernel for each operation of a program, or a few of them, and
    goes from one to the next in a tenth of a microsecond, or in several where
    two threads share them. A step of a small network has a hundred of them,
    each of which computes for less than that. The smallest loops XLA compiles
    whole; this says what small is. Loops with operations that such a kernel
    cannot hold, such as convolutions, sorts or products of large matrices,
    remain as they are.

    XLA reads its flags once, when the process compiles for the first time.
    What the user has set there stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_backend_extra_options" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_OPTION}".strip()


def compile_small_loops_apart():
    """Takes back what `compile_small_loops_whole` has set.

    Here, for an earlier run, or in the process that has started this one. It
    has no effect where XLA has read its flags.
    """
    if are_small_loops_whole():
        flags = os.environ["XLA_FLAGS"].replace(_OPTION, "").strip()
        os.environ["XLA_FLAGS"] = flags


def are_small_loops_whole() -> bool:
    """Whether the environment has what `compile_small_loops_whole` sets."""
    return _OPTION in os.environ.get("XLA_FLAGS", "")
