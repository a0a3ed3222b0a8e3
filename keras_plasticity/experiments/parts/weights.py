"""Parts that change weights after each step."""

import keras

from keras_plasticity import optimizers
from keras_plasticity.experiments.parts.part import Flag
from keras_plasticity.experiments.parts.part import Part
from keras_plasticity.experiments.parts.regularizers import L2

# Those of Kumar et al., for tasks of 625 updates. They are too much for many
# more: a problem has its own.
SHRINK = Flag("shrink", "factor of the weights", 0.999, "[0, 1]")
PERTURB = Flag("perturb", "factor of new initial weights", 0.01, "[0, inf)")


def _shrink_and_perturb(optimizer, settings, seed, initializer):
    return optimizers.ShrinkAndPerturb(
        optimizer, settings["l2"], settings["noise_stddev"], seed=seed
    )


def _shrink_and_perturb_by_initializer(optimizer, settings, seed, initializer):
    return optimizers.ShrinkAndPerturbByInitializer(
        optimizer,
        settings["shrink"],
        settings["perturb"],
        initializer,
        seed=seed,
    )


def _weight_clipping(optimizer, settings, seed, initializer):
    return optimizers.WeightClipping(optimizer, settings["clipping_kappa"])


def _normalize_and_project(optimizer, settings, seed, initializer):
    return optimizers.NormalizeAndProject(
        optimizer, settings["projection_period"], exclude=["output"]
    )


PARTS = (
    Part(
        "shrink_and_perturb",
        "`l2` and noise, at each step, as the paper",
        "`optimizers.ShrinkAndPerturb`",
        flags=(
            L2,
            Flag(
                "noise_stddev",
                "standard deviation of a step's noise",
                1e-5,
                "[0, inf)",
            ),
        ),
        excludes=("weight_decay", "l2"),
        wrap=_shrink_and_perturb,
    ),
    Part(
        "shrink_and_perturb_by_initializer",
        "shrinking, and noise like new weights, at each step "
        "([Kumar et al.](https://arxiv.org/abs/2308.11958))",
        "`optimizers.ShrinkAndPerturbByInitializer`",
        flags=(SHRINK, PERTURB),
        excludes=("weight_decay", "l2", "shrink_and_perturb"),
        wrap=_shrink_and_perturb_by_initializer,
    ),
    Part(
        "weight_clipping",
        "weights clipped to `kappa / sqrt(fan_in)` "
        "([Elsayed et al.](https://arxiv.org/abs/2407.01704))",
        "`optimizers.WeightClipping`",
        flags=(
            Flag(
                "clipping_kappa",
                "largest weight, times the root of the number of inputs",
                1.0,
                "(0, inf)",
            ),
        ),
        wrap=_weight_clipping,
    ),
    Part(
        "normalize_and_project",
        "layer normalization, and kernels that keep their initial norm "
        "([Lyle et al.](https://arxiv.org/abs/2407.01800))",
        "`optimizers.NormalizeAndProject`",
        flags=(
            Flag(
                "projection_period",
                "updates between two projections",
                1,
                "[1, inf)",
                type=int,
            ),
        ),
        excludes=("weight_clipping",),
        normalization=lambda settings: keras.layers.LayerNormalization(),
        wrap=_normalize_and_project,
    ),
)
