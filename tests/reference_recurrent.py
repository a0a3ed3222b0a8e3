"""Continual backpropagation for recurrent networks, literal, in NumPy.

The oracle of the tests: float64, one time step after the other, gradients by
central differences. It shares nothing with the library.
"""

import math
from fractions import Fraction

import numpy as np

_GATES = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


# A weight may be one of several, counted by an axis in front, which all that is
# computed from it has, too.


def _plus_bias(x, bias):
    return x + np.expand_dims(bias, -2)


def _simple_rnn(x, state, kernel, recurrent, bias):
    (h,) = state
    return [np.tanh(_plus_bias(x @ kernel + h @ recurrent, bias))]


def _gru(x, state, kernel, recurrent, bias):
    """With two rows of biases: the reset gate after the recurrent kernel."""
    (h,) = state
    gates = _plus_bias(x @ kernel, bias[..., 0, :])
    z, r, candidate = np.split(gates, 3, axis=-1)
    gates = _plus_bias(h @ recurrent, bias[..., 1, :])
    z_h, r_h, candidate_h = np.split(gates, 3, axis=-1)
    z, r = _sigmoid(z + z_h), _sigmoid(r + r_h)
    return [z * h + (1 - z) * np.tanh(candidate + r * candidate_h)]


def _lstm(x, state, kernel, recurrent, bias):
    h, c = state
    gates = _plus_bias(x @ kernel + h @ recurrent, bias)
    i, f, candidate, o = np.split(gates, 4, axis=-1)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(candidate)
    return [_sigmoid(o) * np.tanh(c), c]


_STEPS = {"SimpleRNN": _simple_rnn, "GRU": _gru, "LSTM": _lstm}


class Recurrent:
    """A recurrent layer.

    Args:
        kind: String, the class in Keras.
        weights: List of three arrays.
        backwards: Boolean, whether it begins with the last step.
    """

    def __init__(self, kind, weights, backwards=False):
        self.kind = kind
        self.weights = [np.array(w, "float64") for w in weights]
        self.backwards = backwards
        self.units = len(self.weights[1])

    def run(self, x, mask=None):
        """Makes all steps.

        Returns:
            Tuple of the outputs `(batch, steps, units)`, in the order of the
            steps made, of an array of all states `(units,)` that the recurrent
            kernel read, and of one of all inputs `(features,)` that the
            kernel read.
        """
        *_, batch, steps, _ = x.shape
        if mask is None:
            mask = np.ones((batch, steps), bool)
        if self.backwards:
            x, mask = x[..., ::-1, :], mask[:, ::-1]
        num_states = 2 if self.kind == "LSTM" else 1
        state = [np.zeros((batch, self.units)) for _ in range(num_states)]
        outputs, states_read, inputs_read = [], [], []
        for t in range(steps):
            states_read.append(state[0][..., mask[:, t], :])
            inputs_read.append(x[..., mask[:, t], t, :])
            new = _STEPS[self.kind](x[..., t, :], state, *self.weights)
            is_made = mask[:, t, None]
            state = [np.where(is_made, n, s) for n, s in zip(new, state)]
            outputs.append(state[0])
        return np.stack(outputs, axis=-2), states_read, inputs_read

    def columns(self, unit):
        """Where the weights of a unit lie in the last axis, for each gate."""
        return [gate * self.units + unit for gate in range(_GATES[self.kind])]


class Network:
    """Recurrent layers, the last output of which goes to a linear layer."""

    def __init__(self, layers, kernel, bias):
        self.layers = layers
        self.head = [np.array(w, "float64") for w in (kernel, bias)]

    def run(self, x, mask=None):
        """The outputs, and for each layer what its two kernels read."""
        h = np.asarray(x, "float64")
        read = []
        for layer in self.layers:
            h, states, inputs = layer.run(h, mask)
            read.append((states, inputs))
        last = h[..., -1, :]
        kernel, bias = self.head
        return _plus_bias(last @ kernel, bias), read, last

    def loss(self, x, y, mask):
        return np.mean((self.run(x, mask)[0] - y) ** 2, axis=(-2, -1))

    def all_weights(self):
        result = [w for layer in self.layers for w in layer.weights]
        return [*result, *self.head]

    def gradients(self, x, y, mask, step=1e-5):
        gradients = []
        for weights in [*(layer.weights for layer in self.layers), self.head]:
            for i, weight in enumerate(weights):
                change = step * np.eye(weight.size)
                change = change.reshape(-1, *weight.shape)
                losses = []
                for changed in (weight + change, weight - change):
                    weights[i] = changed
                    losses.append(self.loss(x, y, mask))
                weights[i] = weight
                gradient = (losses[0] - losses[1]) / (2 * step)
                gradients.append(gradient.reshape(weight.shape))
        return gradients


