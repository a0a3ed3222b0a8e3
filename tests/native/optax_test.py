"""The front door for Optax: recorded runs, and what it says and refuses."""

import keras
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("for JAX", allow_module_level=True)

import jax
import jax.numpy as jnp
import optax

from keras_plasticity.native.optax import continual_backprop
from tests.data import check
from tests.native import traces


def _constant(value):
    return lambda key, shape, dtype: jnp.full(shape, value, dtype)


def _pairs(layers):
    return [(str(i), str(i + 1)) for i in range(layers - 1)]


def run_trace(trace):
    """An implementation for `tests/data/check.py`."""
    config = trace["config"]
    count = traces.num_layers(trace)
    params = {
        str(i): {
            name: jnp.asarray(trace[f"init_{name}_{i}"])
            for name in ("kernel", "bias")
        }
        for i in range(count)
    }
    optimizer = continual_backprop(
        optax.sgd(config["learning_rate"]),
        _pairs(count),
        initializer=_constant(config["new_incoming_weight"]),
        **traces.settings(trace),
    )
    state = optimizer.init(params)

    def loss_fn(params, x, y):
        outputs, hidden = _forward(config, params, x)
        if config["loss"] == "mse":
            return jnp.mean((outputs - y) ** 2), hidden
        y = y.astype("int32").reshape(-1)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, y)
        return jnp.mean(losses), hidden

    @jax.jit
    def step(params, state, x, y):
        (loss, hidden), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            params, x, y
        )
        updates, state = optimizer.update(
            gradients, state, params, activations=hidden
        )
        return optax.apply_updates(params, updates), state, loss

    recorder, losses = traces.Recorder(), []
    for x, y in zip(trace["x"], trace["y"]):
        params, state, loss = step(params, state, x, y)
        losses.append(float(loss))
        recorder.note(
            [
                (state.statistics[layer].age, state.statistics[layer].utility)
                for layer, _ in _pairs(count)
            ]
        )
    replaced = [int(state.num_replaced[layer]) for layer, _ in _pairs(count)]
    assert replaced == config["replacements_per_layer"]
    results = {"losses": losses, **recorder.results()}
    for i in range(count):
        for name in ("kernel", "bias"):
            results[f"final_{name}_{i}"] = params[str(i)][name]
    return results


def _forward(config, params, x):
    """The outputs, and the units of each hidden layer as they are read."""
    hidden = {}
    for i in range(len(params)):
        kernel, bias = params[str(i)]["kernel"], params[str(i)]["bias"]
        if kernel.ndim == 4:
            x = jax.lax.conv_general_dilated(
                x,
                kernel,
                (1, 1),
                "VALID",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            pool = config["pool"]
            x = jax.lax.reduce_window(
                jax.nn.relu(x + bias),
                -jnp.inf,
                jax.lax.max,
                (1, pool, pool, 1),
                (1, pool, pool, 1),
                "VALID",
            )
        else:
            x = x.reshape(len(x), -1) @ kernel + bias
            if i < len(params) - 1:
                x = jax.nn.relu(x)
        if i < len(params) - 1:
            hidden[str(i)] = x
    return x, hidden


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * name.startswith("dense"))
        for name in traces.NAMES
    ],
)
def test_recorded_run(name):
    trace = check.load(name)
    assert check.differences(trace, run_trace(trace)) == []


def _params(sizes=(4, 6, 2), seed=0):
    rng = np.random.default_rng(seed)
    return {
        "params": {
            f"Dense_{i}": {
                "kernel": jnp.asarray(rng.normal(0, 1, (a, b)), "float32"),
                "bias": jnp.asarray(rng.normal(0, 1, b), "float32"),
            }
            for i, (a, b) in enumerate(zip(sizes, sizes[1:]))
        }
    }


_CONNECTIONS = [("params/Dense_0", "params/Dense_1")]


def _loss(params, x):
    first, last = params["params"]["Dense_0"], params["params"]["Dense_1"]
    hidden = jnp.tanh(x @ first["kernel"] + first["bias"])
    outputs = hidden @ last["kernel"] + last["bias"]
    return jnp.mean(outputs**2), {"params/Dense_0": hidden}


def _train(optimizer, params, steps, seed=0, state=None):
    state = optimizer.init(params) if state is None else state
    rng = np.random.default_rng(seed)

    @jax.jit
    def step(params, state, x):
        gradients, hidden = jax.grad(_loss, has_aux=True)(params, x)
        updates, state = optimizer.update(
            gradients, state, params, activations=hidden
        )
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        x = jnp.asarray(rng.normal(0, 1, (8, 4)), "float32")
        params, state = step(params, state, x)
    return params, state


