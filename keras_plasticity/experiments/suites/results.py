"""`results.json` of a suite: how it is made, written and read."""

import csv
import importlib.metadata
import io
import json
import math
import os
import pathlib
import platform

import keras

from keras_plasticity import validation
from keras_plasticity.experiments import measures
from keras_plasticity.experiments import run_folder
from keras_plasticity.experiments import statistics
from keras_plasticity.experiments import table
from keras_plasticity.experiments import terminal
from keras_plasticity.experiments.suites.cells import MEASURE
from keras_plasticity.files import atomic_write

NAME = "results.json"
SCHEMA = 1
SCHEMA_PATH = pathlib.Path(__file__).with_name("results.schema.json")
_PACKAGES = ("keras", "numpy", "jax", "tensorflow", "torch")
# With which all others are compared.
_REFERENCE = "bp"


def make_results(cells, log_dir):
    """The content of `results.json`.

    Args:
        cells: List of `Cell`s.
        log_dir: String, the folder of the suite.

    Returns:
        Dict.
    """
    problems = {}
    for cell in cells:
        rows = cell.report_rows(log_dir)
        problem = problems.setdefault(
            cell.name,
            {
                "title": cell.problem.title,
                "flags": {**cell.problem.flags, **cell.size.flags},
                "num_settings": cell.size.num_settings,
                "tuning_seeds": cell.tuning_seeds,
                "report_seeds": cell.report_seeds,
                "methods": {},
            },
        )
        method = {
            "status": cell.status(log_dir),
            "command": _command(cell),
        }
        if rows:
            problem |= {
                "metric": rows[0]["metric"],
                "lower_is_better": rows[0]["lower_is_better"],
                "num_tasks": rows[0]["num_tasks"],
            }
            method |= _measured(rows, cell.report_run(log_dir))
        problem["methods"][cell.method] = method
    return {
        "schema": SCHEMA,
        "size": cells[0].size_name,
        "measure": MEASURE,
        "backend": keras.backend.backend(),
        "device": terminal.device_name(),
        "versions": {"python": platform.python_version(), **_versions()},
        "problems": problems,
    }


def write_results(results, log_dir):
    """Writes `results.json` and `results.csv`."""
    run_folder.write_json(os.path.join(log_dir, NAME), results)
    with atomic_write(os.path.join(log_dir, "results.csv")) as temporary:
        temporary.write_text(as_csv(results), encoding="utf-8")


def read_results(path):
    """Reads a `results.json`.

    Args:
        path: String.

    Returns:
        Dict.

    Raises:
        ValueError: If it is not there, or of another schema.
    """
    if not os.path.isfile(path):
        raise ValueError(f"There is no file of results. Received: {path}")
    results = run_folder.read_json(path)
    wrong = _what_is_wrong(results)
    if wrong:
        raise ValueError(
            f"{path} is of another schema than this version of "
            f"`keras_plasticity` writes, which is in {SCHEMA_PATH}: {wrong}"
        )
    return results


def scores_of(method, measure):
    """Dict from seed to score, NaN of a learner that has diverged."""
    return {
        int(seed): math.nan if value is None else float(value)
        for seed, value in method.get(measure, {}).items()
    }


def rows_of(results):
    """The rows of the table: for each problem its methods, the best first.

    Args:
        results: Dict, see `make_results`.

    Returns:
        List of dicts from column to value, `None` where there is none.
    """
    return [
        row
        for name, problem in results["problems"].items()
        for row in _rows_of_problem(name, problem)
    ]


def as_csv(results):
    """The table as CSV."""
    rows = rows_of(results)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {
            name: f"{value:.6g}" if isinstance(value, float) else value
            for name, value in row.items()
        }
        for row in rows
    )
    return text.getvalue()


def difference(first, second):
    """The paired difference of two methods' scores.

    Args:
        first: Dict from seed to score.
        second: Likewise.

    Returns:
        `Estimate` of the seeds that both have; `None` without any, or if a
        learner has diverged.
    """
    shared = [seed for seed in first if seed in second]
    pairs = [(first[seed], second[seed]) for seed in shared]
    if not pairs or not all(math.isfinite(v) for pair in pairs for v in pair):
        return None
    return statistics.paired_difference(*map(list, zip(*pairs)))


def _measured(rows, run):
    setting = {
        name.removeprefix(table.FLAG): value
        for name, value in rows[0].items()
        if name.startswith(table.FLAG)
    }
    return {
        "setting": setting,
        **{
            measure: {str(row["seed"]): row[measure] for row in rows}
            for measure in measures.MEASURES
        },
        **({} if run is None else _costs(run)),
    }


