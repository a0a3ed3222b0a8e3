import keras

from keras_plasticity.layers.plastic_layer import PlasticLayer
from keras_plasticity.units.unit_statistics import UnitStatistics
from keras_plasticity.units.weight_view import WeightView


@keras.saving.register_keras_serializable(package="keras_plasticity")
class Embedding(PlasticLayer, keras.layers.Embedding):
    """A `keras.layers.Embedding` whose units can be replaced.

    It computes what `keras.layers.Embedding` computes and takes the same
    arguments. A unit is one of the `output_dim` dimensions: its incoming
    weights are its entries of all `input_dim` vectors, which are drawn again
    by `embeddings_initializer` when it is replaced. What it contributes is
    measured by the layers that read the vectors.

    Embeddings that are also used as the kernel of another layer (tied
    weights) are refused.

    Args:
        *args: The positional arguments of `keras.layers.Embedding`.
        replaceable: Boolean, whether the units may be replaced. Defaults to
            `True`.
        **kwargs: All other arguments of `keras.layers.Embedding`:
            `input_dim`, `output_dim`, `embeddings_initializer`, `mask_zero`,
            ....

    Call arguments:
        inputs: Integer tensor of any shape.

    Returns:
        Tensor of the shape of the inputs and one more axis, of size
        `output_dim`.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((20,), dtype="int32"),
            keras_plasticity.layers.Embedding(1000, 16),
            keras_plasticity.layers.Conv1D(32, 3, activation="relu"),
            keras.layers.GlobalMaxPooling1D(),
            keras_plasticity.layers.Dense(5),
        ]
    )
    keras_plasticity.inspect(model)
    ```

    References:

    - [Dohare et al., 2023](https://arxiv.org/abs/2306.13812)
    """

    activation = None

    def __init__(self, *args, **kwargs):
        weights = kwargs.pop("weights", None)
        super().__init__(*args, **kwargs)
        if weights is not None:
            # Keras would set the statistics by them, too.
            if isinstance(weights, list) and len(weights) == 1:
                (weights,) = weights
            self.build()
            self.embeddings.assign(weights)

    def build(self, input_shape=None):
        if not self.built:
            super().build(input_shape)

    def add_statistics(self):
        # It reads no features, but a training step has to reach the carriers,
        # by which an optimizer finds the layer: they go with its outputs.
        self.statistics = UnitStatistics(
            self,
            units=self.output_dim,
            features=self.output_dim,
            name="statistics",
        )
        self.statistics.build()

    def call(self, inputs):
        outputs = keras.layers.Embedding.call(self, inputs)
        return self._observe(outputs, self.unit_axes(outputs))

    def unit_view(self):
        return WeightView.of(self.embeddings, 1)

    def feature_view(self):
        """None: indices are no features."""
        return None

    def bias_view(self):
        return None

    def unit_initializer(self):
        return self.embeddings_initializer
