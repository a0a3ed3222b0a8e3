"""Who reads whom: the consumers of a plastic layer, from the model's graph."""

import keras

from keras_plasticity import keras_compat
from keras_plasticity.layers.plastic_layer import PlasticLayer

# Layers that keep every unit apart and in its place, so that the consumer's
# input feature i is still the producer's unit i.
_UNIT_WISE_LAYERS = (
    keras.layers.Activation,
    keras.layers.ActivityRegularization,
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.ELU,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.Identity,
    keras.layers.LeakyReLU,
    keras.layers.ReLU,
)

# Activations whose output for one unit depends on the others.
_MIXING_ACTIVATIONS = (
    keras.activations.glu,
    keras.activations.log_softmax,
    keras.activations.softmax,
    keras.activations.sparsemax,
)


def find_consumers(layer: PlasticLayer) -> list[PlasticLayer]:
    """Finds the plastic layers that read the units of a plastic layer.

    Args:
        layer: A built plastic layer of a Functional or Sequential model.

    Returns:
        List of plastic layers in the order of the graph; empty for a layer
        whose units are outputs of the model. A hidden layer whose tensor is
        also given to `keras.Model(inputs, outputs)` as one of the outputs
        leaves no trace of that in the graph: it counts as hidden.

    Raises:
        ValueError: If the layer is not part of a graph, is called twice in
            one model, or if its units reach a layer that is not plastic, or
            that does not keep units apart.
    """
    _check_called_once(layer)
    consumers = []
    is_output = False
    visited = set()
    operations = [layer]
    while operations:
        operation = operations.pop()
        nodes = keras_compat.uses(operation)
        is_output = is_output or not nodes
        for node in nodes:
            reader = node.operation
            if id(reader) in visited:
                continue
            visited.add(id(reader))
            if isinstance(reader, PlasticLayer):
                _check_called_once(reader)
                consumers.append(reader)
            elif type(reader) in _UNIT_WISE_LAYERS:
                _check_keeps_units_apart(layer, reader)
                operations.append(reader)
            else:
                raise ValueError(_unknown_reader_message(layer, reader))
    if consumers:
        _check_keeps_units_apart(layer, layer)
    if consumers and is_output:
        raise ValueError(
            f"The units of layer '{layer.name}' are both outputs of the model "
            f"and inputs of layer '{consumers[0].name}', so that replacing one "
            "would change the output. Use `keras.layers` instead of "
            f"`keras_plasticity.layers` for '{layer.name}', or leave its "
            "output out of the model."
        )
    return consumers


def _check_keeps_units_apart(layer, reader):
    activation = getattr(reader, "activation", None)
    if activation in _MIXING_ACTIVATIONS:
        raise ValueError(
            f"The activation `{activation.__name__}` of layer '{reader.name}' "
            f"mixes the units of plastic layer '{layer.name}', so that none "
            "of them can be replaced alone. Use an elementwise activation, or "
            f"a plain Keras layer instead of '{layer.name}'."
        )


def _unknown_reader_message(layer, reader):
    kind = type(reader).__name__
    message = (
        f"The units of plastic layer '{layer.name}' are read by "
        f"'{reader.name}' (`{kind}`), which "
    )
    if isinstance(reader, keras.layers.Dense):
        return message + (
            "is not plastic: the contribution of a unit is measured by the "
            "layer that reads it. Use `keras_plasticity.layers.Dense` for "
            f"'{reader.name}' too (as the last layer, it only observes), or "
            f"`keras.layers.Dense` for '{layer.name}'."
        )
    known = ", ".join(sorted(kind.__name__ for kind in _UNIT_WISE_LAYERS))
    return message + (
        "is not known to keep units apart. Between a plastic layer and its "
        f"consumer there may be: {known}. Otherwise use a plain Keras layer "
        f"instead of plastic layer '{layer.name}'."
    )


def _check_called_once(layer):
    calls = keras_compat.calls(layer)
    if not calls:
        raise ValueError(
            f"Plastic layer '{layer.name}' is not part of the graph of a "
            "Functional or Sequential model, so the layers that read its "
            "units cannot be found. Build the model with `keras.Sequential` "
            "or `keras.Model(inputs, outputs)`."
        )
    if len(calls) == 1:
        return
    # A Sequential model rebuilds its graph whenever a layer is added, and
    # leaves the earlier ones behind. There, a layer stands at the end of the
    # same chain of layers as before, and no later layer joins the two calls.
    first = calls[0]
    connected = _reach(first, _neighbours)
    origin = _origin(first)
    below = set()
    for call in calls:
        reached = _reach(call, _readers)
        is_elsewhere = id(call) in connected and _origin(call) != origin
        if below & reached or is_elsewhere:
            raise ValueError(
                f"Plastic layer '{layer.name}' is called more than once in "
                "the model. Which of its calls a statistic stems from could "
                "not be told. Use one layer for each call, or "
                f"`keras.layers.{type(layer).__name__}`."
            )
        below |= reached


def _readers(node):
    return [
        reader
        for reader in keras_compat.uses(node.operation)
        if node in keras_compat.parents(reader)
    ]


def _neighbours(node):
    return keras_compat.parents(node) + _readers(node)


def _reach(node, step):
    """Ids of all nodes that `step` leads to from a node, itself included."""
    reached = {id(node)}
    pending = [node]
    while pending:
        for neighbour in step(pending.pop()):
            if id(neighbour) not in reached:
                reached.add(id(neighbour))
                pending.append(neighbour)
    return reached


def _origin(node):
    """Ids of the operations that lead to a node, each with its place.

    Two calls of one layer have the same origin if the same operations, called
    in the same order, made their inputs.
    """
    order = {}
    result = []

    def visit(node):
        if id(node) in order:
            return order[id(node)]
        parents = tuple(visit(parent) for parent in keras_compat.parents(node))
        order[id(node)] = len(order)
        result.append((id(node.operation), parents))
        return order[id(node)]

    visit(node)
    return result
