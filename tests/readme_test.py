"""What README says of layers and models is what the code has."""

import inspect
import os
import re
import tomllib

import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity.graph import rules
from tests.models import make_plastic_test

_README = os.path.join(os.path.dirname(__file__), os.pardir, "README.md")


def _row(part):
    """The names in one row of the table "Which layers, which models"."""
    with open(_README, encoding="utf-8") as file:
        lines = file.read().splitlines()
    (line,) = [line for line in lines if line.startswith(f"| {part}")]
    return set(re.findall(r"`([\w.]+)`", line.split("|")[2]))


def _names(kinds):
    return {kind.__name__ for kind in kinds}


def _layers_with(*chosen):
    return _names(
        kind for kind, rule in rules._LAYER_RULES.items() if rule in chosen
    )


def test_plastic_layers():
    kinds = vars(keras_plasticity.layers)
    expected = {
        name
        for name in keras_plasticity.layers.__all__
        if issubclass(kinds[name], keras_plasticity.layers.PlasticLayer)
    }
    assert _row("plastic layers") == expected


@pytest.mark.parametrize(
    ("part", "kinds"),
    [
        (
            "between unit and consumer",
            _layers_with(
                rules.keep_units,
                rules._activation,
                rules._concatenated_activation,
            ),
        ),
        ("normalization", _layers_with(rules._normalization)),
        (
            "shape",
            _layers_with(
                rules._movement, rules._concatenate, rules._time_distributed
            ),
        ),
        ("merging", _layers_with(rules._merge, rules._product)),
    ],
)
def test_layers_between(part, kinds):
    assert _row(part) - {"keras.ops"} == kinds


def test_positions():
    words = ("Average", "Max", "Cropping", "ZeroPadding", "UpSampling")
    for name in _layers_with(rules._channels):
        assert any(word in name for word in words), name


def test_models_that_were_tried():
    names = _row("tried by the tests") - {"keras.applications"}
    applications = {n for n in names if hasattr(keras.applications, n)}
    assert applications == set(make_plastic_test._APPLICATIONS)
    source = inspect.getsource(make_plastic_test)
    for name in names - applications:
        assert f"keras_hub.models.{name}(" in source


def _code(heading):
    """The Python code in one section of README."""
    with open(_README, encoding="utf-8") as file:
        section = file.read().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))


def test_write_your_own_method(capsys):
    code = _code("Write your own method")
    assert len(code.splitlines()) < 80
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    replaced = names["optimizer"].num_replaced()
    assert printed.strip() == str(replaced)
    assert sum(replaced.values()) > 30
    # The second one has neither units nor `mark`.
    model, x = names["model"], np.zeros((8, 4), "float32")
    before = keras.ops.convert_to_numpy(model.layers[0].kernel)
    model.fit(x, x[:, :1], batch_size=8, verbose=0)
    after = keras.ops.convert_to_numpy(model.layers[0].kernel)
    np.testing.assert_allclose(after, 0.99 * before, rtol=1e-6)
    # The table names what there is.
    optimizers = keras_plasticity.optimizers
    for name in ("mark", "num_due", "choose", "add_state", "observe"):
        assert callable(getattr(optimizers.UnitResetOptimizer, name))


def test_what_is_installed_without_tensorflow():
    root = os.path.dirname(_README)
    with open(os.path.join(root, "pyproject.toml"), "rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    reads_data = ("tensorflow", "importlib_resources")
    needed = {
        line
        for line in project["dependencies"] + extras["jax"] + extras["figures"]
        if not line.startswith(reads_data)
    }
    with open(_README, encoding="utf-8") as file:
        section = file.read().split("\n### Without TensorFlow\n")[1]
    (command,) = re.findall(r"\.venv/bin/pip install (\".*)", section)
    assert set(re.findall(r'"(.*?)"', command)) == needed
