"""An anomaly detector fitted to one's own examples, and the folder that runs it elsewhere."""

import dataclasses
import inspect
import itertools
import json
import logging
import math
import pickle
import time
from importlib.metadata import version
from pathlib import Path

from kerasae import checks, untrusted, writing
from kerasae.runs import checkpoints, server

_logger = logging.getLogger(__name__)


_IMAGE_SIZE = (64, 64)  # where the photos have none in common
_ROWS_AT_ONCE = 256
# Defaults of tasks.AnomalyDetector, which can't be asked before TensorFlow is imported; the references of images and of tables.
_MAX_SAMPLES, _NUM_REFERENCES = 6400, (4000, 20_000)
# What fitting and exporting take at most: copies of the training examples, of an epoch's rows, of the references and of the weights (with
# Adam's state, gradients, and the files of all that); the weights of dense networks of images and tables, per feature; and TensorFlow.
_COPIES, _WEIGHTS, _BASE_BYTES = (2.5, 2.5, 7.0, 10.0), (2 * 256, 2 * 64), 800 * 2**20
_NUM_SHOWN = 10
_CHECKPOINT = ".checkpoint-detector"  # where an unfinished fit keeps what it needs to go on
_SECONDS_BETWEEN_STATES = 30
_HELD_OUT, _KNOWN = "held out", "known anomaly"


@dataclasses.dataclass(frozen=True)
class Examples:
    """What a detector is fitted to, and what it is measured on: `groups` is `{which: (examples, their names)}`."""

    data: str
    read: object
    preparation: object
    x_train: object
    groups: dict
    seed: int
    dialect: dict


def examples(data, anomalies=None, test_fraction=0.1, seed=0, max_samples=_MAX_SAMPLES, n_references=None, **reading):
    """Reads and splits what a detector is to be fitted to.

    Args:
        data: path of a folder of images or of a file, as `kerasae.data.files.read` takes it.
        anomalies: path of known ones, or None.
        test_fraction: share of `data` that is held out, to count false alarms on.
        seed: of the split and of the detector.
        max_samples, n_references: the detector's, for an estimate of the memory that it will take.
        **reading: options of `kerasae.data.files.read`.

    Returns:
        `Examples`.
    """
    from kerasae.data import files
    from kerasae.data.reading import dialect

    fallback = _IMAGE_SIZE if files.check(data) == "images" else None
    read = files.read(data, **reading, fallback_size=fallback, quiet=True)
    train, test = files.split(len(read.values), test_fraction, seed)
    preparation = _preparation(read, train)
    groups = {_HELD_OUT: (preparation.apply(read.values[test]), read.numbers(test))}
    if anomalies is not None:
        skip = reading.get("skip_unreadable", False)
        known = files.read(anomalies, like=preparation, skip_unreadable=skip, **dialect(anomalies, reading))
        groups[_KNOWN] = (preparation.apply(known.values), known.numbers(range(len(known.values))))
    _check_memory(data, len(train), preparation.shape, checks.positive_int(max_samples, "max_samples"), n_references)
    x_train = preparation.apply(read.values[train])
    _logger.log(read.weight, "%s; %s; %d to fit, %d held out", read.said, preparation.way, len(train), len(test))
    return Examples(data, read, preparation, x_train, groups, seed, dialect(data, reading))


def _check_memory(data, num_train, shape, max_samples, n_references):
    """Raises where fitting and exporting would not fit into the free memory."""
    is_table = len(shape) == 1
    if n_references is None:
        n_references = _NUM_REFERENCES[is_table]
    n_references = min(checks.positive_int(n_references, "n_references"), num_train)
    rows = zip(_COPIES, (num_train, min(max_samples, num_train), n_references, _WEIGHTS[is_table]), strict=True)
    copies = sum(copies * num for copies, num in rows) / num_train
    checks.memory((num_train, *shape), "float32", f"Fitting to {data}", copies, _BASE_BYTES)


def check_options(options):
    """Raises `ValueError` on an option that `tasks.AnomalyDetector` doesn't take; the message names the nearest."""
    from kerasae import tasks

    for name in options:
        checks.choice(name, "option of AnomalyDetector", inspect.signature(tasks.AnomalyDetector).parameters)


