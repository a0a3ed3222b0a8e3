import copy
import json
import pickle

import keras
import pytest

import keras_plasticity
from keras_plasticity.diagnosis.measured import Measured
from tests.helpers import make_data
from tests.helpers import make_model

VALUES = {
    "effective_rank": {"first": 3.14159, "second": 12.0, "total": 7.570795},
    "dead_units": {"first": 0, "second": 1234, "total": 1234},
    "gradient_norm": {"second": 2e-9, "norm": 0.25, "total": 12345.678},
}
UNITS = {"first": 4, "second": 2048}
LAYERS = ["first", "norm", "unused", "second", "first"]


def measured():
    return Measured(VALUES, UNITS, LAYERS)


def test_a_line_for_each_layer_and_a_column_for_each_measure():
    assert measured().table(80).splitlines() == [
        "               effective   dead  gradient",
        "layer   units       rank  units      norm",
        "-----------------------------------------",
        "total   2,052       7.57  1,234    12,346",
        "first       4       3.14      0",
        "norm                                 0.25",
        "second  2,048         12  1,234     2e-09",
    ]


def test_it_is_folded_where_it_is_too_wide():
    table = measured().table(32)
    # A layer without a number in the columns of a part is left out of it.
    assert table.splitlines() == [
        "               effective   dead",
        "layer   units       rank  units",
        "-------------------------------",
        "total   2,052       7.57  1,234",
        "first       4       3.14      0",
        "second  2,048         12  1,234",
        "",
        "        gradient",
        "layer       norm",
        "----------------",
        "total     12,346",
        "norm        0.25",
        "second     2e-09",
    ]
    assert measured().table(31) == table
    lines = measured().table(30).splitlines()
    assert len(max(lines, key=len)) <= 30 and len(lines) == 14
    assert measured().table(1).count("total") == 4


@pytest.mark.parametrize("width", [32, 80])
def test_printed_it_is_as_wide_as_the_terminal(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    assert str(measured()) == repr(measured()) == measured().table(width)


def test_without_units_there_is_no_column_of_them():
    only_total = Measured({"sharpness": {"total": 0.5}}, {}, LAYERS)
    assert only_total.table(80).splitlines() == [
        "layer  sharpness",
        "----------------",
        "total        0.5",
    ]


def test_programs_see_a_dict():
    assert measured() == VALUES
    assert json.loads(json.dumps(measured())) == VALUES
    for same in (
        copy.deepcopy(measured()),
        pickle.loads(pickle.dumps(measured())),
    ):
        assert same == VALUES
        assert same.table(80) == measured().table(80)


def test_a_model_is_measured_in_the_order_of_its_layers():
    dims = (4, 6, 5, 3)
    model = make_model(dims, layer=keras.layers.Dense)
    model.compile("sgd", "mse")
    found = keras_plasticity.measure(model, make_data(9, dims))
    assert found.num_units == {"layer_0": 6, "layer_1": 5, "total": 11}
    _, rows = found.table(200).split("-\n")
    assert [row.split()[0] for row in rows.splitlines()] == [
        "total",
        *(layer.name for layer in model.layers),
    ]


@pytest.mark.parametrize("width", [0, 1.5, "80", None])
def test_a_bad_width(width):
    with pytest.raises((ValueError, TypeError), match="width"):
        measured().table(width)
