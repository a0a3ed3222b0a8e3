"""Parts that act when a task begins."""

import dataclasses

import keras

from keras_plasticity import callbacks
from keras_plasticity import layers
from keras_plasticity.experiments.parts.part import Flag
from keras_plasticity.experiments.parts.part import Part
from keras_plasticity.experiments.parts.weights import PERTURB
from keras_plasticity.experiments.parts.weights import SHRINK


def _shrink_and_perturb_tasks(settings, build_fresh):
    # Its two variants are of different authors.
    is_first = settings["towards_first"]

    def build_model(learner, task):
        return build_fresh(learner, None if is_first else task)

    return callbacks.ShrinkAndPerturbTasks(
        build_model,
        settings["shrink"],
        settings["perturb"],
        reset_optimizer="all" if is_first else "none",
    )


def _fire(settings, build_fresh):
    return callbacks.FIRE(settings["fire_iterations"])


def _dash(settings, build_fresh):
    return callbacks.DASH(
        alpha=settings["dash_alpha"],
        min_factor=settings["dash_min_factor"],
        batch_size=settings["dash_batch_size"],
    )


def _sdp(settings, build_fresh):
    return callbacks.SpectralDiversityPreservation(settings["sdp_gamma"])


def _head_reset(settings, build_fresh):
    return callbacks.ResetLayers(1, build_fresh)


def _layer_reset(settings, build_fresh):
    return callbacks.ResetLayers(settings["reset_layers"], build_fresh)


def _reset(settings, build_fresh):
    return callbacks.ResetModel(build_fresh)


def _injectable_head(network, settings):
    """Joins the last layers with weights, and what is between, into one."""
    with_weights = [
        position
        for position, layer in enumerate(network)
        if hasattr(layer, "kernel_initializer")
    ]
    first = with_weights[-settings["injected_layers"] :][0]
    head = keras.Sequential(network[first:], name="injectable")
    return [*network[:first], layers.Injectable(head)]


def _plasticity_injection(settings, build_fresh):
    return callbacks.PlasticityInjection(
        build_fresh, skip=settings["injection_task"]
    )


PARTS = (
    Part(
        "shrink_and_perturb_tasks",
        "towards a new network, when a task begins "
        "([Ash and Adams](https://arxiv.org/abs/1910.08475))",
        "`callbacks.ShrinkAndPerturbTasks`",
        flags=(
            dataclasses.replace(SHRINK, default=0.2),
            dataclasses.replace(PERTURB, default=0.8),
            Flag(
                "towards_first",
                "towards the learner's own first network, with a new "
                "optimizer, rather than a new network for each task",
                False,
                type=bool,
            ),
        ),
        excludes=(
            "weight_decay",
            "l2",
            "shrink_and_perturb",
            "shrink_and_perturb_by_initializer",
        ),
        task_callback=_shrink_and_perturb_tasks,
    ),
    Part(
        "fire",
        "nearly isometric kernels, when a task begins "
        "([Han et al.](https://arxiv.org/abs/2602.08040))",
        "`callbacks.FIRE`",
        flags=(
            Flag(
                "fire_iterations",
                "steps of the iteration of Newton and Schulz",
                10,
                "[1, inf)",
                type=int,
            ),
        ),
        task_callback=_fire,
    ),
    Part(
        "dash",
        "weights shrunk that disagree with the gradients of the new task "
        "([Shin et al.](https://arxiv.org/abs/2410.23495))",
        "`callbacks.DASH`",
        flags=(
            Flag("dash_alpha", "weight of each new gradient", 0.3, "(0, 1]"),
            Flag("dash_min_factor", "least factor of a unit", 0.3, "[0, 1]"),
            Flag(
                "dash_batch_size",
                "examples of each gradient",
                256,
                "[1, inf)",
                type=int,
            ),
        ),
        task_callback=_dash,
    ),
    Part(
        "sdp",
        "singular values of kernels evened out, when a task begins "
        "([code](https://github.com/gracebml/LoP-NeurIPS))",
        "`callbacks.SpectralDiversityPreservation`",
        flags=(
            Flag(
                "sdp_gamma",
                "how far singular values go towards their mean",
                0.3,
                "[0, 1]",
            ),
        ),
        # It changes hidden layers, and leaves out the output layer.
        excludes=("linear",),
        task_callback=_sdp,
    ),
    Part(
        "head_reset",
        "the output layer redrawn, when a task begins "
        "([Nikishin et al.](https://arxiv.org/abs/2205.07802))",
        "`callbacks.ResetLayers`",
        excludes=("layer_reset", "reset"),
        task_callback=_head_reset,
    ),
    Part(
        "layer_reset",
        "the last layers redrawn, when a task begins "
        "([Nikishin et al.](https://arxiv.org/abs/2205.07802))",
        "`callbacks.ResetLayers`",
        flags=(
            Flag(
                "reset_layers",
                "how many of the last layers, the output layer included",
                2,
                "[1, inf)",
                type=int,
            ),
        ),
        excludes=("linear", "reset"),
        task_callback=_layer_reset,
    ),
    Part(
        "reset",
        "a new network, when a task begins",
        "`callbacks.ResetModel`",
        excludes=(
            "shrink_and_perturb_tasks",
            "fire",
            "dash",
            "sdp",
            "plasticity_injection",
        ),
        task_callback=_reset,
    ),
    Part(
        "plasticity_injection",
        "a fresh head beside the frozen one, when one task begins "
        "([Nikishin et al.](https://arxiv.org/abs/2305.15555))",
        "`layers.Injectable`, `callbacks.PlasticityInjection`",
        flags=(
            # Of a linear head alone, SGD learns what it would without it.
            Flag(
                "injected_layers",
                "how many of the last layers are the head",
                2,
                "[1, inf)",
                type=int,
            ),
            Flag(
                "injection_task",
                "the task that it is injected before, counted from 0",
                1,
                "[0, inf)",
                type=int,
            ),
        ),
        excludes=("linear", "head_reset", "layer_reset", "reset"),
        around_layers=_injectable_head,
        task_callback=_plasticity_injection,
    ),
)
