"""How well measures tell which network will learn more from its next steps.

    KERAS_BACKEND=jax python -m tests.benchmarks.readiness_ranking \
        --problem=regression --log=readiness.jsonl

Learners train online with Adam, one example a step, on the tasks of a stream.
Of each, the weights are kept before the first task and after every few. At the
end all of these are measured on the task that came next or, with
`--target=new`, on the same task that none has seen; and their gain on it is
computed, `(L - E[L_k]) / L`: the share of the loss that `k` steps from
there take away, in the mean over several draws of examples. The steps are those
of Adam without a past, with the learning rate of the training, or of SGD.

A measure ranks two networks of a learner right if the one with the greater
value has the greater gain; of equal values, half of the pair counts. Printed is
the share of pairs that are ranked right, in the mean over the learners, and
beside it 1.96 standard errors of this mean.

This is the comparison of Wang et al. (2026), https://arxiv.org/abs/2605.09044,
with their networks. What the paper leaves open, or what is not known of it, is
a flag here, or is said above.

Learners that are in the log file already, with the same settings, are not
computed again.
"""

import argparse
import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Callable

import keras
import numpy as np

from keras_plasticity import datasets
from keras_plasticity import diagnosis
from keras_plasticity import diagnostics
from keras_plasticity import streams
from keras_plasticity import training
from keras_plasticity.diagnosis.differentiation import differentiation_of

STEPS = (1, 10, 100)
MEASURES = (
    "optimization_readiness",
    "gradient_norm",
    "gradient_strength",
    "effective_rank",
    "tangent_kernel_rank",
)
# Examples of the new task that activations are computed for.
_NUM_ACTIVATIONS = 2000


@dataclasses.dataclass(frozen=True)
class Problem:
    """A stream of tasks, and the network that learns it.

    Attributes:
        dims: Tuple of the numbers of inputs, hidden units and outputs.
        loss: Function that returns the loss.
        learning_rate: Float, of Adam.
        stream: Function of the loaded data, a seed, a number of tasks and a
            number of examples for each, which returns the stream.
        num_new: Integer, the number of examples of the new task. Those that
            are not measured on are trained on.
        load: Function of a folder that returns the data.
    """

    dims: tuple[int, ...]
    loss: Callable
    learning_rate: float
    stream: Callable
    num_new: int
    load: Callable = lambda data_dir: ()


def _regression(data, seed, num_tasks, num_examples):
    return streams.SlowlyChangingRegression(num_tasks, num_examples, seed=seed)


def _images(data, seed, num_tasks, num_examples):
    return streams.OnlinePermutedImages(*data, num_tasks, num_examples, seed)


PROBLEMS = {
    "regression": Problem(
        dims=(20, 5, 5, 1),
        loss=keras.losses.MeanSquaredError,
        learning_rate=0.01,
        stream=_regression,
        num_new=20_000,
    ),
    "mnist": Problem(
        dims=(784, 100, 100, 100, 10),
        loss=lambda: keras.losses.SparseCategoricalCrossentropy(True),
        learning_rate=0.001,
        stream=_images,
        num_new=60_000,
        load=datasets.load_mnist,
    ),
}


def build_model(problem, seed, optimizer):
    """A compiled model with the weights of a seed."""
    seeds = np.random.default_rng([seed, 0, 1]).integers(0, 2**31, 9)
    layers = [keras.Input(problem.dims[:1])]
    for i, units in enumerate(problem.dims[1:]):
        is_last = i == len(problem.dims) - 2
        kind = "LecunUniform" if is_last else "HeUniform"
        layers.append(
            keras.layers.Dense(
                units,
                activation=None if is_last else "relu",
                kernel_initializer=getattr(keras.initializers, kind)(
                    int(seeds[i])
                ),
            )
        )
    model = keras.Sequential(layers)
    model.compile(optimizer, problem.loss())
    return model


