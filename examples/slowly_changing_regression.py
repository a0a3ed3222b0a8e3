"""Slowly-Changing Regression: loss of plasticity within a minute.

A network of five hidden units tracks a target that changes every 10,000
examples, one example at a time. With backpropagation its error rises in time
above that of a linear model; with continual backpropagation it does not.
Without any flag this is the paper's problem for `bp`, `cbp` and `linear`, 30
learners each, a million examples each:

    python examples/slowly_changing_regression.py

It prints a table and writes, to `--log_dir`, a figure, TensorBoard logs and
`summary.json`. The environment variable `KERAS_BACKEND` chooses the backend;
with jax, all learners of a method train side by side in one compiled program.

References:

- [Dohare et al., 2024](https://doi.org/10.1038/s41586-024-07711-7)
"""

import math
import os
import sys

import keras
import numpy as np
import reporting
from absl import app
from absl import flags
from absl import logging

import keras_plasticity
from keras_plasticity import streams
from keras_plasticity import training
from keras_plasticity import utils

PROBLEM = "slowly_changing_regression"
METHODS = ("bp", "cbp", "linear")
# The gain of each activation in the scheme of Kaiming He, as in the paper.
GAINS = {
    "relu": math.sqrt(2),
    "leaky_relu": math.sqrt(2 / (1 + 0.01**2)),
    "tanh": 5 / 3,
    "sigmoid": 1.0,
    "elu": math.sqrt(2),
    "swish": math.sqrt(2),
}
# Squared error in the first and in the last bin of 20,000 examples, read off
# the figure that the authors' repository ships (1 million examples, all slow
# bits redrawn): (method, activation, learning rate) -> (first, last).
PUBLISHED = {
    ("linear", None, 0.01): (0.885, 0.885),
    ("bp", "relu", 0.01): (0.62, 1.25),
    ("bp", "relu", 0.003): (0.71, 1.07),
    ("bp", "relu", 0.001): (0.84, 0.86),
    ("bp", "tanh", 0.01): (0.43, 0.89),
    ("bp", "tanh", 0.003): (0.60, 0.92),
    ("bp", "tanh", 0.001): (0.80, 0.84),
}
EXAMPLES_PER_BIN = 20_000

