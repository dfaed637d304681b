"""The dialect of a text table: its encoding, separator, sign of decimals and header; and what its cells hold."""

import codecs
import csv
import gzip
import itertools
import math
import re

import numpy as np

_MISSING = frozenset(["", "?", "-", ".", "na", "n/a", "#n/a", "nan", "null", "none", "<na>", "-nan", "#na"])
_BOOLEANS = {"true": 1.0, "false": 0.0}
_INTEGER = re.compile(r"[+-]?\d+")
# By the sign of decimals: numbers whose thousands are grouped, 1,234.5 or 1.234,5.
_GROUPED = {
    ".": re.compile(r"[+-]?\d{1,3}([,' \xa0\u202f]\d{3})+(\.\d*)?"),
    ",": re.compile(r"[+-]?\d{1,3}([.' \xa0\u202f]\d{3})+(,\d*)?"),
}
_LONGEST_LINE = 2**28
_DECIMAL_COMMA = re.compile(r"[+-]?(\d*|\d{1,3}(\.\d{3})+),\d+([eE][+-]?\d+)?")
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
_BOMS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # after UTF-32's, which begin alike


def binary(path):
    """The file's bytes, unpacked if they are packed."""
    with open(path, "rb") as file:
        head = file.read(4)
    if head == b"PK\x03\x04":
        raise ValueError(f"{path} is a spreadsheet or a zip archive, whatever its name says: save the table as CSV.")
    return gzip.open(path) if head[:2] == b"\x1f\x8b" else open(path, "rb")


def encoding_of(path, encoding):
    """The text's encoding, and at least as many rows as it has lines."""
    with binary(path) as file:
        head = file.read(1024)
        found = next((name for bom, name in _BOMS.items() if head.startswith(bom)), None)
        if found is None and b"\0" in head:
            found = "utf-16-le" if head[1:2] == b"\0" else "utf-16-be"
        decoder, part, counts = codecs.getincrementaldecoder("utf-8")(), head, [1, 1]
        utf8, length = True, 0
        while part:
            ends = [part.count(end) for end in (b"\n", b"\r")]
            counts = [n + more for n, more in zip(counts, ends, strict=True)]
            length = 0 if any(ends) else length + len(part)
            if length > _LONGEST_LINE:
                raise ValueError(f"{path} can't be read as a table: a line has more than {_LONGEST_LINE:,} bytes.")
            if utf8 and found is None:
                try:
                    decoder.decode(part)
                except UnicodeDecodeError:
                    utf8 = False
            part = file.read(2**20)
    codecs.lookup(encoding or "utf-8")
    return encoding or found or ("utf-8" if utf8 else "cp1252"), max(counts)


def separator_of(path, lines):
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty: it holds no line with anything in it.")
    if ".tsv" in path.name.lower():
        return "\t"
    for separator in "\t;|,":  # the comma last: it stands in numbers too
        counts = {len(cells) for cells in csv.reader(lines, delimiter=separator) if cells}
        if len(counts) == 1 and counts != {1}:
            return separator
    if len(lines) > 1 and "," not in lines[0] and all(_DECIMAL_COMMA.fullmatch(line.strip()) for line in lines[1:]):
        return ";"  # one column of decimal commas
    return max(",;\t|", key=lines[0].count)


def decimal_of(separator, rows):
    with_comma = [cell.strip() for cells in rows for cell in cells if "," in cell]
    if not any(map(_DECIMAL_COMMA.fullmatch, with_comma)):
        return "."
    grouped = all(map(_GROUPED["."].fullmatch, with_comma))
    with_point = any(re.fullmatch(r"[+-]?[\d,]*\.\d+", cell.strip()) for cells in rows for cell in cells)
    return "." if grouped and (separator == "," or with_point) else ","


def names_columns(first, rows, decimal):
    """Whether the first line names the columns; None if that can't be told."""
    rows = [row for row in rows if len(row) == len(first)]
    below = [[row[i].strip() for row in rows if not is_missing(row[i])] for i in range(len(first))]
    numeric = [sum(is_number(c, decimal) for c in cells) for cells in below]
    given = [i for i, c in enumerate(first) if is_number(c, decimal)]
    words = [i for i, c in enumerate(first) if i not in given and not is_missing(c)]
    if any(2 * numeric[i] > len(below[i]) for i in words):
        return True  # a word above numbers
    if not given or any(below[i] and not numeric[i] for i in given):
        return bool(words or given)  # words above words, or a number above words
    names = [number(first[i], decimal) for i in given]
    others = [[number(row[i], decimal) for i in given] for row in rows]
    whole = all(_INTEGER.fullmatch(first[i].strip()) for i in given)
    decimals = bool(rows) and all(not all(map(_INTEGER.fullmatch, below[i])) for i in given)
    if len(names) == 1:
        return whole and names == [0] and decimals  # pandas' name of an only column
    if not _rises(names) or not rows:
        return False
    alike = sum(map(_rises, others)) > len(others) / 4
    if whole and decimals and (len(names) > 2 or names == [0, 1]):
        return True
    if whole and len(set(np.diff(names))) == 1:  # 0, 1, 2, ..., or years
        return True if len(names) > 2 and not alike else None
    return len(names) >= 8 and not alike  # wavelengths


def _rises(numbers):
    return None not in numbers and all(a < b for a, b in itertools.pairwise(numbers))


def is_number(cell, decimal):
    return (value := number(cell, decimal)) is not None and not math.isnan(value)


def is_missing(cell):
    return cell.strip().lower() in _MISSING


def number(cell, decimal):
    """A cell as a float: NaN if it is missing, None if it is no number."""
    text = cell.strip()
    low = text.lower()
    if low in _MISSING:
        return math.nan
    if low in _BOOLEANS:
        return _BOOLEANS[low]
    if _GROUPED[decimal].fullmatch(text):
        text = re.sub(rf"[^\d+{decimal}-]", "", text)
    if decimal == ",":
        if "." in text:
            return None
        text = text.replace(",", ".")
    try:
        return None if "_" in text else float(text)  # Python reads 1_000 as a thousand
    except ValueError:
        return None


def numbers(cells, decimal):
    """Cells of a column as float64; NaN where there is no number."""
    if decimal == "." and "_" not in "".join(cells):
        try:
            return np.fromiter(map(float, cells), "float64", len(cells))
        except ValueError:
            pass
    values = (number(cell, decimal) for cell in cells)
    return np.fromiter((math.nan if v is None else v for v in values), "float64", len(cells))
