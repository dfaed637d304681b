"""What the commands share: options, models and data that were named, results shown and written.

Results go to standard output, as text or with `--json` as one object; progress and logs go to standard error. Keras and TensorFlow are
imported by the commands once what they were told has been looked at.
"""

import contextlib
import functools
import json
import math
import os
import sys
import tomllib
import zipfile
from pathlib import Path

import click

from kerasae import checks, writing
from kerasae.runtime import plain


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


class Folder(click.Path):
    """A folder that is there, also where a process was killed while it was replaced."""

    def __init__(self):
        super().__init__(exists=True, file_okay=False, path_type=Path)

    def convert(self, value, param, ctx):
        writing.recover(value)
        return super().convert(value, param, ctx)


def options(*decorators):
    """Several of Click's decorators as one."""
    return lambda command: functools.reduce(lambda made, decorator: decorator(made), reversed(decorators), command)


_IMAGE_SUFFIXES = (".png",)  # that a folder of images would be read with
TABLE_SUFFIXES = (".npy", ".npz", ".csv", ".parquet")  # that numbers are written to
PATH = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
data_dir_option = click.option(
    "--data-dir", type=PATH, metavar="DIR", help="Folder of prepared tensorflow-datasets. [$TFDS_DATA_DIR]"
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what is there.")
array_option = click.option("--array", metavar="NAME", help="Which array of an .npz file.")
skip_option = click.option(
    "--skip-unreadable", is_flag=True, help="Leave out images that can't be read, rows with gaps, and columns of text."
)
columns_option = click.option("--columns", metavar="A,B", help="Use only these columns of a table.")
# How a text table is written, where what it looks like misleads.
table_options = options(
    click.option("--header/--no-header", default=None, help="Whether a table's first line names the columns."),
    click.option("--decimal", type=click.Choice([".", ","]), help="The sign of decimals in a table."),
    click.option("--encoding", metavar="NAME", help="A table's encoding, such as latin-1."),
    click.option("--separator", metavar="CHARACTER", help='Between the cells of a table; "tab" is one too.'),
)
_labels_option = click.option(
    "--labels", metavar="NAME", help="Where the classes are: a column or an .npz file's array."
)
# How DATA is read for a model that there is: keywords that `opening.examples_of` takes.
source_options = options(
    click.option(
        "--split",
        type=click.Choice(["train", "test"]),
        default="test",
        show_default=True,
        help="Which part of a dataset by name.",
    ),
    array_option,
    columns_option,
    _labels_option,
    skip_option,
    table_options,
    data_dir_option,
)
# How DATA is read that something is fitted to: keywords that `reading` takes.
reading_options = options(
    click.option("--image-size", type=Numbers("HxW", "x"), help="Scale and crop images to this size: 64 or 48x64."),
    click.option("--color", type=click.Choice(["grey", "rgb"]), help="How images are read. [grey if all are grey]"),
    skip_option,
    columns_option,
    click.option("--drop", multiple=True, metavar="COLUMN", help="Leave this column out, or several: a b, or a,b."),
    array_option,
    _labels_option,
    table_options,
)


class TakingColumns(click.Command):
    """A command whose `--drop a b` means `--drop a --drop b`, where `b` can be nothing else."""

    def parse_args(self, ctx, args):
        args = list(args)
        # A word too many, after the column of a --drop, is another column.
        while self.make_parser(ctx).parse_args(list(args))[1]:
            words = zip(args, args[2:], strict=False)
            place = next((i for i, (a, b) in enumerate(words) if a == "--drop" and not b.startswith("-")), None)
            if place is None:
                break
            args.insert(place + 2, "--drop")
        return super().parse_args(ctx, args)


def reading(given):
    """The given ones among the keywords of `reading_options`, as `kerasae.data.files.read` wants them."""
    from kerasae.data import files

    def is_given(name):
        return given.get(name) is not None if name == "header" else bool(given.get(name))

    given = {name: given[name] for name in files.OPTIONS if is_given(name)}
    if "image_size" in given:
        size = given["image_size"]
        given["image_size"] = list(size) * 2 if len(size) == 1 else size
    if isinstance(given.get("columns"), str):
        given["columns"] = [c.strip() for c in given["columns"].split(",")]
    if "drop" in given:
        given["drop"] = list(given["drop"])
    return given


def echo(text, **options):
    """`click.echo` of `plain` text."""
    click.echo(plain(text), **options)


@contextlib.contextmanager
def raised_as(kind, *errors):
    """Raises errors of these classes as `kind`, one of Click's: it is said in one line, and has an exit code."""
    try:
        yield
    except errors as error:
        raise kind(str(error)) from error


@contextlib.contextmanager
def reporting(as_json):
    """Sends what is printed meanwhile to standard error; gives a function that prints the result."""
    out = sys.stdout

    def show(result, text):
        echo(json.dumps(_finite(result), indent=None) if as_json else text, file=out)

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


def class_names(y, classes):
    """Labels by the names of their classes, where they have some."""
    import numpy as np

    return None if y is None else np.asarray(classes)[y] if classes else y


def setting(text):
    """`(name, value)` of NAME=VALUE, the value as TOML has it, or Python's True and False."""
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--set takes NAME=VALUE. Received: {text!r}")
    try:
        value = value.strip().lower() if value.strip() in ("True", "False") else value
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value  # a bare word


def metrics_table(records):
    """Measures as text, a line each."""
    width = max([len(r["metric"]) for r in records], default=0)
    return "\n".join(f"{r['metric']:<{width}}  {r['value']:>12.4f}  {r['unit']}" for r in records)


def check_new(folder, overwrite, ours):
    """Raises on a folder that holds something that may not be replaced, or is a file.

    Args:
        folder: its path.
        overwrite: whether what this command wrote there earlier may be replaced; other files stay.
        ours: function of the folder that gives the names of that.
    """
    if folder.exists() and not folder.is_dir():
        raise click.ClickException(f"{folder} is a file, and a folder is needed.")
    writing.recover(folder)
    held = [name for name in writing.held(folder) if not name.startswith(".checkpoint-")]  # of what was stopped
    if not held:
        return
    if not overwrite:
        raise click.ClickException(f"{folder} is not empty. Choose another folder, or --overwrite.")
    if not set(ours(folder)) & set(held):
        pictures = all(name.endswith(".png") for name in held)
        hint = " PNG files of earlier versions of kerasae don't say who wrote them: if these are such, remove them yourself."
        raise click.ClickException(
            f"{folder} holds nothing that this command wrote, but {checks.listed(held)}: nothing of that is replaced. Choose another "
            f"folder.{hint * pictures}"
        )


def check_apart(out, *inputs, around=False):
    """Raises on an OUT that is one of the inputs, lies in one, or holds one.

    Args:
        out: path of a file or folder to write.
        *inputs: paths of files and folders to read, None, or names of something else.
        around: whether it may hold one.
    """
    place = out.resolve()
    for given in inputs:
        path = Path(given or "").expanduser()
        if given is None or not path.exists():
            continue
        path = path.resolve()
        inside = path in place.parents and (not place.suffix or place.suffix.lower() in _IMAGE_SUFFIXES)
        if (
            path == place
            or (place in path.parents and not around)
            or inside
            or (place.exists() and place.samefile(path))
        ):
            raise click.ClickException(
                f"{out} {'lies in' if inside else 'is, or holds,'} {given}, which is read: what is written there could destroy it, or be "
                "taken for more of it. Choose another place."
            )


def check_out(out, suffixes, overwrite, data=None):
    """Raises at once on an OUT that can't be written, or would spoil DATA."""
    if out.suffix and out.suffix not in suffixes:
        raise click.UsageError(f"OUT must end in {', '.join(suffixes)}, or name a folder. Received: {out}")
    if out.suffix == "":
        check_new(out, overwrite, images_of)
    elif out.is_dir():
        raise click.ClickException(f"{out} is a folder.")
    elif out.exists() and not overwrite:
        raise click.ClickException(f"{out} is there already. Choose another name, or --overwrite.")
    if not out.parent.is_dir():
        raise click.ClickException(f"There is no folder {out.parent} to write into.")
    if not os.access(out.parent, os.W_OK):
        raise click.ClickException(f"Can't write into {out.parent}.")
    check_apart(out, data)


_SOFTWARE = {"Software": "kerasae"}  # what PNG files say of themselves


def images_of(folder):
    """Names of the PNG files in a folder that `write_image` wrote."""
    from PIL import Image

    found = set()
    for name in writing.held(folder):
        if name.endswith(".png"):
            with contextlib.suppress(Exception), Image.open(folder / name) as image:
                if image.info.items() >= _SOFTWARE.items():
                    found.add(name)
    return found


def write_image(path, pixels):
    """Writes bytes, `(height, width, 1 or 3)`, as a PNG file."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    facts = PngInfo()
    for name, value in _SOFTWARE.items():
        facts.add_text(name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path, pnginfo=facts)


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
    with writing.file(out) as path:
        if out.suffix == ".npy":
            np.save(path, values)
        elif out.suffix == ".npz":
            write_columns(path, {name: values, **beside})
        else:
            flat = values.reshape(len(values), -1)
            text = {name: column.tolist() for name, column in beside.items()}
            write_columns(path, {**text, **{c: flat[:, i] for i, c in enumerate(columns)}})
