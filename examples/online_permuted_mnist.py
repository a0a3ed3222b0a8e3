"""Online Permuted MNIST, with backpropagation or continual backpropagation.

A network learns from one example at a time, each seen once. Every 60,000
examples a new task begins: all pixels are shuffled anew. Accuracy is measured
on each example before the network learns from it. The defaults are those of
the paper; a small run on the CPU is

    python examples/online_permuted_mnist.py --method=cbp --num_tasks=10 \
        --hidden_units=100 --replacement_rate=1e-4

and `tensorboard --logdir=logs` shows it. The environment variable
`KERAS_BACKEND` chooses jax, tensorflow or torch.

At the start of each task, before training, the first 2,000 examples of the
new task measure dead units and effective rank of every hidden layer, and
weight magnitudes are taken. Replaced units are those of the task; histograms
of utility and age are taken at its end. Tasks count from 0.

References:

- [Dohare et al., 2024](https://doi.org/10.1038/s41586-024-07711-7)
"""

import math
import sys

import keras
import numpy as np
import reporting
from absl import app
from absl import flags
from absl import logging

import keras_plasticity
from keras_plasticity import metrics
from keras_plasticity import streams
from keras_plasticity import training
from keras_plasticity import utils

PROBLEM = "online_permuted_mnist"
NUM_CLASSES = 10
NUM_PROBE_EXAMPLES = 2000

METHOD = flags.DEFINE_enum(
    "method", "cbp", ["bp", "cbp"], "Backpropagation, or the continual one."
)
NUM_TASKS = flags.DEFINE_integer("num_tasks", 800, "Tasks.", lower_bound=1)
EXAMPLES_PER_TASK = flags.DEFINE_integer(
    "examples_per_task", 60000, "Examples in each task.", lower_bound=1
)
HIDDEN_UNITS = flags.DEFINE_integer(
    "hidden_units", 2000, "Units in each hidden layer.", lower_bound=1
)
NUM_HIDDEN_LAYERS = flags.DEFINE_integer(
    "num_hidden_layers", 3, "Hidden layers.", lower_bound=1
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 1, "Examples in each update.", lower_bound=1
)
LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", 0.003, "Step size of SGD, in (0, inf)."
)
REPLACEMENT_RATE = flags.DEFINE_float(
    "replacement_rate",
    1e-6,
    "cbp: fraction of mature units replaced in each update, in [0, 1].",
)
MATURITY_THRESHOLD = flags.DEFINE_integer(
    "maturity_threshold",
    100,
    "cbp: updates for which a new unit is not replaced.",
    lower_bound=0,
)
DECAY_RATE = flags.DEFINE_float(
    "decay_rate", 0.99, "cbp: decay of the running means, in [0, 1)."
)
UTILITY = flags.DEFINE_enum(
    "utility",
    "overall",
    [
        "contribution",
        "mean_corrected_contribution",
        "adaptation",
        "overall",
        "weight_magnitude",
        "random",
    ],
    "cbp: how useful a unit is.",
)
NUM_LEARNERS = flags.DEFINE_integer(
    "num_learners", 1, "Independent learners.", lower_bound=1
)
SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Of initial weights, tasks and new units. Learner i has `seed + i`.",
    lower_bound=0,
)
ON_NAN = flags.DEFINE_enum(
    "on_nan",
    "stop",
    ["stop", "continue"],
    "What to do when a learner diverges: stop, or go on with the others.",
)
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Folder of tensorflow_datasets with MNIST in it. By default its own "
    "folder, to which MNIST is downloaded if need be.",
)
LOG_DIR = flags.DEFINE_string(
    "log_dir",
    None,
    f"Where logs go, by default logs/{PROBLEM}/<method>-seed<seed>-<time>.",
    # absl has one of its own, for its own log files.
    allow_override=True,
)

flags.register_validator(
    LEARNING_RATE, lambda rate: 0 < rate < math.inf, "must be in (0, inf)"
)
flags.register_validator(
    REPLACEMENT_RATE, lambda rate: 0 <= rate <= 1, "must be in [0, 1]"
)
flags.register_validator(
    DECAY_RATE, lambda rate: 0 <= rate < 1, "must be in [0, 1)"
)


def check_flags_agree(values):
    """Flags of continual backpropagation mean nothing without it."""
    given = [
        f"--{holder.name}={holder.value}"
        for holder in _CBP_FLAGS
        if holder.present
    ]
    if values[METHOD.name] == "bp" and given:
        raise flags.ValidationError(
            "These flags are of continual backpropagation only. Leave them "
            "out, or set --method=cbp. Received: --method=bp with "
            + ", ".join(given)
        )
    return True


_CBP_FLAGS = (REPLACEMENT_RATE, MATURITY_THRESHOLD, DECAY_RATE, UTILITY)
flags.register_multi_flags_validator([METHOD, *_CBP_FLAGS], check_flags_agree)


