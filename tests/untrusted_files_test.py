"""No file that a model is loaded from executes code, unless it is told to."""

import copy
import json
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras.src.utils import python_utils

from keras_plasticity import layers
from keras_plasticity import optimizers

pytestmark = pytest.mark.usefixtures("fast_compilation")

_CALLS = []


def note(activation_magnitude):
    """What a file would call: it has the arguments of a utility."""
    _CALLS.append("function")
    return activation_magnitude


class Note:
    """What a file would make."""

    def __init__(self, **arguments):
        _CALLS.append("class")

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __call__(self, activation_magnitude):
        return activation_magnitude


# Where it is called, it finds this module by itself.
_LAMBDA = eval(
    "lambda activation_magnitude: "
    f"__import__('sys').modules[{__name__!r}].note(activation_magnitude)"
)


def _function(module, name):
    return {
        "module": module,
        "class_name": "function",
        "config": name,
        "registered_name": name,
    }


def _class(module, name):
    return {
        "module": module,
        "class_name": name,
        "config": {},
        "registered_name": None,
    }


_PAYLOADS = {
    "a lambda": {
        "class_name": "__lambda__",
        "config": {"value": python_utils.func_dump(_LAMBDA)},
    },
    "a function": _function(__name__, "note"),
    "a class": _class(__name__, "Note"),
    "os.system": _function("os", "system"),
    "a function of Keras": _function("keras.utils", "get_file"),
    "a function of ours": _function("keras_plasticity.files", "atomic_write"),
    "subprocess.Popen": _class("subprocess", "Popen"),
}

_OPTIMIZER = ("compile_config", "optimizer", "config")
_INNER = ("inner_optimizer", "config")
_LAYERS = ("config", "layers")
_PLACES = {
    "utility": (*_OPTIMIZER, *_INNER, *_INNER, "utility"),
    "rate": (*_OPTIMIZER, *_INNER, *_INNER, "replacement_rate"),
    "innermost optimizer": (*_OPTIMIZER, *_INNER, *_INNER, "inner_optimizer"),
    "learning rate": (*_OPTIMIZER, *_INNER, *_INNER, *_INNER, "learning_rate"),
    "inner optimizer": (*_OPTIMIZER, "inner_optimizer"),
    "initializer of noise": (*_OPTIMIZER, "initializer"),
    "optimizer": _OPTIMIZER[:2],
    "kernel": (*_LAYERS, 1, "config", "kernel_initializer"),
    "bias": (*_LAYERS, 1, "config", "bias_initializer"),
    "activation": (*_LAYERS, 1, "config", "activation"),
    "regularizer": (*_LAYERS, 1, "config", "kernel_regularizer"),
    "layer": (*_LAYERS, 1),
    "gamma": (*_LAYERS, 2, "config", "gamma_initializer"),
    "constraint": (*_LAYERS, 2, "config", "beta_constraint"),
}


def _build_model():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3, activation="relu"),
            layers.OnlineNormalization(),
            layers.Dense(1),
        ]
    )
    model.compile(
        optimizers.ShrinkAndPerturbByInitializer(
            optimizers.L2(
                optimizers.ContinualBackprop(keras.optimizers.SGD(), seed=1)
            ),
            seed=1,
        ),
        loss="mse",
    )
    return model


def _put(config, place, payload):
    for key in place[:-1]:
        config = config[key]
    config[place[-1]]  # It is there.
    config[place[-1]] = copy.deepcopy(payload)


def _train(model):
    model.fit(np.ones((2, 4)), np.ones((2, 1)), verbose=0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    model = _build_model()
    _train(model)
    model.save(path)
    return path


@pytest.fixture
def write(saved, tmp_path):
    """A function that writes a file with something put into its config."""

    def write(place, payload):
        path = tmp_path / "changed.keras"
        with (
            zipfile.ZipFile(saved) as source,
            zipfile.ZipFile(path, "w") as target,
        ):
            for name in source.namelist():
                content = source.read(name)
                if name == "config.json":
                    config = json.loads(content)
                    _put(config, place, payload)
                    content = json.dumps(config)
                target.writestr(name, content)
        return path

    return write


@pytest.fixture(autouse=True)
def _no_calls():
    _CALLS.clear()


@pytest.mark.parametrize("place", _PLACES.values(), ids=_PLACES.keys())
@pytest.mark.parametrize("payload", _PAYLOADS.values(), ids=_PAYLOADS.keys())
def test_a_file_calls_nothing_of_its_choice(write, place, payload):
    path = write(place, payload)
    with pytest.raises((TypeError, ValueError)):
        keras.models.load_model(path)
    assert not _CALLS


def test_the_file_is_read_where_nothing_is_wrong(write):
    path = write(_PLACES["utility"], "adaptation")
    model = keras.models.load_model(path)
    inner = model.optimizer.inner_optimizer.inner_optimizer
    assert inner.utility == "adaptation"


def test_who_trusts_a_file_may_have_its_lambda(write):
    """The test above would find out if it were called."""
    path = write(_PLACES["utility"], _PAYLOADS["a lambda"])
    model = keras.models.load_model(path, safe_mode=False)
    _train(model)
    assert _CALLS


def test_what_the_program_hands_in_is_called(write):
    path = write(_PLACES["utility"], _PAYLOADS["a function"])
    model = keras.models.load_model(path, custom_objects={"note": note})
    _train(model)
    assert _CALLS


@pytest.mark.parametrize("payload", _PAYLOADS.values(), ids=_PAYLOADS.keys())
def test_a_config_alone_calls_nothing(payload):
    """Outside of any file, where Keras has set no safe mode."""
    config = optimizers.ContinualBackprop(keras.optimizers.SGD()).get_config()
    for name in ("utility", "inner_optimizer"):
        with pytest.raises((TypeError, ValueError)):
            optimizers.ContinualBackprop.from_config(config | {name: payload})
    assert not _CALLS


@pytest.mark.parametrize(
    "payload", [_PAYLOADS["a lambda"], _PAYLOADS["a function"]]
)
@pytest.mark.filterwarnings("ignore:.*HDF5:UserWarning")
def test_a_legacy_file_calls_nothing(tmp_path, payload):
    path = tmp_path / "model.h5"
    model = _build_model()
    _train(model)
    model.save(path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["training_config"])
        place = ("optimizer_config", "config", *_INNER, *_INNER, "utility")
        _put(config, place, payload)
        file.attrs["training_config"] = json.dumps(config).encode()
    with pytest.raises((TypeError, ValueError)):
        keras.models.load_model(path)
    assert not _CALLS
