import io

import keras
import rich.box
import rich.console
import rich.markup
import rich.table

from keras_plasticity import keras_compat
from keras_plasticity import validation
from keras_plasticity.graph.connections import find_connections
from keras_plasticity.layers.plastic_layer import PlasticLayer


def inspect(model: keras.Model, inputs=None, print_fn=None):
    """Prints which units of a model can be replaced, and what reads them.

    The table has a row for each plastic layer: its units, the layers that read
    them, what lies between, and whether they are replaceable, or why not.

    Args:
        model: A built `keras.Model` with layers of `keras_plasticity.layers`.
        inputs: `keras.KerasTensor`, or a structure of them, for a subclassed
            model whose inputs are not float tensors. By default they have the
            shapes that it was built with.
        print_fn: Function that takes the table as a string. Defaults to
            `print`.

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
    layers = [
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
    table = rich.table.Table(
        title=f'Plastic layers of model: "{rich.markup.escape(model.name)}"',
        box=rich.box.HEAVY_HEAD,
        show_lines=True,
    )
    table.add_column("Layer (type)")
    table.add_column("Units", justify="right")
    table.add_column("Read by")
    table.add_column("Through")
    table.add_column("Replaceable")
    names = [layer.name for layer in layers]
    for connections in find_connections(layers, model, inputs):
        layer = connections.layer
        name = layer.name if names.count(layer.name) == 1 else layer.path
        table.add_row(
            rich.markup.escape(f"{name} ({type(layer).__name__})"),
            str(layer.unit_view().size),
            rich.markup.escape(_consumers(connections)),
            rich.markup.escape(_names(connections.through)),
            rich.markup.escape(_verdict(connections)),
        )
    # Wide enough in a file, as wide as the window on a terminal.
    terminal = rich.console.Console()
    console = rich.console.Console(
        file=io.StringIO(),
        width=terminal.width if terminal.is_terminal else 110,
        force_terminal=False,
    )
    console.print(table)
    (print_fn or print)(console.file.getvalue().rstrip())


def _consumers(connections):
    lines = []
    for consumer, feature_map in connections.consumers.items():
        copies = feature_map.features_of_unit.shape[1]
        times = f", {copies} features a unit" if copies > 1 else ""
        lines.append(f"{consumer.name}{times}")
    return "\n".join(lines)


def _names(operations):
    names = list(dict.fromkeys(operation.name for operation in operations))
    if len(names) > 4:
        names = [*names[:3], f"and {len(names) - 3} more"]
    return "\n".join(names)


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
