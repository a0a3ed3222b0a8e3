"""Many training steps as one kernel on a CPU, and when not."""

import keras
import numpy as np
import pytest

from keras_plasticity.optimizers import ContinualBackprop
from keras_plasticity.training import OnlineTrainer
from tests.helpers import make_model

if keras.backend.backend() != "jax":
    pytest.skip("The kernel is one of JAX.", allow_module_level=True)

import jax
import jax.numpy as jnp

from keras_plasticity.training import jax_kernel
from keras_plasticity.training import jax_loop

# XLA gives the other one to the smallest loops itself.
_ATTRIBUTE = "inlineable"


def _steps(step, length=3):
    """A loop over steps, as the engine makes it."""

    def loop(x):
        return jax.lax.scan(lambda c, _: (step(c), None), x, length=length)[0]

    return loop


def _program(function, *arguments):
    return jax.make_jaxpr(function)(*arguments)


_VECTOR = jnp.linspace(-1.0, 1.0, 8)
_MATRIX = jnp.reshape(jnp.linspace(0.0, 1.0, 64), (8, 8))


@pytest.mark.parametrize(
    ("step", "x"),
    [
        (jnp.sin, _VECTOR),
        (lambda x: _MATRIX @ x, _VECTOR),
        (lambda x: x - jnp.outer(x[0], x[1]), _MATRIX),
        # Learners side by side.
        (jax.vmap(lambda x: jnp.outer(x, x) @ x / 8.0), jnp.ones((5, 8))),
        (lambda x: jax.lax.dynamic_update_slice(x, x[:1], (2,)), _VECTOR),
        (lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x), _VECTOR),
        (lambda x: x + jax.random.normal(jax.random.key(0), (8,)), _VECTOR),
        # More multiplications, of vectors.
        (lambda x: x - jnp.outer(x[0], x[:, 0]), jnp.ones((300, 300))),
    ],
)
def test_a_kernel_computes_the_same(step, x):
    program = _program(_steps(step), x)
    assert jax_kernel.is_fast(program)
    lowered = jax.jit(jax_kernel.one_kernel(program)).lower(x)
    # The attribute of the whole, and of nothing in it.
    assert lowered.as_text().count(_ATTRIBUTE) == 1
    (result,) = lowered.compile()(x)
    np.testing.assert_allclose(result, _steps(step)(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("step", "x"),
    [
        (jnp.sort, _VECTOR),
        (lambda x: x.at[jnp.array([1, 2])].set(0.0), _VECTOR),
        (lambda x: jnp.linalg.qr(x)[0], _MATRIX),
        (lambda x: jnp.linalg.svd(x, full_matrices=False)[0], _MATRIX),
        (lambda x: jnp.fft.fft(x).real, _VECTOR),
        (lambda x: jnp.convolve(x, jnp.ones(3), mode="same"), _VECTOR),
        (lambda x: x + 1.0, jnp.ones((400, 400))),
        (lambda x: x @ x, jnp.ones((30, 30))),
        (jax.vmap(lambda x: x @ x), jnp.ones((2, 30, 30))),
        # Within a branch.
        (lambda x: jax.lax.cond(x[0] > 0, jnp.sort, jnp.sin, x), _VECTOR),
    ],
)
def test_what_is_not_fast_as_one_kernel(step, x):
    assert not jax_kernel.is_fast(_program(_steps(step), x))


class _Stream:
    def __init__(self, x, y):
        self.data = x, y

    def __len__(self):
        return 1

    def task(self, index):
        return self.data


def _data():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 4)), rng.standard_normal((40, 1))
    return _Stream(x.astype("float32"), y.astype("float32"))


def _fit(monkeypatch, num_learners, is_fast=None, batch_size=1):
    if is_fast is not None:
        monkeypatch.setattr(jax_kernel, "is_fast", lambda program: is_fast)
    programs = []
    compiled = jax_loop._compiled

    def spy(*arguments):
        programs.append(compiled(*arguments))
        return programs[-1]

    monkeypatch.setattr(jax_loop, "_compiled", spy)

    def build(learner):
        model = make_model((4, 6, 5, 1), seed=learner)
        optimizer = ContinualBackprop(
            keras.optimizers.Adam(0.01),
            replacement_rate=0.05,
            maturity_threshold=3,
            seed=learner,
        )
        model.compile(optimizer, "mse")
        return model

    trainer = OnlineTrainer(build, num_learners)
    trainer.fit(lambda learner: _data(), batch_size=batch_size, num_tasks=1)
    monkeypatch.undo()
    models = [trainer.model(i) for i in range(num_learners)]
    replaced = [sum(m.optimizer.num_replaced().values()) for m in models[:1]]
    weights = [np.concatenate([np.ravel(w) for w in models[0].get_weights()])]
    is_one = [_ATTRIBUTE in program.as_text() for program in programs]
    return replaced, weights, is_one


@pytest.mark.parametrize("num_learners", [1, 3])
def test_the_engine_trains_the_same_in_one_kernel(monkeypatch, num_learners):
    replaced, weights, is_one = _fit(monkeypatch, num_learners)
    assert is_one and all(is_one)
    assert replaced[0] > 5
    replaced_by_many, expected, is_one = _fit(monkeypatch, num_learners, False)
    assert is_one and not any(is_one)
    assert replaced == replaced_by_many
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-5)


def test_what_a_kernel_cannot_hold_after_all_is_compiled_as_ever(monkeypatch):
    # As if it could hold an operation that it cannot.
    monkeypatch.setattr(jax_kernel, "one_kernel", _unimplemented)
    _, weights, is_one = _fit(monkeypatch, 1, True)
    assert is_one and not any(is_one)
    _, expected, _ = _fit(monkeypatch, 1, False)
    np.testing.assert_array_equal(weights, expected)


def _unimplemented(program):
    def sorted_in_one_kernel(*arguments):
        first, *rest = jax.extend.core.jaxpr_as_fun(program)(*arguments)
        (zeros,) = jax_kernel_of_sort(jnp.zeros(8))
        return [first + zeros[0].astype(first.dtype), *rest]

    return sorted_in_one_kernel


jax_kernel_of_sort = jax_kernel.one_kernel(_program(jnp.sort, jnp.zeros(8)))
