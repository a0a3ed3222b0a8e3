"""Continual backpropagation as a plain eager PyTorch loop.

What a user had before: the style of published research code, with one Python
step an example, lists of layers, `topk` and index assignments. It is the
yardstick of the benchmarks and shares nothing with the library.
"""

import math
import time

import torch

torch.set_default_dtype(torch.float32)


class Network(torch.nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])
        )
        for i, layer in enumerate(self.layers):
            gain = math.sqrt(2) if i < len(sizes) - 2 else 1.0
            bound = gain * math.sqrt(3 / layer.in_features)
            torch.nn.init.uniform_(layer.weight, -bound, bound)
            torch.nn.init.zeros_(layer.bias)

    def forward(self, x):
        features = []
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
            features.append(x)
        return self.layers[-1](x), features


class Learner:
    """One learner: a network, SGD, and generate-and-test after each step."""

    def __init__(
        self,
        sizes,
        loss,
        learning_rate,
        utility=None,
        replacement_rate=1e-4,
        maturity_threshold=100,
        decay_rate=0.99,
    ):
        self.network = Network(sizes)
        self.loss = loss
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=learning_rate
        )
        self.utility = utility
        self.replacement_rate = replacement_rate
        self.maturity_threshold = maturity_threshold
        self.decay_rate = decay_rate
        hidden = sizes[1:-1]
        self.utilities = [torch.zeros(n) for n in hidden]
        self.means = [torch.zeros(n) for n in hidden]
        self.ages = [torch.zeros(n) for n in hidden]
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
            self.means[i] += (1 - self.decay_rate) * feature.mean(dim=0)
            outgoing = layers[i + 1].weight.abs().mean(dim=0)
            if self.utility == "contribution":
                new = outgoing * feature.abs().mean(dim=0)
            else:
                incoming = layers[i].weight.abs().mean(dim=1)
                mean = self.means[i] / correction
                new = outgoing * (feature - mean).abs().mean(dim=0) / incoming
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
            bound = math.sqrt(2) * math.sqrt(3 / layer.in_features)
            layer.weight[units] = torch.empty(
                units.shape[0], layer.in_features
            ).uniform_(-bound, bound)
            layer.bias[units] = 0.0
            layers[i + 1].weight[:, units] = 0.0
            self.ages[i][units] = 0


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
