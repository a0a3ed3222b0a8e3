import gc
import json
import re

import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity.diagnosis import RecentExamples
from keras_plasticity.diagnosis import learning
from keras_plasticity.diagnosis import verdict
from tests.helpers import make_model
from tests.helpers import to_numpy

DIMS = (4, 6, 5, 1)


@pytest.mark.parametrize(
    "kind", [*verdict.KINDS, verdict.UNKNOWN], ids=lambda kind: kind.name
)
def test_code_of_a_remedy_runs(kind):
    names = {"keras": keras, "keras_plasticity": keras_plasticity}
    names |= {"model": make_model(DIMS, layer=keras.layers.Dense)}
    names |= {"optimizer": keras.optimizers.SGD(0.05)}
    names |= {"x": keras.Input((4,)), "units": 3, "activation": "tanh"}
    exec(kind.code, names)
    wrapper = names["optimizer"]
    assert isinstance(wrapper, keras_plasticity.optimizers.OptimizerWrapper)


def data(num=96, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num, 4)).astype("float32")
    return x, np.tanh(x[:, :1] - 2.0 * x[:, 1:2] * x[:, 2:3])


def compiled(seed=0, optimizer=None, layer=keras.layers.Dense):
    model = make_model(DIMS, layer=layer, activation="relu", seed=seed)
    model.compile(optimizer or keras.optimizers.SGD(0.05), "mse")
    return model


def killed():
    """A model of which all but one unit of a layer never fire."""
    model = compiled()
    bias = np.full(6, -50.0, "float32")
    bias[0] = 0.0
    model.layers[0].bias.assign(bias)
    return model


def full_state(model):
    variables = [
        *model.variables,
        *model.optimizer.variables,
        *model.metrics_variables,
    ]
    return [np.array(to_numpy(v)) for v in variables]


def test_a_model_that_cannot_learn_and_why():
    model = killed()
    model.optimizer.build(model.trainable_variables)
    before = full_state(model)
    state = keras.random.randint((1,), 0, 2**30, seed=7)
    diagnosis = keras_plasticity.diagnose(
        model, data(), num_steps=60, batch_size=16, num_new=6
    )
    assert diagnosis.has_lost_plasticity
    assert diagnosis.kinds[0] == "dead units"
    assert "ContinualBackprop" in diagnosis.remedy
    assert diagnosis.ratio > 1.5
    assert diagnosis.gain < diagnosis.new_gain
    words = str(diagnosis)
    assert words.startswith("Loss of plasticity (dead units")
    assert "6 newly initialized models" in words
    assert "60 updates of 16 examples" in words
    assert "dead units *" in diagnosis.table()
    assert diagnosis.remedy.split("\n")[0] in words
    assert repr(diagnosis).startswith("<Diagnosis of")
    # Nothing in the model, or in what is random, has changed.
    for old, new in zip(before, full_state(model), strict=True):
        np.testing.assert_array_equal(old, new)
    again = keras.random.randint((1,), 0, 2**30, seed=7)
    assert int(state[0]) == int(again[0])


@pytest.mark.parametrize("verbose", [True, False])
def test_progress(verbose, capsys):
    keras_plasticity.diagnose(
        compiled(), data(), num_steps=4, num_new=3, verbose=verbose
    )
    assert ("copies learn" in capsys.readouterr().out) == verbose


def test_a_new_model_has_lost_nothing():
    # Another one of those that it is compared with.
    model = learning.Copies(compiled(), None, None, None, seed=0).new(77)
    diagnosis = keras_plasticity.diagnose(
        model, data(), num_steps=40, batch_size=16, num_new=8
    )
    assert not diagnosis.has_lost_plasticity
    assert diagnosis.remedy is None
    words = str(diagnosis)
    assert words.startswith("No loss of plasticity here: ")
    assert "Worth trying" not in words


def test_a_model_that_knows_the_data_has_lost_nothing():
    model = compiled()
    x, y = data()
    model.fit(x, y, epochs=60, batch_size=8, verbose=0)
    diagnosis = keras_plasticity.diagnose(
        model, (x, y), num_steps=6, batch_size=16, num_new=5
    )
    assert not diagnosis.has_lost_plasticity
    assert diagnosis.ratio < 1.0
    assert "as well as new models do, or better" in diagnosis.verdict()