METHOD = flags.DEFINE_multi_enum(
    "method",
    METHODS,
    METHODS,
    "Backpropagation, continual backpropagation, or a linear model. Repeat "
    "the flag for several.",
)
ACTIVATION = flags.DEFINE_enum(
    "activation", "relu", list(GAINS), "Of the hidden units."
)
NUM_LEARNERS = flags.DEFINE_integer(
    "num_learners", 30, "Independent learners of each method.", lower_bound=1
)
NUM_EXAMPLES = flags.DEFINE_integer(
    "num_examples", 1_000_000, "Examples for each learner.", lower_bound=1
)
EXAMPLES_PER_TASK = flags.DEFINE_integer(
    "examples_per_task", 10_000, "Examples between changes.", lower_bound=1
)
FLIP_ONE = flags.DEFINE_boolean(
    "flip_one", False, "Flip one slow bit at a change, not redraw all of them."
)
HIDDEN_UNITS = flags.DEFINE_integer(
    "hidden_units", 5, "Hidden units of a learner.", lower_bound=1
)
LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", 0.01, "Step size of SGD, in (0, inf)."
)
REPLACEMENT_RATE = flags.DEFINE_float(
    "replacement_rate",
    1e-3,
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
SEED = flags.DEFINE_integer(
    "seed", 0, "Learner i has the seed `seed + i`.", lower_bound=0
)
ON_NAN = flags.DEFINE_enum(
    "on_nan",
    "stop",
    ["stop", "continue"],
    "What to do when a learner diverges: stop, or go on with the others.",
)
LOG_DIR = flags.DEFINE_string(
    "log_dir",
    None,
    f"Where results go, by default logs/{PROBLEM}/seed<seed>-<time>.",
    # absl has one of its own, for its own log files.
    allow_override=True,
)


def check_flags_agree(values):
    """Flags of continual backpropagation mean nothing without it."""
    given = [
        f"--{holder.name}={holder.value}"
        for holder in _CBP_FLAGS
        if holder.present
    ]
    if "cbp" not in values[METHOD.name] and given:
        raise flags.ValidationError(
            "These flags are of continual backpropagation only. Leave them "
            "out, or add --method=cbp. Received: --method="
            + ",".join(values[METHOD.name])
            + " with "
            + ", ".join(given)
        )
    return True


_CBP_FLAGS = (REPLACEMENT_RATE, MATURITY_THRESHOLD, DECAY_RATE, UTILITY)
flags.register_multi_flags_validator([METHOD, *_CBP_FLAGS], check_flags_agree)
flags.register_validator(
    LEARNING_RATE, lambda rate: 0 < rate < math.inf, "must be in (0, inf)"
)
flags.register_validator(
    REPLACEMENT_RATE, lambda rate: 0 <= rate <= 1, "must be in [0, 1]"
)
flags.register_validator(
    DECAY_RATE, lambda rate: 0 <= rate < 1, "must be in [0, 1)"
)


def build_model(method, seed):
    """The paper's learner: one hidden layer, or none, and a linear output."""
    hidden_seed, output_seed = np.random.default_rng(seed).integers(
        2**31, size=2
    )
    dense = (keras_plasticity if method == "cbp" else keras).layers.Dense
    layers = [keras.Input((20,))]
    if method != "linear":
        layers.append(
            dense(
                HIDDEN_UNITS.value,
                kernel_initializer=keras.initializers.VarianceScaling(
                    GAINS[ACTIVATION.value] ** 2,
                    "fan_in",
                    "uniform",
                    seed=int(hidden_seed),
                ),
                name="hidden",
            )
        )
        if ACTIVATION.value == "leaky_relu":
            layers.append(keras.layers.LeakyReLU(0.01))
        else:
            layers.append(keras.layers.Activation(ACTIVATION.value))
    layers.append(
        dense(
            1,
            kernel_initializer=keras.initializers.LecunUniform(
                int(output_seed)
            ),
            name="output",
        )
    )
    model = keras.Sequential(layers, name=method)
    optimizer = keras.optimizers.SGD(LEARNING_RATE.value)
    if method == "cbp":
        optimizer = keras_plasticity.optimizers.ContinualBackprop(
            optimizer,
            replacement_rate=REPLACEMENT_RATE.value,
            maturity_threshold=MATURITY_THRESHOLD.value,
            decay_rate=DECAY_RATE.value,
            utility=UTILITY.value,
            seed=seed,
        )
    model.compile(optimizer=optimizer, loss="mse")
    return model


def build_stream(seed):
    return streams.SlowlyChangingRegression(
        num_tasks=NUM_EXAMPLES.value // EXAMPLES_PER_TASK.value,
        examples_per_task=EXAMPLES_PER_TASK.value,
        flip_one=FLIP_ONE.value,
        seed=seed,
    )


def train(method, log_dir, settings):
    """Trains all learners of a method on all tasks, and writes the results.

    Returns:
        Dict, what was measured: an entry of `summary.json`.
    """
    seeds = [SEED.value + learner for learner in range(NUM_LEARNERS.value)]
    trainer = training.OnlineTrainer(
        lambda learner: build_model(method, seeds[learner]),
        num_learners=len(seeds),
    )
    num_tasks = NUM_EXAMPLES.value // EXAMPLES_PER_TASK.value
    with reporting.TaskProgress(
        f"{method:6}",
        num_tasks,
        lambda results: reporting.format_mean(
            "squared error {:.3f}", results["loss"]
        ),
    ) as progress:
        problem = None
        try:
            results = trainer.fit(
                lambda learner: build_stream(seeds[learner]),
                callbacks=[progress],
                on_nan=ON_NAN.value,
            )
        except FloatingPointError as error:
            results = error.results
            problem = f"{method}: {error}"
    errors = results.get("loss", np.empty((0, len(seeds))))
    with utils.SummaryWriter(os.path.join(log_dir, method)) as writer:
        writer.text(
            "flags",
            utils.markdown_table(("flag", "value"), list(settings.items())),
        )
        for task, error in enumerate(errors):
            mean = reporting.finite_mean(error)
            if mean is not None:
                writer.scalar("task/squared_error", mean, task)
                spread = reporting.standard_error(error)
                writer.scalar("task/standard_error", spread, task)
    steps = errors.size * EXAMPLES_PER_TASK.value
    record = {
        "problem": PROBLEM,
        "method": method,
        "num_learners": len(seeds),
        "steps_per_learner": steps // len(seeds),
        "train_seconds": trainer.train_seconds,
        "compile_seconds": trainer.compile_seconds,
        "learner_steps_per_second": steps / max(trainer.train_seconds, 1e-9),
        "interrupted": trainer.interrupted,
        "problem_met": problem,
        "per_task": [
            {
                "task": task,
                "squared_error": reporting.finite_mean(error),
                "standard_error": reporting.standard_error(error),
                "squared_error_per_learner": reporting.finite_list(error),
            }
            for task, error in enumerate(errors)
        ],
    }
    if method == "cbp":
        record["units_replaced_per_learner"] = [
            trainer.model(learner).optimizer.num_replaced()["hidden"]
            for learner in range(len(seeds))
        ]
    return record


def tasks_per_bin():
    """Bins have 20,000 examples as in the paper, or are the whole of a run."""
    num_tasks = NUM_EXAMPLES.value // EXAMPLES_PER_TASK.value
    return min(num_tasks, max(1, EXAMPLES_PER_BIN // EXAMPLES_PER_TASK.value))


def per_bin(record):
    """Errors averaged over bins of examples, as the figure shows them.

    Returns:
        Tuple of the examples seen at the end of each bin, and of the errors,
        an array of shape (bins, learners).
    """
    errors = np.array(
        [task["squared_error_per_learner"] for task in record["per_task"]],
        dtype="float64",
    )
    # A run that was stopped may not have got as far as one whole bin.
    size = min(tasks_per_bin(), max(1, len(errors)))
    bins = len(errors) // size
    errors = errors[: bins * size].reshape(bins, size, NUM_LEARNERS.value)
    examples = (np.arange(bins) + 1) * size * EXAMPLES_PER_TASK.value
    return examples, errors.mean(axis=1)


def mean_of_learners(errors):
    """Mean over the learners whose error is finite, for each bin."""
    return np.ma.masked_invalid(errors).mean(axis=1).filled(np.nan)


def bin_title():
    size = tasks_per_bin() * EXAMPLES_PER_TASK.value
    return f"bins of {size:,} examples"


def published(method):
    """The published errors in the first and in the last bin, or `None`."""
    if FLIP_ONE.value or EXAMPLES_PER_TASK.value != 10_000:
        return None
    activation = None if method == "linear" else ACTIVATION.value
    return PUBLISHED.get((method, activation, LEARNING_RATE.value))


def draw_figure(records, path):
    """Draws error against time, mean and standard error over learners."""
    from matplotlib import ticker

    figure, axes = reporting.new_figure()
    for color, record in enumerate(records):
        method = record["method"]
        examples, errors = per_bin(record)
        mean = mean_of_learners(errors)
        spread = np.array([reporting.standard_error(error) for error in errors])
        axes.plot(examples, mean, color=f"C{color}", label=method)
        axes.fill_between(
            examples,
            mean - spread,
            mean + spread,
            color=f"C{color}",
            alpha=0.25,
            linewidth=0,
        )
        marks = published(method)
        if marks is not None and len(examples):
            axes.plot(
                [examples[0], 1_000_000],
                marks,
                linestyle="none",
                marker="D",
                markersize=6,
                markerfacecolor="white",
                color=f"C{color}",
                label=f"{method}, published",
            )
    axes.set_xlabel("examples")
    axes.set_ylabel(f"squared error, {bin_title()}")
    axes.set_title(
        f"Slowly-Changing Regression, {ACTIVATION.value}, step size "
        f"{LEARNING_RATE.value:g}, {NUM_LEARNERS.value} learners"
    )
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(ticker.EngFormatter())
    axes.legend(loc="lower left", ncols=len(records))
    figure.savefig(path, dpi=150)


def print_results(records):
    """Prints first, lowest and last bin of each method."""

    def cell(record, index):
        errors = per_bin(record)[1]
        return (
            f"{mean_of_learners(errors)[index]:.3f}"
            f"±{reporting.standard_error(errors[index]):.3f}"
        )

    def published_cell(record):
        marks = published(record["method"])
        return "-" if marks is None else f"{marks[0]:g}, {marks[1]:g}"

    reporting.print_table(
        f"Squared error, {NUM_LEARNERS.value} learners, {bin_title()}",
        {
            "method": lambda r: r["method"],
            "first": lambda r: cell(r, 0),
            "lowest": lambda r: cell(
                r,
                np.argmin(
                    np.nan_to_num(mean_of_learners(per_bin(r)[1]), nan=np.inf)
                ),
            ),
            "last": lambda r: cell(r, -1),
            "published": published_cell,
            "seconds": lambda r: (
                f"{r['compile_seconds'] + r['train_seconds']:.1f}"
            ),
        },
        [r for r in records if len(per_bin(r)[1])],
    )


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(
            f"All arguments are flags. Received: {' '.join(argv[1:])}"
        )
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # What JAX looks for is no news.
    if NUM_EXAMPLES.value % EXAMPLES_PER_TASK.value:
        sys.exit(
            "--num_examples must be a multiple of --examples_per_task. "
            f"Received: --num_examples={NUM_EXAMPLES.value} "
            f"--examples_per_task={EXAMPLES_PER_TASK.value}"
        )
    reporting.check_matplotlib()
    settings = reporting.flag_values(sys.modules[__name__])
    try:
        log_dir = reporting.start_log_dir(
            LOG_DIR.value, PROBLEM, f"seed{SEED.value}"
        )
    except FileExistsError as error:
        sys.exit(str(error))
    reporting.print_start("Slowly-Changing Regression", settings)
    records = []
    for method in dict.fromkeys(METHOD.value):
        records.append(train(method, log_dir, settings))
        if records[-1]["interrupted"]:
            print("Interrupted: what was finished is written.")
        if records[-1]["interrupted"] or records[-1]["problem_met"]:
            break
    print_results(records)
    path = reporting.write_summary(
        log_dir, settings, problem=PROBLEM, runs=records
    )
    figure = os.path.join(log_dir, f"{PROBLEM}.png")
    draw_figure(records, figure)
    print(
        f"Results: {path}\nFigure: {figure}\n"
        f"Charts: tensorboard --logdir={log_dir}"
    )
    if records[-1]["problem_met"]:
        sys.exit(records[-1]["problem_met"])


if __name__ == "__main__":
    app.run(main)
