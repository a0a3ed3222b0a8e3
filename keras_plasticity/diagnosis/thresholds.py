"""Warns in words where a measure is beyond what its user allows."""

import warnings

from keras_plasticity import validation
from keras_plasticity.diagnosis import measures as table

# How many layers a warning names.
_MOST_LAYERS = 3


class Thresholds:
    """The thresholds of measures; each is warned of once.

    Args:
        thresholds: Dict from the name of a measure to a number, or `None`.
        names: List of the names of what is measured.

    Raises:
        ValueError: If a name is not among them, or if a number is out of its
            range.
    """

    def __init__(self, thresholds, names):
        self._thresholds = {}
        known = [name for name in names if name in table.MEASURES]
        if thresholds is None:
            return
        rule = f"a dict from some of the measures {known} to a number"
        validation.check_mapping("thresholds", thresholds, (), rule)
        for name, value in thresholds.items():
            if name not in known:
                raise validation.error("thresholds", rule, thresholds)
            if table.MEASURES[name].is_count:
                self._thresholds[name] = validation.check_in_interval(
                    f'thresholds["{name}"]', value, "[0, 1]"
                )
            else:
                self._thresholds[name] = validation.check_not_negative(
                    f'thresholds["{name}"]', value
                )

    def check(self, measured, num_units_of, when):
        """Warns of each measure that is beyond its threshold, once.

        Args:
            measured: Dict from measure to a dict from layer, and `"total"`, to
                number.
            num_units_of: Function that returns, for a measure, a dict from
                layer to the number of its units.
            when: String, the beginning of the warning's sentence.
        """
        for name, limit in list(self._thresholds.items()):
            if name not in measured:
                continue
            message = _message(
                name, dict(measured[name]), num_units_of(name), limit
            )
            if message is not None:
                del self._thresholds[name]
                warnings.warn(f"{when}, {message}", stacklevel=3)


def _message(name, values, num_units, limit):
    """What is wrong, in words; `None` if nothing is."""
    measure = table.MEASURES[name]
    total = values.pop("total")
    value, words = total, f"`{name}` is {_short(total)}"
    layers = {layer: _short(number) for layer, number in values.items()}
    if measure.is_count:
        all_units = sum(num_units[layer] for layer in values)
        value = total / all_units
        kind = name.removesuffix("_units").replace("_", "-")
        words = f"{total} of {all_units} units ({value:.0%}) are {kind}"
        layers = {
            layer: f"{number} of {num_units[layer]}"
            for layer, number in values.items()
        }
    is_bad = value > limit if measure.bad == "above" else value < limit
    if not is_bad:
        return None
    worst = sorted(
        values,
        key=lambda layer: (
            values[layer] / (num_units[layer] if measure.is_count else 1)
        ),
        reverse=measure.bad == "above",
    )
    where = ", ".join(
        f"{layers[layer]} in '{layer}'" for layer in worst[:_MOST_LAYERS]
    )
    return (
        f"{words}, {measure.bad} the threshold of {limit}: {measure.words}"
        + (f". Worst: {where}" if where else "")
        + ". `keras_plasticity.diagnose` tells whether the model learns any "
        "worse for it, and what to try"
    )


def _short(number):
    return f"{number:.3g}"
