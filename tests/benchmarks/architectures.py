"""Which layers of well-known models are replaceable, and whether they train.

    KERAS_BACKEND=torch python -m tests.benchmarks.architectures
    KERAS_BACKEND=jax python -m tests.benchmarks.architectures --only=GPT2,BERT

Prints a row for one model of every family of `keras.applications`, for language
and vision models of KerasHub and for a stacked LSTM that forecasts a sine wave,
all small and with random weights: its weights, the layers that `make_plastic`
made plastic, those whose units are replaced, the seconds that it and the
optimizer take to find them, and, after `--steps` steps of training, the units
that were replaced, the loss of the last step, and whether the model is the same
once it is saved and loaded. What fails is printed in the row, and the program
ends with 1.
"""

import argparse
import os
import sys
import tempfile
import time
import warnings

import keras
import numpy as np

import keras_plasticity
from keras_plasticity import layers
from keras_plasticity.models import make_plastic
from keras_plasticity.optimizers import ContinualBackprop

_CLASSES = 4
_WORDS = 60

# One of each family of `keras.applications`, the least image that it takes,
# and its further arguments.
_NO_SCALING = {"include_preprocessing": False}
_APPLICATIONS = {
    "ConvNeXtTiny": (32, _NO_SCALING),
    "DenseNet121": (32, {}),
    "EfficientNetB0": (32, {}),
    "EfficientNetV2B0": (32, _NO_SCALING),
    "InceptionResNetV2": (75, {}),
    "InceptionV3": (75, {}),
    "MobileNet": (32, {}),
    "MobileNetV2": (32, {}),
    "MobileNetV3Small": (32, _NO_SCALING),
    "NASNetMobile": (32, {}),
    "ResNet50": (32, {}),
    "ResNet50V2": (32, {}),
    "VGG16": (32, {}),
    "Xception": (71, {}),
}


def _application(name):
    size, kwargs = _APPLICATIONS[name]
    model = getattr(keras.applications, name)(
        weights=None,
        input_shape=(size, size, 3),
        classes=_CLASSES,
        classifier_activation=None,
        **kwargs,
    )
    rng = np.random.default_rng(0)
    return model, rng.random((4, size, size, 3), "float32"), _classes(4)


def _classes(num):
    return np.arange(num) % _CLASSES


def _tokens(length=8, num=4):
    rng = np.random.default_rng(0)
    mask = np.ones((num, length), "int32")
    mask[0, -2:] = 0
    return {
        "token_ids": rng.integers(1, _WORDS, (num, length)).astype("int32"),
        "padding_mask": mask,
    }


_SIZES = {
    "vocabulary_size": _WORDS,
    "num_layers": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
}


def _language_model(name, **kwargs):
    """A causal language model, trained on the tokens themselves."""
    import keras_hub

    backbone = getattr(keras_hub.models, f"{name}Backbone")(**kwargs)
    kind = getattr(keras_hub.models, f"{name}CausalLM")
    model = kind(backbone=backbone, preprocessor=None)
    x = _tokens()
    return model, x, np.roll(x["token_ids"], -1, axis=1)


def _gpt2():
    return _language_model(
        "GPT2", num_heads=2, max_sequence_length=16, **_SIZES
    )


def _llama():
    return _language_model(
        "Llama", num_query_heads=4, num_key_value_heads=2, **_SIZES
    )


def _gemma():
    return _language_model(
        "Gemma",
        num_query_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        **_SIZES,
    )


def _bert():
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        num_heads=2, max_sequence_length=16, **_SIZES
    )
    model = keras_hub.models.BertTextClassifier(
        backbone, num_classes=_CLASSES, preprocessor=None
    )
    x = _tokens()
    x["segment_ids"] = np.zeros_like(x["padding_mask"])
    return model, x, _classes(4)


def _vit():
    import keras_hub

    backbone = keras_hub.models.ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=8,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
    )
    model = keras_hub.models.ViTImageClassifier(
        backbone, num_classes=_CLASSES, preprocessor=None
    )
    x = np.random.default_rng(0).random((4, 16, 16, 3), "float32")
    return model, x, _classes(4)