def test_learning_is_that_of_fit():
    x, y = data(32)
    model = compiled(layer=keras.layers.Dense)
    copies = learning.Copies(model, None, None, None, seed=0)
    learned = learning.learn(copies, x, y, 2, 3, 8, 16, seed=1)
    assert learned.num_steps == 8
    np.testing.assert_array_equal(learned.steps, np.arange(1, 9))
    assert learned.old_curves.shape == (8, 2)
    assert learned.new_curves.shape == (8, 3)
    for number, (before, after, curve) in enumerate(
        (
            (learned.old_before[0], learned.old_after[0], learned.old_curves),
            (learned.new_before[0], learned.new_after[0], learned.new_curves),
        )
    ):
        by_hand = copies.new(0) if number else copies.old()
        assert by_hand.evaluate(x, y, verbose=0) == pytest.approx(
            before, rel=1e-5
        )
        losses = []
        for step in range(8):
            learner = 2 if number else 0
            rng = np.random.default_rng([1, learner, step // 2])
            order = rng.permutation(32)[16 * (step % 2) :][:16]
            losses.append(
                float(np.ravel(by_hand.train_on_batch(x[order], y[order]))[0])
            )
        # `train_on_batch` has means over the batches so far.
        sums = np.cumsum(curve[:, 0]) / np.arange(1, 9)
        np.testing.assert_allclose(
            sums if abs(losses[1] - sums[1]) < 1e-6 else curve[:, 0],
            losses,
            rtol=1e-4,
        )
        assert by_hand.evaluate(x, y, verbose=0) == pytest.approx(
            after, rel=1e-4
        )


def test_new_weights_are_others_and_the_same_each_time():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(
                6, kernel_initializer=keras.initializers.GlorotUniform(3)
            ),
            keras.layers.Dense(1),
        ]
    )
    model.compile("sgd", "mse")
    copies = learning.Copies(model, None, None, None, seed=0)
    kernels = [
        to_numpy(copies.new(number).layers[0].kernel) for number in (0, 1, 0)
    ]
    np.testing.assert_array_equal(kernels[0], kernels[2])
    own = to_numpy(model.layers[0].kernel)
    assert np.abs(kernels[0] - kernels[1]).min() > 0
    assert np.abs(kernels[0] - own).min() > 0
    old = copies.old()
    np.testing.assert_array_equal(to_numpy(old.layers[0].kernel), own)


