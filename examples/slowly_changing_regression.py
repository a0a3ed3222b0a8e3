"""Slowly-Changing Regression: a network that tracks a target, for ever.

A small network learns from one example at a time, each seen once. Every
10,000 examples the slow bits of the inputs change. Without any flag, this
trains 30 learners with backpropagation, 30 with continual backpropagation
and 30 linear models, on a million examples each:

    python examples/slowly_changing_regression.py

It prints a table and writes, to `--log_dir`, a figure, TensorBoard logs and
`summary.json`. The environment variable `KERAS_BACKEND` chooses the backend;
with jax, all learners of a method train side by side in one compiled program.

References:

- [Dohare et al., 2024](https://doi.org/10.1038/s41586-024-07711-7)
"""

import math
import sys

import experiment
import keras
import numpy as np
from absl import app
from absl import flags

from keras_plasticity import streams

# The gain of each activation in the scheme of Kaiming He, as in the paper.
GAINS = {
    "relu": math.sqrt(2),
    "leaky_relu": math.sqrt(2 / (1 + 0.01**2)),
    "tanh": 5 / 3,
    "sigmoid": 1.0,
    "elu": math.sqrt(2),
    "swish": math.sqrt(2),
}
# Squared error in the first and in the last bin of 20,000 examples, read off
# the figure that the authors' repository ships (1 million examples, all slow
# bits redrawn): (method, activation, learning rate) -> (first, last).
PUBLISHED = {
    ("linear", None, 0.01): (0.885, 0.885),
    ("bp", "relu", 0.01): (0.62, 1.25),
    ("bp", "relu", 0.003): (0.71, 1.07),
    ("bp", "relu", 0.001): (0.84, 0.86),
    ("bp", "tanh", 0.01): (0.43, 0.89),
    ("bp", "tanh", 0.003): (0.60, 0.92),
    ("bp", "tanh", 0.001): (0.80, 0.84),
}
# The same of 3 million examples, one bit flipped at each change, in bins of
# 40,000, read off the figure of the preprint (give or take 0.05).
PUBLISHED_FLIP_ONE = {
    ("linear", None, 0.01): (0.80, 0.80),
    ("bp", "relu", 0.01): (0.65, 1.2),
    ("bp", "relu", 0.003): (0.60, 1.05),
    ("bp", "relu", 0.001): (0.60, 0.85),
    ("bp", "leaky_relu", 0.01): (0.55, 1.0),
    ("bp", "leaky_relu", 0.003): (0.60, 1.1),
    ("bp", "leaky_relu", 0.001): (0.55, 0.80),
    ("bp", "tanh", 0.01): (0.45, 0.85),
    ("bp", "tanh", 0.003): (0.55, 0.85),
    ("bp", "tanh", 0.001): (0.60, 0.85),
    ("bp", "sigmoid", 0.01): (0.40, 0.90),
    ("bp", "sigmoid", 0.003): (0.60, 0.85),
    ("bp", "sigmoid", 0.001): (0.70, 0.85),
    ("bp", "elu", 0.01): (0.45, 0.825),
    ("bp", "elu", 0.003): (0.65, 0.70),
    ("bp", "elu", 0.001): (0.55, 0.70),
    ("bp", "swish", 0.01): (0.60, 1.05),
    ("bp", "swish", 0.003): (0.55, 0.75),
    ("bp", "swish", 0.001): (0.60, 0.75),
}

flags.adopt_module_key_flags(experiment)
NUM_EXAMPLES = flags.DEFINE_integer(
    "num_examples",
    None,
    "Examples for each learner. Default: 1,000,000, or 3,000,000 with "
    "--flip_one.",
    lower_bound=1,
)
EXAMPLES_PER_TASK = flags.DEFINE_integer(
    "examples_per_task", 10_000, "Examples between changes.", lower_bound=1
)
FLIP_ONE = flags.DEFINE_boolean(
    "flip_one", False, "Flip one slow bit at a change, not redraw all of them."
)
HIDDEN_UNITS = flags.DEFINE_integer(
    "hidden_units", 5, "Hidden units of a learner.", lower_bound=1
)


