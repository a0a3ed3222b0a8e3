"""Methods that reset units, literal, in NumPy.

Oracles of the tests, in float64, written from the papers and from the words
that describe the authors' code. They share nothing with the library: scores
are means over lists of batches, histograms are lists of numbers, and a
quantile is found by sorting them. Weights are mixed number by number.
"""

import copy
import math

import numpy as np

from tests.reference_algorithm import Network


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

    def new_start(self, i, unit):
        """The new incoming weights and the new bias of a unit."""
        incoming = self.new_incoming(self.draws, len(self.network.kernels[i]))
        self.draws += 1
        return incoming, 0

    def _replace(self, i, unit):
        kernels, biases = self.network.kernels, self.network.biases
        kernels[i][:, unit], biases[i][unit] = self.new_start(i, unit)
        kernels[i + 1][unit] = 0
        for slot in self.kernel_optimizers[i].slots:
            slot[:, unit] = 0
        for slot in self.kernel_optimizers[i + 1].slots:
            slot[unit] = 0
        if self.resets_bias_slots:
            for slot in self.bias_optimizers[i].slots:
                slot[unit] = 0


class ReDo(_Resets):
    def __init__(
        self,
        *args,
        threshold,
        period,
        score_updates,
        new_weights,
        shared_weights,
        reset_bias_slots,
    ):
        super().__init__(*args)
        self.threshold = threshold
        self.period = period
        self.score_updates = score_updates
        self.first = None
        if new_weights == "initial":
            self.first = copy.deepcopy(self.network)
        # What comes last decides.
        self.last_layer_first = shared_weights == "outgoing"
        self.resets_bias_slots = reset_bias_slots
        self.batches = []
        self.scores = None

    def new_start(self, i, unit):
        if self.first is None:
            return super().new_start(i, unit)
        return self.first.kernels[i][:, unit], self.first.biases[i][unit]

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


class ConvolutionalNetwork(Network):
    """Convolutions without padding, then dense layers, by hand.

    Kernels with four axes are convolutions, `(height, width, in, out)`. The
    first dense layer reads their positions row by row, channels last.
    """

    def forward(self, x):
        hidden = []
        h = np.asarray(x, "float64")
        for i, kernel in enumerate(self.kernels):
            if kernel.ndim == 4:
                h = np.einsum("bxycij,ijcu->bxyu", _patches(h, kernel), kernel)
            else:
                h = h.reshape(len(h), -1) @ kernel
            if self.biases[i] is not None:
                h = h + self.biases[i]
            if i < len(self.kernels) - 1:
                h = np.tanh(h) if self.activation == "tanh" else h * (h > 0)
                hidden.append(h)
        return hidden, h

    def backward(self, x, hidden, delta):
        kernels = [None] * len(self.kernels)
        biases = [None] * len(self.kernels)
        inputs = [np.asarray(x, "float64"), *hidden]
        for i in reversed(range(len(self.kernels))):
            kernel, h = self.kernels[i], inputs[i]
            biases[i] = delta.sum(axis=tuple(range(delta.ndim - 1)))
            if kernel.ndim == 4:
                kernels[i] = np.einsum(
                    "bxycij,bxyu->ijcu", _patches(h, kernel), delta
                )
                back = np.zeros(h.shape)
                height, width = delta.shape[1:3]
                for j in range(kernel.shape[0]):
                    for k in range(kernel.shape[1]):
                        back[:, j : j + height, k : k + width] += (
                            delta @ kernel[j, k].T
                        )
            else:
                kernels[i] = h.reshape(len(h), -1).T @ delta
                back = (delta @ kernel.T).reshape(h.shape)
            if i > 0:
                slope = 1 - h**2 if self.activation == "tanh" else h > 0
                delta = back * slope
        return kernels, biases


def _patches(images, kernel):
    """Shape `(batch, rows, columns, channels, height, width)`."""
    return np.lib.stride_tricks.sliding_window_view(
        images, kernel.shape[:2], axis=(1, 2)
    )


