"""Uses of Keras that the library promises to go along with, a case each.

A plastic model with `ContinualBackprop` is fed, weighted, stopped, copied,
saved or taken apart in the ways that Keras has for that. Units are replaced all
the while, and the result is that of the plain way.
"""

import copy
import pickle
import re

import keras
import numpy as np
import pytest
from keras import ops

import keras_plasticity
from keras_plasticity import layers
from keras_plasticity.optimizers import ContinualBackprop
from tests.helpers import assert_same_weights
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import make_plain_model
from tests.helpers import to_numpy

_BACKEND = keras.backend.backend()
_BATCH = 4

pytestmark = pytest.mark.usefixtures("fast_compilation")


def _make_optimizer(rate=0.05, **kwargs):
    inner = keras.optimizers.SGD(rate, momentum=0.5, **kwargs)
    return ContinualBackprop(
        inner, replacement_rate=0.1, maturity_threshold=2, seed=3
    )


def _compiled(model=None, loss="mse", **kwargs):
    model = model or make_model(activation="relu")
    model.compile(_make_optimizer(**kwargs), loss)
    return model


def _fit(model, x, y=None, **kwargs):
    if isinstance(x, np.ndarray):
        kwargs = {"batch_size": _BATCH, **kwargs}
    kwargs = {"shuffle": False, "verbose": 0, **kwargs}
    return model.fit(x, y, **kwargs)


def _state(model):
    """All there is: weights, statistics and the optimizer's variables."""
    variables = [*model.weights, *model.optimizer.variables]
    names = [re.sub(r"sequential(_\d+)?_", "", v.name) for v in variables]
    return {
        f"{i} {name}": to_numpy(variable)
        for i, (name, variable) in enumerate(zip(names, variables))
    }


def _assert_same(actual, expected, **tolerance):
    actual, expected = _state(actual), _state(expected)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(
            actual[name], value, err_msg=name, **{"rtol": 0, **tolerance}
        )


def _num_replaced(model):
    return sum(model.optimizer.num_replaced().values())


@pytest.fixture(scope="module")
def reference():
    """A model trained on NumPy arrays for two epochs, and these arrays."""
    data = make_data(24)
    model = _compiled()
    _fit(model, *data, epochs=2)
    assert _num_replaced(model) > 5
    return model, data


class TestWaysToFeed:
    class _Batches(keras.utils.PyDataset):
        def __init__(self, x, y):
            super().__init__()
            self.x, self.y = x, y

        def __len__(self):
            return len(self.x) // _BATCH

        def __getitem__(self, index):
            part = slice(_BATCH * index, _BATCH * (index + 1))
            return self.x[part], self.y[part]

    def _py_dataset(self, x, y):
        return self._Batches(x, y)

    def _generator(self, x, y):
        while True:
            for i in range(0, len(x), _BATCH):
                yield x[i : i + _BATCH], y[i : i + _BATCH]

    def _tf_data(self, x, y):
        tf = pytest.importorskip("tensorflow")
        return tf.data.Dataset.from_tensor_slices((x, y)).batch(_BATCH)

    def _data_loader(self, x, y):
        torch = pytest.importorskip("torch")
        data = torch.utils.data.TensorDataset(
            torch.as_tensor(x), torch.as_tensor(y)
        )
        return torch.utils.data.DataLoader(data, batch_size=_BATCH)

    @pytest.mark.parametrize(
        "way", ["py_dataset", "generator", "tf_data", "data_loader"]
    )
    def test_way(self, way, reference):
        expected, (x, y) = reference
        model = _compiled()
        data = getattr(self, f"_{way}")(x, y)
        steps = {"steps_per_epoch": 6} if way == "generator" else {}
        _fit(model, data, epochs=2, **steps)
        _assert_same(model, expected, rtol=1e-5, atol=1e-6)

    def test_several_inputs_by_name(self):
        a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
        hidden = keras.layers.Concatenate()(
            [layers.Dense(5, "relu")(a), layers.Dense(3, "relu")(b)]
        )
        model = _compiled(
            keras.Model({"a": a, "b": b}, layers.Dense(3)(hidden))
        )
        x, y = make_data(40)
        model.fit({"a": x, "b": x}, y, batch_size=_BATCH, verbose=0)
        assert min(model.optimizer.num_replaced().values()) > 0

    @pytest.mark.parametrize("kind", ["sample", "class"])
    def test_weighted_examples_are_observed_alike(self, kind):
        # A weight says how much an example counts for the loss.
        x, y = make_data(24)
        labels = np.argmax(y, axis=1)
        weights = {
            "sample": {"sample_weight": np.linspace(0.1, 2, 24)},
            "class": {"class_weight": {0: 0.1, 1: 3.0, 2: 1.0}},
        }[kind]
        models = []
        for each in ({}, weights):
            model = make_model()
            optimizer = ContinualBackprop(
                keras.optimizers.SGD(0.0), replacement_rate=0, seed=3
            )
            model.compile(optimizer, "sparse_categorical_crossentropy")
            _fit(model, x, labels, **each)
            models.append(model)
        _assert_same(*models, rtol=1e-6)