def test_what_is_not_trained_stays():
    normalization = keras.layers.Normalization()
    normalization.adapt(data()[0] * 3.0 + 1.0)
    frozen = keras.layers.Dense(5, trainable=False)
    model = keras.Sequential(
        [keras.Input((4,)), normalization, frozen, keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    copies = learning.Copies(model, None, None, None, seed=0)
    new = copies.new(1)
    for own, other in zip(model.layers[:2], new.layers[:2]):
        for a, b in zip(own.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    assert not new.layers[1].trainable
    assert np.any(
        model.layers[2].get_weights()[0] != new.layers[2].get_weights()[0]
    )


def test_batch_normalizations_have_the_statistics_of_the_data():
    def normalization(name, trainable):
        return keras.layers.BatchNormalization(
            momentum=0.9, name=name, trainable=trainable
        )

    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, name="hidden"),
            normalization("trained", True),
            keras.layers.Activation("relu"),
            normalization("frozen", False),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x, y = data()
    x = x + 3.0
    trained = model.get_layer("trained")
    learning.settle(model, x)
    h = to_numpy(model.get_layer("hidden")(x)).astype("float64")
    for average, expected in (
        (trained.moving_mean, h.mean(0)),
        (trained.moving_variance, h.var(0)),
    ):
        np.testing.assert_allclose(to_numpy(average), expected, rtol=1e-4)
    assert trained.momentum == 0.9
    frozen = model.get_layer("frozen")
    assert not to_numpy(frozen.moving_mean).any()
    # Also in the losses of copies, which were trained for hardly a step.
    copies = learning.Copies(model, None, None, None, seed=0)
    learned = learning.learn(copies, x, y, 1, 1, 1, 8, seed=0)
    outputs = to_numpy(copies.new(0)(x, training=True))
    expected = np.mean((outputs - y) ** 2)
    assert learned.new_before == pytest.approx(expected, rel=1e-4)
    assert learned.new_after == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("size, num_steps", [(8, 1000), (1, 1200)])
def test_the_number_of_steps(monkeypatch, size, num_steps):
    x, y = data(1200)
    asked = []

    class Trainer:
        interrupted = False

        def __init__(self, build_model, num_learners):
            self.models = [build_model(i) for i in range(num_learners)]
            self.model = self.models.__getitem__

        def fit(self, stream, batch_size, num_tasks, callbacks, on_nan):
            tasks = [stream(0).task(i)[0] for i in range(num_tasks)]
            asked.append(np.concatenate(tasks))
            return {"loss": np.ones((num_tasks, len(self.models)))}

    monkeypatch.setattr(learning, "OnlineTrainer", Trainer)
    copies = learning.Copies(compiled(), None, None, None, seed=0)
    learned = learning.learn(copies, x, y, 1, 1, None, size, seed=0)
    assert learned.num_steps == num_steps
    assert len(asked[0]) == num_steps * size
    # Each example once in each pass.
    first = asked[0][:1200]
    np.testing.assert_array_equal(np.sort(first, axis=0), np.sort(x, axis=0))


def test_regularization_does_not_count():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, "relu", kernel_regularizer="l2"),
            keras.layers.Dense(1),
        ]
    )
    model.compile("sgd", "mse")
    x, y = data()
    kernel = to_numpy(model.layers[0].kernel)
    model.layers[0].kernel.assign(100.0 * kernel)
    model.layers[1].kernel.assign(to_numpy(model.layers[1].kernel) / 100.0)
    copies = learning.Copies(model, None, None, None, seed=0)
    learned = learning.learn(copies, x, y, 1, 3, 1, 16, seed=0)
    expected = np.mean((to_numpy(model(x)) - y) ** 2)
    assert learned.old_before[0] == pytest.approx(expected, rel=1e-4)


def test_a_plastic_model_and_its_optimizer():
    optimizer = keras_plasticity.optimizers.ContinualBackprop(
        keras.optimizers.SGD(0.05), maturity_threshold=3, seed=1
    )
    model = compiled(optimizer=optimizer, layer=keras_plasticity.layers.Dense)
    x, y = data()
    model.fit(x, y, verbose=0)
    diagnosis = keras_plasticity.diagnose(model, (x, y), num_steps=5, num_new=3)
    assert np.isfinite(diagnosis.ratio)


def test_loss_and_optimizer_of_a_loop_by_hand():
    model = make_model(DIMS, layer=keras.layers.Dense, activation="relu")
    settings = {"num_new": 3, "num_steps": 2}
    with pytest.raises(ValueError, match="`loss` must be given"):
        keras_plasticity.diagnose(model, data(), **settings)
    with pytest.raises(ValueError, match="`optimizer` must be given"):
        keras_plasticity.diagnose(model, data(), loss="mse", **settings)
    recent = RecentExamples()
    recent.add(*data())
    keras_plasticity.diagnose(
        model, recent, loss="mse", optimizer="adam", **settings
    )
    assert not model.compiled


class Own(keras.Model):
    """A model that its config does not describe."""

    def __init__(self, units):
        super().__init__()
        self.hidden = keras.layers.Dense(units, "relu")
        self.last = keras.layers.Dense(1)

    def call(self, inputs):
        return self.last(self.hidden(inputs))