class _GradientResets:
    """Back-propagation, and resets that gradients decide on.

    Args:
        network: A `Network`, trained in place.
        make_optimizer: Function from the shape of a weight to its optimizer.
        new_kernel: Function `(n, shape) -> array`, the n-th kernel drawn,
            counted from 0 over all layers.
    """

    def __init__(self, network, make_optimizer, new_kernel):
        self.network = network
        self.kernel_optimizers = [
            make_optimizer(k.shape) for k in network.kernels
        ]
        self.bias_optimizers = [
            None if b is None else make_optimizer(b.shape)
            for b in network.biases
        ]
        self.new_kernel = new_kernel
        self.initial_biases = [
            None if b is None else b.copy() for b in network.biases
        ]
        self.t = 0
        self.draws = 0
        self.resets = 0

    def step(self, batches):
        """Trains on the mean gradient of one batch or more."""
        network = self.network
        kernels, biases = network.kernels, network.biases
        means = [
            [np.zeros(k.shape) for k in kernels],
            [np.zeros(k.shape[-1]) for k in kernels],
        ]
        for x, y in batches:
            hidden, outputs = network.forward(x)
            _, delta = network.loss_of(outputs, y)
            for mean, grads in zip(means, network.backward(x, hidden, delta)):
                for total, gradient in zip(mean, grads):
                    total += gradient / len(batches)
        self.t += 1
        for i in range(len(kernels)):
            self.kernel_optimizers[i].step(kernels[i], means[0][i], self.t)
            if biases[i] is not None:
                self.bias_optimizers[i].step(biases[i], means[1][i], self.t)
        self.reset(*means)

    def reset(self, kernel_gradients, bias_gradients):
        raise NotImplementedError

    @property
    def hidden(self):
        return range(len(self.network.kernels) - 1)

    def units(self, i):
        return self.network.kernels[i].shape[-1]

    def rows(self, i, unit, array):
        """The part of the next layer's kernel, or slot, that reads a unit."""
        if array.ndim == 4:
            return array[:, :, unit, :]
        # Behind convolutions the channels come round again at each position.
        return array[unit :: self.units(i)]

    def draw(self, i):
        self.draws += 1
        return self.new_kernel(self.draws - 1, self.network.kernels[i].shape)

    def score(self, i, gradient):
        mean = [np.abs(gradient[..., u]).mean() for u in range(self.units(i))]
        return np.array(mean) / (np.mean(mean) + 1e-8)


class ReGraMa(_GradientResets):
    def __init__(self, *args, threshold, period, max_fraction=1.0):
        super().__init__(*args)
        self.threshold = threshold
        self.period = period
        self.max_fraction = max_fraction
        self.spared = 0
        self.closest = math.inf
        self.shared_weights = 0

    def reset(self, kernel_gradients, bias_gradients):
        update = self.t - 1  # As the authors count: from 0.
        if update == 0 or update % self.period != 0:
            return
        scores = [self.score(i, kernel_gradients[i]) for i in self.hidden]
        dormant = []
        for score in scores:
            gaps = np.abs(score - self.threshold)
            self.closest = min(self.closest, gaps.min())
            found = np.flatnonzero(score <= self.threshold)
            found = sorted(found, key=lambda unit: score[unit])
            most = int(self.max_fraction * len(score))
            if 0 < most < len(found) and score[found[most]] > 0:
                # Of units without any gradient, the first ones go.
                gap = score[found[most]] - score[found[most - 1]]
                self.closest = min(self.closest, gap)
            self.spared += len(found[most:])
            # In the order in which they are drawn for.
            dormant.append(sorted(found[:most]))
        for i in self.hidden:
            for unit in dormant[i]:
                self._replace(i, unit)
        for first, second in zip(dormant, dormant[1:]):
            self.shared_weights += len(first) * len(second)

    def _replace(self, i, unit):
        kernels, biases = self.network.kernels, self.network.biases
        kernels[i][..., unit] = self.draw(i)[..., unit]
        self.rows(i, unit, kernels[i + 1])[...] = 0
        if biases[i] is not None:
            biases[i][unit] = 0
            for slot in self.bias_optimizers[i].slots:
                slot[unit] = 0
        for slot in self.kernel_optimizers[i].slots:
            slot[..., unit] = 0
        for slot in self.kernel_optimizers[i + 1].slots:
            self.rows(i, unit, slot)[...] = 0
        self.resets += 1


class _PartialResets(_GradientResets):
    def __init__(self, *args, replacement_rate, sharpness, decay_rate, period):
        super().__init__(*args)
        self.replacement_rate = replacement_rate
        self.sharpness = sharpness
        self.decay_rate = decay_rate
        self.period = period
        self.u = [np.ones(self.units(i)) for i in self.hidden]

    def mix(self, i, shares):
        kernels = self.network.kernels
        new = self.draw(i)
        for unit, share in enumerate(shares):
            old = kernels[i][..., unit]
            kernels[i][..., unit] = (1 - share) * old + share * new[..., unit]
            self.rows(i, unit, kernels[i + 1])[...] *= 1 - share
        self.resets += 1


