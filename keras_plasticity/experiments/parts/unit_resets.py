"""Parts that replace units."""

from keras_plasticity import optimizers
from keras_plasticity.experiments.parts.part import Flag
from keras_plasticity.experiments.parts.part import Part


def _continual_backprop(optimizer, settings, seed, initializer):
    return optimizers.ContinualBackprop(
        optimizer,
        replacement_rate=settings["replacement_rate"],
        maturity_threshold=settings["maturity_threshold"],
        decay_rate=settings["decay_rate"],
        utility=settings["utility"],
        seed=seed,
    )


def _redo(optimizer, settings, seed, initializer):
    return optimizers.ReDo(
        optimizer,
        threshold=settings["redo_threshold"],
        period=settings["redo_period"],
        score_updates=min(
            settings["redo_score_updates"], settings["redo_period"]
        ),
        seed=seed,
        outgoing=settings["redo_outgoing"],
    )


def _self_normalized_resets(optimizer, settings, seed, initializer):
    return optimizers.SelfNormalizedResets(
        optimizer,
        quantile=settings["resets_quantile"],
        min_threshold=settings["resets_min_threshold"],
        max_threshold=settings["resets_max_threshold"],
        initial_threshold=settings["resets_initial_threshold"],
        threshold_period=settings["resets_threshold_period"],
        seed=seed,
    )


def _regrama(optimizer, settings, seed, initializer):
    return optimizers.ReGraMa(
        optimizer,
        threshold=settings["regrama_threshold"],
        period=settings["regrama_period"],
        seed=seed,
        max_fraction=settings["regrama_max_fraction"],
    )


def _cpr(optimizer, settings, seed, initializer):
    return optimizers.CPR(
        optimizer,
        replacement_rate=settings["cpr_replacement_rate"],
        sharpness=settings["cpr_sharpness"],
        threshold=settings["cpr_threshold"],
        decay_rate=settings["cpr_decay_rate"],
        period=settings["cpr_period"],
        transform=settings["cpr_transform"],
        seed=seed,
    )


def _ccbp(optimizer, settings, seed, initializer):
    return optimizers.CCBP(
        optimizer,
        replacement_rate=settings["ccbp_replacement_rate"],
        sharpness=settings["ccbp_sharpness"],
        decay_rate=settings["ccbp_decay_rate"],
        period=settings["ccbp_period"],
        utility=settings["ccbp_utility"],
        seed=seed,
        continuous=settings["ccbp_continuous"],
        maturity_threshold=settings["ccbp_maturity_threshold"],
        reset_optimizer_state=settings["ccbp_reset_optimizer_state"],
    )


def _period(method, events):
    """A flag that counts the updates between two events."""
    return Flag(
        f"{method}_period",
        f"updates between two {events}",
        1000,
        "[1, inf)",
        type=int,
    )


def _partial_reset_flags(method):
    """The flags that methods of partial resets have in common."""
    return (
        Flag(
            f"{method}_replacement_rate",
            "largest part of a unit that is reset at once",
            0.015,
            "[0, 1]",
        ),
        Flag(
            f"{method}_sharpness",
            "how fast that part falls with a unit's utility",
            16.0,
            "[0, inf)",
        ),
        Flag(
            f"{method}_decay_rate",
            "decay of the running mean that is a unit's utility",
            0.99,
            "[0, 1)",
        ),
        _period(method, "partial resets"),
    )


def _examples(name, about, default):
    """A flag of `self_normalized_resets` that counts examples."""
    return Flag(
        f"resets_{name}_threshold",
        f"{about} number of examples for which a unit may be silent",
        default,
        "[1, 8388608]",
        type=int,
    )


