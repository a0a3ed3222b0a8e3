"""ReDo and self-normalized resets for dense networks, literal, in NumPy.

Oracles of the tests, in float64, written from the papers and from the words
that describe the authors' code. They share nothing with the library: scores
are means over lists of batches, histograms are lists of numbers, and a
quantile is found by sorting them.
"""

import math

import numpy as np


class _Resets:
    """Back-propagation and, after each update, new starts for some units.

    Args:
        network: A `reference_algorithm.Network`, trained in place.
        make_optimizer: Function from the shape of a weight to its optimizer.
        new_incoming: Function `(n, fan_in) -> array`, the incoming weights of
            the n-th unit replaced, counted from 0 over all layers.
    """

    last_layer_first = False
    resets_bias_slots = True

    def __init__(self, network, make_optimizer, new_incoming):
        self.network = network
        self.kernel_optimizers = [
            make_optimizer(k.shape) for k in network.kernels
        ]
        self.bias_optimizers = [make_optimizer(b.shape) for b in network.biases]
        self.new_incoming = new_incoming
        self.t = 0
        self.draws = 0
        # How close a decision ever was: float32 cannot be asked to decide
        # closer than its own rounding.
        self.closest = math.inf
        self.most_at_once = 0
        # Weights between two units replaced in one step.
        self.shared_weights = 0

    @property
    def num_hidden(self):
        return len(self.network.kernels) - 1

    def step(self, x, y):
        """Trains on one batch.

        Returns:
            Tuple of the loss, and for each hidden layer the units replaced.
        """
        network = self.network
        hidden, outputs = network.forward(x)
        loss, delta = network.loss_of(outputs, y)
        kernel_grads, bias_grads = network.backward(x, hidden, delta)
        pre_activations = [
            inputs @ kernel + bias
            for inputs, kernel, bias in zip(
                [np.asarray(x, "float64"), *hidden],
                network.kernels,
                network.biases,
            )
        ]
        self.t += 1
        for i in range(len(network.kernels)):
            self.kernel_optimizers[i].step(
                network.kernels[i], kernel_grads[i], self.t
            )
            self.bias_optimizers[i].step(
                network.biases[i], bias_grads[i], self.t
            )
        chosen = self.choose(hidden, pre_activations[:-1])
        order = range(self.num_hidden)
        for i in reversed(order) if self.last_layer_first else order:
            for unit in chosen[i]:
                self._replace(i, unit)
        self.after_resets()
        self.most_at_once = max(self.most_at_once, *map(len, chosen))
        for first, second in zip(chosen, chosen[1:]):
            self.shared_weights += len(first) * len(second)
        return loss, chosen

    def choose(self, hidden, pre_activations):
        raise NotImplementedError

    def after_resets(self):
        pass

    def _replace(self, i, unit):
        kernels, biases = self.network.kernels, self.network.biases
        kernels[i][:, unit] = self.new_incoming(self.draws, len(kernels[i]))
        self.draws += 1
        biases[i][unit] = 0
        kernels[i + 1][unit] = 0
        for slot in self.kernel_optimizers[i].slots:
            slot[:, unit] = 0
        for slot in self.kernel_optimizers[i + 1].slots:
            slot[unit] = 0
        if self.resets_bias_slots:
            for slot in self.bias_optimizers[i].slots:
                slot[unit] = 0


class ReDo(_Resets):
    last_layer_first = True
    resets_bias_slots = False

    def __init__(self, *args, threshold, period, score_updates):
        super().__init__(*args)
        self.threshold = threshold
        self.period = period
        self.score_updates = score_updates
        self.batches = []
        self.scores = None

    def choose(self, hidden, pre_activations):
        self.batches.append([np.abs(h).mean(axis=0) for h in hidden])
        update = self.t - 1  # As the authors count: from 0.
        if update == 0 or update % self.period != 0:
            return [[] for _ in hidden]
        recent = self.batches[-self.score_updates :]
        self.scores = []
        for i in range(self.num_hidden):
            magnitude = sum(batch[i] for batch in recent) / len(recent)
            self.scores.append(magnitude / (magnitude.mean() + 1e-9))
        for score in self.scores:
            gaps = np.abs(score - self.threshold)
            self.closest = min(self.closest, gaps.min())
        return [
            [u for u in range(len(s)) if s[u] <= self.threshold]
            for s in self.scores
        ]


class SelfNormalizedResets(_Resets):
    def __init__(
        self,
        *args,
        quantile,
        min_threshold,
        max_threshold,
        initial_threshold,
        threshold_period,
    ):
        super().__init__(*args)
        self.quantile = quantile
        self.min_threshold = min_threshold
        self.max_threshold = max_threshold
        self.threshold_period = threshold_period
        units = [kernel.shape[1] for kernel in self.network.kernels[:-1]]
        self.silence = [[0] * n for n in units]
        self.threshold = [[initial_threshold] * n for n in units]
        self.events = [[[] for _ in range(n)] for n in units]

    def choose(self, hidden, pre_activations):
        chosen = []
        for i, values in enumerate(pre_activations):
            # A unit's largest value decides. Exactly 0 (no input is active, no
            # bias) is no close decision.
            largest = values.max(axis=0)
            distances = np.abs(largest[largest != 0])
            self.closest = min(self.closest, distances.min(initial=math.inf))
            chosen.append([])
            for unit in range(values.shape[1]):
                if any(values[:, unit] > 0):
                    self._note(i, unit)
                    continue
                self.silence[i][unit] += len(values)
                if self.silence[i][unit] >= self.threshold[i][unit]:
                    self._note(i, unit)
                    chosen[i].append(unit)
        return chosen

    def _note(self, i, unit):
        if self.silence[i][unit] <= self.max_threshold:
            self.events[i][unit].append(self.silence[i][unit])
        self.silence[i][unit] = 0

    def after_resets(self):
        if self.t % self.threshold_period != 0:
            return
        for thresholds, all_events in zip(self.threshold, self.events):
            for unit, events in enumerate(all_events):
                positive = sorted(age for age in events if age > 0)
                q = 1
                if positive:
                    # The smallest age up to which lies at least this share.
                    last = math.ceil(self.quantile * len(positive) - 1e-9)
                    q = positive[last - 1]
                old = thresholds[unit]
                new = q if q < old else 2 * old
                thresholds[unit] = min(
                    max(new, self.min_threshold), self.max_threshold
                )
                events.clear()