class CPR(_PartialResets):
    def __init__(self, *args, threshold, transform, **kwargs):
        super().__init__(*args, **kwargs)
        self.threshold = threshold
        self.transform = transform

    def reset(self, kernel_gradients, bias_gradients):
        update = self.t - 1
        for i in self.hidden:
            score = self.score(i, kernel_gradients[i])
            self.u[i] = self.decay_rate * self.u[i]
            self.u[i] += (1 - self.decay_rate) * score
        if update == 0 or update % self.period != 0:
            return
        for i in self.hidden:
            shares = [self.replacement_rate * self._f(u) for u in self.u[i]]
            self.mix(i, shares)
            self.u[i] = np.ones(self.units(i))

    def _f(self, u):
        if u <= self.threshold:
            return 1.0
        d = self.sharpness * (u - self.threshold)
        return {
            "sigmoid": 2 / (1 + math.exp(d)),
            "exponential": math.exp(-d),
            "softplus": math.log(1 + math.exp(-d)) / math.log(2),
            "linear": max(1 - d, 0),
        }[self.transform]


class CCBP(_PartialResets):
    def __init__(
        self,
        *args,
        utility,
        continuous=True,
        maturity_threshold=0,
        reset_optimizer_state=False,
        chance=None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.utility = utility
        self.continuous = continuous
        self.maturity_threshold = maturity_threshold
        self.reset_optimizer_state = reset_optimizer_state
        # Function of the number of draws before, kernels included.
        self.chance = chance
        self.age = [[0.0] * self.units(i) for i in self.hidden]
        self.remainder = [0.0 for _ in self.hidden]
        self.replaced = 0
        self.closest = math.inf

    def reset(self, kernel_gradients, bias_gradients):
        biases = self.network.biases
        for i in self.hidden:
            measure = np.array(
                [
                    self._measure(i, u, kernel_gradients[i][..., u])
                    for u in range(self.units(i))
                ]
            )
            if biases[i] is not None:
                measure += np.abs(bias_gradients[i])
            score = measure / max(measure.mean(), 1e-8)
            self.u[i] += (1 - self.decay_rate) * (score - self.u[i])
            shares = [0.0] * self.units(i)
            if self.t % self.period == 0:
                shares = self._shares(i)
                self.mix(i, shares)
                if self.reset_optimizer_state:
                    self._move_slots(i, shares)
            for unit, share in enumerate(shares):
                if biases[i] is not None:
                    start = self.initial_biases[i][unit]
                    biases[i][unit] += share * (start - biases[i][unit])
                self.u[i][unit] += share * (1 - self.u[i][unit])
                self.age[i][unit] = (1 - share) * self.age[i][unit] + 1

    def _shares(self, i):
        if self.continuous:
            shares = []
            for u, age in zip(self.u[i], self.age[i]):
                share = self.replacement_rate
                share /= 1 + math.exp(self.sharpness * (u - 1))
                if self.maturity_threshold:
                    share *= min(age / self.maturity_threshold, 1)
                shares.append(share)
            return shares
        chance = self.chance(self.draws)
        self.draws += 1
        mature = [
            unit
            for unit in range(self.units(i))
            if self.age[i][unit] >= self.maturity_threshold
        ]
        shares = [0.0] * self.units(i)
        if not mature:
            return shares
        number = len(mature) * self.replacement_rate + self.remainder[i]
        self.remainder[i] = number - int(number)
        number = int(number)
        if chance < self.remainder[i]:
            number += 1
            self.remainder[i] = 0.0
        mature.sort(key=lambda unit: self.u[i][unit])
        if 0 < number < len(mature):
            first, second = mature[number - 1], mature[number]
            gap = self.u[i][second] - self.u[i][first]
            self.closest = min(self.closest, gap)
        for unit in mature[:number]:
            shares[unit] = 1.0
            self.replaced += 1
        return shares

    def _move_slots(self, i, shares):
        stay = [u for u, share in enumerate(shares) if share < 0.5]

        def move(slots, part):
            for number, slot in enumerate(slots):
                rest = [part(slot, unit) for unit in stay]
                # The first moments come first.
                goal = np.mean(rest) if rest and number > 0 else 0.0
                for unit, share in enumerate(shares):
                    entries = part(slot, unit)
                    entries[...] = (1 - share) * entries + share * goal

        move(self.kernel_optimizers[i].slots, lambda s, u: s[..., u])
        if self.bias_optimizers[i] is not None:
            move(self.bias_optimizers[i].slots, lambda s, u: s[u : u + 1])
        move(
            self.kernel_optimizers[i + 1].slots,
            lambda s, u: self.rows(i, u, s),
        )

    def _measure(self, i, unit, gradient):
        if self.utility == "gradient_norm":
            return math.sqrt((gradient**2).sum())
        result = np.abs(gradient).mean()
        if self.utility == "gradient_magnitude":
            return result
        kernels = self.network.kernels
        outgoing = self.rows(i, unit, kernels[i + 1])
        result *= np.abs(outgoing).mean() + 1e-4
        if self.utility == "contribution":
            return result
        return result / max(np.abs(kernels[i][..., unit]).mean(), 1e-8)
