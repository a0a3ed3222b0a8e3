import warnings

import keras

from keras_plasticity import graph
from keras_plasticity import keras_compat
from keras_plasticity import layers
from keras_plasticity import validation
from keras_plasticity.graph.units import name_of
from keras_plasticity.layers import in_place
from keras_plasticity.layers.attention import PlasticAttention
from keras_plasticity.layers.einsum_dense import find_labels
from keras_plasticity.units.unit_statistics import UnitStatistics

_PLASTIC_CLASSES = {
    getattr(keras.layers, name): getattr(layers, name)
    for name in layers.__all__
    if hasattr(keras.layers, name)
    # Not a batch normalization, which has no units of its own.
    and hasattr(getattr(layers, name), "replaceable")
}
# Layers whose sublayers become plastic, all or none.
_ATTENTION = {
    plain: plastic
    for plain, plastic in _PLASTIC_CLASSES.items()
    if plain in keras_compat.ATTENTION
}

# Layers of Keras that call those inside them as anybody would.
_LOOKED_INTO = (
    keras.Model,
    keras.layers.Bidirectional,
    keras.layers.InputLayer,
    keras.layers.TimeDistributed,
    *keras_compat.ATTENTION,
)


def make_plastic(model: keras.Model, inputs=None) -> keras.Model:
    """Makes the weight layers of an existing model plastic, in place.

    A layer with a counterpart in `keras_plasticity.layers` becomes plastic if
    its units can be replaced, or if it reads units that can. Weights and
    outputs do not change, bit for bit. All other layers stay as they are:
    `keras_plasticity.inspect(model)` shows which, and why.

    Sublayers are found at any depth, except inside layers of `keras.layers`
    that call them in a special way (`RNN` of cells).

    A saved Functional or Sequential model is plastic when it is loaded. A
    subclassed model is loaded as its constructor builds it: call
    `make_plastic` on it, then `load_weights`.

    Args:
        model: A built `keras.Model`: Sequential, Functional or subclassed.
            It has to be compiled again afterwards.
        inputs: `keras.KerasTensor`, or a structure of them, for a subclassed
            model whose inputs are not float tensors. By default they have the
            shapes that it was built with.

    Returns:
        The same model.

    Raises:
        ValueError: If the model is not built, cannot be traced, or has no
            layer whose units can be replaced.

    Example:

    ```python
    model = keras.applications.ResNet50(weights=None, classes=10)
    keras_plasticity.models.make_plastic(model)
    model.compile(
        optimizer=keras_plasticity.optimizers.ContinualBackprop(
            keras.optimizers.SGD(0.01, momentum=0.9), replacement_rate=1e-5
        ),
        loss="sparse_categorical_crossentropy",
    )
    ```

    References:

    - [Dohare et al., 2023](https://arxiv.org/abs/2306.13812)
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`make_plastic` takes a `keras.Model`. "
            f"{validation.received('model', model)}"
        )
    if not model.built:
        raise ValueError(
            f"Model '{model.name}' is not built. Call it on data, or `build()` "
            f"it, first. {validation.received('model', model)}"
        )
    plain = {}
    attentions = []
    for layer in _find_layers(model, attentions):
        plain[id(layer)] = type(layer)
        keras_compat.change_class(layer, _PLASTIC_CLASSES[type(layer)])
    candidates = [
        layer
        for layer in keras_compat.sublayers(model)
        if isinstance(layer, layers.PlasticLayer)
    ]
    wanted = {}
    try:
        wanted = _choose(model, inputs, candidates)
        for attention in attentions:
            _add_projections(attention, wanted)
    finally:
        for layer in candidates:
            if id(layer) in plain and id(layer) not in wanted:
                keras_compat.change_class(layer, plain[id(layer)])
    for layer in candidates:
        if id(layer) in plain and id(layer) in wanted:
            in_place.complete(layer, replaceable=wanted[id(layer)])
    keras_compat.track_new_variables(model)
    # Its optimizer does not know the new variables.
    model.compiled = False
    return model


def make_alike(model: keras.Model, like: keras.Model):
    """Makes a model like another one in what its config may not say.

    Which layers are plastic, whose units are replaceable, and what is trained:
    all of it may have been changed in the built model, and a config says
    nothing of layers that a layer makes for itself.

    Args:
        model: A built `keras.Model`, which no optimizer trains yet.
        like: A `keras.Model` with weights of the same shapes.

    Raises:
        ValueError: If it is of another architecture, or if it has a plastic
            layer in the place of a plain one.
    """
    pairs = _pair_layers(model, like)
    for layer, other in pairs:
        _check_kinds(layer, other, like)
    _make_layers_plastic(pairs)
    keras_compat.track_new_variables(model)
    for layer, other in pairs:
        # Those of an attention layer come after it, and have the last word.
        if _is_plastic(other):
            layer.replaceable = other.replaceable
    _check_variables(model, like)
    _freeze_alike(model, like, pairs)


def _pair_layers(model, like):
    """The layers of two models that have weights, in pairs.

    A layer that is shared may come several times. Those of statistics are
    left out, which plain layers do not have.
    """
    found = [
        [
            layer
            for layer in keras_compat.in_order(each)
            if layer.weights and not isinstance(layer, UnitStatistics)
        ]
        for each in (model, like)
    ]
    if len(found[0]) != len(found[1]):
        raise ValueError(
            "`build_model` must return a model of the same architecture. "
            f"Received: '{model.name}', with {len(found[0])} layers that have "
            "weights, those that contain other layers included, expected "
            f"{len(found[1])} as in '{like.name}'"
        )
    return list(zip(*found, strict=True))


def _is_plastic(layer):
    return isinstance(layer, (layers.PlasticLayer, PlasticAttention))


def _becomes_plastic(layer, other):
    return _PLASTIC_CLASSES.get(type(layer)) is type(other)


def _check_kinds(layer, other, like):
    """Checks that a layer is plastic, or can become so, just if another is."""
    if _becomes_plastic(layer, other):
        return
    if _is_plastic(layer) != _is_plastic(other):
        received, expected = (
            f"a {'plastic' if _is_plastic(each) else 'plain'} "
            f"`{type(each).__name__}`"
            for each in (layer, other)
        )
        raise ValueError(
            "`build_model` must return a model with plastic layers only where "
            f"'{like.name}' has them. Layers of `keras.layers` become plastic "
            "where they have to. Received: layer "
            f"'{layer.name}', {received}, expected {expected} like "
            f"'{other.name}'"
        )


def _make_layers_plastic(pairs):
    """Makes those layers plastic that are so in the other model."""
    # Each once, however many share it.
    new = {
        id(layer): (layer, other)
        for layer, other in pairs
        if _becomes_plastic(layer, other)
    }
    for layer, other in new.values():
        keras_compat.change_class(layer, type(other))
    for layer, other in new.values():
        # Attention layers have no statistics of their own.
        if isinstance(layer, layers.PlasticLayer):
            in_place.complete(layer, other.replaceable)


def _check_variables(model, like):
    """Checks the shapes of all variables, those that are no weights, too."""
    received, expected = (
        [tuple(variable.shape) for variable in each.variables]
        for each in (model, like)
    )
    if received != expected:
        raise ValueError(
            "`build_model` must return a model of the same architecture. "
            f"Received: '{model.name}' with variables of the shapes "
            f"{received}, those of statistics and random generators included, "
            f"expected {expected} as in '{like.name}'"
        )


def _freeze_alike(model, like, pairs):
    """Sets what is trained in a model as it is in another one."""
    # All is looked up first: the two may share a frozen layer.
    of_layers = [(layer, other.trainable) for layer, other in pairs]
    of_variables = [
        (variable, other.trainable)
        for variable, other in zip(model.variables, like.variables, strict=True)
    ]
    # A layer hands it on to all in it, which come after it.
    for layer, trainable in of_layers:
        layer.trainable = trainable
    # Some weights are frozen by themselves, such as a kernel by LoRA.
    for variable, trainable in of_variables:
        if variable.trainable != trainable:
            variable.trainable = trainable


def _find_layers(model, attentions):
    """The layers that could become plastic, regardless of the graph.

    Args:
        model: The `keras.Model`.
        attentions: List, to which the attention layers are added whose
            projections are among those layers.
    """
    found = {}
    stack = [model]
    seen = set()
    while stack:
        parent = stack.pop()
        if id(parent) in seen:
            continue
        seen.add(id(parent))
        if type(parent) in _ATTENTION:
            if parent.built:
                projections = keras_compat.projections(parent).values()
                if all(map(_is_eligible, projections)):
                    attentions.append(parent)
                    found.update((id(layer), layer) for layer in projections)
        elif type(parent) in _PLASTIC_CLASSES:
            if _is_eligible(parent):
                found[id(parent)] = parent
        elif isinstance(
            parent, _LOOKED_INTO
        ) or not keras_compat.is_stock_layer(parent):
            stack += keras_compat.children(parent)
    return list(found.values())


def _is_eligible(layer):
    if not layer.built or _changed_kernel(layer) is not None:
        return False
    if isinstance(layer, keras.layers.EinsumDense):
        try:
            find_labels(layer.equation)
        except ValueError:
            return False
    return True


def _changed_kernel(layer):
    """What has become of a layer's kernel, whose columns are its units."""
    if getattr(layer, "quantization_mode", None):
        return "it is quantized, so that its units cannot be replaced"
    if getattr(layer, "lora_enabled", False):
        return (
            "LoRA adapts it and freezes the kernel whose columns are to be "
            "replaced"
        )
    return None


