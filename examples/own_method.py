"""A method of one's own, for `--method_file`: SGD with clipped gradients.

    python examples/slowly_changing_regression.py \
        --method_file=examples/own_method.py --method=clipped_sgd

`suite` compares it with others: it tunes the step size and what `SEARCH` names.
"""

import keras

from keras_plasticity.experiments import Flag
from keras_plasticity.experiments import Part
from keras_plasticity.experiments import Range


def make_optimizer(settings):
    return keras.optimizers.SGD(
        settings["learning_rate"], clipnorm=settings["clip_norm"]
    )


PARTS = [
    Part(
        "clipped_sgd",
        "SGD, with gradients of each weight clipped to a norm",
        flags=(Flag("clip_norm", "largest norm", 1.0, "(0, inf)"),),
        omits=("momentum",),
        optimizer=make_optimizer,
    )
]
SEARCH = {"clipped_sgd": {"clip_norm": Range(0.01, 10.0, log=True)}}
