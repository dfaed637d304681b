"""Bulk encoding of Parquet files on this machine: `kerasae.export.bulk.run` and a plain ONNX Runtime loop.

    python tests/benchmarks/bulk.py [--images 600000] [--files 24] [--repeats 3] [--write]

Both read the same files of 8-bit images of 28 x 28 (MNIST's, over and over, from $TFDS_DATA_DIR; scikit-learn's digits, enlarged, where
there is none), encode them with the same ONNX file and write their codes as Parquet. Each side runs in processes of its own, by turns;
the median counts. The time of a side is from before its first file to after its last: Dask's includes starting its cluster, not
importing. Memory is the highest sum over a side's processes, sampled ten times a second. Milliseconds belong to the machine: keep
the ratio. `--write` records the table in `tests/benchmarks/results/bulk.md`.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

RESULTS = Path(__file__).with_name("results") / "bulk.md"
CORES = len(os.sched_getaffinity(0))
BATCH = 1024


def loop(folder, output, threads):
    """What one would write by hand, with nothing checked."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(folder / "bundle" / "encoder.onnx", options)
    for source in sorted((folder / "in").glob("*.parquet")):
        writer = None
        for batch in pq.ParquetFile(source).iter_batches(BATCH):
            x = batch.column("x").flatten().to_numpy().reshape(-1, 28, 28, 1)
            (z,) = session.run(["z"], {"x": x})
            codes = pa.FixedSizeListArray.from_arrays(pa.array(z.reshape(-1)), z.shape[1])
            table = pa.table({"id": batch.column("id"), "z": codes})
            writer = writer or pq.ParquetWriter(output / source.name, table.schema)
            writer.write_table(table)
        writer.close()


def bulk(folder, output, workers):
    from kerasae.export import bulk

    return bulk.run(folder / "bundle", folder / "in", output, workers=workers, batch_size=BATCH, verbose=0)["seconds"]


SIDES = {
    "plain loop, 1 thread": lambda folder, output: loop(folder, output, 1),
    f"plain loop, {CORES} threads": lambda folder, output: loop(folder, output, CORES),
    "bulk, 1 worker": lambda folder, output: bulk(folder, output, 1),
    f"bulk, {CORES} workers": lambda folder, output: bulk(folder, output, CORES),
}


def run_side(side, folder, output):
    """In a process of its own: prints the seconds."""
    output.mkdir()
    started = time.perf_counter()
    seconds = SIDES[side](folder, output)
    print(json.dumps(seconds or time.perf_counter() - started))


def measured(side, folder, output):
    """Seconds, CPU seconds, peak MiB of all processes and of the largest, of a side in processes of its own."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--output", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    top, cpu, peak, largest = psutil.Process(process.pid), {}, 0, 0
    while process.poll() is None:
        total = 0
        try:
            members = [top, *top.children(recursive=True)]
        except psutil.Error:
            members = []
        for member in members:
            try:
                total += member.memory_info().rss
                largest = max(largest, member.memory_info().rss)
                cpu[member.pid] = sum(member.cpu_times()[:2])
            except psutil.Error:
                continue  # it has just ended
        peak = max(peak, total)
        time.sleep(0.1)
    answer, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{side} failed: {errors[-2000:]}")
    return float(answer), sum(cpu.values()), peak / 2**20, largest / 2**20


def images(count):
    from kerasae import data

    try:
        x = data.load("mnist", download=False)[0]
        name = "MNIST's training images, repeated"
    except OSError:
        x = data.load("digits")[0]
        x = np.pad(np.kron(x, np.ones((1, 3, 3, 1), "float32")), ((0, 0), (2, 2), (2, 2), (0, 0)))
        name = "scikit-learn's digits, enlarged and repeated"
    return (x * 255).round().astype("uint8").reshape(len(x), -1), name


def prepare(folder, count, files):
    from kerasae import builders
    from kerasae.export import export

    model = builders.undercomplete((28, 28, 1), latent_dim=32, hidden_units=(512, 256))
    export(model, folder / "bundle", "onnx", image_input="uint8")
    x, name = images(count)
    (folder / "in").mkdir()
    bounds = np.linspace(0, count, files + 1).astype(int)
    for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
        rows = np.arange(start, stop)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(x[rows % len(x)].reshape(-1)), x.shape[1])
        pq.write_table(pa.table({"id": pa.array(rows), "x": lists}), folder / "in" / f"{i:05}.parquet")
    return name


def same(outputs):
    """Whether all sides wrote the same codes."""
    tables = [pq.read_table(output).sort_by("id") for output in outputs]
    codes = [table["z"].combine_chunks().flatten().to_numpy() for table in tables]
    return all(np.abs(other - codes[0]).max() <= 1e-5 * np.abs(codes[0]).max() for other in codes[1:])


def report(rows, count, files, name, repeats):
    base = statistics.median(seconds for seconds, *_ in rows[next(iter(SIDES))])
    lines = [
        "| side | images a second | from – to | of the plain loop | CPU seconds | peak MiB, all processes | largest process |",
        "|---|---|---|---|---|---|---|",
    ]
    for side, runs in rows.items():
        seconds, cpu, peak, largest = (statistics.median(values) for values in zip(*runs, strict=True))
        spread = sorted(count / run[0] for run in runs)
        lines.append(
            f"| {side} | {count / seconds:,.0f} | {spread[0]:,.0f} – {spread[-1]:,.0f} | {base / seconds:.2f} | {cpu:.1f} | {peak:,.0f} | "
            f"{largest:,.0f} |"
        )
    return (
        f"{count:,} images ({name}) in {files} Parquet files, dense encoder 784-512-256-32 in ONNX Runtime, batch {BATCH}; {CORES} cores "
        f"({platform.processor() or platform.machine()}); median of {repeats} runs by turns. CPU seconds and memory include importing.\n\n"
        + "\n".join(lines)
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=600_000)
    parser.add_argument("--files", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"record the table in {RESULTS.name}")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run_side(arguments.side, arguments.folder, arguments.output)
        return
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        name = prepare(folder, arguments.images, arguments.files)
        rows, outputs = {side: [] for side in SIDES}, {}
        for repeat in range(arguments.repeats):
            for i, side in enumerate(SIDES):
                outputs[side] = folder / f"out-{repeat}-{i}"
                rows[side].append(measured(side, folder, outputs[side]))
                print(f"{side}: {arguments.images / rows[side][-1][0]:,.0f} images a second", flush=True)
        if not same(outputs.values()):
            raise RuntimeError("The sides wrote different codes.")
        table = report(rows, arguments.images, arguments.files, name, arguments.repeats)
    print(table)
    if arguments.write:
        RESULTS.parent.mkdir(exist_ok=True)
        command = f"python tests/benchmarks/bulk.py --images {arguments.images} --repeats {arguments.repeats}"
        RESULTS.write_text(f"# Bulk encoding\n\n`{command}`\n\n{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
