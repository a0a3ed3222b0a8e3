import shutil

from keras_plasticity import validation
from keras_plasticity.diagnosis.plain_table import plain_table

# Where there is no terminal.
_WIDTH = 120
_GAP = 2


class Measured(dict):
    """What `keras_plasticity.measure` found: a dict that prints as a table.

    The table has a line for each layer, those of the whole model first, and a
    column for each measure. Where they do not fit next to each other, it is
    folded into tables below each other, each with the layers that have
    something in it.

    Args:
        measured: Dict from measure to a dict from layer, and from `"total"`,
            to number.
        num_units: Dict from layer to the number of its units.
        layers: List of the names of layers, in the order of the model.

    Attributes:
        num_units: Dict from each layer whose units were measured, and from
            `"total"`, to their number.
    """

    def __init__(self, measured: dict, num_units: dict, layers: list):
        super().__init__(measured)
        self.num_units = {**num_units, "total": sum(num_units.values())}
        found = {name for values in measured.values() for name in values}
        self._layers = [name for name in dict.fromkeys(layers) if name in found]

    def table(self, width: int) -> str:
        """The table as text.

        Args:
            width: Integer, the most characters of a line. A table of one
                measure is as wide as that needs.
        """
        width = validation.check_positive_integer("width", width)
        columns = [_Column(name, values) for name, values in self.items()]
        if self.num_units["total"]:
            columns.insert(0, _Column("units", self.num_units))
        names = max(map(len, ["layer", *self._layers]))
        tables, used = [], width
        for column in columns:
            used += _GAP + column.width
            if used > width:
                tables.append([])
                used = names + _GAP + column.width
            tables[-1].append(column)
        return "\n\n".join(map(self._one_table, tables))

    def _one_table(self, columns):
        layers = [
            name
            for name in self._layers
            if any(name in column.cells for column in columns)
        ]
        height = max(len(column.heading) for column in columns)
        headings = [
            [""] * (height - len(column.heading)) + column.heading
            for column in columns
        ]
        first = [""] * (height - 1) + ["layer"]
        rows = [
            *zip(first, *headings),
            *(
                (name, *(column.cells.get(name, "") for column in columns))
                for name in ["total", *layers]
            ),
        ]
        return plain_table(rows, height)

    def __repr__(self):
        return self.table(shutil.get_terminal_size((_WIDTH, 0)).columns)


class _Column:
    """A measure: the words of its name, and what stands below them."""

    def __init__(self, name, values):
        self.heading = name.split("_")
        self.cells = {key: _shown(value) for key, value in values.items()}
        self.width = max(map(len, [*self.heading, *self.cells.values()]))


def _shown(number):
    if abs(number) >= 1000 or number == int(number):
        return f"{number:,.0f}"
    return f"{number:.3g}"
