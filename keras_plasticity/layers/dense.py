import keras

from keras_plasticity.layers.plastic_layer import PlasticLayer


@keras.saving.register_keras_serializable(package="keras_plasticity")
class Dense(PlasticLayer, keras.layers.Dense):
    """A `keras.layers.Dense` whose units can be replaced.

    It computes what `keras.layers.Dense` computes and takes the same
    arguments; with a plain Keras optimizer it trains to the same weights. In
    training it also observes its inputs, and it carries statistics of its
    units, on which `keras_plasticity.optimizers.ContinualBackprop` acts.

    The statistics are weights that can be read, all float32 and of shape
    `(units,)`:

    - `utility`: how useful each unit is, as defined by `ContinualBackprop`. It
        stays 0 in a layer whose output no other layer reads.
    - `age`: the number of updates since the unit was created.
    - `mean_activation`: running mean of the unit's output, as its consumer
        receives it.

    A unit's contribution is measured by its consumers, so every layer that
    reads a plastic layer has to be plastic too. The last layer of a model,
    whose units are the outputs, is plastic only to observe its inputs: its
    units are never replaced.

    Args:
        units: Positive integer, the number of units.
        replaceable: Boolean, whether the units may be replaced. With `False`
            any layer may read them. Defaults to `True`.
        **kwargs: All other arguments of `keras.layers.Dense`: `activation`,
            `use_bias`, `kernel_initializer`, `bias_initializer`,
            regularizers, constraints, `dtype`, `name`, .... The new incoming
            weights and the new bias of a replaced unit are drawn from
            `kernel_initializer` and `bias_initializer`.

    Call arguments:
        inputs: Tensor of shape `(batch_size, ..., features)`.

    Returns:
        Tensor of shape `(batch_size, ..., units)`.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras_plasticity.layers.Dense(100, activation="relu"),
            keras_plasticity.layers.Dense(10),
        ]
    )
    model.compile(
        optimizer=keras_plasticity.optimizers.ContinualBackprop(
            keras.optimizers.SGD(0.01), replacement_rate=1e-4
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    ```

    References:

    - [Dohare et al., 2023](https://arxiv.org/abs/2306.13812)
    """