class TestStoppedAndResumed:
    """The second half of training goes on as if never interrupted."""

    @staticmethod
    def _first_half(reference, **kwargs):
        model = _compiled(**kwargs)
        _fit(model, *reference[1])
        return model

    def _assert_goes_on(self, model, reference):
        _fit(model, *reference[1])
        _assert_same(model, reference[0])

    def test_keras_file(self, reference, tmp_path):
        self._first_half(reference).save(tmp_path / "model.keras")
        model = keras.models.load_model(tmp_path / "model.keras")
        self._assert_goes_on(model, reference)

    def test_weights_file(self, reference, tmp_path):
        path = tmp_path / "model.weights.h5"
        self._first_half(reference).save_weights(path)
        model = _compiled(make_model(activation="relu", seed=9))
        model.optimizer.build(model.trainable_variables)
        model.load_weights(path)
        self._assert_goes_on(model, reference)

    def test_pickle(self, reference):
        model = pickle.loads(pickle.dumps(self._first_half(reference)))
        self._assert_goes_on(model, reference)

    def test_deepcopy(self, reference):
        first = self._first_half(reference)
        model = copy.deepcopy(first)
        self._assert_goes_on(model, reference)
        # The original is none of its business.
        self._assert_goes_on(first, reference)

    def test_backup_and_restore(self, reference, tmp_path):
        class Fail(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if epoch == 1:
                    raise InterruptedError

        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        with pytest.raises(InterruptedError):
            _fit(
                _compiled(),
                *reference[1],
                epochs=2,
                callbacks=[backup, Fail()],
            )
        model = _compiled()
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        _fit(model, *reference[1], epochs=2, callbacks=[backup])
        _assert_same(model, reference[0])

    def test_among_accumulated_steps(self, tmp_path):
        x, y = make_data(40)
        models = []
        for is_stopped in (False, True):
            model = _compiled(gradient_accumulation_steps=4)
            _fit(model, x[:20], y[:20])  # Five steps.
            if is_stopped:
                model.save(tmp_path / "model.keras")
                model = keras.models.load_model(tmp_path / "model.keras")
            _fit(model, x[20:], y[20:])
            models.append(model)
        _assert_same(*models)


class TestCopiesAndParts:
    def test_clone_model(self, reference):
        clone = keras.models.clone_model(reference[0])
        assert [type(layer) for layer in clone.layers] == 3 * [layers.Dense]
        clone.set_weights(reference[0].get_weights())
        assert_same_weights(clone, reference[0])
        _compiled(clone)
        _fit(clone, *reference[1])
        assert _num_replaced(clone) > 0

    def test_set_weights_between_models(self, reference):
        trained, (x, _) = reference
        twin = make_model(activation="relu", seed=9)
        twin.set_weights(trained.get_weights())
        np.testing.assert_array_equal(to_numpy(twin(x)), to_numpy(trained(x)))

    def test_set_weights_between_plain_and_plastic_layers(self, reference):
        trained, (x, _) = reference
        plain = make_plain_model(activation="relu", seed=9)
        plain.set_weights(
            [to_numpy(v) for v in keras_plasticity.weights_of(trained)]
        )
        np.testing.assert_array_equal(to_numpy(plain(x)), to_numpy(trained(x)))

    def test_new_head(self, reference):
        trained = _compiled()
        _fit(trained, *reference[1])
        trained.pop()
        trained.add(layers.Dense(7, name="new_head"))
        _compiled(trained)
        x, _ = reference[1]
        _fit(trained, x, np.zeros((24, 7), "float32"), epochs=2)
        assert set(trained.optimizer.num_replaced()) == {"layer_0", "layer_1"}
        assert min(trained.optimizer.num_replaced().values()) > 0

    def test_a_part_as_a_model(self, reference):
        trained, (x, y) = _compiled(), reference[1]
        _fit(trained, x, y)
        part = keras.Model(trained.inputs, trained.layers[1].output)
        whole = keras.Sequential([part, keras.layers.Dense(2), layers.Dense(2)])
        whole(x)
        # What reads the part now is a plain layer.
        with pytest.raises(ValueError, match="dense"):
            _make_optimizer().build(whole.trainable_variables)
        whole = keras.Sequential([part, layers.Dense(2)])
        _compiled(whole)
        _fit(whole, x, np.zeros((24, 2), "float32"))
        assert _num_replaced(whole) > 0


class TestCallbacks:
    def test_averages_of_weights(self):
        model = _compiled(use_ema=True, ema_momentum=0.9)
        swap = keras.callbacks.SwapEMAWeights()
        x, y = make_data(24)
        _fit(model, x, y, callbacks=[swap], validation_data=(x, y))
        assert _num_replaced(model) > 0
        assert all(np.all(np.isfinite(v)) for v in _state(model).values())

    def test_early_stopping_restores_the_best_weights(self):
        model = _compiled()
        stopping = keras.callbacks.EarlyStopping(
            "loss", mode="max", patience=1, restore_best_weights=True
        )
        history = _fit(model, *make_data(24), epochs=9, callbacks=[stopping])
        assert len(history.epoch) < 9
        _fit(model, *make_data(24))

    def test_learning_rates(self):
        model = _compiled()
        plan = keras.callbacks.LearningRateScheduler(
            lambda epoch: 0.1 / (epoch + 1)
        )
        _fit(model, *make_data(8), epochs=2, callbacks=[plan])
        assert float(model.optimizer.learning_rate) == pytest.approx(0.05)

    def test_checkpoints(self, tmp_path):
        path = str(tmp_path / "{epoch}.keras")
        model = _compiled()
        checkpoint = keras.callbacks.ModelCheckpoint(path)
        _fit(model, *make_data(24), epochs=2, callbacks=[checkpoint])
        loaded = keras.models.load_model(tmp_path / "2.keras")
        _assert_same(loaded, model)


class TestDtypesAndMemory:
    @pytest.mark.parametrize(
        "policy",
        ["mixed_bfloat16", "bfloat16", "mixed_float16"]
        # JAX has none unless it is told to.
        + ["float64"] * (_BACKEND != "jax"),
    )
    def test_policies(self, policy):
        model = make_model(activation="relu", dtype=policy)
        model.compile(_make_optimizer(), "mse")
        _fit(model, *make_data(24), epochs=2)
        assert _num_replaced(model) > 0
        for layer in model.layers:
            for name in ("utility", "age", "mean_activation"):
                statistic = getattr(layer, name)
                assert statistic.dtype == "float32"
                assert np.all(np.isfinite(to_numpy(statistic)))

    @pytest.mark.skipif(
        _BACKEND == "tensorflow", reason="fails with Keras' own layers, too"
    )
    def test_remat(self, reference):
        expected, data = reference
        with keras.RematScope(mode="full"):
            model = _compiled()
        _fit(model, *data, epochs=2)
        _assert_same(model, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.skipif(
        _BACKEND == "torch", reason="needs TensorFlow beside PyTorch's export"
    )
    @pytest.mark.filterwarnings("ignore:The `native_serialization` parameter")
    def test_export(self, reference, tmp_path):
        tf = pytest.importorskip("tensorflow")
        trained, (x, _) = reference
        trained.export(tmp_path / "exported", verbose=False)
        restored = tf.saved_model.load(tmp_path / "exported")
        try:
            served = restored.serve(x)
        except tf.errors.InvalidArgumentError as error:
            if "Cannot deserialize computation" not in str(error):
                raise
            pytest.skip("this TensorFlow is too old for programs of this JAX")
        np.testing.assert_allclose(
            np.asarray(served), to_numpy(trained(x)), rtol=1e-5
        )

    def test_summary_counts(self):
        lines = []
        model = make_model()
        model.summary(print_fn=lambda line, **kwargs: lines.append(line))
        plain = make_plain_model()
        counts = [
            sum(np.prod(v.shape) for v in keras_plasticity.weights_of(each))
            for each in (model, plain)
        ]
        assert counts[0] == counts[1] == plain.count_params()
        assert model.count_params() > counts[0]


@pytest.mark.skipif(_BACKEND == "torch", reason="Keras runs one at a time")
@pytest.mark.parametrize("steps", [2, 4, 6, 64])
def test_steps_per_execution(steps, reference):
    expected, data = reference
    model = make_model(activation="relu")
    model.compile(_make_optimizer(), "mse", steps_per_execution=steps)
    _fit(model, *data, epochs=2)
    _assert_same(model, expected, rtol=1e-5, atol=1e-6)


# KerasTuner 1.4.8 asks for the name of a thread in an old way.
@pytest.mark.filterwarnings(
    "ignore:(currentThread|getName)..:DeprecationWarning"
)
def test_tuner(tmp_path):
    tuner_module = pytest.importorskip("keras_tuner")

    def build(choices):
        model = make_model(activation="relu")
        rate = choices.Choice("replacement_rate", [0.0, 0.2])
        optimizer = ContinualBackprop(
            keras.optimizers.SGD(0.05),
            replacement_rate=rate,
            maturity_threshold=2,
        )
        model.compile(optimizer, "mse")
        return model

    tuner = tuner_module.GridSearch(
        build, "val_loss", directory=tmp_path, project_name="rates"
    )
    x, y = make_data(24)
    tuner.search(x, y, validation_data=(x, y), batch_size=_BATCH, verbose=0)
    (best,) = tuner.get_best_models()
    assert np.all(np.isfinite(to_numpy(ops.sum(best(x)))))
