"""Every public name: reachable, documented, registered."""

import importlib
import inspect
import pkgutil

import keras
import pytest

import keras_plasticity
from keras_plasticity.training import TaskCallback


def _packages():
    """The package and its public subpackages."""
    yield keras_plasticity
    for info in pkgutil.iter_modules(keras_plasticity.__path__):
        if info.ispkg:
            module = importlib.import_module(f"keras_plasticity.{info.name}")
            if hasattr(module, "__all__"):
                yield module


_NAMES = [
    pytest.param(module, name, id=f"{module.__name__}.{name}")
    for module in _packages()
    for name in module.__all__
]


@pytest.mark.parametrize("module, name", _NAMES)
def test_public_name(module, name):
    value = getattr(module, name)
    if name == "__version__":
        assert value.count(".") == 2
        return
    assert inspect.getdoc(value), "has no docstring"
    if inspect.ismodule(value):
        assert value.__name__ == f"{module.__name__}.{name}"
        return
    # Not the docstring of a base class.
    assert value.__doc__
    if inspect.isclass(value):
        for key, member in vars(value).items():
            if not key.startswith("_") and inspect.isfunction(member):
                inherited = any(
                    hasattr(base, key) for base in value.__mro__[1:]
                )
                assert member.__doc__ or inherited, f"{key} has no docstring"


@pytest.mark.parametrize(
    "module, name",
    [
        p
        for p in _NAMES
        if inspect.isclass(getattr(*p.values))
        and hasattr(getattr(*p.values), "get_config")
        # Keras saves no callbacks.
        and not issubclass(getattr(*p.values), TaskCallback)
    ],
)
def test_keras_class_is_registered(module, name):
    value = getattr(module, name)
    registered = keras.saving.get_registered_name(value)
    assert registered == f"keras_plasticity>{name}"
    assert keras.saving.get_registered_object(registered) is value


def test_all_is_sorted():
    for module in _packages():
        assert list(module.__all__) == sorted(module.__all__), module


def test_layers_and_optimizers_are_public():
    assert "Dense" in keras_plasticity.layers.__all__
    assert "ContinualBackprop" in keras_plasticity.optimizers.__all__
