"""The problems of a suite, and how much of each a size has."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping

import keras_plasticity
from keras_plasticity.experiments.sweeps.space import Range

SIZES = ("minutes", "hours", "published")
# Those that settings are chosen by are none that anybody reports on.
FIRST_TUNING_SEED = 10_000


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of a problem is trained.

    Attributes:
        flags: Dict from the name of a flag of the trainer to its value.
        num_settings: Integer, how many settings of each method are tried.
        tuning_seeds: Integer, on how many seeds.
        report_seeds: Integer, on how many others the best one is reported.
    """

    flags: Mapping[str, str]
    num_settings: int
    tuning_seeds: int
    report_seeds: int


@dataclasses.dataclass(frozen=True)
class SuiteProblem:
    """A problem of a suite.

    Attributes:
        title: String.
        trainer: String, the trainer's file among the examples.
        learning_rate: `Range` of SGD's step sizes.
        adam_learning_rate: `Range` of Adam's.
        flags: Dict, the flags of all sizes.
        sizes: Dict from the name of a size to a `Size`, of those that make
            sense.
        reads_data: Boolean, whether the trainer has `--data_dir`.
    """

    title: str
    trainer: str
    learning_rate: Range
    adam_learning_rate: Range
    flags: Mapping[str, str]
    sizes: Mapping[str, Size]
    reads_data: bool = True


_PERMUTED_MNIST = SuiteProblem(
    "Online Permuted MNIST",
    "online_permuted_mnist.py",
    # Around the authors' 0.001 to 0.01, and 3e-5 to 1e-4.
    Range(5e-4, 3e-2, log=True),
    Range(3e-5, 3e-3, log=True),
    {"nodiagnostics": "true"},
    {
        "minutes": Size(
            {
                "num_tasks": "20",
                "examples_per_task": "3000",
                "hidden_units": "100",
            },
            num_settings=8,
            # Seeds differ little here, as the authors say.
            tuning_seeds=1,
            report_seeds=10,
        ),
        "hours": Size(
            {"num_tasks": "10", "hidden_units": "100"},
            num_settings=12,
            tuning_seeds=2,
            report_seeds=10,
        ),
        "published": Size(
            {"num_tasks": "800"},
            num_settings=12,
            tuning_seeds=2,
            report_seeds=10,
        ),
    },
)
PROBLEMS = {
    "slowly_changing_regression": SuiteProblem(
        "Slowly-Changing Regression",
        "slowly_changing_regression.py",
        # Around the authors' 0.001 to 0.01.
        Range(5e-4, 3e-2, log=True),
        Range(3e-4, 1e-2, log=True),
        {},
        {
            "minutes": Size({"num_examples": "500000"}, 8, 5, 30),
            "hours": Size({"num_examples": "1000000"}, 16, 5, 30),
            # 3 million examples, one bit flipped at a time.
            "published": Size({"flip_one": "true"}, 16, 10, 100),
        },
        reads_data=False,
    ),
    "online_permuted_mnist": _PERMUTED_MNIST,
    "label_permuted_mnist": dataclasses.replace(
        _PERMUTED_MNIST,
        title="Label-permuted MNIST",
        flags={**_PERMUTED_MNIST.flags, "permute": "labels"},
    ),
    "continual_imagenet": SuiteProblem(
        "Continual ImageNet",
        "continual_imagenet.py",
        # Around the authors' 0.003 to 0.1.
        Range(3e-3, 1e-1, log=True),
        Range(1e-4, 3e-3, log=True),
        {"nodiagnostics": "true"},
        {
            # In minutes a network gets no further than chance.
            "hours": Size(
                {
                    "num_tasks": "50",
                    "epochs": "50",
                    "train_images_per_class": "400",
                },
                6,
                1,
                5,
            ),
            "published": Size({}, 10, 2, 30),
        },
    ),
}


def problems_of(size: str) -> list[str]:
    """The problems that a suite of some size can have."""
    return [name for name, each in PROBLEMS.items() if size in each.sizes]


def trainer_path(problem: SuiteProblem, folder: str | None = None) -> str:
    """The file of a problem's trainer.

    Args:
        problem: `SuiteProblem`.
        folder: String, where the trainers are. Defaults to `None`: among the
            examples of the checkout that this package is in.

    Returns:
        String, an absolute path.

    Raises:
        ValueError: If it is not there.
    """
    package = pathlib.Path(keras_plasticity.__file__).parent
    path = pathlib.Path(folder or package.parent / "examples") / problem.trainer
    if not path.is_file():
        raise ValueError(
            "A suite needs the trainers, the folder `examples` of the "
            "repository: run it in a checkout, or give --trainers. Received: "
            f"no file {path}"
        )
    # Nodes of a cluster have working folders of their own.
    return os.path.abspath(path)
