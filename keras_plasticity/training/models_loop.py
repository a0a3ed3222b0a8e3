"""What the loops on TensorFlow and PyTorch share."""

import keras
import numpy as np

from keras_plasticity.training import nests


class ModelsLoop:
    """Base class of loops in which each learner has its own model.

    See `training_loop.TrainingLoop`. The state of a learner is its model. The
    data on the device are a list with the part of each learner.
    """

    def __init__(
        self, models, num_learners, batch, jit_compile="auto", first=None
    ):
        self.num_learners = num_learners
        self.jit_compile = jit_compile
        # The loop of the first group of learners, which has what all share.
        self.first = self if first is None else first
        self._models = list(models)

    def to_device(self, array):
        """Moves a NumPy array to the device: a tensor."""
        raise NotImplementedError

    def put(self, data):
        return [
            nests.map_arrays(self.to_device, nests.take(data, learner))
            for learner in range(self.num_learners)
        ]

    def where(self, learner, batches):
        """Where a learner's examples are: a tensor.

        Its value is the first one, or the index of each of them.
        """
        where = batches.start
        if batches.order is not None:
            where = batches.order[learner]
        return self.to_device(np.asarray(where, "int32"))

    def reset_metrics(self):
        for model in self._models:
            model.reset_metrics()

    def results(self):
        logs = [model.get_metrics_result() for model in self._models]
        # Metrics are named after outputs, which have other names in each model.
        numbers = zip(*(map(float, log.values()) for log in logs), strict=True)
        return dict(zip(logs[0], map(np.array, numbers)))

    def get_metrics(self):
        return _stacked(model.metrics_variables for model in self._models)

    def set_metrics(self, arrays):
        _assign(arrays, (model.metrics_variables for model in self._models))

    def model(self, learner):
        return self._models[learner]

    def load_from_model(self, learner):
        pass  # The model is the learner's state.

    def get_state(self):
        return _stacked(map(_variables, self._models))

    def set_state(self, arrays):
        _assign(arrays, map(_variables, self._models))


def _stacked(variables_of_models):
    return [
        np.stack([keras.ops.convert_to_numpy(v) for v in variables])
        for variables in zip(*variables_of_models)
    ]


def _assign(arrays, variables_of_models):
    for learner, variables in enumerate(variables_of_models):
        for variable, values in zip(variables, arrays):
            variable.assign(values[learner])


def _variables(model):
    return [
        *model.trainable_variables,
        *model.non_trainable_variables,
        *model.optimizer.variables,
    ]