class Snapshots(training.TaskCallback):
    """Keeps the weights of all learners before some tasks.

    Args:
        every: Integer, how many tasks are between them.

    Attributes:
        tasks: List of the tasks before which they were kept.
        weights: For each of them the list of the learners' weights.
    """

    def __init__(self, every):
        self._every = every
        self.tasks = []
        self.weights = []

    def on_task_begin(self, task, x, y):
        if task % self._every == 0:
            self.keep(task)

    def keep(self, task):
        self.tasks.append(task)
        self.weights.append(
            [
                self.trainer.model(learner).get_weights()
                for learner in range(self.trainer.num_learners)
            ]
        )


def train(problem, data, seeds, flags):
    """Trains a learner for each seed.

    Args:
        problem: `Problem`.
        data: What it loads.
        seeds: List of integers.
        flags: What `parse` returns.

    Returns:
        Tuple of a list of tasks, and of a list of lists of weights: for each
        of these tasks, those of each learner before it.
    """
    trainer = training.OnlineTrainer(
        lambda learner: build_model(
            problem,
            seeds[learner],
            keras.optimizers.Adam(flags.learning_rate),
        ),
        num_learners=len(seeds),
    )
    snapshots = Snapshots(flags.every)
    trainer.fit(
        lambda learner: problem.stream(
            data, seeds[learner], flags.num_tasks, flags.examples_per_task
        ),
        callbacks=[snapshots],
    )
    snapshots.keep(flags.num_tasks)
    return snapshots.tasks, snapshots.weights


def measure(problem, model, x, y):
    """Dict from each measure, and from `"loss"`, to a float."""
    derivatives = differentiation_of(model)
    loss, gradients = derivatives.loss_and_gradients(x, y, 2000)
    norm = diagnostics.gradient_norm(gradients)
    weights = model.get_weights()
    hidden, ranks = x[:_NUM_ACTIVATIONS], []
    for kernel, bias in zip(weights[:-2:2], weights[1:-2:2]):
        hidden = np.maximum(hidden @ kernel + bias, 0.0)
        ranks.append(diagnostics.effective_rank(hidden))
    return {
        "loss": loss,
        "optimization_readiness": diagnosis.optimization_readiness(
            model, (x, y), batch_size=2000
        ),
        "gradient_norm": norm,
        "gradient_strength": norm**2 / loss if loss else 0.0,
        "effective_rank": float(np.mean(ranks)),
        "tangent_kernel_rank": diagnosis.tangent_kernel_rank(model, (x, y)),
    }


