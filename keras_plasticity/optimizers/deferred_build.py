"""The build of an optimizer that comes too early, and its state until then.

An optimizer is built too early

- by a user, before a model that was not compiled with it is called: nothing
    tells which model the layers belong to;
- by `load_model`, before who reads whom in a model that cannot be traced is
    stated by `connect`;
- by Keras' loader of `.h5` files, without variables (tested with Keras 3.15.1).

It remains unbuilt then, and keeps the state that it is given. `fit`, or the
first step, builds it later.
"""

import functools
import warnings

import numpy as np
from keras import ops

from keras_plasticity import backend
from keras_plasticity.graph import NotCalledError
from keras_plasticity.optimizers.inner_optimizers import wrapped
from keras_plasticity.optimizers.settings import Schedule
from keras_plasticity.optimizers.settings import all_hyperparameters


class DeferredBuild:
    """What an optimizer that is not built yet knows of its build.

    An object of its own: a Keras optimizer takes every variable it finds in its
    attributes for one of its own, and these are the model's.

    Args:
        optimizer: The `OptimizerWrapper`.

    Attributes:
        weights: List of arrays, the values of all variables that the optimizer
            will have; `None` without any.
    """

    def __init__(self, optimizer):
        self._optimizer = optimizer
        self._changeable = None
        self._error = None
        self._build_again = None
        self._is_state_lost = False
        self.weights = None

    def around(self, build):
        """What `optimizer.build` is, around the `build` of its class."""

        @functools.wraps(build)
        def build_or_wait(variables):
            if not variables:
                self._is_state_lost = True
                return
            waiting = [
                each
                for each in wrapped(self._optimizer)
                if hasattr(each, "_deferred_build")
            ]
            try:
                # All of them before any creates a variable.
                for each in waiting:
                    each._prepare_build(variables)
            except NotCalledError as error:
                for each in waiting:
                    each._deferred_build._wait(
                        str(error), lambda: self._optimizer.build(variables)
                    )
                return
            changes = self._changes()
            build(variables)
            for each in waiting:
                each._deferred_build._wait(None, None)
            self._set_kept_weights(changes)

        return build_or_wait

    def keep(self, weights):
        """Keeps the values of variables that are not there yet.

        Args:
            weights: List of arrays; `None` to forget those that are kept.
        """
        self._is_state_lost = False
        self.weights = weights
        self._changeable = None
        if weights is not None:
            self._changeable = _changeable(self._optimizer)

    def build(self, variables):
        """Builds the optimizer for a step, or raises why it cannot be built.

        Args:
            variables: List of the trainable variables of one model.
        """
        self._check_state()
        self._optimizer.build(variables)
        self.check()

    def build_again(self):
        """Builds an optimizer whose build has come too early, if it now can."""
        if self._build_again is not None:
            self._build_again()

    def check(self):
        """Raises why the optimizer could not be built, if it could not."""
        self._check_state()
        if self._error is not None:
            raise NotCalledError(self._error)

    def _check_state(self):
        if self._is_state_lost and not self._optimizer.built:
            raise ValueError(
                f"This `{type(self._optimizer).__name__}` was built without "
                "variables, as Keras does with the optimizer inside another "
                "one that it loads from an `.h5` file. Its state is not known: "
                "compile the model again, with a new optimizer."
            )

    def _wait(self, error, build_again):
        self._error = error
        self._build_again = build_again

    def _changes(self):
        """What was changed since weights were kept.

        Returns:
            List of pairs of a function and the value that it sets.
        """
        if self._changeable is None:
            return []
        before, now = self._changeable, _changeable(self._optimizer)
        return [
            (set_value, value)
            for (_, old), (set_value, value) in zip(before, now)
            if not np.array_equal(old, value)
        ]

    def _set_kept_weights(self, changes):
        weights = self.weights
        if weights is None:
            return
        self.keep(None)
        try:
            self._optimizer.set_weights(weights)
        except ValueError as error:
            warnings.warn(
                "The optimizer starts anew, because its saved state does not "
                f"fit to this model: {error}",
                stacklevel=4,
            )
            return
        with backend.compute_now():  # TensorFlow may be tracing a step.
            for set_value, value in changes:
                set_value(value)


def _changeable(optimizer):
    """All that may be changed of an optimizer that is not built.

    Returns:
        List of pairs of a function that sets a value, and the value: those of
        the variables that there are, such as learning rates, and those of
        hyper-parameters.
    """
    with backend.compute_now():
        pairs = [
            (variable.assign, ops.convert_to_numpy(variable))
            for variable in optimizer.variables
        ]
    for each in wrapped(optimizer):
        for name in all_hyperparameters(type(each)):
            value = getattr(each, name)
            if isinstance(value, Schedule):
                value = None  # Not a variable.
            pairs.append((functools.partial(setattr, each, name), value))
    return pairs
