"""Attention against a literal NumPy computation in float64.

The inner optimizer makes no steps, so that all weights are known: what changes
them is the replacement of units alone.
"""

import keras
import numpy as np
import pytest

from keras_plasticity.layers import Dense
from keras_plasticity.layers import GroupQueryAttention
from keras_plasticity.layers import MultiHeadAttention
from keras_plasticity.optimizers import ContinualBackprop
from tests.helpers import to_numpy

pytestmark = pytest.mark.usefixtures("fast_compilation")

_BATCH, _LENGTH, _FEATURES, _DIM = 4, 5, 6, 3
_NEW_WEIGHT = 0.3
_DECAY = 0.9
_KIND = {"kernel_initializer": keras.initializers.Constant(_NEW_WEIGHT)}


class _Layer:
    """The weights of a projection in float64, and the books of its units.

    Args:
        layer: The plastic layer.
        units: Integer, the number of its units.
    """

    def __init__(self, layer, units=None):
        self.kernel = to_numpy(layer.kernel).astype("float64")
        self.bias = to_numpy(layer.bias).astype("float64")
        self.units = self.bias.size if units is None else units
        self.age = np.zeros(self.units)
        self.raw_mean = np.zeros(self.units)
        self.raw_utility = np.zeros(self.units)
        self.count = 0.0

    def __call__(self, x):
        y = np.tensordot(x, self.kernel, 1) + self.bias
        return y

    def corrected(self, raw):
        scale = 1 - _DECAY ** np.maximum(self.age, 1)
        return np.where(self.age > 0, raw / scale, 0.0)


