"""The examples in docstrings do what they say, in every module."""

import doctest
import importlib
import json
import pkgutil
import re
import textwrap

import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity.diagnosis import learning
from tests.helpers import make_data
from tests.helpers import make_model

pytestmark = pytest.mark.usefixtures("fast_compilation")

# Modules of one backend.
_OF_A_BACKEND = re.compile(r"\.(jax|optax|tensorflow|torch)(_\w+)?$")
# Examples that are not run, and why.
_NOT_RUN = {
    "callbacks.mlflow_tracker.MLflowTracker": "needs mlflow",
    "callbacks.wandb_tracker.WandbTracker": "needs wandb",
    "callbacks.zero_weights.ZeroWeights": "needs a trainer of long tasks",
    "experiments.command_line.has_defaults": "needs a trainer's flags",
    "experiments.command_line.launch": "ends the process",
    "experiments.compare.compare": "needs finished runs",
    "experiments.device.configure_backend": "needs a trainer's flags",
    "experiments.experiment.run": "takes hours",
    "experiments.suites.driver.suite": "takes minutes",
    "experiments.sweeps.driver.sweep": "takes minutes",
    "graph.connections.connect": "needs a subclassed model",
    "optimizers.optimizer_wrapper.OptimizerWrapper": "run by its tests",
    "optimizers.unit_reset_optimizer.UnitResetOptimizer": "run by its tests",
    "optimizers.weight_optimizer.WeightOptimizer": "run by its tests",
    "streams.binary_class_pairs.BinaryClassPairs": "takes hours",
    "streams.online_permuted_images.OnlinePermutedImages": "takes hours",
    "training.online_trainer.OnlineTrainer": "takes hours",
}
# They build whole applications.
_SLOW = ("graph.inspect.inspect", "models.make_plastic.make_plastic")


def _documented():
    """Pairs of a name and the `DocTest` of each docstring."""
    package = keras_plasticity
    modules = [package.__name__]
    for info in pkgutil.walk_packages(package.__path__, "keras_plasticity."):
        of_a_backend = _OF_A_BACKEND.search(info.name)
        backend = of_a_backend and of_a_backend[1].replace("optax", "jax")
        if backend in (None, keras.backend.backend()):
            modules.append(info.name)
    finder = doctest.DocTestFinder(exclude_empty=False)
    found = {}
    for name in modules:
        module = importlib.import_module(name)
        names = {"keras_plasticity": package, "np": np, "ops": ops}
        for test in finder.find(module, extraglobs=names):
            if test.docstring:
                name = test.name.removeprefix("keras_plasticity.")
                found[name] = test
    return found


_DOCUMENTED = _documented()
_WITH_RESULTS = [name for name, test in _DOCUMENTED.items() if test.examples]
_WITH_CODE = [
    name for name, test in _DOCUMENTED.items() if "```python" in test.docstring
]


def test_there_are_examples():
    assert "functional.replacement.count_digits" in _WITH_RESULTS
    assert "layers.convolutional.Conv2D" in _WITH_CODE
    assert {*_NOT_RUN, *_SLOW} <= {*_WITH_CODE}


@pytest.mark.parametrize("name", _WITH_RESULTS)
def test_results_are_those_shown(name):
    failures = []
    runner = doctest.DocTestRunner(verbose=False)
    # It would empty the names of a test that another run needs.
    runner.run(_DOCUMENTED[name], out=failures.append, clear_globs=False)
    assert not failures, "".join(failures)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in _SLOW else name
        for name in _WITH_CODE
        if name not in _NOT_RUN
    ],
)
def test_code_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Of the updates that a diagnosis makes, a few are enough here.
    monkeypatch.setattr(learning, "_FEWEST_STEPS", 20)
    with keras_plasticity.utils.SummaryWriter("logs") as writer:
        names = {**_DOCUMENTED[name].globs, **_what_is_at_hand(writer)}
        examples = _code(name)
        assert examples
        for code in examples:
            exec(code, names)  # What fails raises.


@pytest.mark.parametrize("name", _NOT_RUN)
def test_code_that_is_not_run_is_code(name):
    assert _code(name)


def _code(name):
    """The compiled examples of a docstring."""
    docstring = _DOCUMENTED[name].docstring
    return [
        compile(textwrap.dedent(code.rstrip(" ")), name, "exec")
        for code in re.findall(r"```python\n(.*?)```", docstring, re.DOTALL)
    ]


class _Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return make_data(5, seed=index)


def _what_is_at_hand(writer):
    """Names that examples take for granted."""
    x, y = make_data(20)
    model = make_model()
    model.compile("sgd", "mse")
    return {
        **{"keras": keras, "np": np, "ops": ops, "json": json},
        **{"keras_plasticity": keras_plasticity, "model": model},
        **{"writer": writer},
        **{"x": x, "y": y, "x_test": x, "y_test": y, "settings": {}},
        **{"x_next": x, "y_next": y, "batches": [(x, y)]},
        "dataset": _Batches(),
        # A user's own.
        "WeightClipping": keras_plasticity.optimizers.L2,
    }
