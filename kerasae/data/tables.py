"""A table of numbers from a CSV, TSV or Parquet file."""

import numpy as np

from kerasae import checks
from kerasae.data import reading

SUFFIXES = reading.TABLES
_LARGE = 2**22  # bytes of a text table, from which on PyArrow is tried first


def read(path, like, columns, drop, labels, skip_unreadable, dialect, missing=False):
    """The columns that are asked for; arguments as in `kerasae.data.files.read`, the dialect's as a dict.

    Returns:
        `(values, taken, labels, rows, said)`: float64 of `(n, columns)`; the columns' names, or None for the lists or tensors of one
        column, which come in their own type; one class per row or None; the numbers of the rows, from 1, where some are left out, or
        None; and what was read, in words.
    """
    expected = None if like is None or columns else like.columns
    table = reading.open_table(path, expected, **dialect)
    taken, left_out, is_list = _taken(table, expected, columns, drop, labels)
    values, classes, problems = _collected(table, taken, labels)
    if not len(values):
        raise ValueError(f"{path} has no rows.")
    if skip_unreadable and not (expected or columns):
        useless = problems.useless(len(values))
        if useless and len(useless) < len(taken):
            left_out |= useless
            taken = [name for name in taken if name not in useless]
            values, classes, problems = _collected(table, taken, labels)
    if values.ndim == 3 and (like is None or len(like.shape) != 2):
        values = values[..., None]  # grey images
    kept, rows, gaps = np.ones(len(values), bool), None, 0
    if values.dtype.kind == "f":
        flat = values.reshape(len(values), -1)
        kept = (~np.isinf(flat) if missing else np.isfinite(flat)).all(axis=1)
        if missing:
            kept[problems.rows] = False
            gaps = int(np.isnan(flat[kept]).sum())
            empty = [name for name, column in zip(taken, flat.T, strict=False) if np.isnan(column[kept]).all()]
            if empty and kept.any():
                raise ValueError(
                    f"Columns of {path} hold no value at all: {checks.listed(empty)}. Leave them out with drop (--drop)."
                )
    what = f"lists of shape {values.shape[1:]} in {taken[0]!r}" if is_list else _counted(len(taken), "column")
    notes = [what, _counted(len(values), "row"), *table.notes] + [f"{_counted(gaps, 'missing value')}"] * (gaps > 0)
    if not kept.all():
        if not skip_unreadable or not kept.any():
            raise ValueError(problems.said(path, len(values), missing))
        rows = np.flatnonzero(kept) + 1
        lost = _counted(len(values) - len(rows), "row")
        notes.append(
            f"left out {lost} with text or infinity"
            if missing
            else f"left out {lost} with gaps or text, the first: {problems.first}"
        )
        values, classes = values[kept], classes and [classes[i] for i in rows - 1]
    if rounded := [] if is_list else [n for n, column in zip(taken, values.T, strict=True) if _rounded(column)]:
        notes.append(f"rounded to 16 digits: {checks.listed(rounded)}")
    for reason in dict.fromkeys(left_out.values()):
        notes.append(f"left out {checks.listed(n for n, why in left_out.items() if why == reason)} ({reason})")
    columns = None if is_list else list(expected or taken)
    return values, columns, classes, rows, ", ".join(notes)


def _taken(table, expected, columns, drop, labels):
    """The columns to read, `{name: why}` of the others, and whether it is one of lists or tensors; arguments as of `read`."""
    path, names = table.path, table.names
    # A column may have a comma in its name; else several can be named in one word.
    drop = [name for given in drop for name in ([given] if given in names else given.split(","))]
    for name in [*(columns or []), *drop, *([labels] if labels else [])]:
        checks.choice(name, f"column of {path.name}", names)
    left_out = {labels: "the classes"} if labels else {}
    if expected:
        taken = reading.placed(table, expected)
        return taken, {name: "not the model's" for name in names if name not in taken} | left_out, False
    left_out |= {name: why for name, why in table.left_out.items() if name not in (columns or ())}
    left_out |= dict.fromkeys(drop, "as asked")
    left_out |= {name: "not among the columns" for name in names if columns and name not in columns}
    taken = [name for name in columns or names if name not in left_out]
    if not taken:
        raise ValueError(f"No column of {path} is left.")
    lists = [name for name in taken if name in getattr(table, "lists", ())]
    if len(lists) > 1 or (lists and columns and len(taken) > 1):
        raise ValueError(
            f"Columns of {path} hold lists: {checks.listed(lists)}. Name one alone with columns (--columns)."
        )
    if lists:
        left_out |= {name: f"beside the lists of {lists[0]!r}" for name in taken if name not in lists}
    return lists or taken, left_out, bool(lists)


def _counted(number, what):
    return f"{number:,} {what}{'s' * (number != 1)}"


class _Problems:
    """What stands where numbers should: by column, `text` as `(how many, the first, its line)`, `gaps` as `(how many, first row)`.

    `rows` are the numbers, from 0, of the rows with text, or of another length.
    """

    def __init__(self):
        self.text, self.gaps, self.ragged, self.first, self.rows = {}, {}, None, None, []

    def add(self, chunk, names, start):
        """Adds a chunk's, whose first row is number `start`, from 0."""
        for i in np.flatnonzero(~chunk.finite()):
            if self.first is None:
                self.first = f"row {start + i + 1}, where {chunk.reason(i)}"
            if i in chunk.ragged:
                self.rows.append(start + i)
                self.ragged = self.ragged or chunk.ragged[i]
                continue
            for j in np.flatnonzero(~np.isfinite(chunk.values[i].reshape(-1)))[: len(names)]:
                name = names[min(j, len(names) - 1)]
                text = chunk.text(i, min(j, len(names) - 1))
                kind, found = (self.gaps, start + i + 1) if text is None else (self.text, text)
                if text is not None:
                    self.rows.append(start + i)
                line = chunk.lines[i] if chunk.lines else None
                kind[name] = (kind[name][0] + 1, *kind[name][1:]) if name in kind else (1, found, line)

    def useless(self, num_rows):
        """`{name: why}` of the columns with at least as many cells of text as of numbers, and of those without a value."""
        counts = {
            name: (self.text.get(name, (0,))[0], self.gaps.get(name, (0,))[0]) for name in {**self.text, **self.gaps}
        }
        return {
            name: "text" if text else "no value"
            for name, (text, gaps) in counts.items()
            if num_rows == gaps or 0 < text >= num_rows - text - gaps
        }

    def said(self, path, num_rows, missing=False):
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
        if self.gaps and not missing:
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
