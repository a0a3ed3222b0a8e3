import gc
import weakref

import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity import diagnostics
from keras_plasticity.diagnosis import RecentExamples
from keras_plasticity.diagnosis.layer_activations import Programs
from tests.helpers import make_data
from tests.helpers import make_model
from tests.helpers import to_numpy

DIMS = (4, 6, 5, 3)


def compiled(activation="relu", loss="mse"):
    model = make_model(DIMS, layer=keras.layers.Dense, activation=activation)
    if loss is not None:
        model.compile("sgd", loss)
    return model


def test_it_measures_the_weights_of_the_moment():
    model = compiled()
    x, y = make_data(20, DIMS)
    for scale in (1.0, -2.0):
        kernel = to_numpy(model.layers[0].kernel)
        model.layers[0].kernel.assign(scale * kernel)
        measured = keras_plasticity.measure(model, (x, y), batch_size=8)
        h = [to_numpy(model.layers[0](x))]
        h.append(to_numpy(model.layers[1](h[0])))
        for name in ("effective_rank", "stable_rank", "linear_fraction"):
            expected = [getattr(diagnostics, name)(each) for each in h]
            assert measured[name] == pytest.approx(
                {
                    "layer_0": expected[0],
                    "layer_1": expected[1],
                    "total": np.mean(expected),
                },
                rel=1e-4,
            )
        kernels = [to_numpy(layer.kernel) for layer in model.layers]
        assert measured["weight_magnitude"]["total"] == pytest.approx(
            diagnostics.weight_magnitude(kernels)
        )


def test_dormant_gradients_by_hand():
    model = compiled("tanh")
    x, y = make_data(20, DIMS)
    # The unit reads and drives nothing: its incoming weights have no gradient.
    kernel = to_numpy(model.layers[1].kernel)
    kernel[2] = 0.0
    model.layers[1].kernel.assign(kernel)
    measured = keras_plasticity.measure(
        model, (x, y), measures=["gradient_dormant_units"]
    )
    assert measured == {
        "gradient_dormant_units": {"layer_0": 1, "layer_1": 0, "total": 1}
    }


def test_without_a_loss_there_are_no_gradients():
    x, y = make_data(20, DIMS)
    measured = keras_plasticity.measure(compiled(loss=None), (x, y))
    assert "effective_rank" in measured
    assert not any("gradient" in name for name in measured)
    with pytest.raises(ValueError, match="compiled with a loss.*gradient_norm"):
        keras_plasticity.measure(
            compiled(loss=None), (x, y), measures=["gradient_norm"]
        )


def test_a_model_that_is_compiled_without_a_loss():
    x, y = make_data(20, DIMS)
    model = compiled(loss=None)
    model.compile("sgd")
    measured = keras_plasticity.measure(model, (x, y))
    assert measured == keras_plasticity.measure(model, x)
    with pytest.raises(ValueError, match="compiled with a loss"):
        keras_plasticity.measure(model, (x, y), measures=["gradient_norm"])


def test_a_list_of_inputs_and_recent_examples():
    model = compiled()
    x, _ = make_data(20, DIMS)
    recent = RecentExamples()
    recent.add(x[:12])
    recent.add(x[12:])
    assert keras_plasticity.measure(model, recent) == keras_plasticity.measure(
        model, x
    )


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="only its tensors have gradients"
)
def test_tensors_with_gradients():
    x, _ = make_data(20, DIMS)
    tensor = keras.ops.convert_to_tensor(x).requires_grad_()
    model = compiled()
    assert keras_plasticity.measure(model, tensor) == keras_plasticity.measure(
        model, x
    )


def test_programs_are_compiled_once():
    calls = []

    class Counted(keras.layers.Dense):
        def call(self, inputs, training=None):
            calls.append(self.name)
            return super().call(inputs, training)

    model = make_model(DIMS, layer=Counted)
    x, _ = make_data(20, DIMS)
    for _ in range(2):
        keras_plasticity.measure(model, x)
    first = len(calls)
    model.layers[0].set_weights([np.zeros((4, 6)), np.zeros(6)])
    measured = keras_plasticity.measure(model, x)
    assert measured["dead_units"]["layer_0"] == 6
    if keras.backend.backend() != "torch":  # Which runs eagerly.
        assert len(calls) == first


def _other_activation(model):
    model.layers[0].activation = keras.activations.sigmoid
    model.compile("sgd", "mse")


def _plastic(model):
    keras_plasticity.models.make_plastic(model)


def _low_rank(model):
    model.layers[1].enable_lora(2)
    model.layers[1].lora_kernel_b.assign(np.ones((2, 5)))


@pytest.mark.parametrize("change", [_other_activation, _plastic, _low_rank])
def test_a_model_that_has_changed_is_measured_as_a_new_one(change):
    model = compiled()
    x, y = make_data(20, DIMS)
    keras_plasticity.measure(model, (x, y))
    change(model)
    measured = keras_plasticity.measure(model, (x, y))
    new = compiled()
    new.set_weights(compiled().get_weights())
    change(new)
    for one, other in zip(new.variables, model.variables, strict=True):
        one.assign(other)
    assert measured.keys() == keras_plasticity.measure(new, (x, y)).keys()
    for name, values in keras_plasticity.measure(new, (x, y)).items():
        assert measured[name] == pytest.approx(values, rel=1e-4), name


