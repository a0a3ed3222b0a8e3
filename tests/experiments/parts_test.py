"""A part is one record: what follows from one that is not in the library."""

import dataclasses
import os
import subprocess
import sys

import keras
import pytest
from absl import flags

import keras_plasticity
from keras_plasticity import experiments
from keras_plasticity import streams
from keras_plasticity import training
from keras_plasticity.experiments import methods
from tests.helpers import to_numpy


class _Halve(keras_plasticity.optimizers.L2):
    """Stands for any wrapper."""


RECYCLE = experiments.Part(
    "recycle",
    "dormant units redrawn ([Someone](https://example.org))",
    "`optimizers.Recycle`",
    flags=(
        experiments.Flag("threshold", "largest score", 0.1, "[0, 1)"),
        experiments.Flag("period", "updates", 1000, "[1, inf)", type=int),
        experiments.Flag("with_slots", "also slots", True, type=bool),
        experiments.Flag("score", "how", "mean", choices=("mean", "max")),
    ),
    excludes=("cbp", "linear"),
    wrap=lambda optimizer, settings, seed, initializer: _Halve(
        optimizer, settings["threshold"]
    ),
    plastic_layers=True,
)
CONCATENATED = experiments.Part(
    "concatenated",
    "twice as many units",
    omits=("activation",),
    activation=lambda settings, name: keras.layers.Lambda(
        lambda x: keras.ops.concatenate([x, -x], axis=-1), name=name
    ),
)
PARTS = (*experiments.PARTS, RECYCLE, CONCATENATED)


def parse(*arguments, parts=PARTS):
    flag_values = flags.FlagValues()
    experiments.define_flags(flag_values, parts=parts)
    flag_values(["trainer", *arguments])
    return flag_values


def choose(*arguments, defaults=None):
    [method] = experiments.choose_methods(
        parse(*arguments), defaults or {}, [], PARTS
    )
    return method


def hidden(method):
    return method.hidden(
        "Dense",
        units=3,
        kernel_initializer=keras.initializers.HeUniform(1),
        name="hidden",
    )


def test_its_flags_have_its_defaults_and_those_of_the_problem():
    settings = choose("--method=recycle", "--score=max").settings
    assert settings["threshold"] == 0.1
    assert settings["period"] == 1000
    assert settings["with_slots"] is True
    assert settings["score"] == "max"
    method = choose(
        "--method=recycle,l2",
        "--nowith_slots",
        defaults={"period": {"l2": 5, None: 7}, "threshold": 0.5},
    )
    assert method.settings["period"] == 5
    assert method.settings["threshold"] == 0.5
    assert method.changed == {"with_slots"}


