"""Real data sets, loaded by `tensorflow_datasets` as NumPy arrays."""

from keras_plasticity.datasets.imagenet import load_imagenet as load_imagenet
from keras_plasticity.datasets.mnist import load_mnist as load_mnist

__all__ = ["load_imagenet", "load_mnist"]
