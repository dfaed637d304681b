"""Runs a part of a bundle over one Parquet file.

It needs NumPy, PyArrow, ONNX Runtime and `kerasae.runtime` only. Bulk runs send it and the runtime to their workers as code: so a worker
starts at once, stays small, and need not have this package installed.
"""

import json
import math
import os
import re
import uuid
from pathlib import Path

import numpy as np

from kerasae.runtime import Bundle

METADATA = b"kerasae"  # key in an output's Parquet metadata
_ROW_GROUP_BYTES = 16 * 2**20
_READ_BUFFER_BYTES = 2**20


def encode_file(bundle, source, target, part="encoder", column=None, keep=None, batch_size=1024, threads=1):
    """Runs a part of a bundle over one Parquet file. Any engine can call it: files go in, files come out.

    It needs the memory of a few batches, whatever the file's size, and NumPy, PyArrow and ONNX Runtime.

    Args:
        bundle: folder that `kerasae.export.export` wrote, with ONNX files.
        source: Parquet file.
        target: the file to write, which appears when it is whole. Codes are `fixed_size_list<float>` columns named as the part's outputs,
            `z` for instance; images and other outputs of several dimensions are `fixed_shape_tensor` columns, which readers that don't
            know these take for lists.
        part, column, keep, batch_size: as in `kerasae.export.bulk.run`.
        threads: of ONNX Runtime.

    Returns:
        Number of rows.

    Raises:
        ValueError: on a bundle, part, file, column or values that don't fit; no target is written then.

    Example:

    Spark, one file per task (Beam's `beam.Map` takes the same function):

    ```bash
    spark.sparkContext.parallelize(pairs, len(pairs)).map(lambda pair: encode_file(bundle, *pair)).collect()
    ```
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    bundle, target = Bundle(bundle), Path(target)
    source = Source(source, part_of(bundle, part), column, keep)
    function = bundle.open(part, threads=threads)
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    writer, waiting, size, rows = None, [], 0, 0

    def write():
        table = pa.concat_tables(waiting)
        writer.write_table(table, row_group_size=max(1, len(table)))
        waiting.clear()

    try:
        # Without a read-ahead, and with a buffer instead of whole columns, memory does not grow with the row groups.
        with pq.ParquetFile(source.path, buffer_size=_READ_BUFFER_BYTES, pre_buffer=False) as file:
            for batch in source.batches(file, batch_size):
                table = _table(function(source.examples(batch, rows)), batch, source.kept)
                if writer is None:
                    metadata = {**(table.schema.metadata or {}), METADATA: json.dumps(source.fingerprint).encode()}
                    writer = pq.ParquetWriter(beside, table.schema.with_metadata(metadata))
                waiting.append(table)
                size += table.nbytes
                rows += len(batch)
                if size >= _ROW_GROUP_BYTES:
                    write()
                    size = 0
            if waiting:
                write()
            writer.close()
        os.replace(beside, target)
    except OSError as error:
        raise ValueError(f"{source.path} could not be read, or {target} written: {error}") from error
    finally:
        if writer is not None:
            writer.close()
        beside.unlink(missing_ok=True)
    return rows


def part_of(bundle, name):
    """A part's entry in a bundle's manifest, with its file's `sha256`, whether NaN may come in (`takes_nan`), a table's `columns`."""
    part = bundle.entry(name)
    if len(part["inputs"]) != 1:
        raise ValueError(
            f"Bulk runs take one input, and the {name} of this bundle takes {[port['name'] for port in part['inputs']]}."
        )
    sha256 = "+".join(bundle.manifest["files"][name]["sha256"] for name in part["onnx"].values())
    # Bundles of before ports said so hold NaN for missing values where they are an imputer's.
    takes_nan = part["inputs"][0].get("missing", bundle.manifest["family"] == "Imputer")
    columns = (bundle.manifest.get("preparation") or {}).get("columns") if part["inputs"][0]["name"] == "x" else None
    return {**part, "sha256": sha256, "takes_nan": takes_nan, "columns": columns}


class Source:
    """A Parquet file that a part is run over: which columns hold its input, and which are copied.

    Args:
        path: of the file.
        part: of `part_of`.
        column, keep: as in `kerasae.export.bulk.run`.

    Attributes:
        num_rows: how many.
        columns: names of the columns with the examples: one of lists or tensors, or one for every feature.
        kept: names of the columns to copy.
        fingerprint: what its output is made of: equal fingerprints, equal outputs. JSON gives it back as it is.

    Raises:
        ValueError: if the file is not Parquet or lacks what is asked for.
    """

    def __init__(self, path, part, column=None, keep=None):
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path, self.part, self.port = Path(path), part, part["inputs"][0]
        try:
            stat = self.path.stat()
            with pq.ParquetFile(self.path) as file:
                self.schema, self.num_rows = file.schema_arrow, file.metadata.num_rows
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(f"{self.path} can't be read as Parquet, which bulk runs take: {error}") from error
        self.columns = self._columns_by_name(column) or self._columns_of_examples(column or self.port["name"])
        self.kept = self._columns_to_copy(keep)
        self.fingerprint = {
            "source_bytes": stat.st_size,
            "source_mtime_ns": stat.st_mtime_ns,
            "model_sha256": part["sha256"],
            "part": part["name"],
            "column": column,
            "keep": keep if keep is None or isinstance(keep, str) else list(keep),
        }

    def _columns_by_name(self, column):
        """The columns of the table that the model was trained on, or None where the file has none of them, or `column` says otherwise."""
        named, have = self.part["columns"] or [], self.schema.names
        if column is not None or self.port["name"] in have or not any(name in have for name in named):
            return None
        if missing := [name for name in named if name not in have]:
            raise ValueError(
                f"{self.path} lacks columns that the model was trained on: {', '.join(missing[:20])}. It has: {', '.join(have[:20])}"
            )
        return named

    def _columns_of_examples(self, column):
        import pyarrow as pa

        shape = self.port["shape"][1:]
        features = None if any(isinstance(size, str) for size in shape) else math.prod(shape)
        if column in self.schema.names:
            type_ = self.schema.field(column).type
            storage = type_.storage_type if isinstance(type_, pa.BaseExtensionType) else type_
            if not _is_list(storage):
                if features == 1:
                    return [column]
                raise ValueError(
                    f"Column {column!r} of {self.path} must hold lists of numbers or tensors. Received: {type_}"
                )
            if not (pa.types.is_integer(storage.value_type) or pa.types.is_floating(storage.value_type)):
                raise ValueError(f"Column {column!r} of {self.path} must hold lists of numbers. Received: {type_}")
            length = storage.list_size if pa.types.is_fixed_size_list(storage) else features
            if features not in (None, length):
                raise ValueError(
                    f"An example has {features} numbers, shape {tuple(shape)}, and column {column!r} of {self.path} has {length}."
                )
            return [column]
        matches = ((re.fullmatch(re.escape(column) + r"[_.]?(\d+)", name), name) for name in self.schema.names)
        numbered = dict(sorted((int(match[1]), name) for match, name in matches if match))
        if not numbered:
            raise ValueError(
                f"{self.path} has no column {column!r}, and none numbered {column}0, {column}1, ... Name it with `column`. It has: "
                f"{', '.join(self.schema.names[:20])}{', ...' if len(self.schema.names) > 20 else ''}"
            )
        names, first = list(numbered.values()), min(numbered)
        whole = first in (0, 1) and list(numbered) == list(range(first, first + len(names)))
        if not whole or features not in (None, len(names)):
            raise ValueError(
                f"An example has {features} numbers, and {self.path} has {len(names)} columns {names[0]} to {names[-1]}"
                f"{'' if whole else ', which are not numbered without gaps from 0 or 1'}."
            )
        return names

    def _columns_to_copy(self, keep):
        others = [name for name in self.schema.names if name not in self.columns]
        if keep is None:
            keep = [name for name in others if name == "id"]
        elif isinstance(keep, str):
            keep = others if keep == "all" else [keep]
        missing = [name for name in keep if name not in others]
        if missing:
            raise ValueError(
                f"{self.path} has no column {missing[0]!r} to keep besides the examples. It has: {', '.join(others)}"
            )
        clash = [port["name"] for port in self.part["outputs"] if port["name"] in keep]
        if clash:
            raise ValueError(f"Column {clash[0]!r} of {self.path} can't be kept: the part's own output has that name.")
        return list(keep)

    def batches(self, file, batch_size):
        """Batches of rows; of a file without any, one without rows, so that its output has columns too."""
        import pyarrow as pa

        columns = [*self.columns, *self.kept]
        yield from filter(len, file.iter_batches(batch_size, columns=columns, use_threads=False))
        if not self.num_rows:
            yield pa.RecordBatch.from_pylist([], pa.schema([self.schema.field(name) for name in columns]))

    def examples(self, batch, row):
        """The part's input, `(rows, *shape)` in its type, of a batch of rows from `row` on."""
        import pyarrow as pa
        import pyarrow.compute as pc

        shape = [None if isinstance(size, str) else size for size in self.port["shape"][1:]]
        where = f"rows {row} to {row + len(batch) - 1} of {self.path}"

        def refuse_nulls(column, name):
            if column.null_count and not self.part["takes_nan"]:
                raise ValueError(f"Column {name!r} holds nulls in {where}.")

        for name in self.columns:
            column = batch.column(name)
            if column.null_count and _is_list(getattr(column.type, "storage_type", column.type)):
                raise ValueError(f"Column {name!r} holds nulls, where a list is missing, in {where}.")
            refuse_nulls(column, name)
        name, column = self.columns[0], batch.column(self.columns[0])
        if isinstance(column.type, pa.FixedShapeTensorType):
            if None in shape:
                shape = list(column.type.shape)
            if column.type.permutation not in (None, list(range(len(column.type.shape)))):
                raise ValueError(f"Column {name!r} of {self.path} holds tensors that are not row-major.")
        column = column.storage if isinstance(column, pa.ExtensionArray) else column
        if len(self.columns) > 1 or not _is_list(column.type):
            for name in self.columns:
                type_ = batch.column(name).type
                if not (pa.types.is_integer(type_) or pa.types.is_floating(type_)):
                    raise ValueError(f"Column {name!r} of {self.path} must hold numbers. Received: {type_}")
            x = np.stack([batch.column(name).to_numpy(zero_copy_only=False) for name in self.columns], axis=1)
        else:
            if not pa.types.is_fixed_size_list(column.type):
                lengths = pc.unique(pc.list_value_length(column)).to_pylist()
                if len(lengths) > 1:
                    raise ValueError(f"Lists of different lengths, {lengths[0]} and {lengths[1]}, in {where}.")
            values = column.flatten()
            refuse_nulls(values, name)
            x = values.to_numpy(zero_copy_only=False)
            x = x.reshape(len(batch), -1) if len(batch) else x.reshape(0, math.prod(size or 1 for size in shape))
        if None in shape:
            raise ValueError(
                f"The part takes examples of any size, {self.port['shape'][1:]}, and {self.path} does not say which: use a column "
                "of fixed_shape_tensor, or export a model with a fixed input shape."
            )
        if x.shape[1] != math.prod(shape):
            raise ValueError(
                f"An example has {math.prod(shape)} numbers, shape {tuple(shape)}. Received {x.shape[1]} in {where}."
            )
        return self._as_port(x, where).reshape(len(x), *shape)

    def _as_port(self, x, where):
        """Values in the type that the part takes, if they are in its range."""
        dtype = np.dtype(self.port["dtype"])
        if not x.size:
            return x.astype(dtype)
        lowest, highest = (np.nanmin, np.nanmax) if self.part["takes_nan"] else (np.min, np.max)
        low, high = lowest(x), highest(x)  # NaN if any value is, unless it may be
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError(f"NaN or infinity in {where}. Remove or impute such values first.")
        bounds = self.port["value_range"]
        if dtype.kind in "iu":
            if x.dtype.kind == "f":
                raise ValueError(f"The part takes {dtype}, and {where} are {x.dtype}.")
            bounds = bounds or (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if dtype.kind == "f" and max(-low, high) > np.finfo(dtype).max:
            raise ValueError(
                f"Values beyond {dtype}, {low:g} to {high:g}, in {where}. Remove or impute such values first."
            )
        if bounds and (low < bounds[0] or high > bounds[1]):
            hint = ""
            if bounds[1] == 1 and 1 < high <= 255:
                hint = " Divide 8-bit images by 255, or export the model with image_input='uint8'."
            raise ValueError(
                f"The part takes values from {bounds[0]:g} to {bounds[1]:g}. Received {low:g} to {high:g} in {where}.{hint}"
            )
        return x.astype(dtype, copy=False)


def _is_list(type_):
    import pyarrow as pa

    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


def _table(outputs, batch, kept):
    """The kept columns and the outputs, as Arrow."""
    import pyarrow as pa

    arrays = {name: batch.column(name) for name in kept}
    for name, values in outputs.items():
        arrays[name] = pa.array(np.ascontiguousarray(values).reshape(-1))
        if values.ndim > 1:
            lists = pa.FixedSizeListArray.from_arrays(arrays[name], math.prod(values.shape[1:]))
            if values.ndim > 2:
                tensor = pa.fixed_shape_tensor(arrays[name].type, values.shape[1:])
                lists = pa.ExtensionArray.from_storage(tensor, lists)
            arrays[name] = lists
    return pa.table(arrays)
