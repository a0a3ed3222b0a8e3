"""The engine's inner loop on PyTorch: Keras' training step, without `fit`."""

import keras
import numpy as np


class TrainingLoop:
    """Trains learners one after another; see `jax_loop.TrainingLoop`."""

    def __init__(self, models, num_learners):
        self.num_learners = num_learners
        self._models = list(models)

    def put(self, x, y):
        return keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y)

    def run(self, data):
        x, y = data
        for model, learner_x, learner_y in zip(self._models, x, y):
            for batch in zip(learner_x, learner_y):
                model.train_step(batch)

    def compile(self, data):
        pass

    def reset_metrics(self):
        for model in self._models:
            model.reset_metrics()

    def results(self):
        logs = [model.get_metrics_result() for model in self._models]
        return {
            name: np.array([float(log[name]) for log in logs])
            for name in logs[0]
        }

    def wait(self):
        pass

    def model(self, learner):
        return self._models[learner]

    def write_back(self):
        pass
