"""Numbers that are drawn for different uses have nothing in common."""

import itertools

import keras
import numpy as np
import pytest

from keras_plasticity import derived_seed
from keras_plasticity import experiments
from keras_plasticity.experiments import parts
from keras_plasticity.optimizers import L2
from keras_plasticity.optimizers import UPGD
from keras_plasticity.optimizers import ContinualBackprop
from keras_plasticity.optimizers import OptimizerWrapper
from keras_plasticity.optimizers import ReDo
from keras_plasticity.optimizers import SelectiveWeightReinitialization
from keras_plasticity.optimizers import SelfNormalizedResets
from keras_plasticity.optimizers import ShrinkAndPerturb
from keras_plasticity.optimizers import ShrinkAndPerturbByInitializer
from keras_plasticity.optimizers import UnitUPGD
from keras_plasticity.streams import SlowlyChangingRegression
from tests.examples.trainers import load
from tests.examples.trainers import parse
from tests.helpers import make_model

_SEEDED = (
    ContinualBackprop,
    ReDo,
    SelectiveWeightReinitialization,
    SelfNormalizedResets,
    ShrinkAndPerturb,
    ShrinkAndPerturbByInitializer,
    UPGD,
    UnitUPGD,
)


def _numbers(seed, draws=1):
    """Set of what is drawn from a seed, or a generator, one draw a number."""
    return {
        float(keras.random.uniform((), seed=seed, dtype="float32"))
        for _ in range(draws)
    }


def _drawn(optimizer, draws=300):
    return _numbers(optimizer._seed_generator, draws)


def _assert_disjoint(*sets):
    for one, other in itertools.combinations(sets, 2):
        assert one and other
        # Of hundreds of floats, one may be there twice by chance.
        assert len(one & other) <= 1


