import keras

from keras_plasticity import keras_compat
from keras_plasticity import validation
from keras_plasticity.layers import in_place
from keras_plasticity.layers.einsum_dense import EinsumDense

# The projections whose units may be replaced, as the argument names them.
_REPLACEABLE = ("value", "output")


class PlasticAttention:
    """Mixin that makes the projections of an attention layer plastic.

    It comes before the Keras layer among the base classes.
    """

    def __init__(self, *args, replaceable=True, **kwargs):
        super().__init__(*args, **kwargs)
        self.replaceable = replaceable

    @property
    def replaceable(self):
        """Whether units may be replaced, or a list of those that may."""
        return self._replaceable

    @replaceable.setter
    def replaceable(self, value):
        value = _check_replaceable(value)
        if self.built:
            for name, projection in keras_compat.projections(self).items():
                projection.replaceable = _names(value, name)
        self._replaceable = value

    # With the names by which Keras knows which shapes to give.
    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        for name, projection in keras_compat.projections(self).items():
            if projection.quantization_mode is not None:
                raise ValueError(
                    f"Plastic layer '{self.name}' cannot be quantized: its "
                    "units are replaced while it trains. Use "
                    f"`keras.layers.{type(self).__name__}`, or another dtype. "
                    f"Received: dtype={self.dtype_policy.name!r}"
                )
            keras_compat.change_class(projection, EinsumDense)
            is_replaceable = self.may_replace(name)
            in_place.complete(projection, is_replaceable, [projection.name])

    def may_replace(self, name):
        """Whether the units of a projection may be replaced.

        Args:
            name: String, one of `keras_compat.projections`.
        """
        return _names(self.replaceable, name)

    def get_config(self):
        config = super().get_config()
        if self.replaceable is not True:
            config["replaceable"] = self.replaceable
        return config


def _names(replaceable, name):
    """Whether the argument `replaceable` has a projection among its own."""
    if isinstance(replaceable, bool):
        return replaceable and name in _REPLACEABLE
    return name in replaceable


def _check_replaceable(value):
    if isinstance(value, (list, tuple)):
        if all(each in _REPLACEABLE for each in value):
            return list(value)
    elif value is True or value is False:
        return value
    raise validation.error(
        "replaceable", 'a boolean, or a list of "value" and "output"', value
    )


@keras.saving.register_keras_serializable(package="keras_plasticity")
class MultiHeadAttention(PlasticAttention, keras.layers.MultiHeadAttention):
    """A `keras.layers.MultiHeadAttention` whose units can be replaced.

    It computes what `keras.layers.MultiHeadAttention` computes and takes the
    same arguments. Its projections are `keras_plasticity.layers.EinsumDense`
    layers, which carry the statistics.

    A unit is one entry of the value projection of one head. Attention computes
    weighted means of it over positions, `sum_s a[t, s] * v[s, head, entry]`,
    which the output projection reads: a unit's activation is this mean, and
    its outgoing weights are those of the output projection. Units of the
    output projection are replaced where a plastic layer reads them alone,
    which it does not where they are added to a residual stream.

    Units of the query and key projections stay as they are. They have no
    outgoing weights of their own, which could be set to zero: attention
    scores are products of the two.

    Args:
        *args: The positional arguments of `keras.layers.MultiHeadAttention`.
        replaceable: Boolean, whether units may be replaced, or a list of those
            projections whose units may be, of `"value"` and `"output"`.
            Defaults to `True`.
        **kwargs: All other arguments of `keras.layers.MultiHeadAttention`:
            `num_heads`, `key_dim`, `value_dim`, `dropout`, ....

    Call arguments:
        query: Tensor of shape `(batch_size, target_length, features)`.
        value: Tensor of shape `(batch_size, source_length, features)`.
        **kwargs: All other call arguments of
            `keras.layers.MultiHeadAttention`.

    Returns:
        Tensor of shape `(batch_size, target_length, features)`; with
        `return_attention_scores` a tuple of it and of the scores.

    Example:

    ```python
    x = inputs = keras.Input((16, 32))
    for _ in range(2):
        y = keras.layers.LayerNormalization()(x)
        y = keras_plasticity.layers.MultiHeadAttention(4, 8)(y, y)
        x = x + y
        y = keras.layers.LayerNormalization()(x)
        y = keras_plasticity.layers.Dense(64, activation="relu")(y)
        x = x + keras_plasticity.layers.Dense(32)(y)
    x = keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    keras_plasticity.inspect(model)
    ```

    References:

    - [Vaswani et al., 2017](https://arxiv.org/abs/1706.03762)
    - [Dohare et al., 2023](https://arxiv.org/abs/2306.13812)
    """


@keras.saving.register_keras_serializable(package="keras_plasticity")
class GroupQueryAttention(PlasticAttention, keras.layers.GroupQueryAttention):
    """A `keras.layers.GroupQueryAttention` whose units can be replaced.

    It computes what `keras.layers.GroupQueryAttention` computes and takes the
    same arguments. A unit is one entry of the value projection of one head,
    as in `keras_plasticity.layers.MultiHeadAttention`. Several heads of the
    queries share a head of the values: the output projection reads a unit once
    for each of them, and its utility is the mean over them.

    Args:
        *args: The positional arguments of `keras.layers.GroupQueryAttention`.
        replaceable: Boolean, whether units may be replaced, or a list of those
            projections whose units may be, of `"value"` and `"output"`.
            Defaults to `True`.
        **kwargs: All other arguments of `keras.layers.GroupQueryAttention`:
            `head_dim`, `num_query_heads`, `num_key_value_heads`, ....

    Call arguments:
        query: Tensor of shape `(batch_size, target_length, features)`.
        value: Tensor of shape `(batch_size, source_length, features)`.
        **kwargs: All other call arguments of
            `keras.layers.GroupQueryAttention`.

    Returns:
        Tensor of shape `(batch_size, target_length, features)`; with
        `return_attention_scores` a tuple of it and of the scores.

    Example:

    ```python
    inputs = keras.Input((16, 32))
    x = keras_plasticity.layers.GroupQueryAttention(8, 4, 2)(inputs, inputs)
    x = keras.layers.GlobalAveragePooling1D()(inputs + x)
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    keras_plasticity.inspect(model)
    ```

    References:

    - [Ainslie et al., 2023](https://arxiv.org/abs/2305.13245)
    - [Dohare et al., 2023](https://arxiv.org/abs/2306.13812)
    """