class _Attention:
    """Attention and a head, in NumPy.

    Attributes:
        heads: Of each head of the queries, the head of the values it reads.
    """

    def __init__(self, attention, head, num_heads, num_value_heads, mask):
        self.layers = {
            name: _Layer(getattr(attention, f"_{name}_dense"))
            for name in ("query", "key", "value")
        }
        self.output = _Layer(attention._output_dense)
        gate = getattr(attention, "_gate_dense", None)
        self.gate = None if gate is None else _Layer(gate)
        self.head = _Layer(head)
        self.heads = np.arange(num_heads) // (num_heads // num_value_heads)
        self.mask = mask

    def forward(self, x):
        """Returns what the output projection and the head receive."""
        q, k, v = (layer(x) for layer in self.layers.values())
        mixed = np.zeros((*x.shape[:2], len(self.heads), _DIM))
        for n, head in enumerate(self.heads):
            scores = q[:, :, n] @ k[:, :, head].swapaxes(1, 2) / _DIM**0.5
            scores = np.where(self.mask, scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            mixed[:, :, n] = weights @ v[:, :, head]
        if self.gate is not None:
            mixed *= 1 / (1 + np.exp(-self.gate(x)))
        y = np.tensordot(mixed, self.output.kernel, 2) + self.output.bias
        return mixed, y, self.head(y)

    def step(self, x, rate, transfer_mean):
        """Updates all books, then replaces units.

        Returns:
            List of the replaced units of the values, and of the output.
        """
        mixed, y, _ = self.forward(x)
        value, output = self.layers["value"], self.output
        # By unit: the features that it is read as.
        mixed = mixed.reshape(-1, len(self.heads), _DIM)
        heads = [np.flatnonzero(self.heads == h) for h in set(self.heads)]
        features = [
            (mixed[:, of_head, d], output.kernel[of_head, d])
            for of_head in heads
            for d in range(_DIM)
        ]
        y = y.reshape(-1, y.shape[-1])
        replaced = [
            self._test(
                value, features, value.kernel.reshape(_FEATURES, -1), rate
            ),
            self._test(
                output,
                [(y[:, [u]], self.head.kernel[[u]]) for u in range(y.shape[1])],
                output.kernel.reshape(-1, y.shape[1]),
                rate,
            ),
        ]
        for unit in replaced[0]:
            of_head, d = heads[unit // _DIM], unit % _DIM
            if transfer_mean:
                mean = value.corrected(value.raw_mean)[unit]
                output.bias += mean * output.kernel[of_head, d].sum(0)
            value.kernel[:, unit // _DIM, d] = _NEW_WEIGHT
            value.bias[unit // _DIM, d] = 0
            output.kernel[of_head, d] = 0
            _forget(value, unit)
        for unit in replaced[1]:
            if transfer_mean:
                mean = output.corrected(output.raw_mean)[unit]
                self.head.bias += mean * self.head.kernel[unit]
            output.kernel[..., unit] = _NEW_WEIGHT
            output.bias[unit] = 0
            self.head.kernel[unit] = 0
            _forget(output, unit)
        return replaced

    def _test(self, layer, features, incoming, rate):
        layer.age += 1
        means = np.array([h.mean() for h, _ in features])
        layer.raw_mean = _DECAY * layer.raw_mean + (1 - _DECAY) * means
        centers = layer.corrected(layer.raw_mean)
        now = []
        for (h, outgoing), center in zip(features, centers):
            deviation = np.abs(h - center).mean(0)
            now.append(np.mean(deviation * np.abs(outgoing).mean(-1)))
        now = np.array(now) / np.abs(incoming).mean(0)
        layer.raw_utility = _DECAY * layer.raw_utility + (1 - _DECAY) * now
        mature = np.flatnonzero(layer.age > 1)
        layer.count += rate * len(mature)
        due = int(layer.count + 1e-9)
        layer.count -= due
        utility = layer.corrected(layer.raw_utility)
        return mature[np.argsort(utility[mature])][:due].tolist()


def _forget(layer, unit):
    layer.age[unit] = layer.raw_mean[unit] = layer.raw_utility[unit] = 0


_CAUSAL = np.tril(np.ones((_LENGTH, _LENGTH), bool))
# The layer, its numbers of heads of queries and of values, its further call
# arguments, and what it may attend to.
_CASES = {
    "multi_head": (
        lambda: MultiHeadAttention(2, _DIM, output_shape=4, **_KIND),
        (2, 2),
        {},
        True,
    ),
    # By an explicit sum, in the place of Keras' fused operation.
    "causal_with_scores": (
        lambda: MultiHeadAttention(
            2, _DIM, output_shape=4, use_gate=True, **_KIND
        ),
        (2, 2),
        {"use_causal_mask": True, "return_attention_scores": True},
        _CAUSAL,
    ),
    "grouped": (
        lambda: GroupQueryAttention(_DIM, 4, 2, **_KIND),
        (4, 2),
        {"use_causal_mask": True},
        _CAUSAL,
    ),
}


def _make(case):
    make, heads, kwargs, mask = _CASES[case]
    attention, head = make(), Dense(2, name="head")
    inputs = keras.Input((_LENGTH, _FEATURES))
    x = attention(inputs, inputs, **kwargs)
    x = x[0] if isinstance(x, (tuple, list)) else x
    model = keras.Model(inputs, head(x))
    rng = np.random.default_rng(3)
    for variable in model.trainable_variables:
        if "statistics" not in variable.path:
            variable.assign(rng.normal(0, 0.5, variable.shape))
    return model, attention, _Attention(attention, head, *heads, mask)


@pytest.mark.parametrize("transfer_mean", [False, True])
@pytest.mark.parametrize("case", _CASES)
def test_all_that_a_step_does(case, transfer_mean):
    model, attention, oracle = _make(case)
    rate = 0.2
    optimizer = ContinualBackprop(
        keras.optimizers.SGD(0.0),
        replacement_rate=rate,
        maturity_threshold=1,
        decay_rate=_DECAY,
        utility="overall",
        transfer_mean=transfer_mean,
    )
    model.compile(
        optimizer, "mse", run_eagerly=keras.backend.backend() == "tensorflow"
    )
    # Without this, TensorFlow makes its first forward pass before the optimizer
    # knows which features have a mean in common.
    optimizer.build(model.trainable_variables)
    value, output = attention._value_dense, attention._output_dense
    rng = np.random.default_rng(5)
    replaced = []
    for _ in range(6):
        x = rng.normal(0.3, 1, (_BATCH, _LENGTH, _FEATURES))
        y = np.zeros((_BATCH, _LENGTH, 2))
        model.train_on_batch(x.astype("float32"), y.astype("float32"))
        replaced.append(oracle.step(x.astype("float32"), rate, transfer_mean))
        pairs = (value, oracle.layers["value"]), (output, oracle.output)
        for layer, expected in pairs:
            for actual, wanted in (
                (layer.kernel, expected.kernel),
                (layer.bias, expected.bias),
                (layer.age, expected.age),
                (layer.mean_activation, expected.corrected(expected.raw_mean)),
                (layer.utility, expected.corrected(expected.raw_utility)),
            ):
                np.testing.assert_allclose(
                    to_numpy(actual), wanted, rtol=2e-5, atol=2e-6
                )
        for variable, wanted in (
            (model.layers[-1].kernel, oracle.head.kernel),
            (model.layers[-1].bias, oracle.head.bias),
        ):
            np.testing.assert_allclose(
                to_numpy(variable), wanted, rtol=2e-5, atol=2e-6
            )
    assert all(sum(map(len, units)) > 2 for units in zip(*replaced))
    assert sum(optimizer.num_replaced().values()) == sum(
        len(units) for both in replaced for units in both
    )
    x = rng.normal(0, 1, (_BATCH, _LENGTH, _FEATURES)).astype("float32")
    np.testing.assert_allclose(
        model.predict(x, verbose=0), oracle.forward(x)[-1], rtol=1e-4, atol=1e-5
    )
