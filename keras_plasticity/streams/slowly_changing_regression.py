import copy

import numpy as np

from keras_plasticity import validation
from keras_plasticity.seeds import derived_seed
from keras_plasticity.streams import arguments


class SlowlyChangingRegression:
    """Regression on bits, most of which change rarely ("bit-flipping").

    An example has `num_bits` bits. The first `num_slow_bits` keep their values
    for a whole task; the others are fair coin flips in every example. The
    target is the output of a fixed network with one hidden layer of
    `num_target_units` linear threshold units, whose weights and biases are all
    +1 or -1. A learner much smaller than the target network has to keep
    tracking it.

    Unit i of the target network fires when its pre-activation exceeds
    `(num_bits + 1) * beta - S_i`. In the paper `S_i` is the number of negative
    incoming weights. The authors' code computes `(num_bits - sum_j w_ij +
    b_i) / 2`, with which a unit of negative bias fires far more rarely; the
    published errors go with the code, so that is the default here.

    What a task has is drawn from `numpy.random.default_rng([seed, index])`, the
    target network and, with `flip_one`, the slow bits from another seed,
    `keras_plasticity.derived_seed(seed, "target network")`. For NumPy the seeds
    `[seed, 0]` and `seed` are the same, so a program that draws initial weights
    from `default_rng(seed)` draws the numbers of task 0.

    Args:
        num_tasks: Integer, the number of tasks. Defaults to 100: with the
            default length of a task, 1 million examples.
        examples_per_task: Integer, the number of examples between changes.
            Defaults to 10,000.
        flip_one: Boolean, whether a change flips one slow bit, chosen at
            random, or redraws all of them. Defaults to `False`.
        seed: Non-negative integer. It determines the target network, the slow
            bits and the examples. Defaults to 0.
        num_bits: Integer. Defaults to 20.
        num_slow_bits: Integer, at most `num_bits`. Defaults to 15.
        num_target_units: Integer. Defaults to 100.
        beta: Float, the threshold of target units: the larger, the more rarely
            they fire. Defaults to 0.7.
        negatives: `"code"` or `"paper"`, the formula for `S_i`.

    Example:

    >>> stream = keras_plasticity.streams.SlowlyChangingRegression(seed=1)
    >>> x, y = stream.task(0)
    >>> x.shape, y.shape
    ((10000, 20), (10000, 1))

    References:

    - [Dohare et al., 2024](https://doi.org/10.1038/s41586-024-07711-7)
    """

    def __init__(
        self,
        num_tasks: int = 100,
        examples_per_task: int = 10_000,
        flip_one: bool = False,
        seed: int = 0,
        num_bits: int = 20,
        num_slow_bits: int = 15,
        num_target_units: int = 100,
        beta: float = 0.7,
        negatives: str = "code",
    ):
        self.num_tasks = validation.check_integer("num_tasks", num_tasks, 1)
        self.examples_per_task = validation.check_integer(
            "examples_per_task", examples_per_task, 1
        )
        self.flip_one = validation.check_boolean("flip_one", flip_one)
        self.seed = arguments.check_seed(seed)
        num_bits = validation.check_integer("num_bits", num_bits, 1)
        num_slow_bits = validation.check_integer(
            "num_slow_bits", num_slow_bits, 0
        )
        num_target_units = validation.check_integer(
            "num_target_units", num_target_units, 1
        )
        beta = validation.check_number("beta", beta)
        negatives = validation.check_choice(
            "negatives", negatives, ("code", "paper")
        )
        if not num_bits - 62 <= num_slow_bits <= num_bits:
            raise ValueError(
                "`num_slow_bits` must be between 0 and `num_bits`, and at "
                "least `num_bits - 62`. Received: "
                f"num_slow_bits={num_slow_bits}, num_bits={num_bits}"
            )
        self.num_bits = num_bits
        self.num_slow_bits = num_slow_bits

        # Not of `seed` alone: task 0 would draw the same numbers.
        random = np.random.default_rng(
            derived_seed(self.seed, "target network")
        )
        shape = (num_bits, num_target_units)
        self._weights = random.choice([-1.0, 1.0], shape).astype("float32")
        self._biases = random.choice([-1.0, 1.0], shape[1]).astype("float32")
        self._output_weights = random.choice(
            [-1.0, 1.0], (num_target_units, 1)
        ).astype("float32")
        self._output_bias = random.choice([-1.0, 1.0])
        if negatives == "code":
            num_negative = (
                num_bits - self._weights.sum(axis=0) + self._biases
            ) / 2
        else:
            num_negative = (self._weights < 0).sum(axis=0) + (self._biases < 0)
        self._thresholds = ((num_bits + 1) * beta - num_negative).astype(
            "float32"
        )
        self._first_slow_bits = random.integers(0, 2, num_slow_bits)
        # The bits that flip are drawn next, as many as a task needs.
        self._random = random

    def __len__(self) -> int:
        """The number of tasks."""
        return self.num_tasks

    def task(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the examples of a task.

        Args:
            index: Integer in `[0, num_tasks)`.

        Returns:
            Tuple `(x, y)` of float32 arrays of shapes
            `(examples_per_task, num_bits)` and `(examples_per_task, 1)`.
        """
        index = arguments.check_index(index, self.num_tasks)
        random = np.random.default_rng([self.seed, index])
        slow_bits = self._slow_bits(index, random)
        num_fast_bits = self.num_bits - self.num_slow_bits
        codes = random.integers(0, 2**num_fast_bits, self.examples_per_task)
        # Within a task there are few distinct examples, 32 with the defaults:
        # the target is computed once for each.
        codes, which = np.unique(codes, return_inverse=True)
        x = np.empty((len(codes), self.num_bits), "float32")
        x[:, : self.num_slow_bits] = slow_bits
        x[:, self.num_slow_bits :] = codes[:, None] >> np.arange(num_fast_bits)
        x[:, self.num_slow_bits :] %= 2
        return x[which], self.target(x)[which]

    def target(self, x: np.ndarray) -> np.ndarray:
        """The target network's output.

        Args:
            x: Array of bits, shape `(examples, num_bits)`.

        Returns:
            Float32 array of shape `(examples, 1)`.
        """
        x = validation.check_array("x", x)
        if x.ndim != 2 or x.shape[1] != self.num_bits:
            raise ValueError(
                f"`x` must have the shape (examples, {self.num_bits}). "
                f"Received: x.shape={x.shape}"
            )
        fires = x @ self._weights + self._biases > self._thresholds
        output = fires.astype("float32") @ self._output_weights
        return (output + self._output_bias).astype("float32")

    def _slow_bits(self, index, random):
        if not self.flip_one:
            return random.integers(0, 2, self.num_slow_bits)
        random = copy.deepcopy(self._random)
        flips = random.integers(0, max(1, self.num_slow_bits), index + 1)
        num_flips = np.bincount(flips[1:], minlength=self.num_slow_bits)
        return (self._first_slow_bits + num_flips[: self.num_slow_bits]) % 2
