"""What the trainers in `examples/` share: flags, methods, runs and reports.

A trainer defines its flags, describes a `Problem`, says how to build a model
and a stream, and calls `run`; `launch` makes a program of it.

`import keras_plasticity` does not import this package, and importing it defines
no flag: `define_flags` does.
"""

from keras_plasticity.experiments.command_line import (
    define_flags as define_flags,
)
from keras_plasticity.experiments.command_line import (
    has_defaults as has_defaults,
)
from keras_plasticity.experiments.command_line import launch as launch
from keras_plasticity.experiments.compare import compare as compare
from keras_plasticity.experiments.device import (
    configure_backend as configure_backend,
)
from keras_plasticity.experiments.experiment import run as run
from keras_plasticity.experiments.initial_weights import (
    draw_pytorch_biases as draw_pytorch_biases,
)
from keras_plasticity.experiments.initial_weights import (
    pytorch_initializer as pytorch_initializer,
)
from keras_plasticity.experiments.measures import (
    area_under_curve as area_under_curve,
)
from keras_plasticity.experiments.measures import last_tenth as last_tenth
from keras_plasticity.experiments.methods import Method as Method
from keras_plasticity.experiments.methods import (
    choose_methods as choose_methods,
)
from keras_plasticity.experiments.methods import methods_table as methods_table
from keras_plasticity.experiments.parts import PARTS as PARTS
from keras_plasticity.experiments.parts import Flag as Flag
from keras_plasticity.experiments.parts import Part as Part
from keras_plasticity.experiments.problem import Problem as Problem
from keras_plasticity.experiments.problem import tasks_per_bin as tasks_per_bin
from keras_plasticity.experiments.results import save_results as save_results
from keras_plasticity.experiments.selection import (
    check_separate_seeds as check_separate_seeds,
)
from keras_plasticity.experiments.selection import (
    separate_seeds as separate_seeds,
)
from keras_plasticity.experiments.statistics import Estimate as Estimate
from keras_plasticity.experiments.statistics import estimate as estimate
from keras_plasticity.experiments.statistics import (
    paired_difference as paired_difference,
)
from keras_plasticity.experiments.statistics import (
    probability_of_improvement as probability_of_improvement,
)
from keras_plasticity.experiments.statistics import (
    unpaired_difference as unpaired_difference,
)
from keras_plasticity.experiments.suites import suite as suite
from keras_plasticity.experiments.sweeps import Range as Range
from keras_plasticity.experiments.sweeps import sweep as sweep

__all__ = [
    "Estimate",
    "Flag",
    "Method",
    "PARTS",
    "Part",
    "Problem",
    "Range",
    "area_under_curve",
    "check_separate_seeds",
    "choose_methods",
    "compare",
    "configure_backend",
    "define_flags",
    "draw_pytorch_biases",
    "estimate",
    "has_defaults",
    "last_tenth",
    "launch",
    "methods_table",
    "paired_difference",
    "probability_of_improvement",
    "pytorch_initializer",
    "run",
    "save_results",
    "separate_seeds",
    "suite",
    "sweep",
    "tasks_per_bin",
    "unpaired_difference",
]
