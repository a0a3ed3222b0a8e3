"""Optimizer wrappers that keep a network plastic."""

from keras_plasticity.optimizers.ccbp import CCBP as CCBP
from keras_plasticity.optimizers.continual_backprop import (
    ContinualBackprop as ContinualBackprop,
)
from keras_plasticity.optimizers.cpr import CPR as CPR
from keras_plasticity.optimizers.hidden_units import HiddenUnits as HiddenUnits
from keras_plasticity.optimizers.hidden_units import Outgoing as Outgoing
from keras_plasticity.optimizers.l2 import L2 as L2
from keras_plasticity.optimizers.optimizer_wrapper import (
    OptimizerWrapper as OptimizerWrapper,
)
from keras_plasticity.optimizers.redo import ReDo as ReDo
from keras_plasticity.optimizers.regrama import ReGraMa as ReGraMa
from keras_plasticity.optimizers.self_normalized_resets import (
    SelfNormalizedResets as SelfNormalizedResets,
)
from keras_plasticity.optimizers.shrink_and_perturb import (
    ShrinkAndPerturb as ShrinkAndPerturb,
)
from keras_plasticity.optimizers.shrink_and_perturb import (
    ShrinkAndPerturbByInitializer as ShrinkAndPerturbByInitializer,
)
from keras_plasticity.optimizers.unit_reset_optimizer import (
    UnitResetOptimizer as UnitResetOptimizer,
)
from keras_plasticity.optimizers.weight_optimizer import (
    WeightOptimizer as WeightOptimizer,
)

__all__ = [
    "CCBP",
    "CPR",
    "ContinualBackprop",
    "HiddenUnits",
    "L2",
    "OptimizerWrapper",
    "Outgoing",
    "ReDo",
    "ReGraMa",
    "SelfNormalizedResets",
    "ShrinkAndPerturb",
    "ShrinkAndPerturbByInitializer",
    "UnitResetOptimizer",
    "WeightOptimizer",
]
