import contextlib
import gc
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

_BACKEND = keras.backend.backend()

# Millions of objects of the packages stay for good: to look through them all in
# each collection took an eighth of the time.
gc.collect()
gc.freeze()

if _BACKEND == "torch":
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


# With `--sample`, what depends on the backend most runs on all three of them:
# of all other tests JAX and TensorFlow, which compile, take a few each, and
# PyTorch takes all. What hardly depends on the backend runs on PyTorch only.
_ON_ALL = (
    "tests/backend/",
    "tests/functional/",
    "tests/golden_traces_test.py",
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
# Of these they take half each, and PyTorch all.
_SHARED = ("tests/method_traces/",)
_NUM_SAMPLES = 24
# Where tests have many cases alike that take their time. With `--brief`, a
# third of them, another one on each backend, and a twelfth of the slow ones.
_TABLES = (
    "tests/backend/backend_test.py",
    "tests/callbacks/boundary_callback_test.py",
    "tests/diagnosis/learning_test.py",
    "tests/examples/layers_test.py",
    "tests/experiments/command_line_test.py",
    "tests/experiments/methods_test.py",
    "tests/graph/paths_test.py",
    "tests/layers/recurrent_test.py",
    "tests/layers/replaceable_test.py",
    "tests/method_traces/",
    "tests/models/make_plastic_test.py",
    "tests/native/torch_test.py",
    "tests/nested_models_test.py",
    "tests/optimizers/continual_backprop_oracle_test.py",
    "tests/optimizers/gradient_resets_oracle_test.py",
    "tests/optimizers/inner_optimizers_test.py",
    "tests/optimizers/sequences_in_parts_test.py",
    "tests/optimizers/settings_test.py",
    "tests/optimizers/shrink_and_perturb_test.py",
    "tests/optimizers/slots_test.py",
    "tests/optimizers/unit_resets_oracle_test.py",
    "tests/optimizers/without_branches_test.py",
    "tests/optimizers/wrapper_checks_test.py",
    "tests/training/compiled_steps_test.py",
    "tests/training/finite_test.py",
    "tests/training/interruption_test.py",
    "tests/training/learner_settings_test.py",
)
_FEWEST_CASES = 4


def pytest_addoption(parser):
    parser.addoption(
        "--brief",
        action="store_true",
        help="of slow tests with many cases run a third, another one on each "
        "backend, and no test that is marked `long`",
    )
    parser.addoption(
        "--sample",
        type=int,
        choices=range(_NUM_SAMPLES),
        help="of the tests that need not run on all backends run only this "
        f"sample of {_NUM_SAMPLES}; default: all tests",
    )


@pytest.hookimpl(trylast=True)  # After `-m`.
def pytest_collection_modifyitems(config, items):
    chosen = items
    if config.getoption("--sample") is not None:
        number = config.getoption("--sample")
        chosen = [item for item in chosen if _is_in_sample(item, number)]
    if config.getoption("--brief"):
        chosen = _brief(chosen)
    kept = set(chosen)
    config.hook.pytest_deselected(items=[x for x in items if x not in kept])
    items[:] = chosen


def _number(text):
    """The same one in each process."""
    return zlib.crc32(text.encode())


def _is_in_sample(item, number):
    if item.nodeid.startswith(_ON_ALL):
        return True
    if item.nodeid.startswith(_ON_ONE):
        return False
    if item.nodeid.startswith(_SHARED):
        return _number(item.nodeid) % 2 == number % 2
    return _number(item.nodeid) % _NUM_SAMPLES == number


def _brief(items):
    chosen = set()
    tables = {}
    for item in items:
        if item.get_closest_marker("long") is not None:
            continue
        if not item.nodeid.startswith(_TABLES):
            chosen.add(item)
        elif item.get_closest_marker("slow") is None:
            name = item.nodeid.partition("[")[0]
            tables.setdefault(name, []).append(item)
        elif _number(item.nodeid) % 12 == 0:
            chosen.add(item)
    backend_number = ("torch", "jax", "tensorflow").index(_BACKEND)
    for name, cases in tables.items():
        start = (_number(name) + backend_number) % 3
        is_table = len(cases) >= _FEWEST_CASES
        chosen.update(cases[start::3] if is_table else cases)
    return [item for item in items if item in chosen]


@pytest.fixture(scope="module")
def fast_compilation():
    """For modules in which JAX's compilation takes nearly all the time."""
    with _fast_compilation():
        yield


@pytest.fixture(scope="module", autouse=True)
def _fast_compilation_of_a_sample(request):
    is_part = request.config.getoption("--sample") is not None
    if is_part and not request.node.nodeid.startswith(_ON_ALL):
        with _fast_compilation():
            yield
    else:
        yield


@contextlib.contextmanager
def _fast_compilation():
    if _BACKEND != "jax":
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
    if _BACKEND == "torch":
        keras_compat.set_torch_device(settings["device"])
    elif _BACKEND == "jax":
        import jax

        for name, value in settings.items():
            if getattr(jax.config, name) != value:
                jax.config.update(name, value)


def _settings():
    if _BACKEND == "torch":
        return {"device": str(keras.ops.zeros(()).device.type)}
    if _BACKEND == "jax":
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