PARTS = (
    Part(
        "cbp",
        "continual backpropagation",
        "`optimizers.ContinualBackprop`",
        flags=(
            Flag(
                "replacement_rate",
                "part of the mature units that is replaced in each update",
                1e-4,
                "[0, 1]",
            ),
            Flag(
                "maturity_threshold",
                "updates for which a new unit is not replaced",
                100,
                "[0, inf)",
                type=int,
            ),
            Flag("decay_rate", "decay of the running means", 0.99, "[0, 1)"),
            Flag(
                "utility",
                "how useful a unit is",
                "overall",
                choices=(
                    "contribution",
                    "mean_corrected_contribution",
                    "adaptation",
                    "overall",
                    "weight_magnitude",
                    "random",
                ),
            ),
        ),
        wrap=_continual_backprop,
        plastic_layers=True,
    ),
    Part(
        "redo",
        "recycles dormant units "
        "([Sokar et al.](https://arxiv.org/abs/2302.12902))",
        "`optimizers.ReDo`",
        flags=(
            Flag(
                "redo_threshold",
                "largest score of a dormant unit",
                0.025,
                "[0, inf)",
            ),
            _period("redo", "checks"),
            Flag(
                "redo_score_updates",
                "updates that a score is the mean of; at most the period",
                256,
                "[1, inf)",
                type=int,
            ),
            Flag(
                "redo_outgoing",
                "outgoing weights of a new unit: zero, or drawn",
                "zero",
                choices=("zero", "random"),
            ),
        ),
        excludes=("cbp",),
        wrap=_redo,
        plastic_layers=True,
    ),
    Part(
        "self_normalized_resets",
        "replaces units that are silent for unusually long "
        "([Farias and Jozefiak](https://arxiv.org/abs/2410.20098))",
        "`optimizers.SelfNormalizedResets`",
        flags=(
            Flag(
                "resets_quantile",
                "quantile of a unit's silences beyond which it is replaced",
                0.9,
                "(0, 1)",
            ),
            _examples("min", "smallest", 100),
            _examples("max", "largest", 20_000),
            _examples("initial", "first", 10_000),
            Flag(
                "resets_threshold_period",
                "updates between two changes of that number",
                1000,
                "[1, inf)",
                type=int,
            ),
        ),
        excludes=("cbp", "redo"),
        wrap=_self_normalized_resets,
        plastic_layers=True,
    ),
    Part(
        "regrama",
        "replaces units whose weights have small gradients "
        "([Liu et al.](https://arxiv.org/abs/2505.24061))",
        "`optimizers.ReGraMa`",
        flags=(
            Flag(
                "regrama_threshold",
                "largest score of a unit that is replaced",
                0.01,
                "[0, inf)",
            ),
            _period("regrama", "checks"),
            Flag(
                "regrama_max_fraction",
                "largest part of a layer's units that one check replaces",
                1.0,
                "[0, 1]",
            ),
        ),
        excludes=("cbp", "redo", "self_normalized_resets"),
        wrap=_regrama,
        plastic_layers=True,
    ),
    Part(
        "cpr",
        "calibrated partial resets ([paper](https://arxiv.org/abs/2607.24996))",
        "`optimizers.CPR`",
        flags=(
            *_partial_reset_flags("cpr"),
            Flag(
                "cpr_threshold",
                "utility up to which the part is the largest",
                1.0,
                "[0, inf)",
            ),
            Flag(
                "cpr_transform",
                "function by which the part falls",
                "sigmoid",
                choices=("sigmoid", "exponential", "softplus", "linear"),
            ),
        ),
        excludes=("cbp", "redo", "self_normalized_resets", "regrama"),
        wrap=_cpr,
        plastic_layers=True,
    ),
    Part(
        "ccbp",
        "continuous continual backpropagation "
        "([paper](https://openreview.net/forum?id=UJqXhFFzKu))",
        "`optimizers.CCBP`",
        flags=(
            *_partial_reset_flags("ccbp"),
            Flag(
                "ccbp_utility",
                "what the utility is the running mean of",
                "gradient_magnitude",
                choices=(
                    "gradient_magnitude",
                    "gradient_norm",
                    "contribution",
                    "adaptable_contribution",
                ),
            ),
            Flag(
                "ccbp_continuous",
                "whether all units are reset by a part; else a few as a whole",
                True,
                type=bool,
            ),
            Flag(
                "ccbp_maturity_threshold",
                "updates up to which a unit is new",
                0,
                "[0, inf)",
                type=int,
            ),
            Flag(
                "ccbp_reset_optimizer_state",
                "whether momenta are reset with the weights",
                False,
                type=bool,
            ),
        ),
        excludes=("cbp", "redo", "self_normalized_resets", "regrama", "cpr"),
        wrap=_ccbp,
        plastic_layers=True,
    ),
)