def build_model(num_pixels, seed):
    """The paper's network, compiled: ReLU layers and one linear layer.

    The seed decides the initial weights, which are the same for all methods.
    """
    is_plastic = METHOD.value == "cbp"
    dense = (keras_plasticity if is_plastic else keras).layers.Dense
    rng = np.random.default_rng(seed)
    seeds = rng.integers(2**31, size=NUM_HIDDEN_LAYERS.value + 1).tolist()
    layers = [keras.Input((num_pixels,))]
    for i in range(NUM_HIDDEN_LAYERS.value):
        layers.append(
            dense(
                HIDDEN_UNITS.value,
                activation="relu",
                kernel_initializer=keras.initializers.HeUniform(seeds[i]),
                name=f"hidden_{i + 1}",
            )
        )
    layers.append(
        dense(
            NUM_CLASSES,
            kernel_initializer=keras.initializers.LecunUniform(seeds[-1]),
            name="output",
        )
    )
    model = keras.Sequential(layers, name=METHOD.value)
    optimizer = keras.optimizers.SGD(LEARNING_RATE.value)
    if is_plastic:
        optimizer = keras_plasticity.optimizers.ContinualBackprop(
            optimizer,
            replacement_rate=REPLACEMENT_RATE.value,
            maturity_threshold=MATURITY_THRESHOLD.value,
            decay_rate=DECAY_RATE.value,
            utility=UTILITY.value,
            seed=seed,
        )
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def build_probe(model):
    """A model with the activations of all hidden layers for its outputs."""
    hidden = model.layers[:-1]
    return keras.Model(model.inputs[0], {h.name: h.output for h in hidden})


def measure(model, features):
    """Measures every layer of a model.

    Args:
        model: The learner's model.
        features: Dict from the name of each hidden layer to its activations,
            an array of shape (examples, units).

    Returns:
        Dict from the name of a quantity to a dict from layer to number.
    """
    kernels = {
        layer.name: keras.ops.convert_to_numpy(layer.kernel)
        for layer in model.layers
    }
    return {
        "dead_units": {
            name: metrics.dead_units(h) for name, h in features.items()
        },
        "weight_magnitude": {
            name: metrics.weight_magnitude([w]) for name, w in kernels.items()
        },
        "mean_weight_magnitude": metrics.weight_magnitude(kernels.values()),
        "effective_rank": {
            name: metrics.effective_rank(h) for name, h in features.items()
        },
    }


def num_replaced(model):
    """Units replaced so far, for each hidden layer."""
    if METHOD.value == "bp":
        return {layer.name: 0 for layer in model.layers[:-1]}
    return model.optimizer.num_replaced()


class Recorder(training.TaskCallback):
    """Measures all learners at each task, and writes it to TensorBoard.

    Attributes:
        records: List with a dict for each finished task.
    """

    def __init__(self, writer):
        self.records = []
        self._writer = writer
        self._probes = {}
        self._replaced = []
        self._measured = []
        self._diverged = set()

    def on_task_begin(self, task, x, y):
        self._measured = []
        for learner in range(self.trainer.num_learners):
            model = self.trainer.model(learner)
            if learner in self._diverged:
                continue  # There is nothing to measure.
            if model not in self._probes:
                self._probes[model] = build_probe(model)
            features = self._probes[model].predict_on_batch(
                x[learner, :NUM_PROBE_EXAMPLES]
            )
            self._measured.append(measure(model, features))
            if len(self._replaced) == learner:
                self._replaced.append(num_replaced(model))

    def on_task_end(self, task, results):
        replaced = []
        for learner, before in enumerate(self._replaced):
            model = self.trainer.model(learner)
            after = num_replaced(model)
            replaced.append({k: after[k] - before[k] for k in after})
            self._replaced[learner] = after
            if METHOD.value == "cbp" and learner == 0:
                self._write_histograms(task, model)
        self._diverged.update(np.flatnonzero(~np.isfinite(results["loss"])))
        record = {
            "task": task,
            "online_accuracy": reporting.finite_mean(results["accuracy"]),
            "loss": reporting.finite_mean(results["loss"]),
            "online_accuracy_per_learner": reporting.finite_list(
                results["accuracy"]
            ),
            **_mean_over_learners(self._measured),
            "replaced": _mean_over_learners(replaced),
        }
        self.records.append(record)
        for name in ("online_accuracy", "loss"):
            if record[name] is not None:
                self._writer.scalar(f"task/{name}", record[name], task)
        tags = {
            "units/dead": "dead_units",
            "units/replaced": "replaced",
            "weights/magnitude": "weight_magnitude",
            "representation/effective_rank": "effective_rank",
        }
        for tag, key in tags.items():
            for layer, value in record.get(key, {}).items():
                self._writer.scalar(f"{tag}/{layer}", value, task)
        self._writer.flush()

    def _write_histograms(self, task, model):
        for layer in model.layers[:-1]:
            for name in ("utility", "age"):
                values = keras.ops.convert_to_numpy(getattr(layer, name))
                self._writer.histogram(f"{name}/{layer.name}", values, task)


