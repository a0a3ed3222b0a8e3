"""Flags of XLA, the compiler of JAX and of TensorFlow."""

import os

_NAME = "xla_cpu_small_while_loop_byte_threshold"
# Bytes that an iteration may read and write: about those of a step of a
# network of 100,000 weights. A step of a larger one is worth a second thread.
_BYTES = 2**22


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
        option = f"--xla_backend_extra_options={_NAME}={_BYTES}"
        os.environ["XLA_FLAGS"] = f"{flags} {option}".strip()
