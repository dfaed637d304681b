"""`kerasae detect`: an anomaly detector on one's own examples, and the folder that runs it elsewhere."""

import contextlib
import inspect
import json
import logging
import pickle
import shutil
import time
from pathlib import Path

import click

from kerasae import checks, commands

_logger = logging.getLogger(__name__)

_IMAGE_SIZE = (64, 64)  # where the photos have none in common
_ROWS_AT_ONCE = 256
_MAX_SAMPLES = 6400  # the default of tasks.AnomalyDetector, which can't be asked before TensorFlow is imported
_NUM_SHOWN = 10
_HELD_OUT, _KNOWN = "held out", "known anomaly"
_TOLERANCE = 1e-4  # of the bundle: distances are small differences of large numbers


@click.group()
def detect():
    """Find what is odd: fit a detector on examples, score others, take it to a server without TensorFlow."""


@detect.command("fit")
@click.argument("data")
@click.option("--folder", type=commands.PATH, required=True, metavar="DETECTOR", help="Where to.")
@click.option(
    "--anomalies", metavar="DATA", help="Known ones, to see whether they are found; nothing is learned from them."
)
@click.option(
    "--contamination",
    type=click.FloatRange(min=0, min_open=True, max=0.5),
    metavar="X",
    help="Share of the training examples to call anomalies. [a threshold that calls about 5 % of new normal ones so]",
)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Another option of tasks.AnomalyDetector.")
@click.option("--seed", type=click.IntRange(min=0), metavar="N", default=0, help="Of weights and the split. [0]")
@click.option(
    "--test-fraction",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    metavar="X",
    default=0.1,
    help="Held out, to count false alarms on. [0.1]",
)
@commands.reading_options
@commands.overwrite_option
@commands.json_option
def fit(data, folder, anomalies, contamination, settings, seed, test_fraction, overwrite, as_json, **reading):
    """Fit an anomaly detector on DATA: a folder of images, or an .npy, .npz, .csv, .tsv or .parquet file.

    A few odd examples among them do little harm. The folder then holds the detector, how it scores, a report, and `server`, which scores
    photos and tables on a machine with NumPy, ONNX Runtime and Pillow.
    """
    from kerasae import files

    commands.check_new(folder, overwrite)
    reading = commands.reading(reading)
    files.check(data, **reading)
    if anomalies is not None:
        files.check(anomalies)
    with commands.reporting(as_json) as show:
        commands.check_writable(folder)
        try:
            options = dict(map(commands.setting, settings))
            if contamination is not None:
                options["contamination"] = contamination
            show(*_fit(data, folder, anomalies, options, seed, test_fraction, reading))
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()  # of what failed at the door nothing stays


