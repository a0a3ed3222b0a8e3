"""Parts that change the hidden layers, or stand before them."""

import keras

from keras_plasticity import layers
from keras_plasticity.experiments.parts.part import Flag
from keras_plasticity.experiments.parts.part import Part


def _activation(name, about, layer, flags=(), excludes=()):
    """A part that is another activation.

    Args:
        layer: Class of a layer. Its arguments are the flags, without the
            part's name.
    """

    def make(settings, layer_name):
        prefix = f"{name}_"
        arguments = {
            flag.name.removeprefix(prefix): settings[flag.name]
            for flag in flags
        }
        return layer(name=layer_name, **arguments)

    return Part(
        name,
        about,
        f"`layers.{layer.__name__}`",
        flags=flags,
        omits=("activation",),
        excludes=excludes,
        activation=make,
    )


# Their units are never silent for long.
_NEVER_SILENT = ("self_normalized_resets",)

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
        "input_norm",
        "inputs normalized by the moments of all examples so far",
        "`layers.InputNormalization`",
        flags=(
            Flag(
                "input_norm_momentum",
                "how much an example counts less than the next one; 1: as much",
                1.0,
                "(0, 1]",
            ),
        ),
        input_layer=lambda settings: layers.InputNormalization(
            momentum=settings["input_norm_momentum"]
        ),
    ),
    _activation(
        "crelu",
        "concatenated ReLU, `[relu(x), relu(-x)]` "
        "([Abbas et al.](https://arxiv.org/abs/2303.07507)); layers keep their "
        "width",
        layers.CReLU,
        excludes=_NEVER_SILENT,
    ),
    _activation(
        "concatenated_elu",
        "`[elu(x), elu(-x)]`; layers keep their width",
        layers.ConcatenatedELU,
        excludes=_NEVER_SILENT,
    ),
    _activation(
        "fourier",
        "deep Fourier features, `[sin(x), cos(x)]` "
        "([Lewandowski et al.](https://arxiv.org/abs/2410.20634)); layers keep "
        "their width",
        layers.DeepFourier,
        excludes=_NEVER_SILENT,
    ),
    _activation(
        "smooth_leaky",
        "a leaky ReLU without a corner "
        "([2509.22562](https://arxiv.org/abs/2509.22562))",
        layers.SmoothLeaky,
        flags=(
            Flag("smooth_leaky_alpha", "slope on the left", 0.1, "[0, inf)"),
            Flag("smooth_leaky_p", "width of the passage", 3.0, "(0, inf)"),
            Flag("smooth_leaky_c", "steepness of the passage", 5.0, "(0, inf)"),
        ),
    ),
    _activation(
        "adalin",
        "a leaky ReLU with a learned slope for each unit "
        "([Rohani et al.](https://arxiv.org/abs/2505.09486))",
        layers.AdaLin,
    ),
    _activation(
        "rational",
        "quotients of learned polynomials "
        "([Delfosse et al.](https://arxiv.org/abs/2102.09407))",
        layers.Rational,
    ),
    Part(
        "linear",
        "no hidden layer",
        omits=("activation",),
        hidden_layers=False,
    ),
)
