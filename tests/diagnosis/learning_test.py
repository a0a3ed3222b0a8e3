"""Copies of a model: what is in them, and what they leave alone."""

import contextlib
import random

import keras
import numpy as np
import pytest

import keras_plasticity
from keras_plasticity import keras_compat
from keras_plasticity import layers
from keras_plasticity.diagnosis import learning
from keras_plasticity.models import make_plastic
from tests.helpers import to_numpy

pytestmark = pytest.mark.usefixtures("fast_compilation")


def data(num=32):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num, 6, 4)).astype("float32")
    return x, x[:, :, :1].sum(1)


def copies_of(model, build_model=None):
    return learning.Copies(
        model, "mse", keras.optimizers.SGD(0.05), build_model, seed=0
    )


def values(variables):
    return [np.array(to_numpy(variable)) for variable in variables]


def assert_equal(variables, expected):
    for actual, each in zip(values(variables), expected, strict=True):
        np.testing.assert_array_equal(actual, each)


@keras.saving.register_keras_serializable("learning_test")
class Block(keras.layers.Layer):
    """A block whose config says nothing of the layers in it.

    Args:
        kinds: Module with the classes of layers that can be plastic.
    """

    kinds = keras.layers

    def build(self, input_shape):
        self.attention = self.kinds.MultiHeadAttention(2, 3)
        self.attention.build(input_shape, input_shape)
        self.up = self.kinds.Dense(5, "relu")
        self.up.build(input_shape)
        self.normalization = keras.layers.BatchNormalization()
        self.normalization.build((*input_shape[:-1], 5))
        self.down = self.kinds.Dense(input_shape[-1])
        self.down.build((*input_shape[:-1], 5))

    def call(self, x, training=None):
        x = x + self.attention(x, x)
        hidden = self.normalization(self.up(x), training=training)
        return x + self.down(hidden)


@keras.saving.register_keras_serializable("learning_test")
class PlasticBlock(Block):
    kinds = layers


def make_model(block=Block):
    """A model with a block, whose config describes all but its inside."""
    inputs = keras.Input((6, 4))
    x = block(name="block")(inputs)
    x = keras.layers.GlobalAveragePooling1D()(x)
    x = keras.layers.Dense(3, "relu", name="hidden")(x)
    return keras.Model(inputs, keras.layers.Dense(1, name="last")(x))


class Own(keras.Model):
    """A model that its config does not describe."""

    def __init__(self, block=Block):
        super().__init__()
        self.block = block()
        self.twice = keras.layers.Dense(4)
        self.pool = keras.layers.GlobalAveragePooling1D()
        self.last = keras.layers.Dense(1)
        self.inner = keras.Sequential([self.twice, keras.layers.ReLU()])

    def call(self, x, training=None):
        x = self.twice(self.block(x, training=training))
        return self.last(self.pool(self.inner(x)))


def make_own(block=Block):
    model = Own(block)
    model(np.zeros((1, 6, 4), "float32"))
    return model


def _frozen_layer(block):
    block.up.trainable = False


def _frozen_attention(block):
    block.attention.trainable = False


def _frozen_projection(block):
    keras_compat.projections(block.attention)["key"].trainable = False


def _frozen_normalization(block):
    block.normalization.trainable = False


def _frozen_block(block):
    block.trainable = False


def _only_one_trained(block):
    block.trainable = False
    block.down.trainable = True


def _frozen_kernel(block):
    block.down.kernel.trainable = False


FREEZE = [
    _frozen_layer,
    _frozen_attention,
    _frozen_projection,
    _frozen_normalization,
    _frozen_block,
    _only_one_trained,
    _frozen_kernel,
]


def stays(variable, block):
    """Whether training changes nothing of a variable."""
    if "/statistics/" in variable.path:
        return False  # An optimizer keeps some of them.
    if "moving" in variable.name:
        return not block.normalization.trainable
    return not variable.trainable


def trainables(model):
    """What is trained of variables, and of layers that have some."""
    return [variable.trainable for variable in model.variables], [
        layer.trainable
        for layer in keras_compat.in_order(model)
        if layer.weights
    ]


def check_trains_alike(copy, model, block):
    """Checks that a copy learns, and not what is frozen in the model."""
    assert trainables(copy) == trainables(model)
    still = [stays(variable, block) for variable in model.variables]
    assert any(still)
    before = values(copy.variables)
    copy.fit(*data(), batch_size=8, verbose=0)
    after = values(copy.variables)
    for variable, is_still, old, new in zip(
        model.variables, still, before, after, strict=True
    ):
        if is_still:
            np.testing.assert_array_equal(old, new, variable.path)
            np.testing.assert_array_equal(to_numpy(variable), new)
        elif variable.name == "kernel":
            assert np.any(old != new), variable.path


