"""Optimizers on models with recurrent layers."""

import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity import layers
from keras_plasticity import optimizers
from keras_plasticity.training import OnlineTrainer
from keras_plasticity.weights import weights_of
from tests.helpers import CountedDraws
from tests.helpers import counted_draw
from tests.helpers import mostly_on_torch
from tests.helpers import to_numpy

pytestmark = pytest.mark.usefixtures("fast_compilation")

_BATCH, _STEPS, _FEATURES = 4, 5, 3


def half(x):
    return 0.0 * x + 0.5


_kinds = pytest.mark.parametrize(
    "kind", mostly_on_torch(["SimpleRNN", "GRU", "LSTM"], "LSTM")
)
_CASES = [
    (kind, return_sequences)
    for kind in ("SimpleRNN", "GRU", "LSTM")
    for return_sequences in (False, True)
]
# The kind, the constant, and further arguments.
_CONSTANT = [
    ("SimpleRNN", 0.5, {}),
    ("GRU", 0.5, {}),
    ("LSTM", 0.25, {"recurrent_activation": half}),
]


def _make_model(kind="LSTM", module=layers, units=6, inputs=None, **kwargs):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((_STEPS, _FEATURES)) if inputs is None else inputs,
            getattr(module, kind)(units, name="rnn", **kwargs),
            module.Dense(2, name="head"),
        ]
    )


def _make_data(num=24):
    rng = np.random.default_rng(1)
    x = rng.normal(0, 1, (num, _STEPS, _FEATURES)).astype("float32")
    return x, np.sin(3 * x[:, -1, :2])


def _continual(rate=0.1, inner=None, **kwargs):
    kwargs = {"maturity_threshold": 2, "seed": 0, **kwargs}
    inner = inner or keras.optimizers.SGD(0.1)
    return optimizers.ContinualBackprop(inner, rate, **kwargs)


def _fit(model, optimizer, data, epochs=1):
    model.compile(optimizer, "mse")
    model.fit(*data, batch_size=_BATCH, epochs=epochs, shuffle=False, verbose=0)
    return optimizer


def _weights(model):
    return [to_numpy(w) for w in weights_of(model)]


@_kinds
def test_rate_0_is_the_inner_optimizer(kind):
    results = []
    for module in (keras.layers, layers):
        model = _make_model(kind, module)
        inner = keras.optimizers.Adam(0.01)
        is_plain = module is keras.layers
        optimizer = inner if is_plain else _continual(0.0, inner)
        _fit(model, optimizer, _make_data())
        results.append(_weights(model))
    for actual, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    "kind, return_sequences",
    mostly_on_torch(_CASES, ("LSTM", True)),
)
def test_a_new_unit_is_read_by_nobody(kind, return_sequences):
    model = _make_model(kind, return_sequences=return_sequences)
    x, _ = _make_data()
    y = np.zeros(model(x).shape)
    before = _weights(model)
    optimizer = _continual(0.17, keras.optimizers.SGD(0.0))
    _fit(model, optimizer, (x[:12], y[:12]))
    (unit,) = np.flatnonzero(to_numpy(model.get_layer("rnn").age) == 0)
    actual = to_numpy(model(x))
    after = _weights(model)
    kernel, recurrent, bias, head, head_bias = before
    gates = recurrent.shape[1] // 6
    columns = [gate * 6 + unit for gate in range(gates)]
    for new, old in zip(after[:2], before[:2]):
        assert np.all(new[:, columns].any(axis=0))
        assert np.any(new[:, columns] != old[:, columns])
    np.testing.assert_array_equal(after[1][unit], 0)
    # As without the unit: what it reads is of no account.
    recurrent[unit] = 0
    head[unit] = 0
    weights = iter([kernel, recurrent, bias, head, head_bias])
    for variable in weights_of(model):
        variable.assign(next(weights))
    np.testing.assert_allclose(to_numpy(model(x)), actual, atol=1e-6)


@pytest.mark.parametrize(
    "kind, value, kwargs", mostly_on_torch(_CONSTANT, _CONSTANT[1])
)
def test_a_constant_unit_is_replaced_without_a_trace(kind, value, kwargs):
    states = [keras.Input((4,)) for _ in range(2 if kind == "LSTM" else 1)]
    inputs = keras.Input((_STEPS, _FEATURES))
    first = getattr(layers, kind)(
        4, activation=half, return_sequences=True, name="first", **kwargs
    )
    second = getattr(layers, kind)(3, name="second", replaceable=False)
    outputs = layers.Dense(2)(second(first(inputs, initial_state=states)))
    model = keras.Model([inputs, *states], outputs)
    x, _ = _make_data(12)
    data = [x, *np.full((len(states), 12, 4), value, "float32")]
    before = to_numpy(model(data))
    biases = [to_numpy(layer.cell.bias) for layer in (first, second)]
    optimizer = _continual(0.25, keras.optimizers.SGD(0.0), transfer_mean=True)
    _fit(model, optimizer, (data, np.zeros((12, 2))))
    assert optimizer.num_replaced() == {"first": 1}
    for layer, bias in zip((first, second), biases):
        assert np.abs(to_numpy(layer.cell.bias) - bias).max() > 0.01
    first_unit = np.flatnonzero(to_numpy(first.age) == 0)
    assert len(first_unit) == 1
    # The new unit is read by nobody yet; the others are what they were.
    np.testing.assert_allclose(to_numpy(model(data)), before, atol=1e-6)