def test_a_model_without_a_config():
    model = Own(5)
    model(np.zeros((1, 4)))
    model.compile("sgd", "mse")
    settings = {"num_new": 3, "num_steps": 2}
    with pytest.raises(ValueError, match="Give `build_model`"):
        keras_plasticity.diagnose(model, data(), **settings)

    def build_model(units=5):
        new = Own(units)
        new(np.zeros((1, 4)))
        return new

    diagnosis = keras_plasticity.diagnose(
        model, data(), build_model=build_model, **settings
    )
    assert diagnosis.learning.new_after.shape == (3,)
    with pytest.raises(ValueError, match="same architecture"):
        keras_plasticity.diagnose(
            model, data(), build_model=lambda: build_model(6), **settings
        )


class Plain(keras.Model):
    """A model that Keras builds by running it.

    Args:
        **config: What Keras keeps of any model.
    """

    def __init__(self, **config):
        super().__init__(**config)
        self.hidden = keras.layers.Dense(5, "relu")
        self.last = keras.layers.Dense(1)

    def call(self, inputs):
        return self.last(self.hidden(inputs))


class PlainOfTwo(Plain):
    """Another one, whose call has two arguments."""

    def call(self, inputs, more=None):
        return super().call(inputs if more is None else inputs + more)


def test_a_model_that_is_built_by_running_it():
    model = Plain()
    model.compile("sgd", "mse")
    model.fit(*data(), verbose=0)
    diagnosis = keras_plasticity.diagnose(
        model, data(), num_steps=2, num_new=3, verbose=False
    )
    assert diagnosis.learning.new_after.shape == (3,)
    assert len(set(diagnosis.learning.new_before)) == 3


def test_a_model_that_was_built_with_two_inputs():
    model = PlainOfTwo()
    model(np.zeros((2, 4)), more=np.zeros((2, 4)))
    new = learning.Copies(model, "mse", "sgd", None, seed=0).new(0)
    assert new.built
    assert new(np.zeros((2, 4))).shape == (2, 1)


def test_build_model_must_return_a_built_model():
    model = Plain()
    model(np.zeros((2, 4)))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="must return a built model"):
        keras_plasticity.diagnose(model, data(), build_model=Plain, num_new=3)


@keras.saving.register_keras_serializable("diagnose_test")
class Block(keras.layers.Layer):
    """A block whose config says nothing of the layers in it."""

    def build(self, input_shape):
        self.attention = keras.layers.MultiHeadAttention(2, 3)
        self.attention.build(input_shape, input_shape)
        self.hidden = keras.layers.Dense(6, "relu")
        self.hidden.build(input_shape)
        self.last = keras.layers.Dense(input_shape[-1])
        self.last.build((*input_shape[:-1], 6))

    def call(self, inputs):
        x = inputs + self.attention(inputs, inputs)
        return self.last(self.hidden(x))


def _made_of_blocks():
    inputs = keras.Input((4,))
    x = keras.layers.Reshape((2, 2))(inputs)
    x = keras.layers.Flatten()(Block()(x))
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    keras_plasticity.models.make_plastic(model)
    return model, None


def _own():
    def build_model():
        model = Own(5)
        model(np.zeros((1, 4)))
        return model

    model = build_model()
    keras_plasticity.models.make_plastic(model)
    return model, build_model


@pytest.mark.parametrize("make", [_made_of_blocks, _own])
def test_a_model_that_was_made_plastic_in_place(make):
    model, build_model = make()
    model.compile(
        keras_plasticity.optimizers.ContinualBackprop(
            keras.optimizers.SGD(0.05), 0.2, maturity_threshold=1, seed=1
        ),
        "mse",
    )
    x, y = data()
    model.fit(x, y, verbose=0)
    copies = learning.Copies(model, None, None, build_model, seed=0)
    for copy in (copies.old(), copies.new(1)):
        assert [type(v) for v in plastic_layers(copy)] == [
            type(v) for v in plastic_layers(model)
        ]
        for old, new in zip(model.variables, copy.variables, strict=True):
            assert old.shape == new.shape
    np.testing.assert_array_equal(to_numpy(copies.old()(x)), to_numpy(model(x)))
    diagnosis = keras_plasticity.diagnose(
        model, (x, y), num_steps=5, num_new=3, build_model=build_model
    )
    assert np.isfinite(diagnosis.ratio)


