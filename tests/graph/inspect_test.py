import keras
import pytest

import keras_plasticity
from keras_plasticity.layers import Conv2D
from keras_plasticity.layers import Dense


def _inspect(model, **kwargs):
    """The rows of the table: from a layer's name to its other cells."""
    texts = []
    inspection = keras_plasticity.inspect(
        model, print_fn=texts.append, **kwargs
    )
    (text,) = texts
    assert text == str(inspection)
    title, *_, totals = text.splitlines()
    assert f'"{model.name}"' in title
    assert totals.strip() == inspection.totals
    rows = []
    for line in text.splitlines()[1:]:
        if line.startswith(("├", "┡")):
            rows.append([])
        elif line.startswith("│"):
            rows[-1].append([cell.strip() for cell in line[1:-1].split("│")])
    # A long cell takes several lines.
    cells = [[" ".join(filter(None, c)) for c in zip(*row)] for row in rows]
    assert len(cells) == len(inspection.rows)
    for cell, row in zip(cells, inspection.rows):
        assert cell[0].startswith(f"{row.name} (")
        assert cell[1] == str(row.units)
        assert row.is_replaceable == (cell[-1] == "yes")
    return {row[0]: row[1:] for row in cells}


def _image_model(**kwargs):
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            Conv2D(4, 3, name="first"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.ReLU(name="relu"),
            Conv2D(5, 3, name="second"),
            keras.layers.Flatten(name="flat"),
            Dense(6, name="hidden", **kwargs),
            Dense(3, name="last"),
        ]
    )


def test_table():
    assert _inspect(_image_model()) == {
        "first (Conv2D)": ["4", "second", "norm relu", "yes"],
        "second (Conv2D)": ["5", "hidden, 16 features a unit", "flat", "yes"],
        "hidden (Dense)": ["6", "last", "", "yes"],
        "last (Dense)": ["3", "", "", "no: outputs of the model"],
    }


def test_rows_and_totals():
    inspection = keras_plasticity.inspect(_image_model(), print_fn=str)
    first, second, *_ = inspection.rows
    assert (first.name, first.kind, first.units) == ("first", "Conv2D", 4)
    assert first.through == ("norm", "relu")
    assert second.consumers == {"hidden": 16}
    assert [row.is_replaceable for row in inspection.rows] == [True] * 3 + [
        False
    ]
    totals = "3 of 4 plastic layers, 15 of 18 units replaceable"
    assert inspection.totals == totals
    assert repr(inspection) == f"<{totals}>"


@pytest.mark.parametrize("width", [40, 60, 80])
def test_names_are_folded_and_not_cut(width):
    name = "a_name_of_more_characters_than_there_is_room_for_in_a_column"
    model = keras.Sequential(
        [keras.Input((4,)), Dense(5, name=name), Dense(3, name=f"{name}_2")]
    )
    inspection = keras_plasticity.inspect(model, print_fn=str)
    lines = inspection.table(width).splitlines()
    assert max(map(len, lines)) <= width
    cells = [line[1:-1].split("│") for line in lines if line[:1] == "│"]
    text = "".join(cell[0].strip() for cell in cells)
    assert text.replace(" ", "") == f"{name}(Dense){name}_2(Dense)"
    assert "…" not in "".join(lines)
    # Where there is no terminal, there is room.
    assert f"{name}_2 (Dense)" in str(inspection)


def test_as_wide_as_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "50")
    keras_plasticity.inspect(_image_model())
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) == 50
    assert "\x1b" not in printed


def test_table_of_a_model_that_trains_in_part():
    model = _image_model(replaceable=False)
    model.get_layer("second").trainable = False
    verdicts = {key: row[-1] for key, row in _inspect(model).items()}
    assert verdicts == {
        # It would lose weights of the second one.
        "first (Conv2D)": "no: frozen",
        "second (Conv2D)": "no: frozen",
        "hidden (Dense)": "no: replaceable=False",
        "last (Dense)": "no: outputs of the model",
    }


