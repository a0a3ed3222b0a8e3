"""Runs the trainer with tiny settings, on the real data."""

import pytest

from tests.data_sets import data_dir
from tests.examples.trainers import run

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
    folder = data_dir("imagenet_resized/32x32")
    cache = tmp_path_factory.mktemp("cache")
    return [f"--data_dir={folder}", f"--cache_dir={cache}"]


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
