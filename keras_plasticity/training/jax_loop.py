"""The engine's inner loop on JAX: one `lax.scan` over many steps of a task.

With convolutions on a CPU, it is a Python loop over one compiled step.
"""

import contextlib
import functools
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np

from keras_plasticity import backend
from keras_plasticity.training import nests
from keras_plasticity.training.interruption import only_remembers
from keras_plasticity.training.jax_programs import Programs
from keras_plasticity.training.jax_programs import state_variables

# The most weights for which a CPU trains learners faster side by side, as most
# of a step is overhead. Beyond, XLA's batched products of small matrices are
# slower than the same products one after another.
_MOST_WEIGHTS_SIDE_BY_SIDE = 3000


class JaxLoop:
    """Trains learners with one compiled program.

    See `training_loop.TrainingLoop`. On an accelerator, and for small models on
    a CPU, the learners' states are stacked along a new first axis and `vmap`
    trains them side by side. The learners of larger models on a CPU run the
    same program in turn, each on its own state. What differs between learners
    and is not held in variables, such as a momentum, is an argument of the
    program. Only the first model of each setting is kept.
    """

    def __init__(
        self, models, num_learners, batch, jit_compile="auto", first=None
    ):
        # JAX compiles in any case.
        del jit_compile
        # What all groups of learners share.
        self._programs = Programs(batch) if first is None else first._programs
        self._functions = {} if first is None else first._functions
        states = []
        # The index of each learner's settings.
        self._settings = []
        for model in models:
            states.append(_get_state(model))
            self._settings.append(self._programs.add(model))
        self.num_learners = num_learners
        num_weights = self._programs.models[0].count_params()
        self._is_stacked = num_learners > 1 and (
            backend.platform() != "cpu"
            or num_weights <= _MOST_WEIGHTS_SIDE_BY_SIDE
        )
        if self._is_stacked:
            states = [
                [
                    [jnp.stack(values) for values in zip(*parts)]
                    for parts in zip(*states)
                ]
            ]
        # One state of all learners, or one for each.
        self._states = states
        self._initial_metrics = [state[3] for state in states]
        self.reset_metrics()
        # Not where JAX would put data, which depends on the thread.
        devices = states[0][0][0].devices()
        self._device = next(iter(devices)) if len(devices) == 1 else None

    def put(self, data):
        """List of the data that belong to each of the states."""
        if self._is_stacked:
            # What belongs to one step lies together.
            parts = [nests.map_arrays(lambda a: np.swapaxes(a, 0, 1), data)]
        else:
            parts = [nests.take(data, i) for i in range(self.num_learners)]
        return [jax.device_put(part, self._device) for part in parts]

    def run(self, data, batches):
        program, function = self._function(data, batches)
        constants = self._constants(program)
        for learner, (state, part) in enumerate(zip(self._states, data)):
            where = self._where(batches, learner)
            function(state, constants[learner], part, where)

    def compile(self, data, batches):
        self._function(data, batches)

    def reset_metrics(self):
        for state, initial in zip(self._states, self._initial_metrics):
            # Copies: a step donates its state's buffers.
            state[3] = [jnp.copy(value) for value in initial]

    def results(self):
        compute = self._jitted("results", (self._states[0][3], 0))
        results = [
            compute(number, state[3])
            for number, state in enumerate(self._states)
        ]
        return {
            name: np.concatenate([np.ravel(values[i]) for values in results])
            for name, i in self._metrics
        }

    @functools.cached_property
    def _metrics(self):
        """The names of the metrics, and where a program has their values."""
        names = self._programs.models[0].get_metrics_result()
        return sorted((name, i) for i, name in enumerate(names))

    def wait(self):
        jax.block_until_ready(self._states)

    def evaluate(self, data, examples):
        data = [nests.take(part, examples) for part in data]
        compute = self._jitted("test", (self._states[0], 0), (data[0], 1))
        for number, (state, part) in enumerate(zip(self._states, data)):
            state[3] = compute(number, state, part)

    def model(self, learner):
        # Learners of equal settings share it: the state is assigned to it.
        state = self._states[0 if self._is_stacked else learner]
        if self._is_stacked:
            state = nests.take(state, learner)
        return self._programs.lend(self._settings[learner], state)

    def load_from_model(self, learner):
        model = self._programs.models[self._settings[learner]]
        self._make_room_for(model)
        new = _get_state(model)
        if self._is_stacked:
            (old,) = self._states
            new = [
                [o.at[learner].set(n) for o, n in zip(*parts)]
                for parts in zip(old, new)
            ]
            learner = 0
        self._states[learner] = new

    def _make_room_for(self, model):
        """Compiles anew if a model's settings need another program."""
        if not backend.avoids_branches():
            return
        if self._programs.make_room_for(model):
            self._functions.clear()

    def get_metrics(self):
        return self._get([state[3] for state in self._states])

    def set_metrics(self, arrays):
        for number, state in enumerate(self._states):
            self._set(state[3:], iter(arrays), number)

    def get_state(self):
        return self._get([_without_metrics(state) for state in self._states])

    def _get(self, states):
        if self._is_stacked:
            return [np.asarray(value) for value in states[0]]
        return [np.stack(values) for values in zip(*states)]

    def _set(self, parts, values, number):
        """Sets the parts of one of the states to the values of arrays."""
        for part in parts:
            part[:] = [
                jnp.asarray(
                    value if self._is_stacked else value[number], old.dtype
                )
                for old, value in zip(part, values)
            ]

    def set_state(self, arrays):
        for number, state in enumerate(self._states):
            self._set(state[:3], iter(arrays), number)
        if backend.avoids_branches():
            for learner in range(self.num_learners):
                self._make_room_for(self.model(learner))

    def _vmap(self, function, in_axes):
        return jax.vmap(function, in_axes) if self._is_stacked else function

    def _constants(self, program):
        """List of a program's constants for each of the states."""
        settings = self._settings
        if self._is_stacked:
            settings = [settings]
        return [
            jax.device_put(program.constants(each), self._device)
            for each in settings
        ]

    def _jitted(self, name, *arguments):
        """A program that makes no step, compiled.

        Args:
            name: String, see `Programs.get`.
            *arguments: Tuples of an argument, and of its axis of the learners
                where they are side by side.

        Returns:
            Function of the number of a state, and of its arguments.
        """
        program = self._programs.get(name, *map(self._specs, arguments))
        key = program, self._is_stacked
        if key not in self._functions:
            axes = [axis for _, axis in arguments]
            function = self._vmap(program.__call__, (0, *axes))
            self._functions[key] = jax.jit(function)
        function, constants = self._functions[key], self._constants(program)
        return lambda number, *values: function(constants[number], *values)

    def _specs(self, argument):
        """Shapes and types of one learner's part of an argument."""
        nest, axis = argument

        def spec(array):
            shape = list(array.shape)
            if self._is_stacked:
                del shape[axis]
            return jax.ShapeDtypeStruct(tuple(shape), array.dtype)

        return nests.map_arrays(spec, nest)

    def _where(self, batches, learner):
        """Where a program finds its examples."""
        if batches.order is None:
            return np.int32(batches.start)
        return batches.order if self._is_stacked else batches.order[learner]

    def _function(self, data, batches):
        """The program of a step, and many steps of it compiled."""
        shapes = tuple((a.shape, a.dtype) for a in nests.arrays(data[0]))
        key = shapes, batches.kind, self._is_stacked
        if key not in self._functions:
            # The first axis counts examples.
            batch = nests.map_arrays(
                lambda a: jax.ShapeDtypeStruct(
                    (batches.size, *a.shape[1:]), a.dtype
                ),
                data[0],
            )
            state = self._states[0]
            program = self._programs.get(
                "train", *map(self._specs, [(state, 0), (batch, 1)])
            )
            scan = self._scan(program, batches)
            where = self._where(batches, 0)
            traced = self._trace(scan, program, data[0], where)
            if _is_slow_in_a_loop(traced.jaxpr):
                function = self._one_by_one(program, data[0], batches)
            else:
                function = _in_place(traced.lower().compile())
            self._functions[key] = program, function
        return self._functions[key]

    def _trace(self, function, program, data, where):
        constants = self._constants(program)[0]
        function = jax.jit(function, donate_argnums=0)
        return function.trace(self._states[0], constants, data, where)

    def _scan(self, program, batches):
        """All steps in one: a function `(state, constants, data, where)`."""
        steps, size, is_ordered = batches.kind

        def scan(state, constants, data, where):
            def step(carry, indices):
                state, start, data = carry
                where = indices if is_ordered else start
                state = self._step(program, state, constants, data, where, size)
                return (state, start + size, data), None

            indices = None
            if is_ordered:
                # A number that counts is faster than numbers that are read.
                where, indices = np.int32(0), jnp.moveaxis(where, -2, 0)
            carry, _ = jax.lax.scan(
                step, (state, where, data), indices, length=steps
            )
            return carry[0]

        return scan

    def _one_by_one(self, program, data, batches):
        """Like `_scan`, as a Python loop over calls of one compiled step."""

        def step(state, constants, data, where):
            size = batches.size
            return self._step(program, state, constants, data, where, size)

        def where_at(where, i):
            if batches.order is None:
                return np.int32(where + i * batches.size)
            return where[..., i, :]

        first = where_at(self._where(batches, 0), 0)
        traced = self._trace(step, program, data, first)
        step = _in_place(traced.lower().compile())

        def run(state, constants, data, where):
            for i in range(batches.steps):
                step(state, constants, data, where_at(where, i))

        return run

    def _step(self, program, state, constants, data, where, size):
        """One step of one learner, or of all side by side."""
        if self._is_stacked and not np.ndim(where):
            # What lies together is taken at once, and not by each learner.
            batch = _take(data, where, size)
            return jax.vmap(program, (0, 0, 1))(constants, state, batch)

        def take_and_train(state, constants, data, where):
            return program(constants, state, _take(data, where, size))

        return self._vmap(take_and_train, (0, 0, 1, 0))(
            state, constants, data, where
        )


