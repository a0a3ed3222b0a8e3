"""Attributes of a wrapper that are those of an optimizer inside it."""

import functools
import inspect

from keras_plasticity.optimizers.inner_optimizers import innermost
from keras_plasticity.optimizers.inner_optimizers import loss_scaler
from keras_plasticity.optimizers.inner_optimizers import wrapped


def _inner_attribute(name):
    """A property of a wrapper that is an attribute of the innermost optimizer.

    Args:
        name: String, an argument of all Keras optimizers.
    """

    def get_attribute(wrapper):
        if wrapper._hides_inner:
            return None
        return getattr(innermost(wrapper), name)

    def set_attribute(wrapper, value):
        if not wrapper._hides_inner:
            _check_inner_attribute(wrapper, name, value)
            setattr(innermost(wrapper), name, value)

    return property(get_attribute, set_attribute)


class InnerAttributes:
    """Mixin of a Keras optimizer that has an `inner_optimizer`.

    What a Keras optimizer offers is read, set and called on the innermost
    optimizer, whatever is between. Where an optimizer between has something to
    add, such as the loss scale, the call goes from one to the next.
    """

    weight_decay = _inner_attribute("weight_decay")
    clipnorm = _inner_attribute("clipnorm")
    global_clipnorm = _inner_attribute("global_clipnorm")
    clipvalue = _inner_attribute("clipvalue")
    use_ema = _inner_attribute("use_ema")
    ema_momentum = _inner_attribute("ema_momentum")
    ema_overwrite_frequency = _inner_attribute("ema_overwrite_frequency")
    loss_scale_factor = _inner_attribute("loss_scale_factor")
    gradient_accumulation_steps = _inner_attribute(
        "gradient_accumulation_steps"
    )

    # While the base class is constructed or built. It would act on the inner
    # optimizer's settings: make averages and accumulators of its own.
    _hides_inner = True

    def scale_loss(self, loss):
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list):
        self.inner_optimizer.finalize_variable_values(var_list)

    @property
    def learning_rate(self):
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self):
        return self.inner_optimizer.iterations

    @property
    def optimizers(self):
        return innermost(self.inner_optimizer).optimizers

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        _check_is_one(innermost(self))
        innermost(self).exclude_from_weight_decay(var_list, var_names)

    def __setattr__(self, name, value):
        owner = self._other_owner(name)
        if owner is not None:
            raise AttributeError(
                f"`{name}` is an argument of the `{type(owner).__name__}` "
                f"inside this `{type(self).__name__}`. Set it there, as an "
                "attribute of `inner_optimizer`. "
                f"Received: {name}={value!r}"
            )
        super().__setattr__(name, value)

    def _other_owner(self, name):
        """The optimizer inside that has an argument which this one has not."""
        if (
            name.startswith("_")
            or name in vars(self)
            or hasattr(type(self), name)
            or name in _arguments(type(self))
        ):
            return None
        for optimizer in wrapped(vars(self).get("inner_optimizer")):
            if name in _arguments(type(optimizer)):
                return optimizer
        return None


def _check_inner_attribute(wrapper, name, value):
    """Checks that setting an attribute of the innermost optimizer does it."""
    optimizer = innermost(wrapper)
    if name == "loss_scale_factor":
        if value is not None and loss_scaler(wrapper) is not None:
            raise ValueError(
                "`loss_scale_factor` must be `None` where a "
                "`LossScaleOptimizer` scales the loss. "
                f"Received: loss_scale_factor={value}"
            )
        return
    _check_is_one(optimizer)
    if (
        name in ("gradient_accumulation_steps", "use_ema")
        and value
        and optimizer.built
        and not getattr(optimizer, name)
    ):
        raise ValueError(
            f"`{name}` needs variables that are made when the optimizer is "
            f"built, so it must be set before. Received: {name}={value}"
        )


def _check_is_one(optimizer):
    if hasattr(optimizer, "optimizers"):
        raise AttributeError(
            "The optimizers of a `MultiOptimizer` have settings of their own. "
            "Change those of each of `optimizer.optimizers`."
        )


@functools.cache
def _arguments(kind):
    """The names of all arguments of the constructors of an optimizer class."""
    return {
        name
        for base in kind.__mro__
        for name in inspect.signature(base.__init__).parameters
    }
