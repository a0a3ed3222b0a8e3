"""The engine's inner loop on TensorFlow: one `tf.function` for many steps."""

import contextlib

import numpy as np
import tensorflow as tf
from absl import logging

from keras_plasticity import backend
from keras_plasticity import keras_compat
from keras_plasticity.backend import tensorflow as tensorflow_backend
from keras_plasticity.training import models_loop
from keras_plasticity.training import nests


class TensorFlowLoop(models_loop.ModelsLoop):
    """Trains learners one after another, each by a compiled loop of steps.

    By default XLA compiles it, except where it refuses an operation or would
    be slower.
    """

    def __init__(
        self, models, num_learners, batch, jit_compile="auto", first=None
    ):
        super().__init__(models, num_learners, batch, jit_compile, first)
        if first is None:
            reason = None
            if jit_compile == "auto":
                reason = _reason_without_xla(self._models[0], batch)
            self._uses_xla = bool(jit_compile) and reason is None
            if reason is not None:
                _say_without_xla(reason)
        self._functions = {}
        self._test_functions = [
            tf.function(model.test_step, jit_compile=model.jit_compile)
            for model in self._models
        ]

    def to_device(self, array):
        return tf.convert_to_tensor(array)

    def run(self, data, batches):
        for learner, part in enumerate(data):
            function = self._function(learner, batches)
            function(part, self.where(learner, batches))

    def compile(self, data, batches):
        # XLA compiles at the first run, so there has to be one: it trains on
        # the data, and all that it changed is put back.
        for learner, model in enumerate(self._models):
            variables = [
                *model.variables,
                *model.optimizer.variables,
                *model.metrics_variables,
            ]
            values = [tf.identity(v.value) for v in variables]
            try:
                self._compile_learner(learner, data[learner], batches)
            finally:
                for variable, value in zip(variables, values):
                    variable.assign(value)

    def wait(self):
        if backend.platform() != "cpu":
            tf.test.experimental.sync_devices()

    def evaluate(self, data, examples):
        for function, part in zip(self._test_functions, data):
            function(nests.take(part, examples))

    def _compile_learner(self, learner, data, batches):
        where = self.where(learner, batches)
        try:
            self._function(learner, batches)(data, where)
        except tf.errors.OpError as error:
            if not self.first._uses_xla or self.jit_compile != "auto":
                raise
            self.first._uses_xla = False
            self._functions.clear()
            # What is wrong with the data fails here, too.
            self._function(learner, batches)(data, where)
            reason = " ".join(str(error).split())[:200]
            _say_without_xla(f"could not compile it: {reason}")

    def _function(self, learner, batches):
        key = learner, batches.kind
        if key not in self._functions:
            self._functions[key] = _make_function(
                self._models[learner], batches, self.first._uses_xla
            )
        return self._functions[key]


def _make_function(model, batches, uses_xla):
    steps, size, is_ordered = batches.kind
    tracing = contextlib.nullcontext
    if uses_xla:
        tracing = tensorflow_backend.tracing_for_xla

    def take(array, where, i):
        if is_ordered:
            return tf.gather(array, where[i])
        # Of a shape that is known: XLA needs it.
        rest = array.shape[1:]
        begin = [where + i * size] + [0] * len(rest)
        return tf.slice(array, begin, [size, *rest])

    @tf.function(jit_compile=uses_xla, reduce_retracing=False, autograph=False)
    def run(data, where):
        def step(i):
            with tracing():
                model.train_step(
                    nests.map_arrays(lambda array: take(array, where, i), data)
                )
            return (i + 1,)

        tf.while_loop(
            lambda i: i < steps,
            step,
            (tf.constant(0),),
            parallel_iterations=1,
        )

    return run


def _reason_without_xla(model, batch):
    """Why XLA shall not compile the steps of a model; `None` if it shall."""
    if model.run_eagerly:
        return "cannot be used where `run_eagerly` is set"
    if not keras_compat.supports_xla(model):
        return "does not support one of its layers"
    if backend.platform() == "cpu" and _has_convolutions(model, batch):
        return "has no fast convolutions on a CPU"
    return None


def _has_convolutions(model, batch):
    batch = nests.map_arrays(
        lambda a: tf.TensorSpec(np.shape(a), a.dtype), batch
    )
    step = tf.function(model.test_step, autograph=False)
    definition = step.get_concrete_function(batch).graph.as_graph_def()
    nodes = [*definition.node]
    for function in definition.library.function:
        nodes += function.node_def
    return any("Conv" in node.op for node in nodes)


def _say_without_xla(reason):
    logging.warning(
        "TensorFlow trains this model without XLA, which %s. Not to be told, "
        "set `jit_compile` of the `OnlineTrainer`.",
        reason,
    )
