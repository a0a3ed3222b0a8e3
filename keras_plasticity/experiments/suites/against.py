"""What differs between the results of two suites by more than chance."""

import math
import os
import pathlib

from keras_plasticity import validation
from keras_plasticity.experiments import measures
from keras_plasticity.experiments import statistics
from keras_plasticity.experiments import terminal
from keras_plasticity.experiments.suites import report as suite_report
from keras_plasticity.experiments.suites import results as result_files
from keras_plasticity.files import atomic_write

REFERENCE = "reference"


def reference_path(size):
    """Where the package has its own results of a size."""
    return pathlib.Path(__file__).with_name(f"reference_{size}.json")


def read_reference(against, size):
    """The results to compare with.

    Args:
        against: String, `"reference"` or a path.
        size: String.

    Returns:
        Dict, the content of a `results.json`.

    Raises:
        ValueError: If there are none, or they are of another size or schema.
    """
    validation.check_path("against", against)
    path = against
    if against == REFERENCE:
        path = reference_path(size)
        if not path.exists():
            raise ValueError(
                f"There are no reference results of the size {size}. Give the "
                "path of a `results.json`. Received: --against=reference"
            )
    results = result_files.read_results(str(path))
    if results["size"] != size:
        raise ValueError(
            "--against must be results of the same size. Received: "
            f"--against={against} of the size {results['size']}, "
            f"--size={size}"
        )
    return results


def check_comparable(reference, cells):
    """Refuses what could not be compared at all, before it is trained.

    Raises:
        ValueError: If the reference has none of the cells, or had other tasks.
    """
    shared = False
    for cell in cells:
        problem = reference["problems"].get(cell.name)
        if problem is None:
            continue
        flags = {**cell.problem.flags, **cell.size.flags}
        if problem["flags"] != flags:
            raise ValueError(
                f"--against has other tasks of {cell.name}: "
                f"{problem['flags']} there, {flags} here. Compare with results "
                "of this version."
            )
        shared |= cell.method in problem["methods"]
    if not shared:
        known = [
            f"{name}: {', '.join(problem['methods'])}"
            for name, problem in reference["problems"].items()
        ]
        raise ValueError(
            "--against has results of none of the methods on these problems. "
            f"It has {'; '.join(known)}"
        )


def differences(results, reference):
    """What two suites say of the same methods and problems.

    Args:
        results: Dict, see `results.make_results`.
        reference: Dict, likewise.

    Returns:
        List of dicts from heading to string.
    """
    rows = []
    for name, problem in results["problems"].items():
        theirs = reference["problems"].get(name, {"methods": {}})
        for method, entry in problem["methods"].items():
            other = theirs["methods"].get(method)
            for measure in measures.MEASURES:
                row = {
                    "problem": name,
                    "method": method,
                    "measure": measure.replace("_", " "),
                }
                rows.append({**row, **_compare(entry, other, measure)})
    return rows


def report(results, reference, log_dir):
    """Prints what differs, and writes `against.md`."""
    rows = differences(results, reference)
    title = (
        "What differs from the results compared with: these minus those, and "
        "95 % intervals"
    )
    terminal.print_table(
        title,
        {name: lambda row, name=name: row[name] for name in rows[0]},
        rows,
    )
    told = [row for row in rows if row["by more than chance"] == "yes"]
    compared = [row for row in rows if row["by more than chance"] != "-"]
    print(
        f"{len(told)} of {len(compared)} differ by more than chance (of twenty "
        "that do not differ one would seem to)."
    )
    path = os.path.join(log_dir, "against.md")
    with atomic_write(path) as temporary:
        text = f"{title}\n\n{suite_report.markdown(rows)}\n"
        temporary.write_text(text, encoding="utf-8")
    print(f"Comparison: {path}")


def _compare(entry, other, measure):
    if other is None:
        return _row("not in the results compared with")
    mine = result_files.scores_of(entry, measure)
    theirs = result_files.scores_of(other, measure)
    for scores, about, where in (
        (mine, entry, "here"),
        (theirs, other, "there"),
    ):
        diverged = sum(not math.isfinite(value) for value in scores.values())
        if not scores:
            return _row(f"{where}: {about['status']}")
        if diverged:
            return _row(f"{where}: {diverged} of {len(scores)} diverged")
    if mine.keys() == theirs.keys():
        # The same seeds: the same tasks.
        pairs = [(mine[seed], theirs[seed]) for seed in mine]
        estimate = statistics.paired_difference(*map(list, zip(*pairs)))
        how = "paired"
    else:
        estimate = statistics.unpaired_difference(
            list(mine.values()), list(theirs.values())
        )
        how = "unpaired"
    if math.isnan(estimate.low):
        return _row(f"{estimate:.4g}", how)
    told = "no" if estimate.meets_zero else "yes"
    return _row(f"{estimate:.4g}", how, told)


def _row(difference, how="-", told="-"):
    return {
        "difference": difference,
        "seeds": how,
        "by more than chance": told,
    }
