"""A person's files as they are stored: tables, and the pixels of images.

It needs NumPy, for images Pillow and for Parquet PyArrow, and no more of kerasae: a detector's server has a copy of this folder.
"""

import collections
from pathlib import Path

from kerasae.data.reading import dialects
from kerasae.data.reading.text_tables import Csv

TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet")
OPTIONS = ("header", "decimal", "encoding", "separator")  # of `open_table`


def suffix(path):
    """How a file's name ends, in lower case: `".csv.gz"` too."""
    ends = [part.lower() for part in Path(path).suffixes[-2:]]
    return "".join(ends) if ends[-1:] == [".gz"] else "".join(ends[-1:])


def dialect(path, options):
    """Those of the options that say how a table is written, if the file is a text table; each that is given."""
    is_text = suffix(path) in TABLES and suffix(path) != ".parquet"
    return {name: options[name] for name in OPTIONS if is_text and options.get(name) is not None}


def open_table(path, expected=None, header=None, decimal=None, encoding=None, separator=None):
    """A table's description; its rows are read by its `chunks`.

    Args:
        path: of a file that ends in one of `TABLES`.
        expected: names of columns that it should have, if known: a first line with these names is a header.
        header: whether the first line names the columns. Default: found from what stands in it and below it.
        decimal: `"."` or `","`. Default: found from the numbers.
        encoding: of the text. Default: by its byte order mark, UTF-8, or else Windows-1252.
        separator: of the cells. Default: found among `, ; | tab`.

    Returns:
        `Csv` or `Parquet`, both with `names` of the columns; `left_out`, `{name: why}` of those that are no features, such as
        pandas' index; `line`, of the header, or None; `notes`, what was found out, in words; and `num_rows`, at least as many as it has.

    Raises:
        ValueError: if it can't be read, columns share a name, or its first line may or may not be a header.
    """
    path = Path(path)
    dialect = {"header": header, "decimal": decimal, "encoding": encoding, "separator": separator}
    if path.suffix.lower() == ".parquet":
        if given := [name for name, value in dialect.items() if value is not None]:
            raise ValueError(f"{given[0]!r} doesn't apply to a Parquet file. Received: {path}")
        from kerasae.data.reading.parquet_tables import Parquet

        table = Parquet(path)
    else:
        table = Csv(path, expected, **dialect)
    if repeated := sorted({name for name, n in collections.Counter(table.names).items() if n > 1}):
        raise ValueError(f"Columns of {path} share a name: {', '.join(repeated[:5])}.")
    return table


def placed(table, columns):
    """The table's own names of the columns that are wanted: by their names, or by their places if the table names none.

    Raises:
        ValueError: if it lacks some; the message lists them.
    """
    own = {name.strip(): name for name in table.names} | {name: name for name in table.names}
    missing = [name for name in columns if name not in own and name.strip() not in own]
    if not missing:
        return [own.get(name, own.get(name.strip())) for name in columns]
    numbered = list(columns) == [f"f{i}" for i in range(len(columns))]
    unnamed = table.line is None or (numbered and all(dialects.is_number(name, ".") for name in table.names))
    if unnamed and len(table.names) == len(columns):
        return list(table.names)
    has = ", ".join(table.names[:20]) + (f" and {len(table.names) - 20} more" if len(table.names) > 20 else "")
    raise ValueError(
        f"{table.path} lacks columns that the model was trained on: {', '.join(missing[:20])}. It has: {has}"
    )
