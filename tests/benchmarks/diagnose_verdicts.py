"""How often `diagnose` is right about networks whose fate is known.

    KERAS_BACKEND=jax python -m tests.benchmarks.diagnose_verdicts

trains learners of Slowly-Changing Regression by plain backpropagation (the
paper's network, ReLU, step size 0.01), and diagnoses each of them on the coming
task: before training, after the tasks of the paper's first bin, and at the end,
where they have lost plasticity. It prints one line for each learner, and how
many verdicts say so. The thresholds of the verdict were chosen on seeds 0 to
29: take others.
"""

import argparse

import keras
import numpy as np

import keras_plasticity
from examples import slowly_changing_regression as trainer
from keras_plasticity import seeds
from keras_plasticity import streams
from keras_plasticity.training import OnlineTrainer
from keras_plasticity.training import TaskCallback


class KeepWeights(TaskCallback):
    """Keeps the weights of all learners before some tasks."""

    def __init__(self, tasks):
        self.weights = dict.fromkeys(tasks)

    def on_task_begin(self, task, x, y):
        if task in self.weights:
            self.weights[task] = [
                [np.array(w) for w in self.trainer.model(i).get_weights()]
                for i in range(self.trainer.num_learners)
            ]


def build_model(seed):
    initializer = keras.initializers.VarianceScaling(
        2.0, "fan_in", "uniform", seed=seeds.derived_seed(seed, "hidden")
    )
    model = keras.Sequential(
        [
            keras.Input((trainer.NUM_INPUTS,)),
            keras.layers.Dense(5, "relu", kernel_initializer=initializer),
            keras.layers.Dense(
                1,
                kernel_initializer=keras.initializers.LecunUniform(
                    seeds.derived_seed(seed, "output")
                ),
            ),
        ]
    )
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return model


def stream(seed, num_tasks):
    return streams.SlowlyChangingRegression(
        num_tasks=num_tasks, examples_per_task=10_000, seed=seed
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--first_seed", type=int, default=100)
    parser.add_argument("--num_learners", type=int, default=30)
    parser.add_argument("--tasks", type=int, nargs="+", default=[0, 2, 100])
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--num_steps", type=int)
    arguments = parser.parse_args()
    first, number = arguments.first_seed, arguments.num_learners
    num_tasks = max(arguments.tasks) + 1
    kept = KeepWeights(arguments.tasks)
    OnlineTrainer(lambda i: build_model(first + i), number).fit(
        lambda i: stream(first + i, num_tasks),
        num_tasks=num_tasks,
        callbacks=[kept],
    )
    for task, weights in kept.weights.items():
        lost = 0
        for learner in range(number):
            model = build_model(first + learner)
            model.set_weights(weights[learner])
            diagnosis = keras_plasticity.diagnose(
                model,
                stream(first + learner, num_tasks).task(task),
                batch_size=arguments.batch_size,
                num_steps=arguments.num_steps,
            )
            lost += diagnosis.has_lost_plasticity
            print(
                f"after {task} tasks, seed {first + learner}: loss "
                f"{diagnosis.ratio:.2f} times that of new models, "
                f"{diagnosis.share_better:.1%} of which are better; "
                f"{diagnosis.kinds}; lost: {diagnosis.has_lost_plasticity}",
                flush=True,
            )
        print(f"After {task} tasks: {lost} of {number} have lost plasticity.")


if __name__ == "__main__":
    main()
