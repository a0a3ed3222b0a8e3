"""Sweeps: many settings of a trainer, on many processes, into one table."""

from keras_plasticity.experiments.sweeps.driver import sweep as sweep
from keras_plasticity.experiments.sweeps.space import Range as Range
