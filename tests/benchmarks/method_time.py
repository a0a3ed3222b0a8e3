"""What each method of the trainers costs, beside plain SGD.

    KERAS_BACKEND=jax python -m tests.benchmarks.method_time

The network, the method and the optimizer are those of the trainer for Online
Permuted MNIST, as `--method` makes them; the data are noise. Methods are timed
in rounds, all of them in turn, each beside a `bp` of its own that is timed just
before and after it: a ratio is the median over the rounds of a method's time to
the mean of these two. What a method does between tasks only is not timed.
"""

import argparse
import gc
import platform
import statistics

import keras
import numpy as np

from keras_plasticity import experiments
from keras_plasticity.training import OnlineTrainer
from keras_plasticity.training import online_trainer
from tests.examples.trainers import load
from tests.examples.trainers import parse

_NUM_PIXELS = 784


class Noise:
    """A stream of tasks of noise."""

    def __init__(self, num_examples):
        rng = np.random.default_rng(0)
        self._x = rng.random((num_examples, _NUM_PIXELS), dtype="float32")
        self._y = rng.integers(0, 10, num_examples).astype("int32")

    def __len__(self):
        return 10**6

    def task(self, index):
        return self._x, self._y


class Timed:
    """A method's training, whose steps can be timed."""

    def __init__(self, name, units, batch_size, seconds):
        trainer = load("online_permuted_mnist")
        flag_values = parse(
            trainer,
            f"--method={name}",
            f"--hidden_units={units}",
            f"--batch_size={batch_size}",
        )
        problem = trainer.make_problem(flag_values)
        (method,) = experiments.choose_methods(
            flag_values, problem.defaults, ()
        )
        self._batch_size = batch_size
        self._trainer = OnlineTrainer(
            lambda learner: trainer.build_model(
                flag_values, _NUM_PIXELS, method, learner
            )
        )
        # Long enough for what happens every hundred steps, and in small
        # networks for what happens every thousand.
        self._steps = 1100 if units <= 500 else 110
        per_step = self.run()
        per_step = min(per_step, self.run())
        wanted = min(200_000, int(seconds / per_step))
        if wanted > 2 * self._steps:
            self._steps = wanted
            self.run()

    def run(self):
        """Makes some steps; returns the seconds of one."""
        before = self._trainer.train_seconds
        self._trainer.fit(
            Noise(self._steps * self._batch_size),
            batch_size=self._batch_size,
            num_tasks=1,
            on_nan="continue",
        )
        return (self._trainer.train_seconds - before) / self._steps


def names(without):
    """The parts that do something in a step."""
    return [
        part.name
        for part in experiments.PARTS
        if part.name not in ("bp", *without)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="*", default=None)
    parser.add_argument("--without", nargs="*", default=["linear"])
    parser.add_argument("--units", type=int, nargs="*", default=[100])
    parser.add_argument("--batch_sizes", type=int, nargs="*", default=[1, 100])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3)
    given = parser.parse_args()
    # What is timed are long runs.
    online_trainer._FEWEST_STEPS_TO_COMPILE = 0
    print(
        f"{platform.processor() or platform.machine()}, keras "
        f"{keras.__version__}, {keras.backend.backend()}, {given.rounds} rounds"
    )
    for units in given.units:
        for batch_size in given.batch_sizes:
            print(f"\n3 x {units}, batches of {batch_size}", flush=True)
            plain = Timed("bp", units, batch_size, given.seconds)
            for name in given.methods or names(given.without):
                try:
                    timed = Timed(name, units, batch_size, given.seconds)
                except ValueError as error:
                    print(f"{name:36} {error}", flush=True)
                    continue
                ratios, times = [], []
                before = plain.run()
                for _ in range(given.rounds):
                    time = timed.run()
                    after = plain.run()
                    times.append(time)
                    ratios.append(time / ((before + after) / 2))
                    before = after
                print(
                    f"{name:36} {1e6 * statistics.median(times):10.1f} us "
                    f"{statistics.median(ratios):6.2f} "
                    f"({min(ratios):.2f} to {max(ratios):.2f})",
                    flush=True,
                )
                del timed
                gc.collect()


if __name__ == "__main__":
    main()
