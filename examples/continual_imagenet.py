"""Continual ImageNet: a sequence of tasks to tell two classes apart.

A convolutional network learns to tell images of two classes apart, for many
epochs; then the next two classes come, and its last layer starts at zero. How
many of the test images of a task it gets right after its last epoch says how
well it still learns. The defaults are those of the paper: 2,000 tasks
(backpropagation's; the paper has 5,000 of most other methods) of 250 epochs on
600 images of each class. A small run, on a folder with fewer images in it, is

    python examples/continual_imagenet.py --num_tasks=20 --epochs=50 \
        --train_images_per_class=400

In far fewer epochs the network, which begins with small weights, tells nothing
apart in its first tasks.

Images come from `imagenet_resized/32x32` of `tensorflow_datasets`. The first
run sorts them by class into a cache, after which a task loads in
milliseconds. The environment variable `KERAS_BACKEND` chooses jax, tensorflow
or torch.

References:

- [Dohare et al., 2024](https://doi.org/10.1038/s41586-024-07711-7)
"""

import functools
import math
import sys

import keras
import numpy as np
from absl import flags

from keras_plasticity import callbacks
from keras_plasticity import datasets
from keras_plasticity import derived_seed
from keras_plasticity import experiments
from keras_plasticity import streams

NUM_CLASSES = 2
# (filters, size of the kernel) and units of the paper's network.
CONVOLUTIONS = ((32, 5), (64, 3), (128, 3))
UNITS = (128, 128)
# The first that is a part of a method counts.
LEARNING_RATES = {"adam": 1e-3, "cbp": 0.01, "l2": 0.03, None: 0.01}
# Test accuracy in percent, means of 50 tasks, read off the published figures:
# (method, learning rate) -> [(last task of the 50, accuracy), ...].
PUBLISHED = {
    ("bp", 0.01): [(50, 84.3), (100, 85.2), (1000, 81.5), (2000, 74.0)],
    ("bp", 0.001): [(50, 83.2), (2000, 78.7)],
    ("bp", 0.0001): [(300, 80.2), (2000, 78.4)],
    ("linear", 0.01): [(50, 77.1), (2000, 77.1)],
    ("l2", 0.03): [(50, 85.2), (2000, 88.1), (5000, 89.15)],
    ("shrink_and_perturb", 0.01): [(50, 84.3), (2000, 87.9), (5000, 89.2)],
    ("cbp", 0.01): [(50, 84.5), (2000, 88.9), (5000, 90.45)],
}
# The best of those in the paper; Adam and what is not in it: those of
# https://arxiv.org/abs/2308.11958.
DEFAULTS = {
    "learning_rate": LEARNING_RATES,
    "momentum": 0.9,
    "l2": {None: 1e-5, "l2": 3e-6},
    "noise_stddev": 1e-5,
    "shrink": {None: 0.9999, "shrink_and_perturb_tasks": 0.2},
    "replacement_rate": 3e-4,
    # As Kumar et al. found best: dead units, once a task.
    "redo_threshold": 0.0,
    "redo_score_updates": 3,
    # Of the authors' code: the dense layers, by a dozen mini-batches.
    "rank_learning_rate": 1e-4,
    "rank_period": 12,
    "rank_layers": 2,
}
ONCE_A_TASK = ("redo_period", "resets_threshold_period")


def define_flags(flag_values):
    integer = functools.partial(
        flags.DEFINE_integer, lower_bound=1, flag_values=flag_values
    )
    integer("num_tasks", 2000, "Tasks.")
    integer("epochs", 250, "Passes over the images of a task.")
    integer("batch_size", 100, "Images in each update.")
    integer("train_images_per_class", 600, "To train on.")
    integer("test_images_per_class", 100, "To test on.")
    flags.DEFINE_enum(
        "scale",
        "unit",
        ["unit", "raw", "centered"],
        "Pixels in [0, 1], as they are in [0, 255], or in [-1, 1]. (The paper "
        "does not say.)",
        flag_values=flag_values,
    )
    flags.DEFINE_boolean(
        "reshuffle_each_pass",
        False,
        "Pair the classes anew in each pass over them. (The paper repeats the "
        "pairs.)",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "cache_dir", None, "For images sorted by class.", flag_values
    )
    experiments.define_flags(
        flag_values,
        data_set="imagenet_resized/32x32",
        defaults=DEFAULTS
        | dict.fromkeys(ONCE_A_TASK, "the updates of a task")
        | {"rank_examples": "12 mini-batches", "num_learners": 1}
        | {"method": "bp, cbp", "diagnostics": True},
    )


