"""Text tables, CSV of any dialect, read a few thousand rows at a time."""

import contextlib
import csv
import gzip
import io
import itertools
import re
import zlib

import numpy as np

from kerasae.data.reading import dialects

_CELLS_AT_ONCE = 2**20
_SAMPLE = 200  # lines that the dialect is found from


class Chunk:
    """Rows of a table: `values`, float64 `(rows, columns)` with NaN for what is missing or no number, and `labels`, a list or None."""

    def __init__(self, names, values, labels, cell, lines=None, ragged=None):
        self.names, self.values, self.labels, self.lines = names, values, labels, lines
        self._cell, self.ragged = cell, ragged or {}

    def finite(self):
        """Which rows hold numbers alone."""
        return np.isfinite(self.values.reshape(len(self.values), -1)).all(axis=1)

    def text(self, row, column):
        """What stands in a cell that holds neither a number nor nothing; else None."""
        return None if row in self.ragged else self._cell(row, column)

    def reason(self, row):
        """Why a row that isn't finite can't be used."""
        if row in self.ragged:
            return self.ragged[row]
        column = int(np.flatnonzero(~np.isfinite(self.values[row].reshape(-1)))[0])
        name = self.names[min(column, len(self.names) - 1)]
        where = f" in line {self.lines[row]}" if self.lines else ""
        if (text := self.text(row, min(column, len(self.names) - 1))) is not None:
            return f"{name!r} is {text[:30]!r}{where}, and no number"
        missing = np.isnan(self.values[row].reshape(-1)[column])
        return f"{name!r} is {'missing' if missing else 'infinite'}{where}"


