"""Several models under one optimizer, in a training loop by hand."""

import keras
import pytest

import keras_plasticity
from keras_plasticity.layers import Dense


def _model(name, *sizes, **kwargs):
    """A chain of layers; all but the last are hidden."""
    *hidden, last = sizes[1:]
    layers = [
        Dense(units, "relu", name=f"{name}_{i}")
        for i, units in enumerate(hidden)
    ]
    last = Dense(last, name=f"{name}_last", **kwargs)
    return keras.Sequential([keras.Input((sizes[0],)), *layers, last])


def _optimizer():
    return keras_plasticity.optimizers.ContinualBackprop(
        keras.optimizers.SGD(0.1, momentum=0.5),
        replacement_rate=0.1,
        maturity_threshold=2,
        seed=3,
    )


def _built(*models):
    """An optimizer built on several models; in tests, warnings are errors."""
    optimizer = _optimizer()
    optimizer.build([v for m in models for v in m.trainable_variables])
    return optimizer


_MAY_READ = "'encoder_last' will not be replaced.*call both this layer and "


def test_the_output_of_one_may_be_the_input_of_another():
    encoder = _model("encoder", 4, 6, 5)
    head, other = _model("head", 5, 4, 3), _model("other", 5, 3)
    with pytest.raises(UserWarning, match=_MAY_READ + "'head_0'. W.*connect"):
        _built(encoder, head)
    with pytest.raises(UserWarning, match="'head_0' and 'other_last'. W"):
        _built(encoder, head, other)
    # The order is that of whoever gives the variables.
    with pytest.raises(UserWarning, match=_MAY_READ + "'head_0'. W"):
        _built(head, encoder)


def test_something_may_be_between():
    encoder = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras_plasticity.layers.Conv2D(3, 3, name="encoder_last"),
        ]
    )
    # Flattened by a function.
    head = keras.Sequential([keras.Input((48,)), Dense(2, name="head")])
    with pytest.raises(UserWarning, match=_MAY_READ + "'head'"):
        _built(encoder, head)
    head = keras.Sequential(
        [keras.Input((48,)), keras.layers.ReLU(), keras.layers.Dense(4)]
        + [Dense(2)]
    )
    with pytest.raises(UserWarning, match=_MAY_READ + "'dense"):
        _built(encoder, head)


@pytest.mark.parametrize(
    "make",
    [
        lambda: [_model("actor", 8, 6, 2), _model("critic", 8, 6, 1)],
        # Of the same kind, side by side.
        lambda: [_model(name, 4, 6, 4) for name in "abc"],
        lambda: [_model(name, 1, 6, 1) for name in "ab"],
        # It says so.
        lambda: [
            _model("encoder", 4, 6, 5, replaceable=False),
            _model("head", 5, 4, 3),
        ],
    ],
    ids=["actor_and_critic", "ensemble", "one_number", "not_replaceable"],
)
def test_models_side_by_side(make):
    models = make()
    optimizer = _built(*models)
    assert len(optimizer.num_replaced()) == len(models)


def test_one_model_calls_the_others():
    encoder = _model("encoder", 4, 6, 5)
    heads = [_model("head", 5, 4, 3), _model("other", 5, 3)]
    inputs = keras.Input((4,))
    x = encoder(inputs)
    model = keras.Model(inputs, [head(x) for head in heads])
    model(keras.ops.zeros((1, 4)))
    optimizer = _built(encoder, *heads)
    replaced = optimizer.num_replaced()
    assert list(replaced) == ["encoder_0", "encoder_last", "head_0"]
