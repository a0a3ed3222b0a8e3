"""Keras layers and optimizers that keep neural networks able to learn."""

from keras_plasticity import callbacks as callbacks
from keras_plasticity import datasets as datasets
from keras_plasticity import diagnosis as diagnosis
from keras_plasticity import diagnostics as diagnostics
from keras_plasticity import functional as functional
from keras_plasticity import layers as layers
from keras_plasticity import models as models
from keras_plasticity import optimizers as optimizers
from keras_plasticity import streams as streams
from keras_plasticity import training as training
from keras_plasticity.diagnosis import diagnose as diagnose
from keras_plasticity.diagnosis import measure as measure
from keras_plasticity.graph import connect as connect
from keras_plasticity.graph import inspect as inspect
from keras_plasticity.seeds import derived_seed as derived_seed
from keras_plasticity.version import __version__ as __version__
from keras_plasticity.weights import weights_of as weights_of

__all__ = [
    "__version__",
    "callbacks",
    "connect",
    "datasets",
    "derived_seed",
    "diagnose",
    "diagnosis",
    "diagnostics",
    "functional",
    "inspect",
    "layers",
    "measure",
    "models",
    "optimizers",
    "streams",
    "training",
    "weights_of",
]
