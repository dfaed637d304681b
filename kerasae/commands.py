"""What `kerasae` does with a model and data: train, evaluate, figures, encode, reconstruct, sample, bulk.

Results go to standard output, as text or with `--json` as one object; progress and logs go to standard error. Keras and TensorFlow are
imported by the commands once what they were told has been looked at.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import shutil
import sys
import tempfile
import tomllib
import traceback
from pathlib import Path

import click

_logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 4096
_RUN_FILES = (
    "recipe.toml",
    "data.json",
    "model.keras",
    "history.json",
    "history.csv",
    "metrics.json",
    "figures",
    "report.html",
)


class _Numbers(click.ParamType):
    """Whole numbers with a separator: `512,256`, `64x48`."""

    def __init__(self, name, separator):
        self.name, self.separator = name, separator

    def convert(self, value, param, ctx):
        if not isinstance(value, str):
            return value
        try:
            return [int(part) for part in value.split(self.separator) if part.strip()]
        except ValueError:
            self.fail(f"{value!r} is not numbers such as {self.separator.join(('64', '32'))}", param, ctx)


_PATH = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
data_dir_option = click.option(
    "--data-dir", type=_PATH, metavar="DIR", help="Prepared tensorflow-datasets. [$TFDS_DATA_DIR]"
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what is there.")
_array_option = click.option("--array", help="Of an .npz file: which array.")
_labels_option = click.option("--labels", help="Classes: a table's column, or an .npz file's array.")
_split_option = click.option(
    "--split", type=click.Choice(["train", "test"]), default="test", show_default=True, help="Of a dataset by name."
)


@contextlib.contextmanager
def reporting(as_json):
    """Sends what is printed meanwhile to standard error; gives a function that prints the result."""
    out = sys.stdout

    def show(result, text):
        click.echo(json.dumps(_finite(result), indent=None) if as_json else text, file=out)

    with contextlib.redirect_stdout(sys.stderr):
        yield show


def _finite(value):
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def check_writable(folder, option="--folder"):
    """Makes the folder; raises at once where nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise click.ClickException(f"Can't write into {folder}: {error.strerror}. Choose another {option}.") from error


def import_keras():
    """Imports Keras without the lines that TensorFlow's libraries write as they load, whatever TF_CPP_MIN_LOG_LEVEL says."""
    if "tensorflow" in sys.modules:
        return
    sys.stderr.flush()
    shown = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        import keras  # noqa: F401
    finally:
        os.dup2(shown, 2)
        os.close(shown)


def _verbose():
    return 1 if sys.stderr.isatty() else 2


# -- Models and data ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model that was named, and what is known of it."""

    title: str
    model: object
    preparation: object
    recipe: object = None
    history: dict | None = None
    facts: dict | None = None


def open_model(name):
    """A model by its zoo id, `.keras` file, or the folder of a run.

    Raises:
        ValueError, FileNotFoundError: where it is none of them; the message says why.
    """
    from kerasae import recipes

    path = Path(name)
    if path.is_dir() and not (path / "model.keras").is_file():
        if (path / recipes.CHECKPOINT).is_dir():
            raise ValueError(f"The run in {path} is not finished. Go on with: kerasae train --resume --folder {path}")
        raise ValueError(f"{path} is no folder that `kerasae train` wrote: it has no model.keras.")
    if path.suffix == ".keras" and not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    is_file = path.is_dir() or path.suffix == ".keras"
    if not is_file:
        from kerasae import zoo

        if os.sep in str(name) or path.exists():
            raise FileNotFoundError(
                f"{str(name)!r} is no model: neither a zoo id, nor a .keras file, nor a folder that `kerasae train` wrote."
            )
        zoo.describe(name)  # an unknown id is found out before Keras is imported
    import_keras()
    import keras

    from kerasae import files, models

    recipe = history = facts = None
    if is_file:
        file = path / "model.keras" if path.is_dir() else path
        model = _load_file(keras, file)
        run = file.parent
        if file.name == "model.keras" and (run / "data.json").is_file():
            recipe = recipes.read(run / "recipe.toml")
            history = json.loads((run / "history.json").read_text())
            facts = json.loads((run / "data.json").read_text())
    else:
        model = zoo.load(name)
        recipe = recipes.Recipe.model_validate(zoo.describe(name)["recipe"])
    if not isinstance(model, models.Autoencoder):
        raise ValueError(f"{name} holds a {type(model).__name__}, and not an autoencoder of kerasae.")
    model.compile()  # `evaluate` asks for it; nothing is trained
    if facts is not None:
        preparation = files.Preparation.from_dict(facts["preparation"])
    else:
        preparation = files.Preparation.of_model(model.encoder.inputs[0].shape[1:])
    return Opened(path.resolve().name if path.is_dir() else path.stem, model, preparation, recipe, history, facts)


