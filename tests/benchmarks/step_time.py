"""Time of a training step, in microseconds.

    python tests/benchmarks/step_time.py
    python tests/benchmarks/step_time.py --table=width --backends=jax

Each figure is the median of `--repeats` runs after one that is not counted.
All cells of a table that share a backend run in one process, the runs of
different cells in turn (A B C, A B C, ...), so that ratios hold when the
machine's speed drifts. Times per learner-step are a step's time divided by the
number of learners. `eager` is the plain PyTorch loop of `eager_torch.py`.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time

from absl import app
from absl import flags

TABLE = flags.DEFINE_multi_enum(
    "table",
    ["steps"],
    [
        "steps",
        "targets",
        "fit",
        "steps_per_execution",
        "methods",
        "convolutions",
        "imagenet",
        "recurrent",
        "gpt",
        "width",
        "depth",
        "batch",
        "learners",
        "bandwidth",
    ],
    "What to measure.",
)
BACKENDS = flags.DEFINE_list(
    "backends", ["jax", "tensorflow", "torch"], "Backends of Keras."
)
REPEATS = flags.DEFINE_integer("repeats", 5, "Counted runs of each cell.")
SECONDS = flags.DEFINE_float("seconds", 0.5, "Length of a run, about.")
CELLS = flags.DEFINE_string("cells", None, "Internal: cells of one process.")

# Problem -> (inputs, hidden layers, outputs, batch size).
PROBLEMS = {
    "regression": (20, [5], 1, 1),
    "mnist 3x100": (784, [100] * 3, 10, 1),
    "mnist 3x2000": (784, [2000] * 3, 10, 1),
    "mnist 3x2000 batch 100": (784, [2000] * 3, 10, 100),
    "imagenet": (3072, [32, 64, 128, 128, 128], 2, 100),
    "resnet18": (3072, [64, 128, 256, 512], 10, 100),
    # 20 time steps of 16 features.
    "lstm": (320, [256], 1, 32),
    # 10 million weights, texts of 128 tokens, of 8,000 that there are.
    "gpt": (128, [256] * 8, 8000, 8),
}
RATES = {
    "regression": 1e-3,
    "mnist 3x100": 1e-4,
    "imagenet": 3e-4,
    "lstm": 1e-4,
}
MOMENTUM = {"imagenet": 0.9}
METHODS = ("bp", "contribution", "overall")
DATA_FORMATS = ("channels_last", "channels_first")
# What continual backpropagation is compared with.
OTHER_METHODS = (
    "l2",
    "shrink_and_perturb",
    "shrink_and_perturb_by_initializer",
    "momentum",
    "adam",
    "dropout",
    "layer_norm",
    "batch_norm",
    "online_norm",
)
# Other methods that replace units.
RESETS = ("redo", "self_normalized_resets")


def cell(problem, method, mode, learners=1, **changes):
    inputs, hidden, outputs, batch = PROBLEMS[problem]
    result = {
        "problem": problem,
        "method": method,
        "mode": mode,
        "learners": learners,
        "inputs": inputs,
        "hidden": hidden,
        "outputs": outputs,
        "batch": batch,
        "rate": RATES.get(problem, 1e-6),
        "momentum": MOMENTUM.get(problem, 0.0),
        "data_format": None,
        "steps_per_execution": 1,
    }
    result.update(changes)
    return result


def table_cells(table, backend):
    """The cells of a table that one backend measures."""
    if table == "targets":
        if backend != "jax":
            problems = list(PROBLEMS)[:3] if backend == "torch" else []
            return [
                cell(problem, method, "eager")
                for problem in problems
                for method in METHODS
            ]
        result = [
            cell(problem, method, "engine")
            for problem in list(PROBLEMS)[:4]
            for method in METHODS
        ]
        result += [
            cell("regression", method, "engine", 30) for method in METHODS
        ]
        return result
    if table == "fit":
        problem = "mnist 3x2000 batch 100"
        result = [cell(problem, method, "fit") for method in METHODS]
        # What an engine is for: the same steps, one example at a time.
        return result + [
            cell("regression", "contribution", mode)
            for mode in ("fit", "engine")
        ]
    if table == "steps_per_execution":
        # Keras has no such thing on PyTorch.
        many = [1] if backend == "torch" else [1, 64]
        return [
            each
            for problem in list(PROBLEMS)[:2]
            for method in METHODS[:2]
            for each in (
                *(
                    cell(problem, method, "fit", steps_per_execution=steps)
                    for steps in many
                ),
                cell(problem, method, "engine"),
            )
        ]
    if table == "methods":
        return [
            cell(problem, method, "engine")
            for problem in list(PROBLEMS)[1:4]
            for method in ("bp", *OTHER_METHODS, *RESETS)
        ]
    if table == "convolutions":
        return [
            cell(problem, method, "fit")
            for problem in ("imagenet", "resnet18")
            for method in METHODS
        ]
    if table == "recurrent":
        return [
            cell("lstm", method, mode)
            for method in METHODS
            # PyTorch's compiler takes the steps of time one by one: minutes.
            for mode in ("fit", *["engine"] * (backend != "torch"))
        ]
    if table == "gpt":
        return [cell("gpt", method, "fit") for method in METHODS]
    if table == "imagenet":
        result = [
            cell("imagenet", method, "engine", data_format=data_format)
            for data_format in DATA_FORMATS
            for method in METHODS
        ]
        if backend == "torch":
            result += [cell("imagenet", method, "eager") for method in METHODS]
        return result
    if table == "steps":
        modes = ["fit", "engine"]
        return [
            cell(problem, method, mode, learners)
            for problem in list(PROBLEMS)[:3]
            for method in METHODS
            for mode in modes
            for learners in (1, 30)
            if learners == 1 or (mode == "engine" and problem != "mnist 3x2000")
        ] + (
            [
                cell(problem, method, "eager")
                for problem in list(PROBLEMS)[:3]
                for method in METHODS
            ]
            if backend == "torch"
            else []
        )
    changes = {
        "width": [{"hidden": [n] * 3} for n in (100, 300, 1000, 2000, 4000)],
        "depth": [{"hidden": [500] * n} for n in (1, 2, 4, 8)],
        "batch": [
            {"hidden": [500] * 3, "batch": n} for n in (1, 4, 16, 64, 256)
        ],
        "learners": [
            {"hidden": [100] * 3, "learners": n} for n in (1, 3, 10, 30, 100)
        ],
        "bandwidth": [{}],
    }[table]
    return [
        cell("mnist 3x2000", method, "engine", **change)
        for change in changes
        for method in METHODS
    ]


def make_data(spec, steps):
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (spec["learners"], steps * spec["batch"])
    if spec["problem"] == "gpt":
        tokens = (*shape, spec["inputs"] + 1)
        tokens = rng.integers(0, spec["outputs"], tokens, dtype="int32")
        return tokens[..., :-1], tokens[..., 1:]
    x = rng.random((*shape, spec["inputs"]), dtype="float32")
    if spec["outputs"] == 1:
        return x, rng.random((*shape, 1), dtype="float32")
    return x, rng.integers(0, spec["outputs"], shape, dtype="int32")


class Stream:
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return 1_000_000

    def task(self, index):
        return self.x, self.y


def dense_network(layers, spec):
    import keras

    import keras_plasticity

    normalization = {
        "layer_norm": keras.layers.LayerNormalization,
        "batch_norm": keras.layers.BatchNormalization,
        "online_norm": keras_plasticity.layers.OnlineNormalization,
    }.get(spec["method"])
    network = [keras.Input((spec["inputs"],))]
    for units in spec["hidden"]:
        network.append(
            layers.Dense(
                units,
                activation=None if normalization else "relu",
                kernel_initializer="he_uniform",
            )
        )
        if normalization is not None:
            network += [normalization(), keras.layers.ReLU()]
        if spec["method"] == "dropout":
            network.append(keras.layers.Dropout(0.1))
    network.append(
        layers.Dense(spec["outputs"], kernel_initializer="lecun_uniform")
    )
    return keras.Sequential(network)


def imagenet_network(layers, spec):
    """The paper's network for Continual ImageNet."""
    import keras

    *filters, units, last_units = spec["hidden"]
    data_format = spec["data_format"] or keras.config.image_data_format()
    is_first = data_format == "channels_first"
    network = [
        keras.Input((spec["inputs"],)),
        keras.layers.Reshape((3, 32, 32) if is_first else (32, 32, 3)),
    ]
    for size, each in zip((5, 3, 3), filters):
        network += [
            layers.Conv2D(
                each, size, activation="relu", data_format=data_format
            ),
            keras.layers.MaxPooling2D(2, data_format=data_format),
        ]
    network.append(keras.layers.Flatten(data_format=data_format))
    for each in (units, last_units):
        network.append(layers.Dense(each, activation="relu"))
    network.append(layers.Dense(spec["outputs"]))
    return keras.Sequential(network)


