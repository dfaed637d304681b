"""Parquet tables, read a few thousand rows at a time."""

import math

import numpy as np

from kerasae.data.reading.text_tables import Chunk

_ROWS_AT_ONCE = 4096


class Parquet:
    """A Parquet file; attributes as of `open_table`. A column of lists or tensors is read alone, in the type of its numbers."""

    line = 0  # its columns have names

    def __init__(self, path):
        self.path, self.notes = path, []
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise ValueError(f"{path} needs the package pyarrow: pip install pyarrow. Or save it as CSV.") from error
        try:
            with pq.ParquetFile(path) as file:
                self.schema, self.num_rows = file.schema_arrow, file.metadata.num_rows
        except pa.ArrowException as error:
            raise ValueError(f"{path} can't be read as a table: {str(error).splitlines()[0]}") from error
        self.names = list(self.schema.names)
        index = (self.schema.pandas_metadata or {}).get("index_columns", [])
        own = [name for name in self.names if name in index or name.startswith("__index_level_")]
        self.left_out = dict.fromkeys(own, "pandas' index")

    @property
    def lists(self):
        """Names of the columns of lists or tensors."""
        return [field.name for field in self.schema if _is_list(_storage(field.type))]

    def chunks(self, columns, labels=None):
        """Yields `Chunk`s of the columns by their names, in order."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        row, width = 0, None
        try:
            with pq.ParquetFile(self.path) as file:
                taken = [*columns, *([labels] if labels else [])]
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=taken):
                    arrays = [batch.column(name) for name in columns]
                    if columns[0] in self.lists:
                        values = self._stacked(arrays[0], row, width)
                        width = values.shape[1:]
                    else:
                        values = np.stack([_floats(a) for a in arrays], axis=1)

                    def text(i, j, arrays=arrays):
                        value = arrays[j][i].as_py()
                        numeric = _is_numeric(arrays[j].type) or _is_list(_storage(arrays[j].type))
                        return None if value is None or numeric else str(value)

                    yield Chunk(columns, values, labels and batch.column(labels).to_pylist(), text)
                    row += len(batch)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{self.path} can't be read as a table: {str(error).splitlines()[0]}") from error

    def _stacked(self, column, row, width):
        """A batch of lists or tensors as one array; `row` and `width` are the first row's number, and the shape so far."""
        shape = getattr(column.type, "shape", None)
        storage = getattr(column, "storage", column)
        lengths = {len(v) if v.is_valid else None for v in storage}
        if width is not None:
            lengths.add(math.prod(width))
        if len(lengths) > 1 or None in lengths:
            raise ValueError(
                f"Lists of different lengths, or none, in rows {row + 1} to {row + len(column)} of {self.path}: {sorted(map(str, lengths))}"
            )
        values = storage.flatten()
        if not _is_numeric(values.type):
            raise ValueError(f"The lists in {self.path} must hold numbers. Received: {column.type}")
        return values.to_numpy(zero_copy_only=False).reshape(len(column), *(shape or (*lengths,)))


def _storage(type_):
    return getattr(type_, "storage_type", type_)


def _is_list(type_):
    import pyarrow as pa

    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


def _is_numeric(type_):
    import pyarrow as pa

    type_ = getattr(type_, "value_type", type_) if pa.types.is_dictionary(type_) else type_
    kinds = pa.types
    return kinds.is_boolean(type_) or kinds.is_integer(type_) or kinds.is_floating(type_) or kinds.is_decimal(type_)


def _floats(column):
    """A column as float64; NaN where it is empty, or holds no numbers."""
    import pyarrow as pa

    if not _is_numeric(column.type):
        return np.full(len(column), np.nan)
    column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    column = column.cast(pa.uint8()) if pa.types.is_boolean(column.type) else column
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