def _load_file(keras, path):
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises anything from KeyError to its own
        raise ValueError(f"{path} can't be loaded by Keras {keras.__version__}: {error}") from error


def is_path(data):
    """Whether DATA means files, rather than a dataset by its name.

    Raises:
        FileNotFoundError: where it can only mean files that there aren't.
    """
    from kerasae import files

    path = Path(data).expanduser()
    looks = (
        data.startswith((".", "/", "~"))
        or path.suffix.lower() in files.TABLE_SUFFIXES + files.ARRAY_SUFFIXES + files.IMAGE_SUFFIXES
    )
    if looks and not path.exists():
        raise FileNotFoundError(f"There is no file or folder {data!r}.")
    return path.exists()


@contextlib.contextmanager
def _dataset_errors(data):
    """A misspelt folder is taken for a dataset's name: then the message speaks of both."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith("unknown dataset"):
            raise ValueError(f"There is no file or folder {data!r}; {error}") from error
        raise


def _examples(opened, data, data_dir=None, split="test", **options):
    """`(Files, apply)` of DATA for a model: `apply` makes stored values the model's input."""
    from kerasae import files

    if is_path(data):
        options = {name: value for name, value in options.items() if value}
        return files.read(data, like=opened.preparation, **options), opened.preparation.apply
    from kerasae import data as datasets

    with _dataset_errors(data):
        try:
            loaded = datasets.load(data, data_dir=data_dir, labels=True)
        except ValueError as error:
            if "labels=True" not in str(error):
                raise
            loaded = [(x, None) for x in datasets.load(data, data_dir=data_dir)]
    x, y = loaded[("train", "test").index(split)]
    classes = None if y is None else [str(i) for i in range(int(y.max()) + 1)]
    # They are scaled already.
    return files.Files("images", x, None, labels=y, classes=classes), files.Preparation(
        "images", opened.preparation.shape
    ).apply


def _own_examples(opened, data_dir):
    """The recipe's `Dataset`, checked to be the one that the model was trained on."""
    from kerasae import recipes

    if opened.recipe is None:
        raise click.UsageError("Which data? --data names a dataset, a folder of images, or an array or table file.")
    loaded = recipes.load(opened.recipe, data_dir)
    if opened.facts and opened.facts.get("fingerprint") != loaded.facts.get("fingerprint"):
        raise ValueError(
            f"The data in {opened.recipe.data.path} have changed since the model was trained, so which were held out can't be told. "
            "Name data with --data."
        )
    return loaded


def _class_names(y, classes):
    import numpy as np

    return None if y is None else np.asarray(classes)[y] if classes else y


# -- train -------------------------------------------------------------------------------------------------------------------------------


def _count(minimum):
    return {"type": click.IntRange(min=minimum), "metavar": "N"}


def _fraction(**bounds):
    return {"type": click.FloatRange(min=0, min_open=True, **bounds), "metavar": "X"}


