"""Step by step against runs of the authors' code: unit resets."""

import numpy as np
import pytest

import keras_plasticity
from tests.gradients import read_when_run
from tests.helpers import to_numpy
from tests.method_traces.trace import Trace
from tests.method_traces.trace import inner_optimizer
from tests.method_traces.trace import traces


@pytest.mark.parametrize("name", traces("redo"))
def test_redo(name):
    trace = Trace(name)
    optimizer = keras_plasticity.optimizers.ReDo(
        inner_optimizer(trace.config["optimizer"]),
        threshold=trace.settings["dead_neurons_threshold"],
        # Its own checks, on the batches trained on, are not what is recorded.
        period=10**6,
    )
    checks = []

    def check(step):
        if not trace.data["check"][step]:
            return
        optimizer.recycle(trace.model, trace.data["x_statistics"][len(checks)])
        checks.append(step)
        for i, layer in enumerate(trace.layers[:-1]):
            reset = trace.data[f"reset_{i}"][step]
            score = to_numpy(layer.utility)
            np.testing.assert_array_equal(score == 0, reset | (score == 0))
            np.testing.assert_allclose(
                score[~reset],
                trace.data[f"score_{i}"][step][~reset],
                rtol=1e-3,
                atol=1e-5,
            )
            age = to_numpy(layer.age)
            np.testing.assert_array_equal(age == 0, reset, f"step {step}")

    trace.train(optimizer, check)
    assert len(checks) == trace.data["check"].sum() > 0
    total = sum(
        int(trace.data[f"reset_{i}"].sum()) for i in range(trace.num_layers - 1)
    )
    assert sum(optimizer.num_replaced().values()) == total > 0


@pytest.mark.parametrize("name", traces("snr"))
def test_self_normalized_resets(name):
    trace = Trace(name)
    settings = trace.settings
    optimizer = keras_plasticity.optimizers.SelfNormalizedResets(
        inner_optimizer(trace.config["optimizer"]),
        quantile=settings["eta"],
        min_threshold=settings["smallest_threshold"],
        max_threshold=settings["tau_max"],
        initial_threshold=settings["initial_threshold"],
        threshold_period=settings["threshold_update_every_updates"],
    )

    def compare(step):
        variables = {v.name: to_numpy(v) for v in optimizer.variables}
        for i, layer in enumerate(trace.layers[:-1]):
            path = layer.path.replace("/", "_")
            for name, key in (
                ("silence", f"age_{i}"),
                ("threshold", f"threshold_after_{i}"),
            ):
                np.testing.assert_array_equal(
                    variables[f"{path}_{name}"],
                    trace.data[key][step],
                    f"{name} {i}, step {step}",
                )
            np.testing.assert_array_equal(
                to_numpy(layer.age) == 0,
                trace.data[f"reset_{i}"][step],
                f"step {step}",
            )

    trace.train(optimizer, compare)
    total = sum(
        int(trace.data[f"reset_{i}"].sum()) for i in range(trace.num_layers - 1)
    )
    assert sum(optimizer.num_replaced().values()) == total > 0


@pytest.mark.parametrize("name", traces("regrama"))
def test_regrama(name):
    trace = Trace(name)
    settings = trace.settings
    optimizer = keras_plasticity.optimizers.ReGraMa(
        inner_optimizer(trace.config["optimizer"]),
        threshold=settings["score_threshold"],
        period=settings["update_frequency"],
        max_fraction=settings.get("max_reset_frac") or 1.0,
    )
    checks = []

    def compare(step):
        for i, layer in enumerate(trace.layers[:-1]):
            reset = trace.data[f"reset_{i}"][step]
            np.testing.assert_array_equal(
                to_numpy(layer.age) == 0, reset, f"step {step}"
            )
            if step == 0 or step % settings["update_frequency"] != 0:
                continue
            checks.append(step)
            np.testing.assert_allclose(
                to_numpy(layer.utility)[~reset],
                trace.data[f"score_{i}"][step][~reset],
                rtol=1e-3,
                err_msg=f"score {i}, step {step}",
            )

    trace.train(optimizer, compare)
    assert checks
    total = sum(
        int(trace.data[f"reset_{i}"].sum()) for i in range(trace.num_layers - 1)
    )
    assert sum(optimizer.num_replaced().values()) == total > 0


