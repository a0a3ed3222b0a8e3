import keras

from keras_plasticity import layers
from keras_plasticity import weights


def test_weights_are_those_of_the_plain_model():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3),
            layers.OnlineNormalization(),
            layers.Dense(2),
        ]
    )
    model.layers[-1].trainable = False
    names = [v.path.split("/")[-1] for v in weights.weights_of(model)]
    assert names == ["kernel", "bias", "gamma", "beta"]
    others = [v for v in model.trainable_variables if weights.is_statistic(v)]
    # Those that carry the observations of the trainable plastic layer, and
    # the errors of the normalization.
    assert len(others) == 7 + 3
