"""Parts that choose the innermost optimizer, or set its arguments."""

import keras

from keras_plasticity import optimizers
from keras_plasticity.experiments.parts.part import Flag
from keras_plasticity.experiments.parts.part import Part
from keras_plasticity.experiments.parts.part import Settings


def sgd(settings: Settings) -> keras.optimizers.Optimizer:
    """The innermost optimizer of methods that choose no other."""
    return keras.optimizers.SGD(
        settings["learning_rate"], momentum=settings["momentum"]
    )


def adam(settings: Settings) -> keras.optimizers.Optimizer:
    """Adam as in PyTorch, with its epsilon: Keras has 1e-7."""
    return keras.optimizers.Adam(settings["learning_rate"], epsilon=1e-8)


def _decay_weights(optimizer, settings, seed, initializer):
    optimizer.weight_decay = settings["weight_decay"]
    return optimizer


def _trac(optimizer, settings, seed, initializer):
    return optimizers.TRAC(optimizer, scale=settings["trac_scale"])


PARTS = (
    Part(
        "bp",
        "SGD, with `--momentum`",
        "`keras.optimizers.SGD`",
        optimizer=sgd,
    ),
    Part(
        "adam",
        "Adam",
        "`keras.optimizers.Adam`",
        omits=("momentum",),
        optimizer=adam,
    ),
    Part(
        "weight_decay",
        "weight decay, decoupled from the gradient",
        "argument of any Keras optimizer",
        flags=(
            Flag(
                "weight_decay",
                "part of a weight that a step of size 1 takes off",
                1e-4,
                "[0, inf)",
            ),
        ),
        wrap=_decay_weights,
    ),
    Part(
        "trac",
        "how far weights go from the first ones is tuned "
        "([Muppidi et al.](https://arxiv.org/abs/2405.16642))",
        "`optimizers.TRAC`",
        flags=(Flag("trac_scale", "scale of a tuner", 1e-8, "(0, inf)"),),
        wrap=_trac,
    ),
)
