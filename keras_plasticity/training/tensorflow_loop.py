"""The engine's inner loop on TensorFlow: one `tf.function` for many steps."""

import tensorflow as tf

from keras_plasticity.training import models_loop
from keras_plasticity.training import nests


class TensorFlowLoop(models_loop.ModelsLoop):
    """Trains learners one after another, each by a compiled loop of steps."""

    def __init__(self, models, num_learners, batch):
        super().__init__(models, num_learners, batch)
        self._functions = [_make_function(model) for model in self._models]
        self._test_functions = [
            tf.function(model.test_step, jit_compile=model.jit_compile)
            for model in self._models
        ]

    def put(self, data):
        return nests.map_arrays(tf.convert_to_tensor, data)

    def run(self, data):
        for learner, function in enumerate(self._functions):
            function(nests.take(data, learner))

    def compile(self, data):
        # XLA compiles at the first run, so there has to be one: it trains on
        # the data, and all that it changed is put back.
        for learner, model in enumerate(self._models):
            variables = model.variables + model.optimizer.variables
            values = [tf.identity(v.value) for v in variables]
            self._functions[learner](nests.take(data, learner))
            for variable, value in zip(variables, values):
                variable.assign(value)

    def evaluate(self, data):
        data = self.put(data)
        for learner, function in enumerate(self._test_functions):
            function(nests.take(data, learner))


def _make_function(model):
    @tf.function(
        jit_compile=model.jit_compile,
        reduce_retracing=False,
        autograph=False,
    )
    def run(data):
        steps = nests.arrays(data)[0].shape[0]

        def step(i):
            model.train_step(nests.take(data, i))
            return (i + 1,)

        tf.while_loop(
            lambda i: i < steps,
            step,
            (tf.constant(0),),
            parallel_iterations=1,
        )

    return run
