import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from keras_plasticity import experiments
from tests.examples.trainers import load
from tests.examples.trainers import parse

_ROOT = pathlib.Path(__file__).parents[2]
_TRAINER = _ROOT / "examples" / "slowly_changing_regression.py"


def start(*arguments):
    return subprocess.run(
        [sys.executable, str(_TRAINER), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )


def test_help_has_the_trainer_s_docstring_and_all_flags():
    result = start("--help")
    assert "Slowly-Changing Regression: a network that" in result.stdout
    for flag in (
        "hidden_units",
        "method",
        "utility",
        "num_learners",
        "resume",
        "device",
        "matmul_precision",
    ):
        assert f"--{flag}: " in result.stdout.replace("[no]", "")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--method=bp,adam", "bp and adam contradict each other"),
        ("bp", "All arguments are flags. Received: bp"),
        ("--device=cuda", "--device=cuda: value should be one of"),
        ("--matmul_precision=half", "=half: value should be one of"),
    ],
)
def test_bad_arguments_give_one_message(argument, message):
    result = start(argument)
    assert result.returncode == 2
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_trainers_do_not_see_each_other_s_flags():
    regression = parse(load("slowly_changing_regression"), "--hidden_units=7")
    mnist = parse(load("online_permuted_mnist"), "--hidden_units=8")
    assert (regression.hidden_units, mnist.hidden_units) == (7, 8)
    assert "data_dir" in mnist
    assert "data_dir" not in regression


def test_flags_at_their_defaults():
    flag_values = flags.FlagValues()
    experiments.define_flags(flag_values)
    flag_values(["trainer", "--seed=0", "--num_learners=3"])
    assert experiments.has_defaults(flag_values, ["seed", "on_nan"])
    assert not experiments.has_defaults(flag_values, ["seed", "num_learners"])
