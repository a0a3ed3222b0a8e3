import dataclasses
import io
from typing import Any

import keras
import rich.box
import rich.console
import rich.markup
import rich.table

from keras_plasticity import keras_compat
from keras_plasticity import validation
from keras_plasticity.graph.connections import find_connections
from keras_plasticity.layers.plastic_layer import PlasticLayer

# Where there is no terminal the table is as wide as it needs to be, but for
# reasons, which may be several sentences.
_LARGEST_WIDTH = 1000
_REASON_WIDTH = 60


@dataclasses.dataclass(frozen=True)
class InspectedLayer:
    """What `inspect` says of one plastic layer.

    Args:
        name: String, the layer's name; its path, where others have its name.
        kind: String, the name of its class.
        units: Integer, the number of its units.
        consumers: Dict from the name of each layer that reads the units to the
            number of its input features that belong to one unit.
        through: Tuple of strings, the names of what lies between.
        verdict: String, `"yes"` where the units can be replaced; else `"no: "`
            and the reason why they are left alone, or `"refused: "` and the
            error that an optimizer would raise.
    """

    name: str
    kind: str
    units: int
    consumers: dict[str, int]
    through: tuple[str, ...]
    verdict: str

    @property
    def is_replaceable(self) -> bool:
        """Whether the units can be replaced."""
        return self.verdict == "yes"


@dataclasses.dataclass(frozen=True, repr=False)
class Inspection:
    """What `inspect` returns: the rows of its table, and their totals.

    As a string it is the table; `repr` has the totals alone.

    Args:
        model: String, the model's name.
        rows: Tuple of `InspectedLayer`s, in the order of the model.

    Example:

    ```python
    inspection = keras_plasticity.inspect(model)
    [row.name for row in inspection.rows if not row.is_replaceable]
    ```
    """

    model: str
    rows: tuple[InspectedLayer, ...]

    @property
    def totals(self) -> str:
        """How many layers and units can be replaced, in words."""
        chosen = [row for row in self.rows if row.is_replaceable]
        units = sum(row.units for row in self.rows)
        replaceable = sum(row.units for row in chosen)
        return (
            f"{len(chosen):,} of {len(self.rows):,} plastic layers, "
            f"{replaceable:,} of {units:,} units replaceable"
        )

    def __repr__(self):
        return f"<{self.totals}>"

    def __str__(self):
        return self.table(_LARGEST_WIDTH, _REASON_WIDTH)

    def table(self, width: int, reason_width: int | None = None) -> str:
        """The table as text. Names are folded where it is too wide, never cut.

        Args:
            width: Integer, the most characters of a line.
            reason_width: Integer, the most characters of a line of the last
                column. Defaults to `None`: as many as there is room for.
        """
        width = validation.check_positive_integer("width", width)
        if reason_width is not None:
            validation.check_positive_integer("reason_width", reason_width)
        table = rich.table.Table(
            title=rich.markup.escape(
                f'Plastic layers of model: "{self.model}"'
            ),
            caption=self.totals,
            box=rich.box.HEAVY_HEAD,
            show_lines=True,
        )
        table.add_column("Layer (type)", overflow="fold")
        table.add_column("Units", justify="right", no_wrap=True)
        table.add_column("Read by", overflow="fold")
        table.add_column("Through", overflow="fold")
        table.add_column("Replaceable", overflow="fold", max_width=reason_width)
        for row in self.rows:
            cells = (
                f"{row.name} ({row.kind})",
                f"{row.units:,}",
                "\n".join(map(_consumer, row.consumers.items())),
                "\n".join(_first_ones(row.through)),
                row.verdict,
            )
            table.add_row(*map(rich.markup.escape, cells))
        text = io.StringIO()
        console = rich.console.Console(
            file=text, width=width, force_terminal=False
        )
        console.print(table)
        lines = text.getvalue().splitlines()
        return "\n".join(map(str.rstrip, lines))


def inspect(model: keras.Model, inputs=None, print_fn=None) -> Inspection:
    """Prints which units of a model can be replaced, and what reads them.

    The table has a row for each plastic layer: its units, the layers that read
    them, what lies between, and whether they are replaceable, or why not. On a
    terminal it is as wide as the window, elsewhere as wide as it needs to be.

    Args:
        model: A built `keras.Model` with layers of `keras_plasticity.layers`.
        inputs: `keras.KerasTensor`, or a structure of them, for a subclassed
            model whose inputs are not float tensors. By default they have the
            shapes that it was built with.
        print_fn: Function that takes the table as a string. Defaults to
            `print`.

    Returns:
        `Inspection`, with the rows of the table.

    Raises:
        ValueError: If the model has no plastic layer, or cannot be traced.

    Example:

    ```python
    model = keras.applications.MobileNetV3Small(weights=None)
    keras_plasticity.inspect(keras_plasticity.models.make_plastic(model))
    ```
    """
    validation.check_model("model", model)
    if print_fn is not None:
        validation.check_function("print_fn", print_fn)
    layers: list[Any] = [
        layer
        for layer in keras_compat.sublayers(model)
        if isinstance(layer, PlasticLayer)
    ]
    if not layers:
        raise ValueError(
            f"Model '{model.name}' has no built layer of "
            "`keras_plasticity.layers`. Build it from them, or call "
            "`keras_plasticity.models.make_plastic(model)`. "
            f"{validation.received('model', model)}"
        )
    names = [layer.name for layer in layers]
    inspection = Inspection(
        model.name,
        tuple(
            _inspect_layer(connections, names)
            for connections in find_connections(layers, model, inputs)
        ),
    )
    terminal = rich.console.Console()
    table = (
        inspection.table(terminal.width)
        if terminal.is_terminal and print_fn is None
        else str(inspection)
    )
    (print_fn or print)(table)
    return inspection


def _inspect_layer(connections, names):
    layer = connections.layer
    name = layer.name if names.count(layer.name) == 1 else layer.path
    return InspectedLayer(
        name=name,
        kind=type(layer).__name__,
        units=layer.unit_view().size,
        consumers={
            consumer.name: feature_map.features_of_unit.shape[1]
            for consumer, feature_map in connections.consumers.items()
        },
        through=tuple(dict.fromkeys(each.name for each in connections.through)),
        verdict=_verdict(connections),
    )


def _consumer(name_and_features):
    name, features = name_and_features
    return f"{name}, {features} features a unit" if features > 1 else name


def _first_ones(names):
    if len(names) > 4:
        return [*names[:3], f"and {len(names) - 3} more"]
    return names


def _verdict(connections):
    if connections.skip_reason is not None:
        return f"no: {connections.skip_reason}"
    if connections.error is not None:
        return f"refused: {connections.error}"
    if not all(
        each.trainable for each in [connections.layer, *connections.consumers]
    ):
        return "no: frozen"
    return "yes"
