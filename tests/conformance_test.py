"""`data/check.py` lets pass what conforms, and nothing else."""

import json

import numpy as np
import pytest

from tests import golden_traces_test
from tests.data import check
from tests.native import traces


def run_trace(trace):
    """The Keras implementation of this library, on the active backend."""
    (name,) = [
        n for n in traces.NAMES if check.load(n)["config"] == trace["config"]
    ]
    golden = golden_traces_test.Trace(name)
    model, _, recorder = golden_traces_test.fit(golden)
    results = {}
    for i in range(len(recorder.ages[0])):
        results[f"replaced_{i}"] = np.stack([a[i] for a in recorder.ages]) == 0
        results[f"utility_{i}"] = np.stack([u[i] for u in recorder.utilities])
    for i, layer in enumerate(golden_traces_test.plastic_layers(model)):
        kernel, bias = layer.get_weights()[:2]
        results[f"final_kernel_{i}"] = kernel
        results[f"final_bias_{i}"] = bias
    return results


@pytest.mark.long
def test_this_library_conforms():
    # The other runs: `golden_traces_test.py`.
    trace = check.load("dense_overall")
    assert check.differences(trace, run_trace(trace)) == []


@pytest.mark.parametrize("name", check.NAMES)
def test_a_trace_conforms_to_itself(name):
    trace = check.load(name)
    results = {k: v for k, v in trace.items() if k != "config"}
    assert check.differences(trace, results) == []


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        (
            "final_kernel_1",
            lambda a: a + 2e-5,
            "5 of 5 differ, first at (0, 0)",
        ),
        ("final_bias_0", lambda a: a[:-1], "shape (4,), not (5,)"),
        ("final_bias_0", lambda a: a * np.nan, "5 of 5 differ"),
        ("utility_0", lambda a: a * 1.01, "differ, first at"),
        ("losses", lambda a: a * 1.01, "differ, first at"),
        ("replaced_0", lambda a: ~a, "15000 of 15000 differ"),
        ("replaced_0", lambda a: np.roll(a, 1, 0), "98 of 15000 differ"),
    ],
)
def test_what_does_not_conform(key, change, message):
    trace = check.load("dense_overall")
    results = {k: v for k, v in trace.items() if k != "config"}
    (line,) = check.differences(trace, {**results, key: change(trace[key])})
    assert line.startswith(f"{key}: ") and message in line
    del results[key]
    missing = check.differences(trace, results)
    is_required = key.startswith(("final", "replaced"))
    assert missing == [f"{key} is missing"] * is_required


def test_results_in_a_folder(tmp_path, capsys):
    name = "dense_contribution"
    trace = check.load(name)
    results = {
        k: v.tolist()
        for k, v in trace.items()
        if k.startswith(("final", "replaced"))
    }
    (tmp_path / f"{name}.json").write_text(json.dumps(results))
    assert not check.main(str(tmp_path), [name])
    assert capsys.readouterr().out == f"{name}: conforms\n"
    results["final_bias_1"][0] += 1.0
    (tmp_path / f"{name}.json").write_text(json.dumps(results))
    assert check.main(str(tmp_path), [name])
    assert (
        "final_bias_1: 1 of 16 differ, first at (0,)" in capsys.readouterr().out
    )