def test_a_mean_that_no_bias_can_take_is_refused():
    model = _make_model("GRU", reset_after=False)
    with pytest.raises(ValueError, match="`reset_after=True`, or set"):
        _continual(transfer_mean=True).build(model.trainable_variables)
    model = _make_model("LSTM", use_bias=False)
    with pytest.raises(ValueError, match="Give it `use_bias=True`"):
        _continual(transfer_mean=True).build(model.trainable_variables)


def test_a_reader_that_another_optimizer_trains_is_refused():
    model = _make_model("GRU")
    variables = model.get_layer("rnn").trainable_variables
    with pytest.raises(ValueError, match="read by layer 'head', whose weights"):
        _continual().build(variables)


@pytest.mark.parametrize("kind", mostly_on_torch(["GRU", "LSTM"]))
def test_slots_of_a_new_unit(kind):
    model = _make_model(kind)
    inner = keras.optimizers.Adam(0.01)
    optimizer = _continual(0.17, inner)
    _fit(model, optimizer, [array[:12] for array in _make_data()])
    (unit,) = np.flatnonzero(to_numpy(model.get_layer("rnn").age) == 0)
    (units,) = optimizer.hidden
    kernel, recurrent, bias = [
        [to_numpy(slot.variable) for slot in units._slots.of(variable)]
        for variable in model.get_layer("rnn").cell.trainable_weights
    ]
    assert len(kernel) == len(recurrent) == len(bias) == 2
    for slot in kernel + recurrent + bias:
        by_gate = slot.reshape(*slot.shape[:-1], -1, 6)
        np.testing.assert_array_equal(by_gate[..., unit], 0)
    for slot in recurrent:
        np.testing.assert_array_equal(slot[unit], 0)
        others = np.delete(slot.reshape(6, -1, 6), unit, axis=0)
        assert np.all(np.delete(others, unit, axis=-1) != 0)


@pytest.mark.parametrize(
    "kind", mostly_on_torch(["SimpleRNN", "GRU", "LSTM"], "SimpleRNN")
)
def test_state_of_a_new_unit(kind):
    if keras.backend.backend() == "jax":
        pytest.skip("On JAX `fit` of Keras keeps no state between batches.")
    inputs = keras.Input(batch_shape=(_BATCH, _STEPS, _FEATURES))
    model = _make_model(kind, inputs=inputs, stateful=True)
    optimizer = _continual(0.17)
    _fit(model, optimizer, [array[:12] for array in _make_data()])
    layer = model.get_layer("rnn")
    (unit,) = np.flatnonzero(to_numpy(layer.age) == 0)
    assert len(layer.states) == (2 if kind == "LSTM" else 1)
    for state in layer.states:
        is_zero = to_numpy(state) == 0
        assert np.all(is_zero[:, unit]) and is_zero.sum() == _BATCH


_METHODS = {
    "redo": lambda inner: optimizers.ReDo(inner, period=3, seed=0),
    "self_normalized": lambda inner: optimizers.SelfNormalizedResets(
        inner, min_threshold=2, initial_threshold=3, seed=0
    ),
    "regrama": lambda inner: optimizers.ReGraMa(inner, period=3, seed=0),
}


@pytest.mark.parametrize("name", mostly_on_torch(_METHODS, "redo"))
def test_other_methods_that_replace_units(name):
    model = _make_model("SimpleRNN", activation="relu")
    bias = model.get_layer("rnn").cell.bias
    bias.assign([0, 0, -50, 0, 0, 0])  # A unit that is silent for ever.
    optimizer = _METHODS[name](keras.optimizers.SGD(0.01))
    _fit(model, optimizer, [array[:16] for array in _make_data()])
    assert optimizer.num_replaced()["rnn"] >= 1
    assert np.abs(to_numpy(bias)[2]) < 1
    assert all(np.all(np.isfinite(w)) for w in _weights(model))


@pytest.mark.parametrize(
    "name", mostly_on_torch(["CCBP", "CPR", "UnitUPGD"], "CCBP")
)
def test_methods_that_change_units_by_parts(name):
    results = []
    kind = getattr(optimizers, name)
    settings = {} if name == "UnitUPGD" else {"period": 2}
    for optimizer in (
        kind(keras.optimizers.SGD(0.05), seed=0, **settings),
        keras.optimizers.SGD(0.05),
    ):
        model = _make_model("LSTM")
        _fit(model, optimizer, _make_data())
        results.append(_weights(model))
        assert all(np.all(np.isfinite(w)) for w in results[-1])
    assert np.any(results[0][1] != results[1][1])


