"""Optimizer wrappers that keep a network plastic."""

from keras_plasticity.optimizers.ccbp import CCBP as CCBP
from keras_plasticity.optimizers.churn_regularization import (
    ChurnRegularization as ChurnRegularization,
)
from keras_plasticity.optimizers.continual_backprop import (
    ContinualBackprop as ContinualBackprop,
)
from keras_plasticity.optimizers.cpr import CPR as CPR
from keras_plasticity.optimizers.decoupled_orthogonality import (
    DecoupledOrthogonality as DecoupledOrthogonality,
)
from keras_plasticity.optimizers.effective_rank import (
    EffectiveRank as EffectiveRank,
)
from keras_plasticity.optimizers.hare_and_tortoise import (
    HareAndTortoise as HareAndTortoise,
)
from keras_plasticity.optimizers.hidden_units import HiddenUnits as HiddenUnits
from keras_plasticity.optimizers.hidden_units import Outgoing as Outgoing
from keras_plasticity.optimizers.l2 import L2 as L2
from keras_plasticity.optimizers.l2_init import L2Init as L2Init
from keras_plasticity.optimizers.normalize_and_project import (
    NormalizeAndProject as NormalizeAndProject,
)
from keras_plasticity.optimizers.optimizer_wrapper import (
    OptimizerWrapper as OptimizerWrapper,
)
from keras_plasticity.optimizers.parseval_regularization import (
    ParsevalRegularization as ParsevalRegularization,
)
from keras_plasticity.optimizers.redo import ReDo as ReDo
from keras_plasticity.optimizers.regrama import ReGraMa as ReGraMa
from keras_plasticity.optimizers.selective_weight_reinitialization import (
    SelectiveWeightReinitialization as SelectiveWeightReinitialization,
)
from keras_plasticity.optimizers.self_normalized_resets import (
    SelfNormalizedResets as SelfNormalizedResets,
)
from keras_plasticity.optimizers.shrink_and_perturb import (
    ShrinkAndPerturb as ShrinkAndPerturb,
)
from keras_plasticity.optimizers.shrink_and_perturb import (
    ShrinkAndPerturbByInitializer as ShrinkAndPerturbByInitializer,
)
from keras_plasticity.optimizers.spectral_regularization import (
    SpectralRegularization as SpectralRegularization,
)
from keras_plasticity.optimizers.trac import TRAC as TRAC
from keras_plasticity.optimizers.unit_reset_optimizer import (
    UnitResetOptimizer as UnitResetOptimizer,
)
from keras_plasticity.optimizers.unit_upgd import UnitUPGD as UnitUPGD
from keras_plasticity.optimizers.upgd import UPGD as UPGD
from keras_plasticity.optimizers.weight_clipping import (
    WeightClipping as WeightClipping,
)
from keras_plasticity.optimizers.weight_optimizer import (
    WeightOptimizer as WeightOptimizer,
)

__all__ = [
    "CCBP",
    "CPR",
    "ChurnRegularization",
    "ContinualBackprop",
    "DecoupledOrthogonality",
    "EffectiveRank",
    "HareAndTortoise",
    "HiddenUnits",
    "L2",
    "L2Init",
    "NormalizeAndProject",
    "OptimizerWrapper",
    "Outgoing",
    "ParsevalRegularization",
    "ReDo",
    "ReGraMa",
    "SelectiveWeightReinitialization",
    "SelfNormalizedResets",
    "ShrinkAndPerturb",
    "ShrinkAndPerturbByInitializer",
    "SpectralRegularization",
    "TRAC",
    "UPGD",
    "UnitResetOptimizer",
    "UnitUPGD",
    "WeightClipping",
    "WeightOptimizer",
]
