"""Parts that change weights after each step."""

import functools

import keras

from keras_plasticity import optimizers
from keras_plasticity.experiments.parts.part import Flag
from keras_plasticity.experiments.parts.part import Part
from keras_plasticity.experiments.parts.regularizers import L2

# Those of Kumar et al., for tasks of 625 updates. They are too much for many
# more: a problem has its own.
SHRINK = Flag("shrink", "factor of the weights", 0.999, "[0, 1]")
PERTURB = Flag("perturb", "factor of new initial weights", 0.01, "[0, inf)")
_UPGD_FLAGS = (
    Flag(
        "upgd_scope",
        "which weights, or units, are compared",
        "global",
        choices=("global", "local"),
    ),
    Flag(
        "upgd_protecting",
        "whether the step is gated, and not the noise alone",
        True,
        type=bool,
    ),
    Flag(
        "upgd_utility_decay",
        "decay rate of the mean utility",
        0.999,
        "[0, 1)",
    ),
    Flag(
        "upgd_decay",
        "part of a weight that a step of size 1 takes off",
        0.001,
        "[0, inf)",
    ),
    Flag(
        "upgd_noise_stddev",
        "standard deviation of the gradient's noise",
        0.001,
        "[0, inf)",
    ),
)


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
        period=settings["perturb_period"],
    )


def _weight_clipping(optimizer, settings, seed, initializer):
    return optimizers.WeightClipping(
        optimizer,
        settings["clipping_kappa"],
        clip_normalization=settings["clipping_normalization"],
    )


def _normalize_and_project(optimizer, settings, seed, initializer):
    return optimizers.NormalizeAndProject(
        optimizer, settings["projection_period"], exclude=["output"]
    )


def _upgd(kind, optimizer, settings, seed, initializer):
    return kind(
        optimizer,
        scope=settings["upgd_scope"],
        protecting=settings["upgd_protecting"],
        utility_decay=settings["upgd_utility_decay"],
        decay=settings["upgd_decay"],
        noise_stddev=settings["upgd_noise_stddev"],
        seed=seed,
    )


def _selective_weight_reinitialization(optimizer, settings, seed, initializer):
    return optimizers.SelectiveWeightReinitialization(
        optimizer,
        utility=settings["reinitialization_utility"],
        rule=settings["reinitialization_rule"],
        replacement=settings["reinitialization_replacement"],
        factor=settings["reinitialization_factor"],
        period=settings["reinitialization_period"],
        decay_rate=settings["reinitialization_decay_rate"],
        seed=seed,
    )


def _hare_and_tortoise(optimizer, settings, seed, initializer):
    return optimizers.HareAndTortoise(
        optimizer, settings["tortoise_decay_rate"], settings["tortoise_period"]
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
        flags=(
            SHRINK,
            PERTURB,
            Flag(
                "perturb_period",
                "updates from one time to the next",
                1,
                "[1, inf)",
                type=int,
            ),
        ),
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
            Flag(
                "clipping_normalization",
                "whether normalization layers are clipped, as the layer before",
                False,
                type=bool,
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
    Part(
        "upgd",
        "useful weights protected, the others perturbed "
        "([Elsayed and Mahmood](https://arxiv.org/abs/2404.00781))",
        "`optimizers.UPGD`",
        flags=_UPGD_FLAGS,
        excludes=(
            "weight_decay",
            "shrink_and_perturb",
            "shrink_and_perturb_by_initializer",
            "upgd_units",
        ),
        wrap=functools.partial(_upgd, optimizers.UPGD),
    ),
    Part(
        "upgd_units",
        "useful units protected, the others perturbed "
        "([Elsayed and Mahmood](https://arxiv.org/abs/2404.00781))",
        "`optimizers.UnitUPGD`",
        flags=_UPGD_FLAGS,
        excludes=(
            "weight_decay",
            "shrink_and_perturb",
            "shrink_and_perturb_by_initializer",
        ),
        wrap=functools.partial(_upgd, optimizers.UnitUPGD),
        plastic_layers=True,
    ),
    Part(
        "selective_weight_reinitialization",
        "weights of least utility redrawn now and then "
        "([Hernandez-Garcia et al.](https://arxiv.org/abs/2508.00212))",
        "`optimizers.SelectiveWeightReinitialization`",
        flags=(
            Flag(
                "reinitialization_utility",
                "utility of a weight: its size, also times its gradient, or "
                "nothing but chance",
                "gradient",
                choices=("gradient", "magnitude", "random"),
            ),
            Flag(
                "reinitialization_rule",
                "whether a part of the mean utility, or of the weights, counts",
                "threshold",
                choices=("threshold", "proportional"),
            ),
            Flag(
                "reinitialization_replacement",
                "new weights: drawn, or the mean",
                "resample",
                choices=("resample", "mean"),
            ),
            Flag(
                "reinitialization_factor",
                "part of the mean utility, or of the weights",
                1e-5,
                "[0, inf)",
            ),
            Flag(
                "reinitialization_period",
                "updates from one time to the next",
                2048,
                "[1, inf)",
                type=int,
            ),
            Flag(
                "reinitialization_decay_rate",
                "decay rate of the mean utility, 0 for the last one",
                0.0,
                "[0, 1)",
            ),
        ),
        wrap=_selective_weight_reinitialization,
    ),
    Part(
        "hare_and_tortoise",
        "weights put back to their running mean now and then "
        "([Lee et al.](https://arxiv.org/abs/2406.02596))",
        "`optimizers.HareAndTortoise`",
        flags=(
            Flag(
                "tortoise_decay_rate",
                "decay rate of the mean weights",
                0.999,
                "[0, 1)",
            ),
            Flag(
                "tortoise_period",
                "updates from one time to the next",
                2000,
                "[1, inf)",
                type=int,
            ),
        ),
        wrap=_hare_and_tortoise,
    ),
)
