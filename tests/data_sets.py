"""Where the data sets are that some tests need."""

import os
import pathlib

import pytest

_BESIDE = pathlib.Path(__file__).parents[2] / "shared" / "data" / "tfds"


def tensorflow_datasets():
    """The module. The test is skipped without it, or without TensorFlow."""
    reason = "data sets are read by tensorflow_datasets, by means of TensorFlow"
    pytest.importorskip("tensorflow", reason=reason)
    return pytest.importorskip("tensorflow_datasets", reason=reason)


def data_dir(name):
    """Folder of `tensorflow_datasets` that holds a data set.

    The test is skipped where there is none, or nothing to read it with.

    Args:
        name: String, such as `"imagenet_resized/32x32"`.
    """
    tensorflow_datasets()
    folder = os.environ.get("KERAS_PLASTICITY_DATA_DIR", str(_BESIDE))
    if not os.path.isdir(os.path.join(folder, name)):
        pytest.skip(
            f"{name} is not in {folder}: set KERAS_PLASTICITY_DATA_DIR to a "
            "folder of tensorflow_datasets that holds it"
        )
    return folder
