"""A table of numbers from a CSV, TSV or Parquet file."""

import collections

import numpy as np

from kerasae import checks
from kerasae.data import reading

SUFFIXES = reading.TABLES
_LARGE = 2**22  # bytes of a text table, from which on PyArrow is tried first


def read(path, like, columns, drop, labels, skip_unreadable, dialect):
    """The columns that are asked for; arguments as in `kerasae.data.files.read`, the dialect's as a dict.

    Returns:
        `(values, taken, labels, rows, said)`: float64 of `(n, columns)`; the columns' names, or None for the lists or tensors of one
        column, which come in their own type; one class per row or None; the numbers of the rows, from 1, where some are left out, or
        None; and what was read, in words.
    """
    expected = None if like is None or columns else like.columns
    table = reading.open_table(path, expected, **dialect)
    names = table.names
    if repeated := [name for name, n in collections.Counter(names).items() if n > 1]:
        raise ValueError(f"Columns of {path} share a name: {checks.listed(repeated)}.")
    # A column may have a comma in its name; else several can be named in one word.
    drop = [name for given in drop for name in ([given] if given in names else given.split(","))]
    for name in [*(columns or []), *drop, *([labels] if labels else [])]:
        checks.choice(name, f"column of {path.name}", names)
    left_out = {name: why for name, why in table.left_out.items() if not columns or name not in columns}
    left_out |= dict.fromkeys(drop, "as asked") | ({labels: "the classes"} if labels else {})
    lists = [name for name in getattr(table, "lists", ()) if name in (columns or names) and name not in left_out]
    if expected is not None:
        taken = reading.placed(table, expected)
        left_out = {name: "not the model's" for name in names if name not in taken and name != labels}
        left_out |= {labels: "the classes"} if labels else {}
    elif lists and (not columns or len(columns) == 1):
        if len(lists) > 1:
            raise ValueError(
                f"Columns of {path} hold lists: {checks.listed(lists)}. Name one with columns (--columns)."
            )
        taken = lists
        left_out |= {name: f"beside the lists of {lists[0]!r}" for name in names if name not in (lists[0], *left_out)}
    else:
        taken = [name for name in columns or names if name not in left_out]
        if columns:
            left_out |= dict.fromkeys((name for name in names if name not in columns), "not among the columns")
    if not taken:
        raise ValueError(f"No column of {path} is left.")
    asked = expected is not None or bool(columns)
    values, classes, problems = _collected(table, taken, labels)
    if values.ndim == 3:
        values = values[..., None]  # grey images
    if not len(values):
        raise ValueError(f"{path} has no rows.")
    if skip_unreadable and not asked and lists != taken:
        if text := [name for name, found in problems.text.items() if 2 * found[0] >= len(values)]:
            left_out |= dict.fromkeys(text, "text")
            if not (taken := [name for name in taken if name not in text]):
                raise ValueError(problems.said(path, len(values)))
            values, classes, problems = _collected(table, taken, labels)
    kept = np.ones(len(values), bool)
    if values.dtype.kind == "f":
        kept = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    rows = None
    notes = [_counted(len(values), "row"), *table.notes]
    if not kept.all():
        if not skip_unreadable or not kept.any():
            raise ValueError(problems.said(path, len(values)))
        rows = np.flatnonzero(kept) + 1
        notes.append(
            f"left out {_counted(len(values) - len(rows), 'row')} with gaps or text, the first: {problems.first}"
        )
        values, classes = values[kept], classes and [classes[i] for i in rows - 1]
    if too_large := [n for n, v in zip(taken, values.T, strict=False) if _rounded(v)] if lists != taken else []:
        notes.append(f"rounded to 16 digits: {checks.listed(too_large)}")
    what = _counted(len(taken), "column")
    if lists == taken:
        what = f"lists of shape {values.shape[1:]} in {taken[0]!r}"
    why = collections.defaultdict(list)
    for name, reason in left_out.items():
        why[reason].append(name)
    notes += [f"left out {checks.listed(names)} ({reason})" for reason, names in why.items()]
    said = f"{what}, " + ", ".join(notes)
    columns = None if lists == taken else list(expected) if expected is not None else taken
    return values, columns, classes, rows, said


def _counted(number, what):
    return f"{number:,} {what}{'s' * (number != 1)}"


