"""Parts that act when a task begins."""

import dataclasses

from keras_plasticity import callbacks
from keras_plasticity.experiments.parts.part import Part
from keras_plasticity.experiments.parts.weights import PERTURB
from keras_plasticity.experiments.parts.weights import SHRINK


def _shrink_and_perturb_tasks(settings, build_fresh):
    return callbacks.ShrinkAndPerturbTasks(
        build_fresh, settings["shrink"], settings["perturb"]
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
        ),
        excludes=(
            "weight_decay",
            "l2",
            "shrink_and_perturb",
            "shrink_and_perturb_by_initializer",
        ),
        task_callback=_shrink_and_perturb_tasks,
    ),
)
