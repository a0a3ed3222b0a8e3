import contextlib
import os
import zlib

# On a CPU, TensorFlow has convolutions with channels first by oneDNN only, and
# leaves it off on processors without instructions for neural networks.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# Several processes may share a GPU, so none may take all of its memory.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import hypothesis  # noqa: E402
import keras  # noqa: E402
import pytest  # noqa: E402

from keras_plasticity import backend  # noqa: E402
from keras_plasticity import keras_compat  # noqa: E402

if keras.backend.backend() == "torch":
    import torch

    # The problems here are tiny: more threads only wait for one another.
    torch.set_num_threads(1)

# Tests of properties try few examples, the same ones each time. A search for
# more: KERAS_PLASTICITY_EXAMPLES=1000 pytest ...
_EXAMPLES = os.environ.get("KERAS_PLASTICITY_EXAMPLES")
hypothesis.settings.register_profile(
    "keras_plasticity",
    max_examples=int(_EXAMPLES or 25),
    derandomize=_EXAMPLES is None,
    deadline=None,
    database=None,
    # Not to explain failures, which takes minutes.
    phases=[p for p in hypothesis.Phase if p is not hypothesis.Phase.explain],
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("keras_plasticity")


# With `--twelfth`, what depends on the backend most runs on all three of them:
# of all other tests JAX and TensorFlow, which compile, take a twelfth each, and
# PyTorch takes all (but see `--brief`). What hardly depends on the backend runs
# on PyTorch only.
_ON_ALL = (
    "tests/backend/",
    "tests/functional/",
    "tests/golden_traces_test.py",
    "tests/method_traces/",
    "tests/optimizers/continual_backprop_oracle_test.py",
    "tests/optimizers/unit_resets_oracle_test.py",
    "tests/optimizers/without_branches_test.py",
    # One for each backend.
    "tests/docstrings_test.py::test_code_runs[native.",
    "tests/site/code_test.py::test_code_runs[guides/loop-",
    "tests/training/compiled_steps_test.py",
)
_ON_ONE = (
    "tests/datasets/",
    "tests/docstrings_test.py",
    "tests/examples/compare_test.py",
    "tests/experiments/",
    "tests/fuzz_test.py",
    "tests/mutants_test.py",
    "tests/quantization_test.py",
    "tests/signatures_test.py",
    "tests/site/",
    "tests/soak_test.py",
    "tests/streams/",
    "tests/training/saver_test.py",
    "tests/utils/",
    "tests/validation_test.py",
)


def pytest_addoption(parser):
    parser.addoption(
        "--twelfth",
        type=int,
        choices=range(12),
        help="run only this twelfth of the tests that need not run on all "
        "backends; default: all tests",
    )
    parser.addoption(
        "--brief",
        action="store_true",
        help="run a twelfth of the slow cases of large tables, and no test "
        "that is marked `long`",
    )


# Tables of many cases alike, such as checks of each wrapper. With `--brief`, a
# twelfth of the slow ones.
_TABLES = (
    "tests/callbacks/boundary_callback_test.py",
    "tests/graph/paths_test.py",
    "tests/optimizers/inner_optimizers_test.py",
    "tests/optimizers/slots_test.py",
    "tests/optimizers/wrapper_checks_test.py",
    "tests/training/compiled_steps_test.py",
    "tests/training/learner_settings_test.py",
)


def pytest_collection_modifyitems(config, items):
    twelfth = config.getoption("--twelfth")
    if twelfth is None and not config.getoption("--brief"):
        return

    def is_chosen(item):
        number = zlib.crc32(item.nodeid.encode())
        if twelfth is None:
            is_slow = item.get_closest_marker("slow") is not None
            is_of_table = item.nodeid.startswith(_TABLES)
            if item.get_closest_marker("long") is not None:
                return False
            return not (is_slow and is_of_table) or number % 12 == 0
        if item.get_closest_marker("long") is not None:
            return False
        if item.nodeid.startswith(_ON_ALL):
            return True
        if item.nodeid.startswith(_ON_ONE):
            return False
        return number % 12 == twelfth

    chosen = [item for item in items if is_chosen(item)]
    rest = [item for item in items if not is_chosen(item)]
    config.hook.pytest_deselected(items=rest)
    items[:] = chosen


@pytest.fixture(scope="module")
def fast_compilation():
    """For modules in which JAX's compilation takes nearly all the time."""
    with _fast_compilation():
        yield


@pytest.fixture(scope="module", autouse=True)
def _fast_compilation_of_a_twelfth(request):
    is_part = request.config.getoption("--twelfth") is not None
    if is_part and not request.node.nodeid.startswith(_ON_ALL):
        with _fast_compilation():
            yield
    else:
        yield


@contextlib.contextmanager
def _fast_compilation():
    if keras.backend.backend() != "jax":
        yield
        return
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Every test draws the same numbers, alone or among others."""
    keras.utils.set_random_seed(42)


def _use(settings):
    """Sets what a program sets when it chooses a device, for the process."""
    # In full precision, whatever the device: else results are others.
    backend.set_matmul_precision("float32")
    if keras.backend.backend() == "torch":
        keras_compat.set_torch_device(settings["device"])
    elif keras.backend.backend() == "jax":
        import jax

        for name, value in settings.items():
            if getattr(jax.config, name) != value:
                jax.config.update(name, value)


def _settings():
    if keras.backend.backend() == "torch":
        return {"device": str(keras.ops.zeros(()).device.type)}
    if keras.backend.backend() == "jax":
        import jax

        names = ("jax_default_device", "jax_platforms")
        return {name: getattr(jax.config, name) for name in names}
    return {}


_SETTINGS = _settings()
_use(_SETTINGS)


@pytest.fixture(autouse=True)
def _same_device():
    """A trainer that a test runs settles the device of the whole process."""
    yield
    _use(_SETTINGS)


@pytest.fixture(autouse=True)
def _same_terminal(monkeypatch):
    """What is printed does not depend on where the tests are run."""
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
