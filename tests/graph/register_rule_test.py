import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity import graph
from keras_plasticity.graph import own_rules
from keras_plasticity.layers import Dense
from keras_plasticity.models import make_plastic


@pytest.fixture(autouse=True)
def _no_rules(monkeypatch):
    monkeypatch.setattr(own_rules, "_REGISTERED", {})


class _Reversed(keras.layers.Layer):
    """Its `call` looks at values, so that it cannot be traced."""

    def call(self, x):
        if not np.isfinite(float(ops.sum(x))):
            raise ValueError("not finite")
        return ops.flip(x, axis=-1)

    def compute_output_shape(self, input_shape):
        return input_shape


def _reversed(call, units):
    (x,), (y,) = call.inputs, call.outputs
    assert isinstance(call.operation, _Reversed)
    return {y: graph.Units(units[x].axes, units[x].unit[::-1])}


def _model(layer, kind=Dense):
    inputs = keras.Input((5,))
    x = layer(kind(4, name="hidden")(inputs))
    return keras.Model(inputs, kind(3, name="last")(x))


def _find(model):
    found = graph.find_connections([model.layers[1], model.layers[-1]], model)
    graph.check(found)
    return found[0]


def test_units_go_where_the_rule_says():
    model = _model(_Reversed(name="reversed"))
    with pytest.raises(ValueError, match="'reversed'.*cannot be traced"):
        _find(model)
    graph.register_rule(_Reversed, _reversed)
    (feature_map,) = _find(model).consumers.values()
    assert feature_map.unit_of_feature.tolist() == [3, 2, 1, 0]


def test_make_plastic_uses_it():
    graph.register_rule(_Reversed, graph.keep_units)
    model = make_plastic(_model(_Reversed(), keras.layers.Dense))
    assert model.layers[1].replaceable and type(model.layers[1]) is Dense


def test_a_subclass_has_no_rule():
    class Subclass(_Reversed):
        pass

    graph.register_rule(_Reversed, _reversed)
    with pytest.raises(ValueError, match="cannot be traced"):
        _find(_model(Subclass()))


@pytest.mark.parametrize(
    "kind, message",
    [
        (graph.Refusal, "cannot be followed.*because of this"),
        (graph.Skip, "will not be replaced.*because of this"),
    ],
)
def test_units_that_are_lost(kind, message):
    def refuse(call, units):
        raise kind("because of this")

    graph.register_rule(_Reversed, refuse)
    expected = (
        pytest.raises(ValueError, match=message)
        if kind is graph.Refusal
        else pytest.warns(UserWarning, match=message)
    )
    with expected:
        _find(_model(_Reversed()))


@pytest.mark.parametrize(
    "result, error, message",
    [
        (lambda y: None, TypeError, "`_Reversed` must return a dict from"),
        (lambda y: {y: [0, 1]}, TypeError, "must return a dict from outputs"),
        (lambda y: {"y": graph.Units((1,), np.arange(4))}, TypeError, "a dict"),
        (
            lambda y: {y: graph.Units((1,), np.arange(3))},
            ValueError,
            r"array of the shape of their axes, \(4,\). Received: axes=\(1,\)",
        ),
    ],
    ids=["nothing", "no_units", "no_output", "shape"],
)
def test_rules_that_return_something_else(result, error, message):
    graph.register_rule(_Reversed, lambda call, units: result(call.outputs[0]))
    with pytest.raises(error, match=message):
        _find(_model(_Reversed()))


@pytest.mark.parametrize(
    "layer_class", [None, "Dense", keras.layers.Dense(3), Dense, int]
)
def test_no_class_of_layers(layer_class):
    with pytest.raises(
        ValueError, match="`layer_class` must be a class of lay"
    ):
        graph.register_rule(layer_class, graph.keep_units)


@pytest.mark.parametrize("rule", [None, "keep_units", 3])
def test_no_rule(rule):
    with pytest.raises((TypeError, ValueError), match="`rule` must be a func"):
        graph.register_rule(_Reversed, rule)
