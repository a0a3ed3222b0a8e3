"""Online Permuted MNIST: classification with ever new orders of the pixels.

A network learns from one example at a time, each seen once. Every 60,000
examples a new task begins: all pixels are shuffled anew. Accuracy is measured
on each example before the network learns from it. The defaults are those of
the paper, 48 million steps of a large network; a small run on the CPU is

    python examples/online_permuted_mnist.py --num_tasks=10 --hidden_units=100

and `tensorboard --logdir=logs` shows it. The environment variable
`KERAS_BACKEND` chooses jax, tensorflow or torch.

At the start of each task, before training, the first 2,000 examples of the
new task measure dead units and effective rank of every hidden layer, and
weight magnitudes are taken. Tasks count from 0.

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

from keras_plasticity import datasets
from keras_plasticity import streams

NUM_CLASSES = 10
NUM_PROBE_EXAMPLES = 2000
# Online accuracy in percent of networks of three hidden layers, read off the
# published figures: (method, learning rate, units) -> [(task, accuracy), ...].
# Where a peak or an early level is known, but not its task, it stands at task 3
# (100 units), 20 (1,000 units) or 10. Dropout is of rate 0.1.
PUBLISHED = {
    ("bp", 0.003, 100): [(1, 92.1), (3, 93.3), (120, 88.0)],
    ("bp", 0.003, 1000): [(1, 93.7), (20, 94.85), (150, 93.75)],
    ("bp", 0.003, 10000): [(1, 94.7), (45, 96.0), (150, 95.8)],
    ("bp", 0.01, 2000): [(3, 94.6), (800, 90.2)],
    ("bp", 0.003, 2000): [(1, 94.1), (10, 95.2), (800, 93.7)],
    ("bp", 0.001, 2000): [(1, 92.6), (50, 94.8), (800, 94.0)],
    ("l2", 0.003, 2000): [(10, 95.2), (800, 94.3)],
    ("shrink_and_perturb", 0.003, 2000): [(10, 95.2), (800, 95.0)],
    ("dropout", 0.003, 2000): [(10, 95.0), (800, 92.4)],
    ("online_norm", 0.003, 2000): [(50, 95.6), (800, 93.4)],
    ("adam", 1e-4, 2000): [(10, 94.5), (800, 91.3)],
    ("cbp", 0.003, 2000): [(10, 95.0), (800, 95.0)],
}

flags.adopt_module_key_flags(experiment)
NUM_TASKS = flags.DEFINE_integer("num_tasks", 800, "Tasks.", lower_bound=1)
EXAMPLES_PER_TASK = flags.DEFINE_integer(
    "examples_per_task", 60_000, "Examples in each task.", lower_bound=1
)
HIDDEN_UNITS = flags.DEFINE_integer(
    "hidden_units", 2000, "Units in each hidden layer.", lower_bound=1
)
NUM_HIDDEN_LAYERS = flags.DEFINE_integer(
    "num_hidden_layers", 3, "Hidden layers.", lower_bound=1
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 1, "Examples in each update.", lower_bound=1
)
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Folder of tensorflow_datasets with MNIST in it. By default its own "
    "folder, to which MNIST is downloaded if need be.",
)


def build_model(num_pixels, method, seed):
    """The paper's network, compiled: ReLU layers and one linear layer.

    The seed decides the initial weights, which are the same for all methods.
    """
    rng = np.random.default_rng(seed)
    num_hidden = 0 if method.has("linear") else NUM_HIDDEN_LAYERS.value
    seeds = rng.integers(2**31, size=NUM_HIDDEN_LAYERS.value + 1).tolist()
    layers = [keras.Input((num_pixels,))]
    for i in range(num_hidden):
        layers += method.hidden(
            "Dense",
            units=HIDDEN_UNITS.value,
            kernel_initializer=keras.initializers.HeUniform(seeds[i]),
            name=f"hidden_{i + 1}",
        )
    layers.append(
        method.layers.Dense(
            NUM_CLASSES,
            kernel_initializer=keras.initializers.LecunUniform(seeds[-1]),
            name="output",
        )
    )
    model = keras.Sequential(layers)
    model.compile(
        optimizer=method.optimizer(seed, "he_uniform"),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def published(method):
    is_protocol = (
        EXAMPLES_PER_TASK.value == 60_000
        and NUM_HIDDEN_LAYERS.value == 3
        and BATCH_SIZE.value == 1
    )
    changed = method.changed - {"learning_rate"}
    if method.has("dropout"):
        # The paper shows another rate than the one that it found best.
        is_protocol &= method.settings["dropout_rate"] == 0.1
        changed -= {"dropout_rate"}
    key = (method.name, method.settings["learning_rate"], HIDDEN_UNITS.value)
    return PUBLISHED.get(key, []) if is_protocol and not changed else []


def make_problem():
    return experiment.Problem(
        name="online_permuted_mnist",
        title="Online Permuted MNIST",
        metric="online_accuracy",
        result="accuracy",
        metric_label="online accuracy (%)",
        lower_is_better=False,
        scale=100.0,
        format=".2f",
        tasks_per_bin=1,
        x_label="tasks",
        x_per_task=1,
        examples_per_task=EXAMPLES_PER_TASK.value,
        steps_per_task=math.ceil(EXAMPLES_PER_TASK.value / BATCH_SIZE.value),
        num_learners=1,
        methods=("bp", "cbp"),
        num_probe_examples=NUM_PROBE_EXAMPLES,
        diagnostics=True,
        # The best of those in the paper.
        defaults={
            "learning_rate": {None: 0.003, "adam": 1e-4},
            "l2": 1e-4,
            "noise_stddev": 1e-5,
            "dropout_rate": 0.03,
            "replacement_rate": 1e-6,
            # Of this the paper has no results: the best of those tried with
            # 100 units (BUILD_NOTES.md). 0.999 leaves a network at chance.
            "shrink": {None: 0.99999, "shrink_and_perturb_tasks": 0.2},
            "perturb": {None: 1e-3, "shrink_and_perturb_tasks": 0.8},
        },
        published=published,
        may_grow=("num_tasks",),
    )


def main(argv):
    experiment.check_arguments(argv)
    try:
        images, labels = datasets.load_mnist(DATA_DIR.value)
    except (ImportError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    num_pixels = math.prod(images.shape[1:])
    experiment.run(
        sys.modules[__name__],
        make_problem(),
        lambda method, seed: build_model(num_pixels, method, seed),
        lambda seed: streams.OnlinePermutedImages(
            images,
            labels,
            num_tasks=NUM_TASKS.value,
            examples_per_task=EXAMPLES_PER_TASK.value,
            seed=seed,
        ),
        num_tasks=NUM_TASKS.value,
        batch_size=BATCH_SIZE.value,
    )


if __name__ == "__main__":
    app.run(main)
