"""Learners that have diverged, and where their numbers were lost first."""

from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from keras_plasticity import keras_compat
from keras_plasticity.graph import trace
from keras_plasticity.layers.plastic_layer import PlasticLayer
from keras_plasticity.training.tasks import TaskData
from keras_plasticity.units.unit_statistics import UnitStatistics


def check_finite(
    task: int,
    results: list[dict],
    data: TaskData,
    model_of: Callable[[int], keras.Model],
):
    """Raises if the loss of a learner was not finite in the last task.

    Args:
        task: Integer, the task's index.
        results: List of dicts from the name of a metric to an array of shape
            `(num_learners,)`, one for each task so far.
        data: `TaskData` of the task.
        model_of: Function from a learner's index to its model in its present
            state. It is called for the learners that have diverged.

    Raises:
        FloatingPointError: If a loss was not finite. The results are in its
            attribute `results`.
    """
    broken = np.flatnonzero(~np.isfinite(results[-1]["loss"])).tolist()
    if not broken:
        return
    in_data = [learner for learner in broken if not data.is_finite(learner)]
    reason = (
        f"The data of learners {in_data} hold values that are not finite."
        if in_data
        else "The data are finite: the learning rate may be too large."
    )
    error = FloatingPointError(
        f"The loss is not finite in task {task} for learners {broken}. "
        f"{reason} In the order of the forward pass, the first weights or "
        "statistics that are not finite are "
        f"{_places(broken, model_of)}. Use `on_nan='continue'` to continue "
        "with the other learners."
    )
    error.results = {
        name: np.stack([each[name] for each in results]) for name in results[0]
    }
    raise error


def _places(learners, model_of):
    """Where numbers were lost first, as words."""
    # By position: in the models of two learners a layer may have two names.
    found = {}
    for learner in learners:
        position, place = _first_not_finite(model_of(learner))
        found.setdefault(position, (place, []))[1].append(learner)
    return "; ".join(
        f"{place} for learners {those}" for _, (place, those) in found.items()
    )


def _first_not_finite(model):
    """The position of the first variable that is not finite, and its name."""
    for position, (layer, variable) in enumerate(_variables(model)):
        if not bool(ops.all(ops.isfinite(variable))):
            return position, f"in the {variable.name} of layer '{layer.name}'"
    return None, "none"


def _variables(model):
    """Yields pairs of a layer and a variable, in the order of the calls."""
    layers = keras_compat.sublayers(model)
    owners = {
        id(variable): layer
        for layer in layers  # Those inside another one come after it.
        if not isinstance(layer, UnitStatistics)
        for variable in _variables_of(layer)
    }
    try:
        calls = trace.trace_model(model, whole_leaves=True).calls
    except ValueError:
        calls = []  # The order in which it was put together has to do.
    called = [call.operation for call in calls]
    seen = set()
    for layer in [*called, *layers, model]:
        for variable in _variables_of(layer):
            if id(variable) not in seen:
                seen.add(id(variable))
                yield owners.get(id(variable), layer), variable


def _variables_of(layer):
    """The weights of a layer, then the statistics of its units."""
    variables = list(getattr(layer, "variables", ()))
    if isinstance(layer, PlasticLayer) and layer.built:
        variables += layer.statistics.unit_variables()
    return variables