def plastic_layers(model):
    return [
        layer
        for layer in model._flatten_layers()
        if hasattr(layer, "replaceable")
    ]


def test_the_figure(tmp_path):
    pytest.importorskip("matplotlib")
    diagnosis = keras_plasticity.diagnose(
        killed(), data(), num_steps=20, num_new=3
    )
    figure = diagnosis.figure()
    figure.savefig(tmp_path / "figure.png")
    titles = [axes.get_title(loc="left") for axes in figure.axes[1:]]
    assert "dead units *" in titles
    assert "effective rank" in " ".join(titles)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": None}, "model"),
        ({"data": data()[0]}, "`data` must be a tuple"),
        ({"data": (np.ones((5, 3)), np.ones((5, 1)))}, r"\(5, 3\)"),
        ({"data": (np.ones((0, 4)), np.ones((0, 1)))}, "one example at least"),
        ({"num_steps": 0}, "num_steps"),
        ({"batch_size": True}, "batch_size"),
        ({"num_new": 2}, "num_new.*at least 3"),
        ({"seed": -1}, "seed"),
        ({"build_model": 5}, "build_model"),
        ({"verbose": 2}, "verbose"),
        ({"measures": ["rank"]}, "measures"),
        ({"measures": ["weight_growth"]}, "at one time.*weight_growth"),
        ({"optimizer": "none"}, "optimizer of Keras, or its name.*none"),
        ({"loss": "none"}, "`loss` must be a loss of Keras.*none"),
        ({"loss": {"a": "mse", "b": 5}}, "`loss` must be.*loss=5"),
        ({"optimizer": print}, "such as one of `torch.optim`.*print"),
    ],
)
def test_bad_arguments(arguments, message):
    settings = {"model": compiled(), "data": data(), **arguments}
    with pytest.raises((ValueError, TypeError), match=message):
        keras_plasticity.diagnose(**settings)


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="without it there are no losses"
)
def test_a_loss_of_torch():
    import torch

    with pytest.raises(ValueError, match="`torch.nn` take the predictions"):
        keras_plasticity.diagnose(
            compiled(), data(), loss=torch.nn.CrossEntropyLoss()
        )


def test_a_model_that_has_diverged():
    model = compiled()
    model.layers[1].bias.assign([1.0, 2.0, np.nan, 0.0, 0.0])
    with pytest.raises(ValueError, match="NaN or infinite.*diverged"):
        keras_plasticity.diagnose(model, data(), num_new=3)


def test_a_model_in_half_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = compiled(optimizer=keras.optimizers.SGD(1e-6))
        x, y = data()
        diagnosis = keras_plasticity.diagnose(
            model, (x, 50.0 * y), num_steps=20, num_new=3, verbose=False
        )
    finally:
        keras.config.set_dtype_policy(before)
    assert np.isfinite(diagnosis.measured["gradient_norm"][1]).all()


def test_new_models_that_diverge():
    with pytest.raises(ValueError, match="Of 3 of them 3 diverged: give an"):
        keras_plasticity.diagnose(
            compiled(),
            data(),
            num_steps=30,
            num_new=3,
            optimizer=keras.optimizers.SGD(1e4),
            verbose=False,
        )


def test_a_model_that_trains_nothing():
    model = compiled()
    model.trainable = False
    with pytest.raises(ValueError, match="must have trainable weights"):
        keras_plasticity.diagnose(model, data(), num_new=3)


