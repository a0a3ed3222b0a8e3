import weakref
from collections.abc import Sequence
from typing import Any

import keras

from keras_plasticity import keras_compat
from keras_plasticity import validation
from keras_plasticity.diagnosis import measures as table
from keras_plasticity.diagnosis.arguments import check_built
from keras_plasticity.diagnosis.differentiation import NoLossError
from keras_plasticity.diagnosis.examples import take_examples
from keras_plasticity.diagnosis.measured import Measured
from keras_plasticity.diagnosis.measurement import Measurement
from keras_plasticity.graph.activations import layer_names


def measure(
    model: keras.Model,
    data: Any,
    measures: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    batch_size: int = 2000,
    max_rows: int = 2000,
) -> Measured:
    """Measures the plasticity of a model, in a loop of one's own.

    It is what `keras_plasticity.callbacks.PlasticityMonitor` measures, in
    inference mode, without what compares two times; see there for what each
    measure is. Nothing in the model changes. What is computed is compiled at
    the first call for a model, and kept.

    Args:
        model: A built `keras.Model`; for measures of gradients, compiled with
            a loss.
        data: The examples to measure on: an array of inputs (several come as a
            list or dict), a tuple `(x, y)`, a data set of batches of these
            (`PyDataset`, `tf.data`, a PyTorch `DataLoader`), or a
            `keras_plasticity.diagnosis.RecentExamples`.
        measures: List of names of measures. Defaults to all for which there
            are data, and for those of gradients a loss, without those that
            take longer.
        layers: List of names of the layers whose activations are measured.
            Defaults to all hidden layers.
        batch_size: Integer, the number of examples computed at once. Defaults
            to 2000.
        max_rows: Integer, the number of rows (examples, or positions) of a
            layer's activations whose singular values are computed. Defaults
            to 2000.

    Returns:
        Dict from the name of each measure to a dict from the name of each
        layer, and from `"total"`, to a number. A measure that no layer has is
        left out. Its attribute `num_units` is a dict from layer, and from
        `"total"`, to the number of units that were measured. Printed, it is a
        table: the totals first, then a line for each layer, as wide as the
        terminal. `table(width)` returns it in another width.

    Raises:
        ValueError: If the data do not fit the model, if a name is unknown, if
            targets or a loss are missing, or if a number is not finite: the
            network has diverged.

    Example:

    ```python
    for step, (x, y) in enumerate(batches):
        model.train_on_batch(x, y)
        if step % 1000 == 0:
            measured = keras_plasticity.measure(model, (x_test, y_test))
            print(step, measured["dead_units"]["total"])
    ```
    """
    check_built(validation.check_model("model", model))
    x, y = take_examples("data", data)
    names = table.check_measures(measures, y is not None, "data")
    names = table.check_one_time(names, measures)
    needs_loss = any(
        table.MEASURES[name].source in ("gradients", "loss") for name in names
    )
    if needs_loss and not model.compiled:
        if measures is not None:
            raise ValueError(
                "`model` must be compiled with a loss for measures of "
                "gradients: call `model.compile(loss=...)`. Received: model "
                f"'{model.name}', which is not compiled, measures={measures}"
            )
        names = _without_loss(names)
    arguments = (
        None if layers is None else tuple(table.check_layers(layers)),
        validation.check_positive_integer("batch_size", batch_size),
        validation.check_positive_integer("max_rows", max_rows),
    )
    measurement = _measurement_of(model, tuple(names), *arguments)
    try:
        measured = measurement.measure(model, x, y)
    except NoLossError:
        # Only a call tells whether the layers add one, where `compile` got
        # none.
        if measures is not None:
            raise
        names = _without_loss(names)
        measurement = _measurement_of(model, tuple(names), *arguments)
        measured = measurement.measure(model, x, y)
    if measured is None:
        raise ValueError(
            "The weights, activations and gradients of `model` must be finite. "
            f"Received: model '{model.name}', in which one is NaN or infinite "
            "for `data`: it has diverged"
        )
    names = {**layer_names(model), id(model): model.name}
    in_order = [names[id(layer)] for layer in keras_compat.in_order(model)]
    return Measured(measured, measurement.num_units, in_order)


def _without_loss(names):
    """Those of some measures that need no loss."""
    return [
        name
        for name in names
        if table.MEASURES[name].source not in ("gradients", "loss")
    ]


_kept = weakref.WeakKeyDictionary()


def _measurement_of(model, *arguments):
    """The `Measurement` of a model, always the same one."""
    kept = _kept.setdefault(model, {})
    if arguments not in kept:
        kept[arguments] = Measurement(*arguments)
    return kept[arguments]