def _mean_over_learners(measured):
    """The mean of equal, nested dicts of numbers; `{}` of no dict."""
    if not measured:
        return {}
    first = measured[0]
    if not isinstance(first, dict):
        return sum(measured) / len(measured)
    return {
        key: _mean_over_learners([each[key] for each in measured])
        for key in first
    }


def run(images, labels, log_dir, settings):
    """Trains on all tasks, and writes and prints the results."""
    seeds = [SEED.value + learner for learner in range(NUM_LEARNERS.value)]

    def build_stream(learner):
        return streams.OnlinePermutedImages(
            images,
            labels,
            num_tasks=NUM_TASKS.value,
            examples_per_task=EXAMPLES_PER_TASK.value,
            seed=seeds[learner],
        )

    num_pixels = math.prod(images.shape[1:])
    trainer = training.OnlineTrainer(
        lambda learner: build_model(num_pixels, seeds[learner]),
        num_learners=len(seeds),
    )
    problem = None
    with (
        utils.SummaryWriter(log_dir) as writer,
        reporting.TaskProgress(
            METHOD.value,
            NUM_TASKS.value,
            lambda results: reporting.format_mean(
                "online accuracy {:.2%}", results["accuracy"]
            ),
        ) as progress,
    ):
        table = utils.markdown_table(("flag", "value"), list(settings.items()))
        writer.text("flags", table)
        recorder = Recorder(writer)
        try:
            trainer.fit(
                build_stream,
                batch_size=BATCH_SIZE.value,
                callbacks=[recorder, progress],
                on_nan=ON_NAN.value,
            )
        except FloatingPointError as error:
            problem = str(error)
    records = recorder.records
    steps = len(records) * math.ceil(EXAMPLES_PER_TASK.value / BATCH_SIZE.value)
    rate = steps * len(seeds) / max(trainer.train_seconds, 1e-9)
    if records:
        print_records(records)
    path = reporting.write_summary(
        log_dir,
        settings,
        problem=PROBLEM,
        method=METHOD.value,
        num_learners=len(seeds),
        steps_per_learner=steps,
        train_seconds=trainer.train_seconds,
        compile_seconds=trainer.compile_seconds,
        learner_steps_per_second=rate,
        interrupted=trainer.interrupted,
        per_task=records,
    )
    print(
        f"{rate:,.0f} learner-steps a second. Results: {path}\n"
        f"Charts: tensorboard --logdir={log_dir}"
    )
    if problem is not None:
        sys.exit(problem)
    if trainer.interrupted:
        sys.exit("Interrupted: the tasks that were finished are written.")


def print_records(records):
    """Prints a table with the sums or means over the hidden layers."""
    total = NUM_HIDDEN_LAYERS.value * HIDDEN_UNITS.value

    def over_layers(record, key, function):
        # A task that began with all learners diverged was not measured.
        values = list(record.get(key, {}).values())
        return function(values) if values else None

    reporting.print_table(
        "Online Permuted MNIST",
        {
            "task": lambda r: str(r["task"]),
            "online accuracy": lambda r: _format(r["online_accuracy"], ".2%"),
            "loss": lambda r: _format(r["loss"], ".4f"),
            f"dead of {total}": lambda r: _format(
                over_layers(r, "dead_units", sum), ".3g"
            ),
            "weight magnitude": lambda r: _format(
                r.get("mean_weight_magnitude"), ".5f"
            ),
            "effective rank": lambda r: _format(
                over_layers(r, "effective_rank", np.mean), ".1f"
            ),
            "replaced": lambda r: _format(
                over_layers(r, "replaced", sum), ".4g"
            ),
        },
        records,
    )


def _format(value, form):
    return "-" if value is None else format(value, form)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(
            f"All arguments are flags. Received: {' '.join(argv[1:])}"
        )
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # How data are read is no news.
    settings = reporting.flag_values(sys.modules[__name__])
    if METHOD.value == "bp":
        for holder in _CBP_FLAGS:
            del settings[holder.name]
    try:
        log_dir = reporting.start_log_dir(
            LOG_DIR.value, PROBLEM, f"{METHOD.value}-seed{SEED.value}"
        )
        settings[LOG_DIR.name] = log_dir
        reporting.print_start("Online Permuted MNIST", settings)
        images, labels = streams.load_mnist(DATA_DIR.value)
    except (ImportError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    run(images, labels, log_dir, settings)


if __name__ == "__main__":
    app.run(main)
