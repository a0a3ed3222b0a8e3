"""Programs that `distribution_test.py` runs in processes of their own.

Each trains one small model on one device and another like it on several, and
saves the variables of both, and of each replica. All of the devices are CPUs,
also where there is a GPU.
"""

import contextlib
import json
import os
import sys

import numpy as np

_SETTINGS = {
    "ContinualBackprop": {
        "replacement_rate": 0.05,
        "maturity_threshold": 3,
        "utility": "overall",
    },
    "CCBP": {"replacement_rate": 0.4, "period": 4},
    "CPR": {"replacement_rate": 0.4, "period": 4},
    "ReDo": {"threshold": 0.6, "period": 4, "score_updates": 2},
    "ReGraMa": {"threshold": 0.6, "period": 4},
    "SelfNormalizedResets": {
        "min_threshold": 16,
        "initial_threshold": 32,
        "threshold_period": 5,
    },
}


def _build(method="ContinualBackprop", network="images"):
    import keras

    import keras_plasticity

    model = globals()[f"_network_of_{network}"]()
    optimizer = getattr(keras_plasticity.optimizers, method)(
        keras.optimizers.Adam(0.01), seed=4, **_SETTINGS[method]
    )
    return model, optimizer


def _network_of_images():
    import keras

    from keras_plasticity import layers

    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(
                8, 3, kernel_initializer=keras.initializers.HeNormal(1)
            ),
            keras.layers.LayerNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            layers.Dense(
                12,
                activation="relu",
                kernel_initializer=keras.initializers.HeNormal(2),
            ),
            layers.Dense(
                3, kernel_initializer=keras.initializers.GlorotNormal(3)
            ),
        ]
    )


def _network_of_sequences():
    """Recurrent layers and attention, with steps that are masked."""
    import keras

    from keras_plasticity import layers

    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 4))
    x = keras.layers.Masking()(inputs)
    x = layers.LSTM(6, return_sequences=True)(x)
    x = layers.MultiHeadAttention(2, 3)(x, x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3)(x))


def _data(model):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(320, *model.input_shape[1:])).astype("float32")
    if x.ndim == 3:
        # In each half of a batch another number of steps.
        x[rng.random(x.shape[:2]) < np.arange(320)[:, None] % 16 / 20] = 0.0
    return x, rng.integers(0, 3, 320)


def _arrays(model, optimizer, prefix, read=np.asarray):
    unit_variables = [
        getattr(layer, name)
        for layer in [units.layer for units in optimizer.hidden]
        for name in ("utility", "age", "mean_activation")
    ]
    arrays = {
        f"{prefix}{i}": read(v.value)
        for i, v in enumerate(model.variables + unit_variables)
    }
    arrays[f"{prefix}replaced"] = list(optimizer.num_replaced().values())
    return arrays


def jax_distribution(kind, *built):
    import keras

    single = _build(*built)
    _train(*single)
    distribution = keras.distribution
    devices = distribution.list_devices()
    if kind == "data":
        chosen = distribution.DataParallel(devices=devices)
    else:
        mesh = distribution.DeviceMesh((2, 2), ["batch", "model"], devices)
        layout = distribution.LayoutMap(mesh)
        layout[".*conv2d.*kernel"] = (None, None, None, "model")
        layout[".*dense.*kernel"] = ("model", None)
        chosen = distribution.ModelParallel(
            layout_map=layout, batch_dim_name="batch"
        )
    distribution.set_distribution(chosen)
    several = _build(*built)
    _train(*several)
    kernel = several[0].trainable_variables[0].value
    return {
        **_arrays(*single, "single_"),
        **_arrays(*several, "several_"),
        "devices": len(kernel.sharding.device_set),
    }


def _train(model, optimizer):
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    model.fit(*_data(model), batch_size=16, shuffle=False, verbose=0)


def mirrored(*built):
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    single = _build(*built)
    _train(*single)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        several = _build(*built)
        _train(*several)
    result = _arrays(*single, "single_")
    for replica, prefix in enumerate(["several_", "other_"]):
        result |= _arrays(
            *several,
            prefix,
            lambda value, replica=replica: strategy.experimental_local_results(
                value
            )[replica].numpy(),
        )
    return {**result, "devices": strategy.num_replicas_in_sync}


def uneven(num_examples):
    """Batches of 8, the last of which leaves a replica with few or none."""
    import keras
    import tensorflow as tf

    from keras_plasticity import layers
    from keras_plasticity.optimizers import ContinualBackprop

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_examples, 4)).astype("float32")
    result = {"devices": strategy.num_replicas_in_sync}
    for prefix in ("single_", "several_"):
        scope = strategy.scope() if prefix == "several_" else None
        with scope or contextlib.nullcontext():
            model = keras.Sequential(
                [
                    keras.Input((4,)),
                    layers.InputNormalization(),
                    layers.Dense(
                        6,
                        "tanh",
                        kernel_initializer=keras.initializers.HeNormal(1),
                    ),
                    layers.OnlineNormalization(),
                    layers.Dense(
                        3, kernel_initializer=keras.initializers.HeNormal(2)
                    ),
                ]
            )
            # Weights do not move: Keras gives an example of a small part of a
            # batch a larger weight.
            optimizer = ContinualBackprop(
                keras.optimizers.SGD(0.0), utility="overall", replacement_rate=0
            )
            model.compile(optimizer=optimizer, loss="mse")
            model.fit(x, x[:, :3], batch_size=8, shuffle=False, verbose=0)
        inputs, hidden, norm, _ = model.layers
        for name in ("utility", "age", "mean_activation"):
            result[prefix + name] = np.asarray(getattr(hidden, name).value)
        for name in ("moving_mean", "moving_variance"):
            result[prefix + name] = np.asarray(getattr(norm, name).value)
        for name in ("mean", "variance", "num_examples"):
            result[prefix + name] = np.asarray(getattr(inputs, name).value)
    return result


def multi_worker(worker, ports):
    """By hand: `fit` of Keras 3.15.1 fails with this strategy on any model."""
    os.environ["TF_CONFIG"] = json.dumps(
        {
            "cluster": {"worker": [f"localhost:{port}" for port in ports]},
            "task": {"type": "worker", "index": worker},
        }
    )
    import keras
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model, optimizer = _build()
        optimizer.build(model.trainable_variables)
    loss_fn = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="sum"
    )
    # Each worker takes every other half of a batch of 16.
    batches = strategy.distribute_datasets_from_function(
        lambda context: (
            tf.data.Dataset.from_tensor_slices(_data(model))
            .batch(8)
            .shard(2, context.input_pipeline_id)
        )
    )

    def step(batch):
        x, y = batch
        with tf.GradientTape() as tape:
            loss = loss_fn(y, model(x, training=True)) / 16
        variables = model.trainable_variables
        gradients = tape.gradient(loss, variables)
        optimizer.apply_gradients(zip(gradients, variables))

    @tf.function
    def train(iterator):
        for _ in tf.range(20):
            strategy.run(step, args=(next(iterator),))

    train(iter(batches))
    result = _arrays(model, optimizer, "several_", lambda v: v.numpy())
    return {**result, "devices": strategy.num_replicas_in_sync}


def one_device():
    single = _build()
    _train(*single)
    return _arrays(*single, "single_")


if __name__ == "__main__":
    path, name, *arguments = sys.argv[1:]
    from keras_plasticity import backend

    backend.use_device("cpu")
    np.savez(path, **globals()[name](*map(json.loads, arguments)))
