"""A layer that new plasticity can be injected into."""

import keras

from keras_plasticity import keras_compat
from keras_plasticity import validation


@keras.saving.register_keras_serializable(package="keras_plasticity")
class Injectable(keras.layers.Wrapper):
    """The head of a network, which new plasticity can be injected into.

    It is the layer that it wraps, plus two frozen layers like it whose
    difference is added:

    `outputs = layer(x) + (old(x) - new(x))`.

    At first all weights of the two are zero, and it computes what `layer` does.
    `keras_plasticity.callbacks.PlasticityInjection` makes `old` the trained
    layer, and both `new` and `layer` a fresh one: the outputs are the same as
    before, but what learns from there on has fresh weights. The frozen layers
    take part in back-propagation to `x`, and no optimizer sees their weights:
    neither its steps nor weight decay change them.

    Let `layer` be a model of two layers or more, with a non-linearity. One
    linear layer and two frozen ones are together as one linear layer: SGD
    without momentum would learn just what it learns without an injection.

    The number of trainable weights stays the same. A step costs as much as
    three such heads, before the injection, too.

    Args:
        layer: Keras layer to wrap, or a model, one that is described by its
            config. Its outputs must be linear: of a softmax the difference is
            no probability. Let the loss take logits.
        **kwargs: Arguments of a Keras layer. `name` defaults to that of
            `layer`.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, activation="relu"),
            keras_plasticity.layers.Injectable(
                keras.Sequential(
                    [
                        keras.layers.Dense(5, activation="relu"),
                        keras.layers.Dense(3),
                    ]
                )
            ),
        ]
    )
    ```

    References:

    - [Nikishin et al., 2023](https://arxiv.org/abs/2305.15555)
    """

    def __init__(self, layer: keras.Layer, **kwargs):
        validation.check_type("layer", layer, keras.Layer, "a Keras layer")
        last = layer
        while getattr(last, "layers", None):
            last = last.layers[-1]
        activation = getattr(last, "activation", None)
        if activation not in (None, keras.activations.linear):
            raise ValueError(
                "`layer` must be linear. Leave out its activation, and use a "
                "loss with `from_logits=True` or a layer `Activation` behind. "
                f"Received: layer={layer!r} with activation={activation}"
            )
        kwargs.setdefault("name", layer.name)
        super().__init__(layer, **kwargs)
        self.old = _zeros_like(layer, "old")
        self.new = _zeros_like(layer, "new")

    @property
    def trainable(self):
        """Whether `layer` is trainable; the frozen layers never are."""
        return self._trainable

    @trainable.setter
    def trainable(self, value):
        keras.Layer.trainable.fset(self, value)
        self._freeze()

    def _freeze(self):
        for frozen in (self.old, self.new):
            frozen.trainable = False

    def build(self, input_shape=None):
        super().build(input_shape)
        for frozen in (self.old, self.new):
            if not frozen.built:
                frozen.build(input_shape)
        self._freeze()  # Their weights, too.

    def call(self, inputs):
        # In this order nothing is rounded off at the injection: there, `layer`
        # and `new` are the same.
        return self.old(inputs) + (self.layer(inputs) - self.new(inputs))

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)


def _zeros_like(layer, name):
    """A frozen layer like another one, all of whose weights are zero."""
    try:
        config = _with_zeros(layer.get_config())
        result = type(layer).from_config(config)
    except Exception as error:  # Whatever a user's class may raise.
        raise ValueError(
            "`layer` must be a layer that is described by its config. "
            f"Received: layer={layer!r}, which cannot be made again from it "
            f"({type(error).__name__}: {error})"
        ) from error
    for part in keras_compat.in_order(result):
        part.name = f"{part.name}_{name}"
    return result


def _with_zeros(config):
    """A config whose initializers all give zeros, without regularizers."""
    if isinstance(config, dict):
        result = {}
        for key, value in config.items():
            if key.endswith("_initializer"):
                result[key] = "zeros"
            elif key.endswith("_regularizer"):
                result[key] = None
            else:
                result[key] = _with_zeros(value)
        return result
    if isinstance(config, (list, tuple)):
        return type(config)(map(_with_zeros, config))
    return config
