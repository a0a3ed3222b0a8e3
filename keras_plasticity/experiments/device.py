"""The device of a trainer's process, and how exactly it multiplies."""

import keras
from absl import flags

from keras_plasticity import backend
from keras_plasticity import validation
from keras_plasticity.experiments import exit_status
from keras_plasticity.experiments.methods import check_flag_values
from keras_plasticity.experiments.problem import Problem

# Flags belong to the module that calls `experiments.define_flags`.
flags.disclaim_key_flags()

# With few weights, a GPU's step is mostly the time that it takes to start its
# kernels, and a CPU is faster: 30 learners of Slowly-Changing Regression, 111
# weights each, take 7 us a step on a CPU and 11 on a GPU (BUILD_NOTES.md).
MOST_WEIGHTS_ON_CPU = 5000


def define_flags(flag_values):
    """Defines the flags of this module."""
    flags.DEFINE_enum(
        "device",
        "auto",
        ["auto", *backend.DEVICES],
        "Where to compute. auto: on the GPU where there is one, but up to "
        f"{MOST_WEIGHTS_ON_CPU:,} weights on the CPU, which is faster there.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "matmul_precision",
        "float32",
        list(backend.MATMUL_PRECISIONS),
        "In which a GPU multiplies matrices and computes convolutions. "
        "tensorfloat32 is faster for large networks, and its results are not "
        "those of other devices.",
        flag_values=flag_values,
    )


def configure_backend(
    flag_values: flags.FlagValues, problem: Problem, batch_size: int = 1
) -> str:
    """Sets the device and the precision that a trainer's flags ask for.

    They are those of the whole process. `run` does this at its start. A trainer
    that computes something before that, or that reads data by TensorFlow, does
    it first. Once more it changes nothing.

    Args:
        flag_values: The parsed `absl.flags.FlagValues`, with the flags of
            `define_flags`.
        problem: `Problem`.
        batch_size: Integer, that of `run`, by which TensorFlow's compiler is
            set. Defaults to `1`.

    Returns:
        String, the device and why it was chosen.

    Raises:
        SystemExit: With a message, if the device is not there.

    Example:

    ```python
    def run(flag_values):
        problem = make_problem(flag_values)
        experiments.configure_backend(flag_values, problem, batch_size=16)
        images, labels = datasets.load_mnist(flag_values.data_dir)
    ```
    """
    check_flag_values(
        flag_values, defined=("device", "matmul_precision", "dry_run")
    )
    validation.check_type("problem", problem, Problem, "a `Problem`")
    batch_size = validation.check_positive_integer("batch_size", batch_size)
    backend.compile_small_loops_whole(batch_size)
    backend.set_matmul_precision(flag_values.matmul_precision)
    if flag_values.device == "auto" and flag_values.dry_run:
        # A process that only checks settings may train others.
        return "chosen before it trains"
    num_weights = _weights_in_a_step(
        problem.num_weights, flag_values.num_learners or problem.num_learners
    )
    name = choose_device(flag_values.device, num_weights)
    if name is not None:
        try:
            backend.use_device(name)
        except ValueError as error:
            _refuse(flag_values.device, error)
        except RuntimeError as error:  # It is too late for another one.
            if flag_values.device != "auto":
                _refuse(flag_values.device, error)
    platform = backend.platform()
    return f"{platform}, {why(flag_values.device, num_weights, platform)}"


def choose_device(flag: str, num_weights: int | None) -> str | None:
    """The device to compute on.

    Args:
        flag: String, the value of `--device`.
        num_weights: Integer, the weights in a step; `None` if unknown.

    Returns:
        `"cpu"`, `"gpu"`, or `None` for the one that the backend prefers: the
        GPU where there is one.
    """
    if flag != "auto":
        return flag
    return "cpu" if _is_small(num_weights) else None


def why(flag: str, num_weights: int | None, platform: str) -> str:
    """Why a device is the one.

    Args:
        flag: String, the value of `--device`.
        num_weights: Integer, the weights in a step; `None` if unknown.
        platform: String, the device that is used.

    Returns:
        String, the end of a sentence that begins with the device.
    """
    if flag != "auto":
        return f"as --device={flag} says"
    if _is_small(num_weights):
        if platform == "cpu":
            return (
                f"which is faster than a GPU for the {num_weights:,} weights "
                "of a step"
            )
        return "on which this process has computed before"
    if platform == "cpu":
        return f"as {keras.backend.backend()} finds no GPU"
    if num_weights is None:
        return "as there is one"
    return (
        f"which is faster than a CPU for the {num_weights:,} weights of a step"
    )


def _refuse(device, error):
    exit_status.end(f"--device={device}: {error}", exit_status.WRONG_FLAGS)


def _is_small(num_weights):
    return num_weights is not None and num_weights <= MOST_WEIGHTS_ON_CPU


def _weights_in_a_step(num_weights, num_learners):
    """On JAX learners train side by side, elsewhere one after another."""
    if num_weights is None or keras.backend.backend() != "jax":
        return num_weights
    return num_weights * num_learners
