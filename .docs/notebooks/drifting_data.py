# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A Keras application on drifting data
#
# A narrow MobileNet of `keras.applications`, made plastic by one call, learns
# images whose classes look different every day. A monitor watches the inside of
# the network.
#
# The images are made here, of 32 x 32 pixels: each class is a pattern, and
# noise hides it. Each day has new patterns. This is a tour of the tools, not an
# experiment: a few days tell nothing about methods.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_plasticity

keras.utils.set_random_seed(0)
NUM_CLASSES = 4
MEASURES = ["dormant_units", "effective_rank", "weight_magnitude"]


def images_of_day(day, num_images):
    rng = np.random.default_rng([day, num_images])
    patterns = np.random.default_rng(day).normal(size=(NUM_CLASSES, 4, 4, 3))
    patterns = patterns.repeat(8, axis=1).repeat(8, axis=2)
    labels = rng.integers(NUM_CLASSES, size=num_images)
    noise = rng.normal(size=(num_images, 32, 32, 3))
    images = 0.5 * patterns[labels] + 0.5 * noise
    return images.astype("float32"), labels


# %% [markdown]
# Usual rates would replace nothing within three days of 16 updates each, so
# this one is high, and units count as mature after 20 updates.

# %%
model = keras.applications.MobileNet(
    input_shape=(32, 32, 3), alpha=0.25, weights=None, classes=NUM_CLASSES
)
keras_plasticity.models.make_plastic(model)
model.compile(
    optimizer=keras_plasticity.optimizers.ContinualBackprop(
        keras.optimizers.Adam(1e-3),
        replacement_rate=1e-3,
        maturity_threshold=20,
    ),
    loss="sparse_categorical_crossentropy",
    metrics=["accuracy"],
)

# %% [markdown]
# The monitor measures on the images that the network was last trained on. To be
# quick it looks at three layers and at measures of activations and weights
# only.


# %%
class Day(keras.utils.PyDataset):
    def __init__(self, day):
        super().__init__()
        self.images, self.labels = images_of_day(day, 256)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        rows = slice(32 * index, 32 * (index + 1))
        return self.images[rows], self.labels[rows]


recent = keras_plasticity.diagnosis.RecentExamples(128)
monitor = keras_plasticity.callbacks.PlasticityMonitor(
    recent,
    layers=["conv_pw_1", "conv_pw_7", "conv_pw_13"],
    measures=MEASURES,
)
for day in range(3):
    history = model.fit(
        recent.record(Day(day)), epochs=2, callbacks=[monitor], verbose=0
    )
    first, second = history.history["accuracy"]
    print(f"day {day}: accuracy {first:.2f}, {second:.2f}")

# %% [markdown]
# What the monitor saw, one point for each pass over a day's images:

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 2.8))
steps = [measured["step"] for measured in monitor.history]
for one, name in zip(axes, MEASURES):
    one.plot(steps, [m[name]["total"] for m in monitor.history], marker="o")
    one.set_title(name.replace("_", " "))
    one.set_xlabel("passes")
figure.tight_layout()
plt.show()

# %%
replaced = model.optimizer.num_replaced()
print(f"{sum(replaced.values())} units replaced in {len(replaced)} layers")

# %% [markdown]
# In production `log_dir="logs/production"` writes the same for TensorBoard, and
# `thresholds={"dead_units": 0.2}` warns in words.