def fit(given, folder, options, verbose="auto", start_again=False):
    """Fits a detector, measures it, and fills a folder. A fit that was stopped goes on when called again.

    Args:
        given: `Examples`.
        folder: where to.
        options: of `tasks.AnomalyDetector`.
        verbose: as in `keras.Model.fit`.
        start_again: whether the state of an unfinished fit is removed.

    Returns:
        What was written into `metrics.json`.

    Raises:
        ValueError: where the unfinished fit in the folder is of other settings or data.
        kerasae.export.ExportError: where the exported graph doesn't give the detector's scores.
    """
    from kerasae import tasks

    started = time.monotonic()
    detector = tasks.AnomalyDetector(**{"random_state": given.seed, "verbose": verbose, **options})
    checkpoint = folder / _CHECKPOINT
    facts = {
        **detector.get_params(),
        "verbose": None,
        "examples": len(given.x_train),
        "preparation": given.preparation.to_dict(),
    }
    if start_again or not _states(checkpoint):
        writing.remove(checkpoint)
    facts = json.loads(json.dumps(facts, default=repr))  # as they will be read
    checkpoints.begin(checkpoint, facts, given.read.fingerprint, data=given.data)
    detector._going_on = _going_on(checkpoint)
    try:
        detector.fit(given.x_train)
    finally:
        del detector._going_on
        if not _states(checkpoint):
            writing.remove(checkpoint)
    detector.preparation = given.preparation
    seconds = time.monotonic() - started
    # What holds for new examples is measured on new ones: those fitted to lie near their own reconstructions.
    scores = {which: detector.score_samples(x) for which, (x, _) in given.groups.items()}
    made = {
        "format": 1,
        "id": folder.resolve().name,
        "data": Path(given.data).name,
        "fingerprint": given.read.fingerprint,
        "num_train": len(given.x_train),
        "num_test": len(scores[_HELD_OUT]),
        "num_anomalies": len(scores.get(_KNOWN, ())),
        "threshold": detector.offset_,
        "seed": given.seed,
        "settings": detector.get_params(),
        "seconds": seconds,
        "versions": {name: version(name) for name in ("kerasae", "keras", "tensorflow")},
        "metrics": _measures(scores, detector.offset_),
    }
    with writing.together(folder, files_of) as beside:
        (beside / "detector.pkl").write_bytes(pickle.dumps(detector))
        _write_scores(beside / "scores.csv", given.read, given.groups, scores, detector.offset_)
        server.write(beside / "server", detector, given.preparation, given.groups[_HELD_OUT][0], given.dialect)
        made["server"] = {"sha256": writing.sha256(beside / "server" / "detector.json")}
        writing.json(beside / "metrics.json", made)
        _write_report(beside, given.preparation, made, given.groups, scores)
    writing.remove(checkpoint)
    return made


def _states(checkpoint):
    return list(checkpoint.glob("member-*/epoch-*"))


def _going_on(checkpoint):
    """What lets the detector's models go on after the last epoch that was saved, one after the other."""
    members = itertools.count()

    def go_on(model, stopping):
        member = checkpoint / f"member-{next(members)}"
        member.mkdir(exist_ok=True)
        progress = checkpoints.Progress(member, stopping)
        epoch = progress.restore(model)
        if epoch:
            _logger.info("Going on after epoch %d.", epoch)
        return [checkpoints.saving(progress, _SECONDS_BETWEEN_STATES)], epoch

    return go_on


def is_begun(folder):
    """Whether a fit in the folder was stopped, and can go on."""
    return bool(_states(Path(folder) / _CHECKPOINT))


def files_of(folder):
    """Names of the files that `fit` left in a folder; none where there is no detector."""
    server_files = {f"server/{name}" for name in ("README.md", "detector.json", "runtime.py", "score.py")}
    inside = Path(folder) / "server"
    if not (inside / "detector.json").is_file() or not (Path(folder) / "metrics.json").is_file():
        return set()
    from kerasae import runtime

    server_files |= {f"server/bundle/{name}" for name in runtime.files_of(inside / "bundle")}
    server_files |= {f"server/reading/{path.name}" for path in (inside / "reading").glob("*.py")}
    names = ("detector.pkl", "metrics.json", "scores.csv", "report.html", "figures/scores.png", "figures/oddest.png")
    return {*names, *server_files}


