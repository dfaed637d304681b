"""How time and memory grow: with width, code, batch and data set in training, with samples in log-likelihoods, with rows in streams.

    python tests/benchmarks/scale.py [step memory stream likelihood] [--write]
    python tests/benchmarks/scale.py full-likelihood [--write]

Times of `step` and `likelihood` are CPU seconds on one thread, of sides that take turns, the median: neighbours on the machine hardly
change them. Memory is each configuration's peak (VmHWM, so Linux only) in a process of its own. `full-likelihood` is the whole figure of
the literature, 10,000 binarised MNIST test images with 5,000 samples each, on all cores; it needs $TFDS_DATA_DIR.
`--write` records what was run in `tests/benchmarks/results/scale.md`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

RESULTS = Path(__file__).with_name("results") / "scale.md"
BASE = {"width": 512, "code": 20, "batch": 128}
GRID = {"width": (128, 256, 512, 1024, 2048), "code": (2, 20, 200, 1000), "batch": (32, 128, 512, 2048)}
MODEL = "variational-dense-mnist-binarized"


def configurations():
    """The base with one thing changed at a time."""
    return [{**BASE, name: value} for name, values in GRID.items() for value in values]


def network(width, code):
    from kerasae import builders

    model = builders.variational((784,), latent_dim=code, hidden_units=(width, width))
    model.compile("adam")
    return model


def peak_mib():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def alone(task, *arguments):
    """What a task prints in a process of its own."""
    command = [sys.executable, __file__, "--task", task, json.dumps(arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{task} failed: {run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def table(header, rows):
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


# -- Tasks, each in a process of its own -------------------------------------------------------------------------------------------------


def task_step(configs, repeats):
    """CPU milliseconds of a compiled training step of each configuration, by turns, on one thread."""
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    sides = []
    for config in configs:
        model = network(config["width"], config["code"])
        model.optimizer.build(model.trainable_variables)
        x = tf.constant(np.random.default_rng(0).random((config["batch"], 784), dtype="float32"))
        step = tf.function(lambda x, model=model: model.train_step((x,)), jit_compile=True)
        step(x)
        sides.append((step, x, model.count_params(), []))
    for _ in range(repeats):
        for step, x, _, times in sides:
            started, count = time.process_time(), 0
            while time.process_time() - started < 0.3:
                step(x)["loss"].numpy()
                count += 1
            times.append((time.process_time() - started) / count)
    return [(1000 * statistics.median(times), parameters) for *_, parameters, times in sides]


def task_memory(config, rows):
    """Peak MiB of a process that fits on `rows` examples: an array, or a stream that never holds them all."""
    import numpy as np
    import tensorflow as tf

    model = network(config["width"], config["code"])
    random = np.random.default_rng(0)
    if config.get("stream"):
        piece = random.random((10_000, 784), dtype="float32")
        batches = tf.data.Dataset.from_tensor_slices(piece).repeat(rows // len(piece)).batch(config["batch"])
        model.fit(batches, epochs=1, verbose=0)
    else:
        model.fit(random.random((rows, 784), dtype="float32"), batch_size=config["batch"], epochs=1, verbose=0)
    return peak_mib()


def task_stream(rows, batch):
    """Peak MiB and rows a CPU second of encoding and scoring a generator into .npy files."""
    import tempfile

    import numpy as np

    from kerasae import streams

    model = network(BASE["width"], BASE["code"])
    piece = np.random.default_rng(0).random((batch, 784), dtype="float32")
    answers = []
    with tempfile.TemporaryDirectory() as folder:
        for function in (streams.encode, streams.score):
            started = time.process_time()
            count = streams.write(
                function(model, (piece for _ in range(rows // batch)), verbose=0), Path(folder) / "out.npy"
            )
            answers.append(count / (time.process_time() - started))
    return peak_mib(), *answers


def zoo_model_and_its_plain_path():
    from kerasae import zoo
    from kerasae.models import VariationalAutoencoder

    class Plain(VariationalAutoencoder):
        """Its loss may be anything, so `log_likelihood` computes it as it is: feature by feature."""

        def reconstruction_loss(self, x, outputs):
            return super().reconstruction_loss(x, outputs)

    model = zoo.load(MODEL)
    return model, Plain(model.encoder, model.decoder)


def task_likelihood(examples, samples, repeats):
    """CPU seconds an example on one thread, of the Bernoulli path and the one for any likelihood, and how far they differ."""
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    model, plain = zoo_model_and_its_plain_path()
    # Binary images as the model itself makes them.
    x = (np.random.default_rng(0).random((examples, 28, 28, 1)) < model.sample(examples, seed=0)).astype("float32")
    sides = [(plain, []), (model, [])]
    answers = [model.log_likelihood(x, samples) for model, _ in sides]
    for _ in range(repeats):
        for model, times in sides:
            started = time.process_time()
            model.log_likelihood(x, samples)
            times.append((time.process_time() - started) / examples)
    return [statistics.median(times) for _, times in sides], float(abs(answers[0] - answers[1]).max())


def task_full_likelihood():
    """The figure, wall and CPU seconds, peak MiB: 10,000 test images, 5,000 samples."""
    from kerasae import data, zoo
    from kerasae.runs import examples

    x = examples.binarized(data.load("mnist", download=False)[1])
    model = zoo.load(MODEL)
    started, cpu = time.perf_counter(), time.process_time()
    nats = -model.log_likelihood(x, 5000).mean(dtype="float64")
    return nats, time.perf_counter() - started, time.process_time() - cpu, peak_mib()


# -- Sections ----------------------------------------------------------------------------------------------------------------------------


def changed(config):
    names = [name for name in BASE if config[name] != BASE[name]]
    return f"{names[0]} {config[names[0]]}" if names else "base"


def unique(configs):
    return list({json.dumps(config): config for config in configs}.values())


def step():
    configs = unique(configurations())
    measured = alone("step", configs, 5)
    base_time, base_parameters = measured[configs.index(BASE)]
    rows = []
    for config, (milliseconds, parameters) in zip(configs, measured, strict=True):
        flop = 6 * parameters * config["batch"]
        rows.append(
            (
                changed(config),
                f"{parameters:,}",
                f"{milliseconds:.2f}",
                f"{milliseconds / base_time:.2f}",
                f"{flop / (6 * base_parameters * BASE['batch']):.2f}",
                f"{flop / milliseconds / 1e6:.0f}",
                f"{milliseconds / config['batch'] * 1000:.1f}",
            )
        )
    shape = f"784-{BASE['width']}-{BASE['width']}-{BASE['code']}"
    title = f"## A training step\n\nDense variational {shape}, batch {BASE['batch']}, Adam; one thread."
    header = ("", "parameters", "CPU ms", "of base", "6 x parameters x batch, of base", "GFLOP/s", "µs an example")
    return f"{title}\n\n{table(header, rows)}"


def memory():
    few = 10_000
    base = alone("memory", BASE, few)
    rows = [("base, 10,000 examples", f"{base:,.0f}", "")]
    for config in unique(configurations()):
        if config != BASE:
            peak = alone("memory", config, few)
            rows.append((f"{changed(config)}, 10,000 examples", f"{peak:,.0f}", f"{peak - base:+,.0f}"))
    for count in (60_000, 240_000):
        peak = alone("memory", BASE, count)
        rows.append((f"{count:,} examples in an array", f"{peak:,.0f}", f"{peak - base:+,.0f}"))
    for count in (60_000, 240_000):
        peak = alone("memory", {**BASE, "stream": True}, count)
        rows.append((f"{count:,} examples from a stream", f"{peak:,.0f}", f"{peak - base:+,.0f}"))
    return f"## Memory of a fit\n\nPeak of the process, TensorFlow's own included.\n\n{table(('', 'peak MiB', 'of base'), rows)}"


def stream():
    rows = []
    for count in (100_000, 1_000_000, 3_000_000):
        peak, encoded, scored = alone("stream", count, 1000)
        rows.append((f"{count:,}", f"{peak:,.0f}", f"{encoded:,.0f}", f"{scored:,.0f}"))
    header = ("examples", "peak MiB", "encoded a CPU second", "scored a CPU second")
    return f"## A stream\n\n`kerasae.streams`, batches of 1,000, into .npy files; base model.\n\n{table(header, rows)}"


def likelihood():
    (plain, special), difference = alone("likelihood", 10, 5000, 5)
    rows = [
        ("any likelihood", f"{1000 * plain:.1f}", "1.00", f"{plain * 10_000:.0f}"),
        ("Bernoulli", f"{1000 * special:.1f}", f"{special / plain:.2f}", f"{special * 10_000:.0f}"),
    ]
    header = ("path", "CPU ms an example", "ratio", "CPU s for 10,000")
    return (
        f"## Log-likelihood\n\n`{MODEL}`, 5,000 samples an example, one thread. "
        f"Largest difference between the two: {difference:.1e} nats.\n\n"
        f"{table(header, rows)}"
    )


def full_likelihood():
    nats, wall, cpu, peak = alone("full_likelihood")
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[1]
    return (
        f"## The whole log-likelihood\n\n`{MODEL}`, 10,000 test images, 5,000 samples each: {nats:.4f} nats; {wall:.0f} s on {cores} cores "
        f"(load average of the last 5 minutes: {load:.1f}), {cpu:.0f} CPU s, peak {peak:,.0f} MiB."
    )


SECTIONS = {
    "step": step,
    "memory": memory,
    "stream": stream,
    "likelihood": likelihood,
    "full-likelihood": full_likelihood,
}


def record(sections):
    """Replaces the sections of the file that were run, and keeps the others."""
    found = {}
    if RESULTS.exists():
        for part in RESULTS.read_text(encoding="utf-8").split("\n## ")[1:]:
            found[part.splitlines()[0]] = f"## {part.strip()}"
    found.update({section.splitlines()[0].removeprefix("## "): section for section in sections})
    RESULTS.parent.mkdir(exist_ok=True)
    head = "# How time and memory grow\n\n`python tests/benchmarks/scale.py [step memory stream likelihood full-likelihood]`"
    RESULTS.write_text("\n\n".join([head, *found.values()]) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; default: all but the last")
    parser.add_argument("--write", action="store_true", help=f"record the tables in {RESULTS.name}")
    parser.add_argument("--task", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        name, values = arguments.task
        print(json.dumps(globals()[f"task_{name}"](*json.loads(values))))
        return
    unknown = set(arguments.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"unknown sections: {', '.join(sorted(unknown))}")
    done = []
    for name in arguments.sections or [name for name in SECTIONS if name != "full-likelihood"]:
        done.append(SECTIONS[name]())
        print(f"{done[-1]}\n", flush=True)
        if arguments.write:
            record(done)


if __name__ == "__main__":
    main()
