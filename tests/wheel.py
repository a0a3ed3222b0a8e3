"""Builds the package, checks it, and tries it where there is JAX alone.

    python3 tests/wheel.py

It builds the source distribution, and from that the wheel; has `twine` check
both; looks for what has to be in them and for what must not; installs the wheel
in a fresh environment with JAX and without TensorFlow, as README says; and
there, outside of this folder, makes a model plastic, trains, saves and loads
it, and runs the demo of the source distribution in small. It needs a network
and about 1 GB of disk for a while, and prints each command before it runs.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile

from run import ROOT
from run import install
from run import require

# What reads data sets. The library itself does without.
_NOT_INSTALLED = ("tensorflow", "tensorflow-datasets", "importlib_resources")
_IN_THE_WHEEL = ("LICENSE", "__init__.py", "py.typed")
_IN_THE_SOURCES = (
    "BUILD_NOTES.md",
    "README.md",
    "examples/slowly_changing_regression.py",
    "keras_plasticity/LICENSE",
    "pyproject.toml",
    "tests/data/signatures.txt",
    "tests/run.py",
    ".github/slowly_changing_regression.png",
)
_TRIAL = """
import importlib.util

import keras
import numpy as np

import keras_plasticity

for name in ("tensorflow", "torch"):
    assert importlib.util.find_spec(name) is None, name
assert keras.backend.backend() == "jax"
model = keras.Sequential(
    [
        keras.Input((4,)),
        keras.layers.Dense(20, activation="relu"),
        keras.layers.Dense(1),
    ]
)
keras_plasticity.models.make_plastic(model)
keras_plasticity.inspect(model)
optimizer = keras_plasticity.optimizers.ContinualBackprop(
    keras.optimizers.Adam(),
    replacement_rate=0.01,
    maturity_threshold=20,
    seed=0,
)
model.compile(optimizer, "mse")
x = np.random.default_rng(0).normal(size=(3200, 4)).astype("float32")
y = x[:, :1] * x[:, 1:2]
model.fit(x, y, verbose=0)
(num_replaced,) = optimizer.num_replaced().values()
assert num_replaced > 0
print(keras_plasticity.measure(model, (x, y)))
model.save("model.keras")
loaded = keras.models.load_model("model.keras")
np.testing.assert_array_equal(loaded.predict(x, verbose=0),
                              model.predict(x, verbose=0))


def build_model(learner):
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


trainer = keras_plasticity.training.OnlineTrainer(build_model, num_learners=2)
results = trainer.fit(
    lambda learner: keras_plasticity.streams.SlowlyChangingRegression(
        num_tasks=2, examples_per_task=500, seed=learner
    )
)
assert np.isfinite(results["loss"]).all()
try:
    keras_plasticity.datasets.load_mnist()
except ImportError as error:
    print(error)
else:
    raise AssertionError("MNIST is read by TensorFlow, which is not there.")
print("keras_plasticity", keras_plasticity.__version__, "works.")
"""


def requirements_of_jax_alone():
    """What README says to install where TensorFlow is not wanted."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [
        line
        for line in project["dependencies"] + extras["jax"] + extras["figures"]
        if re.match(r"[\w.-]+", line)[0] not in _NOT_INSTALLED
    ]


def make_environment(folder):
    """Returns the path of the Python of a new virtual environment."""
    print(f"$ python3 -m venv {folder}", flush=True)
    venv.create(folder, with_pip=True)
    return str(folder / "bin" / "python")


def build(folder):
    """Returns the paths of the source distribution and of the wheel."""
    python = make_environment(folder / "build")
    install(python, "build", "twine")
    dist = folder / "dist"
    require(python, "-m", "build", "--outdir", str(dist), str(ROOT))
    (sources,), (wheel,) = dist.glob("*.tar.gz"), dist.glob("*.whl")
    paths = str(sources), str(wheel)
    require(python, "-m", "twine", "check", "--strict", *paths)
    return sources, wheel


def check_sources(path):
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in _IN_THE_SOURCES if name not in names]
    if missing:
        sys.exit(f"The source distribution lacks {', '.join(missing)}.")


def check_wheel(path):
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (metadata,) = [each for each in names if each.endswith("/METADATA")]
        text = archive.read(metadata).decode()
    folder = metadata.partition("/")[0]
    for name in _IN_THE_WHEEL:
        if f"keras_plasticity/{name}" not in names:
            sys.exit(f"The wheel lacks keras_plasticity/{name}.")
    others = [
        name
        for name in names
        if not name.startswith(("keras_plasticity/", f"{folder}/"))
    ]
    if others:
        sys.exit(f"The wheel installs what is not ours: {', '.join(others)}.")
    for line in ("License-Expression: Apache-2.0", "Classifier: Typing ::"):
        if f"\n{line}" not in text:
            sys.exit(f"The wheel's metadata lacks: {line}")
    # Nothing lies beside it where a package index shows it.
    relative = re.findall(r"\]\((?!https:)[^)]*\)", text)
    if relative:
        sys.exit(f"README links to files, in the wheel: {', '.join(relative)}")


def try_wheel(wheel, sources, folder):
    """Installs the wheel where there is JAX alone, and uses it."""
    python = make_environment(folder / "jax_alone")
    install(python, *requirements_of_jax_alone())
    install(python, "--no-deps", str(wheel))
    size = sum(
        path.lstat().st_size
        for path in (folder / "jax_alone").rglob("*")
        if path.is_file()
    )
    print(f"The environment takes {size / 2**30:.2f} GiB.", flush=True)
    with tarfile.open(sources) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.glob("keras_plasticity-*")
    demo = folder / "slowly_changing_regression.py"
    # Away from the package's sources: the one that is installed is meant.
    demo.write_bytes((unpacked / "examples" / demo.name).read_bytes())
    _run(python, folder, "-c", _TRIAL)
    _run(
        python,
        folder,
        str(demo),
        "--num_examples=20000",
        "--num_learners=2",
        "--log_dir=logs",
    )
    for name in (
        "summary.json",
        "slowly_changing_regression.png",
        "slowly_changing_regression.svg",
    ):
        if not (folder / "logs" / name).exists():
            sys.exit(f"The demo did not write {name}.")


def _run(python, folder, *arguments):
    print("$ KERAS_BACKEND=jax python", *arguments, flush=True)
    # Not with the folder of the sources on the path.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["KERAS_BACKEND"] = "jax"
    result = subprocess.run([python, *arguments], cwd=folder, env=environment)
    if result.returncode:
        sys.exit(f"Failed with exit status {result.returncode}.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--output", help="folder for the two files; default: none, once checked"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        sources, wheel = build(folder)
        check_sources(sources)
        check_wheel(wheel)
        try_wheel(wheel, sources, folder)
        if arguments.output:
            output = pathlib.Path(arguments.output)
            output.mkdir(parents=True, exist_ok=True)
            for path in (sources, wheel):
                (output / path.name).write_bytes(path.read_bytes())
        print(f"{sources.name} and {wheel.name} are fit to be published.")


if __name__ == "__main__":
    main()
