"""What all plastic layers share."""

import keras

from keras_plasticity.layers.unit_statistics import UnitStatistics


class PlasticLayer:
    """Mixin that makes a Keras layer with a kernel plastic.

    It goes before the Keras layer among the bases. A unit is one index of the
    kernel's last axis, an input feature one index of the axis before it.

    Attributes:
        statistics: The layer's `UnitStatistics`, there once it is built.
    """

    def build(self, input_shape):
        super().build(input_shape)
        features, units = self.kernel.shape[-2:]
        self.statistics = UnitStatistics(
            self, units=units, features=features, name="statistics"
        )
        self.statistics.build()

    def call(self, inputs, *args, **kwargs):
        return super().call(self.statistics.observe(inputs), *args, **kwargs)

    @property
    def utility(self) -> keras.Variable:
        """Bias-corrected utility of each unit, float32 of shape `(units,)`."""
        return self._get_statistics().utility

    @property
    def age(self) -> keras.Variable:
        """Updates since each unit began, float32 of shape `(units,)`.

        Float32 counts exactly up to 2**24 = 16.8 million and stays there.
        """
        return self._get_statistics().age

    @property
    def mean_activation(self) -> keras.Variable:
        """Running mean activation of each unit, float32, shape `(units,)`."""
        return self._get_statistics().mean_activation

    def _get_statistics(self):
        if not self.built:
            # No AttributeError: PyTorch's modules replace its message.
            raise ValueError(
                f"Layer '{self.name}' carries statistics once it is built. "
                "Call it on data, or `build()` the model first."
            )
        return self.statistics
