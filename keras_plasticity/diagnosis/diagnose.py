from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_plasticity import validation
from keras_plasticity.diagnosis import learning
from keras_plasticity.diagnosis import measures as table
from keras_plasticity.diagnosis.arguments import check_weights
from keras_plasticity.diagnosis.examples import take_examples
from keras_plasticity.diagnosis.measurement import Measurement
from keras_plasticity.diagnosis.report import Diagnosis

# Copies of the model, whose losses differ only by the order of the examples.
_NUM_OLD = 3
# As many examples as this tell what there is to tell.
_MOST_PROBE_EXAMPLES = 1000


def diagnose(
    model: keras.Model,
    data: Any,
    num_steps: int | None = None,
    batch_size: int = 32,
    num_new: int = 10,
    loss: Any = None,
    optimizer: Any = None,
    build_model: Callable[[], keras.Model] | None = None,
    measures: Any = None,
    seed: int = 0,
    verbose: bool = True,
) -> Diagnosis:
    """Tells whether a model has lost the ability to learn, and how.

    It compares the model with the same model newly initialized, several times:
    how well copies of each learn the same examples in `num_steps` updates, and
    what `keras_plasticity.measure` finds. The model itself is not touched.

    A model has lost plasticity where it learns worse than new ones do: so give
    it examples that it has not learned yet, such as those of the next task or
    the latest data. Of what it knows already, it cannot be told.

    The verdict rests on the loss on `data` after the updates, without
    regularization. It is compared with what new models reach, by a prediction
    interval (Student's t, of the logarithm of losses): so far from the new
    models' mean another new model would be in one of twenty cases at most. If
    the loss is only beyond what four of five new models reach, symptoms decide
    that differ as clearly from all new models': units that are dead or
    saturated, a low rank, large weights. Symptoms alone are no loss of
    plasticity.

    All is computed in inference mode. The moving averages of batch
    normalizations are those of `data` then, in copies of the model as in new
    ones, which have none of their own yet.

    The copies learn side by side in one program on JAX, one after another on
    the other backends: `num_new` new models and three copies of the model make
    `num_steps` updates each.

    Args:
        model: A built `keras.Model`.
        data: Examples to learn: a tuple `(x, y)` of arrays (or lists or dicts
            of arrays), a data set of batches of these (`PyDataset`, `tf.data`,
            a PyTorch `DataLoader`), or a
            `keras_plasticity.diagnosis.RecentExamples`. At least a few
            hundred.
        num_steps: Integer, the updates that each copy makes. Defaults to
            1,000 updates, or one pass over the data where that is more. Fewer
            tell less: new models have hardly learned then.
        batch_size: Integer, the number of examples of each update: that which
            the model is trained with. Defaults to 32.
        num_new: Integer, at least 3, how many newly initialized models it is
            compared with. Defaults to 10.
        loss: The loss of the copies, as `compile` takes it. Defaults to the
            model's own.
        optimizer: The optimizer of the copies, which get new ones like it.
            Defaults to the model's own.
        build_model: Function without arguments that returns a new model of
            the same architecture, for models that their config does not
            describe. It makes all layers anew; layers that are frozen in
            `model`, or were made plastic, become so in the new one. Global
            random seeds are set while it runs, and are as before afterwards,
            but for `tf.random`'s. Defaults to `None`: the config does.
        measures: List of names of measures to compare; see
            `keras_plasticity.callbacks.PlasticityMonitor`. Defaults to those
            that are cheap.
        seed: Integer, of the new weights and the orders of the examples.
            Defaults to 0.
        verbose: Boolean, whether to show progress and the time left. Defaults
            to `True`.

    Returns:
        A `Diagnosis`: `print` it, or look at its `figure()`. Its attributes
        are `has_lost_plasticity`, `kinds` (what is ill), `remedy` (the lines
        of code to try), `ratio` (the loss in times of that of new models),
        `share_better` (of new models), `gain` and `new_gain` (the share of the
        loss that is gone after learning), `measured` and `learning`.

    Raises:
        ValueError: If the data do not fit the model or have no targets, if the
            model cannot be made anew, if there is no loss or optimizer, if the
            model or the data hold what is not finite, or if an argument is out
            of its range.

    Example:

    ```python
    diagnosis = keras_plasticity.diagnose(model, (x_next, y_next))
    print(diagnosis)
    diagnosis.has_lost_plasticity
    ```

    References:

    - [Lyle et al., 2023](https://arxiv.org/abs/2303.01486), plasticity as how
        well a network learns new targets
    """
    check_weights(validation.check_model("model", model))
    x, y = take_examples("data", data)
    if y is None:
        raise validation.error(
            "data", "a tuple (x, y) of inputs and targets", data
        )
    if num_steps is not None:
        num_steps = validation.check_positive_integer("num_steps", num_steps)
    batch_size = validation.check_positive_integer("batch_size", batch_size)
    num_new = validation.check_integer("num_new", num_new, minimum=3)
    seed = validation.check_seed("seed", seed) or 0
    verbose = validation.check_boolean("verbose", verbose)
    if build_model is not None:
        validation.check_function("build_model", build_model)
    names = table.check_measures(measures, True, "data")
    names = table.check_one_time(names, measures)
    copies = learning.Copies(model, loss, optimizer, build_model, seed)
    measured = _measure(copies, x, y, names, num_new)
    learned = learning.learn(
        copies, x, y, _NUM_OLD, num_new, num_steps, batch_size, seed, verbose
    )
    diverged = np.sum(~np.isfinite(learned.new_after))
    if diverged:
        raise ValueError(
            "The newly initialized models must learn the data, to be compared "
            f"with. Of {num_new} of them {diverged} diverged: give an "
            "`optimizer` with a smaller learning rate, or data on another "
            f"scale. Received: optimizer={optimizer}"
        )
    return Diagnosis(model.name, learned, measured, batch_size)


def _measure(copies, x, y, names, num_new):
    """Measures the model and new ones.

    Returns:
        Dict from measure to a tuple of the model's total and an array of the
        new models' totals. Counts of units are fractions of all units.
    """
    size = len(keras.tree.flatten(x)[0])
    chosen = np.linspace(
        0, size - 1, min(size, _MOST_PROBE_EXAMPLES), dtype="int64"
    )
    x, y = keras.tree.map_structure(
        lambda array: array[chosen], (x, y), none_is_leaf=False
    )
    measurement = Measurement(names, None, 256, _MOST_PROBE_EXAMPLES)
    # One model is measured with the weights of all: one program is compiled.
    evaluated = copies.old()
    learning.settle(evaluated, x)
    totals = [_totals(measurement, evaluated, x, y)]
    if totals[0] is None:
        raise ValueError(
            "The weights, activations and gradients of `model` must be finite. "
            "Received: a model in which one is NaN or infinite: it has "
            "diverged"
        )
    for number in range(num_new):
        learning.assign(copies.new(number).variables, evaluated.variables)
        learning.settle(evaluated, x)
        totals.append(_totals(measurement, evaluated, x, y))
    return {
        name: (old, np.array([new[name] for new in totals[1:]]))
        for name, old in totals[0].items()
        if all(new is not None and name in new for new in totals)
    }


def _totals(measurement, model, x, y):
    measured = measurement.measure(model, x, y)
    if measured is None:
        return None
    return {
        name: values["total"] / sum(measurement.num_units_of(name).values())
        if table.MEASURES[name].is_count
        else values["total"]
        for name, values in measured.items()
    }
