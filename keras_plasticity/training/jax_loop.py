"""The engine's inner loop on JAX: one `lax.scan` over the steps of a task."""

import contextlib

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_plasticity import backend
from keras_plasticity.optimizers import ContinualBackprop


class TrainingLoop:
    """Trains learners of one architecture side by side.

    The state of the learners is stacked along a new first axis, and `vmap`
    makes one program of all of them. A single learner is not stacked.

    Args:
        models: Iterable of compiled and built models of one architecture, one
            a learner. Only the first is kept.
        num_learners: Integer.
    """

    def __init__(self, models, num_learners):
        self.num_learners = num_learners
        states = []
        for model in models:
            if not states:
                self._model = model
            _check_same_architecture(self._model, model)
            states.append(_get_state(model))
        if num_learners == 1:
            self._state = states[0]
        else:
            self._state = [
                [jnp.stack(values) for values in zip(*parts)]
                for parts in zip(*states)
            ]
        self._initial_metrics = self._state[3]
        self.reset_metrics()
        self._functions = {}

    def put(self, x, y):
        """Moves a chunk of data to the device.

        Args:
            x: Array of shape `(num_learners, steps, batch, ...)`.
            y: Array of shape `(num_learners, steps, batch, ...)`.

        Returns:
            What `run` takes.
        """
        if self.num_learners == 1:
            x, y = x[0], y[0]
        return jax.device_put((x, y))

    def run(self, data):
        """Makes one training step for each batch of a chunk."""
        self._state = self._function(data)(self._state, data)

    def compile(self, data):
        """Compiles `run` for data of these shapes, without running it."""
        self._function(data)

    def reset_metrics(self):
        self._state[3] = [jnp.copy(value) for value in self._initial_metrics]

    def results(self):
        """Metrics since `reset_metrics`, a dict of `(num_learners,)` arrays."""
        function = self._functions.get("results")
        if function is None:
            function = self._vmap(self._get_results)
            function = self._functions["results"] = jax.jit(function)
        logs = function(self._state[3])
        return {
            name: np.reshape(np.asarray(value), (self.num_learners,))
            for name, value in logs.items()
        }

    def wait(self):
        jax.block_until_ready(self._state)

    def model(self, learner):
        """The model with the state of one learner assigned to it."""
        variables = _get_variables(self._model)
        for refs, values in zip(variables, self._state):
            for variable, value in zip(refs, values):
                if self.num_learners > 1:
                    value = value[learner]
                # A copy: the next step gives the state's buffers away.
                variable.assign(jnp.copy(value))
        return self._model

    def write_back(self):
        """Takes up what was changed in the model of a single learner."""
        self._state = _get_state(self._model)

    def _vmap(self, function):
        return function if self.num_learners == 1 else jax.vmap(function)

    def _function(self, data):
        shapes = tuple((a.shape, a.dtype) for a in jax.tree.leaves(data))
        function = self._functions.get(shapes)
        if function is None:
            function = jax.jit(self._vmap(self._scan), donate_argnums=0)
            function = function.lower(self._state, data).compile()
            self._functions[shapes] = function
        return function

    def _scan(self, state, data):
        def step(state, batch):
            _, state = self._model.train_step(state, batch)
            return [list(part) for part in state], None

        with _apply_after_backward(self._model.optimizer):
            state, _ = jax.lax.scan(step, state, data)
        return state

    def _get_results(self, metrics_variables):
        mapping = list(zip(self._model.metrics_variables, metrics_variables))
        with keras.StatelessScope(state_mapping=mapping):
            return self._model.get_metrics_result()


def _get_variables(model):
    return [
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    ]


def _get_state(model):
    # Copies: the first step gives these buffers away.
    return [[jnp.copy(v.value) for v in part] for part in _get_variables(model)]


def _check_same_architecture(first, other):
    shapes = [
        [[(v.shape, v.dtype) for v in part] for part in _get_variables(model)]
        for model in (first, other)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "All learners must have the same architecture and optimizer, as "
            "they are trained by one program. The function that builds them "
            "returned models whose variables differ in number, shape or dtype."
        )


@contextlib.contextmanager
def _apply_after_backward(optimizer):
    """Lets any optimizer's step begin when back-propagation has ended."""
    if isinstance(optimizer, ContinualBackprop):
        yield  # It does so itself.
        return
    apply = optimizer.stateless_apply

    def apply_after(optimizer_variables, grads, trainable_variables):
        grads = backend.after_backward(grads)
        return apply(optimizer_variables, grads, trainable_variables)

    optimizer.stateless_apply = apply_after
    try:
        yield
    finally:
        del optimizer.stateless_apply
