"""Sets the state of an optimizer back to its beginning."""

import keras
from keras import ops

from keras_plasticity import keras_compat
from keras_plasticity.optimizers.inner_optimizers import innermost
from keras_plasticity.optimizers.slots import SlotTable


def restart(optimizer, variables=None):
    """Sets the state of the optimizer inside all wrappers back.

    What it would begin with is read off a new optimizer of the same settings.
    The variables of wrappers (ages, first weights, states of generators) are
    left alone.

    Args:
        optimizer: `keras.optimizers.Optimizer`. If it is not built yet, there
            is nothing to do.
        variables: List of model variables: only their slots are set back.
            Defaults to `None`: all state is, the count of steps included.
    """
    optimizer = innermost(optimizer)
    if not optimizer.built:
        return
    new = _new_optimizer(optimizer)
    table = SlotTable()
    with table.listen():
        new.build(list(keras_compat.built_variables(optimizer)))
    copied = {}
    chosen = set()
    for variable in keras_compat.built_variables(optimizer):
        for slot in table.of(variable):
            if slot.initializer is None:
                copied[id(slot.variable)] = variable
            if variables is None or any(v is variable for v in variables):
                chosen.add(id(slot.variable))
    for old, fresh in zip(optimizer.variables, new.variables, strict=True):
        if variables is None or id(fresh) in chosen:
            value = copied.get(id(fresh), fresh)
            old.assign(ops.copy(ops.convert_to_tensor(value)))


def _new_optimizer(optimizer):
    kind = type(optimizer)
    try:
        return kind.from_config(optimizer.get_config())
    except Exception as error:  # Whatever a user's class may raise.
        raise ValueError(
            "To start anew, an optimizer is made again from its config. That "
            f"of this `{kind.__name__}` does not work "
            f"({type(error).__name__}: {error}). Received: "
            f"optimizer={optimizer!r}"
        ) from error


def set_optimizer_state(optimizer, other):
    """Gives an optimizer all variables' values of another one like it.

    Args:
        optimizer: Built `keras.optimizers.Optimizer`.
        other: Another one, of the same kind and for a like model.

    Raises:
        ValueError: If their variables differ.
    """
    expected = _shapes(optimizer)
    received = _shapes(other)
    if expected != received:
        raise ValueError(
            "`build_model` must compile its model with an optimizer of the "
            "same kind. Received: one with variables of the shapes "
            f"{received}, expected {expected}"
        )
    for old, new in zip(optimizer.variables, other.variables):
        old.assign(ops.copy(ops.convert_to_tensor(new)))


def _shapes(optimizer: keras.optimizers.Optimizer):
    return [tuple(variable.shape) for variable in optimizer.variables]
