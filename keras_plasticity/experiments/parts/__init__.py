"""The parts that methods are made of: one record for each.

To add a part, add a record to the `PARTS` of its module. Its flags with their
checks and help texts, the parts it can be joined with, and its row in README's
table all come from the record.
"""

from keras_plasticity.experiments.parts import base_optimizers
from keras_plasticity.experiments.parts import events
from keras_plasticity.experiments.parts import hidden_layers
from keras_plasticity.experiments.parts import regularizers
from keras_plasticity.experiments.parts import unit_resets
from keras_plasticity.experiments.parts import weights
from keras_plasticity.experiments.parts.base_optimizers import sgd as sgd
from keras_plasticity.experiments.parts.part import COMMON_FLAGS as COMMON_FLAGS
from keras_plasticity.experiments.parts.part import Flag as Flag
from keras_plasticity.experiments.parts.part import Part as Part

# From the inside out: a part's optimizer wraps those of the parts before it.
PARTS = (
    *base_optimizers.PARTS,
    *regularizers.PARTS,
    *weights.PARTS,
    *events.PARTS,
    *hidden_layers.PARTS,
    *unit_resets.PARTS,
)
