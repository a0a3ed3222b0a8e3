"""Continual backpropagation for dense networks, slow and literal, in NumPy.

The oracle of the tests. It is written from the paper and the description of
the authors' code, shares nothing with the library, computes in float64, and
takes the plain road wherever there is one: raw running means divided by
`1 - decay**age`, fractions for the count, a sort to choose the units.
"""

import dataclasses
import math
from fractions import Fraction

import numpy as np


class Network:
    """A dense network with hand-written back-propagation.

    `kernels` and `biases` are lists of arrays; a bias may be `None`.
    """

    def __init__(self, kernels, biases, activation="relu", loss="softmax"):
        self.kernels = [np.array(k, "float64") for k in kernels]
        self.biases = [
            None if b is None else np.array(b, "float64") for b in biases
        ]
        self.activation = activation
        self.loss = loss

    def forward(self, x):
        """Returns the activations of all hidden layers, and the outputs."""
        hidden = []
        h = np.asarray(x, "float64")
        for i, kernel in enumerate(self.kernels):
            h = h @ kernel
            if self.biases[i] is not None:
                h = h + self.biases[i]
            if i < len(self.kernels) - 1:
                h = np.tanh(h) if self.activation == "tanh" else h * (h > 0)
                hidden.append(h)
        return hidden, h

    def loss_of(self, outputs, y):
        """Returns the loss and its gradient with respect to the outputs."""
        batch = len(outputs)
        if self.loss == "mse":
            error = outputs - np.asarray(y, "float64").reshape(outputs.shape)
            return np.mean(error**2), 2 * error / error.size
        y = np.asarray(y).reshape(-1)
        shifted = outputs - outputs.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        gradient = np.exp(log_p)
        gradient[np.arange(batch), y] -= 1
        return -np.mean(log_p[np.arange(batch), y]), gradient / batch

    def backward(self, x, hidden, delta):
        """Returns the gradients of all kernels and biases."""
        kernels = [None] * len(self.kernels)
        biases = [None] * len(self.kernels)
        inputs = [np.asarray(x, "float64")] + hidden
        for i in reversed(range(len(self.kernels))):
            kernels[i] = inputs[i].T @ delta
            biases[i] = delta.sum(axis=0)
            if i > 0:
                h = hidden[i - 1]
                slope = 1 - h**2 if self.activation == "tanh" else h > 0
                delta = (delta @ self.kernels[i].T) * slope
        return kernels, biases


class SGD:
    """w <- w + v, v <- momentum * v - lr * g. One object for each weight."""

    def __init__(self, shape, learning_rate, momentum=0.0):
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.slots = [np.zeros(shape)]

    def step(self, weight, gradient, t):
        (velocity,) = self.slots
        velocity *= self.momentum
        velocity -= self.learning_rate * gradient
        weight += velocity


class Adam:
    def __init__(
        self,
        shape,
        learning_rate,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-7,
    ):
        self.learning_rate = learning_rate
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.slots = [np.zeros(shape), np.zeros(shape)]

    def step(self, weight, gradient, t):
        m, v = self.slots
        alpha = self.learning_rate * math.sqrt(1 - self.beta_2**t)
        alpha /= 1 - self.beta_1**t
        m += (1 - self.beta_1) * (gradient - m)
        v += (1 - self.beta_2) * (gradient**2 - v)
        weight -= alpha * m / (np.sqrt(v) + self.epsilon)


@dataclasses.dataclass
class HiddenLayer:
    """The books of one hidden layer; `u` and `f` are the raw means."""

    units: int

    def __post_init__(self):
        self.age = np.zeros(self.units, int)
        self.u = np.zeros(self.units)
        self.f = np.zeros(self.units)
        self.count = Fraction(0)
        self.num_replaced = 0

    def corrected(self, mean, decay_rate):
        result = np.zeros(self.units)
        for i in range(self.units):
            if self.age[i] > 0:
                result[i] = mean[i] / (1 - decay_rate ** self.age[i])
        return result


