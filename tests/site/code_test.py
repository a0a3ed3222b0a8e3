"""The code in the pages of the site runs."""

import importlib.util

import keras
import matplotlib
import pytest

from tests.site import pages

pytestmark = pytest.mark.usefixtures("fast_compilation")

_TITLES = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}
_BACKEND = _TITLES[keras.backend.backend()]
# Pages that are for one backend alone.
_OF_A_BACKEND = {
    "guides/loop-jax.md": "JAX",
    "guides/loop-pytorch.md": "PyTorch",
    "guides/loop-tensorflow.md": "TensorFlow",
}
# Blocks that need another package, and that package's backend.
_OF_A_PACKAGE = {"Optax": ("JAX", "optax")}
_WRITTEN = pages.written()


def _can_run(title):
    backend, package = _OF_A_PACKAGE.get(title, (title, None))
    if package is not None and importlib.util.find_spec(package) is None:
        return False
    return backend in (None, "Printed", _BACKEND)


def _code(path):
    """Blocks of Python, and what they print where the page shows it."""
    return [
        block
        for block in pages.blocks(_WRITTEN[path])
        if (block.language == "python" or block.title == "Printed")
        and _can_run(block.title)
        and _OF_A_BACKEND.get(path, _BACKEND) == _BACKEND
    ]


@pytest.fixture(autouse=True)
def _as_before():
    """What a page sets for the process does not last."""
    matplotlib.use("agg")
    if _BACKEND == "JAX":
        import jax

        precision = jax.config.jax_default_matmul_precision
        yield
        jax.config.update("jax_default_matmul_precision", precision)
    elif _BACKEND == "PyTorch":
        import torch

        backends = torch.backends.cudnn, torch.backends.cuda.matmul
        before = [each.allow_tf32 for each in backends]
        yield
        for each, value in zip(backends, before):
            each.allow_tf32 = value
    else:
        import tensorflow as tf

        execution = tf.config.experimental
        before = execution.tensor_float_32_execution_enabled()
        yield
        execution.enable_tensor_float_32_execution(before)
    keras.distribution.set_distribution(None)


def test_there_is_code():
    found = [path for path in _WRITTEN if _code(path)]
    assert "getting-started.md" in found
    assert len(found) >= 9


@pytest.mark.parametrize("path", [path for path in _WRITTEN if _code(path)])
def test_code_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for block in _code(path):
        if block.language != "python":
            assert capsys.readouterr().out.strip() == block.code.strip()
            continue
        capsys.readouterr()
        # So that a failure names the line of the page.
        code = "\n" * (block.line - 1) + block.code
        exec(compile(code, path, "exec"), names)
