"""Noise that is added to weights in each update, drawn ahead."""

import math

import keras
from keras import ops

from keras_plasticity import backend
from keras_plasticity.optimizers.settings import Hyperparameter


class NoiseMagnitude(Hyperparameter):
    """What noise is multiplied by; without any there is no table of noise."""

    def __set__(self, optimizer, value):
        if optimizer.built and (before := self.__get__(optimizer)) == 0:
            raise ValueError(
                f"`{self.name}` of a `{type(optimizer).__name__}` that was "
                "built on a model with 0, so without noise, cannot change. "
                "Make a new optimizer, and `compile` the model again. "
                f"Received: {self.name}={value}, before {before}"
            )
        super().__set__(optimizer, value)


class NoiseTable:
    """Random numbers of magnitude one, for each weight in each update.

    To draw a random number takes far longer than to update a weight. So the
    numbers for `refresh_steps` updates are drawn at once, into a table that
    has one place for each weight, and one more for each further update. An
    update reads a window of it, which is one place further on each time, times
    a random sign, the same for all weights. Hence

    - in one update, the noise of all weights is independent;
    - from update to update, so is the noise of one weight, which never meets
        the same number twice;
    - but the noise of a weight has the magnitude that its neighbour in memory
        had an update before. The signs make the two uncorrelated all the
        same. Without them, neighbours would drift together.

    In an update, `begin_update` comes first and `end_update` last.

    Args:
        optimizer: The optimizer that makes the variables, while it is built.
        refresh_steps: Integer. With 1 there is no table.
        weights: List of the variables that have noise.
        draw: Keras initializer of a distribution that is symmetric about
            zero, with a generator for its seed; of no use without weights.
    """

    def __init__(self, optimizer, refresh_steps, weights, draw):
        self._refresh_steps = refresh_steps
        self._draw = draw
        # Where the windows of variables begin, by their ids.
        self._offsets = {}
        size = 0
        for weight in weights:
            self._offsets[id(weight)] = size
            size += math.prod(weight.shape)
        self._table = None
        self._now = None
        if size == 0 or refresh_steps == 1:
            return
        # Half precision is half the memory to read in each update.
        self._table = optimizer.add_variable(
            (size + refresh_steps - 1,), dtype="float16", name="noise"
        )
        self._signs = optimizer.add_variable((refresh_steps,), name="signs")
        self._position = optimizer.add_variable(
            (1,), dtype="int32", name="position"
        )
        self._sign = optimizer.add_variable((), name="sign")

    def __contains__(self, weight):
        return id(weight) in self._offsets

    @property
    def variables(self):
        """Those that an update reads and assigns."""
        result = [self._draw.seed.state] if self._offsets else []
        if self._table is not None:
            result += [self._table, self._signs, self._position, self._sign]
        return result

    def begin_update(self):
        """The sign of all numbers: a scalar tensor, or 1."""
        if self._table is None:
            return 1.0
        self._now = ops.convert_to_tensor(self._position)
        backend.run_if(
            ops.equal(self._now[0], 0), self._refresh, self.variables
        )
        return ops.convert_to_tensor(self._sign)

    def numbers(self, weight):
        """The numbers for a weight, without the sign: a float32 tensor."""
        shape = tuple(weight.shape)
        if self._table is None:
            return self._draw(shape, "float32")
        window = backend.window(
            ops.convert_to_tensor(self._table),
            self._now + self._offsets[id(weight)],
            math.prod(shape),
        )
        return ops.cast(ops.reshape(window, shape), "float32")

    def end_update(self):
        if self._table is None:
            return
        position = (self._now + 1) % self._refresh_steps
        self._now = None
        self._position.assign(position)
        self._set_sign(position)

    def _set_sign(self, position):
        # Looked up for the next update, not for this one: on a CPU, XLA would
        # look it up once for each weight.
        sign = ops.reshape(backend.window(self._signs.value, position, 1), ())
        self._sign.assign(sign)

    def _refresh(self):
        """Draws the table and the signs of the next updates."""
        numbers = self._draw(self._table.shape, "float32")
        self._table.assign(ops.cast(numbers, "float16"))
        heads = keras.random.randint(
            self._signs.shape, 0, 2, seed=self._draw.seed
        )
        self._signs.assign(2.0 * ops.cast(heads, self._signs.dtype) - 1.0)
        self._set_sign(self._position.value)
