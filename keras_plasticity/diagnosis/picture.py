"""The figure of a diagnosis."""

import importlib.util

import numpy as np

from keras_plasticity.diagnosis import measures as table
from keras_plasticity.diagnosis.verdict import joined

_OLD, _NEW = "#c44e52", "#4c72b0"
# In the figure as far as they are measured, beside what is ill.
_SHOWN = (
    "dead_units",
    "gradient_dormant_units",
    "saturated_fraction",
    "effective_rank",
    "weight_magnitude",
    "gradient_norm",
)


def draw(diagnosis):
    """Draws losses while learning, and measures beside those of new models."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("The figure needs matplotlib: pip install matplotlib")
    from matplotlib.figure import Figure

    # Of each kind of symptom the first: the others show the same.
    clear = {}
    for each in diagnosis.symptoms:
        clear.setdefault(each.kind.name, each.measure)
    names = [*clear.values(), *_SHOWN]
    names = [n for n in dict.fromkeys(names) if n in diagnosis.measured]
    # Whoever has chosen none of these wants to see what was chosen.
    names = names or [*diagnosis.measured][: len(_SHOWN)]
    figure = Figure(figsize=(10.0, 4.4), layout="constrained")
    left, right = figure.add_gridspec(1, 2, width_ratios=(3, 2))
    _draw_learning(figure.add_subplot(left), diagnosis)
    grid = right.subgridspec(max(1, len(names)), 1)
    ill = {each.measure for each in diagnosis.symptoms}
    for i, name in enumerate(names):
        axes = figure.add_subplot(grid[i])
        _draw_measure(axes, name, *diagnosis.measured[name], name in ill)
    words = (
        "loss of plasticity: " + (joined(diagnosis.kinds) or "no symptom")
        if diagnosis.has_lost_plasticity
        else "no loss of plasticity here"
    )
    figure.suptitle(f"{diagnosis.name}: {words}")
    return figure


def _draw_learning(axes, diagnosis):
    from matplotlib import ticker

    learning = diagnosis.learning
    num_new = learning.new_curves.shape[1]
    num_old = learning.old_curves.shape[1]
    axes.plot(learning.steps, learning.new_curves, color=_NEW, alpha=0.25)
    axes.plot(learning.steps, learning.old_curves, color=_OLD, alpha=0.25)
    for curves, color, label in (
        (learning.new_curves, _NEW, f"new models (mean of {num_new})"),
        (learning.old_curves, _OLD, f"the model (mean of {num_old} copies)"),
    ):
        axes.plot(
            learning.steps, np.mean(curves, 1), color=color, lw=2.5, label=label
        )
    everything = np.concatenate(
        [learning.new_curves.ravel(), learning.old_curves.ravel()]
    )
    everything = everything[np.isfinite(everything)]
    if everything.min() > 0.0 and everything.max() > 5.0 * everything.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(_number)
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_xlabel("updates")
    axes.set_ylabel("loss of what is learned next")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _number(value, position):
    return f"{value:g}"


def _draw_measure(axes, name, old, new, is_ill):
    """The model's value as a diamond, below it those of new models as dots."""
    from matplotlib import ticker

    axes.plot(new, np.full(len(new), -0.45), "o", color=_NEW, alpha=0.5, ms=5)
    axes.plot([old], [0.35], "D", color=_OLD, ms=7)
    if table.MEASURES[name].is_count or name == "saturated_fraction":
        axes.set_xlim(-0.05, 1.05)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    else:
        axes.set_xlim(0.0, 1.1 * max(old, np.max(new), 1e-12))
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
        axes.xaxis.set_major_formatter(_number)
    axes.set_yticks([])
    axes.set_ylim(-1.0, 1.0)
    axes.tick_params(labelsize=8)
    axes.set_title(
        name.replace("_", " ") + (" *" if is_ill else ""),
        loc="left",
        fontsize=9,
        fontweight="bold" if is_ill else "normal",
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
