"""Holds an implementation to recorded runs: see README.md in this folder.

    python check.py my_module:my_function dense_overall conv_overall
    python check.py folder_with_results dense_overall

It needs NumPy alone. Exit status 1: something differs, and is printed.
"""

import importlib
import json
import pathlib
import sys

import numpy as np

FOLDER = pathlib.Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))
# Relative and absolute differences of float32 implementations.
TOLERANCES = {
    "utility": (1e-3, 4e-6),
    "score": (1e-3, 4e-6),
    "final": (0, 1e-5),
}
OTHERWISE = (1e-3, 1e-6)
REQUIRED = ("final", "replaced")


def load(name):
    """A trace: a dict of arrays, and its `config` as a dict."""
    with np.load(FOLDER / f"{name}.npz") as data:
        trace = {key: data[key] for key in data.files}
    return trace | {"config": json.loads(str(trace["config"]))}


def differences(trace, results):
    """Lines that say what is missing or differs; none if it conforms."""
    missing = [key for key in trace if key.startswith(REQUIRED)]
    lines = [f"{key} is missing" for key in missing if key not in results]
    for key, actual in results.items():
        expected = trace[key]
        kind, _, number = key.partition("_")
        rtol, atol = TOLERANCES.get(kind, OTHERWISE)
        if expected.dtype == bool:
            rtol = atol = 0
        if kind == "final" and "float32" in str(trace["config"].get("dtype")):
            atol = 1e-4
        actual = np.asarray(actual, "float64")
        if actual.shape != expected.shape:
            lines.append(f"{key}: shape {actual.shape}, not {expected.shape}")
            continue
        close = np.isclose(actual, expected, rtol, atol, equal_nan=True)
        if kind == "utility" and f"replaced_{number}" in trace:
            close |= trace[f"replaced_{number}"]  # Authors: its old one.
        if not close.all():
            where = tuple(np.argwhere(~close)[0].tolist())
            lines.append(
                f"{key}: {(~close).sum()} of {close.size} differ, first at "
                f"{where}: {actual[where]}, not {expected[where]}"
            )
    return lines


def main(implementation, names):
    failed = False
    for name in names or NAMES:
        trace = load(name)
        if ":" in implementation:
            module, function = implementation.split(":")
            run = getattr(importlib.import_module(module), function)
            results = run(trace)
        else:
            path = pathlib.Path(implementation, f"{name}.json")
            results = json.loads(path.read_text())
        lines = differences(trace, results)
        failed |= bool(lines)
        print(f"{name}: {'; '.join(lines) or 'conforms'}")
    return failed


if __name__ == "__main__":
    sys.path.insert(0, "")
    sys.exit(main(sys.argv[1], sys.argv[2:]))