@click.command(options_metavar="--data DATA --folder RUN [OPTIONS]")
@click.argument("what", metavar="FAMILY|RECIPE.toml", required=False)
@click.option(
    "--data", help='"digits", "mnist", …; a folder of images; .npy, .npz, .csv, .tsv or .parquet.', metavar="DATA"
)
@click.option("--folder", type=_PATH, required=True, metavar="RUN", help="Where to: weights, recipe, figures, report.")
@click.option("--latent-dim", **_count(1), help="Size of the code. [16, or half the features]")
@click.option("--hidden-units", type=_Numbers("N,N", ","), help="Of each layer, such as 512,256.")
@click.option("--network", type=click.Choice(["dense", "conv"]))
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Another option of the family's builder.")
@click.option("--epochs", **_count(1), help="[20 to 400: about 2,000 batches]")
@click.option("--batch-size", **_count(1), help="Of all workers together. [32; 128 from 10,000 on]")
@click.option("--learning-rate", **_fraction(), help="[0.001]")
@click.option("--seed", **_count(0), help="Of weights, noise and the split. [0]")
@click.option("--validation", **_count(0), help="Training examples held out for the curves. [a tenth]")
@click.option("--test-fraction", **_fraction(max=1, max_open=True), help="Of own data, held out. [0.1]")
@click.option("--image-size", type=_Numbers("HxW", "x"), help="64 or 48x64: images are scaled and cropped to it.")
@click.option("--color", type=click.Choice(["grey", "rgb"]), help="Of images. [grey if all are]")
@click.option("--skip-unreadable", is_flag=True, help="Leave out images that can't be read.")
@click.option(
    "--scaling",
    metavar="WAY",
    type=click.Choice(["auto", "none", "minmax", "standard"]),
    help="Of numbers: auto, none, minmax, standard.",
)
@click.option("--columns", metavar="A,B", help="Of a table: only these.")
@click.option("--drop", multiple=True, metavar="COLUMN", help="Of a table: not this one; again for more.")
@click.option("--array", metavar="NAME", help="Of an .npz file: which array.")
@click.option("--labels", metavar="NAME", help="Classes: a table's column, an .npz file's array.")
@click.option("--workers", **_count(1), help="Processes on this machine. (Several machines: TF_CONFIG.)")
@click.option(
    "--wait",
    type=click.FloatRange(min=1),
    metavar="X",
    default=300,
    help="Seconds for the other workers to come. [300]",
)
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped, at its last whole epoch.")
@click.option("--overwrite", is_flag=True, help="Start again; replaces the run in the folder.")
@json_option
@data_dir_option
@click.option("--local-worker", is_flag=True, hidden=True)
def train(what, data, folder, settings, workers, wait, resume, overwrite, as_json, data_dir, local_worker, **options):
    """Train an autoencoder; the folder then holds all there is to know of it.

    FAMILY: undercomplete, linear, deep, denoising, k_sparse, sparse, contractive, variational. Options
    change a recipe's. Stopped runs go on with --resume.
    """
    from kerasae import workers as processes

    task = processes.task()
    if task and workers:
        raise click.UsageError("--workers starts processes, and TF_CONFIG says that this is one already: choose.")
    if what is None and not resume:
        raise click.UsageError("Train what? Give a family, such as variational, or a recipe file.")
    with reporting(as_json) as show:
        if local_worker:
            processes.watch_parent()
        finished = _claim(folder, resume, overwrite, task)
        if finished and (what is None or resume):
            _logger.info("%s is finished already.", folder)
            show(*_trained(folder))
            return
        try:
            check_writable(folder)
            _train(what, data, folder, settings, workers, wait, data_dir, local_worker, task, options)
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()  # of what failed at the door nothing stays
        if task is None or (task[0] == 0 and not local_worker):
            show(*_trained(folder))


def _claim(folder, resume, overwrite, task):
    """Whether the run in the folder is finished; raises where it holds what may not be touched."""
    from kerasae import recipes, workers

    if resume and overwrite:
        raise click.UsageError("--resume goes on, --overwrite starts again: choose.")
    if folder.exists() and not folder.is_dir():
        raise click.ClickException(f"{folder} is a file. Choose another --folder.")
    own = workers.checkpoint(folder, task[0]) if task else folder / recipes.CHECKPOINT
    begun = (own / "run.json").is_file()
    finished = (folder / "metrics.json").is_file() and not begun
    if overwrite:
        shutil.rmtree(own, ignore_errors=True)
        return False
    if resume:
        if folder.is_dir() and any(folder.iterdir()) and not (begun or finished or task):
            raise click.ClickException(f"There is no run in {folder} to resume.")
        return finished
    held = [p.name for p in folder.iterdir() if p.name != recipes.CHECKPOINT] if folder.is_dir() else []
    if begun:
        raise click.ClickException(
            f"{folder} holds an unfinished run: --resume goes on with it, --overwrite starts again."
        )
    if held or (task is None and (folder / recipes.CHECKPOINT).exists()):
        what = "a finished run" if finished else "other files"
        raise click.ClickException(
            f"{folder} is not empty, it holds {what}. Choose another --folder"
            + (", or --overwrite." if finished else ".")
        )
    return False


