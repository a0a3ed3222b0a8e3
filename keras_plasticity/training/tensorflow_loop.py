"""The engine's inner loop on TensorFlow: one `tf.function` for many steps."""

import tensorflow as tf

from keras_plasticity.training import models_loop


class TensorFlowLoop(models_loop.ModelsLoop):
    """Trains learners one after another, each by a compiled loop of steps."""

    def __init__(self, models, num_learners):
        super().__init__(models, num_learners)
        self._functions = [_make_function(model) for model in self._models]
        self._test_functions = [
            tf.function(model.test_step, jit_compile=model.jit_compile)
            for model in self._models
        ]

    def put(self, x, y):
        return tf.convert_to_tensor(x), tf.convert_to_tensor(y)

    def run(self, data):
        x, y = data
        for learner, function in enumerate(self._functions):
            function(x[learner], y[learner])

    def compile(self, data):
        # XLA compiles at the first run, so there has to be one: it trains on
        # the data, and all that it changed is put back.
        x, y = data
        for learner, model in enumerate(self._models):
            variables = model.variables + model.optimizer.variables
            values = [tf.identity(v.value) for v in variables]
            self._functions[learner](x[learner], y[learner])
            for variable, value in zip(variables, values):
                variable.assign(value)

    def evaluate(self, x, y):
        data = zip(tf.convert_to_tensor(x), tf.convert_to_tensor(y))
        for function, batch in zip(self._test_functions, data):
            function(batch)


def _make_function(model):
    @tf.function(
        jit_compile=model.jit_compile,
        reduce_retracing=False,
        autograph=False,
    )
    def run(x, y):
        def step(i):
            model.train_step((x[i], y[i]))
            return (i + 1,)

        tf.while_loop(
            lambda i: i < x.shape[0],
            step,
            (tf.constant(0),),
            parallel_iterations=1,
        )

    return run