@pytest.mark.parametrize("freeze", FREEZE)
def test_what_is_frozen_in_the_model_is_so_in_copies(freeze):
    model = make_model()
    block = model.get_layer("block")
    freeze(block)
    copies = copies_of(model)
    assert trainables(copies.old()) == trainables(model)
    check_trains_alike(copies.new(1), model, block)


# Optimizers refuse a plastic layer of which only the kernel is frozen.
@pytest.mark.parametrize("freeze", FREEZE[:-1])
def test_what_is_frozen_in_a_plastic_model_is_so_in_copies(freeze):
    before = make_model()
    freeze(before.get_layer("block"))
    make_plastic(before)
    assert trainables(copies_of(before).old()) == trainables(before)

    model = make_model()
    block = model.get_layer("block")
    make_plastic(model)
    freeze(block)
    optimizer = keras_plasticity.optimizers.ContinualBackprop(
        keras.optimizers.SGD(0.05), seed=1
    )
    copies = learning.Copies(model, "mse", optimizer, None, seed=0)
    check_trains_alike(copies.new(1), model, block)


@pytest.mark.parametrize("freeze", FREEZE)
def test_what_is_frozen_in_the_model_is_so_in_what_build_model_returns(freeze):
    model = make_own()
    freeze(model.block)
    copies = copies_of(model, make_own)
    assert trainables(copies.new(2)) == trainables(model)
    check_trains_alike(copies.old(), model, model.block)


def test_what_is_frozen_in_what_build_model_returns_alone_is_trained():
    def build_model():
        new = make_own()
        new.block.trainable = False
        new.last.trainable = False
        return new

    model = make_own()
    model.block.up.trainable = False
    copy = copies_of(model, build_model).new(0)
    check_trains_alike(copy, model, model.block)


def test_a_frozen_layer_that_two_share():
    model = make_own()
    # Within a model that comes later, and is trained.
    model.twice.trainable = False
    copy = copies_of(model, make_own).new(0)
    check_trains_alike(copy, model, model.block)
    assert copy.inner.trainable and not copy.twice.trainable


