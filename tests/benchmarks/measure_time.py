"""What a measurement of all default measures costs, beside training.

    KERAS_BACKEND=jax python -m tests.benchmarks.measure_time

For each model it prints the seconds of a training step with `fit`, those of the
first measurement, which compiles, and of the later ones, and what share a later
one is of a task of 1,000 steps.
"""

import argparse
import statistics
import time

import keras
import numpy as np

import keras_plasticity


def dense():
    """The paper's largest network for Online Permuted MNIST."""
    layers = [keras.layers.Dense(2000, "relu") for _ in range(3)]
    model = keras.Sequential(
        [keras.Input((784,)), *layers, keras.layers.Dense(10)]
    )
    return model, 100


def _block(x, channels, strides):
    conv = keras.layers.Conv2D(
        channels, 3, strides, padding="same", use_bias=False
    )
    h = keras.layers.BatchNormalization()(conv(x))
    h = keras.layers.ReLU()(h)
    h = keras.layers.Conv2D(channels, 3, padding="same", use_bias=False)(h)
    h = keras.layers.BatchNormalization()(h)
    if strides > 1:
        x = keras.layers.Conv2D(channels, 1, strides, use_bias=False)(x)
        x = keras.layers.BatchNormalization()(x)
    return keras.layers.ReLU()(keras.layers.Add()([h, x]))


def resnet18():
    """The ResNet-18 for images of 32 x 32 pixels, as for CIFAR-100."""
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(64, 3, padding="same", use_bias=False)(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    for channels in (64, 128, 256, 512):
        x = _block(x, channels, 1 if channels == 64 else 2)
        x = _block(x, channels, 1)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(100)(x)), 90


def mobilenet():
    """Keras' MobileNetV3Small for images of 224 x 224 pixels."""
    model = keras.applications.MobileNetV3Small(
        input_shape=(224, 224, 3),
        weights=None,
        classes=10,
        classifier_activation=None,
    )
    return model, 32


MODELS = {"dense": dense, "resnet18": resnet18, "mobilenet": mobilenet}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--probe_examples", type=int, default=500)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for name in arguments.models:
        model, size = MODELS[name]()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.01), loss)
        rng = np.random.default_rng(0)
        number = max(arguments.steps * size, arguments.probe_examples)
        x = rng.normal(size=(number, *model.input_shape[1:]))
        x = x.astype("float32")
        y = rng.integers(0, model.output_shape[-1], number)
        probe = x[: arguments.probe_examples], y[: arguments.probe_examples]
        batch = x[:size], y[:size]
        model.fit(*batch, size, verbose=0)
        steps, measurements = [], []
        for _ in range(arguments.rounds + 1):
            start = time.perf_counter()
            keras_plasticity.measure(model, probe, batch_size=size)
            measurements.append(time.perf_counter() - start)
            start = time.perf_counter()
            num = arguments.steps * size
            model.fit(x[:num], y[:num], size, verbose=0)
            steps.append((time.perf_counter() - start) / arguments.steps)
        step = statistics.median(steps)
        first, *later = measurements
        cost = statistics.median(later)
        print(
            f"{name}: a step of {size} examples {step:.3f} s; a measurement "
            f"of {len(probe[0])} examples first {first:.1f} s, then "
            f"{cost:.2f} s ({min(later):.2f} to {max(later):.2f}): "
            f"{cost / (1000 * step):.2%} of 1,000 steps",
            flush=True,
        )


if __name__ == "__main__":
    main()
