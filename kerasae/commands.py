"""What the commands share: options, models and data that were named, results shown and written.

Results go to standard output, as text or with `--json` as one object; progress and logs go to standard error. Keras and TensorFlow are
imported by the commands once what they were told has been looked at.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

import click


class Numbers(click.ParamType):
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


TABLE_SUFFIXES = (".npy", ".npz", ".csv", ".parquet")  # that numbers are written to
PATH = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
data_dir_option = click.option(
    "--data-dir", type=PATH, metavar="DIR", help="Prepared tensorflow-datasets. [$TFDS_DATA_DIR]"
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what is there.")
_source_options = (
    click.option(
        "--split", type=click.Choice(["train", "test"]), default="test", show_default=True, help="Of a dataset by name."
    ),
    click.option("--array", help="Of an .npz file: which array."),
    click.option("--labels", help="Classes: a table's column, or an .npz file's array."),
    click.option("--skip-unreadable", is_flag=True, help="Leave out images that can't be read."),
    data_dir_option,
)


_reading_options = (
    click.option("--image-size", type=Numbers("HxW", "x"), help="64 or 48x64: images are scaled and cropped to it."),
    click.option("--color", type=click.Choice(["grey", "rgb"]), help="Of images. [grey if all are]"),
    click.option("--skip-unreadable", is_flag=True, help="Leave out images that can't be read."),
    click.option("--columns", metavar="A,B", help="Of a table: only these."),
    click.option("--drop", multiple=True, metavar="COLUMN", help="Of a table: not this one; again for more."),
    click.option("--array", metavar="NAME", help="Of an .npz file: which array."),
    click.option("--labels", metavar="NAME", help="Classes: a table's column, an .npz file's array."),
)


def source_options(command):
    """How DATA is to be read for a model that there is: keywords, which `examples_of` takes."""
    return functools.reduce(lambda made, option: option(made), reversed(_source_options), command)


def reading_options(command):
    """How DATA is to be read that something is fitted to: keywords, which `reading` takes."""
    return functools.reduce(lambda made, option: option(made), reversed(_reading_options), command)


def reading(options):
    """The given ones among the keywords of `reading_options`, as `kerasae.files.read` wants them."""
    from kerasae import files

    given = {name: options[name] for name in files.OPTIONS if options[name]}
    if "image_size" in given:
        size = given["image_size"]
        given["image_size"] = size * 2 if len(size) == 1 else size
    if "columns" in given:
        given["columns"] = [c.strip() for c in given["columns"].split(",")]
    if "drop" in given:
        given["drop"] = list(given["drop"])
    return given


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


def verbose():
    """Keras's `verbose`: a progress bar for a person, a line an epoch for a log."""
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
        if (path / "server" / "detector.json").is_file():
            raise ValueError(f"{path} holds a detector, exported already: kerasae detect score {path} DATA")
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


def is_path(data, **options):
    """Whether DATA means files, rather than a dataset by its name.

    Args:
        data: what was given.
        **options: of `kerasae.files.read`.

    Raises:
        FileNotFoundError: where it can only mean files that there aren't.
        ValueError: where there are files that hold no examples, or to which an option doesn't apply.
    """
    from kerasae import files

    path = Path(data).expanduser()
    looks = data.startswith((".", "/", "~")) or path.suffix.lower() in files.SUFFIXES
    if path.exists() or looks:
        files.check(data, **options)
    return path.exists()


def check_data(data, split=None, data_dir=None, **options):
    """Says at once what is wrong with DATA, as far as that can be known before it is read; takes what `source_options` give."""
    is_path(data, **options)


@contextlib.contextmanager
def dataset_errors(data):
    """A misspelt folder is taken for a dataset's name: then the message speaks of both."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith("unknown dataset"):
            raise ValueError(f"There is no file or folder {data!r}; {error}") from error
        raise


def examples_of(opened, data, data_dir=None, split="test", **options):
    """`(Files, apply)` of DATA for a model: `apply` makes stored values the model's input."""
    from kerasae import files

    if is_path(data, **options):
        return files.read(data, like=opened.preparation, **options), opened.preparation.apply
    from kerasae import data as datasets

    with dataset_errors(data):
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


def held_out(opened, data_dir):
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


def class_names(y, classes):
    """Labels by the names of their classes, where they have some."""
    import numpy as np

    return None if y is None else np.asarray(classes)[y] if classes else y


def setting(text):
    """`(name, value)` of NAME=VALUE, the value as TOML has it."""
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--set takes NAME=VALUE. Received: {text!r}")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value  # a bare word


def metrics_table(records):
    """Measures as text, a line each."""
    width = max([len(r["metric"]) for r in records], default=0)
    return "\n".join(f"{r['metric']:<{width}}  {r['value']:>12.4f}  {r['unit']}" for r in records)


def check_new(folder, overwrite):
    """Raises on a folder that holds something, or is a file."""
    if folder.exists() and not folder.is_dir():
        raise click.ClickException(f"{folder} is a file, and a folder is needed.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise click.ClickException(f"{folder} is not empty. Choose another folder, or --overwrite.")


def check_out(out, suffixes, overwrite):
    """Raises at once on an OUT that can't be written."""
    if out.suffix and out.suffix not in suffixes:
        raise click.UsageError(f"OUT must end in {', '.join(suffixes)}, or name a folder. Received: {out}")
    if out.suffix == "":
        check_new(out, overwrite)
    elif out.is_dir():
        raise click.ClickException(f"{out} is a folder.")
    elif out.exists() and not overwrite:
        raise click.ClickException(f"{out} is there already. Choose another name, or --overwrite.")
    if not out.parent.is_dir():
        raise click.ClickException(f"There is no folder {out.parent} to write into.")
    if not os.access(out.parent, os.W_OK):
        raise click.ClickException(f"Can't write into {out.parent}.")


@contextlib.contextmanager
def moved_in(path):
    """A path beside, of the same name; the file is moved into its place at the end, and not on an error."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as folder:
        beside = Path(folder, path.name)
        yield beside
        os.replace(beside, path)


def write_csv(path, columns):
    """Writes `{name: values}`."""
    import csv

    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def write_columns(path, columns):
    """Writes `{name: values}` to a .csv, .parquet or .npz file."""
    if path.suffix == ".npz":
        import numpy as np

        with zipfile.ZipFile(path, "w") as archive:  # `numpy.savez` has no array by the name of `file`
            for name, values in columns.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(values), allow_pickle=False)
        return
    import pyarrow as pa
    from pyarrow import csv, parquet

    (csv.write_csv if path.suffix == ".csv" else parquet.write_table)(pa.table(columns), path)


def write_numbers(out, values, columns, name, beside):
    """Writes rows of numbers, with whatever stands beside each."""
    import numpy as np

    if out.suffix == "":
        raise click.UsageError(f"OUT must end in {', '.join(TABLE_SUFFIXES)}. Received: {out}")
    with moved_in(out) as path:
        if out.suffix == ".npy":
            np.save(path, values)
        elif out.suffix == ".npz":
            write_columns(path, {name: values, **beside})
        else:
            flat = values.reshape(len(values), -1)
            text = {name: column.tolist() for name, column in beside.items()}
            write_columns(path, {**text, **{c: flat[:, i] for i, c in enumerate(columns)}})
