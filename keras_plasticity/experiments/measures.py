"""Measures of learning curves, which make each one number."""

import math

import numpy as np

from keras_plasticity import validation


def area_under_curve(values: np.ndarray) -> np.ndarray:
    """The area under learning curves, for each unit of their length.

    `area = sum(values) / num_tasks`, the mean over all tasks: what a curve is
    on average, from beginning to end.

    Args:
        values: Array of shape `(num_tasks, ...)`, such as the results of
            `training.OnlineTrainer`, `(num_tasks, num_learners)`.

    Returns:
        Float array of shape `(...)`; NaN where a curve is not finite.

    Example:

    >>> area_under_curve([[1.0, 4.0], [3.0, 8.0]]).tolist()
    [2.0, 6.0]
    """
    return _finite_curves(values).mean(axis=0)


def last_tenth(values: np.ndarray) -> np.ndarray:
    """The mean over the last tenth of the tasks of learning curves.

    Of `num_tasks` tasks these are the last `ceil(num_tasks / 10)`.

    Args:
        values: Array of shape `(num_tasks, ...)`, such as the results of
            `training.OnlineTrainer`, `(num_tasks, num_learners)`.

    Returns:
        Float array of shape `(...)`; NaN where a curve is not finite.

    Example:

    >>> last_tenth(range(20)).tolist()
    18.5
    """
    values = _finite_curves(values)
    return values[-math.ceil(len(values) / 10) :].mean(axis=0)


# How a curve is made one number, by the name of the measure.
MEASURES = {"area_under_curve": area_under_curve, "last_tenth": last_tenth}


def _finite_curves(values):
    """Curves as floats, NaN where they are not finite."""
    rule = "an array of shape `(num_tasks, ...)`"
    if isinstance(values, range):
        values = list(values)
    values = validation.check_array("values", values, rule).astype("float64")
    if not values.ndim or not len(values):
        raise validation.error("values", rule, values)
    return np.where(np.isfinite(values), values, np.nan)
