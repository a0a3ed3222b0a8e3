"""The optimizers inside a wrapper: others' wrappers too, and the last one."""

import keras


def wrapped(optimizer):
    """Yields an optimizer, the one inside it, and so on."""
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "inner_optimizer", None)


def innermost(optimizer):
    """The optimizer inside all wrappers."""
    *_, last = wrapped(optimizer)
    return last


def loss_scaler(optimizer):
    """The `LossScaleOptimizer` among the wrappers; `None` without any."""
    for each in wrapped(optimizer):
        if isinstance(each, keras.optimizers.LossScaleOptimizer):
            return each
    return None


def counts(optimizer):
    """The variables that `iterations` is computed from, as a list.

    Whatever is computed within a condition and reads `iterations`, as schedules
    do, needs them among the condition's variables.
    """
    return [v for v in innermost(optimizer).variables if v.name == "iteration"]