def test_reset_partially():
    model = _make_model(
        "LSTM",
        kernel_initializer=CountedDraws(),
        recurrent_initializer=CountedDraws(),
    )
    optimizer = optimizers.CCBP(keras.optimizers.SGD(0.1), seed=1)
    optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    for variable in weights_of(model):
        variable.assign(rng.normal(0, 1, variable.shape))
    kernel, recurrent, bias, head, _ = _weights(model)
    share = np.linspace(0, 1, 6)
    (units,) = optimizer.hidden
    units.reset_partially(keras.ops.convert_to_tensor(share, "float32"))
    by_column = np.tile(share, 4)
    draws = [counted_draw(n, size)[:, None] for n, size in ((0, 3), (1, 6))]
    expected = [
        (1 - by_column) * kernel + by_column * draws[0],
        # First the columns, then the rows.
        (1 - share)[:, None]
        * ((1 - by_column) * recurrent + by_column * draws[1]),
        (1 - by_column) * bias + by_column * np.repeat([0.0, 1.0, 0.0, 0.0], 6),
        (1 - share)[:, None] * head,
    ]
    for actual, value in zip(_weights(model), expected):
        np.testing.assert_allclose(actual, value, atol=1e-6)


class Observes(optimizers.UnitResetOptimizer):
    observed = (
        "gradient_magnitude",
        "gradient_norm",
        "bias_gradient_magnitude",
    )

    def add_state(self, units):
        for name in self.observed:
            setattr(units, name + "_now", units.add_variable(name))

    def update_statistics(self, units):
        for name in self.observed:
            value = getattr(units, name)()
            getattr(units, name + "_now").assign(value)


def test_gradients_of_all_incoming_weights():
    model = _make_model("GRU")
    before = _weights(model)
    optimizer = Observes(keras.optimizers.SGD(1.0))
    _fit(model, optimizer, _make_data(_BATCH))
    (units,) = optimizer.hidden
    kernel, recurrent, bias, *_ = [
        (a - b).reshape(*a.shape[:-1], 3, 6)
        for a, b in zip(before[:3], _weights(model)[:3])
    ]
    incoming = np.concatenate([kernel, recurrent]).reshape(-1, 6)
    for name, expected in {
        "gradient_magnitude": np.abs(incoming).mean(axis=0),
        "gradient_norm": np.linalg.norm(incoming, axis=0),
        "bias_gradient_magnitude": np.abs(bias).mean(axis=(0, 1)),
    }.items():
        actual = to_numpy(getattr(units, name + "_now"))
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-7)
    incoming = np.concatenate(
        [w.reshape(-1, 3, 6) for w in _weights(model)[:2]]
    )
    np.testing.assert_allclose(
        to_numpy(units.incoming_magnitude()),
        np.abs(incoming).mean(axis=(0, 1)),
        rtol=1e-5,
    )


class _Stream:
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return 1

    def task(self, index):
        return self.data


@_kinds
def test_engine_is_fit(kind):
    data = _make_data(32)

    def compiled(learner=0):
        model = _make_model(kind)
        model.compile(_continual(), "mse")
        return model

    model = compiled()
    _fit(model, model.optimizer, data)
    trainer = OnlineTrainer(compiled)
    trainer.fit(_Stream(data), batch_size=_BATCH)
    trained = trainer.model()
    for actual, expected in zip(_weights(trained), _weights(model)):
        np.testing.assert_allclose(actual, expected, atol=2e-5)
    np.testing.assert_array_equal(
        to_numpy(trained.get_layer("rnn").age),
        to_numpy(model.get_layer("rnn").age),
    )
    replaced = trained.optimizer.num_replaced()
    assert replaced == model.optimizer.num_replaced() and replaced["rnn"] > 2


@pytest.mark.parametrize("kind", mostly_on_torch(["GRU", "LSTM"]))
def test_saved_and_loaded_training_continues(kind, tmp_path):
    data = _make_data()
    model = _make_model(kind)
    _fit(model, _continual(), data)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    assert loaded.optimizer.num_replaced() == model.optimizer.num_replaced()
    for each in (model, loaded):
        each.fit(*data, batch_size=_BATCH, shuffle=False, verbose=0)
    for actual, expected in zip(_weights(loaded), _weights(model)):
        np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert loaded.optimizer.num_replaced() == model.optimizer.num_replaced()


@pytest.mark.long
def test_forecaster():
    """Learns a sine wave, while a third of its units are replaced."""
    wave = np.sin(0.4 * np.arange(1200))
    windows = np.lib.stride_tricks.sliding_window_view(wave, 7)[..., None]
    windows = np.random.default_rng(0).permutation(windows).astype("float32")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 1)),
            layers.LSTM(16, return_sequences=True),
            keras.layers.Bidirectional(layers.LSTM(8)),
            layers.Dense(1),
        ]
    )
    optimizer = keras_plasticity.optimizers.ContinualBackprop(
        keras.optimizers.Adam(0.01), replacement_rate=3e-3, seed=0
    )
    model.compile(optimizer, "mse")
    losses = model.fit(
        windows[:, :6], windows[:, 6], batch_size=6, epochs=2, verbose=0
    ).history["loss"]
    assert min(optimizer.num_replaced().values()) >= 3
    assert losses[-1] < 0.02 and losses[-1] < losses[0] / 3
