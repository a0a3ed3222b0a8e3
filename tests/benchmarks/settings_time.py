"""What learners of different settings cost, beside as many of one setting.

    KERAS_BACKEND=jax python -m tests.benchmarks.settings_time
    KERAS_BACKEND=jax python -m tests.benchmarks.settings_time \\
        --problem=mnist --learners=32 --examples=2000

The networks are those of the trainers, with continual backpropagation and SGD
with momentum. Three trainers train in turn, in rounds, on the same examples:

- `equal`: learners of one setting, with seeds of their own;
- `different`: as many, with a step size, a momentum, a replacement rate and a
  maturity threshold for each group of `--seeds` learners;
- `few`: `--few` learners of one setting.

A ratio is the median over the rounds, and in brackets are the smallest and the
largest: of a step of `different` to one of `equal`, and of a learner-step of
`different` to one of `few`. Seconds of building and compiling are of the first
run. The number of programs that JAX has compiled for many steps is counted.
"""

import argparse
import contextlib
import platform
import statistics

import keras
import numpy as np

import keras_plasticity
from keras_plasticity.streams import SlowlyChangingRegression
from keras_plasticity.training import OnlineTrainer
from keras_plasticity.training import online_trainer

# Inputs, hidden layers, outputs and loss.
_PROBLEMS = {
    "regression": (20, [5], 1, "mse"),
    "mnist": (784, [100] * 3, 10, "sparse_categorical_crossentropy"),
}
# Settings of all, or the bounds between which they are drawn. The replacement
# rate of all is the mean of those that are drawn, so that as many units are
# replaced.
_EQUAL = (0.01, 0.9, 2.15e-4, 100)
_LEAST = (1e-3, 0.5, 1e-5, 10)
_MOST = (1e-2, 0.95, 1e-3, 1000)


class Noise:
    """A stream of tasks of noise, of the shape of images."""

    def __init__(self, seed, num_examples):
        rng = np.random.default_rng(seed)
        self._x = rng.random((num_examples, 784), dtype="float32")
        self._y = rng.integers(0, 10, num_examples).astype("int32")

    def __len__(self):
        return 1

    def task(self, index):
        return self._x, self._y


def settings_of(group):
    """Settings that a random search would draw, or those of all."""
    if group is None:
        return _EQUAL
    rng = np.random.default_rng(group)
    drawn = np.exp(rng.uniform(np.log(_LEAST), np.log(_MOST)))
    *floats, age = drawn.tolist()
    return *floats, round(age)


def build_model(problem, seed, group):
    inputs, hidden, outputs, loss = _PROBLEMS[problem]
    step_size, momentum, replacement_rate, age = settings_of(group)
    model = keras.Sequential([keras.Input((inputs,))])
    for units in hidden:
        model.add(
            keras_plasticity.layers.Dense(
                units,
                activation="relu",
                kernel_initializer=keras.initializers.HeUniform(seed),
            )
        )
    activation = None if loss == "mse" else "softmax"
    model.add(keras_plasticity.layers.Dense(outputs, activation=activation))
    model.compile(
        keras_plasticity.optimizers.ContinualBackprop(
            keras.optimizers.SGD(step_size, momentum=momentum),
            replacement_rate=replacement_rate,
            maturity_threshold=age,
            seed=seed,
        ),
        loss,
    )
    return model


class Timed:
    """Learners whose steps can be timed.

    Args:
        problem: String.
        learners: Integer.
        seeds: Integer, how many learners have the same settings; `None` if all
            have.
        examples: Integer, how many a run has.
    """

    def __init__(self, problem, learners, seeds, examples):
        def build(learner):
            group = None if seeds is None else learner // seeds
            return build_model(problem, learner, group)

        def stream(learner):
            if problem == "mnist":
                return Noise(learner, examples)
            return SlowlyChangingRegression(
                num_tasks=1, examples_per_task=examples, seed=learner
            )

        self.learners = learners
        self._stream = stream
        self._trainer = OnlineTrainer(build, learners)
        # The first run is not counted.
        with counted_programs() as programs:
            self.run()
        self.compile_seconds = self._trainer.compile_seconds
        self.programs = len(programs)

    def run(self):
        """Trains on all examples; returns the seconds of it."""
        before = self._trainer.train_seconds
        self._trainer.fit(self._stream, on_nan="continue")
        return self._trainer.train_seconds - before


@contextlib.contextmanager
def counted_programs():
    """Context that yields a list of the programs of many steps it compiles."""
    compiled = []
    if keras.backend.backend() != "jax":
        yield compiled
        return
    import jax

    compile_lowered = jax.stages.Lowered.compile

    def compile_and_note(lowered, *args, **kwargs):
        compiled.append(compile_lowered(lowered, *args, **kwargs))
        return compiled[-1]

    jax.stages.Lowered.compile = compile_and_note
    try:
        yield compiled
    finally:
        jax.stages.Lowered.compile = compile_lowered


def _summary(ratios):
    return (
        f"{statistics.median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f})"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problem", choices=_PROBLEMS, default="regression")
    parser.add_argument("--learners", type=int, default=192)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--few", type=int, default=30)
    parser.add_argument("--examples", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    # What is timed are long runs.
    online_trainer._FEWEST_STEPS_TO_COMPILE = 0
    print(
        f"{platform.processor() or platform.machine()}, keras "
        f"{keras.__version__}, {keras.backend.backend()}, {given.problem}, "
        f"{given.examples} examples, {given.rounds} rounds"
    )
    cases = {
        "equal": (given.learners, None),
        "different": (given.learners, given.seeds),
        "few": (given.few, None),
    }
    timed = {
        name: Timed(given.problem, *case, given.examples)
        for name, case in cases.items()
    }
    rounds = [
        {name: each.run() for name, each in timed.items()}
        for _ in range(given.rounds)
    ]
    for name, each in timed.items():
        seconds = statistics.median(times[name] for times in rounds)
        per_step = 1e6 * seconds / given.examples / each.learners
        print(
            f"{name:10} {each.learners:4} learners {seconds:9.2f} s "
            f"{per_step:9.4f} us a learner-step, "
            f"{each.compile_seconds:.1f} s to build and compile"
            + (f", {each.programs} programs" if each.programs else "")
        )
    more = given.learners / given.few
    equal = [times["different"] / times["equal"] for times in rounds]
    few = [times["different"] / times["few"] / more for times in rounds]
    print(f"different to equal: {_summary(equal)}")
    print(f"different to few, of a learner-step: {_summary(few)}")


if __name__ == "__main__":
    main()