def resnet18(layers, spec):
    """ResNet-18 for images of 32 x 32."""
    import keras

    def normalized(filters, size, strides, x):
        x = layers.Conv2D(
            filters, size, strides, padding="same", use_bias=False
        )(x)
        return keras.layers.BatchNormalization()(x)

    inputs = keras.Input((spec["inputs"],))
    x = keras.layers.Reshape((32, 32, 3))(inputs)
    x = keras.layers.ReLU()(normalized(spec["hidden"][0], 3, 1, x))
    for stage, filters in enumerate(spec["hidden"]):
        for block in range(2):
            strides = 2 if stage and not block else 1
            shortcut = x
            x = keras.layers.ReLU()(normalized(filters, 3, strides, x))
            x = normalized(filters, 3, 1, x)
            if strides > 1:
                shortcut = normalized(filters, 1, strides, shortcut)
            x = keras.layers.ReLU()(keras.layers.Add()([x, shortcut]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(spec["outputs"])(x))


def lstm(layers, spec):
    """A forecaster, which says one number of a sequence."""
    import keras

    (units,) = spec["hidden"]
    return keras.Sequential(
        [
            keras.Input((spec["inputs"],)),
            keras.layers.Reshape((20, -1)),
            layers.LSTM(units),
            layers.Dense(spec["outputs"]),
        ]
    )


def gpt(layers, spec):
    """A language model: blocks of causal attention and two dense layers."""
    import keras

    width = spec["hidden"][0]
    x = inputs = keras.Input((spec["inputs"],), dtype="int32")
    x = keras.layers.Embedding(spec["outputs"], width)(x)
    ones = keras.ops.ones_like(inputs)
    positions = keras.ops.cumsum(ones, axis=1) - 1
    x = x + keras.layers.Embedding(spec["inputs"], width)(positions)
    for _ in spec["hidden"]:
        y = keras.layers.LayerNormalization()(x)
        attention = layers.MultiHeadAttention(4, width // 4)
        x = x + attention(y, y, use_causal_mask=True)
        y = keras.layers.LayerNormalization()(x)
        y = layers.Dense(4 * width, activation="gelu")(y)
        x = x + layers.Dense(width)(y)
    x = keras.layers.LayerNormalization()(x)
    return keras.Model(inputs, keras.layers.Dense(spec["outputs"])(x))


NETWORKS = {
    "gpt": gpt,
    "imagenet": imagenet_network,
    "lstm": lstm,
    "resnet18": resnet18,
}


def build_model(spec):
    import keras

    import keras_plasticity

    method = spec["method"]
    plain = method == "bp" or method in OTHER_METHODS
    network = NETWORKS.get(spec["problem"], dense_network)
    model = network((keras if plain else keras_plasticity).layers, spec)
    optimizer = keras.optimizers.SGD(0.003, momentum=spec["momentum"])
    optimizers = keras_plasticity.optimizers
    if method == "l2":
        optimizer = optimizers.L2(optimizer)
    elif method == "shrink_and_perturb":
        optimizer = optimizers.ShrinkAndPerturb(optimizer, seed=0)
    elif method == "shrink_and_perturb_by_initializer":
        optimizer = optimizers.ShrinkAndPerturbByInitializer(optimizer, seed=0)
    elif method == "momentum":
        optimizer = keras.optimizers.SGD(0.003, momentum=0.9)
    elif method == "adam":
        optimizer = keras.optimizers.Adam(1e-4)
    elif method == "redo":
        optimizer = optimizers.ReDo(optimizer, score_updates=100, seed=0)
    elif method == "self_normalized_resets":
        optimizer = optimizers.SelfNormalizedResets(optimizer, seed=0)
    elif not plain:
        optimizer = optimizers.ContinualBackprop(
            optimizer,
            replacement_rate=spec["rate"],
            utility=method,
            seed=0,
        )
    steps = spec["steps_per_execution"]
    if spec["outputs"] == 1:
        model.compile(optimizer, "mse", steps_per_execution=steps)
    else:
        model.compile(
            optimizer,
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            steps_per_execution=steps,
        )
    return model


def prepare(spec):
    """A function that makes a number of steps and returns their seconds."""
    if spec["mode"] == "eager":
        return prepare_eager(spec)
    if spec["mode"] == "fit":
        model = build_model(spec)

        def run(steps):
            x, y = make_data(spec, steps)
            start = time.perf_counter()
            model.fit(x[0], y[0], spec["batch"], shuffle=False, verbose=0)
            return time.perf_counter() - start

        run(2)
        return run
    from keras_plasticity.training import OnlineTrainer
    from keras_plasticity.training import online_trainer

    # What is timed are long runs.
    online_trainer._FEWEST_STEPS_TO_COMPILE = 0
    trainers = {}

    def run(steps):
        # A compiled program serves tasks of one length.
        if steps not in trainers:
            x, y = make_data(spec, steps)
            streams = [Stream(a, b) for a, b in zip(x, y)]
            trainer = OnlineTrainer(
                lambda learner: build_model(spec), spec["learners"]
            )
            trainers.clear()
            trainers[steps] = trainer, streams
        trainer, streams = trainers[steps]
        before = trainer.train_seconds
        trainer.fit(
            streams.__getitem__,
            batch_size=spec["batch"],
            num_tasks=1,
            on_nan="continue",
        )
        return trainer.train_seconds - before

    return run


def prepare_eager(spec):
    import eager_torch
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    is_image = spec["problem"] == "imagenet"
    if is_image:
        *filters, units, last_units = spec["hidden"]
        network = eager_torch.ConvolutionalNetwork(
            filters, (units, last_units), spec["outputs"]
        )
    else:
        network = eager_torch.Network(
            [spec["inputs"], *spec["hidden"], spec["outputs"]]
        )
    learner = eager_torch.Learner(
        network.to(device),
        torch.nn.functional.mse_loss
        if spec["outputs"] == 1
        else torch.nn.functional.cross_entropy,
        0.003,
        spec["momentum"],
        None if spec["method"] == "bp" else spec["method"],
        spec["rate"],
    )

    def run(steps):
        x, y = (
            torch.as_tensor(a[0], device=device) for a in make_data(spec, steps)
        )
        image = (3, 32, 32) if is_image else (-1,)
        x = x.reshape(steps, spec["batch"], *image)
        y = y.reshape(steps, spec["batch"], *y.shape[1:])
        if spec["outputs"] > 1:
            y = y.long()
        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        wait()  # For the data.
        start = time.perf_counter()
        for i in range(steps):
            learner.learn(x[i], y[i])
        wait()  # A card lags behind its host.
        return time.perf_counter() - start

    run(20)
    return run


def measure(cells, repeats, seconds):
    """Prints one JSON line for each cell: its median time and its spread."""
    runs, steps = [], []
    for spec in cells:
        run = prepare(spec)
        run(2)  # May draw what serves the steps of the others as well.
        per_step = run(2) / 2
        for probe in (20, 1000):
            if per_step * probe < 1.0:
                per_step = run(probe) / probe
        runs.append(run)
        steps.append(max(2, min(200_000, int(seconds / per_step))))
    times = [[] for _ in cells]
    for repeat in range(repeats + 1):
        for i, run in enumerate(runs):
            time_per_step = run(steps[i]) / steps[i] * 1e6
            if repeat:
                times[i].append(time_per_step)
    for spec, values in zip(cells, times):
        values.sort()
        print(
            json.dumps(
                {
                    **spec,
                    "microseconds": statistics.median(values),
                    "least": values[0],
                    "most": values[-1],
                }
            ),
            flush=True,
        )


def run_in_process(backend, cells):
    """Measures cells in a process of their own, with its backend."""
    process = subprocess.run(
        [
            sys.executable,
            __file__,
            f"--cells={json.dumps(cells)}",
            f"--repeats={REPEATS.value}",
            f"--seconds={SECONDS.value}",
        ],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    lines = [line for line in process.stdout.splitlines() if line[:1] == "{"]
    return [json.loads(line) for line in lines]


def weight_bytes(spec):
    sizes = [spec["inputs"], *spec["hidden"], spec["outputs"]]
    return 4 * sum(a * b for a, b in zip(sizes, sizes[1:]))


def moved_bytes(spec):
    """Bytes of weights that a step of dense layers has to read and write."""
    # Forward and backward products read the weights, the update reads and
    # writes them; utilities read them once or twice.
    passes = {"bp": 4, "contribution": 5, "overall": 6}
    return passes[spec["method"]] * weight_bytes(spec) * spec["learners"]


def memory_bandwidth():
    """Bytes a second that NumPy copies, read and written bytes counted."""
    import numpy as np

    source = np.ones(64 * 2**20, "float32")
    target = np.empty_like(source)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / statistics.median(times)


def print_rows(rows):
    bp = {}
    for row in rows:
        if row["data_format"]:
            row["mode"] += f", {row['data_format']}"
        if row["steps_per_execution"] > 1:
            row["mode"] += f", {row['steps_per_execution']} a call"
        key = (row["backend"], row["mode"], row["learners"], row["batch"])
        key += (tuple(row["hidden"]),)
        if row["method"] == "bp":
            bp[key] = row["microseconds"]
    print(
        "| backend | problem | hidden | batch | method | mode | learners | "
        "us/step | min-max | us/learner-step | over bp |"
    )
    print("|" + " --- |" * 11)
    for row in rows:
        key = (row["backend"], row["mode"], row["learners"], row["batch"])
        key += (tuple(row["hidden"]),)
        hidden = f"{len(row['hidden'])}x{row['hidden'][0]}"
        print(
            f"| {row['backend']} | {row['problem'].split()[0]} | {hidden} | "
            f"{row['batch']} | {row['method']} | {row['mode']} | "
            f"{row['learners']} | {row['microseconds']:.2f} | "
            f"{row['least']:.2f}-{row['most']:.2f} | "
            f"{row['microseconds'] / row['learners']:.3f} | "
            f"{row['microseconds'] / bp.get(key, float('nan')):.2f} |"
        )


def main(_):
    if CELLS.value:
        from keras_plasticity import backend

        # As the trainers do.
        cells = json.loads(CELLS.value)
        backend.compile_small_loops_whole(max(each["batch"] for each in cells))
        measure(cells, REPEATS.value, SECONDS.value)
        return
    import importlib.metadata as metadata

    packages = ("keras", "jax", "tensorflow", "torch", "numpy")
    versions = [f"{name} {metadata.version(name)}" for name in packages]
    print(
        f"Python {platform.python_version()}, {', '.join(versions)}; "
        f"{os.cpu_count()} cores, {platform.machine()}; medians of "
        f"{REPEATS.value} runs"
    )
    for table in TABLE.value:
        print(f"\n## {table}\n")
        rows = []
        for backend in BACKENDS.value:
            cells = table_cells(table, backend)
            if cells:
                rows += [
                    {**row, "backend": backend}
                    for row in run_in_process(backend, cells)
                ]
        if not rows:
            continue
        print_rows(rows)
        if table == "bandwidth":
            bandwidth = memory_bandwidth()
            for row in rows:
                moved = moved_bytes(row)
                rate = moved / row["microseconds"] * 1e6
                print(
                    f"{row['backend']} {row['method']}: "
                    f"{moved / 1e6:.0f} MB a step at least, "
                    f"{rate / 1e9:.1f} GB/s, "
                    f"{rate / bandwidth:.0%} of a copy's "
                    f"{bandwidth / 1e9:.1f} GB/s"
                )


if __name__ == "__main__":
    app.run(main)
