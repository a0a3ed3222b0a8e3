"""Runs the trainer with tiny settings, on the real data."""

import json
import os
import pathlib

import pytest
from absl import flags
from absl.testing import flagsaver

_ROOT = pathlib.Path(__file__).parents[2]
_DATA_DIR = os.environ.get(
    "KERAS_PLASTICITY_DATA_DIR",
    str(_ROOT.parent / "shared" / "data" / "tfds"),
)
_TINY = [
    "--num_tasks=2",
    "--epochs=1",
    "--batch_size=20",
    "--train_images_per_class=20",
    "--test_images_per_class=10",
]


@pytest.fixture(scope="module")
def trainer(import_trainer):
    pytest.importorskip("matplotlib")
    return import_trainer("continual_imagenet")


@pytest.fixture(scope="module")
def data_flags(tmp_path_factory):
    if not os.path.isdir(os.path.join(_DATA_DIR, "imagenet_resized")):
        pytest.skip(
            f"ImageNet is not in {_DATA_DIR}: set KERAS_PLASTICITY_DATA_DIR to "
            "a folder of tensorflow_datasets that holds imagenet_resized/32x32"
        )
    cache = tmp_path_factory.mktemp("cache")
    return [f"--data_dir={_DATA_DIR}", f"--cache_dir={cache}"]


def run(trainer, log_dir, *arguments):
    with flagsaver.flagsaver():
        flags.FLAGS(["trainer", f"--log_dir={log_dir}", *arguments])
        trainer.main(["trainer"])
    return json.loads((pathlib.Path(log_dir) / "summary.json").read_text())


def test_runs_and_writes_test_accuracies(trainer, data_flags, tmp_path):
    summary = run(trainer, tmp_path, *_TINY, *data_flags, "--method=cbp")
    [record] = summary["runs"]
    assert record["settings"]["learning_rate"] == 0.01
    assert record["settings"]["momentum"] == 0.9
    assert record["settings"]["replacement_rate"] == 3e-4
    assert record["steps_per_learner"] == 2 * 2
    for task in record["per_task"]:
        # Of 20 test images.
        assert 20 * task["test_accuracy"] == pytest.approx(
            round(20 * task["test_accuracy"]), abs=1e-4
        )
        assert set(task["dead_units"]) == {
            *(f"convolution_{i}" for i in (1, 2, 3)),
            *(f"dense_{i}" for i in (1, 2)),
            "total",
        }
    assert (tmp_path / "continual_imagenet.png").exists()


def test_too_few_images_are_an_error(trainer, data_flags, tmp_path):
    with pytest.raises(SystemExit, match="has 500"):
        run(trainer, tmp_path, *data_flags)