def _lstm():
    """Forecasts a wave from its last values."""
    model = keras.Sequential(
        [
            keras.Input((12, 1)),
            keras.layers.LSTM(32, return_sequences=True),
            keras.layers.LSTM(16),
            keras.layers.Dense(1),
        ]
    )
    wave = np.sin(0.4 * np.arange(44, dtype="float32"))
    windows = np.lib.stride_tricks.sliding_window_view(wave, 13)[..., None]
    return model, windows[:, :12], windows[:, 12]


MODELS = {
    "LSTM": _lstm,
    "GPT2": _gpt2,
    "Llama": _llama,
    "Gemma": _gemma,
    "BERT": _bert,
    "ViT": _vit,
    **{name: lambda name=name: _application(name) for name in _APPLICATIONS},
}


def measure(make, steps):
    """Makes a model plastic, trains, saves and loads it.

    Args:
        make: Function that returns a model, inputs, and targets.
        steps: Integer, the number of training steps.

    Returns:
        Dict of what is to be told.
    """
    model, x, y = make()
    before = keras.tree.flatten(model.predict(x, verbose=0))[0]
    start = time.perf_counter()
    make_plastic(model)
    row = {"weights": model.count_params()}
    row["make_plastic"] = time.perf_counter() - start
    np.testing.assert_array_equal(
        keras.tree.flatten(model.predict(x, verbose=0))[0], before
    )
    plastic = [
        layer
        for layer in keras_plasticity.keras_compat.sublayers(model)
        if isinstance(layer, layers.PlasticLayer)
    ]
    plastic = list({id(layer): layer for layer in plastic}.values())
    row["plastic"] = len(plastic)
    row["replaceable"] = sum(layer.replaceable for layer in plastic)
    _compile(model, keras.backend.is_int_dtype(y.dtype))
    start = time.perf_counter()
    model.optimizer.build(model.trainable_variables)
    row["optimizer"] = time.perf_counter() - start
    row["replaced"], row["loss"] = _train(model, x, y, steps)
    if not np.isfinite(row["loss"]):
        raise ValueError(f"the loss is {row['loss']}")
    if not row["replaced"]:
        raise ValueError("no unit was replaced")
    row["file"] = _is_same_after_loading(make, model, x)
    return row


def _compile(model, has_classes):
    model.compile(
        ContinualBackprop(
            keras.optimizers.Adam(1e-3),
            replacement_rate=0.1,
            maturity_threshold=2,
            seed=0,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if has_classes
        else "mse",
    )


def _train(model, x, y, steps):
    """Returns the number of units replaced, and the loss of the last step."""
    loss = np.nan
    for _ in range(steps):
        loss = model.train_on_batch(x, y)
    replaced = model.optimizer.num_replaced()
    return sum(replaced.values()), float(np.mean(loss))


def _is_same_after_loading(make, model, x):
    """Loads the weights into a new model, which has been made plastic."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.weights.h5")
        model.save_weights(path)
        again = make_plastic(make()[0])
        again.load_weights(path)
    one, other = (each.predict(x, verbose=0) for each in (model, again))
    for a, b in zip(keras.tree.flatten(one), keras.tree.flatten(other)):
        np.testing.assert_array_equal(a, b)
    return "same"


_COLUMNS = (
    "weights",
    "plastic",
    "replaceable",
    "make_plastic",
    "optimizer",
    "replaced",
    "loss",
    "file",
)


def _text(value):
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(MODELS))
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    print(f"keras {keras.__version__}, {keras.backend.backend()}\n")
    print(f"| model | {' | '.join(_COLUMNS)} |")
    print("|" + " --- |" * (len(_COLUMNS) + 1), flush=True)
    has_failed = False
    for name in given.only.split(","):
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                row = measure(MODELS[name], given.steps)
            cells = [_text(row[column]) for column in _COLUMNS]
        except Exception as error:  # Whatever goes wrong is what is asked.
            has_failed = True
            text = " ".join(str(error).split())
            cells = [f"{type(error).__name__}: {text[:300]}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    sys.exit(has_failed)


if __name__ == "__main__":
    main()
