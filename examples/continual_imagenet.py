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

import math
import sys

import experiment
import keras
import numpy as np
from absl import app
from absl import flags

from keras_plasticity import callbacks
from keras_plasticity import datasets
from keras_plasticity import streams

NUM_CLASSES = 2
# (filters, size of the kernel) and units of the paper's network.
CONVOLUTIONS = ((32, 5), (64, 3), (128, 3))
UNITS = (128, 128)
TASKS_PER_PUBLISHED_BIN = 50
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

flags.adopt_module_key_flags(experiment)
NUM_TASKS = flags.DEFINE_integer("num_tasks", 2000, "Tasks.", lower_bound=1)
EPOCHS = flags.DEFINE_integer(
    "epochs", 250, "Passes over the images of a task.", lower_bound=1
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 100, "Images in each update.", lower_bound=1
)
TRAIN_IMAGES = flags.DEFINE_integer(
    "train_images_per_class", 600, "To train on.", lower_bound=1
)
TEST_IMAGES = flags.DEFINE_integer(
    "test_images_per_class", 100, "To test on.", lower_bound=1
)
SCALE = flags.DEFINE_enum(
    "scale",
    "unit",
    ["unit", "raw", "centered"],
    "Pixels in [0, 1], as they are in [0, 255], or in [-1, 1]. (The paper "
    "does not say.)",
)
NUM_PROBE_IMAGES = 200
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Folder of tensorflow_datasets with imagenet_resized/32x32 in it. By "
    "default its own folder, to which the images are downloaded if need be.",
)
CACHE_DIR = flags.DEFINE_string(
    "cache_dir", None, "Folder for the images sorted by class."
)


def build_model(image_shape, method, seed):
    """The paper's network, with the initial weights of PyTorch."""
    rng = np.random.default_rng(seed)

    def initializer():
        return keras.initializers.VarianceScaling(
            1 / 3, "fan_in", "uniform", seed=int(rng.integers(2**31))
        )

    layers = [keras.Input(image_shape)]
    if not method.has("linear"):
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
    if not method.has("linear"):
        for number, units in enumerate(UNITS, start=1):
            layers += method.hidden(
                "Dense",
                units=units,
                kernel_initializer=initializer(),
                name=f"dense_{number}",
            )
    layers.append(
        method.layers.Dense(
            NUM_CLASSES, kernel_initializer=initializer(), name="head"
        )
    )
    model = keras.Sequential(layers)
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            # Not by an initializer: a new unit's bias is zero.
            bound = 1 / math.sqrt(math.prod(layer.kernel.shape[:-1]))
            layer.bias.assign(rng.uniform(-bound, bound, layer.bias.shape))
    model.compile(
        optimizer=method.optimizer(seed, initializer()),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def tasks_per_bin():
    """As the paper; a short run is shown in at least four bins."""
    return min(TASKS_PER_PUBLISHED_BIN, max(1, NUM_TASKS.value // 4))


def published(method):
    is_protocol = (
        EPOCHS.value == 250
        and BATCH_SIZE.value == 100
        and TRAIN_IMAGES.value == 600
        and TEST_IMAGES.value == 100
        and tasks_per_bin() == TASKS_PER_PUBLISHED_BIN
        and SCALE.value == "unit"
        and method.changed <= {"learning_rate"}
    )
    key = (method.name, method.settings["learning_rate"])
    return PUBLISHED.get(key, []) if is_protocol else []


def make_problem():
    steps = math.ceil(NUM_CLASSES * TRAIN_IMAGES.value / BATCH_SIZE.value)
    return experiment.Problem(
        name="continual_imagenet",
        title="Continual ImageNet",
        metric="test_accuracy",
        result="test_accuracy",
        metric_label="test accuracy (%)",
        lower_is_better=False,
        scale=100.0,
        format=".2f",
        tasks_per_bin=tasks_per_bin(),
        x_label="tasks",
        x_per_task=1,
        examples_per_task=NUM_CLASSES * TRAIN_IMAGES.value,
        steps_per_task=EPOCHS.value * steps,
        num_learners=1,
        methods=("bp", "cbp"),
        num_probe_examples=NUM_PROBE_IMAGES,
        diagnostics=True,
        # The best of those in the paper; Adam and what is not in it: those of
        # https://arxiv.org/abs/2308.11958.
        defaults={
            # The first that is a part of a method counts.
            "learning_rate": {
                "adam": 1e-3,
                "cbp": 0.01,
                "l2": 0.03,
                None: 0.01,
            },
            "momentum": 0.9,
            "l2": {None: 1e-5, "l2": 3e-6},
            "noise_stddev": 1e-5,
            "shrink": {None: 0.9999, "shrink_and_perturb_tasks": 0.2},
            "replacement_rate": 3e-4,
        },
        published=published,
        may_grow=("num_tasks",),
    )


def main(argv):
    experiment.check_arguments(argv)
    try:
        images, labels = datasets.load_imagenet(DATA_DIR.value, CACHE_DIR.value)

        def build_stream(seed):
            return streams.BinaryClassPairs(
                images,
                labels,
                num_tasks=NUM_TASKS.value,
                train_images_per_class=TRAIN_IMAGES.value,
                test_images_per_class=TEST_IMAGES.value,
                scale=SCALE.value,
                seed=seed,
            )

        image_shape = build_stream(0).image_shape
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    experiment.run(
        sys.modules[__name__],
        make_problem(),
        lambda method, seed: build_model(image_shape, method, seed),
        build_stream,
        num_tasks=NUM_TASKS.value,
        batch_size=BATCH_SIZE.value,
        epochs=EPOCHS.value,
        task_callbacks=[callbacks.ZeroWeights(["head"])],
    )


if __name__ == "__main__":
    app.run(main)