def _preparation(read, train):
    """Pixels in [0, 1], as photos come to every model here; other numbers go in as they are, and the detector scales them itself."""
    from kerasae.preparation import Preparation

    if read.values.ndim > 2 or read.values.dtype == "uint8":
        preparation = Preparation.fit(read, train)
        if preparation.scaling == "pixels":
            return preparation
    return Preparation.fit(read, train, "none")


def rows(read, scores, threshold):
    """Columns of a table: each example's file or row, its score, and 1 where it is called an anomaly."""
    return {
        _naming(read): read.numbers(range(len(scores))),
        "score": scores.tolist(),
        "anomaly": (scores < threshold).astype(int).tolist(),
    }


def _naming(read):
    return "file" if read.names else "row"


def _measures(scores, threshold):
    """Records as of `kerasae.runs.measures.measure`."""
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
    from kerasae.runs import report

    scored = sorted(
        (float(score), which, name)
        for which, (_, names) in groups.items()
        for score, name in zip(scores[which], names, strict=True)
    )
    columns = {
        _naming(read): [name for _, _, name in scored],
        "which": [which for _, which, _ in scored],
        "score": [score for score, _, _ in scored],
        "anomaly": [int(score < threshold) for score, _, _ in scored],
    }
    report.write_csv(path, columns)


def _write_report(folder, preparation, made, groups, scores):
    import numpy as np
    import tomli_w

    from kerasae import figures
    from kerasae.runs import report

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
        if preparation.color:
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


class Scorer:
    """Scores by the exported detector in a folder that `fit` filled, without TensorFlow: `threshold`, `preparation`, `read`, `scores`.

    Raises:
        ValueError: where it is no such folder, or its files are not those that were exported.
    """

    def __init__(self, folder):
        from kerasae.preparation import Preparation
        from kerasae.runtime import Bundle

        inside = Path(folder) / "server"
        if not (inside / "detector.json").is_file():
            raise ValueError(f"{folder} is no folder that `kerasae detect fit` wrote: it has no server/detector.json.")
        record = Path(folder) / "metrics.json"
        if record.is_file():
            sha256 = untrusted.json(record, {"server?": {"sha256": str}}).get("server", {}).get("sha256")
            if sha256 not in (None, writing.sha256(inside / "detector.json")):
                raise ValueError(
                    f"{inside / 'detector.json'} is not the one that was written here: its sha256 is not the one in {record}. If you "
                    f"changed it yourself, score with {inside / 'score.py'}."
                )
        facts = untrusted.json(
            inside / "detector.json",
            {"threshold": (int, float), "preparation": dict, "dialect?": dict, "manifest?": str},
        )
        if not math.isfinite(facts["threshold"]):
            raise ValueError(f"{inside / 'detector.json'} is damaged: its threshold is {facts['threshold']}.")
        self.threshold = facts["threshold"]
        with untrusted.damaged(inside / "detector.json"):
            self.preparation = Preparation.from_dict(facts["preparation"])
        self._dialect = facts.get("dialect", {})
        self._score = Bundle(inside / "bundle", facts.get("manifest")).open("score_samples")

    def read(self, data, **options):
        """`kerasae.data.files.Files` that fit the detector; options as of `kerasae.data.files.read`."""
        from kerasae.data import files, reading

        return files.read(data, like=self.preparation, **{**reading.dialect(data, self._dialect), **options})

    def scores(self, values):
        """The scores of examples as they are stored, `(n,)`: higher is more normal."""
        import numpy as np

        parts = (values[i : i + _ROWS_AT_ONCE] for i in range(0, len(values), _ROWS_AT_ONCE))
        scores = [self._score(self._as_port(part))["score"] for part in parts]
        return np.concatenate(scores).astype("float64")

    def _as_port(self, values):
        """Examples as the bundle takes them: bytes, or numbers as they are stored; those of earlier versions take pixels in [0, 1]."""
        x, dtype = self.preparation.apply(values), self._score.inputs[0]["dtype"]
        return self.preparation.stored(x) if dtype == "uint8" else x.astype(dtype)