def _costs(run):
    learner_steps = run["steps_per_learner"] * run["num_learners"]
    return {
        "seconds_per_step": run["train_seconds"] / max(1, learner_steps),
        "bytes_per_learner": run["state_bytes_per_learner"],
    }


def _command(cell):
    words = [
        "python -m keras_plasticity.experiments suite",
        f"--size={cell.size_name}",
        f"--problems={cell.name}",
        # With a space, where commas do not stand between methods.
        f'--methods="{cell.method} "'
        if "," in cell.method
        else f"--methods={cell.method}",
    ]
    if "method_file" in cell.flags:
        words.append(f"--method_file={cell.flags['method_file']}")
    return f"KERAS_BACKEND={keras.backend.backend()} {' '.join(words)}"


def _versions():
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _rows_of_problem(name, problem):
    found = {
        method: scores_of(entry, MEASURE)
        for method, entry in problem["methods"].items()
    }
    means = {}
    for method, of_seeds in found.items():
        values = list(of_seeds.values())
        # One that diverges on a seed is behind all that do not.
        if values and all(map(math.isfinite, values)):
            means[method] = sum(values) / len(values)
    sign = 1 if problem.get("lower_is_better") else -1
    order = sorted(means, key=lambda method: sign * means[method])
    order += [method for method in found if method not in means]
    best = order[0] if means else None
    return [
        _row(name, method, problem, found, best if method != best else None)
        for method in order
    ]


def _row(name, method, problem, found, best):
    entry = problem["methods"][method]
    row = {"problem": name, "method": method, "status": entry["status"]}
    for measure in ("last_tenth", "area_under_curve"):
        values = list(scores_of(entry, measure).values())
        finite = [value for value in values if math.isfinite(value)]
        estimate = statistics.estimate(finite) if finite else None
        row |= {
            measure: estimate and estimate.value,
            f"{measure}_low": estimate and estimate.low,
            f"{measure}_high": estimate and estimate.high,
        }
    row["n"] = len(finite)
    row["diverged"] = len(values) - len(finite)
    for label, other in (("best", best), (_REFERENCE, _REFERENCE)):
        pair = None
        if other in found and other != method:
            pair = difference(found[method], found[other])
        row |= {
            f"minus_{label}": pair and pair.value,
            f"minus_{label}_low": pair and pair.low,
            f"minus_{label}_high": pair and pair.high,
        }
        row[f"told_from_{label}"] = _told(pair)
    row |= {
        "setting": json.dumps(entry.get("setting", {})),
        "seconds_per_step": entry.get("seconds_per_step"),
        "bytes_per_learner": entry.get("bytes_per_learner"),
        "command": entry["command"],
    }
    return row


def _told(pair):
    if pair is None:
        return None
    return "no" if pair.meets_zero else "yes"


def _what_is_wrong(results):
    """What in some results is not as the schema says; "" if nothing."""
    if results.get("schema") != SCHEMA:
        return f"`schema` must be {SCHEMA}, and is {results.get('schema')!r}"
    if not isinstance(results.get("problems"), dict) or not results["problems"]:
        return "`problems` must be an object of one or more"
    for name in ("size", "measure", "backend"):
        if not isinstance(results.get(name), str):
            return f"`{name}` must be a string"
    for name, problem in results["problems"].items():
        if not isinstance(problem, dict):
            return f"`problems/{name}` must be an object"
        for key, kind in (
            ("flags", dict),
            ("methods", dict),
            ("report_seeds", list),
        ):
            if not isinstance(problem.get(key), kind):
                return f"`problems/{name}/{key}` must be a {kind.__name__}"
        for method, entry in problem["methods"].items():
            wrong = _wrong_method(entry)
            if wrong:
                return f"`problems/{name}/methods/{method}`: {wrong}"
    return ""


def _wrong_method(entry):
    if not isinstance(entry, dict) or not isinstance(entry.get("status"), str):
        return "it must be an object with a string `status`"
    if not isinstance(entry.get("command"), str):
        return "`command` must be a string"
    for measure in measures.MEASURES:
        values = entry.get(measure, {} if entry["status"] != "done" else None)
        if not isinstance(values, dict) or not all(
            seed.isdecimal() and (value is None or validation.is_number(value))
            for seed, value in values.items()
        ):
            return f"`{measure}` must be an object from seed to number or null"
    return ""