def test_its_flags_have_help_texts_that_name_it():
    flag_values = parse()
    assert flag_values["period"].help == (
        "recycle: updates, in [1, inf). Default: 1000, where the problem has "
        "no other one."
    )
    assert ", recycle, concatenated." in flag_values["method"].help


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threshold=1"], r"threshold=1.0.*must be in \[0, 1\)"),
        (["--period=0"], r"period=0.*must be in \[1, inf\)"),
        (["--period=1.5"], "period"),
        (["--score=median"], "score.*<mean\\|max>"),
        (["--method=recycle,cbp"], "cbp and recycle contradict each other"),
        (["--method=recycle,linear"], "linear and recycle contradict each"),
        (["--method=linear,concatenated"], "linear and concatenated contra"),
        (["--method=recycled"], "one or more of.*recycle, conc.*=recycled"),
    ],
)
def test_bad_flags(arguments, message):
    with pytest.raises(flags.Error, match=message):
        parse(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--method=bp", "--period=3"],
            "--period belongs to methods with recycle only.*=3 with --meth",
        ),
        (
            ["--method=concatenated", "--activation=elu"],
            "--activation does not belong to methods with .*linear or concat",
        ),
    ],
)
def test_flags_that_no_method_needs(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose(*arguments)


def test_it_wraps_the_optimizer_and_has_plastic_layers():
    method = choose("--method=adam,recycle")
    assert method.name == "recycle,adam"
    optimizer = method.optimizer(0, "he_uniform")
    assert type(optimizer) is _Halve
    assert isinstance(optimizer.inner_optimizer, keras.optimizers.Adam)
    [layer] = hidden(method)
    assert type(layer) is keras_plasticity.layers.Dense


def test_an_activation_follows_the_normalization():
    method = choose("--method=concatenated,layer_norm,dropout")
    layers = hidden(method)
    assert [type(layer) for layer in layers] == [
        keras.layers.Dense,
        keras.layers.LayerNormalization,
        keras.layers.Lambda,
        keras.layers.Dropout,
    ]
    x = keras.ops.ones((2, 4))
    for layer in layers:
        x = layer(x)
    values = to_numpy(x)
    assert (values[:, :3] == -values[:, 3:]).all() and values.any()


def test_a_trainer_with_further_parts(tmp_path):
    pytest.importorskip("matplotlib")
    tasks = []

    class Look(training.TaskCallback):
        def on_task_begin(self, task, x, y):
            tasks.append(task)

    look = experiments.Part(
        "look",
        "changes nothing",
        task_callback=lambda settings, build_fresh: Look(),
        smallest_batch=5,
    )
    parts = (*PARTS, look)
    flag_values = parse(
        f"--log_dir={tmp_path}", "--method=look,recycle,l2", parts=parts
    )

    def build_model(method, seed):
        output = method.layers.Dense(1)
        model = keras.Sequential([keras.Input((20,)), *hidden(method), output])
        model.compile(method.optimizer(seed, "he_uniform"), loss="mse")
        return model

    def run(batch_size):
        return experiments.run(
            flag_values,
            experiments.Problem(
                name="toy",
                title="Toy",
                metric="error",
                result="loss",
                metric_label="error",
                examples_per_task=50,
                num_probe_examples=10,
                defaults={"threshold": 0.5},
                published=lambda method: [],
            ),
            build_model,
            lambda seed: streams.SlowlyChangingRegression(
                num_tasks=2, examples_per_task=50, seed=seed
            ),
            num_tasks=2,
            batch_size=batch_size,
            parts=parts,
        )

    with pytest.raises(SystemExit, match="look needs batches of at least 5"):
        run(batch_size=4)
    [record] = run(batch_size=5)["runs"]
    assert tasks == [0, 1]
    assert record["method"] == "look,recycle,l2"
    assert record["settings"]["threshold"] == 0.5
    assert record["steps_per_learner"] == 20
    assert (tmp_path / "look,recycle,l2").is_dir()


def test_the_table_has_its_row():
    assert experiments.methods_table(PARTS).splitlines()[-2] == (
        "| `recycle` | dormant units redrawn ([Someone](https://example.org)) "
        "| `optimizers.Recycle` |"
    )


def test_parts_that_share_a_flag_define_it_alike():
    [flag] = [flag for flag in RECYCLE.flags if flag.name == "period"]

    def names(flag):
        other = experiments.Part("other", "another", flags=(flag,))
        return methods.all_flags((RECYCLE, other))

    shared = names(dataclasses.replace(flag, default=5))
    assert shared[flag] == ("recycle", "other")
    with pytest.raises(ValueError, match="define it alike.*for other.*'float'"):
        names(dataclasses.replace(flag, type=float))


@pytest.mark.parametrize("flag", methods.all_flags())
def test_defaults_are_allowed(flag):
    assert flag.default in flag.choices or flag.allows(flag.default)


def test_names_in_records_are_those_of_records():
    names = {part.name for part in experiments.PARTS}
    common = {flag.name for flag in methods.COMMON_FLAGS}
    assert len(names) == len(experiments.PARTS)
    for part in experiments.PARTS:
        assert set(part.excludes) <= names - {part.name}
        assert set(part.omits) <= common


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1)", (0, 0.5), (-1e-9, 1, float("nan"))),
        ("(0, inf)", (1e-30, 1e30), (0, -1, float("inf"), float("nan"))),
        ("[0, 1]", (0, 1), (1.1, float("-inf"))),
        (None, (0, -1e30), ()),
    ],
)
def test_intervals(interval, inside, outside):
    flag = experiments.Flag("rate", "how fast", 0.5, interval)
    assert all(flag.allows(value) for value in inside)
    assert not any(flag.allows(value) for value in outside)


def test_readme_has_the_table_of_the_methods():
    path = os.path.join(os.path.dirname(__file__), "..", "..", "README.md")
    with open(path, encoding="utf-8") as file:
        # print(keras_plasticity.experiments.methods_table()) shows it.
        assert experiments.methods_table() in file.read()


def test_importing_the_library_imports_no_experiments_and_defines_no_flag():
    code = """
import sys
sys.modules["matplotlib"] = None  # It is not to be found.
from absl import app  # It defines flags of its own.
from absl import flags
import keras
before = set(flags.FLAGS)
import keras_plasticity
assert "keras_plasticity.experiments" not in sys.modules
assert "tensorboard" not in sys.modules
import keras_plasticity.experiments
assert set(flags.FLAGS) == before, set(flags.FLAGS) - before
"""
    subprocess.run([sys.executable, "-c", code], check=True)
