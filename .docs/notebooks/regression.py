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
# # Plasticity lost and kept
#
# A small network follows a fixed target. Its inputs change slowly: most bits of
# an input are drawn anew for each example, the others stay for 5,000 examples
# and are then redrawn. The network has too few units to learn the target for
# all inputs, so it has to go on learning for ever. That is the smallest problem
# on which a network is seen to lose its plasticity.
#
# Here ten networks of each kind see 200,000 examples each, one at a time. It
# takes less than a minute on two cores.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_plasticity
from keras_plasticity import streams
from keras_plasticity import training

NUM_LEARNERS = 10
NUM_TASKS = 40


def build_stream(learner):
    return streams.SlowlyChangingRegression(
        num_tasks=NUM_TASKS, examples_per_task=5000, seed=learner
    )


# %% [markdown]
# The two kinds of networks have the same initial weights and the same plastic
# layers. In the first one the rate is 0: units are observed, but never
# replaced, and what remains is backpropagation.


# %%
def model_builder(replacement_rate):
    def build_model(learner):
        first = keras.initializers.HeUniform(seed=learner)
        last = keras.initializers.LecunUniform(seed=1000 + learner)
        model = keras.Sequential(
            [
                keras.Input((20,)),
                keras_plasticity.layers.Dense(
                    5,
                    activation="relu",
                    kernel_initializer=first,
                    name="hidden",
                ),
                keras_plasticity.layers.Dense(
                    1, kernel_initializer=last, name="output"
                ),
            ]
        )
        model.compile(
            optimizer=keras_plasticity.optimizers.ContinualBackprop(
                keras.optimizers.SGD(0.01),
                replacement_rate=replacement_rate,
                utility="overall",
                seed=learner,
            ),
            loss="mse",
        )
        return model

    return build_model


losses = {}
trainers = {}
for name, rate in [("backpropagation", 0.0), ("continual", 1e-3)]:
    trainer = training.OnlineTrainer(
        model_builder(rate), num_learners=NUM_LEARNERS
    )
    losses[name] = trainer.fit(build_stream)["loss"]
    trainers[name] = trainer

# %% [markdown]
# The squared error of each task is measured before each update, so it says how
# well the network keeps up. Lines are means over the ten learners, bands their
# standard errors, in bins of four tasks.

# %%
figure, axes = plt.subplots(figsize=(7, 4))
for name, loss in losses.items():
    bins = loss.reshape(-1, 4, NUM_LEARNERS).mean(axis=1)
    mean = bins.mean(axis=1)
    error = bins.std(axis=1, ddof=1) / np.sqrt(NUM_LEARNERS)
    examples = 20_000 * (1 + np.arange(len(bins)))
    axes.plot(examples, mean, label=name)
    axes.fill_between(examples, mean - error, mean + error, alpha=0.2)
axes.set_xlabel("examples")
axes.set_ylabel("squared error")
axes.set_ylim(bottom=0)
axes.legend()
plt.show()

# %% [markdown]
# What has become of the units? `measure` looks at each learner's network on the
# examples of the next task.

# %%
for name, trainer in trainers.items():
    dead, weights = [], []
    for learner in range(NUM_LEARNERS):
        x, y = build_stream(learner).task(NUM_TASKS - 1)
        measured = keras_plasticity.measure(trainer.model(learner), x[:500])
        dead.append(measured["dead_units"]["total"])
        weights.append(measured["weight_magnitude"]["total"])
    print(
        f"{name}: {np.mean(dead):.1f} of 5 units are dead, "
        f"mean weight {np.mean(weights):.2f}"
    )

# %% [markdown]
# The full demo, with 30 learners of a million examples, is
# `examples/slowly_changing_regression.py`.
