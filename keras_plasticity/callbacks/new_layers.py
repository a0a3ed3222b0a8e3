"""Layers made again, with weights from their own initializers."""

import keras
from keras import ops

from keras_plasticity.graph import activations
from keras_plasticity.seeds import derived_seed
from keras_plasticity.weights import is_moving_statistic
from keras_plasticity.weights import is_statistic
from keras_plasticity.weights import weights_of


def layers_with_weights(model):
    """The layers of a model that have weights, in its order.

    Those of a model within it stand in its place.
    """
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += layers_with_weights(layer)
        elif weights_of(layer):
            found.append(layer)
    return found


def last_layers(model, number):
    """The last layers of a model.

    Args:
        model: Built `keras.Model`.
        number: Integer, how many layers with a kernel.

    Returns:
        List of layers: these, and what has weights and follows the first one.

    Raises:
        ValueError: If there are not so many.
    """
    layers = layers_with_weights(model)
    positions = [
        position
        for position, layer in enumerate(layers)
        if activations.has_kernel(layer)
    ]
    if len(positions) < number:
        raise ValueError(
            "`layers` must be at most the number of layers with a kernel, of "
            f"which the model '{model.name}' has {len(positions)}. Received: "
            f"layers={number}"
        )
    return layers[positions[-number] :]


def new_layer(layer, seed):
    """A layer like another one, with new weights.

    Args:
        layer: Built Keras layer.
        seed: Integer; `None` for a random one.

    Returns:
        Built Keras layer.

    Raises:
        ValueError: If its config does not describe the layer.
    """
    try:
        config = _reseeded(layer.get_config(), seed, [0])
        new = type(layer).from_config(config)
        build_config = layer.get_build_config()
        new.build_from_config(build_config)
        if new.weights and not new.built:
            # Keras runs a model without a `build` of its own. Its layers have
            # their weights then, but it does not count as built yet.
            shapes = build_config.get("shapes_dict", build_config)
            new.build(next(iter(shapes.values())))
    except Exception as error:  # Whatever a user's class may raise.
        raise ValueError(
            f"The layer '{layer.name}' cannot be made again from its config "
            f"({type(error).__name__}: {error}). Give `build_model`, a "
            "function that returns a new model, whose weights it gets then."
        ) from error
    return new


def _reseeded(config, seed, count):
    """A config with other seeds, each another one."""
    if isinstance(config, dict):
        result = {}
        for key, value in config.items():
            if key == "seed":
                count[0] += 1
                result[key] = derived_seed(seed, count[0])
            else:
                result[key] = _reseeded(value, seed, count)
        return result
    if isinstance(config, (list, tuple)):
        return type(config)(_reseeded(each, seed, count) for each in config)
    return config


def copy_weights(layer, new):
    """Gives a layer the weights and statistics of another one.

    Args:
        layer: Built Keras layer or model.
        new: Another one, of the same architecture.

    Returns:
        List of the trainable weights of `layer`.

    Raises:
        ValueError: If their shapes differ.
    """
    return take_weights(layer, counterparts(layer, new))


def take_weights(layer, others):
    """Gives a layer the weights and statistics that correspond to its own.

    Args:
        layer: Built Keras layer or model.
        others: Dict from the `id` of each to another variable, what
            `counterparts` returns for the layer or for its model.

    Returns:
        List of the trainable weights of `layer`.
    """
    for variable in _state(layer):
        other = others[id(variable)]
        variable.assign(ops.copy(ops.convert_to_tensor(other)))
    return weights_of(layer)


def counterparts(layer, new):
    """What corresponds to each weight, whichever of them are trained.

    Args:
        layer: Built Keras layer or model.
        new: Another one, of the same architecture.

    Returns:
        Dict from the `id` of each weight of `layer` to that of `new`.

    Raises:
        ValueError: If their shapes differ.
    """
    check_alike(layer, new)
    pairs = zip(_state(layer), _state(new), strict=True)
    return {id(variable): other for variable, other in pairs}


def check_alike(layer, new):
    """Checks that the weights of two models or layers have the same shapes."""
    expected, received = _shapes(_state(layer)), _shapes(_state(new))
    if received != expected:
        raise ValueError(
            "`build_model` must return a model of the same architecture. "
            f"Received: one with weights of the shapes {received}, expected "
            f"{expected}"
        )


def _state(layer):
    """What a layer has learned: no states of generators, no observations."""
    return [
        variable
        for variable in layer.weights
        if not is_statistic(variable) or is_moving_statistic(variable)
    ]


def _shapes(variables):
    # Tuples: a backend's own shapes print differently on each.
    return [tuple(variable.shape) for variable in variables]
