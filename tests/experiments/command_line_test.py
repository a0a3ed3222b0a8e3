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


@pytest.mark.parametrize(
    "name",
    ["slowly_changing_regression", "online_permuted_mnist"],
)
def test_help_has_the_defaults_that_are_taken(name):
    """Of all parts, in a method of that part alone."""
    trainer = load(name)
    flag_values = parse(trainer)
    arguments = (flag_values, 1) if "regression" in name else (flag_values,)
    problem = trainer.make_problem(*arguments)
    seen = 0
    for part in experiments.PARTS:
        given = flags.FlagValues()
        trainer.define_flags(given)
        given(["trainer", f"--method={part.name}"])
        (method,) = experiments.choose_methods(given, problem.defaults, [])
        for flag in part.flags:
            text = given[flag.name].help.rpartition("Default: ")[2]
            by_part = [each.partition(" with ") for each in text.split("; ")]
            by_part = {part: value for value, _, part in by_part}
            words = by_part.get(f"{part.name}.", by_part.get(part.name))
            words = by_part[""] if words is None else words
            if not words.startswith("the "):  # It depends on other flags.
                assert words.rstrip(".") == str(method.settings[flag.name])
                seen += 1
    assert seen > 70
    shown = flag_values["num_learners"].help
    assert shown.endswith(f"Default: {problem.num_learners}.")
    shown = flag_values["method"].help
    assert f"Default: {', '.join(problem.methods)}." in shown
    shown = flag_values["diagnostics"].help
    assert shown.endswith(f"Default: {problem.diagnostics}.")


def test_help_of_methods_without_a_problem():
    flag_values = flags.FlagValues()
    experiments.define_flags(flag_values)
    assert flag_values["l2"].help.endswith(
        ", in [0, inf). Default: 0.0001, where the problem has no other one."
    )
    flag_values = flags.FlagValues()
    experiments.define_flags(
        flag_values, defaults={"l2": {None: 0.5, "l2": 0.25}, "shrink": "much"}
    )
    assert flag_values["l2"].help.endswith("Default: 0.5; 0.25 with l2.")
    assert flag_values["shrink"].help.endswith("Default: much.")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cpb", "There is no method 'cpb'. Did you mean cpr or cbp? A method"),
        ("l2,layernorm", "no method 'layernorm'. Did you mean layer_norm"),
        ("nothing_like_it", "no method 'nothing_like_it'. A method is one or"),
    ],
)
def test_a_method_that_there_is_not(name, hint):
    flag_values = flags.FlagValues()
    experiments.define_flags(flag_values)
    with pytest.raises(flags.IllegalFlagValueError) as error:
        flag_values(["trainer", f"--method={name}"])
    assert hint in str(error.value)
    assert f"Received: --method={name}" in str(error.value)