def test_derived_seed():
    seeds = [
        derived_seed(seed, *use)
        for seed in (0, 1, -1, 2**31, 2**40)
        for use in [(), ("a",), ("b",), ("a", "b"), ("ab",), ("a", 0)]
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(type(seed) is int and 0 <= seed < 2**31 for seed in seeds)
    assert derived_seed(np.int64(3), np.int32(2)) == derived_seed(3, 2)
    # On all machines, in all versions.
    assert derived_seed(0, "initial weights") == 429504107
    assert derived_seed(None, "a") is None
    # The largest is one for every backend.
    assert _numbers(keras.random.SeedGenerator(2**31 - 1))


@pytest.mark.parametrize("seed", [1.0, "1", True, [1]])
def test_seed_is_not_an_integer(seed):
    message = "`seed` must be an integer .* or `None`. Received: seed="
    with pytest.raises(ValueError, match=message):
        derived_seed(seed, "a")
    message = "`seed` must be `None`, or an integer.*Received: seed="
    with pytest.raises(ValueError, match=message):
        ContinualBackprop(keras.optimizers.SGD(), seed=seed)


@pytest.mark.parametrize("kind", _SEEDED)
def test_seeds_in_a_row(kind):
    optimizers = [kind(keras.optimizers.SGD(), seed=i) for i in (3, 4, 5, 3)]
    *drawn, again = map(_drawn, optimizers)
    _assert_disjoint(*drawn)
    assert again == drawn[0]


def test_nested_wrappers_of_one_seed():
    optimizer = keras.optimizers.SGD()
    optimizers = []
    for kind in (
        ShrinkAndPerturb,
        L2,
        ShrinkAndPerturbByInitializer,
        ShrinkAndPerturb,
        keras.optimizers.LossScaleOptimizer,
        ShrinkAndPerturb,
        ContinualBackprop,
    ):
        seed = {"seed": 7} if kind in _SEEDED else {}
        optimizer = kind(optimizer, **seed)
        if seed:
            optimizers.append(optimizer)
            assert optimizer.get_config()["seed"] == 7
    drawn = list(map(_drawn, optimizers))
    _assert_disjoint(*drawn)
    # What is inside does not matter if it has another seed.
    inside = ShrinkAndPerturb(keras.optimizers.SGD(), seed=8)
    assert _drawn(ShrinkAndPerturb(inside, seed=7)) == drawn[0]


def test_random_seeds():
    one, other = (ReDo(keras.optimizers.SGD()) for _ in range(2))
    assert one.get_config()["seed"] is None
    _assert_disjoint(_drawn(one), _drawn(other))


def test_what_a_user_draws_from_the_same_seed():
    seed = 11
    dropout = keras.layers.Dropout(0.5, seed=seed)
    users = _numbers(seed) | _numbers(dropout.seed_generator, 300)
    users |= _numbers(keras.random.SeedGenerator(seed + 1), 300)
    for kind in _SEEDED:
        _assert_disjoint(users, _drawn(kind(keras.optimizers.SGD(), seed=seed)))


class _Noise(OptimizerWrapper):
    """A user's own wrapper."""

    def __init__(self, inner_optimizer, seed=None):
        super().__init__(inner_optimizer)
        self._seed_generator = self.add_seed_generator(seed)
        self.other_generator = self.add_seed_generator(seed)


def test_wrapper_of_a_user():
    inside = _Noise(keras.optimizers.SGD(), seed=1)
    optimizer = _Noise(inside, seed=1)
    model = make_model()
    optimizer.build(model.trainable_variables)
    generators = [
        getattr(each, name)
        for each in (inside, optimizer)
        for name in ("_seed_generator", "other_generator")
    ]
    ids = [id(variable) for variable in optimizer.variables]
    for generator in generators:
        assert ids.count(id(generator.state)) == 1
    _assert_disjoint(*[_numbers(each, 300) for each in generators])


def test_dropout_of_a_trainer():
    # A part of its own beside it has numbers of its own.
    other = parts.Part(
        "other",
        "another dropout",
        after_activation=lambda settings, seed: keras.layers.Dropout(
            0.5, seed=seed
        ),
    )
    found = [part for part in parts.PARTS if part.name == "dropout"]
    method = experiments.Method(
        (*found, other), {"activation": "relu", "dropout_rate": 0.5}
    )
    seeds = []
    for seed in (1, 2):
        initializer = keras.initializers.HeUniform(seed)
        _, *dropouts = method.hidden(
            "Dense", "hidden", units=3, kernel_initializer=initializer
        )
        seeds += [layer.seed_generator for layer in dropouts]
    assert len(seeds) == 4
    drawn = [_numbers(seed, 300) for seed in seeds]
    _assert_disjoint(_numbers(1) | _numbers(2), *drawn)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("slowly_changing_regression", lambda flags: (flags,)),
        ("online_permuted_mnist", lambda flags: (flags, 784)),
        ("continual_imagenet", lambda flags: ((32, 32, 3),)),
    ],
)
def test_initial_weights_of_a_trainer(name, arguments):
    # Streams draw from `[seed, task]`: to NumPy, `[seed, 0]` is `seed`.
    trainer = load(name)
    flags = parse(trainer)
    [method] = experiments.choose_methods(flags, {}, ["bp"])
    for seed in (0, 5):
        model = trainer.build_model(*arguments(flags), method, seed)
        seeds = {
            layer.kernel_initializer.seed
            for layer in model.layers
            if hasattr(layer, "kernel")
        }
        assert len(seeds) > 1
        drawn = np.random.default_rng([seed, 0]).integers(2**31, size=99)
        assert not seeds & set(drawn.tolist())


def test_target_of_the_regression_and_its_first_task():
    for seed in range(3):
        stream = SlowlyChangingRegression(seed=seed)
        numbers = np.random.default_rng([seed, 0])
        weights = numbers.choice([-1.0, 1.0], stream._weights.shape)
        assert 0.4 < np.mean(weights == stream._weights) < 0.6