def test_the_kernel_that_lora_adapts_stays():
    inputs = keras.Input((6, 4))
    adapted = keras.layers.Dense(3, name="adapted")
    x = keras.layers.GlobalAveragePooling1D()(adapted(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    adapted.enable_lora(2)
    copy = copies_of(model).new(1)
    assert trainables(copy) == trainables(model)
    kernel = values([adapted._kernel])
    assert_equal([copy.get_layer("adapted")._kernel], kernel)
    first = values([copy.get_layer("adapted").lora_kernel_a])
    assert np.any(first[0] != to_numpy(adapted.lora_kernel_a))
    copy.fit(*data(), verbose=0)
    assert_equal([copy.get_layer("adapted")._kernel], kernel)


@pytest.mark.parametrize("number", [None, 1], ids=["old", "new"])
def test_normalizations_use_what_the_model_has_adapted_to(number):
    x, _ = data()
    normalization = keras.layers.Normalization(name="normalization")
    normalization.adapt(5.0 * x + 2.0)
    inputs = keras.Input((6, 4))
    outputs = keras.layers.Flatten()(normalization(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(outputs))
    copies = copies_of(model)
    copy = copies.old() if number is None else copies.new(number)
    np.testing.assert_allclose(
        to_numpy(copy.get_layer("normalization")(x)),
        to_numpy(normalization(x)),
        rtol=1e-6,
    )


def small(kinds=keras.layers, between=None, name=None):
    """A small model, with a batch normalization or another layer in it."""
    return keras.Sequential(
        [
            keras.Input((6, 4)),
            keras.layers.Flatten(),
            kinds.Dense(5, "relu", name="hidden"),
            between or keras.layers.BatchNormalization(),
            kinds.Dense(1, name="last"),
        ],
        name=name,
    )


class Tied(keras.layers.Layer):
    """A layer with the weights of another one."""

    def __init__(self, layer):
        super().__init__()
        self.kernel, self.bias = layer.kernel, layer.bias

    def call(self, x):
        return keras.ops.matmul(x, self.kernel) + self.bias


def _tied(model):
    new = small()
    return keras.Sequential(
        [keras.Input((6, 4)), *new.layers[:-1], Tied(model.layers[-1])]
    )


def _within(model):
    inputs = keras.Input((6, 4))
    return keras.Model(inputs, keras.layers.ReLU()(model(inputs)))


NOT_NEW = {
    "itself": (lambda model: model, "`model` itself"),
    "layers": (lambda model: keras.Sequential(model.layers), "hidden/kernel'"),
    "graph": (
        lambda model: keras.Model(model.inputs, model.outputs),
        "hidden/kernel' belongs to `model`",
    ),
    "within": (_within, "hidden/kernel'"),
    "one layer": (
        lambda model: small(between=model.layers[2]),
        "variable '.*batch_normalization.*'",
    ),
    "one variable": (_tied, "last/kernel'"),
}


@pytest.mark.parametrize("kind", NOT_NEW)
def test_build_model_must_not_return_the_model_or_parts_of_it(kind):
    build_model, message = NOT_NEW[kind]
    model = small()
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(optimizer, "mse", metrics=["mae"])
    x, y = data()
    model.fit(x, y, verbose=0)
    before = values([*model.variables, *optimizer.variables])
    with pytest.raises(ValueError, match=f"`build_model` must.*{message}"):
        keras_plasticity.diagnose(
            model,
            (x, y),
            num_steps=2,
            num_new=3,
            build_model=lambda: build_model(model),
            verbose=False,
        )
    # It goes on as if nothing had been asked.
    assert model.optimizer is optimizer
    assert_equal([*model.variables, *optimizer.variables], before)
    assert "mae" in model.evaluate(x, y, verbose=0, return_dict=True)


def test_build_model_must_not_return_a_random_layer_of_the_model():
    dropout = keras.layers.Dropout(0.5)
    model = small(between=dropout)
    copies = copies_of(model, lambda: small(between=dropout))
    with pytest.raises(ValueError, match="seed_generator_state.*belongs to"):
        copies.old()


@pytest.mark.parametrize(
    "share, message",
    [
        (lambda: (lambda model: lambda: model)(small(name="same")), "'same', "),
        (
            lambda: (lambda shared: lambda: small(between=shared))(
                keras.layers.BatchNormalization(name="shared")
            ),
            "shared/gamma'",
        ),
    ],
    ids=["model", "layer"],
)
def test_build_model_must_return_a_new_model_each_time(share, message):
    copies = copies_of(small(), share())
    copies.old()
    with pytest.raises(ValueError, match=f"{message}.*returned before"):
        copies.new(0)


def global_draws():
    """What comes next of each global source of random numbers."""
    draws = [random.random(), np.random.rand()]
    draws.append(float(keras.random.normal(())))
    draws.append(float(keras.random.normal(())))
    if keras.backend.backend() == "torch":
        import torch

        draws.append(float(torch.rand(())))
    return draws


@pytest.mark.parametrize("fails", [False, True])
def test_build_model_leaves_global_random_numbers_alone(fails):
    def build_model():
        global_draws()
        if fails:
            raise OSError
        return small()

    copies = copies_of(small(), build_model)
    keras.utils.set_random_seed(5)
    # A generator of Keras that has been used already.
    global_draws()
    expected = global_draws()
    keras.utils.set_random_seed(5)
    global_draws()
    for number in range(2):
        with pytest.raises(OSError) if fails else contextlib.nullcontext():
            copies.new(number)
    assert global_draws() == expected


def test_models_may_share_what_nobody_trains():
    x, y = data()
    normalization = keras.layers.Normalization()
    normalization.adapt(5.0 * x + 2.0)
    base = keras.Sequential(
        [
            keras.Input((6, 4)),
            normalization,
            keras.layers.Dense(3, "relu"),
            keras.layers.BatchNormalization(),
        ]
    )
    base.trainable = False

    def build_model():
        model = keras.Sequential(
            [keras.Input((6, 4)), base, keras.layers.Flatten()]
        )
        model.add(keras.layers.Dense(1))
        return model

    model = build_model()
    model.compile(keras.optimizers.SGD(0.05), "mse")
    before, frozen = values(model.variables), trainables(model)
    diagnosis = keras_plasticity.diagnose(
        model,
        (x, y),
        num_steps=4,
        num_new=3,
        build_model=build_model,
        verbose=False,
    )
    learned = diagnosis.learning
    assert np.all(learned.new_after != learned.new_before)
    assert_equal(model.variables, before)
    assert trainables(model) == frozen


def _made_plastic():
    model = small()
    make_plastic(model)
    return model


class _DenseOfOnesOwn(keras.layers.Dense):
    pass


class _Kinds:
    Dense = _DenseOfOnesOwn


OTHER_KINDS = {
    "plastic of plain": (
        small,
        lambda: small(layers),
        "'hidden', a plastic `Dense`, expected a plain `Dense`",
    ),
    "made plastic of plain": (small, _made_plastic, "expected a plain"),
    "attention": (
        make_own,
        lambda: make_own(PlasticBlock),
        "a plastic `MultiHeadAttention`, expected a plain",
    ),
    "own of plastic": (
        lambda: small(layers),
        lambda: small(_Kinds),
        "a plain `_DenseOfOnesOwn`, expected a plastic `Dense`",
    ),
    "random": (
        lambda: small(between=keras.layers.ReLU()),
        lambda: small(between=keras.layers.Dropout(0.5)),
        "same architecture.*random generators",
    ),
    "nested": (
        small,
        lambda: keras.Sequential([keras.Input((6, 4)), small()]),
        "same architecture.*with 5 layers.*expected 4",
    ),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_build_model_must_return_layers_of_the_same_kinds(kind):
    make, build_model, message = OTHER_KINDS[kind]
    with pytest.raises(ValueError, match=f"`build_model` must.*{message}"):
        copies_of(make(), build_model).old()


@pytest.mark.parametrize(
    "make, build_model",
    [
        (lambda: small(layers), small),
        (lambda: small(layers), lambda: small(layers)),
        (_made_plastic, small),
        (_made_plastic, _made_plastic),
        (lambda: make_own(PlasticBlock), make_own),
        (lambda: make_own(PlasticBlock), lambda: make_own(PlasticBlock)),
        (lambda: small(_Kinds), small),
    ],
)
def test_build_model_may_return_plain_layers(make, build_model):
    model = make()
    x, _ = data()
    for copy in (
        copies_of(model, build_model).old(),
        copies_of(model, build_model).new(0),
    ):
        assert replaceable(copy) == replaceable(model)
    copy = copies_of(model, build_model).old()
    np.testing.assert_array_equal(to_numpy(copy(x)), to_numpy(model(x)))


def replaceable(model):
    """Whether units may be replaced, of all plastic layers in their order."""
    return [
        layer.replaceable
        for layer in keras_compat.in_order(model)
        if hasattr(layer, "replaceable")
    ]


def _none_of_a_layer(block):
    block.up.replaceable = False


def _one_of_attention(block):
    block.attention.replaceable = ["output"]


def _none_of_attention(block):
    block.attention.replaceable = False


def _none_of_a_projection(block):
    keras_compat.projections(block.attention)["value"].replaceable = False


@pytest.mark.parametrize(
    "change",
    [
        _none_of_a_layer,
        _one_of_attention,
        _none_of_attention,
        _none_of_a_projection,
    ],
)
def test_units_that_may_not_be_replaced(change):
    model = make_model(PlasticBlock)
    change(model.get_layer("block"))
    assert False in replaceable(model)
    copies = copies_of(model)
    assert replaceable(copies.old()) == replaceable(model)
    assert replaceable(copies.new(1)) == replaceable(model)

    model = make_own(PlasticBlock)
    change(model.block)
    for build_model in (make_own, lambda: make_own(PlasticBlock)):
        copy = copies_of(model, build_model).new(1)
        assert replaceable(copy) == replaceable(model)


def test_units_that_may_not_be_replaced_in_what_build_model_returns_alone():
    def build_model():
        new = make_own(PlasticBlock)
        new.block.up.replaceable = False
        new.block.attention.replaceable = False
        return new

    model = make_own(PlasticBlock)
    copy = copies_of(model, build_model).old()
    assert replaceable(copy) == replaceable(model)
    assert False not in replaceable(copy)[:1]


@keras.saving.register_keras_serializable("learning_test")
class Chain(keras.layers.Layer):
    """Plastic layers, of which the config says nothing."""

    def build(self, input_shape):
        self.parts = [layers.Dense(4, "tanh", name=name) for name in "abc"]
        for part in self.parts:
            part.build(input_shape)

    def call(self, x):
        for part in self.parts:
            x = part(x)
        return x


def test_units_of_a_copy_stay_that_stay_in_the_model():
    inputs = keras.Input((6, 4))
    chain = Chain()
    outputs = layers.Dense(1)(keras.layers.GlobalMaxPooling1D()(chain(inputs)))
    model = keras.Model(inputs, outputs)
    chain.parts[1].replaceable = False
    optimizer = keras_plasticity.optimizers.ContinualBackprop(
        keras.optimizers.SGD(0.05), 0.5, maturity_threshold=1, seed=1
    )
    copy = learning.Copies(model, "mse", optimizer, None, seed=0).new(1)
    copy.fit(*data(), batch_size=2, verbose=0)
    replaced = copy.optimizer.num_replaced()
    assert set(replaced) == {"a", "c"}
    assert all(replaced.values())
