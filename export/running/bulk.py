"""Bulk runs of a bundle over Parquet files on Dask: more examples than memory holds, on more cores than one process uses.

The workers run `parquet.encode_file`, which is sent to them as code.
"""

import asyncio
import contextlib
import glob
import importlib.util
import ipaddress
import json
import logging
import operator
import os
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

from kerasae import checks, runtime, writing
from kerasae.export.running import parquet

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

    Each file is a task of Dask's distributed scheduler, in a process that reads, computes and writes one batch at a time. An output
    appears when it is whole, with a fingerprint of its input and of the model; a run that is started again skips outputs whose
    fingerprint is the same. A worker that dies is restarted, and its file with it; a file that fails does not stop the others.

    Args:
        bundle: folder that `kerasae.export.export` wrote, with ONNX files.
        inputs: a Parquet file, a folder (its `*.parquet`, subfolders too; names that start with "." or "_" are left out), a pattern such
            as `"data/part-*.parquet"`, or a list of files. Many files of some 10,000 to 1,000,000 rows keep all workers busy.
        output: folder, made if need be, where each input gets a file of the same name. Not the inputs' folder.
        part: of the bundle: `"encoder"`, `"decoder"`, `"autoencoder"`, `"score"`, ...
        workers: processes on this machine, each with its share of the cores. Default: one per core.
        batch_size: examples that go through the model together.
        scheduler: address of a running Dask scheduler, `"tls://host:8786"` or `"tcp://127.0.0.1:8786"`, or a `distributed.Client` (made
            for Kubernetes, Slurm, ..., where `Client` takes care of security). Workers must see the same paths, and have NumPy, PyArrow
            and ONNX Runtime. Default: a local cluster on the loopback address that ends with the run.
        overwrite: compute everything again, and replace whatever has the outputs' names.
        column: the column that holds the examples: one of lists (row-major where an example has several dimensions) or of tensors; or the
            beginning of numbered ones, `x0`, `x1`, ... or `x_0`, `x_1`, ... Default: the name of the part's input, such as `"x"`; of a
            model of a table, the columns that it was trained on, by their names.
        keep: names of columns to copy to the outputs, or `"all"` for all but the examples. Default: `"id"`, where there is one.
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
    batch_size = checks.positive_int(batch_size, "batch_size")
    # What this process may use, not what the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = cores if workers is None else checks.positive_int(workers, "workers")
    scheduler = _check_scheduler(scheduler, insecure)
    bundle, output = Path(bundle).resolve(), Path(output).resolve()
    opened = runtime.Bundle(bundle)
    checked = parquet.part_of(opened, part)
    for name in checked["onnx"].values():
        opened.path(name)  # raises if it was changed
    tasks = _tasks(inputs, output)
    try:
        writing.writable(output, "output")
    except OSError as error:
        raise ValueError(f"`output` must be a folder that can be written. {error}") from error
    todo, rows = [], {}
    for path, target in tasks:
        # Reads the file's footer: a wrong column is found before an hour of work.
        source = parquet.Source(path, checked, column, keep)
        rows[path] = source.num_rows
        if overwrite or not _is_done(source, target):
            todo.append((path, target))
    if not sum(rows.values()):
        raise ValueError(f"The inputs hold no rows: {len(tasks)} files, the first {tasks[0][0]}.")
    for _, target in tasks:
        target.parent.mkdir(parents=True, exist_ok=True)
    _remove_remnants(tasks)

    started = time.perf_counter()
    done_rows, failures = 0, {}
    if todo:
        # The shares of the cores; on a cluster a task takes one of a worker's threads.
        threads = 1 if scheduler is not None else max(1, cores // workers)
        options = {"part": part, "column": column, "keep": keep, "batch_size": batch_size, "threads": threads}
        with _client(scheduler, min(workers, len(todo))) as client:
            done_rows, failures = _compute(client, bundle, todo, rows, options, verbose)
        _remove_remnants(todo)
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


# -- The job -----------------------------------------------------------------------------------------------------------------------------


def _compute(client, bundle, todo, rows, options, verbose):
    """Rows done, and `{file: error}` of the files that failed."""
    import cloudpickle
    from distributed import KilledWorker, as_completed
    from toolz import compose
    from tqdm import tqdm

    # A task of its own, so that a worker that has lost the code gets it again.
    code = client.submit(bytes, _as_code(parquet.encode_file), pure=False)
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
            if isinstance(error, KilledWorker):
                error = RuntimeError(
                    f"each of the {error.allowed_failures + 1} processes that took it died, most often for want of memory. Try fewer "
                    "workers, or smaller batches."
                )
            if error is None:
                done += future.result()
            else:
                failures[source] = error
                _logger.warning("%s failed: %s", source, error)
            progress.update(rows[source])
    return done, failures


def _as_code(function):
    """A pickle that holds what runs in a worker as code, instead of names in this package, which the worker may lack."""
    import cloudpickle

    for module in (parquet, runtime):
        cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps(function)
    finally:
        for module in (parquet, runtime):
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

    class Silent(SubprocessWorker):
        """What a process says as it dies, traceback and all, is nothing to read: `_compute` says which file it was."""

        async def _start(self):
            spec, nowhere = {"cls": "distributed.Nanny", "opts": self.worker_kwargs}, asyncio.subprocess.DEVNULL
            command = [sys.executable, "-m", "dask", "spec", self.scheduler, "--spec", json.dumps(spec)]
            self.process = await asyncio.create_subprocess_exec(*command, stdout=nowhere, stderr=nowhere)

    with tempfile.TemporaryDirectory(prefix="kerasae-bulk-") as folder:
        host = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
        # A worker whose scheduler is gone ends by itself.
        options = {"nthreads": 1, "local_directory": folder, "death_timeout": 60, "silence_logs": logging.CRITICAL}
        # Programs of their own rather than multiprocessing's: these would import the caller's script again, and TensorFlow with it.
        worker = {"cls": Silent, "options": {"worker_kwargs": {**host, **options}}}
        cluster = distributed.SpecCluster(
            workers=dict.fromkeys(range(workers), worker),
            scheduler={"cls": distributed.Scheduler, "options": {**host, "port": 0}},
            silence_logs=logging.CRITICAL,  # what died is told at the end, once
        )
        with cluster, distributed.Client(cluster) as client:
            yield client


def _tasks(inputs, output):
    """`[(source, target)]`, in order."""
    path = Path(inputs) if isinstance(inputs, (str, os.PathLike)) else None
    if path and path.is_dir():
        names = [file.relative_to(path) for file in sorted(path.rglob("*.parquet"))]
        pairs = [(name, path / name) for name in names if not any(part.startswith((".", "_")) for part in name.parts)]
    else:
        files = [path] if path and path.is_file() else inputs
        if isinstance(files, (str, os.PathLike)):  # a pattern
            files = filter(os.path.isfile, sorted(glob.glob(str(inputs), recursive=True)))
        pairs = [(Path(Path(file).name), Path(file)) for file in files]
    if not pairs:
        raise ValueError(f"`inputs` names no Parquet file. Received: {inputs!r}")
    taken = {}
    for name, file in pairs:
        source = file.resolve()
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


def _remove_remnants(tasks):
    """Removes the half-written outputs of workers that were killed."""
    for _, target in tasks:
        for remnant in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
            remnant.unlink(missing_ok=True)


def _is_done(source, target):
    """Whether a source's output is there; raises if it is of something else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not target.exists():
        return False
    try:
        found = runtime.read_json((pq.read_schema(target).metadata or {}).get(parquet.METADATA, b"null"), {})
    except (OSError, pa.ArrowInvalid, ValueError):
        found = None
    if found == source.fingerprint:
        return True
    if found is None:
        what = "is not an output of this command"
    else:
        differing = sorted(key for key, value in source.fingerprint.items() if found.get(key) != value)
        what = f"was made with another {', '.join(differing)} than {source.path} now"
    raise ValueError(f"{target} is there and {what}. Choose another `output`, or pass overwrite=True.")


def _check_packages(*names):
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                f"Bulk runs need the package {name}, which is not here. Install it with: pip install 'kerasae[bulk]'"
            )


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


def _raise(failures, tried):
    first = "; ".join(f"{source}: {error}" for source, error in list(failures.items())[:3])
    kind = ValueError if all(isinstance(error, ValueError) for error in failures.values()) else RuntimeError
    more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
    raise kind(f"{len(failures)} of {tried} files failed; the others are done. {first}{more}")
