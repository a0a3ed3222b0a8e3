"""The engine's inner loop on JAX: one `lax.scan` over the steps of a task.

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
from keras_plasticity.training import nests
from keras_plasticity.training import program_settings

# The most weights for which a CPU trains learners faster side by side, as most
# of a step is overhead. Beyond, XLA's batched products of small matrices are
# slower than the same products one after another.
_MOST_WEIGHTS_SIDE_BY_SIDE = 3000


class JaxLoop:
    """Trains all learners with one compiled program.

    See `training_loop.TrainingLoop`. On an accelerator, and for small models on
    a CPU, the learners' states are stacked along a new first axis and `vmap`
    trains them side by side. The learners of larger models on a CPU run the
    same program, each on its own state, as many at once as there are cores.
    Only the first of the models is kept.
    """

    def __init__(self, models, num_learners, batch):
        states = []
        for learner, model in enumerate(models):
            if learner == 0:
                self._model = model
                same_program = _SameProgram(model, batch)
            else:
                same_program.check(model, learner)
            states.append(_get_state(model))
        self.num_learners = num_learners
        self._is_stacked = num_learners > 1 and (
            jax.default_backend() != "cpu"
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
        self._functions = {}
        self.reset_metrics()

    def put(self, data):
        return [jax.device_put(part) for part in self._parts(data)]

    def run(self, data):
        function = self._function(data)
        for state, part in zip(self._states, data):
            function(state, part)

    def compile(self, data):
        self._function(data)

    def reset_metrics(self):
        for state, initial in zip(self._states, self._initial_metrics):
            # Copies: a step donates its state's buffers.
            state[3] = [jnp.copy(value) for value in initial]

    def results(self):
        function = self._functions.get("results")
        if function is None:
            function = jax.jit(self._vmap(self._get_results))
            self._functions["results"] = function
        logs = [function(state[3]) for state in self._states]
        return {
            name: np.concatenate([np.ravel(log[name]) for log in logs])
            for name in logs[0]
        }

    def wait(self):
        jax.block_until_ready(self._states)

    def evaluate(self, data):
        function = self._functions.get("evaluate")
        if function is None:
            function = jax.jit(self._vmap(self._test))
            self._functions["evaluate"] = function
        for state, part in zip(self._states, self._parts(data)):
            state[3] = function(state, part)

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
        new = _get_state(self._model)
        if self._is_stacked:
            (old,) = self._states
            new = [
                [o.at[learner].set(n) for o, n in zip(*parts)]
                for parts in zip(old, new)
            ]
            learner = 0
        self._states[learner] = new

    def get_state(self):
        states = [_without_metrics(state) for state in self._states]
        if self._is_stacked:
            return [np.asarray(value) for value in states[0]]
        return [np.stack(values) for values in zip(*states)]

    def set_state(self, arrays):
        for number, state in enumerate(self._states):
            values = iter(arrays)
            for part in state[:3]:
                part[:] = [
                    jnp.asarray(
                        value if self._is_stacked else value[number], old.dtype
                    )
                    for old, value in zip(part, values)
                ]

    def _parts(self, data):
        """The data that belong to each of the states."""
        if self._is_stacked:
            return [data]
        return [nests.take(data, i) for i in range(self.num_learners)]

    def _vmap(self, function):
        return jax.vmap(function) if self._is_stacked else function

    def _function(self, data):
        shapes = tuple((a.shape, a.dtype) for a in nests.arrays(data[0]))
        function = self._functions.get(shapes)
        if function is None:
            function = self._trace(self._scan, data[0])
            if _is_slow_in_a_loop(function.jaxpr):
                function = self._one_by_one(data[0])
            else:
                function = _in_place(function.lower().compile())
            self._functions[shapes] = function
        return function

    def _trace(self, function, data):
        function = jax.jit(self._vmap(function), donate_argnums=0)
        return function.trace(self._states[0], data)

    def _one_by_one(self, data):
        """Like `_scan`, as a Python loop over calls of one compiled step."""
        axis = 1 if self._is_stacked else 0
        steps = nests.arrays(data)[0].shape[axis]

        def take(data, i):
            return nests.map_arrays(lambda a: jnp.take(a, i, axis), data)

        first = take(data, 0)
        with _apply_after_backward(self._model.optimizer):
            step = _in_place(self._trace(self._step, first).lower().compile())

        def run(state, data):
            for i in range(steps):
                step(state, take(data, i))

        return run

    def _scan(self, state, data):
        with _apply_after_backward(self._model.optimizer):
            state, _ = jax.lax.scan(
                lambda state, batch: (self._step(state, batch), None),
                state,
                data,
            )
        return state

    def _step(self, state, batch):
        return _train_step(self._model, state, batch)

    def _test(self, state, batch):
        return _test_step(self._model, state, batch)

    def _get_results(self, metrics_variables):
        return _get_results(self._model, metrics_variables)


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

    def run(state, data):
        # The old state's buffers are donated: if Ctrl-C came before the new
        # ones are in their place, the weights would be lost.
        with _interrupted_afterwards():
            state[:] = function(state, data)

    return run


@contextlib.contextmanager
def _interrupted_afterwards():
    """Delays Ctrl-C until the end of the context."""
    handler = signal.getsignal(signal.SIGINT)
    # Only the main thread receives signals, and only it may set handlers.
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not callable(handler):
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
    if jax.default_backend() != "cpu":
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

    @functools.cached_property
    def _settings(self):
        return program_settings.settings_of(self._model)

    @functools.cached_property
    def _program(self):
        return _program(self._model, self._batch)

    def check(self, model, learner):
        """Raises a `ValueError` if a learner's model is another program."""
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
            f"and {learner}: "
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