class Csv:
    """A text table; arguments and attributes as of `open_table`."""

    def __init__(self, path, expected=None, header=None, decimal=None, encoding=None, separator=None):
        self.path, self.left_out, self.notes = path, {}, []
        with self._readable():
            self.encoding, self.num_rows = dialects.encoding_of(path, encoding)
            with self._text() as file:
                lines = list(itertools.islice(file, _SAMPLE))
        told = re.fullmatch(r"sep=(.)\s*", lines[0]) if lines else None  # as Excel writes it
        self.skipped = 1 if told else 0
        with self._readable():
            self.separator = {"\\t": "\t", "tab": "\t"}.get(separator, separator) or (
                told[1] if told else dialects.separator_of(path, lines[self.skipped :])
            )
        if len(self.separator) != 1:
            raise ValueError(f"separator must be one character. Received: {separator!r}")
        records = self._records()
        line, first = next(records)
        rows = [
            cells for _, cells in itertools.islice(records, max(10, min(_SAMPLE, _CELLS_AT_ONCE // 8 // len(first))))
        ]
        # R and some loggers write a cell more in each row than in the header: the row's name, or nothing.
        self._odd = len(rows) > 1 and {len(cells) for cells in rows} == {len(first) + 1}
        if self._odd and not any(cells[-1].strip() for cells in rows):
            first = [*first, ""]
        elif self._odd and len({cells[0] for cells in rows}) == len(rows):
            first = ["", *first]
        else:
            self._odd = False
        self.decimal = decimal or dialects.decimal_of(self.separator, rows)
        if self.decimal not in (".", ","):
            raise ValueError(f"decimal must be '.' or ','. Received: {decimal!r}")
        stripped = [cell.strip() for cell in first]
        if header is None and expected:
            header = {name.strip() for name in expected} <= set(stripped)
            words = not all(re.fullmatch(r"f\d+", name) or dialects.is_number(name, ".") for name in expected)
            # Numbers don't name the columns of a model that has names for them.
            if not header and not (words and all(dialects.is_number(cell, self.decimal) for cell in first)):
                header = bool(dialects.names_columns(first, rows, self.decimal))
        elif header is None:
            header = dialects.names_columns(first, rows, self.decimal)
        if header is None:
            raise ValueError(
                f"The first line of {path}, {self.separator.join(first)[:60]!r}, may name the columns or be the first row: "
                "say which with header (--header or --no-header)."
            )
        self.line = line if header else None
        self.names = stripped if header else [f"f{i}" for i in range(len(first))]
        if header:
            self._name_the_unnamed(rows)
        self.notes.append(f"header in line {line}" if header else "no header")
        if self.separator != ("\t" if ".tsv" in path.name.lower() else ","):
            self.notes.append(f"separator {self.separator!r}")
        self.notes += ["decimal commas"] * (self.decimal == ",")
        self.notes += [f"encoding {self.encoding}"] * (self.encoding not in ("utf-8", "utf-8-sig"))

    def _name_the_unnamed(self, rows):
        """pandas' row numbers have no name; nor has what ends every line with a separator, as spreadsheets do."""
        for i, name in enumerate(self.names):
            if name and not (i == 0 and re.fullmatch(r"Unnamed: 0(\.\d+)?", name)):
                continue
            nothing = not any(cells[i].strip() for cells in rows if len(cells) > i)
            self.names[i] = name or f"Unnamed: {i}"
            if nothing or (i == 0 and len(self.names) > 1):
                self.left_out[self.names[i]] = "empty" if nothing else "an index: it has no name"

    @contextlib.contextmanager
    def _readable(self):
        """Errors of decoders and decompressors name the file."""
        try:
            yield
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path} can't be read as {error.encoding} text: byte {error.object[error.start]:#x}. "
                "Name its encoding (--encoding latin-1)."
            ) from error
        except UnicodeError as error:  # of an encoding that begins with a mark
            raise ValueError(
                f"{self.path} can't be read as text: {error}. Name its encoding (--encoding latin-1)."
            ) from error
        except LookupError as error:
            raise ValueError(f"{error}. Known are utf-8, latin-1, cp1252, utf-16 and Python's others.") from error
        except (EOFError, zlib.error, gzip.BadGzipFile, csv.Error) as error:
            raise ValueError(f"{self.path} can't be read as a table: {error}") from error

    def binary(self):
        """The file, open, unpacked if it is packed."""
        return dialects.binary(self.path)

    def _text(self):
        return io.TextIOWrapper(self.binary(), encoding=self.encoding, newline="")

    def _records(self):
        """`(line, cells)` of all lines that hold something."""
        with self._readable(), self._text() as file:
            for _ in range(self.skipped):
                file.readline()
            reader = csv.reader(file, delimiter=self.separator)
            try:
                for cells in reader:
                    if any(map(str.strip, cells)):
                        yield reader.line_num + self.skipped, cells
            except csv.Error as error:
                raise ValueError(
                    f"{self.path} can't be read as a table: line {reader.line_num + self.skipped}: {error}. "
                    "Is a quotation mark not closed?"
                ) from error

    def chunks(self, columns, labels=None):
        """Yields `Chunk`s of the columns by their names, in order."""
        wanted = [self.names.index(name) for name in columns]
        label = None if labels is None else self.names.index(labels)
        records, width = self._records(), len(self.names)
        rows_at_once = max(1, min(4096, _CELLS_AT_ONCE // width))
        if self.line is not None:
            next(records)
        while some := list(itertools.islice(records, rows_at_once)):
            lines, rows = map(list, zip(*some, strict=True))
            ragged = {}
            for i, row in enumerate(rows):
                if len(row) != width:
                    named = f"the header in line {self.line}" if self.line else "the first row"
                    ragged[i] = (
                        f"line {lines[i]} has {len(row)} cells, and {named} has {width - (self._odd and bool(self.line))}"
                    )
                    rows[i] = [""] * width
            cells = list(zip(*rows, strict=True))
            values = np.stack([dialects.numbers(cells[i], self.decimal) for i in wanted], axis=1)

            def text(row, column, cells=cells):
                cell = cells[wanted[column]][row].strip()
                return cell if dialects.number(cell, self.decimal) is None else None

            yield Chunk(columns, values, None if label is None else list(cells[label]), text, lines, ragged)