def test_an_activation_of_a_layer_that_its_config_does_not_describe():
    class Own(keras.layers.Dense):
        pass

    model = make_model(DIMS, layer=Own, activation="relu")
    x, _ = make_data(20, DIMS)
    keras_plasticity.measure(model, x)
    model.layers[0].activation = keras.activations.sigmoid
    model.compile("sgd", "mse")
    measured = keras_plasticity.measure(model, x)
    h = to_numpy(model.layers[0](x))
    rank = diagnostics.effective_rank(h)
    assert measured["effective_rank"]["layer_0"] == pytest.approx(rank, 1e-4)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_normalization_that_is_adapted_anew(is_compiled):
    normalization = keras.layers.Normalization()
    x, y = make_data(20, DIMS)
    normalization.adapt(x)
    hidden = keras.layers.Dense(6, "relu", name="hidden")
    model = keras.Sequential(
        [keras.Input((4,)), normalization, hidden, keras.layers.Dense(3)]
    )
    model.compile("sgd", "mse")
    x = 10 * x + 100
    for _ in range(3):
        measured = keras_plasticity.measure(model, (x, y))
        h = to_numpy(hidden(normalization(x)))
        rank = diagnostics.effective_rank(h)
        assert measured["effective_rank"]["hidden"] == pytest.approx(rank, 1e-3)
        head = model.layers[-1]
        gradient = to_numpy(head(h)) - y
        gradient = h.T @ gradient * 2 / y.size, gradient.sum(0) * 2 / y.size
        assert measured["gradient_norm"][head.name] == pytest.approx(
            diagnostics.gradient_norm(gradient), rel=1e-3
        )
        normalization.adapt(x)
        if is_compiled:
            model.compile("sgd", "mse")
        x = 2 * x + 1


def test_an_activation_that_makes_more_units():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, name="hidden"),
            keras_plasticity.layers.CReLU(),
            keras.layers.Dense(3),
        ]
    )
    model.compile("sgd", "mse")
    # The negative halves are dead.
    model.get_layer("hidden").bias.assign(np.full(5, 100.0))
    x, y = make_data(9, DIMS)
    for data in (x, (x, y)):
        measured = keras_plasticity.measure(model, data)
        assert measured.num_units == {"hidden": 10, "total": 10}
        assert measured["dead_units"]["total"] == 5
    # No unit learns anything.
    model.layers[-1].kernel.assign(np.zeros((10, 3)))
    monitor = keras_plasticity.callbacks.PlasticityMonitor(
        (x, y), thresholds={"gradient_dormant_units": 0.9, "dead_units": 0.4}
    )
    with pytest.warns(UserWarning) as warned:
        # Dead units do not move the head from where it is.
        model.compile(keras.optimizers.SGD(0.0), "mse")
        model.fit(x, y, verbose=0, callbacks=[monitor])
    texts = " ".join(str(each.message) for each in warned)
    assert "5 of 5 units (100%)" in texts
    assert "5 of 10 units (50%)" in texts


def test_more_examples_than_a_batch_of_a_fixed_size():
    inputs = keras.Input(batch_shape=(8, 4))
    h = keras.layers.Dense(5, "relu", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(h))
    x, _ = make_data(16, DIMS)
    measured = keras_plasticity.measure(model, x, batch_size=8)
    rank = diagnostics.effective_rank(to_numpy(model.get_layer("hidden")(x)))
    assert measured["effective_rank"]["hidden"] == pytest.approx(rank, 1e-4)


def test_models_of_one_config_share_their_programs():
    programs = Programs()
    x, _ = make_data(9, DIMS)
    models = [
        keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(units, "relu"), last]
        )
        for units, last in (
            (6, keras.layers.Dense(2)),
            (6, keras.layers.Dense(2)),
            (7, keras.layers.Dense(2)),
            (6, keras.layers.Dense(2, use_bias=False)),
        )
    ]
    found = [programs.get(model, x, None) for model in models]
    assert found[0] is found[1]
    assert len({id(each) for each in found}) == 3
    names = [found[i].names(models[i]) for i in (0, 1)]
    assert names == [[models[i].layers[0].name] for i in (0, 1)]
    for model, program in zip(models[:2], found):
        (output,) = programs.outputs(model, x, 4)
        np.testing.assert_allclose(output, to_numpy(model(x)), rtol=1e-5)


def test_a_measured_model_is_let_go():
    model = compiled()
    keras_plasticity.measure(model, make_data(9, DIMS))
    reference = weakref.ref(model)
    del model
    keras.backend.clear_session()
    gc.collect()
    assert reference() is None