def _warn_of_what_stays(model, found):
    """Warns of layers that only a change of the model would make plastic.

    Args:
        model: The `keras.Model`.
        found: List of `Connections`.
    """
    reasons = {
        layer: _changed_kernel(layer)
        for layer in keras_compat.sublayers(model)
        if type(layer) in _PLASTIC_CLASSES and _changed_kernel(layer)
    }
    reasons.update((x.layer, x.error) for x in found if x.is_shared)
    if reasons:
        shown = [f"'{name_of(x)}': {why}" for x, why in reasons.items()]
        more = [f"and {len(shown) - 3} more"] if len(shown) > 3 else []
        warnings.warn(
            f"`make_plastic` leaves {len(shown)} layers of model "
            f"'{model.name}' as they are ({'; '.join(shown[:3] + more)}). Make "
            "the model plastic before it is quantized or adapted, and give "
            "each call of a shared layer a layer of its own.",
            stacklevel=3,
        )


def _add_projections(attention, wanted):
    """Makes an attention layer plastic if one of its projections becomes so.

    All of its projections are plastic then, as they are once it is saved and
    loaded.

    Args:
        attention: A layer of a kind in `_ATTENTION`.
        wanted: Dict from the id of a layer to whether its units are
            replaceable. Changed in place.
    """
    projections = keras_compat.projections(attention)
    if wanted.keys().isdisjoint(map(id, projections.values())):
        return
    names = [
        name
        for name, projection in projections.items()
        if wanted.setdefault(id(projection), False)
    ]
    keras_compat.change_class(attention, _ATTENTION[type(attention)])
    attention.replaceable = names


def _choose(model, inputs, candidates):
    """Chooses the layers that have to be plastic.

    Returns:
        Dict from the id of a layer to whether its units are replaceable.
    """
    found = graph.find_connections(candidates, model, inputs)
    _warn_of_what_stays(model, found)
    wanted = {}
    for connections in found:
        if connections.error is None and connections.skip_reason is None:
            wanted[id(connections.layer)] = True
            for consumer in connections.consumers:
                wanted.setdefault(id(consumer), False)
    if not wanted:
        reasons = "; ".join(
            f"'{each.layer.name}': {each.error or each.skip_reason}"
            for each in found
        )
        raise ValueError(
            f"There is no layer in model '{model.name}' whose units could be "
            f"replaced. {reasons or 'It has no layer of a known kind.'}"
        )
    return wanted
