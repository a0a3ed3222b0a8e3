"""Parts that add a penalty to the loss, or take steps along its gradient."""

from keras_plasticity import layers
from keras_plasticity import optimizers
from keras_plasticity.experiments.parts.base_optimizers import adam
from keras_plasticity.experiments.parts.part import Flag
from keras_plasticity.experiments.parts.part import Part

# Shared with `shrink_and_perturb`.
L2 = Flag("l2", "weight of half the sum of squares", 1e-4, "[0, inf)")


def _l2_er(optimizer, settings, seed, initializer):
    return optimizers.EffectiveRank(
        _add_l2(optimizer, settings, seed, initializer),
        rank_learning_rate=settings["rank_learning_rate"],
        period=settings["rank_period"],
        layers=settings["rank_layers"] or None,
    )


def _add_l2(optimizer, settings, seed, initializer):
    return optimizers.L2(optimizer, settings["l2"])


def _l2_init(optimizer, settings, seed, initializer):
    is_drawn = settings["l2_init_new_targets"]
    return optimizers.L2Init(
        optimizer,
        settings["l2_init_strength"],
        settings["l2_init_distance"],
        target_initializer=initializer if is_drawn else None,
        seed=seed,
    )


def _parseval(optimizer, settings, seed, initializer):
    return optimizers.ParsevalRegularization(
        optimizer, settings["parseval_strength"], settings["parseval_scale"]
    )


def _spectral(optimizer, settings, seed, initializer):
    return optimizers.SpectralRegularization(
        optimizer,
        strength=settings["spectral_strength"],
        exponent=settings["spectral_exponent"],
        target=settings["spectral_target"],
        num_iterations=settings["spectral_iterations"],
    )


def _decoupled_orthogonality(optimizer, settings, seed, initializer):
    return optimizers.DecoupledOrthogonality(
        optimizer, settings["orthogonality_strength"]
    )


PARTS = (
    Part(
        "l2",
        "L2 regularization, coupled to the gradient of all parameters",
        "`optimizers.L2`",
        flags=(L2,),
        excludes=("weight_decay",),
        wrap=_add_l2,
    ),
    Part(
        "l2_init",
        "a pull towards the initial weights "
        "([Kumar et al.](https://arxiv.org/abs/2308.11958))",
        "`optimizers.L2Init`",
        flags=(
            Flag("l2_init_strength", "weight of the penalty", 0.01, "[0, inf)"),
            Flag(
                "l2_init_distance",
                "half the square, the absolute value or Huber's function",
                "l2",
                choices=("l2", "l1", "huber"),
            ),
            Flag(
                "l2_init_new_targets",
                "whether the pull is towards weights drawn anew in each step",
                False,
                type=bool,
            ),
        ),
        excludes=("weight_decay", "l2"),
        wrap=_l2_init,
    ),
    Part(
        "l2_er",
        "`l2`, and steps that raise the effective rank of hidden features "
        "([L2-ER](https://arxiv.org/abs/2509.22335))",
        "`optimizers.EffectiveRank`",
        flags=(
            L2,
            Flag(
                "rank_learning_rate",
                "size of a step that raises the rank",
                0.001,
                "[0, inf)",
            ),
            Flag(
                "rank_period",
                "updates from one such step to the next",
                100,
                "[1, inf)",
                type=int,
            ),
            Flag(
                "rank_examples",
                "how many of the last examples it looks at",
                100,
                "[1, inf)",
                type=int,
            ),
            Flag(
                "rank_layers",
                "of how many of the last hidden layers; 0: of all",
                0,
                "[0, inf)",
                type=int,
            ),
        ),
        # Whose state an optimizer cannot read.
        excludes=("weight_decay", "l2", "batch_norm", "online_norm"),
        input_layer=lambda settings: layers.RecentInputs(
            settings["rank_examples"]
        ),
        wrap=_l2_er,
    ),
    Part(
        "parseval",
        "a penalty on weights of units that are not orthogonal "
        "([Chung et al.](https://arxiv.org/abs/2412.07224))",
        "`optimizers.ParsevalRegularization`",
        flags=(
            Flag(
                "parseval_strength", "weight of the penalty", 0.001, "[0, inf)"
            ),
            Flag(
                "parseval_scale",
                "squared length that a unit's weights are to have",
                1.0,
                "(0, inf)",
            ),
        ),
        wrap=_parseval,
    ),
    Part(
        "spectral",
        "a penalty on the largest singular values "
        "([Lewandowski et al.](https://arxiv.org/abs/2406.06811))",
        "`optimizers.SpectralRegularization`",
        flags=(
            Flag(
                "spectral_strength", "weight of the penalty", 0.001, "[0, inf)"
            ),
            Flag(
                "spectral_exponent",
                "power of the singular value that is pulled to the target",
                2.0,
                "[1, inf)",
            ),
            Flag("spectral_target", "where it is pulled", 1.0, "[0, inf)"),
            Flag(
                "spectral_iterations",
                "power iterations in each update",
                10,
                "[1, inf)",
                type=int,
            ),
        ),
        excludes=("parseval",),
        wrap=_spectral,
    ),
    Part(
        "adamo",
        "Adam, and a step towards orthogonal kernels after its own "
        "([AdamO](https://arxiv.org/abs/2606.09762))",
        "`optimizers.DecoupledOrthogonality`",
        flags=(
            Flag(
                "orthogonality_strength",
                "weight of the penalty that the step descends",
                0.001,
                "[0, inf)",
            ),
        ),
        omits=("momentum",),
        excludes=("parseval", "spectral"),
        optimizer=adam,
        wrap=_decoupled_orthogonality,
    ),
)
