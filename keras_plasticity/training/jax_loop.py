"""The engine's inner loop on JAX: one `lax.scan` over many steps of a task.

With convolutions on a CPU, it is a Python loop over one compiled step.
"""

import contextlib
import functools
import signal
import threading

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_plasticity import backend
from keras_plasticity import keras_compat
from keras_plasticity.optimizers import UnitResetOptimizer
from keras_plasticity.optimizers.unit_reset_optimizer import reset_optimizer
from keras_plasticity.training import nests
from keras_plasticity.training import program_settings
from keras_plasticity.training.interruption import only_remembers

# The most weights for which a CPU trains learners faster side by side, as most
# of a step is overhead. Beyond, XLA's batched products of small matrices are
# slower than the same products one after another.
_MOST_WEIGHTS_SIDE_BY_SIDE = 3000


class JaxLoop:
    """Trains learners with one compiled program.

    See `training_loop.TrainingLoop`. On an accelerator, and for small models on
    a CPU, the learners' states are stacked along a new first axis and `vmap`
    trains them side by side. The learners of larger models on a CPU run the
    same program in turn, each on its own state.
    Only the first of all models is kept.
    """

    def __init__(
        self, models, num_learners, batch, jit_compile="auto", first=None
    ):
        # JAX compiles in any case.
        del jit_compile
        states = []
        # What all groups of learners share.
        self._model = first and first._model
        self._same_program = first and first._same_program
        self._functions = {} if first is None else first._functions
        for model in models:
            if self._model is None:
                self._model = model
                _make_room_for(model, model)
                self._same_program = _SameProgram(model, batch)
            else:
                self._same_program.check(model)
            states.append(_get_state(model))
        self.num_learners = num_learners
        self._is_stacked = num_learners > 1 and (
            backend.platform() != "cpu"
            or self._model.count_params() <= _MOST_WEIGHTS_SIDE_BY_SIDE
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
        function = self._function(data, batches)
        for learner, (state, part) in enumerate(zip(self._states, data)):
            function(state, part, self._where(batches, learner))

    def compile(self, data, batches):
        self._function(data, batches)

    def reset_metrics(self):
        for state, initial in zip(self._states, self._initial_metrics):
            # Copies: a step donates its state's buffers.
            state[3] = [jnp.copy(value) for value in initial]

    def results(self):
        function = self._jitted("results", self._get_results)
        logs = [function(state[3]) for state in self._states]
        return {
            name: np.concatenate([np.ravel(log[name]) for log in logs])
            for name in logs[0]
        }

    def wait(self):
        jax.block_until_ready(self._states)

    def evaluate(self, data, examples):
        function = self._jitted("evaluate", self._test, (0, 1))
        for state, part in zip(self._states, data):
            state[3] = function(state, nests.take(part, examples))

    def model(self, learner):
        # All learners share it: the state is assigned to it.
        state = self._states[0 if self._is_stacked else learner]
        for refs, values in zip(_get_variables(self._model), state):
            for variable, value in zip(refs, values):
                if self._is_stacked:
                    value = value[learner]
                variable.assign(jnp.copy(value))
        return self._model

    def load_from_model(self, learner):
        self._make_room()
        new = _get_state(self._model)
        if self._is_stacked:
            (old,) = self._states
            new = [
                [o.at[learner].set(n) for o, n in zip(*parts)]
                for parts in zip(old, new)
            ]
            learner = 0
        self._states[learner] = new

    def _make_room(self):
        """Compiles anew if the model's settings need another program."""
        if not backend.avoids_branches():
            return
        if _make_room_for(self._model, self._model):
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
                self.model(learner)
                self._make_room()

    def _vmap(self, function, in_axes=0):
        return jax.vmap(function, in_axes) if self._is_stacked else function

    def _jitted(self, name, function, in_axes=0):
        """A function of the state, and of other arguments, compiled."""
        key = name, self._is_stacked
        if key not in self._functions:
            self._functions[key] = jax.jit(self._vmap(function, in_axes))
        return self._functions[key]

    def _where(self, batches, learner):
        """Where a program finds its examples."""
        if batches.order is None:
            return np.int32(batches.start)
        return batches.order if self._is_stacked else batches.order[learner]

    def _function(self, data, batches):
        shapes = tuple((a.shape, a.dtype) for a in nests.arrays(data[0]))
        key = shapes, batches.kind, self._is_stacked
        if key not in self._functions:
            where = self._where(batches, 0)
            traced = self._trace(self._scan(batches), data[0], where)
            if _is_slow_in_a_loop(traced.jaxpr):
                function = self._one_by_one(data[0], batches)
            else:
                function = _in_place(traced.lower().compile())
            self._functions[key] = function
        return self._functions[key]

    def _trace(self, function, data, where):
        function = jax.jit(function, donate_argnums=0)
        with _apply_after_backward(self._model.optimizer):
            return function.trace(self._states[0], data, where)

    def _scan(self, batches):
        """All steps as one program, a function `(state, data, where)`."""

        steps, size, is_ordered = batches.kind

        def step(carry, indices):
            state, start, data = carry
            where = indices if is_ordered else start
            state = self._step(state, data, where, size)
            return (state, start + size, data), None

        def scan(state, data, where):
            indices = None
            if is_ordered:
                # A number that counts is faster than numbers that are read.
                where, indices = np.int32(0), jnp.moveaxis(where, -2, 0)
            carry, _ = jax.lax.scan(
                step, (state, where, data), indices, length=steps
            )
            return carry[0]

        return scan

    def _one_by_one(self, data, batches):
        """Like `_scan`, as a Python loop over calls of one compiled step."""

        def step(state, data, where):
            return self._step(state, data, where, batches.size)

        def where_at(where, i):
            if batches.order is None:
                return np.int32(where + i * batches.size)
            return where[..., i, :]

        first = where_at(self._where(batches, 0), 0)
        step = _in_place(self._trace(step, data, first).lower().compile())

        def run(state, data, where):
            for i in range(batches.steps):
                step(state, data, where_at(where, i))

        return run

    def _step(self, state, data, where, size):
        """One step of one learner, or of all side by side."""
        if self._is_stacked and not np.ndim(where):
            # What lies together is taken at once, and not by each learner.
            batch = _take(data, where, size)
            return jax.vmap(self._train, (0, 1))(state, batch)

        def take_and_train(state, data, where):
            return self._train(state, _take(data, where, size))

        return self._vmap(take_and_train, (0, 1, 0))(state, data, where)

    def _train(self, state, batch):
        return _train_step(self._model, state, batch)

    def _test(self, state, batch):
        return _test_step(self._model, state, batch)

    def _get_results(self, metrics_variables):
        return _get_results(self._model, metrics_variables)


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


def _train_step(model, state, batch):
    _, state = model.train_step(state, batch)
    return [list(part) for part in state]


def _test_step(model, state, batch):
    trainable, non_trainable, _, metrics = state
    _, state = model.test_step((trainable, non_trainable, metrics), batch)
    return list(state[2])


def _get_results(model, metrics_variables):
    mapping = list(zip(model.metrics_variables, metrics_variables))
    with keras.StatelessScope(state_mapping=mapping):
        return model.get_metrics_result()


def _in_place(function):
    """A function that replaces the contents of a state, by `function`."""

    def run(state, data, where):
        # The old state's buffers are donated: if Ctrl-C came before the new
        # ones are in their place, the weights would be lost.
        with _interrupted_afterwards():
            state[:] = function(state, data, where)

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


def _get_variables(model):
    return [
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    ]


def _get_state(model):
    # Copies: the first step donates these buffers.
    return [[jnp.copy(v.value) for v in part] for part in _get_variables(model)]


def _without_metrics(state):
    return [value for part in state[:3] for value in part]


class _SameProgram:
    """Checks that one program trains all learners.

    Whatever is not held in variables is part of the program. To compare the
    models' settings is fast, and mostly enough. Where they differ, or do not
    tell all, the programs themselves are compared.

    Args:
        model: `keras.Model` of learner 0.
        batch: Tuple, the data of one step.
    """

    def __init__(self, model, batch):
        self._model = model
        self._batch = batch
        self._learner = 0

    @functools.cached_property
    def _settings(self):
        return program_settings.settings_of(self._model)

    @functools.cached_property
    def _program(self):
        return _program(self._model, self._batch)

    def check(self, model):
        """Raises a `ValueError` if the next learner's is another program."""
        self._learner += 1
        if _make_room_for(self._model, model):
            self.__dict__.pop("_program", None)
        _make_room_for(model, self._model)
        settings = program_settings.settings_of(model)
        if _variable_specs(model) == _variable_specs(self._model):
            if program_settings.surely_same_program(self._settings, settings):
                return
            if _program(model, self._batch) == self._program:
                return
        differences = program_settings.differences(self._settings, settings)
        raise ValueError(
            "All learners must have the same architecture and settings, as "
            "JAX trains them by one program. Only names, seeds and what is "
            "held in variables, such as a learning rate, may differ. Train "
            "the others by another `OnlineTrainer`. Received, for learners 0 "
            f"and {self._learner}: "
            + (
                "; ".join(differences)
                or "what configs do not show, such as the code of a function"
            )
        )


def _program(model, batch):
    """The text of the program that trains and tests a model."""

    def program(state, batch):
        results = _get_results(model, state[3])
        return (
            _train_step(model, state, batch),
            _test_step(model, state, batch),
            list(results.values()),  # Without their names.
        )

    state = [
        [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in part]
        for part in _variable_specs(model)
    ]
    return jax.jit(program).lower(state, batch).as_text()


def _make_room_for(model, other):
    """Lets a model's program serve another one; returns whether it changes."""
    optimizer, others = reset_optimizer(model), reset_optimizer(other)
    if optimizer is None or others is None:
        return False
    return optimizer._make_room_for(others)


def _variable_specs(model):
    return [
        [(v.shape, v.dtype) for v in part] for part in _get_variables(model)
    ]


@contextlib.contextmanager
def _apply_after_backward(optimizer):
    """Context in which any optimizer's step begins after back-propagation."""
    if isinstance(optimizer, UnitResetOptimizer):
        yield  # It calls `after_backward` itself.
        return
    with keras_compat.transform_gradients(optimizer, backend.after_backward):
        yield
