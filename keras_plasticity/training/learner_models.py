"""The state of learners that have a model each, which holds it."""

import keras
import numpy as np


def get_state(models):
    """All that the learners' next steps depend on.

    Args:
        models: List of compiled and built models of one architecture.

    Returns:
        List of NumPy arrays, the first axis of each counting learners.
    """
    return [
        np.stack([keras.ops.convert_to_numpy(v) for v in variables])
        for variables in zip(*map(_variables, models))
    ]


def set_state(models, arrays):
    """Assigns what `get_state` returned."""
    for learner, model in enumerate(models):
        for variable, values in zip(_variables(model), arrays):
            variable.assign(values[learner])


def _variables(model):
    return [
        *model.trainable_variables,
        *model.non_trainable_variables,
        *model.optimizer.variables,
    ]
