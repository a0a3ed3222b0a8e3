from typing import Any

import numpy as np

from keras_plasticity.diagnosis import measures as table
from keras_plasticity.diagnosis import verdict
from keras_plasticity.diagnosis.plain_table import plain_table


class Diagnosis:
    """What `keras_plasticity.diagnose` found: `print` it.

    Args:
        name: String, the model's name.
        learning: What copies of the model learned.
        measured: Dict from measure to a tuple of the model's value and an
            array of those of new models.
        batch_size: Integer, the number of examples of each update.

    Attributes:
        has_lost_plasticity: Boolean, the verdict: whether the model learns
            worse than newly initialized ones, beyond doubt.
        kinds: List of strings, what is ill: `"dead units"`, `"saturation"`,
            `"low rank"`, `"weight growth"`, in this order; the symptoms that
            differ clearly from new models, whether the model learns worse for
            them or not.
        remedy: String, the lines of code worth trying first; `None` if
            plasticity is not lost.
        ratio: Float, the loss after learning in times of that of new models
            (geometric means).
        share_better: Float, the share of new models that are expected to reach
            a lower loss.
        gain: Float, the share of its loss that the model loses in learning,
            and `new_gain`, that of new models: means over copies.
        measured: Dict from measure to a tuple of the model's value, and an
            array of those of new models. Counts of units are fractions of all.
        learning: The losses of all copies: `num_steps`, `steps`,
            `old_curves`, `new_curves`, `old_before`, `old_after`,
            `new_before`, `new_after`.
    """

    def __init__(self, name: str, learning: Any, measured: dict, batch_size):
        self.name = name
        self.learning = learning
        self.measured = measured
        self._batch_size = batch_size
        old = np.where(
            np.isfinite(learning.old_after), learning.old_after, np.inf
        )
        self.ratio, self.share_better = verdict.compare_losses(
            old, learning.new_after
        )
        self.gain = _gain(learning.old_before, learning.old_after)
        self.new_gain = _gain(learning.new_before, learning.new_after)
        self.symptoms = verdict.symptoms(measured)
        self.kinds = list(
            dict.fromkeys(each.kind.name for each in self.symptoms)
        )
        self.has_lost_plasticity = verdict.has_lost_plasticity(
            self.ratio, self.share_better, bool(self.symptoms)
        )
        kind = self.symptoms[0].kind if self.symptoms else verdict.UNKNOWN
        self.remedy = kind.code if self.has_lost_plasticity else None
        self._kind = kind

    def __str__(self):
        parts = [self.verdict(), self.table()]
        if self.has_lost_plasticity:
            code = "\n".join(f"    {line}" for line in self.remedy.split("\n"))
            parts.append(f"Worth trying first: {self._kind.remedy}:\n\n{code}")
        return "\n\n".join(parts)

    def verdict(self) -> str:
        """The verdict in words, with its evidence."""
        learning = self.learning
        num_new = len(learning.new_after)
        old = np.mean(learning.old_after)
        low, high = np.min(learning.new_after), np.max(learning.new_after)
        examples = "example" if self._batch_size == 1 else "examples"
        evidence = (
            f"After {learning.num_steps} updates of {self._batch_size} "
            f"{examples}, copies of it have a loss of {old:.3g}; {num_new} "
            f"newly initialized models reach {np.mean(learning.new_after):.3g} "
            f"({low:.3g} to {high:.3g}). About {self.share_better:.0%} of new "
            "models would be better."
        )
        found = "; ".join(
            f"{_words(each.measure)} {_shown(each.measure, each.old)} instead "
            f"of {_shown(each.measure, each.new)}"
            for each in self.symptoms
        )
        if not self.has_lost_plasticity:
            first = f"No loss of plasticity here: '{self.name}' learns these "
            first += f"data {verdict.how_well(self.ratio, self.share_better)}."
            rest = (
                f"It differs from new models, without harm so far: {found}."
                if found
                else "It shows no symptom either."
            )
            return f"{first} {evidence} {rest}"
        kinds = verdict.joined(self.kinds) or verdict.UNKNOWN.name
        rest = f"Symptoms: {found}." if found else "Nothing that is measured "
        if not found:
            rest += "explains it."
        return (
            f"Loss of plasticity ({kinds}): '{self.name}' learns these data "
            f"worse than new models do. {evidence} {rest}"
        )

    def table(self) -> str:
        """A table: each measure of the model, and of new models."""
        learning = self.learning
        rows = [
            ("", "model", "new models", "least", "most"),
            _row("loss before", learning.old_before, learning.new_before),
            _row("loss after", learning.old_after, learning.new_after),
        ]
        ill = {each.measure for each in self.symptoms}
        for name, (old, new) in self.measured.items():
            shown = [
                _shown(name, number)
                for number in (old, np.mean(new), np.min(new), np.max(new))
            ]
            mark = " *" if name in ill else ""
            rows.append((_words(name) + mark, *shown))
        lines = [plain_table(rows)]
        if ill:
            lines.append("* differs clearly from new models, for the worse")
        return "\n".join(lines)

    def figure(self) -> Any:
        """Draws the losses while learning, and the measures.

        Returns:
            `matplotlib.figure.Figure`, which `savefig` writes to a file.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        from keras_plasticity.diagnosis import picture

        return picture.draw(self)

    def __repr__(self):
        return (
            f"<Diagnosis of '{self.name}': has_lost_plasticity="
            f"{self.has_lost_plasticity}, kinds={self.kinds}>"
        )


def _gain(before, after):
    return float(np.mean((before - after) / before))


def _row(name, old, new):
    numbers = (np.mean(old), np.mean(new), np.min(new), np.max(new))
    return (name, *(f"{number:.3g}" for number in numbers))


def _words(name):
    return name.replace("_", " ")


def _shown(name, number):
    if table.MEASURES[name].is_count:
        return f"{number:.0%}"
    return f"{number:.3g}"