def build_model(method, seed):
    """The paper's learner: one hidden layer, or none, and a linear output."""
    hidden_seed, output_seed = np.random.default_rng(seed).integers(
        2**31, size=2
    )
    layers = [keras.Input((20,))]
    gain = GAINS.get(method.settings.get("activation"), 1.0)
    initializer = keras.initializers.VarianceScaling(
        gain**2, "fan_in", "uniform", seed=int(hidden_seed)
    )
    if not method.has("linear"):
        layers += method.hidden(
            "Dense",
            units=HIDDEN_UNITS.value,
            kernel_initializer=initializer,
            name="hidden",
        )
    layers.append(
        method.layers.Dense(
            1,
            kernel_initializer=keras.initializers.LecunUniform(
                int(output_seed)
            ),
            name="output",
        )
    )
    model = keras.Sequential(layers)
    model.compile(optimizer=method.optimizer(seed, initializer), loss="mse")
    return model


def make_problem(num_tasks):
    published_bin = 40_000 if FLIP_ONE.value else 20_000
    # As the paper; a short run is shown in at least four bins.
    tasks_per_bin = min(
        max(1, published_bin // EXAMPLES_PER_TASK.value), max(1, num_tasks // 4)
    )

    def published(method):
        known = PUBLISHED_FLIP_ONE if FLIP_ONE.value else PUBLISHED
        key = tuple(
            method.settings.get(name)
            for name in ("activation", "learning_rate")
        )
        marks = known.get((method.name, *key))
        is_protocol = (
            EXAMPLES_PER_TASK.value == 10_000
            and tasks_per_bin * 10_000 == published_bin
            and HIDDEN_UNITS.value == 5
            and method.changed <= {"learning_rate", "activation"}
        )
        if marks is None or not is_protocol:
            return []
        last = 3_000_000 if FLIP_ONE.value else 1_000_000
        return list(zip((published_bin, last), marks))

    return experiment.Problem(
        name="slowly_changing_regression",
        title="Slowly-Changing Regression",
        metric="squared_error",
        result="loss",
        metric_label="squared error",
        lower_is_better=True,
        scale=1.0,
        format=".3f",
        tasks_per_bin=tasks_per_bin,
        x_label="examples",
        x_per_task=EXAMPLES_PER_TASK.value,
        examples_per_task=EXAMPLES_PER_TASK.value,
        steps_per_task=EXAMPLES_PER_TASK.value,
        num_learners=30,
        methods=("bp", "cbp", "linear"),
        num_probe_examples=2000,
        # They would take as long as the training.
        diagnostics=False,
        # Of these the paper has no results; they were the best of those tried
        # with ReLU and a step size of 0.01 (BUILD_NOTES.md).
        defaults={
            "learning_rate": {None: 0.01, "adam": 0.003},
            "replacement_rate": 1e-3,
            "l2": 1e-2,
            "weight_decay": 1e-2,
            "noise_stddev": 1e-3,
            "dropout_rate": 0.03,
            "shrink": {None: 0.9999, "shrink_and_perturb_tasks": 0.5},
            "perturb": {None: 1e-3, "shrink_and_perturb_tasks": 0.5},
        },
        published=published,
        may_grow=("num_examples",),
    )


def main(argv):
    experiment.check_arguments(argv)
    num_examples = NUM_EXAMPLES.value or (
        3_000_000 if FLIP_ONE.value else 1_000_000
    )
    # What settles how long the run is, given or not.
    flags.FLAGS.num_examples = num_examples
    num_tasks, rest = divmod(num_examples, EXAMPLES_PER_TASK.value)
    if rest or not num_tasks:
        sys.exit(
            "--num_examples must be a multiple of --examples_per_task. "
            f"Received: --num_examples={num_examples} "
            f"--examples_per_task={EXAMPLES_PER_TASK.value}"
        )
    experiment.run(
        sys.modules[__name__],
        make_problem(num_tasks),
        build_model,
        lambda seed: streams.SlowlyChangingRegression(
            num_tasks=num_tasks,
            examples_per_task=EXAMPLES_PER_TASK.value,
            flip_one=FLIP_ONE.value,
            seed=seed,
        ),
        num_tasks=num_tasks,
    )


if __name__ == "__main__":
    app.run(main)
