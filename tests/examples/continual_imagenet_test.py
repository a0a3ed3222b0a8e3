"""Runs the trainer with tiny settings, on the real data."""

import numpy as np
import pytest

from keras_plasticity import experiments
from keras_plasticity import training
from tests.data_sets import data_dir
from tests.examples.trainers import load
from tests.examples.trainers import parse
from tests.examples.trainers import run
from tests.helpers import to_numpy

_TINY = [
    "--num_tasks=2",
    "--epochs=1",
    "--batch_size=20",
    "--train_images_per_class=20",
    "--test_images_per_class=10",
]


@pytest.fixture(scope="module")
def trainer():
    pytest.importorskip("matplotlib")
    return load("continual_imagenet")


def choose(trainer, *arguments):
    """The problem and the one method of some flags."""
    flag_values = parse(trainer, *arguments)
    problem = trainer.make_problem(flag_values)
    [method] = experiments.choose_methods(flag_values, problem.defaults, [])
    return problem, method


@pytest.fixture(scope="module")
def data_flags(request):
    folder = data_dir("imagenet_resized/32x32")
    # It takes half a minute to fill, so the backends' runs share one.
    cache = request.config.cache.mkdir("imagenet")
    return [f"--data_dir={folder}", f"--cache_dir={cache}"]


def test_runs_and_writes_test_accuracies(trainer, data_flags, tmp_path):
    arguments = [*_TINY, *data_flags, "--method=cbp", "--epochs=2"]
    summary = run(trainer, tmp_path, *arguments)
    [record] = summary["runs"]
    assert record["settings"]["learning_rate"] == 0.01
    assert record["settings"]["momentum"] == 0.9
    assert record["settings"]["replacement_rate"] == 3e-4
    assert record["steps_per_learner"] == 2 * 2 * 2
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
        assert task["num_units"] == 32 + 64 + 128 + 128 + 128
        # Two epochs of one learner; the results are those of the last.
        for name, result in (
            ("training", task["accuracy"]),
            ("test_accuracy", task["test_accuracy"]),
        ):
            first, last = task["epochs"][name]
            assert len(first) == 1 and last == [result]
    for ending in ("", "_diagnostics", "_epochs"):
        assert (tmp_path / f"continual_imagenet{ending}.png").exists()


def test_too_few_images_are_an_error(trainer, data_flags, tmp_path):
    with pytest.raises(SystemExit, match="has 500"):
        run(trainer, tmp_path, *data_flags)


@pytest.mark.parametrize("flag", [[], ["--reshuffle_each_pass"]])
def test_pairs_of_the_second_pass(trainer, monkeypatch, flag):
    images = np.arange(40, dtype="uint8").reshape(40, 1)
    data = (images, np.arange(40) // 2)
    monkeypatch.setattr(trainer.datasets, "load_imagenet", lambda *_: data)
    monkeypatch.setattr(
        trainer.experiments,
        "run",
        lambda flag_values, problem, build_model, build_stream, **_: (
            build_stream(0)
        ),
    )
    few = ["--train_images_per_class=1", "--test_images_per_class=1"]
    stream = trainer.run(parse(trainer, *few, *flag))
    passes = [
        [stream.task(first + i)[0].tolist() for i in range(10)]
        for first in (0, 10)
    ]
    assert (passes[0] == passes[1]) == (not flag)


@pytest.mark.slow
def test_the_head_is_zero_when_a_task_begins(
    trainer, data_flags, tmp_path, monkeypatch
):
    class Look(training.TaskCallback):
        heads = []

        def on_task_begin(self, task, x, y):
            head = self.trainer.model(0).get_layer("output")
            self.heads += [to_numpy(head.kernel), to_numpy(head.bias)]

    class Trainer(training.OnlineTrainer):
        def fit(self, *arguments, callbacks, **settings):
            return super().fit(
                *arguments, callbacks=[*callbacks, Look()], **settings
            )

    monkeypatch.setattr(training, "OnlineTrainer", Trainer)
    arguments = ["--method=shrink_and_perturb_tasks", "--nodiagnostics"]
    run(trainer, tmp_path, *_TINY, *data_flags, *arguments)
    assert len(Look.heads) == 4
    for values in Look.heads:
        np.testing.assert_array_equal(values, 0)


def test_initial_weights_are_those_of_pytorch_and_new_biases_zero(trainer):
    _, method = choose(trainer, "--method=cbp")
    model = trainer.build_model((32, 32, 3), method, 0)
    [other] = trainer.build_model((32, 32, 3), method, 1).get_weights()[:1]
    assert not np.array_equal(model.get_weights()[0], other)
    for layer, fan_in in zip(
        [layer for layer in model.layers if hasattr(layer, "kernel")],
        (75, 288, 576, 512, 128, 128),
    ):
        bound = fan_in**-0.5
        for variable in (layer.kernel, layer.bias):
            values = to_numpy(variable)
            assert np.abs(values).max() <= bound
            # The head has two biases.
            assert np.abs(values).max() > 0.05 * bound
        assert layer.bias_initializer.get_config() == {}
        np.testing.assert_array_equal(to_numpy(layer.bias_initializer((3,))), 0)


def test_published_values_are_those_of_the_protocol(trainer):
    def published(*arguments):
        problem, method = choose(trainer, "--method=cbp", *arguments)
        return problem.published(method)

    assert published() == [(50, 84.5), (2000, 88.9), (5000, 90.45)]
    for other in (
        "--epochs=50",
        "--batch_size=50",
        "--train_images_per_class=400",
        "--test_images_per_class=50",
        "--scale=raw",
        "--reshuffle_each_pass",
        "--replacement_rate=1e-4",
        "--num_tasks=100",
    ):
        assert published(other) == []