def build_model(image_shape, method, seed):
    """The paper's network, with the initial weights of PyTorch."""
    rng = np.random.default_rng(derived_seed(seed, "initial weights"))
    initializer = functools.partial(experiments.pytorch_initializer, rng)
    layers = [keras.Input(image_shape), *method.input_layers()]
    if method.has_hidden_layers:
        for number, (filters, size) in enumerate(CONVOLUTIONS, start=1):
            layers += method.hidden(
                "Conv2D",
                filters=filters,
                kernel_size=size,
                kernel_initializer=initializer(),
                name=f"convolution_{number}",
            )
            layers.append(keras.layers.MaxPooling2D(2))
    layers.append(keras.layers.Flatten())
    if method.has_hidden_layers:
        for number, units in enumerate(UNITS, start=1):
            layers += method.hidden(
                "Dense",
                units=units,
                kernel_initializer=initializer(),
                name=f"dense_{number}",
            )
    layers.append(
        method.layers.Dense(
            NUM_CLASSES, kernel_initializer=initializer(), name="output"
        )
    )
    model = method.network(layers)
    experiments.draw_pytorch_biases(model, rng)
    model.compile(
        optimizer=method.optimizer(seed, initializer()),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def published(flag_values, method):
    settings = (
        "epochs",
        "batch_size",
        "train_images_per_class",
        "test_images_per_class",
        "scale",
        "reshuffle_each_pass",
    )
    is_protocol = (
        experiments.has_defaults(flag_values, settings)
        # A shorter run has smaller bins.
        and flag_values.num_tasks >= 200
        and method.changed <= {"learning_rate"}
    )
    if not is_protocol:
        return []
    return PUBLISHED.get((method.name, method.settings["learning_rate"]), [])


def make_problem(flag_values):
    examples = NUM_CLASSES * flag_values.train_images_per_class
    steps = math.ceil(examples / flag_values.batch_size) * flag_values.epochs
    return experiments.Problem(
        name="continual_imagenet",
        title="Continual ImageNet",
        metric="test_accuracy",
        result="test_accuracy",
        metric_label="test accuracy (%)",
        tasks_per_bin=experiments.tasks_per_bin(50, flag_values.num_tasks),
        examples_per_task=examples,
        num_probe_examples=200,
        defaults=DEFAULTS
        | dict.fromkeys(ONCE_A_TASK, steps)
        | {"rank_examples": 12 * flag_values.batch_size},
        published=functools.partial(published, flag_values),
    )


def run(flag_values):
    problem = make_problem(flag_values)
    # TensorFlow, which reads the images, lets nobody choose afterwards.
    experiments.configure_backend(flag_values, problem, flag_values.batch_size)
    try:
        images, labels = datasets.load_imagenet(
            flag_values.data_dir, flag_values.cache_dir
        )

        def build_stream(seed):
            return streams.BinaryClassPairs(
                images,
                labels,
                num_tasks=flag_values.num_tasks,
                train_images_per_class=flag_values.train_images_per_class,
                test_images_per_class=flag_values.test_images_per_class,
                scale=flag_values.scale,
                seed=seed,
                reshuffle_each_pass=flag_values.reshuffle_each_pass,
            )

        image_shape = build_stream(0).image_shape
    except (ImportError, OSError, ValueError) as error:
        sys.exit(str(error))
    return experiments.run(
        flag_values,
        problem,
        functools.partial(build_model, image_shape),
        build_stream,
        num_tasks=flag_values.num_tasks,
        batch_size=flag_values.batch_size,
        epochs=flag_values.epochs,
        task_callbacks=[callbacks.ZeroWeights(["output"])],
    )


if __name__ == "__main__":
    experiments.launch(define_flags, run)