def test_residual_and_gated():
    inputs = keras.Input((4,))
    shortcut = Dense(4, name="shortcut")(inputs)
    x = Dense(6, activation="relu", name="inner")(shortcut)
    x = Dense(4, name="outer")(x)
    x = keras.layers.Add(name="add")([shortcut, x])
    gate = Dense(4, activation="sigmoid", name="gate")(x)
    x = keras.layers.Multiply(name="times")([Dense(4, name="gated")(x), gate])
    model = keras.Model(inputs, Dense(3, name="last")(x))
    rows = _inspect(model)
    assert {key.split()[0]: row[-1] for key, row in rows.items()} == {
        "shortcut": "no: merged with others by 'add' (`Add`)",
        "inner": "yes",
        "outer": "no: merged with others by 'add' (`Add`)",
        "gate": "no: used as a gate by 'times' (`Multiply`)",
        "gated": "yes",
        "last": "no: outputs of the model",
    }
    assert rows["gated (Dense)"][:-1] == ["4", "last", "times"]


def test_several_consumers_and_a_long_way():
    x = inputs = keras.Input((4,))
    x = Dense(5, name="hidden")(x)
    for i in range(6):
        x = keras.layers.ReLU(name=f"relu_{i}")(x)
    outputs = [Dense(2, name=name)(x) for name in "ab"]
    rows = _inspect(keras.Model(inputs, outputs))
    units, consumers, through, verdict = rows["hidden (Dense)"]
    assert units == "5" and verdict == "yes"
    assert sorted(consumers.split()) == ["a", "b"]
    assert through == "relu_0 relu_1 relu_2 and 3 more"


def test_what_is_refused():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            Dense(5, name="hidden"),
            keras.layers.Dense(3, name="plain"),
        ]
    )
    (row,) = _inspect(model).values()
    assert row[-1].startswith("refused: 'plain' (`Dense`) is not plastic")
    model = keras.Sequential(
        [
            keras.Input((4,)),
            Dense(5, name="hidden"),
            keras.layers.Softmax(name="soft"),
            Dense(3, name="last"),
        ]
    )
    verdict = _inspect(model)["hidden (Dense)"][-1]
    assert verdict.startswith("refused: 'soft' (`Softmax`) is not known to")


def test_same_names_in_different_parts():
    parts = [
        keras.Sequential([keras.Input((4,)), Dense(4, name="dense")], name=name)
        for name in ("encoder", "decoder")
    ]
    model = keras.Sequential([keras.Input((4,)), *parts, Dense(2, name="end")])
    rows = _inspect(model)
    assert [row.split()[0] for row in rows] == [
        "encoder/dense",
        "decoder/dense",
        "end",
    ]
    assert [row[-1] for row in rows.values()] == [
        "yes",
        "yes",
        "no: outputs of the model",
    ]


def test_names_are_no_markup():
    model = keras.Sequential(
        [keras.Input((4,)), Dense(5, name="[red]"), Dense(3, name="[bold]")],
        name="[blue]",
    )
    assert list(_inspect(model)) == ["[red] (Dense)", "[bold] (Dense)"]


class _Embedded(keras.Model):
    """Takes integers, which no shape tells."""

    def __init__(self):
        super().__init__()
        self.embedding = keras.layers.Embedding(7, 4)
        self.hidden = Dense(5, name="hidden")
        self.last = Dense(3, name="last")

    def call(self, x):
        return self.last(keras.ops.relu(self.hidden(self.embedding(x))))


def test_inputs_can_be_given():
    model = _Embedded()
    model(keras.ops.zeros((2, 6), "int32"))
    rows = _inspect(model, inputs=keras.KerasTensor((2, 6), "int32"))
    assert rows["hidden (Dense)"][1] == "last"
    assert rows["hidden (Dense)"][-1] == "yes"


def test_prints_by_default(capsys):
    keras_plasticity.inspect(_image_model())
    assert "hidden, 16 features a unit" in capsys.readouterr().out


def test_no_plastic_layer():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="has no built layer of.*make_plastic"):
        keras_plasticity.inspect(model)


def test_changes_nothing():
    model = _image_model()
    model.compile("sgd", "mse")
    before = [len(layer._inbound_nodes) for layer in model.layers]
    _inspect(model)
    assert before == [len(layer._inbound_nodes) for layer in model.layers]
    assert model.compiled