@detect.command("score")
@click.argument("detector", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("data")
@click.argument("out", type=commands.PATH, required=False)
@click.option("--array", help="Of an .npz file: which array.")
@click.option("--skip-unreadable", is_flag=True, help="Leave out images that can't be read.")
@commands.overwrite_option
@commands.json_option
def score(detector, data, out, overwrite, as_json, **reading):
    """Score DATA by a folder of `kerasae detect fit`: a line an example, or OUT, a .csv, .parquet, .npy or .npz file.

    Higher is more normal; below the threshold, an example is called an anomaly. TensorFlow is not needed.
    """
    import numpy as np

    from kerasae import files

    if out is not None:
        if out.suffix not in commands.TABLE_SUFFIXES:
            raise click.UsageError(f"OUT must end in {', '.join(commands.TABLE_SUFFIXES)}. Received: {out}")
        commands.check_out(out, commands.TABLE_SUFFIXES, overwrite)
    files.check(data, **reading)
    with commands.reporting(as_json) as show:
        facts, run = _opened(detector)
        preparation = files.Preparation.from_dict(facts["preparation"])
        read = files.read(data, like=preparation, **reading)
        scores = _scores(run, preparation, read.values)
        anomalies = scores < facts["threshold"]
        rows = _rows(read, scores, anomalies)
        found = f"{anomalies.sum():,} of {len(scores):,} are anomalies: their score is below {facts['threshold']:.6g}"
        result = {
            "detector": detector,
            "data": data,
            "threshold": facts["threshold"],
            "num_anomalies": int(anomalies.sum()),
        }
        if out is not None:
            with commands.moved_in(out) as path:
                if out.suffix == ".npy":
                    np.save(path, scores)
                else:
                    commands.write_columns(path, rows)
            show({**result, "out": out}, f"{found}\nWrote {out}")
            return
        _logger.info(found)
        width = max(len(str(name)) for name in next(iter(rows.values())))
        lines = (
            f"{name!s:<{width}}  {s:>12.4f}{'  anomaly' * odd}" for name, s, odd in zip(*rows.values(), strict=True)
        )
        show(
            {**result, "examples": [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]},
            "\n".join(lines),
        )


# -- Fitting -----------------------------------------------------------------------------------------------------------------------------


def _fit(data, folder, anomalies, options, seed, test_fraction, reading):
    """What there is to say of the folder that was written: an object, and text."""
    import numpy as np

    from kerasae import files

    read = files.read(data, **reading, fallback_size=_IMAGE_SIZE if files.check(data) == "images" else None)
    train, test = files.split(len(read.values), test_fraction, seed)
    preparation = _preparation(read, train)
    groups = {_HELD_OUT: (preparation.apply(read.values[test]), _names(read, test))}
    if anomalies is not None:
        known = files.read(anomalies, like=preparation, skip_unreadable=reading.get("skip_unreadable", False))
        groups[_KNOWN] = (preparation.apply(known.values), _names(known, np.arange(len(known.values))))
    # What is fitted to is there scaled, prepared and as a tensor; few examples are repeated.
    num = max(len(train), checks.positive_int(options.get("max_samples", _MAX_SAMPLES), "max_samples"))
    files.check_memory((num, *preparation.shape), "float32", f"Fitting to {data}", copies=3)
    x_train = preparation.apply(read.values[train])
    _logger.info("%s: %s; %d to fit, %d held out", Path(data).name, preparation.describe(), len(train), len(test))
    commands.import_keras()
    from kerasae import recipes, tasks

    try:
        for name in options:
            checks.choice(name, "option of AnomalyDetector", inspect.signature(tasks.AnomalyDetector).parameters)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    started = time.monotonic()
    options = {"random_state": seed, "verbose": commands.verbose(), **options}
    detector = tasks.AnomalyDetector(**options).fit(x_train)
    seconds = time.monotonic() - started
    # What holds for new examples is measured on new ones: those fitted to lie near their own reconstructions.
    scores = {which: detector.score_samples(x) for which, (x, _) in groups.items()}
    made = {
        "format": 1,
        "id": folder.resolve().name,
        "data": Path(data).name,
        "fingerprint": read.fingerprint,
        "num_train": len(train),
        "num_test": len(test),
        "num_anomalies": len(scores.get(_KNOWN, ())),
        "threshold": detector.offset_,
        "seed": seed,
        "settings": detector.get_params(),
        "seconds": seconds,
        "versions": {name: recipes.version(name) for name in ("kerasae", "keras", "tensorflow")},
        "metrics": _measures(scores, detector.offset_),
    }
    with recipes.written_together(folder) as beside:
        (beside / "detector.pkl").write_bytes(pickle.dumps(detector))
        recipes.write_json(beside / "metrics.json", made)
        _write_scores(beside / "scores.csv", read, groups, scores, detector.offset_)
        _write_server(beside / "server", detector, preparation, groups[_HELD_OUT][0])
        _write_report(beside, preparation, made, groups, scores)
    return {"folder": str(folder.resolve()), **made}, _text(folder, made)


def _preparation(read, train):
    """Pixels in [0, 1], as photos come to every model here; other numbers go in as they are, and the detector scales them itself."""
    from kerasae import files

    if read.values.ndim > 2 or read.values.dtype == "uint8":
        preparation = files.Preparation.fit(read, train)
        if preparation.scaling == "pixels":
            return preparation
    return files.Preparation.fit(read, train, "none")


def _color(preparation):
    """What photos have to become, or None where examples are no photos."""
    from kerasae import recipes

    if preparation.scaling != "pixels" or not recipes.is_image(preparation.shape):
        return None
    return "rgb" if preparation.shape[-1] == 3 else "grey"


def _names(read, indices):
    return [read.names[i] for i in indices] if read.names else [int(i) + 1 for i in indices]


def _rows(read, scores, anomalies):
    import numpy as np

    names = _names(read, np.arange(len(scores)))
    return {"file" if read.names else "row": names, "score": scores.tolist(), "anomaly": anomalies.astype(int).tolist()}


def _measures(scores, threshold):
    """Records as of `kerasae.recipes.measure`."""
    import numpy as np

    records = []

    def record(metric, value, unit, protocol, split, num_examples):
        fields = ("metric", "arguments", "value", "unit", "protocol", "split", "num_examples")
        records.append(dict(zip(fields, (metric, {}, float(value), unit, protocol, split, num_examples), strict=True)))

    for which, metric in ((_HELD_OUT, "false_alarms"), (_KNOWN, "found")):
        if which in scores:
            share = 100 * np.mean(scores[which] < threshold)
            record(metric, share, "%", "called anomalies", which, len(scores[which]))
    if _KNOWN in scores:
        from sklearn.metrics import roc_auc_score

        normal = np.repeat([1, 0], [len(part) for part in scores.values()])
        auc = roc_auc_score(normal, np.concatenate(list(scores.values())))
        record("roc_auc", auc, "area", f"{_HELD_OUT} against {_KNOWN}, 0.5 is chance", "of both", len(normal))
    return records


def _write_scores(path, read, groups, scores, threshold):
    rows = sorted(
        (float(score), which, name)
        for which, (_, names) in groups.items()
        for score, name in zip(scores[which], names, strict=True)
    )
    columns = {
        "file" if read.names else "row": [name for _, _, name in rows],
        "which": [which for _, which, _ in rows],
        "score": [score for score, _, _ in rows],
        "anomaly": [int(score < threshold) for score, _, _ in rows],
    }
    commands.write_csv(path, columns)


def _write_report(folder, preparation, made, groups, scores):
    import numpy as np
    import tomli_w

    from kerasae import figures, report

    known, threshold = scores.get(_KNOWN), made["threshold"]
    (folder / "figures").mkdir()
    with figures.theme():
        drawn = {
            "scores": figures.error_histograms(
                -scores[_HELD_OUT],
                None if known is None else -known,
                -threshold,
                unit="minus the score",
                num_bins=min(50, 10 + len(scores[_HELD_OUT]) // 10),
                names=(_HELD_OUT, _KNOWN),
            )
        }
        if _color(preparation):
            num = min(_NUM_SHOWN, *map(len, scores.values()))
            x, order = groups[_HELD_OUT][0], np.argsort(scores[_HELD_OUT])
            rows = {"oddest": x[order[:num]], "most normal": x[order[::-1][:num]]}
            if known is not None:
                rows["least odd anomalies"] = groups[_KNOWN][0][np.argsort(-known)[:num]]
            drawn["oddest"] = figures.reconstructions(rows)
        pictures = {name: figures.save(figure, folder / "figures" / f"{name}.png") for name, figure in drawn.items()}
    report.write(
        folder / "report.html",
        made["id"],
        {
            "detector": "anomalies, by the distance from what an autoencoder reconstructs",
            "data": f"{made['data']}: {preparation.describe()}",
            "examples": f"{made['num_train']:,} fitted to, {made['num_test']:,} held out, {made['num_anomalies']:,} known anomalies",
            "threshold": f"{threshold:.6g}: an example with a lower score is called an anomaly",
            "training": f"{made['seconds']:.0f} seconds, seed {made['seed']}",
            "versions": ", ".join(f"{name} {v}" for name, v in made["versions"].items()),
        },
        made["metrics"],
        pictures,
        tomli_w.dumps({"settings": {name: value for name, value in made["settings"].items() if value is not None}}),
    )


def _text(folder, made):
    return f"""threshold  {made["threshold"]:.6g}; an example with a lower score is called an anomaly
{commands.metrics_table(made["metrics"])}

In {folder.resolve()}:
  report.html    the scores and the threshold, for a browser
  scores.csv     every example that was held out, the oddest first
  server/        for a machine without TensorFlow: its README.md says how
  detector.pkl   tasks.AnomalyDetector, for pickle.load in Python

Next: kerasae detect score {folder} NEW"""


# -- Scoring -----------------------------------------------------------------------------------------------------------------------------


def _opened(folder):
    """`(facts, run)` of a folder of `fit`: `run` makes scores of prepared examples."""
    import onnxruntime

    server = folder / "server"
    if not (server / "detector.json").is_file():
        raise click.ClickException(
            f"{folder} is no folder that `kerasae detect fit` wrote: it has no server/detector.json."
        )
    facts = json.loads((server / "detector.json").read_text())
    session = onnxruntime.InferenceSession(
        str(server / "bundle" / "score_samples.onnx"), providers=["CPUExecutionProvider"]
    )
    return facts, lambda x: session.run(["score"], {"x": x})[0]


def _scores(run, preparation, values):
    import numpy as np

    starts = range(0, len(values), _ROWS_AT_ONCE)
    parts = [run(preparation.apply(values[i : i + _ROWS_AT_ONCE]).astype("float32")) for i in starts]
    return np.concatenate(parts).astype("float64")


# -- The folder for a server -------------------------------------------------------------------------------------------------------------

_README = """# An anomaly detector

It gives every example a score: higher is more normal, and **below {threshold:.6g} an example is called an anomaly**. This folder is all it
needs, with Python and these packages:

```bash
pip install numpy onnxruntime{pillow}
python score.py {example} > scores.csv
```

{takes}
`scores.csv` has a line an example: its {name}, its score, and 1 where it is an anomaly. What can't be read is named on standard error and
left out, and the exit code is then 1. In a program of your own, from this folder:

```python
{imports}from score import Detector

detector = Detector(".")
x = {x}
print(detector.scores(x) < detector.threshold)
```

## How an example becomes a score

{steps}
- `bundle/score_samples.onnx` takes `x`, float32 of shape (batch, {shape}), and gives `score`, float32 of shape (batch).
- It is an anomaly where `score < threshold`. The threshold, {threshold!r}, is in `detector.json`.

[bundle/README.md](bundle/README.md): the same graph in other runtimes and in TensorFlow, and how it was checked.
"""

_PHOTO_STEPS = """- A photo is turned as its camera says (EXIF), and what is transparent in it is laid on white.
- It becomes {colours}, by Pillow's `convert("{mode}")`.
- It is scaled to cover {width} x {height} pixels by Pillow's Lanczos filter, and cropped around the middle (`PIL.ImageOps.fit`).
- Its bytes are divided by 255: pixels in [0, 1], rows from the top."""


def _write_server(folder, detector, preparation, x):
    from kerasae import export, recipes

    folder.mkdir()
    try:
        export.export(detector, folder / "bundle", x=x, tolerance=_TOLERANCE)
    except export.ExportError as error:
        raise click.ClickException(str(error)) from error
    facts = {
        "format": 1,
        "threshold": detector.offset_,
        "direction": "higher is more normal; below the threshold an example is an anomaly",
        "preparation": preparation.to_dict(),
        "color": _color(preparation),
    }
    recipes.write_json(folder / "detector.json", facts)
    shutil.copy(Path(export.__file__).with_name("clients") / "score.py", folder)
    (folder / "README.md").write_text(_readme(facts), encoding="utf-8")


def _readme(facts):
    """Markdown whose snippets run as they stand, in the folder."""
    preparation, color = facts["preparation"], facts["color"]
    shape = ", ".join(map(str, preparation["shape"]))
    words = {"threshold": facts["threshold"], "shape": shape, "pillow": "", "imports": "import numpy as np\n\n"}
    if color:
        height, width, _ = preparation["shape"]
        mode, colours = {"rgb": ("RGB", "red, green and blue"), "grey": ("L", "grey")}[color]
        words |= {
            "pillow": " pillow",
            "imports": "",
            "example": "photos/",
            "name": "file",
            "takes": "It takes photos of any size and colour, one or a folder of them, or an `.npy` file of pixels.",
            "x": f'detector.photo("photo.jpg")[None]  # or many, (n, {shape}): bytes, or floats in [0, 1]',
            "steps": _PHOTO_STEPS.format(colours=colours, mode=mode, width=width, height=height),
        }
    elif len(preparation["shape"]) == 1:
        columns = preparation["columns"]
        named = f"the columns {', '.join(f'`{c}`' for c in columns)}" if columns else f"{shape} columns"
        words |= {
            "example": "table.csv",
            "name": "row",
            "takes": f"It takes a `.csv` or `.tsv` file with {named}, or an `.npy` file of examples.",
            "x": f"np.zeros((1, {shape}))  # your rows",
            "steps": f"- {named[0].upper()}{named[1:]}, in this order, go in as they are: the graph scales them.",
        }
    else:
        words |= {
            "example": "examples.npy",
            "name": "row",
            "takes": "It takes an `.npy` file of examples.",
            "x": f"np.zeros((1, {shape}))  # your examples",
            "steps": "- Numbers go in as they are: the graph scales them.",
        }
    return _README.format(**words)
