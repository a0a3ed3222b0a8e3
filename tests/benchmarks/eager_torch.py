"""Continual backpropagation as a plain eager PyTorch loop.

What a user had before: the style of published research code, with one Python
step an example, lists of layers, `topk` and index assignments. It is the
yardstick of the benchmarks and shares nothing with the library. It computes
where the network lies.
"""

import math
import time

import torch

torch.set_default_dtype(torch.float32)


class Network(torch.nn.Module):
    """ReLU layers and a linear one."""

    def __init__(self, sizes):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])
        )
        self.bounds = []
        for i, layer in enumerate(self.layers):
            gain = math.sqrt(2) if i < len(sizes) - 2 else 1.0
            bound = gain * math.sqrt(3 / layer.in_features)
            torch.nn.init.uniform_(layer.weight, -bound, bound)
            torch.nn.init.zeros_(layer.bias)
            self.bounds.append(bound)

    def forward(self, x):
        features = []
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
            features.append(x)
        return self.layers[-1](x), features


class ConvolutionalNetwork(torch.nn.Module):
    """The paper's network for Continual ImageNet, channels first."""

    def __init__(self, filters, units, outputs):
        super().__init__()
        self.num_convolutions = len(filters)
        layers = []
        channels, size = 3, 32
        for each, kernel in zip(filters, (5, 3, 3)):
            layers.append(torch.nn.Conv2d(channels, each, kernel))
            channels, size = each, (size - kernel + 1) // 2
        inputs = channels * size * size
        for each in (*units, outputs):
            layers.append(torch.nn.Linear(inputs, each))
            inputs = each
        self.layers = torch.nn.ModuleList(layers)
        # Those of PyTorch's own initialization.
        self.bounds = [each.weight[0].numel() ** -0.5 for each in layers]

    def forward(self, x):
        features = []
        for i, layer in enumerate(self.layers[:-1]):
            if i == self.num_convolutions:
                x = x.flatten(1)
            x = torch.relu(layer(x))
            if i < self.num_convolutions:
                x = torch.nn.functional.max_pool2d(x, 2)
            features.append(x)
        return self.layers[-1](x), features


def unit_means(x):
    """Means over all axes but the second: units, or what is read of them."""
    return x.mean(dim=(0, 2, 3)) if x.dim() == 4 else x.mean(dim=0)


class Learner:
    """One learner: a network, SGD, and generate-and-test after each step."""

    def __init__(
        self,
        network,
        loss,
        learning_rate,
        momentum=0.0,
        utility=None,
        replacement_rate=1e-4,
        maturity_threshold=100,
        decay_rate=0.99,
    ):
        self.network = network
        self.loss = loss
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=learning_rate, momentum=momentum
        )
        self.utility = utility
        self.replacement_rate = replacement_rate
        self.maturity_threshold = maturity_threshold
        self.decay_rate = decay_rate
        hidden = [layer.weight.shape[0] for layer in network.layers[:-1]]
        device = network.layers[0].weight.device
        self.utilities = [torch.zeros(n, device=device) for n in hidden]
        self.means = [torch.zeros(n, device=device) for n in hidden]
        self.ages = [torch.zeros(n, device=device) for n in hidden]
        self.counts = [0.0 for _ in hidden]

    def learn(self, x, y):
        output, features = self.network(x)
        loss = self.loss(output, y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.utility is not None:
            self.generate_and_test([f.detach() for f in features])
        return loss.detach()

    @torch.no_grad()
    def generate_and_test(self, features):
        layers = self.network.layers
        chosen = []
        for i, feature in enumerate(features):
            self.ages[i] += 1
            correction = 1 - self.decay_rate ** self.ages[i]
            self.means[i] *= self.decay_rate
            self.means[i] += (1 - self.decay_rate) * unit_means(feature)
            if self.utility == "contribution":
                new = self.contribution(i, feature.abs())
            else:
                mean = self.means[i] / correction
                if feature.dim() == 4:
                    mean = mean[:, None, None]
                new = self.contribution(i, (feature - mean).abs())
                new /= layers[i].weight.abs().flatten(1).mean(dim=1)
            self.utilities[i] *= self.decay_rate
            self.utilities[i] += (1 - self.decay_rate) * new
            utility = self.utilities[i] / correction
            eligible = torch.where(self.ages[i] > self.maturity_threshold)[0]
            if eligible.shape[0] == 0:
                chosen.append(torch.empty(0, dtype=torch.long))
                continue
            self.counts[i] += self.replacement_rate * eligible.shape[0]
            number = int(self.counts[i])
            self.counts[i] -= number
            worst = torch.topk(-utility[eligible], number)[1]
            worst = eligible[worst]
            self.utilities[i][worst] = 0.0
            self.means[i][worst] = 0.0
            chosen.append(worst)
        for i, units in enumerate(chosen):
            if units.shape[0] == 0:
                continue
            layer = layers[i]
            bound = self.network.bounds[i]
            layer.weight[units] = torch.empty(
                units.shape[0],
                *layer.weight.shape[1:],
                device=layer.weight.device,
            ).uniform_(-bound, bound)
            layer.bias[units] = 0.0
            reader = layers[i + 1].weight
            if self.is_flattened(i):
                reader = reader.view(len(reader), len(layer.weight), -1)
            reader[:, units] = 0.0
            self.ages[i][units] = 0

    def contribution(self, i, magnitudes):
        """Of the units of layer `i`, by magnitudes shaped as its features."""
        reader = self.network.layers[i + 1].weight
        if not self.is_flattened(i):
            return unit_means(reader.abs()) * unit_means(magnitudes)
        positions = unit_means(reader.abs()) * unit_means(magnitudes.flatten(1))
        return positions.view(magnitudes.shape[1], -1).mean(dim=1)

    def is_flattened(self, i):
        """Whether a dense layer reads the feature maps of layer `i`."""
        layers = self.network.layers
        return layers[i].weight.dim() == 4 and layers[i + 1].weight.dim() == 2


def seconds_per_step(learner, x, y, steps, repeats=3):
    """Median time of one step, after a warm-up.

    Args:
        learner: `Learner`.
        x: Tensor of shape `(steps, batch, features)`.
        y: Tensor of shape `(steps, batch, ...)`.
        steps: Integer, the number of steps to time.
        repeats: Integer.
    """
    for i in range(min(20, steps)):
        learner.learn(x[i], y[i])
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for i in range(steps):
            learner.learn(x[i], y[i])
        times.append((time.perf_counter() - start) / steps)
    return sorted(times)[len(times) // 2]
