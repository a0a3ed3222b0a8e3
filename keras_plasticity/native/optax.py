"""Continual backpropagation as a gradient transformation of Optax."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from keras_plasticity import functional
from keras_plasticity import validation
from keras_plasticity.native import unit_statistics
from keras_plasticity.types import Tensor

unit_statistics.check_backend("jax")


class ContinualBackpropState(NamedTuple):
    """State of `continual_backprop`.

    Attributes:
        inner: The state of the inner transformation.
        key: The key that new weights are drawn with.
        statistics: Dict from layer to its `UnitStatistics`.
        num_replaced: Dict from layer to the number of its units replaced so
            far, an int32 scalar.
    """

    inner: Any
    key: Any
    statistics: dict[str, unit_statistics.UnitStatistics]
    num_replaced: dict[str, Any]


def continual_backprop(
    inner: optax.GradientTransformation,
    connections: Sequence[tuple[str, str]],
    replacement_rate: float = 1e-4,
    maturity_threshold: int = 100,
    decay_rate: float = 0.99,
    utility: str | Callable[..., Tensor] = "contribution",
    initializer: Callable[..., Any] | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Replaces the least useful units after each update of another optimizer.

    It is what `keras_plasticity.optimizers.ContinualBackprop` is to a Keras
    model: the same formulas, for parameters as Flax has them. These are nested
    dicts, in which a layer has a `kernel` whose last axes are input and output
    features, and perhaps a `bias`. `update` takes, beside gradients and
    parameters, the activations of the hidden layers, and returns updates after
    which a replaced unit has new incoming weights, a bias of zero, and outgoing
    weights of zero. It can be compiled by `jax.jit`.

    Args:
        inner: `optax.GradientTransformation`, the optimizer.
        connections: Sequence of pairs of paths, in the order of the model: a
            layer, and the one layer that reads its units, such as
            `[("params/Dense_0", "params/Dense_1")]`. A dense layer may read
            the units of a convolution flattened.
        replacement_rate: Float in [0, 1], the fraction of mature units that
            is replaced in each update. Defaults to `1e-4`.
        maturity_threshold: Integer, the number of updates for which a new
            unit cannot be replaced. Defaults to `100`.
        decay_rate: Float in [0, 1), of the running means. Defaults to `0.99`.
        utility: How useful a unit is: see
            `keras_plasticity.optimizers.ContinualBackprop`, but `"random"`.
            Defaults to `"contribution"`.
        initializer: Function `(key, shape, dtype)` that draws a kernel, such
            as those of `jax.nn.initializers`. Defaults to `None`: Flax's own,
            `lecun_normal()`.
        seed: Integer, of new weights. Defaults to `0`.

    Returns:
        `optax.GradientTransformationExtraArgs`. Its `update` has to be called
        with `params`, and with `activations`: a dict from the path of each
        hidden layer to its units as the next layer received them.

    Example:

    ```python
    draw = jax.nn.initializers.lecun_uniform()
    params = {
        "a": {"kernel": draw(jax.random.key(0), (4, 6)), "bias": jnp.zeros(6)},
        "b": {"kernel": draw(jax.random.key(1), (6, 3)), "bias": jnp.zeros(3)},
    }

    def model(params, x):
        hidden = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"])
        return hidden @ params["b"]["kernel"] + params["b"]["bias"], hidden

    def loss_fn(params, x, y):
        outputs, hidden = model(params, x)
        return jnp.mean((outputs - y) ** 2), {"a": hidden}

    optimizer = continual_backprop(optax.adam(1e-3), [("a", "b")])
    state = optimizer.init(params)
    for x, y in batches:
        gradients, activations = jax.grad(loss_fn, has_aux=True)(params, x, y)
        updates, state = optimizer.update(
            gradients, state, params, activations=activations
        )
        params = optax.apply_updates(params, updates)
    ```

    References:

    - [Dohare et al., 2024](https://doi.org/10.1038/s41586-024-07711-7)
    """
    validation.check_type(
        "inner", inner, tuple, "an `optax.GradientTransformation`"
    )
    rule = "a list of one or more pairs of paths"
    pairs = validation.check_list("connections", connections, rule=rule)
    if not pairs or not all(
        isinstance(pair, (tuple, list))
        and len(pair) == 2
        and all(isinstance(path, str) for path in pair)
        for pair in pairs
    ):
        raise validation.error("connections", rule, connections)
    if initializer is None:
        initializer = jax.nn.initializers.lecun_normal()
    validation.check_function("initializer", initializer)
    settings = unit_statistics.Settings(
        replacement_rate, maturity_threshold, decay_rate, utility
    )
    seed = validation.check_integer("seed", seed, 0)
    inner = optax.with_extra_args_support(inner)

    def init(params):
        weights = _by_path(params)
        for pair in pairs:
            _check_pair(weights, *pair)
        units = {
            layer: weights[f"{layer}/kernel"].shape[-1] for layer, _ in pairs
        }
        return ContinualBackpropState(
            inner.init(params),
            jax.random.key(seed),
            {
                layer: unit_statistics.new_statistics(settings, size)
                for layer, size in units.items()
            },
            {layer: jnp.zeros((), "int32") for layer in units},
        )

    def update(gradients, state, params=None, *, activations, **extra):
        if params is None:
            raise ValueError(
                "`update` must be called with `params`: units are chosen by "
                "their weights. Received: params=None"
            )
        _check_activations(activations, [layer for layer, _ in pairs])
        updates, inner_state = inner.update(
            gradients, state.inner, params, **extra
        )
        new_params = optax.apply_updates(params, updates)
        weights = _by_path(new_params)
        statistics, replaced = {}, {}
        for layer, consumer in pairs:
            outgoing = weights[f"{consumer}/kernel"]
            units = state.statistics[layer].age.shape[0]
            copies = outgoing.shape[-2] // units
            statistics[layer], replaced[layer] = (
                unit_statistics.update_statistics(
                    settings,
                    state.statistics[layer],
                    jnp.reshape(activations[layer], (-1, copies, units)),
                    jnp.reshape(
                        functional.mean_magnitude(outgoing, -2), (copies, units)
                    ),
                    functional.mean_magnitude(weights[f"{layer}/kernel"], -1),
                )
            )
        key, draw_key = jax.random.split(state.key)
        new_params, inner_state = jax.lax.cond(
            jnp.any(jnp.stack([jnp.any(mask) for mask in replaced.values()])),
            lambda: _replace(
                inner,
                initializer,
                pairs,
                replaced,
                draw_key,
                new_params,
                inner_state,
            ),
            lambda: (new_params, inner_state),
        )
        return jax.tree.map(jnp.subtract, new_params, params), (
            ContinualBackpropState(
                inner_state,
                key,
                statistics,
                {
                    layer: state.num_replaced[layer]
                    + jnp.sum(mask, dtype="int32")
                    for layer, mask in replaced.items()
                },
            )
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _replace(inner, initializer, pairs, replaced, key, params, inner_state):
    """Gives units a new start: in the weights, and in the optimizer's state.

    Args:
        inner: `optax.GradientTransformation`.
        initializer: Function `(key, shape, dtype)`.
        pairs: List of pairs of paths.
        replaced: Dict from layer to a boolean tensor of shape `(units,)`.
        key: Key to draw with.
        params: Parameters after the update.
        inner_state: State of `inner` after the update.

    Returns:
        Tuple of the new parameters and the new state.
    """
    weights = _by_path(params)
    masks = {path: jnp.zeros((), bool) for path in weights}

    def assign(path, mask, value):
        weights[path] = jnp.where(mask, value, weights[path])
        masks[path] = masks[path] | mask

    for number, (layer, consumer) in enumerate(pairs):
        mask = replaced[layer]
        kernel = weights[f"{layer}/kernel"]
        draw = initializer(
            jax.random.fold_in(key, number), kernel.shape, kernel.dtype
        )
        # Where a replaced unit reads another one, it is the new weight that
        # counts: the layer that reads comes later.
        assign(f"{layer}/kernel", mask, draw)
        if f"{layer}/bias" in weights:
            assign(f"{layer}/bias", mask, 0.0)
        copies = weights[f"{consumer}/kernel"].shape[-2] // len(mask)
        assign(f"{consumer}/kernel", jnp.tile(mask, copies)[:, None], 0.0)
    new_params = _with_values(params, weights)
    # Of all that has the shape of a parameter, such as momenta.
    state_masks = optax.tree_map_params(
        inner,
        lambda leaf, mask: jnp.broadcast_to(mask, leaf.shape),
        inner_state,
        _with_values(params, masks),
        transform_non_params=lambda leaf: jnp.zeros((), bool),
    )
    new_state = jax.tree.map(
        lambda mask, leaf, first: jnp.where(mask, first, leaf),
        state_masks,
        inner_state,
        inner.init(new_params),
    )
    return new_params, new_state


def _path(keys):
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def _by_path(params):
    """Dict from path to parameter."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {_path(keys): leaf for keys, leaf in leaves}


def _with_values(params, values):
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: values[_path(keys)], params
    )


def _check_pair(weights, layer, consumer):
    for path in (layer, consumer):
        if f"{path}/kernel" not in weights:
            raise ValueError(
                f"`connections` must name layers with a 'kernel'. Received: "
                f"{path!r}, and parameters {', '.join(weights)}"
            )
    units = weights[f"{layer}/kernel"].shape[-1]
    kernel = weights[f"{consumer}/kernel"]
    features = kernel.shape[-2]
    if features % units or (features != units and kernel.ndim > 2):
        raise ValueError(
            "The consumer of a connection must read all units of its layer. "
            f"Received: {layer!r} with {units} units, and {consumer!r} with "
            f"{features} input features"
        )


def _check_activations(activations, layers):
    validation.check_mapping("activations", activations)
    if set(activations) != set(layers):
        rule = f"a dict with the activations of {', '.join(layers)}"
        raise validation.error("activations", rule, list(activations))
