"""Bulk runs of a bundle over Parquet files on Dask: more examples than memory holds, on more cores than one process uses.

What runs in the workers (`encode_file` and what it calls) needs NumPy, PyArrow and ONNX Runtime only: it imports nothing of this package,
and is sent to them as code. So a worker starts at once, stays small, and need not have this package installed.
"""

import contextlib
import glob
import hashlib
import ipaddress
import json
import logging
import math
import operator
import os
import re
import sys
import tempfile
import time
import urllib.parse
import uuid
from pathlib import Path

import numpy as np

_METADATA = b"kerasae"  # key in an output's Parquet metadata
_ROW_GROUP_BYTES = 16 * 2**20
_READ_BUFFER_BYTES = 2**20
_EXTRA = "Install it with: pip install 'kerasae[bulk]'"

_logger = logging.getLogger(__name__)


def run(
    bundle,
    inputs,
    output,
    part="encoder",
    workers=None,
    batch_size=1024,
    scheduler=None,
    overwrite=False,
    *,
    column=None,
    keep=None,
    insecure=False,
    verbose=1,
):
    """Runs a part of an exported bundle over Parquet files: one output file for each, on all cores or on a cluster.

    Each file is a task of Dask's distributed scheduler, in a process that reads, computes and writes a batch at a time. An output is
    written beside its place and moved in when it is whole, with a fingerprint of its input and of the model; started again, a run skips
    outputs whose fingerprint is the same. A worker that dies is started again and its file with it; a file that can't be computed does not
    stop the others.

    Args:
        bundle: folder that `kerasae.export.export` wrote, with ONNX files.
        inputs: a Parquet file, a folder (its `*.parquet`, subfolders too; names that start with "." or "_" are left out), a pattern such
            as `"data/part-*.parquet"`, or a list of files. Many files of some 10,000 to 1,000,000 rows keep all workers busy.
        output: folder, made if need be, where each input gets a file of the same name. Not the inputs' folder.
        part: of the bundle: `"encoder"`, `"decoder"`, `"autoencoder"`, `"score"`, ...
        workers: processes on this machine, each with its share of the cores. Default: one a core.
        batch_size: examples that go through the model together.
        scheduler: address of a running Dask scheduler, `"tls://host:8786"` or `"tcp://127.0.0.1:8786"`, or a `distributed.Client` (made
            for Kubernetes, Slurm, ..., where `Client` takes care of security). Workers must see the same paths, and have NumPy, PyArrow
            and ONNX Runtime. Default: a local cluster on the loopback address that ends with the run.
        overwrite: compute everything again, and replace whatever has the outputs' names.
        column: that holds the examples. Default: the name of the part's input, such as `"x"`. A column of lists (row-major where an
            example has several dimensions) or of tensors; or numbered columns, `x0`, `x1`, ... or `x_0`, `x_1`, ...
        keep: names of columns to copy to the outputs, or `"all"` but the examples. Default: `"id"`, where there is one.
        insecure: allow `tcp://` to another machine. Whoever can reach a scheduler without TLS can run any code on its workers.
        verbose: 1 for a progress bar of rows, 0 for none.

    Returns:
        A dict: `rows` and `files` that were computed, `skipped` files that were there, `seconds`, `rows_per_second`.

    Raises:
        ValueError: before any work, on a bundle or a part that is not there or not what was exported, inputs that are none, empty or
            without the column, an output folder that can't be written or holds other files of the outputs' names, or an unsafe
            scheduler; after all other files are done, if some held values that the part does not take (NaN, a wrong length, outside its
            range).
        ImportError: without the extra `kerasae[bulk]`.
        RuntimeError: after all other files are done, if some failed otherwise, such as by killing every worker that took them.

    Example:

    ```bash
    python -c "from kerasae.export import bulk; bulk.run('vae_bundle', 'images', 'codes')"
    ```
    """
    _check_packages("pyarrow", "distributed", "onnxruntime", "tqdm")
    batch_size = _positive_int(batch_size, "batch_size")
    cores = _cores()
    workers = cores if workers is None else _positive_int(workers, "workers")
    scheduler = _check_scheduler(scheduler, insecure)
    bundle, output = Path(bundle).resolve(), Path(output).resolve()
    part_entry, model_sha256 = _open_part(bundle, part)[:2]
    tasks = _tasks(inputs, output)
    _check_output(output)
    todo, rows = [], {}
    for source, target in tasks:
        # Reads the file's footer: a wrong column is found before an hour of work.
        rows[source] = _check_source(source, part_entry, column, keep)
        if overwrite or not _is_done(source, target, _fingerprint(source, model_sha256, part, column, keep)):
            todo.append((source, target))
    if not sum(rows.values()):
        raise ValueError(f"The inputs hold no rows: {len(tasks)} files, the first {tasks[0][0]}.")
    for target in (target for _, target in tasks):
        target.parent.mkdir(parents=True, exist_ok=True)
        for remnant in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
            remnant.unlink(missing_ok=True)  # of a run that was killed

    started = time.perf_counter()
    done_rows, failures = 0, {}
    if todo:
        # The shares of the cores; on a cluster a task takes one of a worker's threads.
        threads = 1 if scheduler is not None else max(1, cores // workers)
        options = {"part": part, "column": column, "keep": keep, "batch_size": batch_size, "threads": threads}
        with _client(scheduler, min(workers, len(todo))) as client:
            done_rows, failures = _compute(client, bundle, todo, rows, options, verbose)
    seconds = time.perf_counter() - started
    if failures:
        _raise(failures, len(todo))
    return {
        "rows": done_rows,
        "files": len(todo),
        "skipped": len(tasks) - len(todo),
        "seconds": seconds,
        "rows_per_second": done_rows / seconds if todo else 0.0,
    }


def encode_file(bundle, source, target, part="encoder", column=None, keep=None, batch_size=1024, threads=1):
    """Runs a part of a bundle over one Parquet file: what every engine can call, with nothing but files in and out.

    Memory is that of a few batches, whatever the file's size. It needs NumPy, PyArrow and ONNX Runtime.

    Args:
        bundle: folder that `kerasae.export.export` wrote, with ONNX files.
        source: Parquet file.
        target: the file to write, which appears when it is whole. Codes are `fixed_size_list<float>` columns named as the part's outputs,
            `z` for instance; images and other outputs of several dimensions are `fixed_shape_tensor` columns, which readers that don't
            know these take for lists.
        part, column, keep, batch_size: as in `run`.
        threads: of ONNX Runtime.

    Returns:
        Number of rows.

    Raises:
        ValueError: on a bundle, part, file, column or values that don't fit; there is no target then.

    Example:

    Spark, one file a task (Beam's `beam.Map` takes the same function):

    ```bash
    spark.sparkContext.parallelize(pairs, len(pairs)).map(lambda pair: encode_file(bundle, *pair)).collect()
    ```
    """
    import pyarrow.parquet as pq

    bundle, source, target = Path(bundle), Path(source), Path(target)
    entry, sha256, content = _open_part(bundle, part)
    session = _session(content, threads)
    fingerprint = _fingerprint(source, sha256, part, column, keep)
    _check_source(source, entry, column, keep)
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    writer, waiting, size, rows = None, [], 0, 0
    try:
        # Without a read-ahead, and with a buffer instead of whole columns, memory does not grow with the row groups.
        with pq.ParquetFile(source, buffer_size=_READ_BUFFER_BYTES, pre_buffer=False) as file:
            schema = file.schema_arrow
            names = _example_columns(schema, entry, column, source)
            kept = _kept_columns(schema, keep, names, entry, source)
            for batch in _batches(file, [*names, *kept], batch_size):
                x = _examples(batch, names, entry, source, rows)
                table = _table(_run(session, entry, x), batch, kept, entry)
                if writer is None:
                    metadata = {**(table.schema.metadata or {}), _METADATA: json.dumps(fingerprint).encode()}
                    writer = pq.ParquetWriter(beside, table.schema.with_metadata(metadata))
                waiting.append(table)
                size += table.nbytes
                rows += len(batch)
                if size >= _ROW_GROUP_BYTES:
                    _write(writer, waiting)
                    waiting, size = [], 0
            if waiting:
                _write(writer, waiting)
            writer.close()
        os.replace(beside, target)
    except OSError as error:
        raise ValueError(f"{source} could not be read, or {target} written: {error}") from error
    finally:
        if writer is not None:
            writer.close()
        beside.unlink(missing_ok=True)
    return rows


# -- One file: nothing below this line, up to the next, imports this package -------------------------------------------------------------


def _open_part(bundle, part):
    """A part's entry in the manifest, and its ONNX file's SHA-256 and content, if they are what was exported."""
    path = bundle / "manifest.json"
    if not path.is_file():
        raise ValueError(f"There is no bundle at {bundle}: it has no manifest.json. kerasae.export.export writes one.")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    parts = {entry["name"]: entry for entry in manifest["parts"] if entry["onnx"]}
    if part not in parts:
        raise ValueError(f"`part` must be one of {sorted(parts)}, the bundle's ONNX files. Received: {part!r}")
    name = parts[part]["onnx"]["file"]
    try:
        content = (bundle / name).read_bytes()
    except OSError as error:
        raise ValueError(f"The bundle's {name} can't be read: {error}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != manifest["files"][name]["sha256"]:
        raise ValueError(f"{bundle / name} is not the file that was exported: its SHA-256 is another.")
    entry = parts[part]
    if len(entry["inputs"]) != 1:
        raise ValueError(
            f"Bulk encoding takes one input, and the {part} of this bundle takes {[port['name'] for port in entry['inputs']]}."
        )
    # An Imputer's missing values are NaN; everyone else's are mistakes.
    return {**entry, "takes_nan": manifest["family"] == "Imputer"}, sha256, content


def _session(content, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that wait in a loop would take the time of the other workers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _fingerprint(source, sha256, part, column, keep):
    """What an output is made of: equal fingerprints, equal outputs. JSON gives it back as it is."""
    stat = Path(source).stat()
    keep = keep if keep is None or isinstance(keep, str) else list(keep)
    return {
        "source_bytes": stat.st_size,
        "source_mtime_ns": stat.st_mtime_ns,
        "model_sha256": sha256,
        "part": part,
        "column": column,
        "keep": keep,
    }


def _check_source(source, entry, column, keep):
    """The number of rows; raises if the file is not Parquet or lacks what is asked for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{source} can't be read as Parquet: {error}") from error
    names = _example_columns(schema, entry, column, source)
    _kept_columns(schema, keep, names, entry, source)
    return rows


def _example_columns(schema, entry, column, source):
    """Names of the columns that hold the examples: one of lists or tensors, or one for every feature."""
    import pyarrow as pa

    column = column or entry["inputs"][0]["name"]
    shape = entry["inputs"][0]["shape"][1:]
    features = None if any(isinstance(size, str) for size in shape) else math.prod(shape)
    if column in schema.names:
        type_ = schema.field(column).type
        storage = type_.storage_type if isinstance(type_, pa.BaseExtensionType) else type_
        if pa.types.is_list(storage) or pa.types.is_large_list(storage) or pa.types.is_fixed_size_list(storage):
            value = storage.value_type
            if not (pa.types.is_integer(value) or pa.types.is_floating(value)):
                raise ValueError(f"Column {column!r} of {source} must hold lists of numbers. Received: {type_}")
            length = storage.list_size if pa.types.is_fixed_size_list(storage) else features
            if features is not None and length != features:
                raise ValueError(
                    f"An example has {features} numbers, shape {tuple(shape)}, and column {column!r} of {source} has {length}."
                )
            return [column]
        if features != 1:
            raise ValueError(f"Column {column!r} of {source} must hold lists of numbers or tensors. Received: {type_}")
        return [column]
    numbered = {}
    for name in schema.names:
        match = re.fullmatch(re.escape(column) + r"[_.]?(\d+)", name)
        if match:
            numbered[int(match[1])] = name
    if not numbered:
        raise ValueError(
            f"{source} has no column {column!r}, and none numbered {column}0, {column}1, ... Name it with `column`. "
            f"It has: {', '.join(schema.names[:20])}{', ...' if len(schema.names) > 20 else ''}"
        )
    numbers = sorted(numbered)
    whole = numbers == list(range(numbers[0], numbers[0] + len(numbers))) and numbers[0] in (0, 1)
    if not whole or features not in (None, len(numbers)):
        raise ValueError(
            f"An example has {features} numbers, and {source} has {len(numbers)} columns {numbered[numbers[0]]} to "
            f"{numbered[numbers[-1]]}{'' if whole else ', which are not numbered without gaps from 0 or 1'}."
        )
    return [numbered[number] for number in numbers]


def _kept_columns(schema, keep, names, entry, source):
    others = [name for name in schema.names if name not in names]
    if keep is None:
        kept = [name for name in others if name == "id"]
    elif isinstance(keep, str) and keep == "all":
        kept = others
    else:
        kept = [keep] if isinstance(keep, str) else list(keep)
    missing = [name for name in kept if name not in others]
    if missing:
        raise ValueError(
            f"{source} has no column {missing[0]!r} to keep besides the examples. It has: {', '.join(others)}"
        )
    clash = [port["name"] for port in entry["outputs"] if port["name"] in kept]
    if clash:
        raise ValueError(f"Column {clash[0]!r} of {source} can't be kept: the part's own output has that name.")
    return kept


def _batches(file, columns, batch_size):
    """Batches of rows; of a file without any, one without rows, so that its output has columns too."""
    import pyarrow as pa

    empty = True
    for batch in file.iter_batches(batch_size, columns=columns, use_threads=False):
        if len(batch):
            empty = False
            yield batch
    if empty:
        schema = pa.schema([file.schema_arrow.field(name) for name in columns])
        yield pa.RecordBatch.from_pylist([], schema)


def _examples(batch, names, entry, source, row):
    """The part's input, `(rows, *shape)` in its type, of a batch of rows from `row` on."""
    import pyarrow as pa
    import pyarrow.compute as pc

    port = entry["inputs"][0]
    shape = [None if isinstance(size, str) else size for size in port["shape"][1:]]
    where = f"rows {row} to {row + len(batch) - 1} of {source}"
    for name in names:
        if batch.column(name).null_count and not entry["takes_nan"]:
            raise ValueError(f"Column {name!r} holds nulls in {where}.")
    column = batch.column(names[0])
    if len(names) > 1 or not _is_list(column.type):
        x = np.stack([batch.column(name).to_numpy(zero_copy_only=False) for name in names], axis=1)
    else:
        if isinstance(column.type, pa.FixedShapeTensorType):
            if None in shape:
                shape = list(column.type.shape)
            if column.type.permutation not in (None, list(range(len(column.type.shape)))):
                raise ValueError(f"Column {names[0]!r} of {source} holds tensors that are not row-major.")
        column = column.storage if isinstance(column, pa.ExtensionArray) else column
        if not pa.types.is_fixed_size_list(column.type):
            lengths = pc.unique(pc.list_value_length(column)).to_pylist()
            if len(lengths) > 1:
                raise ValueError(f"Lists of different lengths, {lengths[0]} and {lengths[1]}, in {where}.")
        values = column.flatten()
        if values.null_count and not entry["takes_nan"]:
            raise ValueError(f"Column {names[0]!r} holds nulls in {where}.")
        x = values.to_numpy(zero_copy_only=False)
        x = x.reshape(len(batch), -1) if len(batch) else x.reshape(0, math.prod(size or 1 for size in shape))
    if None in shape:
        raise ValueError(
            f"The part takes examples of any size, {port['shape'][1:]}, and {source} does not say which: use a column of "
            "fixed_shape_tensor, or export a model with a fixed input shape."
        )
    if x.shape[1] != math.prod(shape):
        raise ValueError(
            f"An example has {math.prod(shape)} numbers, shape {tuple(shape)}. Received {x.shape[1]} in {where}."
        )
    return _as_port(x, port, entry["takes_nan"], where).reshape(len(x), *shape)


def _is_list(type_):
    import pyarrow as pa

    return isinstance(type_, pa.BaseExtensionType) or pa.types.is_nested(type_)


def _as_port(x, port, takes_nan, where):
    """Values in the type that the part takes, if they are of its range."""
    dtype = np.dtype(port["dtype"])
    if not x.size:
        return x.astype(dtype)
    low, high = x.min(), x.max()  # NaN if any value is
    if takes_nan:
        low, high = np.nanmin(x), np.nanmax(x)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"NaN or infinity in {where}. Remove or impute such values first.")
    bounds = port["value_range"]
    if dtype.kind in "iu":
        if x.dtype.kind == "f":
            raise ValueError(f"The part takes {dtype}, and {where} are {x.dtype}.")
        bounds = bounds or (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if bounds and (low < bounds[0] or high > bounds[1]):
        hint = ""
        if bounds[1] == 1 and 1 < high <= 255:
            hint = " Divide 8-bit images by 255, or export the model with image_input='uint8'."
        raise ValueError(
            f"The part takes values from {bounds[0]:g} to {bounds[1]:g}. Received {low:g} to {high:g} in {where}.{hint}"
        )
    return x.astype(dtype, copy=False)


def _run(session, entry, x):
    """The part's outputs, `{name: array}`, for examples of any number."""
    size = entry["inputs"][0]["shape"][0]
    size = len(x) if isinstance(size, str) else size  # a part may be exported for one batch size
    names = [port["name"] for port in entry["outputs"]]
    key = entry["inputs"][0]["name"]
    if not len(x):
        one = np.zeros((max(size, 1), *x.shape[1:]), x.dtype)
        return {name: output[:0] for name, output in zip(names, session.run(names, {key: one}), strict=True)}
    pieces = []
    for start in range(0, len(x), size):
        piece = x[start : start + size]
        missing = size - len(piece)
        padded = np.concatenate([piece, np.repeat(piece[-1:], missing, axis=0)]) if missing else piece
        pieces.append([output[: len(piece)] for output in session.run(names, {key: padded})])
    return {name: np.concatenate(outputs) for name, outputs in zip(names, zip(*pieces, strict=True), strict=True)}


def _table(outputs, batch, kept, entry):
    """The kept columns and the outputs, as Arrow."""
    import pyarrow as pa

    arrays = {name: batch.column(name) for name in kept}
    for name, values in outputs.items():
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        if values.ndim == 1:
            arrays[name] = flat
            continue
        lists = pa.FixedSizeListArray.from_arrays(flat, math.prod(values.shape[1:]))
        if values.ndim > 2:
            lists = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(flat.type, values.shape[1:]), lists)
        arrays[name] = lists
    return pa.table(arrays)


def _write(writer, tables):
    import pyarrow as pa

    table = pa.concat_tables(tables)
    writer.write_table(table, row_group_size=max(1, len(table)))


# -- The job -----------------------------------------------------------------------------------------------------------------------------


def _compute(client, bundle, todo, rows, options, verbose):
    """Rows done, and `{file: error}` of the files that failed."""
    import cloudpickle
    from distributed import as_completed
    from toolz import compose
    from tqdm import tqdm

    # A task of its own, so that a worker that has lost the code gets it again.
    code = client.submit(bytes, _as_code(encode_file), pure=False)
    futures = {}
    for source, target in todo:
        call = operator.methodcaller("__call__", bundle, source, target, **options)
        futures[client.submit(compose(call, cloudpickle.loads), code, pure=False)] = source
    done, failures = 0, {}
    total = sum(rows[source] for source, _ in todo)
    with tqdm(total=total, unit=" rows", unit_scale=True, disable=not verbose) as progress:
        for future in as_completed(futures):
            source = futures[future]
            error = future.exception()
            if error is None:
                done += future.result()
            else:
                failures[source] = error
                _logger.warning("%s failed: %s", source, error)
            progress.update(rows[source])
    return done, failures


def _as_code(function):
    """A pickle that holds a function of this module and what it calls, instead of their names."""
    import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps(function)
    finally:
        cloudpickle.unregister_pickle_by_value(module)


@contextlib.contextmanager
def _client(scheduler, workers):
    """A client of the given scheduler, or of a cluster of processes on the loopback address that ends with it."""
    import distributed

    if isinstance(scheduler, distributed.Client):
        yield scheduler
        return
    if scheduler is not None:
        with distributed.Client(scheduler) as client:
            yield client
        return
    from distributed.deploy.subprocess import SubprocessWorker

    with tempfile.TemporaryDirectory(prefix="kerasae-bulk-") as folder:
        host = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
        # A worker whose scheduler is gone ends by itself.
        options = {"nthreads": 1, "local_directory": folder, "death_timeout": 60, "silence_logs": logging.ERROR}
        # Programs of their own rather than multiprocessing's: these would import the caller's script again, and TensorFlow with it.
        worker = {"cls": SubprocessWorker, "options": {"worker_kwargs": {**host, **options}}}
        cluster = distributed.SpecCluster(
            workers=dict.fromkeys(range(workers), worker),
            scheduler={"cls": distributed.Scheduler, "options": {**host, "port": 0}},
            silence_logs=logging.ERROR,
        )
        with cluster, distributed.Client(cluster) as client:
            yield client


def _tasks(inputs, output):
    """`[(source, target)]`, in order."""
    if isinstance(inputs, (str, os.PathLike)):
        path = Path(inputs)
        if path.is_dir():
            found = [file for file in sorted(path.rglob("*.parquet")) if not _is_hidden(file.relative_to(path))]
            pairs = [(file.resolve(), file.relative_to(path)) for file in found]
        elif path.is_file():
            pairs = [(path.resolve(), Path(path.name))]
        else:
            found = [Path(file) for file in sorted(glob.glob(str(inputs), recursive=True)) if Path(file).is_file()]
            pairs = [(file.resolve(), Path(file.name)) for file in found]
    else:
        pairs = [(Path(file).resolve(), Path(Path(file).name)) for file in inputs]
    if not pairs:
        raise ValueError(f"`inputs` names no Parquet file. Received: {inputs!r}")
    taken = {}
    for source, name in pairs:
        if not source.is_file():
            raise ValueError(f"There is no file {source}.")
        if name in taken:
            raise ValueError(
                f"Two inputs have the same name, {taken[name]} and {source}: outputs are named after inputs."
            )
        if source == output / name:
            raise ValueError(f"`output` is the inputs' folder, {output}, where {name} would be replaced. Name another.")
        taken[name] = source
    return [(source, output / name) for name, source in taken.items()]


def _is_hidden(path):
    return any(name.startswith((".", "_")) for name in path.parts)


def _check_output(output):
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".{uuid.uuid4().hex}.partial"
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"`output` must be a folder that can be written, and {output} is not: {error.strerror}"
        ) from error


def _is_done(source, target, fingerprint):
    """Whether the output is there; raises if it is of something else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not target.exists():
        return False
    try:
        found = json.loads((pq.read_schema(target).metadata or {}).get(_METADATA, b"null"))
    except (OSError, pa.ArrowInvalid, ValueError):
        found = None
    if found == fingerprint:
        return True
    if found is None:
        what = "is not an output of this command"
    else:
        differing = sorted(key for key in fingerprint if found.get(key) != fingerprint[key])
        what = f"was made with another {', '.join(differing)} than {source} now"
    raise ValueError(f"{target} is there and {what}. Choose another `output`, or pass overwrite=True.")


def _check_packages(*names):
    import importlib.util

    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"Bulk runs need the package {name}, which is not here. {_EXTRA}")


def _check_scheduler(scheduler, insecure):
    if scheduler is None:
        return None
    import distributed

    if isinstance(scheduler, distributed.Client):
        return scheduler
    url = urllib.parse.urlsplit(scheduler) if isinstance(scheduler, str) else None
    if url is None or url.scheme not in ("tcp", "tls") or not url.hostname:
        raise ValueError(
            "`scheduler` must be an address such as 'tls://host:8786', or a distributed.Client. "
            f"Received: {scheduler!r}"
        )
    if url.scheme == "tcp" and not insecure and not _is_loopback(url.hostname):
        raise ValueError(
            f"{scheduler} is another machine and not encrypted: whoever can reach it can run any code on its workers. "
            "Use tls:// (Dask's configuration names the certificates), or pass insecure=True in a network you trust."
        )
    return scheduler


def _is_loopback(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _cores():
    # What this process may use, not what the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _positive_int(value, name):
    from kerasae import checks

    return checks.positive_int(value, name)


def _raise(failures, tried):
    first = "; ".join(f"{source}: {error}" for source, error in list(failures.items())[:3])
    kind = ValueError if all(isinstance(error, ValueError) for error in failures.values()) else RuntimeError
    more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
    raise kind(f"{len(failures)} of {tried} files failed; the others are done. {first}{more}")
