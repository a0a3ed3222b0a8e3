import keras

from keras_plasticity import layers
from keras_plasticity import weights


def test_trainable_weights_are_those_of_the_plain_model():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3),
            layers.OnlineNormalization(),
            layers.Dense(2),
        ]
    )
    model.layers[-1].trainable = False
    names = [v.path.split("/")[-1] for v in weights.trainable_weights(model)]
    assert names == ["kernel", "bias", "gamma", "beta"]
    others = [v for v in model.trainable_variables if weights.is_statistic(v)]
    # Ten statistics of the trainable plastic layer, two error accumulators.
    assert len(others) == 10 + 2
