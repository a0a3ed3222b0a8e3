"""Tables of results: a row for each method, setting and seed."""

import csv
import io
import math
import os

from keras_plasticity.experiments import measures
from keras_plasticity.files import atomic_write

# Of a flag that was set for a row: this, and its name.
FLAG = "flag."


def _number(text):
    return float(text)


def _score(text):
    """That of a learner that has diverged is `None`, as an empty cell is."""
    number = float(text)
    return number if math.isfinite(number) else None


def _integer(text):
    return int(text)


def _boolean(text):
    return {"true": True, "false": False}[text.lower()]


# How the cell of a column is read; what a table must have to be compared.
NEEDED = {
    "problem": str,
    "method": str,
    "seed": _integer,
    "num_tasks": _integer,
    "metric": str,
    "lower_is_better": _boolean,
    **{measure: _score for measure in measures.MEASURES},
}
_KNOWN = {
    **NEEDED,
    "run": _integer,
    "train_seconds": _number,
    "compile_seconds": _number,
    "status": str,
}


def write_table(path, rows):
    """Writes a table, whole or not at all.

    Args:
        path: String; a file that ends in `.parquet` is one, any other is CSV.
        rows: List of dicts from column to value, `None` where it has none. All
            have the same columns.
    """
    with atomic_write(path) as temporary:
        if is_parquet(path):
            import pyarrow
            import pyarrow.parquet

            table = pyarrow.Table.from_pylist(rows)
            pyarrow.parquet.write_table(table, temporary)
        else:
            temporary.write_text(_csv(rows), encoding="utf-8")


def read_table(path):
    """Reads a table that `write_table` wrote, or a user's own.

    Args:
        path: String.

    Returns:
        List of dicts from column to value.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If it is a Parquet file, and `pyarrow` is not installed.
        ValueError: If it is no table, or one of another schema.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no such table. Received: {path}")
    try:
        rows = _read_parquet(path) if is_parquet(path) else _read_csv(path)
    except (ValueError, OSError, csv.Error) as error:
        raise ValueError(f"{path} is no table: {error}") from error
    for number, row in enumerate(rows, 1):
        missing = [name for name in NEEDED if name not in row]
        if missing:
            raise ValueError(
                f"{path} is a table of another schema: it has no column "
                f"{', '.join(missing)}. It needs {', '.join(NEEDED)}, and may "
                f"have a column {FLAG}NAME for each flag. Received: the "
                f"columns {', '.join(map(str, row))}"
            )
        for name, value in row.items():
            row[name] = _parse(path, number, name, value)
    return rows


def check_readable(path):
    """Fails before a sweep, and not after it, if it cannot write its table.

    Raises:
        ImportError: If it is a Parquet file, and `pyarrow` is not installed.
    """
    if is_parquet(path):
        _import_pyarrow()


def is_parquet(path):
    return path.endswith(".parquet")


def _import_pyarrow():
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "A Parquet table needs pyarrow: pip install -e '.[sweep]'. Or have "
            "the table as CSV."
        ) from error
    return pyarrow.parquet


def _csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else list(NEEDED))
    writer.writeheader()
    writer.writerows(
        {name: _cell(value) for name, value in row.items()} for row in rows
    )
    return text.getvalue()


def _cell(value):
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else value


def _read_csv(path):
    # Excel begins with a byte order mark.
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        rows = list(reader)
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise ValueError(
                f"line {number} has not as many cells as the first one"
            )
    return rows


def _read_parquet(path):
    parquet = _import_pyarrow()
    return parquet.read_table(path).to_pylist()


def _parse(path, number, name, value):
    """The value of a cell: text of a CSV file, or a value already."""
    if value is None or value == "":
        if name in NEEDED and name not in measures.MEASURES:
            raise ValueError(
                f"{path}: row {number} has nothing in its column {name}."
            )
        return "" if _KNOWN.get(name) is str else None
    try:
        return _KNOWN.get(name, str)(str(value))
    except (ValueError, KeyError):
        raise ValueError(
            f"{path}: row {number} has {value!r} in its column {name}, which "
            "cannot be."
        ) from None