def _train(what, data, folder, settings, workers, wait, data_dir, local_worker, task, options):
    from kerasae import recipes
    from kerasae import workers as processes

    if data is not None:
        is_path(data)  # said before TensorFlow is imported
    begun = (processes.checkpoint(folder, task[0]) if task else folder / recipes.CHECKPOINT) / "run.json"
    recipe = None
    if what is None:
        if not begun.is_file():
            raise click.ClickException(f"There is no run in {folder} to resume.")
        recipe = recipes.Recipe.model_validate(json.loads(begun.read_text())["recipe"])
    elif what.endswith(".toml"):
        recipe = recipes.read(what)
    import_keras()
    # Before anything else of TensorFlow, as it wants.
    strategy = processes.strategy(*task, wait) if task else None
    if what is None:
        loaded = recipes.load(recipe, data_dir)
    else:
        recipe, loaded = _recipe(what, recipe, data, settings, options, data_dir)
    if what is None and (
        given := [f"--{n.replace('_', '-')}" for n, v in options.items() if v] + ["--set"] * bool(settings)
    ):
        raise click.UsageError(f"--resume goes on as the run was begun: {given[0]} can't be changed.")
    facts = loaded.facts
    say = _logger.debug if local_worker else _logger.info  # the process that started it has said so
    say(
        "%s: %s; %d to train on, %d to test on",
        facts["data"],
        loaded.preparation.describe(),
        facts["num_train"],
        facts["num_test"],
    )
    say("%s: %s", recipe.family, ", ".join(f"{name}={value}" for name, value in recipe.model.items()))
    fingerprint = facts.get("fingerprint")
    if strategy is not None:
        checkpoint = processes.checkpoint(folder, task[0])
        _train_as_worker(strategy, recipe, loaded, checkpoint, fingerprint, task[0])
        if task[0] == 0 and not local_worker:
            _finish_elsewhere(folder, data_dir)
        return
    if workers is not None and workers > 1:
        for i in range(workers):
            recipes.begin(processes.checkpoint(folder, i), recipe, fingerprint)
        command = [
            "train",
            "--folder",
            str(folder),
            "--resume",
            "--local-worker",
            "--wait",
            str(wait),
        ]
        command += ["--data-dir", str(data_dir)] if data_dir else []
        try:
            processes.run(folder, workers, command)
        except processes.WorkerError as error:
            raise click.ClickException(str(error)) from error
    with _said_how_to_go_on(folder):
        recipes.run(recipe, folder, verbose=_verbose(), complete=_complete(recipe), loaded=loaded)


@contextlib.contextmanager
def _said_how_to_go_on(folder):
    try:
        yield
    except KeyboardInterrupt:
        from kerasae.recipes import CHECKPOINT

        if (folder / CHECKPOINT / "run.json").is_file():
            click.echo(f"\nStopped. Go on with: kerasae train --resume --folder {folder}", err=True)
        raise


def _train_as_worker(strategy, recipe, loaded, checkpoint, fingerprint, index):
    import tensorflow as tf

    from kerasae import recipes
    from kerasae import workers as processes

    recipes.begin(checkpoint, recipe, fingerprint)
    try:
        processes.check_same_epoch(strategy, recipes.last_epoch(checkpoint))
        recipes.train(recipe, loaded.train[0], checkpoint, 0 if index else _verbose(), fingerprint, strategy)
    except processes.WorkerError as error:
        _end(str(error))
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        silent = "heartbeat timeout" in str(error)
        _end(f"A worker {'gave no sign of life' if silent else 'is gone'}. Start all again, with --resume.")
    except BaseException:
        traceback.print_exc()
        _end("This worker stopped. Start all again, with --resume.")


def _end(message):
    """Ends the process at once: what is left of the cluster would wait for the one that is gone."""
    click.echo(f"Error: {message}", err=True)
    sys.stderr.flush()
    os._exit(1)


def _finish_elsewhere(folder, data_dir):
    """Measures and draws in a process that knows of no workers: what they have left, nothing there may wait for."""
    import subprocess

    from kerasae.workers import COMMAND

    command = [*COMMAND, "train", "--folder", str(folder), "--resume", "--json"]
    command += ["--data-dir", str(data_dir)] if data_dir else []
    environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False).returncode:
        raise click.ClickException(
            f"Trained, but not measured. Try: kerasae train --resume --folder {folder}, without TF_CONFIG."
        )


