"""A program with the constants of another one computes what that one does."""

from functools import partial

import keras
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("Of JAX's programs.", allow_module_level=True)

import jax
import jax.numpy as jnp

from keras_plasticity.training.jax_constants import OtherProgramError
from keras_plasticity.training.jax_constants import differing_constants
from keras_plasticity.training.jax_constants import evaluate

_X = np.array([0.3, -0.2, 0.5], "float32")


@jax.custom_vjp
def _scaled(x, scale):
    return x * scale


def _scaled_forward(x, scale):
    return _scaled(x, scale), scale


def _scaled_backward(scale, gradient):
    return gradient * scale, None


_scaled.defvjp(_scaled_forward, _scaled_backward)


def _inner_function(p, x):
    return jax.jit(lambda x: jnp.clip(x, -p, p) ** (2.0 + p))(x)


def _loop(p, x):
    def is_next(state):
        return state[0] < 3 * p

    return jax.lax.while_loop(is_next, lambda s: (s[0] + 1, s[1] * p), (0, x))


def _branch(p, x):
    return jax.lax.cond(x[0] > 0.2, lambda x: x * p, lambda x: x - p, x)


def _branches(p, x):
    return jax.lax.switch(
        jnp.int32(10 * x[0]), [lambda x: x, lambda x: x + p, jnp.sin], x
    )


def _scan(p, x):
    def step(carry, each):
        return carry * p + each, (carry, each - p)

    return jax.lax.scan(step, x, jnp.arange(4.0), reverse=True)


def _derivatives(p, x):
    def loss(x):
        x = jax.checkpoint(lambda x: jnp.sin(p * x))(x)
        return jnp.sum(jax.nn.leaky_relu(_scaled(x, p), p))

    return jax.value_and_grad(loss)(x)


def _without_gradient(p, x):
    function = jax.custom_jvp(lambda x: x * p)
    function.defjvps(lambda tangent, result, x: tangent * p)
    return function(x), _scaled(x, p)


def _loop_in_branch_in_scan(p, x):
    def step(carry, each):
        return jax.lax.cond(
            each > 1.0, lambda x: _loop(p, x)[1], lambda x: x, carry
        ), each

    return jax.lax.scan(step, x, jnp.arange(4.0))


_FUNCTIONS = {
    "operands": lambda p, x: (x * p, x + (1 - p), jnp.where(x > p, 0.0, p)),
    "array": lambda p, x: x * np.array([p, 1.0, 2 * p], "float32"),
    "result": lambda p, x: (x, p),
    "integer": lambda p, x: jnp.arange(6) % int(10 * p),
    "random numbers": lambda p, x: (
        x * jax.random.bernoulli(jax.random.key(int(10 * p)), p, (3,))
    ),
    "function": _inner_function,
    "loop": _loop,
    "branch": _branch,
    "branches": _branches,
    "scan": _scan,
    "derivatives": _derivatives,
    "functions with derivatives": _without_gradient,
    "nested": _loop_in_branch_in_scan,
}


def _program(function, *arguments):
    return jax.make_jaxpr(function)(*arguments)


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_each_has_its_own_constants(name):
    values = (1.3, 0.7, 1.6)
    functions = [partial(_FUNCTIONS[name], value) for value in values]
    first, *others = [_program(function, _X) for function in functions]
    found = [differing_constants(first, other) for other in others]
    places = list(found[0])
    assert places and list(found[1]) == places
    constants = [
        np.stack([of_other[place][1] for of_other in found]) for place in places
    ]

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    def together(x, constants):
        return evaluate(first, [x], dict(zip(places, constants)))

    results = together(_X, constants)
    for number, function in enumerate(functions[1:]):
        expected = jax.tree.leaves(jax.jit(function)(_X))
        assert len(expected) == len(results)
        for result, values in zip(results, expected):
            np.testing.assert_allclose(result[number], values, rtol=1e-6)


def test_the_same_program_has_no_constants_of_its_own():
    first, other = (_program(partial(_derivatives, 0.5), _X) for _ in range(2))
    assert differing_constants(first, other) == {}
    # Not a number is equal to itself, and 0 is not -0.
    first, other = (_program(lambda x: x * float("nan"), _X) for _ in range(2))
    assert differing_constants(first, other) == {}
    first, other = (
        _program(partial(jnp.multiply, zero), _X) for zero in (0.0, -0.0)
    )
    assert len(differing_constants(first, other)) == 1


def _with_rule(p, x):
    function = jax.custom_batching.custom_vmap(lambda x: x * p)
    function.def_vmap(lambda size, batched, x: (x * p, True))
    return function(x)


_KEYS = [jax.random.key(seed) for seed in range(2)]


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (lambda x: x + 1.0, lambda x: x - 1.0),
        (lambda x: x + 1.0, lambda x: x + 1.0 + 1.0),
        (lambda x: x**2, lambda x: x**3),
        (lambda x: x * 2.0, lambda x: x * np.array([2.0], "float32")),
        (lambda x: x.sum(), lambda x: x.sum(keepdims=True)),
        (lambda x: (x + 1.0) - x, lambda x: x - (x + 1.0)),
        (lambda x: (x, x + 1.0), lambda x: (x + 1.0, x)),
        (lambda x: (x, 1.0), lambda x: (x, x)),
        (lambda x: (x, x), lambda x: x),
        (lambda x: jnp.tile(x, 2), lambda x: jnp.tile(x, 3)),
        (
            partial(_scan, 0.5),
            lambda x: jax.lax.scan(
                lambda c, e: (c * 0.5 + e, (c, e - 0.5)), x, jnp.arange(4.0)
            ),
        ),
        (jax.jit(lambda x: x + 1.0), jax.jit(lambda x: x - 1.0)),
        (partial(_with_rule, 0.5), partial(_with_rule, 0.7)),
        (
            lambda x: x * jax.random.uniform(_KEYS[0]),
            lambda x: x * jax.random.uniform(_KEYS[1]),
        ),
    ],
)
def test_another_program(first, other):
    with pytest.raises(OtherProgramError):
        differing_constants(_program(first, _X), _program(other, _X))


def test_other_arguments():
    program = _program(lambda x: x + 1.0, _X)
    with pytest.raises(OtherProgramError):
        differing_constants(program, _program(lambda x: x + 1.0, _X[:2]))
    with pytest.raises(OtherProgramError):
        differing_constants(program, _program(lambda x, y: x + 1.0, _X, _X))
