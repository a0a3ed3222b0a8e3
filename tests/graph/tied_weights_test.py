"""Weights that two layers share, and experts that share the inputs."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_plasticity import graph
from keras_plasticity import keras_compat
from keras_plasticity import layers
from keras_plasticity.layers import Dense
from keras_plasticity.layers import PlasticLayer


def _find(model, inputs=None):
    plastic = [
        x for x in model._flatten_layers() if isinstance(x, PlasticLayer)
    ]
    found = graph.find_connections(plastic, model, inputs)
    return {each.layer.name: each for each in found}


class _Tied(keras.Model):
    """An embedding whose vectors are also the kernel of the outputs."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.embedding = layers.Embedding(9, 4, name="embedding")
        self.hidden = Dense(4, activation="relu", name="hidden")

    def call(self, tokens):
        x = self.hidden(ops.mean(self.embedding(tokens), axis=1))
        if self.how == "none":
            return x
        table = self.embedding.embeddings
        if self.how == "transposed":
            return ops.matmul(x, ops.transpose(table))
        return ops.einsum("bd,vd->bv", x, table)


@pytest.mark.parametrize("how", ["none", "transposed", "einsum"])
def test_embedding_as_the_kernel_of_the_outputs(how):
    model = _Tied(how)
    model(np.zeros((2, 5), "int32"))
    found = _find(model, keras.KerasTensor((2, 5), "int32"))
    if how == "none":
        assert found["embedding"].error is None
        assert list(found["embedding"].consumers) == [model.hidden]
        return
    with pytest.raises(ValueError, match="embeddings' are tied: .* uses them"):
        graph.check([found["embedding"]])
    with pytest.raises(ValueError, match="adds units up"):
        graph.check([found["hidden"]])


def test_layers_with_one_kernel():
    inputs = keras.Input((4,))
    first, second = Dense(4, name="first"), Dense(4, name="second")
    for layer in (first, second):
        layer.build((None, 4))
    with keras_compat.unlocked(second):
        second._kernel = first._kernel
    x = Dense(4, name="before")(inputs)
    x = ops.relu(second(ops.relu(first(x))))
    model = keras.Model(inputs, Dense(2, name="last")(x))
    found = _find(model)
    # Those who read it, and those whose units it reads.
    for name in ("before", "first", "second"):
        with pytest.raises(ValueError, match="kernel' are tied"):
            graph.check([found[name]])


def test_a_plain_layer_with_the_same_kernel():
    inputs = keras.Input((4,))
    plastic, plain = Dense(4, name="plastic"), keras.layers.Dense(4, name="p")
    for layer in (plastic, plain):
        layer.build((None, 4))
    with keras_compat.unlocked(plain):
        plain._kernel = plastic._kernel
    outputs = Dense(2, name="last")(plastic(plain(inputs)))
    found = _find(keras.Model(inputs, outputs))
    with pytest.raises(ValueError, match=r"are tied: 'p' \(`Dense`\) uses"):
        graph.check([found["plastic"]])


@pytest.mark.parametrize("gate", ["softmax", "top"])
def test_mixture_of_experts_by_hand(gate):
    """Hidden units of experts are replaced; what a gate chooses is not."""
    inputs = keras.Input((6,))
    scores = Dense(3, name="gate")(inputs)
    scores = ops.softmax(scores)
    if gate == "top":
        largest = ops.max(scores, axis=-1, keepdims=True)
        scores = ops.where(scores >= largest, scores, 0.0)
    outputs = []
    for i in range(3):
        hidden = Dense(5, activation="relu", name=f"up_{i}")(inputs)
        expert = Dense(4, name=f"down_{i}")(hidden)
        outputs.append(scores[:, i : i + 1] * expert)
    outputs = keras.layers.Add()(outputs)
    found = _find(keras.Model(inputs, Dense(2, name="last")(outputs)))
    for i in range(3):
        up, down = found[f"up_{i}"], found[f"down_{i}"]
        assert [each.name for each in up.consumers] == [f"down_{i}"]
        assert up.error is up.skip_reason is None
        assert "merged with others" in down.skip_reason
    assert not found["gate"].consumers and found["gate"].error


def test_experts_side_by_side():
    """All in one kernel: each expert is a group of units of its own."""
    inputs = keras.Input((6,))
    x = layers.EinsumDense("bi,ieh->beh", (3, 5), name="up")(inputs)
    gate = ops.softmax(keras.layers.Dense(3)(inputs))
    x = ops.relu(x) * gate[:, :, None]
    outputs = layers.EinsumDense("beh,eho->bo", (2,), name="down")(x)
    found = _find(keras.Model(inputs, outputs))
    (feature_map,) = found["up"].consumers.values()
    assert feature_map.is_identity and found["up"].error is None
