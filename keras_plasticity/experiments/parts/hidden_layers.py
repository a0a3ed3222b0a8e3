"""Parts that change the hidden layers."""

import keras

from keras_plasticity import layers
from keras_plasticity.experiments.parts.part import Flag
from keras_plasticity.experiments.parts.part import Part

PARTS = (
    Part(
        "dropout",
        "dropout after each hidden layer",
        "`keras.layers.Dropout`",
        flags=(
            Flag(
                "dropout_rate",
                "part of the units that is left out",
                0.1,
                "[0, 1)",
            ),
        ),
        after_activation=lambda settings, seed: keras.layers.Dropout(
            settings["dropout_rate"], seed=seed
        ),
    ),
    Part(
        "batch_norm",
        "in each hidden layer; needs a `--batch_size` of at least 2",
        "`keras.layers.BatchNormalization`",
        normalization=lambda settings: keras.layers.BatchNormalization(),
        # Of one example, the output does not depend on the example.
        smallest_batch=2,
    ),
    Part(
        "layer_norm",
        "in each hidden layer",
        "`keras.layers.LayerNormalization`",
        normalization=lambda settings: keras.layers.LayerNormalization(),
    ),
    Part(
        "online_norm",
        "Online Normalization, which works one example at a time "
        "([Chiley et al.](https://arxiv.org/abs/1905.05894))",
        "`layers.OnlineNormalization`",
        normalization=lambda settings: layers.OnlineNormalization(),
    ),
    Part(
        "linear",
        "no hidden layer",
        omits=("activation",),
        hidden_layers=False,
    ),
)
