"""The results that the package has, and README's leaderboard of them."""

import copy
import pathlib

import pytest

from keras_plasticity.experiments.suites import against
from keras_plasticity.experiments.suites import leaderboard
from keras_plasticity.experiments.suites import results as result_files
from keras_plasticity.experiments.suites.problems import PROBLEMS

_README = pathlib.Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def reference():
    return against.read_reference("reference", "minutes")


def test_readme_has_the_tables_of_the_reference_results(reference):
    text = _README.read_text(encoding="utf-8")
    for section in leaderboard.tables(reference).split("\n\n"):
        assert section.strip() in text


def test_the_csv_is_of_the_reference_results(reference):
    text = leaderboard.CSV_PATH.read_text(encoding="utf-8")
    assert text == result_files.as_csv(reference)


def test_the_reference_is_what_a_suite_would_train(reference):
    for name, problem in reference["problems"].items():
        size = PROBLEMS[name].sizes["minutes"]
        assert problem["flags"] == {**PROBLEMS[name].flags, **size.flags}
        assert len(problem["report_seeds"]) == size.report_seeds
        assert len(problem["tuning_seeds"]) == size.tuning_seeds
        assert problem["num_settings"] == size.num_settings
        # The lines that all others are read against.
        assert {"reset", "linear", "bp", "input_norm"} <= {*problem["methods"]}


def test_against_itself_nothing_differs(reference):
    rows = against.differences(reference, reference)
    told = {row["by more than chance"] for row in rows}
    assert told <= {"no", "-"} and "no" in told


def split(results):
    """Results of some methods, and of the others."""
    parts = [copy.deepcopy(results) for _ in range(2)]
    for number, part in enumerate(parts):
        for problem in part["problems"].values():
            methods = list(problem["methods"])
            for method in methods[number::2]:
                del problem["methods"][method]
    return parts


def test_results_that_are_joined(reference):
    first, second = split(reference)
    joined = leaderboard.join([first, second])
    for name, problem in reference["problems"].items():
        assert joined["problems"][name]["methods"] == problem["methods"]
    assert leaderboard.join([reference]) == reference


def test_results_that_cannot_be_joined(reference):
    with pytest.raises(ValueError, match="each method of .* once"):
        leaderboard.join([reference, reference])
    first, second = split(reference)
    second["size"] = "hours"
    with pytest.raises(ValueError, match="size=minutes and size=hours"):
        leaderboard.join([first, second])
    _, second = split(reference)
    next(iter(second["problems"].values()))["num_settings"] = 99
    with pytest.raises(ValueError, match="the same tasks and seeds"):
        leaderboard.join([first, second])


def test_a_method_alone_that_has_diverged(reference):
    problem = reference["problems"]["slowly_changing_regression"]
    assert problem["methods"]["input_norm"]["status"] != "done"
    alone, rest = copy.deepcopy(reference), copy.deepcopy(reference)
    method = rest["problems"]["slowly_changing_regression"]["methods"].pop(
        "input_norm"
    )
    # What a suite says of tasks comes from results.
    known = ("title", "flags", "num_settings", "tuning_seeds", "report_seeds")
    alone["problems"] = {
        "slowly_changing_regression": {
            **{name: problem[name] for name in known},
            "methods": {"input_norm": method},
        }
    }
    for parts in ([rest, alone], [alone, rest]):
        assert leaderboard.join(parts) == reference
