"""Every private name of Keras that the library uses: it is still there.

One of these tests fails where a new Keras has renamed what `keras_compat`
touches, and says which of its functions are broken.
"""

import ast
import importlib
import inspect
import pathlib

import keras
import pytest

import keras_plasticity
from keras_plasticity import keras_compat

_FOLDER = pathlib.Path(keras_plasticity.__file__).parent
_MODULE = pathlib.Path(keras_compat.__file__)


def _functional():
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(3)(inputs))


def _trained():
    model = _functional()
    model.compile("sgd", "mse")
    model.fit(keras.ops.zeros((2, 4)), keras.ops.zeros((2, 3)), verbose=0)
    return model


def _built(optimizer):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    optimizer.build(model.trainable_variables)
    return optimizer


def _attention():
    layer = keras.layers.GroupQueryAttention(2, 2, 1, use_gate=True)
    layer.build((None, 3, 4), (None, 3, 4))
    return layer


def _bidirectional():
    return keras.layers.Bidirectional(keras.layers.LSTM(3))


def _tensor():
    return keras.Input((4,))


# Private name -> an object that has it.
_ATTRIBUTES = {
    "_backend_update_step": keras.optimizers.SGD,
    "_can_attempt_fused_gru": _bidirectional,
    "_can_attempt_fused_lstm": _bidirectional,
    "_compile_loss": _functional,
    "_flatten_layers": lambda: keras.layers.Dense(3),
    "_functional": lambda: keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3)]
    ),
    "_gate_dense": _attention,
    "_inbound_nodes": lambda: keras.layers.Dense(3),
    "_jax_state": _trained,
    "_keras_history": _tensor,
    "_key_dense": _attention,
    "_loss_ids": lambda: keras.layers.Dense(3),
    "_losses": lambda: keras.layers.Dense(3),
    "_model_variables_moving_average": lambda: _built(
        keras.optimizers.SGD(0.1, use_ema=True)
    ),
    "_momentums": lambda: _built(keras.optimizers.ScheduleFreeAdamW(0.1)),
    "_outbound_nodes": lambda: keras.layers.Dense(3),
    "_output_dense": _attention,
    "_query_dense": _attention,
    "_symbolic_build": _functional,
    "_track_variables": lambda: keras.layers.Dense(3),
    "_tracker": lambda: keras.layers.Dense(3),
    "_trainable_variables": lambda: _built(keras.optimizers.SGD(0.1)),
    "_trainable_variables_indices": lambda: _built(keras.optimizers.SGD(0.1)),
    "_value_dense": _attention,
    "_value": lambda: keras.Variable(1.0),
    "_var_key": keras.optimizers.SGD,
}
# Names that only one backend's objects have.
_OF_ONE = {"_jax_state": "jax", "_track_variables": "torch"}
# What is imported from where only Keras itself imports.
_PLACES = (
    "keras.src.backend.common.global_state",
    "keras.src.backend.compute_output_spec",
    "keras.src.backend.torch.core",
    "keras.src.models.functional.Functional",
    "keras.src.ops.core.Cast",
    "keras.src.optimizers.base_optimizer.BaseOptimizer",
    "keras.src.quantizers.utils.should_quantize_layer",
)


def _users(is_used):
    """The functions of `keras_compat` in whose code something is."""
    found = set()
    for node in ast.parse(_MODULE.read_text()).body:
        is_definition = isinstance(node, (ast.FunctionDef, ast.ClassDef))
        if is_definition and any(map(is_used, ast.walk(node))):
            found.add(node.name)
    return sorted(found)


def _private_attributes(tree):
    names = [
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    ]
    names += [
        node.args[1].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", None) == "getattr"
        and isinstance(node.args[1], ast.Constant)
    ]
    return {
        name
        for name in names
        if name.startswith("_") and not name.endswith("__")
    }


def test_the_table_has_all_private_names():
    """Names that the module itself defines aside."""
    tree = ast.parse(_MODULE.read_text())
    assert _private_attributes(tree) == set(_ATTRIBUTES)


def test_only_one_file_imports_what_is_private():
    for path in _FOLDER.rglob("*.py"):
        if path != _MODULE:
            assert "keras.src" not in path.read_text(), path


def test_the_table_has_all_private_places():
    text = _MODULE.read_text()
    for place in _PLACES:
        module, _, name = place.rpartition(".")
        assert place in text or f"from {module} import {name}" in text, place
    mentioned = text.count("keras.src.") - text.count('"keras.src.')
    assert mentioned == len(_PLACES)


@pytest.mark.parametrize("name", sorted(_ATTRIBUTES))
def test_a_private_attribute(name):
    backend = keras.backend.backend()
    if _OF_ONE.get(name, backend) != backend:
        pytest.skip(f"Only on {_OF_ONE[name]}.")
    owner = _ATTRIBUTES[name]()
    users = _users(lambda node: name in _private_attributes(node))
    assert hasattr(owner, name), (
        f"`{type(owner).__name__}` of Keras {keras.__version__} has no "
        f"`{name}`: mend {users} of `keras_compat`."
    )


@pytest.mark.parametrize("place", _PLACES)
def test_a_private_place(place):
    if ".torch." in place and keras.backend.backend() != "torch":
        pytest.skip("Only on PyTorch.")
    module, _, name = place.rpartition(".")
    users = _users(lambda node: getattr(node, "attr", None) == name)
    try:
        found = hasattr(importlib.import_module(module), name)
        found = found or importlib.util.find_spec(place) is not None
    except ImportError:
        found = False
    assert found, (
        f"Keras {keras.__version__} has no `{place}`: mend {users} of "
        "`keras_compat`."
    )


def test_what_is_told_of_the_call_that_goes_on():
    """`note_caller` and `is_inference` read an object that has no class."""
    seen = []

    class Looks(keras.layers.Layer):
        def call(self, x):
            context = keras_compat.global_state.get_global_attribute(
                "current_call_ctx"
            )
            seen.append((context.entry_layer, context.get_value("training")))
            return x

    layer = Looks()
    layer(keras.ops.zeros((1, 2)), training=False)
    assert seen == [(layer, False)], (
        f"Keras {keras.__version__} keeps no `current_call_ctx` as before: "
        "mend `note_caller` and `is_inference` of `keras_compat`."
    )


def test_a_step_on_jax_is_one_stateless_apply():
    if keras.backend.backend() != "jax":
        pytest.skip("Only on JAX.")
    source = inspect.getsource(keras.Model.train_step)
    assert "optimizer.stateless_apply(" in source, (
        f"`train_step` of Keras {keras.__version__} does not call "
        "`stateless_apply`: mend `transform_gradients` of `keras_compat`."
    )