def test_sequences_of_any_length():
    inputs = keras.Input((None, 3))
    h = keras.layers.Dense(5, "relu", name="hidden")(inputs)
    pooled = keras.layers.GlobalAveragePooling1D()(h)
    model = keras.Model(inputs, keras.layers.Dense(1)(pooled))
    rng = np.random.default_rng(0)
    for length in (4, 7):
        x = rng.normal(size=(6, length, 3)).astype("float32")
        layer = model.get_layer("hidden")
        h = to_numpy(layer(x)).reshape(-1, 5)
        measured = keras_plasticity.measure(model, x, batch_size=4)
        rank = diagnostics.effective_rank(h)
        assert measured["effective_rank"]["hidden"] == pytest.approx(rank, 1e-4)
        assert measured["linear_fraction"]["total"] == pytest.approx(
            np.mean(h > 0)
        )


class Positions(keras.layers.Layer):
    """Scales each position; it has to know how many there are."""

    def call(self, inputs):
        length = keras.ops.shape(inputs)[1]
        positions = keras.ops.arange(length, dtype="float32") + 1.0
        return inputs * positions[:, None]


@pytest.mark.parametrize("is_nested", [False, True])
def test_layers_that_reckon_with_the_length(is_nested):
    inputs = keras.Input((None, 3))
    hidden = keras.layers.Dense(5, "relu", name="hidden")
    outputs = keras.layers.Dense(2)(hidden(Positions()(inputs)))
    model = keras.Model(inputs, outputs)
    if is_nested:
        outer = keras.Input((None, 3), name="inputs")
        model = keras.Model({"inputs": outer}, model(outer))
    rng = np.random.default_rng(0)
    for length in (4, 7):
        x = rng.normal(size=(6, length, 3)).astype("float32")
        measured = keras_plasticity.measure(
            model, {"inputs": x} if is_nested else x
        )
        scaled = x * np.arange(1.0, length + 1, dtype="float32")[:, None]
        kernel, bias = map(to_numpy, hidden.weights)
        assert measured.num_units == {"hidden": 5, "total": 5}
        found = measured["linear_fraction"]["hidden"]
        h = scaled @ kernel + bias
        assert found == pytest.approx(np.mean(h > 0))
        rank = diagnostics.effective_rank(np.maximum(h, 0.0).reshape(-1, 5))
        assert measured["effective_rank"]["hidden"] == pytest.approx(rank, 1e-4)


def test_positions_among_the_examples():
    inputs = keras.Input((6, 2))
    rows = keras.ops.reshape(inputs, (-1, 2))
    h = keras.layers.Dense(4, "relu", name="hidden")(rows)
    outputs = keras.layers.Dense(1)(h)
    model = keras.Model(inputs, keras.ops.reshape(outputs, (-1, 6, 1)))
    x = np.random.default_rng(0).normal(size=(5, 6, 2)).astype("float32")
    h = to_numpy(model.get_layer("hidden")(x.reshape(-1, 2)))
    for size in (5, 2):
        measured = keras_plasticity.measure(model, x, batch_size=size)
        assert measured["linear_fraction"]["total"] == pytest.approx(
            np.mean(h > 0)
        )
        rank = diagnostics.effective_rank(h)
        assert measured["effective_rank"]["hidden"] == pytest.approx(rank, 1e-4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model": 5}, "model.*keras.Model.*5"),
        ({"data": np.zeros((0, 4))}, "`data`.*one example at least"),
        ({"data": np.zeros((5, 3))}, r"fit the inputs.*\(5, 3\)"),
        ({"data": np.full((5, 4), np.inf)}, "`data`.*finite"),
        ({"measures": ["ranks"]}, r"measures.*\['ranks'\]"),
        ({"measures": ["gradient_norm"]}, "needs targets.*`data`"),
        ({"measures": ["weight_change"]}, r"two.*\['weight_change'\]"),
        ({"measures": ["utility"]}, "histograms"),
        ({"layers": ["none"]}, r"layers.*\['none'\]"),
        ({"layers": "layer_0"}, "layers=layer_0"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_rows": 1.5}, "max_rows"),
    ],
)
def test_bad_arguments(arguments, message):
    settings = {"model": compiled(), "data": np.ones((5, 4)), **arguments}
    with pytest.raises((ValueError, TypeError), match=message):
        keras_plasticity.measure(**settings)


@pytest.mark.parametrize("layers", [[], [keras.layers.Dense(3)]])
def test_a_model_that_is_not_built(layers):
    model = keras.Sequential(layers)
    for function in (keras_plasticity.measure, keras_plasticity.diagnose):
        with pytest.raises(ValueError, match="must be built.*no weights yet"):
            function(model, (np.ones((4, 2)), np.ones((4, 3))))
    assert not model.built


@pytest.mark.parametrize("batch", [None, (None, np.ones(3))])
def test_batches_without_inputs(batch):
    with pytest.raises(ValueError, match="tuples.*Received: a generator of"):
        keras_plasticity.measure(compiled(), (each for each in [batch]))


def test_a_model_that_has_diverged():
    model = compiled()
    model.layers[1].bias.assign([1.0, 2.0, np.nan, 0.0, 0.0])
    with pytest.raises(ValueError, match="NaN or infinite.*diverged"):
        keras_plasticity.measure(model, make_data(9, DIMS))