def _take(data, where, size):
    """The data of one step.

    Args:
        data: Nest of arrays.
        where: Integer tensor: the indices of the examples, or the first of
            `size` in a row.
        size: Integer.
    """
    if where.ndim:
        # Permutations, checked before: no index is out of bounds.
        return nests.map_arrays(
            lambda a: a.at[where].get(mode="promise_in_bounds"), data
        )
    return nests.map_arrays(
        lambda a: jax.lax.dynamic_slice_in_dim(
            a, where, size, allow_negative_indices=False
        ),
        data,
    )


def _in_place(function):
    """A function that replaces the contents of a state, by `function`."""

    def run(state, *arguments):
        # The old state's buffers are donated: if Ctrl-C came before the new
        # ones are in their place, the weights would be lost.
        with _interrupted_afterwards():
            state[:] = function(state, *arguments)

    return run


@contextlib.contextmanager
def _interrupted_afterwards():
    """Delays Ctrl-C until the end of the context."""
    handler = signal.getsignal(signal.SIGINT)
    # Only the main thread receives signals, and only it may set handlers.
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not callable(handler) or only_remembers(handler):
        yield
        return
    received = []
    signal.signal(signal.SIGINT, lambda *args: received.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            handler(*received[0])


def _is_slow_in_a_loop(jaxpr):
    """Whether XLA's compiled loop would be slower than a Python loop.

    XLA's CPU compiler has no fast convolution within a loop: a step takes ten
    times as long there, which outweighs the calls that the loop saves.
    """
    if backend.platform() != "cpu":
        return False
    return "conv_general_dilated" in str(jaxpr)


def _get_state(model):
    # Copies: the first step donates these buffers.
    return [
        [jnp.copy(v.value) for v in part] for part in state_variables(model)
    ]


def _without_metrics(state):
    return [value for part in state[:3] for value in part]