@pytest.mark.parametrize("name", traces("cpr"))
def test_cpr(name):
    trace = Trace(name)
    settings = trace.settings
    transforms = {"exp": "exponential"}
    transform = settings["transform_type"]
    optimizer = keras_plasticity.optimizers.CPR(
        inner_optimizer(trace.config["optimizer"]),
        replacement_rate=settings["replacement_rate"],
        sharpness=settings["sharpness"],
        threshold=settings["threshold"],
        decay_rate=settings["decay_rate"],
        period=settings["update_frequency"],
        transform=transforms.get(transform, transform),
    )

    def compare(step):
        for i, layer in enumerate(trace.layers[:-1]):
            np.testing.assert_allclose(
                to_numpy(layer.utility),
                trace.data[f"utility_{i}"][step],
                rtol=1e-4,
                err_msg=f"utility {i}, step {step}",
            )

    trace.train(optimizer, compare)


@pytest.mark.parametrize("name", traces("ccbp"))
def test_ccbp(name, monkeypatch):
    trace = Trace(name)
    trace.tolerance = 2e-5
    settings = trace.settings
    utilities = {
        "abs_mean": "gradient_magnitude",
        "norm": "gradient_norm",
        "adaptable": "adaptable_contribution",
    }
    utility = settings["utility_type"]
    is_continuous = settings["continuous"]
    optimizer = keras_plasticity.optimizers.CCBP(
        inner_optimizer(trace.config["optimizer"]),
        replacement_rate=settings["replacement_rate"],
        sharpness=settings["steepness"],
        decay_rate=settings["utility_ema_decay"],
        period=settings["reset_interval"],
        utility=utilities.get(utility, utility),
        continuous=is_continuous,
        # The defaults of the code depend on the form.
        maturity_threshold=settings.get(
            "maturity_steps", 0 if is_continuous else 100
        ),
        reset_optimizer_state=settings.get(
            "reset_optimizer_state", not is_continuous
        ),
    )

    if not is_continuous:
        chances = _chances(trace, optimizer.maturity_threshold)
        now = [0]

        def draw_chance(units):
            i = trace.layers.index(units.layer)
            return read_when_run(lambda: chances[i][now[0]], ())

        monkeypatch.setattr(optimizer, "_draw_chance", draw_chance)

    def compare(step):
        # What is recorded has moved towards 1 where there was a reset.
        variables = {v.name: to_numpy(v) for v in optimizer.variables}
        for i, layer in enumerate(trace.layers[:-1]):
            path = layer.path.replace("/", "_")
            np.testing.assert_allclose(
                variables[f"{path}_gradient_utility"],
                trace.data[f"utility_{i}"][step],
                rtol=1e-4,
                err_msg=f"utility {i}, step {step}",
            )

    def end_step(step):
        if not is_continuous:
            now[0] = step + 1

    trace.train(optimizer, compare, end_step)


def _chances(trace, maturity_threshold):
    """What was drawn, as far as the number of units replaced tells.

    Args:
        trace: `Trace` of the discrete form.
        maturity_threshold: Integer.

    Returns:
        List of float32 arrays, one for each layer, with an entry for each
        step: 0 for one unit more, else 1.
    """
    rate = trace.settings["replacement_rate"]
    chances = []
    for i in range(trace.num_layers - 1):
        alphas = trace.data[f"alpha_{i}"]
        chances.append(np.ones(len(alphas), "float32"))
        age, rest = np.zeros(alphas.shape[1]), 0.0
        for step, alpha in enumerate(alphas):
            is_reset = (step + 1) % trace.settings["reset_interval"] == 0
            num_mature = np.sum(age >= maturity_threshold)
            if is_reset and num_mature > 0:
                number = num_mature * rate + rest
                rest = number - int(number)
                if alpha.sum() > int(number):
                    chances[i][step] = rest = 0.0
            age = (1 - alpha) * age + 1
    return chances
