"""Suites: methods x problems, tuned, reported on fresh seeds, compared."""

from keras_plasticity.experiments.suites.driver import suite as suite
