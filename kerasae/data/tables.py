"""A table of numbers from a CSV, TSV or Parquet file."""

import collections
import csv

import numpy as np

from kerasae import checks

SUFFIXES = (".csv", ".tsv", ".parquet")


def read(path, like, columns, drop, labels):
    """The columns that are asked for; arguments as in `kerasae.data.files.read`.

    Returns:
        `(values, taken, labels)`: float64 of `(n, columns)`, the columns' names, and one class per row or None.
    """
    table = _arrow(path)
    names = table.column_names
    if repeated := [name for name, n in collections.Counter(names).items() if n > 1]:
        raise ValueError(f"Columns of {path} share a name: {checks.listed(repeated)}.")
    for name in [*(columns or []), *drop, *([labels] if labels else [])]:
        checks.choice(name, f"column of {path.name}", names)
    if like is not None and like.columns is not None:
        if missing := [c for c in like.columns if c not in names]:
            raise ValueError(
                f"{path} lacks columns that the model was trained on: {checks.listed(missing)}. It has: {checks.listed(names)}"
            )
        columns = like.columns
    taken = [c for c in (columns or names) if c not in drop and c != labels]
    if not taken:
        raise ValueError(f"No column of {path} is left.")
    checks.memory((table.num_rows, len(taken)), "float64", path)
    values = np.empty((table.num_rows, len(taken)), "float64")
    text, gaps = [], []
    for i, name in enumerate(taken):
        values[:, i] = _column(table, name, text, gaps)
    if text:
        raise ValueError(
            f"Columns of {path} hold no numbers: {checks.listed(text)}. "
            "Leave them out with drop (--drop NAME), or name one with labels (--labels NAME)."
        )
    if gaps:
        raise ValueError(
            f"Columns of {path} have gaps or NaN: {checks.listed(gaps)}. Fill or remove them first, or leave the columns out."
        )
    return values, taken, table[labels].to_pylist() if labels else None


def _arrow(path):
    import pyarrow
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    try:
        if path.suffix.lower() == ".parquet":
            return parquet.read_table(path)
        delimiter, header = _dialect(path)
        reading = arrow_csv.ReadOptions(autogenerate_column_names=not header)
        table = arrow_csv.read_csv(path, reading, arrow_csv.ParseOptions(delimiter=delimiter))
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{path} can't be read as a table: {str(error).splitlines()[0]}") from error
    if table.num_rows == 0:
        raise ValueError(f"{path} has no rows.")
    return table


def _dialect(path):
    """The delimiter, and whether the first line names the columns."""
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        first = file.readline()
    if not first.strip():
        raise ValueError(f"{path} is empty, or its first line is.")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=first.count)
    cells = next(csv.reader([first], delimiter=delimiter))
    return delimiter, not all(map(_is_number, cells))


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def _column(table, name, text, gaps):
    """A column as float64; a description of text or gaps in it is added to `text` or `gaps`."""
    import pyarrow as pa

    column = table[name]
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)):
        if column.null_count == len(column):
            gaps.append(f"{name!r} (all {len(column)} rows)")
        else:
            texts = (str(v) for v in column.to_pylist() if v is not None and not _is_number(str(v)))
            text.append(f"{name!r} ({next(texts, 'numbers as text')[:30]!r})")
        return np.nan
    values = column.cast(pa.float64()).to_numpy()
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        gaps.append(f"{name!r} ({len(bad)} of {len(values)} rows, first row {bad[0] + 1})")
    return values
