"""`kerasae detect`: an anomaly detector on one's own examples, and the folder that runs it elsewhere."""

import contextlib
import logging

import click

from kerasae import writing
from kerasae.cli import shared

_logger = logging.getLogger(__name__)


@click.group()
def detect():
    """Find anomalies: fit a detector to examples, score new ones, run it on a server without TensorFlow."""


@detect.command("fit", cls=shared.TakingColumns)
@click.argument("data")
@click.option("--folder", type=shared.PATH, required=True, metavar="DETECTOR", help="Where to write the detector.")
@click.option(
    "--anomalies", metavar="DATA", help="Known anomalies, to measure how many are found; nothing is learned from them."
)
@click.option(
    "--contamination",
    type=click.FloatRange(min=0, min_open=True, max=0.5),
    metavar="X",
    help="Share of the training examples to call anomalies. [a threshold that flags about 5 % of new normal examples]",
)
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Set another option of tasks.AnomalyDetector."
)
@click.option(
    "--seed", type=click.IntRange(min=0), metavar="N", default=0, help="Seed of the weights and the split. [0]"
)
@click.option(
    "--test-fraction",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    metavar="X",
    default=0.1,
    help="Share to hold out, to count false alarms. [0.1]",
)
@shared.reading_options
@shared.overwrite_option
@shared.json_option
def fit(data, folder, anomalies, contamination, settings, seed, test_fraction, overwrite, as_json, **reading):
    """Fit an anomaly detector to DATA: a folder of images, or an .npy, .npz, .csv, .tsv or .parquet file.

    Call it again to continue a fit that was stopped. A few anomalies among the examples do little harm.

    The folder then holds the detector, scores of held-out examples, a report, and
    `server`, which scores photos and tables on a machine that has only NumPy, ONNX Runtime and Pillow.
    """
    from kerasae.data import files
    from kerasae.runs import detector

    shared.check_new(folder, overwrite, detector.files_of)
    shared.check_apart(folder, data, anomalies)
    reading = shared.reading(reading)
    files.check(data, **reading)
    if anomalies is not None:
        files.check(anomalies)
    with shared.reporting(as_json) as show:
        writing.writable(folder, "--folder")
        try:
            options = dict(map(shared.setting, settings))
            if contamination is not None:
                options["contamination"] = contamination
            limit = {name: options[name] for name in ("max_samples", "n_references") if name in options}
            given = detector.examples(data, anomalies, test_fraction, seed, **limit, **reading)
            shared.import_keras()
            from kerasae import export

            with shared.raised_as(click.UsageError, ValueError):
                detector.check_options(options)
            with (
                shared.raised_as(click.ClickException, export.ExportError),
                writing.locked(folder, "fitting a detector"),
            ):
                made = detector.fit(given, folder, options, shared.verbose(), overwrite)
            show({"folder": str(folder.resolve()), **made}, _text(folder, made))
        except KeyboardInterrupt:
            if detector.is_begun(folder):
                click.echo("\nStopped. Go on with the same command.", err=True)
            raise
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()  # of what failed at the door nothing stays


@detect.command("score")
@click.argument("detector", type=shared.Folder())
@click.argument("data")
@click.argument("out", type=shared.PATH, required=False)
@shared.array_option
@shared.columns_option
@shared.skip_option
@shared.table_options
@shared.overwrite_option
@shared.json_option
def score(detector, data, out, overwrite, as_json, **reading):
    """Score DATA with a detector that `kerasae detect fit` wrote.

    Prints one line per example, or writes OUT, a .csv, .parquet, .npy or .npz file. A higher score is more normal; an example with a
    score below the threshold is called an anomaly. TensorFlow is not needed.
    """
    import numpy as np

    from kerasae.data import files
    from kerasae.runs import detector as detectors

    if out is not None:
        if out.suffix not in shared.TABLE_SUFFIXES:
            raise click.UsageError(f"OUT must end in {', '.join(shared.TABLE_SUFFIXES)}. Received: {out}")
        shared.check_out(out, shared.TABLE_SUFFIXES, overwrite, data)
    reading = shared.reading(reading)
    files.check(data, **reading)
    with shared.reporting(as_json) as show:
        scorer = detectors.Scorer(detector)
        read = scorer.read(data, **reading)
        scores = scorer.scores(read.values)
        rows = detectors.rows(read, scores, scorer.threshold)
        num_anomalies = sum(rows["anomaly"])
        found = f"{num_anomalies:,} of {len(scores):,} are anomalies: their score is below {scorer.threshold:.6g}"
        result = {
            "detector": detector,
            "data": data,
            "threshold": scorer.threshold,
            "num_anomalies": num_anomalies,
        }
        if out is not None:
            with writing.file(out) as path:
                if out.suffix == ".npy":
                    np.save(path, scores)
                else:
                    shared.write_columns(path, rows)
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


def _text(folder, made):
    return f"""threshold  {made["threshold"]:.6g}; an example with a lower score is called an anomaly
{shared.metrics_table(made["metrics"])}

In {folder.resolve()}:
  report.html    the scores and the threshold, for a browser
  scores.csv     every example that was held out, the oddest first
  server/        for a machine without TensorFlow: its README.md says how
  detector.pkl   tasks.AnomalyDetector, for pickle.load in Python

Next: kerasae detect score {folder} NEW"""