def _recipe(what, recipe, data, settings, options, data_dir):
    """The recipe that the command line asks for, with what is left open decided by the data; and its `Dataset`."""
    from kerasae import recipes

    given = {name: value for name, value in options.items() if value not in (None, (), False)}
    if "image_size" in given:
        size = given["image_size"]
        given["image_size"] = size * 2 if len(size) == 1 else size
    if "columns" in given:
        given["columns"] = [c.strip() for c in given["columns"].split(",")]
    if "drop" in given:
        given["drop"] = list(given["drop"])
    changes = (
        recipe.model_dump(exclude_unset=True, mode="json")
        if recipe
        else {"family": what, "data": {}, "model": {}, "training": {}}
    )
    if data is not None:
        source = {"path": str(Path(data).expanduser().resolve())} if is_path(data) else {"name": data}
        changes["data"] = {**{k: v for k, v in changes["data"].items() if k not in ("path", "name")}, **source}
    elif recipe is None:
        raise click.UsageError("Train on what? --data names a dataset, a folder of images, or an array or table file.")
    for section, names in {
        "training": ("epochs", "batch_size", "learning_rate"),
        "data": (
            "image_size",
            "color",
            "skip_unreadable",
            "scaling",
            "columns",
            "drop",
            "array",
            "labels",
            "test_fraction",
            "validation",
        ),
        "model": ("latent_dim", "hidden_units", "network"),
    }.items():
        changes[section] = {**changes[section], **{name: given[name] for name in names if name in given}}
    if "seed" in given:
        changes["seed"] = given["seed"]
    if "validation" in options and options["validation"] is not None:
        changes["data"]["validation"] = options["validation"]
    changes["model"].update(map(_setting, settings))
    changes.setdefault(
        "description",
        f"kerasae train {changes['family']} on {Path(changes['data'].get('path') or changes['data']['name']).name}",
    )
    open_epochs = recipe is None and "epochs" not in given
    draft = {**changes, "training": {"epochs": 1, **changes["training"]}, "measure": changes.get("measure", [])}
    try:
        draft = _validated(draft)
        known = recipes.options(draft.family)
        recipes.check(draft)
    except ValueError as error:
        raise (click.UsageError(str(error)) if recipe is None or settings else error) from error
    with _dataset_errors(data):
        loaded = recipes.load(draft, data_dir)
    x_train, num_train = loaded.train[0], len(loaded.train[0])
    if recipe is None:
        small = num_train < 10_000
        batch_size = changes["training"].setdefault("batch_size", 32 if small else 128)
        if open_epochs:
            changes["training"]["epochs"] = min(400, max(20, 2000 // math.ceil(num_train / batch_size)))
        if "validation" not in changes["data"]:
            changes["data"]["validation"] = min(num_train // 10, 5000)
        default_code = min(16, max(1, x_train[0].size // 2))
        if known["latent_dim"] is None:
            changes["model"].setdefault(
                "latent_dim", max(default_code, changes["model"].get("k", known.get("k", 0)) * 4)
            )
        if "likelihood" in known and "likelihood" not in changes["model"] and (x_train.min() < 0 or x_train.max() > 1):
            changes["model"]["likelihood"] = "gaussian"
            changes["model"].setdefault("variance", "learned")
            _logger.info("The data leave [0, 1], so the likelihood is Gaussian.")
    if "measure" not in changes:
        model = recipes.build(_validated({**changes, "measure": []}), x_train.shape[1:], num_train)
        classes = 0 if loaded.train[1] is None else len(set(loaded.train[1].tolist()))
        measures = recipes.default_measurements(model, loaded.test[0], num_train, classes)
        changes["measure"] = [m.model_dump(exclude_none=True) for m in measures]
    return _validated(changes), loaded


def _validated(values):
    import pydantic

    from kerasae import recipes

    try:
        return recipes.Recipe.model_validate(values)
    except pydantic.ValidationError as error:
        raise ValueError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from error


def _setting(text):
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--set takes NAME=VALUE. Received: {text!r}")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value  # a bare word


def _complete(recipe):
    def complete(beside, model, loaded, history, facts):
        from kerasae import recipes, report

        x, y = loaded.test
        _logger.info("drawing …")
        view = report.View(model, x, _class_names(y, loaded.facts["classes"]), history)
        pictures = report.save_figures(view, beside / "figures")
        _write_csv(
            beside / "history.csv", {"epoch": list(range(1, 1 + max(map(len, history.values()), default=0))), **history}
        )
        report.write(
            beside / "report.html",
            facts["id"],
            {
                "family": recipe.family,
                "data": f"{loaded.facts['data']}: {loaded.preparation.describe()}",
                "examples": f"{len(loaded.train[0]) - recipe.data.validation:,} to train on, {recipe.data.validation:,} to validate on, "
                f"{len(x):,} to test on",
                "size": f"{facts['model']['parameters']:,} parameters, {model.code_size} codes for {x[0].size} features",
                "training": f"{recipe.training.epochs} epochs, {facts['training']['seconds']:.0f} seconds, seed {recipe.seed}",
                "versions": ", ".join(f"{name} {v}" for name, v in facts["versions"].items()),
            },
            facts["metrics"],
            pictures,
            recipes.to_toml(recipe),
        )

    return complete


def _trained(folder):
    """What a finished run has to say: an object, and text."""
    facts = json.loads((folder / "metrics.json").read_text())
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    result = {"folder": str(folder.resolve()), **facts, "files": files}
    text = f"""{_table(facts["metrics"])}

In {folder.resolve()}:
  report.html    everything in one file, for a browser
  figures/       {", ".join(Path(f).stem for f in files if f.startswith("figures"))}
  model.keras    kerasae encode | reconstruct | sample | evaluate | export {folder}
  recipe.toml    kerasae train {folder}/recipe.toml trains it again"""
    return result, text


def _table(records):
    width = max([len(r["metric"]) for r in records], default=0)
    return "\n".join(f"{r['metric']:<{width}}  {r['value']:>12.4f}  {r['unit']}" for r in records)


# -- evaluate, figures -------------------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("model")
@click.option("--data", help="A dataset's name, a folder of images, or a file. Default: what was held out in training.")
@_split_option
@_array_option
@_labels_option
@json_option
@data_dir_option
def evaluate(model, data, split, array, labels, as_json, data_dir):
    """Measure MODEL: a zoo id, a .keras file, or a folder that `kerasae train` wrote."""
    if data is not None:
        is_path(data)
    with reporting(as_json) as show:
        opened = open_model(model)
        from kerasae import recipes

        if data is None:
            loaded = _own_examples(opened, data_dir)
            records = recipes.measure(opened.recipe, opened.model, (loaded.train, loaded.test))
            num_examples, what = len(loaded.test[0]), f"{loaded.facts['data']}, held out"
        else:
            files, apply = _examples(opened, data, data_dir, split, array=array, labels=labels)
            values, what = files.values, data
            if opened.facts and files.fingerprint and opened.facts.get("fingerprint") == files.fingerprint:
                _, held_out = _split_of(opened, len(values))
                values, what = values[held_out], f"{data}, held out"
                _logger.info(
                    "These are the training data: measured on the %d examples that were held out.", len(values)
                )
            x = apply(values)
            records = recipes.measure_each(recipes.default_measurements(opened.model, x), opened.model, {"x_test": x})
            num_examples = len(x)
        show(
            {"model": model, "data": what, "num_examples": num_examples, "metrics": records},
            f"{opened.title} on {num_examples:,} examples of {what}\n{_table(records)}",
        )


def _split_of(opened, num_examples):
    from kerasae import files

    return files.split(num_examples, opened.recipe.data.test_fraction, opened.recipe.seed)


@click.command("figures")
@click.argument("model")
@click.option("--data", help="A dataset's name, a folder of images, or a file. Default: what was held out in training.")
@click.option("--folder", type=_PATH, required=True, help="Where to.")
@click.option("--dark", is_flag=True, help="White on black.")
@_split_option
@_array_option
@_labels_option
@overwrite_option
@json_option
@data_dir_option
def figures_command(model, data, folder, dark, split, array, labels, overwrite, as_json, data_dir):
    """Draw every figure there is of MODEL: a zoo id, a .keras file, or a folder that `kerasae train` wrote."""
    if data is not None:
        is_path(data)
    _check_new(folder, overwrite)
    with reporting(as_json) as show:
        opened = open_model(model)
        from kerasae import recipes, report

        if data is None:
            loaded = _own_examples(opened, data_dir)
            (x, y), classes = loaded.test, loaded.facts["classes"]
        else:
            files, apply = _examples(opened, data, data_dir, split, array=array, labels=labels)
            x, y, classes = apply(files.values[: report.MAX_EXAMPLES]), files.labels, files.classes
            y = None if y is None else y[: len(x)]
        view = report.View(opened.model, x, _class_names(y, classes), opened.history)
        with recipes.written_together(folder) as beside:
            names = list(report.save_figures(view, beside, dark))
        paths = {name: folder / f"{name}.png" for name in names}
        show({"model": model, "figures": paths}, "\n".join(map(str, paths.values())))


# -- encode, reconstruct, sample, bulk ---------------------------------------------------------------------------------------------------

_CODE_SUFFIXES = (".npy", ".npz", ".csv", ".parquet")


@click.command()
@click.argument("model")
@click.argument("data")
@click.argument("out", type=_PATH)
@_split_option
@_array_option
@_labels_option
@overwrite_option
@json_option
@data_dir_option
def encode(model, data, out, split, array, labels, overwrite, as_json, data_dir):
    """Write the codes of DATA by MODEL to OUT, an .npy, .npz, .csv or .parquet file.

    DATA is a dataset's name, a folder of images, or an .npy, .npz, .csv or .parquet file; what was done to the training data is done to
    it. Tables have a column a code, z_1, z_2, …; beside them, as arrays of an .npz file, files' names and labels.
    """
    _check_out(out, _CODE_SUFFIXES, overwrite)
    is_path(data)
    with reporting(as_json) as show:
        opened = open_model(model)
        import numpy as np

        files, apply = _examples(opened, data, data_dir, split, array=array, labels=labels)
        parts = [opened.model.encode(apply(part)) for part in _parts(files.values)]
        z = np.concatenate(parts)
        beside = {}
        if files.names is not None:
            beside["file"] = np.asarray(files.names)
        if files.labels is not None:
            beside["label"] = _class_names(files.labels, files.classes)
        _write_numbers(out, z, [f"z_{i + 1}" for i in range(z[0].size)], "z", beside)
        show(
            {"model": model, "out": out, "shape": list(z.shape)},
            f"Wrote {z.shape[0]:,} codes of {z[0].size} numbers to {out}",
        )


@click.command()
@click.argument("model")
@click.argument("data")
@click.argument("out", type=_PATH)
@_split_option
@_array_option
@_labels_option
@overwrite_option
@json_option
@data_dir_option
def reconstruct(model, data, out, split, array, labels, overwrite, as_json, data_dir):
    """Write what MODEL makes of DATA to OUT: an .npy file, a folder of PNG images, or for a table .csv or .parquet.

    Numbers are in the units of DATA; pixels lie in [0, 1].
    """
    _check_out(out, _CODE_SUFFIXES, overwrite)
    is_path(data)
    with reporting(as_json) as show:
        opened = open_model(model)
        files, apply = _examples(opened, data, data_dir, split, array=array, labels=labels)
        named = files.fingerprint is None
        num = len(files.values)

        def rows():
            for part in _parts(files.values):
                made = opened.model.predict(apply(part), batch_size=256, verbose=0)
                yield made if named else opened.preparation.invert(made)

        _write_examples(out, rows(), num, opened.preparation, files.names)
        show({"model": model, "out": out, "num": num}, f"Wrote {num:,} reconstructions to {out}")


@click.command()
@click.argument("model")
@click.argument("out", type=_PATH)
@click.option("--num", type=click.IntRange(min=1), default=64, show_default=True, help="How many.")
@click.option("--seed", type=click.IntRange(min=0), help="For the same samples every time.")
@overwrite_option
@json_option
def sample(model, out, num, seed, overwrite, as_json):
    """Write new examples, drawn from a variational MODEL, to OUT.

    OUT is an .npy file, a folder of PNG images, one .png file with all in a grid, or for a table .csv or .parquet.
    """
    _check_out(out, (*_CODE_SUFFIXES, ".png"), overwrite)
    with reporting(as_json) as show:
        opened = open_model(model)
        if not hasattr(opened.model, "sample"):
            raise ValueError(
                f"{opened.title} can't make new examples: only variational autoencoders are trained to. (kerasae train variational)"
            )
        made = opened.preparation.invert(opened.model.sample(num, seed=seed))
        if out.suffix == ".png":
            from kerasae import figures

            with _moved_in(out) as beside:
                figures.save(figures.samples(made), beside)
        else:
            _write_examples(out, iter([made]), num, opened.preparation, None)
        show({"model": model, "out": out, "num": num, "seed": seed}, f"Wrote {num:,} samples to {out}")


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("inputs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=_PATH)
@click.option("--part", default="encoder", show_default=True, help="Of the bundle.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes. Default: one a core.")
@click.option("--batch-size", type=click.IntRange(min=1), default=1024, show_default=True)
@click.option(
    "--column", help="Of the Parquet files: the one with the examples. Default: x, as the part's input is called."
)
@click.option("--keep", multiple=True, help='A column to carry over, or "all"; again for more. Default: id.')
@click.option("--scheduler", help="Address of a Dask scheduler. Default: this machine.")
@overwrite_option
@json_option
def bulk(bundle, inputs, output, as_json, **options):
    """Run an exported BUNDLE over many Parquet files, by Dask; Parquet files go to the folder OUTPUT.

    Call again to go on with what was stopped. Needs `pip install 'kerasae[bulk]'`, and no TensorFlow.
    """
    with reporting(as_json) as show:
        from kerasae.export import bulk as engine

        # One input can be a folder or a pattern, and "all" is a word of its own.
        paths = [str(path) for path in inputs] if len(inputs) > 1 else str(inputs[0])
        options["keep"] = "all" if options["keep"] == ("all",) else list(options["keep"]) or None
        result = engine.run(bundle, paths, output, **options)
        show(result, "\n".join(f"{name}: {value}" for name, value in result.items()))


def _parts(values):
    return (values[i : i + _ROWS_AT_ONCE] for i in range(0, len(values), _ROWS_AT_ONCE))


def _check_new(folder, overwrite):
    if folder.exists() and not folder.is_dir():
        raise click.ClickException(f"{folder} is a file, and a folder is needed.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise click.ClickException(f"{folder} is not empty. Choose another folder, or --overwrite.")


def _check_out(out, suffixes, overwrite):
    """Raises at once on an OUT that can't be written."""
    if out.suffix and out.suffix not in suffixes:
        raise click.UsageError(f"OUT must end in {', '.join(suffixes)}, or name a folder. Received: {out}")
    if out.suffix == "":
        _check_new(out, overwrite)
    elif out.is_dir():
        raise click.ClickException(f"{out} is a folder.")
    elif out.exists() and not overwrite:
        raise click.ClickException(f"{out} is there already. Choose another name, or --overwrite.")
    if not out.parent.is_dir():
        raise click.ClickException(f"There is no folder {out.parent} to write into.")
    if not os.access(out.parent, os.W_OK):
        raise click.ClickException(f"Can't write into {out.parent}.")


@contextlib.contextmanager
def _moved_in(path):
    """A path beside, of the same name; the file is moved into its place at the end, and not on an error."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as folder:
        beside = Path(folder, path.name)
        yield beside
        os.replace(beside, path)


def _write_csv(path, columns):
    import csv

    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _write_numbers(out, values, columns, name, beside):
    """Writes rows of numbers, with whatever stands beside each."""
    import numpy as np

    if out.suffix == "":
        raise click.UsageError(f"OUT must end in {', '.join(_CODE_SUFFIXES)}. Received: {out}")
    with _moved_in(out) as path:
        if out.suffix == ".npy":
            np.save(path, values)
        elif out.suffix == ".npz":
            np.savez(path, **{name: values}, **beside)
        else:
            import pyarrow as pa
            from pyarrow import csv, parquet

            flat = values.reshape(len(values), -1)
            table = pa.table(
                {**{k: v.tolist() for k, v in beside.items()}, **{c: flat[:, i] for i, c in enumerate(columns)}}
            )
            (csv.write_csv if out.suffix == ".csv" else parquet.write_table)(table, path)


def _write_examples(out, parts, num, preparation, names):
    """Writes examples, `parts` of them at a time."""
    import numpy as np

    first = next(parts)
    if out.suffix == ".npy":
        with _moved_in(out) as path:
            array = np.lib.format.open_memmap(path, "w+", first.dtype, (num, *first.shape[1:]))
            start = 0
            for part in _chain(first, parts):
                array[start : start + len(part)] = part
                start += len(part)
            array.flush()
        return
    if out.suffix:
        values = np.concatenate(list(_chain(first, parts)))
        columns = preparation.columns or [f"x_{i + 1}" for i in range(values[0].size)]
        _write_numbers(out, values, columns, "x", {"file": np.asarray(names)} if names else {})
        return
    if first.ndim != 4 or first.shape[-1] not in (1, 3) or first.min() < -0.5 or first.max() > 1.5:
        raise ValueError(
            f"These are no images in [0, 1], but {first.shape[1:]}: write them to an .npy, .csv or .parquet file."
        )
    from PIL import Image

    from kerasae import recipes

    digits = max(5, len(str(num - 1)))
    stems = (
        [Path(name).with_suffix("").as_posix() for name in names] if names else [f"{i:0{digits}}" for i in range(num)]
    )
    if len(set(stems)) < num:  # a.jpg and a.png
        stems = names
    with recipes.written_together(out) as beside:
        start = 0
        for part in _chain(first, parts):
            pixels = np.rint(np.clip(part, 0, 1) * 255).astype("uint8")
            for stem, image in zip(stems[start:], pixels, strict=False):
                path = beside / f"{stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)
            start += len(part)


def _chain(first, rest):
    yield first
    yield from rest