class _Problems:
    """What stands where numbers should: by column, `text` as `(how many, the first, its line)`, `gaps` as `(how many, first row)`."""

    def __init__(self):
        self.text, self.gaps, self.ragged, self.first = {}, {}, None, None

    def add(self, chunk, names, start):
        """Adds a chunk's, whose first row is number `start`, from 0."""
        for i in np.flatnonzero(~chunk.finite()):
            if self.first is None:
                self.first = f"row {start + i + 1}, where {chunk.reason(i)}"
            if i in chunk.ragged:
                self.ragged = self.ragged or chunk.ragged[i]
                continue
            for j in np.flatnonzero(~np.isfinite(chunk.values[i].reshape(-1)))[: len(names)]:
                name = names[min(j, len(names) - 1)]
                text = chunk.text(i, min(j, len(names) - 1))
                kind, found = (self.gaps, start + i + 1) if text is None else (self.text, text)
                line = chunk.lines[i] if chunk.lines else None
                kind[name] = (kind[name][0] + 1, *kind[name][1:]) if name in kind else (1, found, line)

    def said(self, path, num_rows):
        """All of them in one error, with what to do about each."""
        if self.ragged:
            return f"{path} can't be read as a table: {self.ragged}. Leave such rows out with skip_unreadable (--skip-unreadable)."
        parts = []
        if self.text:
            columns = checks.listed(
                f"{name!r} ({text[:30]!r}{f' in line {line}' if line and n < num_rows else ''})"
                for name, (n, text, line) in self.text.items()
            )
            remedy = " ".join(f"--drop {name!r}" if " " in name else f"--drop {name}" for name in list(self.text)[:5])
            parts.append(
                f"Columns of {path} hold no numbers: {columns}. Leave them out with drop ({remedy}), or name one with labels "
                "(--labels NAME)."
            )
        if self.gaps:
            columns = checks.listed(
                f"{name!r} (all {n} rows)" if n == num_rows else f"{name!r} ({n} of {num_rows} rows, first row {row})"
                for name, (n, row, _) in self.gaps.items()
            )
            parts.append(f"Columns of {path} have gaps or NaN: {columns}. Fill them, or leave the columns out.")
        return (
            " ".join(parts)
            + " Or leave all such rows and columns of text out with skip_unreadable (--skip-unreadable)."
        )


def _collected(table, taken, labels):
    """All rows: values, classes or None, and `_Problems`."""
    if table.path.stat().st_size > _LARGE and (found := _at_once(table, taken, labels)) is not None:
        return *found, _Problems()
    values, classes, problems, rows = None, [] if labels else None, _Problems(), 0
    for chunk in table.chunks(taken, labels):
        if values is None:
            checks.memory((table.num_rows, *chunk.values.shape[1:]), chunk.values.dtype, table.path)
            values = np.empty((table.num_rows, *chunk.values.shape[1:]), chunk.values.dtype)
        elif values.dtype != (common := np.result_type(values, chunk.values)):
            values = values.astype(common)
        problems.add(chunk, taken, rows)
        values[rows : rows + len(chunk.values)] = chunk.values
        rows += len(chunk.values)
        if labels:
            classes += chunk.labels
    return (np.empty((0, len(taken))) if values is None else values[:rows]), classes, problems


def _at_once(table, taken, labels):
    """Values and classes of a text table of finite numbers, by PyArrow on all cores; None where it holds anything else."""
    import pyarrow as pa
    from pyarrow import csv

    if not hasattr(table, "decimal"):
        return None
    types = dict.fromkeys(taken, pa.float64()) | ({labels: pa.string()} if labels else {})
    checks.memory((table.num_rows, len(taken)), "float64", table.path, copies=2)
    try:
        with table.binary() as file:
            read = csv.read_csv(
                file,
                csv.ReadOptions(
                    column_names=table.names, skip_rows=table.line or table.skipped, encoding=table.encoding
                ),
                csv.ParseOptions(delimiter=table.separator),
                csv.ConvertOptions(column_types=types, include_columns=list(types), decimal_point=table.decimal),
            )
    except (pa.ArrowException, UnicodeError, OSError, EOFError):
        return None
    values = np.empty((len(read), len(taken)))
    for i, name in enumerate(taken):
        values[:, i] = read[name].to_numpy()
    return (values, labels and read[labels].to_pylist()) if np.isfinite(values).all() else None


def _rounded(column):
    """Whether a column holds whole numbers that float64 can't hold all digits of."""
    high = np.abs(column).max(initial=0)
    return high > 2**53 and high < 2**64 and bool((column == np.floor(column)).all())
