"""Parts that add a penalty to the loss."""

from keras_plasticity import optimizers
from keras_plasticity.experiments.parts.part import Flag
from keras_plasticity.experiments.parts.part import Part

# Shared with `shrink_and_perturb`.
L2 = Flag("l2", "weight of half the sum of squares", 1e-4, "[0, inf)")


def _add_l2(optimizer, settings, seed, initializer):
    return optimizers.L2(optimizer, settings["l2"])


PARTS = (
    Part(
        "l2",
        "L2 regularization, coupled to the gradient of all parameters",
        "`optimizers.L2`",
        flags=(L2,),
        excludes=("weight_decay",),
        wrap=_add_l2,
    ),
)
