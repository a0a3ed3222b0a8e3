"""Joins the results of suites into the leaderboard that this package has.

    python -m keras_plasticity.experiments.suites.leaderboard \
        logs/a/results.json logs/b/results.json

writes the reference results of their size, which `suite --against=reference`
compares with, and `leaderboard.csv`, and prints README's tables.
"""

import pathlib
import sys

from keras_plasticity.experiments import run_folder
from keras_plasticity.experiments.suites import against
from keras_plasticity.experiments.suites import report
from keras_plasticity.experiments.suites import results as result_files
from keras_plasticity.files import atomic_write

CSV_PATH = pathlib.Path(__file__).with_name("leaderboard.csv")


def join(all_results):
    """Joins results of one size and backend.

    Args:
        all_results: List of dicts, see `results.read_results`.

    Returns:
        Dict, with the problems of all and the methods that are done.

    Raises:
        ValueError: If they are of different sizes, versions or tasks, or if
            two of them have the same method on the same problem.
    """
    first = all_results[0]
    joined = {**first, "problems": {}}
    for results in all_results:
        for name, value in results.items():
            if name != "problems" and value != first[name]:
                raise ValueError(
                    "The results must be of one size, device and version. "
                    f"Received: {name}={first[name]} and {name}={value}"
                )
        for name, problem in results["problems"].items():
            there = joined["problems"].setdefault(
                name, {**problem, "methods": {}}
            )
            done = {
                method: entry
                for method, entry in problem["methods"].items()
                if entry["status"] != "not done"
            }
            methods = {**there["methods"], **done}
            size = len(there["methods"]) + len(done)
            # What nothing is known of where all have diverged is left out.
            tasks = {k: v for k, v in problem.items() if k != "methods"}
            if len(methods) < size or any(
                there.get(k, v) != v for k, v in tasks.items()
            ):
                raise ValueError(
                    f"The results must have each method of {name} once, and "
                    "of the same tasks and seeds."
                )
            there.update(tasks, methods=methods)
    return joined


def tables(results):
    """README's tables, Markdown, one for each problem."""
    sections = []
    rows = result_files.rows_of(results)
    for name, problem in results["problems"].items():
        shown = [report.shown(row) for row in rows if row["problem"] == name]
        sections.append(
            f"**{report.title(problem)}.**\n\n"
            f"{report.markdown(shown).strip()}\n"
        )
    return "\n".join(sections)


def main():
    results = join([result_files.read_results(path) for path in sys.argv[1:]])
    path = against.reference_path(results["size"])
    run_folder.write_json(path, results)
    with atomic_write(CSV_PATH) as temporary:
        temporary.write_text(result_files.as_csv(results), encoding="utf-8")
    print(tables(results))


if __name__ == "__main__":
    main()