class Networks:
    """Copies of a network of ReLU units, which make steps side by side.

    In NumPy: a copy makes 100 steps at most, and there are many thousands.

    Args:
        problem: `Problem`.
        weights: List of its weights, as Keras returns them.
        copies: Integer.
    """

    def __init__(self, problem, weights, copies):
        self._is_regression = problem.dims[-1] == 1
        self._weights = [
            np.repeat(each[None], copies, axis=0) for each in weights
        ]
        self._moments = [
            [np.zeros_like(w), np.zeros_like(w)] for w in self._weights
        ]
        self._count = 0

    def step(self, x, y, optimizer, learning_rate):
        """Makes a step, each copy on an example of its own.

        Args:
            x: Array of shape `(copies, inputs)`.
            y: Array of as many targets.
            optimizer: `"adam"` or `"sgd"`.
            learning_rate: Float.
        """
        self._count += 1
        for w, moments, gradient in zip(
            self._weights, self._moments, self._gradients(x, y)
        ):
            if optimizer == "adam":
                gradient = self._adam(moments, gradient)
            w -= learning_rate * gradient

    def losses(self, x, y, counts):
        """Mean losses of all copies on the same examples, so often each."""
        hidden = np.broadcast_to(x, (len(self._weights[0]), *x.shape))
        last = len(self._weights) - 2
        for i in range(0, last + 1, 2):
            kernel, bias = self._weights[i : i + 2]
            hidden = hidden @ kernel + bias[:, None]
            if i < last:
                hidden = np.maximum(hidden, 0.0)
        if self._is_regression:
            losses = np.mean((hidden - y) ** 2, axis=2)
        else:
            losses = -_log_softmax(hidden)[:, np.arange(len(y)), y]
        return losses @ counts / counts.sum()

    def _gradients(self, x, y):
        inputs = [x.astype("float32")]
        for i in range(0, len(self._weights), 2):
            kernel, bias = self._weights[i : i + 2]
            outputs = np.einsum("ni,nio->no", inputs[-1], kernel) + bias
            inputs.append(np.maximum(outputs, 0.0))
        if self._is_regression:
            back = 2.0 * (outputs - y)
        else:
            back = np.exp(_log_softmax(outputs))
            back[np.arange(len(y)), y] -= 1.0
        gradients = []
        for i in reversed(range(0, len(self._weights), 2)):
            before = inputs[i // 2]
            gradients += [back, before[:, :, None] * back[:, None]]
            back = np.einsum("no,nio->ni", back, self._weights[i])
            back *= before > 0
        return gradients[::-1]

    def _adam(self, moments, gradient):
        """As Keras does it, which adds epsilon to what is not corrected."""
        moments[0] += 0.1 * (gradient - moments[0])
        moments[1] += 0.001 * (gradient**2 - moments[1])
        correction = (1 - 0.999**self._count) ** 0.5 / (1 - 0.9**self._count)
        return correction * moments[0] / (np.sqrt(moments[1]) + 1e-7)


def _log_softmax(logits):
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def gains_of(problem, weights, x, y, optimizer, flags, seed):
    """The gains of a network by training on draws of examples.

    Args:
        problem: `Problem`.
        weights: List of the network's weights.
        x: Array of inputs, of which the first are measured on, and the others
            are drawn.
        y: Array of targets.
        optimizer: `"adam"` or `"sgd"`.
        flags: What `parse` returns.
        seed: Integer, of the draws.

    Returns:
        List of floats, the mean over the draws for each of `STEPS`.
    """
    rng = np.random.default_rng(seed)
    rate = flags.learning_rate
    if optimizer == "sgd":
        rate = flags.sgd_learning_rate
    size = flags.num_examples
    # Of bits there are few different examples.
    measured, first, counts = np.unique(
        x[:size], axis=0, return_index=True, return_counts=True
    )
    measured = measured, y[first], counts.astype("float32")
    losses = [[] for _ in STEPS]
    (before,) = Networks(problem, weights, 1).losses(*measured)
    for start in range(0, max(flags.num_draws), flags.copies):
        wanted = [
            num_steps
            for num_steps, number in zip(STEPS, flags.num_draws)
            if start < number
        ]
        networks = Networks(problem, weights, flags.copies)
        for step in range(1, max(wanted) + 1):
            chosen = rng.integers(size, len(x), flags.copies)
            networks.step(x[chosen], y[chosen], optimizer, rate)
            if step in wanted:
                after = networks.losses(*measured)
                losses[STEPS.index(step)].append(after)
    return [float((before - np.mean(after)) / before) for after in losses]


def compute(problem, data, seeds, flags):
    """Trains learners, and measures what they were at times.

    Args:
        problem: `Problem`.
        data: What it loads.
        seeds: List of integers, one for each learner.
        flags: What `parse` returns.

    Yields:
        For each learner a dict that JSON can hold.
    """
    tasks, snapshots = train(problem, data, seeds, flags)
    model = build_model(problem, 0, "sgd")
    for learner, seed in enumerate(seeds):
        stream = problem.stream(
            data, seed, flags.num_tasks + 1, problem.num_new
        )
        found = {"seed": seed, "tasks": tasks}
        gains = {
            f"{optimizer} {num_steps}": []
            for optimizer in flags.optimizers
            for num_steps in STEPS
        }
        for task, weights in zip(tasks, snapshots):
            target = task if flags.target == "next" else flags.num_tasks
            x, y = stream.task(target)
            model.set_weights(weights[learner])
            size = flags.num_examples
            measured = measure(problem, model, x[:size], y[:size])
            for name, value in measured.items():
                found.setdefault(name, []).append(value)
            for optimizer in flags.optimizers:
                gained = gains_of(
                    problem, weights[learner], x, y, optimizer, flags, seed
                )
                for num_steps, gain in zip(STEPS, gained):
                    gains[f"{optimizer} {num_steps}"].append(gain)
        yield {**found, "gains": gains}


def share_ranked_right(measured, gains):
    """Share of the pairs that two lists of numbers rank the same way.

    Pairs of the same gain are left out, and those count half that are measured
    the same.

    Args:
        measured: List of floats.
        gains: List of as many floats.

    Returns:
        Float; NaN if no pair is left.
    """
    right = []
    for i, j in itertools.combinations(range(len(gains)), 2):
        order = np.sign(gains[i] - gains[j])
        if order:
            right.append((1 + order * np.sign(measured[i] - measured[j])) / 2)
    return float(np.mean(right)) if right else math.nan


def report(results):
    """Prints a table.

    Args:
        results: List of dicts, as `compute` yields them.
    """
    kinds = list(results[0]["gains"])
    print(f"\n{len(results)} learners, {len(results[0]['tasks'])} times each\n")
    print(f"| measure | {' | '.join(kinds)} |")
    print("|" + " --- |" * (1 + len(kinds)))
    for name in MEASURES:
        cells = []
        for kind in kinds:
            shares = [
                share_ranked_right(each[name], each["gains"][kind])
                for each in results
            ]
            error = math.nan
            if len(shares) > 1:
                error = 1.96 * np.std(shares, ddof=1) / len(shares) ** 0.5
            cells.append(f"{np.mean(shares):.3f} +- {error:.3f}")
        print(f"| {name} | {' | '.join(cells)} |")
    print(flush=True)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problem", choices=PROBLEMS, default="regression")
    parser.add_argument("--log", type=pathlib.Path, required=True)
    parser.add_argument("--data_dir", help="of MNIST")
    parser.add_argument("--learners", type=int, default=30)
    parser.add_argument(
        "--group", type=int, default=10, help="learners computed together"
    )
    parser.add_argument("--num_tasks", type=int, default=100)
    parser.add_argument("--examples_per_task", type=int, default=10_000)
    parser.add_argument(
        "--every", type=int, default=5, help="tasks between times"
    )
    parser.add_argument(
        "--target", choices=["next", "new"], default="next", help="task"
    )
    parser.add_argument("--learning_rate", type=float, help="of Adam")
    parser.add_argument("--sgd_learning_rate", type=float, default=0.01)
    parser.add_argument(
        "--optimizers", nargs="+", default=["adam", "sgd"], help="of the gains"
    )
    parser.add_argument(
        "--num_examples", type=int, default=10_000, help="measured on"
    )
    parser.add_argument(
        "--num_draws",
        nargs=len(STEPS),
        type=int,
        default=[1000] * len(STEPS),
        help=f"for {STEPS} steps",
    )
    parser.add_argument(
        "--copies", type=int, default=500, help="draws computed together"
    )
    flags = parser.parse_args()
    if any(number % flags.copies for number in flags.num_draws):
        parser.error(
            "--copies must divide all of --num_draws. Received: "
            f"--copies={flags.copies} --num_draws={flags.num_draws}"
        )
    if flags.learning_rate is None:
        flags.learning_rate = PROBLEMS[flags.problem].learning_rate
    return flags


def main():
    flags = parse()
    settings = {
        name: value
        for name, value in vars(flags).items()
        if name not in ("log", "data_dir", "learners", "group", "copies")
    }
    results = {}
    if flags.log.exists():
        for line in flags.log.read_text().splitlines():
            entry = json.loads(line)
            if entry["settings"] == settings:
                results[entry["seed"]] = entry
    missing = [n for n in range(flags.learners) if n not in results]
    problem = PROBLEMS[flags.problem]
    data = problem.load(flags.data_dir) if missing else ()
    for start in range(0, len(missing), flags.group):
        seeds = missing[start : start + flags.group]
        with flags.log.open("a") as file:
            for result in compute(problem, data, seeds, flags):
                entry = {"settings": settings, **result}
                results[entry["seed"]] = entry
                file.write(json.dumps(entry) + "\n")
        report([results[seed] for seed in sorted(results)])
    if not missing:
        report([results[seed] for seed in sorted(results)])


if __name__ == "__main__":
    main()
