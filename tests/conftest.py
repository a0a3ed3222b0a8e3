import os

# On a CPU, TensorFlow has convolutions with channels first by oneDNN only, and
# leaves it off on processors without instructions for neural networks.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras  # noqa: E402
import pytest  # noqa: E402

if keras.backend.backend() == "torch":
    import torch

    # The problems here are tiny: more threads only wait for one another.
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def fast_compilation():
    """For modules in which JAX's compilation takes nearly all the time."""
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


@pytest.fixture(autouse=True)
def _same_terminal(monkeypatch):
    """What is printed does not depend on where the tests are run."""
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