@pytest.mark.parametrize(
    ("inner", "names", "initial"),
    [
        (optax.adam(0.01), ("mu", "nu"), 0.0),
        (optax.sgd(0.01, momentum=0.9), ("trace",), 0.0),
        (optax.adagrad(0.01, 2.0), ("sum_of_squares",), 2.0),
        (
            optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01)),
            ("mu", "nu"),
            0.0,
        ),
    ],
)
def test_a_new_unit_begins_anew(inner, names, initial):
    optimizer = continual_backprop(
        inner,
        _CONNECTIONS,
        replacement_rate=1.0,
        maturity_threshold=10,
        initializer=_constant(0.25),
    )
    before, state = _train(optimizer, _params(), 10)
    assert not np.any(before["params"]["Dense_0"]["kernel"] == 0.25)
    assert int(state.num_replaced["params/Dense_0"]) == 0
    params, state = _train(optimizer, _params(), 11)
    assert int(state.num_replaced["params/Dense_0"]) == 6
    first, last = params["params"]["Dense_0"], params["params"]["Dense_1"]
    np.testing.assert_allclose(first["kernel"], 0.25, rtol=1e-6)
    np.testing.assert_allclose(first["bias"], 0.0, atol=1e-7)
    np.testing.assert_array_equal(last["kernel"], 0.0)
    assert np.all(last["bias"] != 0)
    found = 0
    leaves, _ = jax.tree_util.tree_flatten_with_path(state.inner)
    for keys, leaf in leaves:
        path = jax.tree_util.keystr(keys)
        if any(f".{name}" in path for name in names):
            found += 1
            is_last_bias = "Dense_1" in path and "bias" in path
            assert np.all(leaf == initial) != is_last_bias, path
    assert found == 4 * len(names)


def test_only_the_least_useful_unit():
    params = _params()
    kernel = params["params"]["Dense_1"]["kernel"]
    params["params"]["Dense_1"]["kernel"] = kernel.at[3].multiply(1e-4)
    optimizer = continual_backprop(
        optax.sgd(1e-3),
        _CONNECTIONS,
        replacement_rate=0.2,
        maturity_threshold=4,
        seed=1,
    )
    after, state = _train(optimizer, params, 5)
    assert int(state.num_replaced["params/Dense_0"]) == 1
    moved = jax.tree.map(lambda a, b: abs(a - b) > 0.01, after, params)
    first, last = moved["params"]["Dense_0"], moved["params"]["Dense_1"]
    assert first["kernel"].any(axis=0).tolist() == [i == 3 for i in range(6)]
    assert (after["params"]["Dense_1"]["kernel"][3] == 0).all()
    assert not last["bias"].any()
    # Another seed draws other weights.
    other = continual_backprop(
        optax.sgd(1e-3),
        _CONNECTIONS,
        replacement_rate=0.2,
        maturity_threshold=4,
        seed=2,
    )
    drawn = _train(other, params, 5)[0]["params"]["Dense_0"]["kernel"][:, 3]
    assert np.all(drawn != after["params"]["Dense_0"]["kernel"][:, 3])


def test_resumes_from_its_state():
    optimizer = continual_backprop(
        optax.adam(0.01), _CONNECTIONS, 0.03, maturity_threshold=3
    )
    params, state = _train(optimizer, _params(), 50)
    copies = jax.tree.map(jnp.copy, (params, state))
    one = _train(optimizer, params, 50, seed=1, state=state)
    two = _train(optimizer, copies[0], 50, seed=1, state=copies[1])
    assert int(one[1].num_replaced["params/Dense_0"]) > 10
    for a, b in zip(jax.tree.leaves(one[0]), jax.tree.leaves(two[0])):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inner": "adam"}, "an `optax.GradientTransformation`"),
        ({"connections": []}, "one or more pairs of paths"),
        ({"connections": ["a/b"]}, "one or more pairs of paths"),
        ({"replacement_rate": 2.0}, "`replacement_rate` must be"),
        ({"utility": "random"}, "a utility that is computed, not 'random'"),
        ({"initializer": 0.1}, "`initializer` must be a function"),
        ({"seed": -1}, "`seed` must be"),
    ],
)
def test_bad_arguments(arguments, message):
    good = {"inner": optax.sgd(0.1), "connections": _CONNECTIONS}
    with pytest.raises((TypeError, ValueError), match=message):
        continual_backprop(**{**good, **arguments})


def test_what_does_not_fit_the_parameters():
    with pytest.raises(ValueError, match="layers with a 'kernel'.*Dense_7"):
        continual_backprop(
            optax.sgd(0.1), [("params/Dense_0", "params/Dense_7")]
        ).init(_params())
    with pytest.raises(ValueError, match="must read all units.*6 units"):
        continual_backprop(
            optax.sgd(0.1), [("params/Dense_0", "params/Dense_0")]
        ).init(_params())


def test_what_update_needs():
    optimizer = continual_backprop(optax.sgd(0.1), _CONNECTIONS)
    params = _params()
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="with `params`"):
        optimizer.update(params, state, activations={})
    with pytest.raises(ValueError, match="activations of params/Dense_0"):
        optimizer.update(params, state, params, activations={})