def test_an_interruption_ends_it(monkeypatch):
    class Interrupted(learning.OnlineTrainer):
        def fit(self, *args, **kwargs):
            results = super().fit(*args, **kwargs)
            self.interrupted = True
            return results

    monkeypatch.setattr(learning, "OnlineTrainer", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        keras_plasticity.diagnose(
            compiled(), data(), num_steps=4, num_new=3, verbose=False
        )


@pytest.mark.parametrize("measures", [["stable_rank"], []])
def test_a_figure_of_chosen_measures(measures):
    pytest.importorskip("matplotlib")
    diagnosis = keras_plasticity.diagnose(
        compiled(),
        data(),
        num_steps=4,
        num_new=3,
        measures=measures,
        verbose=False,
    )
    titles = [axes.get_title() for axes in diagnosis.figure().axes]
    assert len(titles) == 1 + len(measures)


def test_students_distribution():
    # From tables.
    for freedom, t, expected in (
        (1, 1.0, 0.75),
        (4, 2.132, 0.95),
        (9, 2.262, 0.975),
        (30, -1.697, 0.05),
        (3, 0.0, 0.5),
    ):
        assert verdict.student_t(t, freedom) == pytest.approx(
            expected, abs=2e-4
        )
    assert verdict.student_t(float("inf"), 3) == 1.0
    assert verdict.student_t(1e9, 9) == pytest.approx(1.0)


def test_the_share_of_new_models_below_is_a_prediction():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(2000):
        *new, one = rng.normal(size=6)
        shares.append(verdict.new_models_below(one, np.array(new)))
    # Of one more model it is as often below as it says.
    for share in (0.2, 0.8, 0.975):
        spread = np.sqrt(share * (1 - share) / 2000)
        assert np.mean(np.array(shares) < share) == pytest.approx(
            share, abs=4 * spread
        )
    assert verdict.new_models_below(1.0, np.zeros(3)) == 1.0
    assert verdict.new_models_below(0.0, np.zeros(3)) == 0.5
    assert verdict.new_models_below(-1.0, np.zeros(3)) == 0.0


def test_losses_are_compared_by_their_logarithms_if_they_are_positive():
    ratio, share = verdict.compare_losses([2.0, 8.0], [1.0, 2.0, 4.0])
    assert ratio == pytest.approx(2.0)
    assert 0.5 < share < 1.0
    ratio, share = verdict.compare_losses([-1.0], [-1.0, 0.0, 1.0])
    assert ratio == pytest.approx(0.0)
    assert share < 0.5
    ratio, share = verdict.compare_losses([np.inf], [1.0, 2.0, 4.0])
    assert ratio > 1e300 and share == 1.0


@pytest.mark.parametrize(
    "ratio, share, lost, lost_with_symptoms, words",
    [
        (0.9, 0.2, False, False, "as well as new models do, or better"),
        (1.05, 0.99, False, False, "about as well as"),
        (1.5, 0.7, False, False, "no worse than many"),
        (1.5, 0.9, False, True, "worse than most.*not beyond doubt"),
        (1.5, 0.98, True, True, ""),
    ],
)
def test_the_verdict(ratio, share, lost, lost_with_symptoms, words):
    assert verdict.has_lost_plasticity(ratio, share, False) == lost
    assert verdict.has_lost_plasticity(ratio, share, True) == lost_with_symptoms
    assert re.search(words, verdict.how_well(ratio, share))


@pytest.mark.parametrize(
    "measured, kinds",
    [
        ({"dead_units": (0.5, [0.0, 0.1, 0.05])}, ["dead units"]),
        ({"dead_units": (0.5, [0.0, 0.4, 0.9])}, []),
        ({"dead_units": (0.05, [0.0, 0.0, 0.0])}, []),
        ({"effective_rank": (2.0, [9.0, 10.0, 9.5])}, ["low rank"]),
        ({"effective_rank": (20.0, [9.0, 10.0, 9.5])}, []),
        ({"weight_magnitude": (1.0, [0.1, 0.1, 0.11])}, ["weight growth"]),
        ({"weight_magnitude": (0.12, [0.1, 0.1, 0.11])}, []),
        ({"saturated_fraction": (0.9, [0.1, 0.2, 0.1])}, ["saturation"]),
        ({"gradient_norm": (1e9, [1.0, 1.0, 1.0])}, []),
    ],
)
def test_symptoms(measured, kinds):
    measured = {
        name: (old, np.array(new)) for name, (old, new) in measured.items()
    }
    assert [each.kind.name for each in verdict.symptoms(measured)] == kinds


def test_it_leaves_nothing_behind():
    model = compiled()
    keras_plasticity.diagnose(model, data(), num_steps=2, num_new=3)
    config = json.dumps(model.get_config())
    gc.collect()
    assert json.dumps(model.get_config()) == config
