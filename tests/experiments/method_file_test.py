"""Parts of a user's own, from a file."""

import pathlib

import pytest
from absl import flags

from keras_plasticity import experiments
from keras_plasticity.experiments import method_file
from keras_plasticity.experiments.methods import find_parts
from keras_plasticity.experiments.sweeps import worker

_ROOT = pathlib.Path(__file__).parents[2]
_EXAMPLE = str(_ROOT / "examples" / "own_method.py")
_PART = """
from keras_plasticity.experiments import Flag, Part, Range
PARTS = [Part("mine", "of my own", flags=(Flag("size", "what", 1.0),))]
"""


def write(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    return str(path)


def test_the_example():
    own = method_file.load(_EXAMPLE)
    assert [part.name for part in own.parts] == ["clipped_sgd"]
    assert set(own.search) == {"clipped_sgd"}
    assert method_file.load(None) == method_file.MethodFile()


@pytest.mark.parametrize("form", ["--method_file={}", "--method_file {}"])
def test_a_trainer_knows_its_parts(form):
    arguments = form.format(_EXAMPLE).split()
    flag_values = flags.FlagValues()
    with method_file.using(["--seed=1", *arguments]):
        experiments.define_flags(flag_values)
        parts = method_file.known(experiments.PARTS)
    flag_values(["x", *arguments, "--method=clipped_sgd", "--clip_norm=2"])
    [method] = experiments.choose_methods(flag_values, {}, [], parts)
    assert method.settings["clip_norm"] == 2.0
    assert method.optimizer(0, "he_uniform").clipnorm == 2.0
    # And no other one does.
    assert method_file.known(experiments.PARTS) == experiments.PARTS
    with pytest.raises(ValueError, match="A method is one or more of"):
        find_parts("clipped_sgd")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must define `PARTS`"),
        ("PARTS = []", "must define `PARTS`"),
        ("PARTS = [3]", "3 cannot be one"),
        ("PARTS = 3 / 0", r"ZeroDivisionError: .*\(mine.py, line 1\)"),
        ("import no_such_module", "ModuleNotFoundError"),
        (_PART.replace("mine", "cbp"), "cbp cannot be one"),
        (_PART + "PARTS = PARTS * 2", "mine cannot be one"),
        (_PART + "SEARCH = 3", "`SEARCH` must be a dict"),
        (_PART + "SEARCH = {'cbp': {}}", "`SEARCH` must be a dict"),
        (_PART + "SEARCH = {'mine': {'l2': [1]}}", "`SEARCH` must be a dict"),
        *(
            (
                _PART + f"SEARCH = {{'mine': {{'size': {values}}}}}",
                "`SEARCH` must be a dict .* Received: SEARCH=",
            )
            for values in ("3", "'3'", "[]", "[None]", "[1, 1.0, 1]")
        ),
    ],
)
def test_files_that_cannot_be(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=f"--method_file=.*{message}"):
        method_file.load(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="--method_file must be a file"):
        method_file.load(str(tmp_path / "no.py"))
    with pytest.raises(ValueError, match="--method_file must be a file"):
        with method_file.using(["--method_file"]):
            pass


def test_a_worker_tells_of_a_file_that_cannot_be(tmp_path):
    status, message = worker.run_trainer(
        None, None, "x.py", [f"--method_file={write(tmp_path, '')}"]
    )
    assert status == 2 and "must define `PARTS`" in message