class ContinualBackprop:
    """Stochastic gradient descent, then generate and test.

    Args:
        network: A `Network`, trained in place.
        learning_rate, momentum: Of the descent.
        replacement_rate, maturity_threshold, decay_rate: As in the library.
        new_incoming: Function `(n, fan_in) -> array`, the n-th column drawn.
    """

    def __init__(
        self,
        network,
        learning_rate,
        momentum,
        replacement_rate,
        maturity_threshold,
        decay_rate,
        new_incoming,
    ):
        self.network = network
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.velocities = [np.zeros_like(w) for w in network.all_weights()]
        self.rate = Fraction(replacement_rate)
        self.maturity_threshold = maturity_threshold
        self.decay_rate = decay_rate
        self.new_incoming = new_incoming
        self.draws = 0
        self.age = [np.zeros(layer.units, int) for layer in network.layers]
        self.raw_utility = [np.zeros(layer.units) for layer in network.layers]
        # One for each of the two that read a layer's units.
        self.raw_means = [
            np.zeros((2, layer.units)) for layer in network.layers
        ]
        self.counts = [Fraction(0) for _ in network.layers]
        self.closest_choice = math.inf

    def step(self, x, y, mask=None):
        """Trains on one batch; returns the units replaced in each layer."""
        network = self.network
        _, read, last = network.run(x, mask)
        gradients = network.gradients(x, y, mask)
        for weight, velocity, gradient in zip(
            network.all_weights(), self.velocities, gradients
        ):
            velocity *= self.momentum
            velocity -= self.learning_rate * gradient
            weight += velocity
        chosen = []
        for i in range(len(network.layers)):
            states = np.concatenate(read[i][0])
            is_last = i + 1 == len(read)
            behind = last if is_last else np.concatenate(read[i + 1][1])
            chosen.append(self._test(i, states, behind))
        for i, units in enumerate(chosen):
            for unit in units:
                self._replace(i, unit)
        return chosen

    def _kernel_behind(self, i):
        if i + 1 < len(self.network.layers):
            return self.network.layers[i + 1].weights[0]
        return self.network.head[0]

    def _test(self, i, states, behind):
        layer = self.network.layers[i]
        decay = self.decay_rate
        self.age[i] += 1
        contributions, sizes = [], []
        kernels = (layer.weights[1], self._kernel_behind(i))
        for j, (h, kernel) in enumerate(zip((states, behind), kernels)):
            mean = self.raw_means[i][j]
            mean[:] = decay * mean + (1 - decay) * h.mean(axis=0)
            magnitude = np.abs(h).mean(axis=0)
            contributions.append(magnitude * np.abs(kernel).mean(axis=1))
            sizes.append(kernel.shape[1])
        now = np.average(contributions, axis=0, weights=sizes)
        raw = self.raw_utility[i]
        raw[:] = decay * raw + (1 - decay) * now
        mature = np.flatnonzero(self.age[i] > self.maturity_threshold)
        self.counts[i] += self.rate * len(mature)
        due = math.floor(self.counts[i])
        self.counts[i] -= due
        utility = self.utility(i)[mature]
        order = np.argsort(utility, kind="stable")
        if 0 < due < len(mature):
            gone, kept = utility[order[due - 1]], utility[order[due]]
            gap = (kept - gone) / kept
            self.closest_choice = min(self.closest_choice, gap)
        return list(mature[order[:due]])

    def _replace(self, i, unit):
        layer = self.network.layers[i]
        kernel, recurrent, bias = layer.weights
        velocities = self.velocities[3 * i :]
        columns = layer.columns(unit)
        for weight, velocity in zip((kernel, recurrent), velocities):
            new = self.new_incoming(self.draws, len(weight))
            self.draws += 1
            for column in columns:
                weight[:, column] = new
                velocity[:, column] = 0
        bias[..., columns] = 0
        velocities[2][..., columns] = 0
        if layer.kind == "LSTM":
            bias[columns[1]] = 1
        # After the columns: a new unit does not read itself.
        recurrent[unit] = 0
        velocities[1][unit] = 0
        self._kernel_behind(i)[unit] = 0
        velocities[3][unit] = 0
        self.age[i][unit] = 0
        self.raw_utility[i][unit] = 0
        self.raw_means[i][:, unit] = 0

    def _corrected(self, i, raw):
        age = self.age[i]
        correction = 1 - self.decay_rate ** np.maximum(age, 1)
        return np.where(age > 0, raw / correction, 0.0)

    def utility(self, i):
        return self._corrected(i, self.raw_utility[i])

    def mean_activation(self, i):
        return self._corrected(i, self.raw_means[i].mean(axis=0))
