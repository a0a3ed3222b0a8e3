"""The attribute `replaceable`, which an optimizer reads when it is built."""

import keras
import numpy as np
import pytest

from keras_plasticity import layers
from keras_plasticity.optimizers import ContinualBackprop
from keras_plasticity.optimizers import UnitUPGD
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import to_numpy
from tests.helpers import train

_KINDS = [ContinualBackprop, UnitUPGD]


def _replacing():
    """It replaces units all the time."""
    return ContinualBackprop(
        keras.optimizers.SGD(0.1), replacement_rate=0.5, maturity_threshold=1
    )


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("index, value", [(0, False), (1, True), (2, False)])
def test_it_cannot_change_once_an_optimizer_is_built(
    kind, index, value, tmp_path
):
    model = make_model((4, 6, 5, 5, 3))
    model.layers[1].replaceable = False
    train(model, kind(keras.optimizers.Adam(0.01)), make_data(8))
    layer = model.layers[index]
    with pytest.raises(
        ValueError,
        match=f"`replaceable` of layer 'layer_{index}' cannot change any more: "
        f"a `{kind.__name__}` was built.*Received: replaceable={value}",
    ):
        layer.replaceable = value
    assert layer.replaceable is not value
    layer.replaceable = not value  # As it is.
    # It is loaded as it was, and goes on.
    model.save(tmp_path / "model.keras")
    twin = keras.saving.load_model(tmp_path / "model.keras")
    assert twin.layers[index].replaceable is not value
    for one in (model, twin):
        one.fit(*make_data(8), shuffle=False, verbose=0)
    for one, other in zip(model.optimizer.variables, twin.optimizer.variables):
        if "seed" not in one.path:
            np.testing.assert_allclose(to_numpy(one), to_numpy(other), 1e-5)
    with pytest.raises(ValueError, match=f"a `{kind.__name__}` was built"):
        twin.layers[index].replaceable = value


def test_until_then_it_takes_effect(tmp_path):
    model = make_model((4, 6, 5, 3))
    model.compile(_replacing(), "mse")
    model.layers[0].replaceable = False
    model.fit(*make_data(20), batch_size=2, verbose=0)
    assert list(model.optimizer.num_replaced()) == ["layer_1"]
    model.save(tmp_path / "model.keras")
    twin = keras.saving.load_model(tmp_path / "model.keras")
    assert [x.replaceable for x in twin.layers] == [False, True, True]
    assert twin.optimizer.num_replaced() == model.optimizer.num_replaced()


def test_the_next_optimizer_may_find_another():
    model = make_model((4, 6, 5, 3))
    train(model, _replacing(), make_data(4))
    model.compile(_replacing(), "mse")
    model.layers[0].replaceable = False
    model.fit(*make_data(20), batch_size=2, verbose=0)
    assert list(model.optimizer.num_replaced()) == ["layer_1"]


@pytest.mark.parametrize("value", ["no", 1, None])
def test_it_is_a_boolean(value):
    layer = layers.Dense(3)
    with pytest.raises(
        ValueError, match="`replaceable` must be `True` or `False`"
    ):
        layer.replaceable = value
    assert layer.replaceable


def test_attention():
    inputs = keras.Input((5, 6))
    attention = layers.MultiHeadAttention(2, 3)
    outputs = layers.Dense(2)(attention(inputs, inputs))
    model = keras.Model(inputs, outputs)
    attention.replaceable = ["value"]
    projections = {x.name: x for x in attention._flatten_layers()}
    assert projections["value"].replaceable
    assert not projections["attention_output"].replaceable
    x = np.random.default_rng(0).normal(size=(4, 5, 6))
    data = x.astype("float32"), np.zeros((4, 5, 2), "float32")
    train(model, _replacing(), data)
    assert list(model.optimizer.num_replaced()) == ["value"]
    for value in (True, False, ["output"]):
        with pytest.raises(ValueError, match="'.*' cannot change any more"):
            attention.replaceable = value
        assert attention.replaceable == ["value"]
        assert projections["value"].replaceable
    with pytest.raises(ValueError, match='a boolean, or a list of "value" and'):
        attention.replaceable = "value"