class ContinualBackprop:
    """Back-propagation, then generate and test.

    Args:
        network: A `Network`, trained in place.
        make_optimizer: Function from the shape of a weight to its optimizer.
        replacement_rate: String or `Fraction`, taken exactly.
        maturity_threshold, decay_rate, utility, transfer_mean,
            reset_optimizer_state: As in the library.
        new_incoming: Function `(n, fan_in) -> array`, the incoming weights of
            the n-th unit replaced, counted from 0 over all layers.
    """

    def __init__(
        self,
        network,
        make_optimizer,
        replacement_rate,
        maturity_threshold,
        decay_rate,
        utility,
        new_incoming,
        transfer_mean=False,
        reset_optimizer_state=True,
    ):
        self.network = network
        self.kernel_optimizers = [
            make_optimizer(k.shape) for k in network.kernels
        ]
        self.bias_optimizers = [
            None if b is None else make_optimizer(b.shape)
            for b in network.biases
        ]
        self.rate = Fraction(replacement_rate)
        self.maturity_threshold = maturity_threshold
        self.decay_rate = decay_rate
        self.utility = utility
        self.new_incoming = new_incoming
        self.transfer_mean = transfer_mean
        self.reset_optimizer_state = reset_optimizer_state
        self.layers = [HiddenLayer(k.shape[1]) for k in network.kernels[:-1]]
        self.t = 0
        self.draws = 0
        # How close a choice ever was: the smallest relative gap between the
        # best unit replaced and the worst one kept. Float32 cannot be asked
        # to decide closer than its own rounding.
        self.closest_choice = math.inf
        self.most_at_once = 0
        # Weights between two units replaced in one step.
        self.shared_weights = 0

    def step(self, x, y):
        """Trains on one batch.

        Returns:
            Tuple of the loss, and for each hidden layer the array of the
            units replaced.
        """
        network = self.network
        hidden, outputs = network.forward(x)
        loss, delta = network.loss_of(outputs, y)
        kernel_grads, bias_grads = network.backward(x, hidden, delta)
        self.t += 1
        for i in range(len(network.kernels)):
            self.kernel_optimizers[i].step(
                network.kernels[i], kernel_grads[i], self.t
            )
            if network.biases[i] is not None:
                self.bias_optimizers[i].step(
                    network.biases[i], bias_grads[i], self.t
                )
        chosen = [self._test(i, h) for i, h in enumerate(hidden)]
        for i, units in enumerate(chosen):
            for unit in units:
                self._replace(i, unit)
        self.most_at_once = max([self.most_at_once] + [len(c) for c in chosen])
        for first, second in zip(chosen, chosen[1:]):
            self.shared_weights += len(first) * len(second)
        return loss, chosen

    def _test(self, i, h):
        layer = self.layers[i]
        decay = self.decay_rate
        layer.age += 1
        layer.f = decay * layer.f + (1 - decay) * h.mean(axis=0)
        outgoing = np.abs(self.network.kernels[i + 1]).mean(axis=1)
        incoming = np.abs(self.network.kernels[i]).mean(axis=0)
        deviation = np.abs(h - layer.corrected(layer.f, decay)).mean(axis=0)
        magnitude = np.abs(h).mean(axis=0)
        now = {
            "contribution": magnitude * outgoing,
            "mean_corrected_contribution": deviation * outgoing,
            "adaptation": 1 / incoming,
            "overall": deviation * outgoing / incoming,
            "weight_magnitude": outgoing,
        }[self.utility]
        layer.u = decay * layer.u + (1 - decay) * now
        utility = layer.corrected(layer.u, decay)
        mature = np.flatnonzero(layer.age > self.maturity_threshold)
        layer.count += self.rate * len(mature)
        due = math.floor(layer.count)
        layer.count -= due
        layer.num_replaced += due
        ranked = mature[np.argsort(utility[mature], kind="stable")]
        if 0 < due < len(ranked):
            kept, gone = utility[ranked[due]], utility[ranked[due - 1]]
            gap = (kept - gone) / max(kept, 1e-30)
            self.closest_choice = min(self.closest_choice, gap)
        return list(ranked[:due])

    def _replace(self, i, unit):
        kernels, biases = self.network.kernels, self.network.biases
        layer = self.layers[i]
        if self.transfer_mean:
            mean = layer.corrected(layer.f, self.decay_rate)[unit]
            biases[i + 1] += mean * kernels[i + 1][unit]
        kernels[i][:, unit] = self.new_incoming(self.draws, len(kernels[i]))
        self.draws += 1
        if biases[i] is not None:
            biases[i][unit] = 0
        kernels[i + 1][unit] = 0
        layer.u[unit] = 0
        layer.f[unit] = 0
        layer.age[unit] = 0
        if self.reset_optimizer_state:
            for slot in self.kernel_optimizers[i].slots:
                slot[:, unit] = 0
            if biases[i] is not None:
                for slot in self.bias_optimizers[i].slots:
                    slot[unit] = 0
            for slot in self.kernel_optimizers[i + 1].slots:
                slot[unit] = 0

    def utilities(self, i):
        return self.layers[i].corrected(self.layers[i].u, self.decay_rate)

    def mean_activations(self, i):
        return self.layers[i].corrected(self.layers[i].f, self.decay_rate)
