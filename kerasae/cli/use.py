"""What `kerasae` does with a trained model: evaluate, figures, encode, reconstruct, sample."""

import contextlib
import itertools
import logging
from pathlib import Path

import click

from kerasae import checks, writing
from kerasae.cli import opening, shared

_logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 4096
_data_option = click.option(
    "--data", help="A dataset's name, a folder of images, or a file. Default: what was held out in training."
)


@click.command()
@click.argument("model")
@_data_option
@shared.source_options
@shared.json_option
def evaluate(model, data, as_json, **source):
    """Measure MODEL on the examples held out in training, or on --data.

    MODEL is a zoo id, a .keras file, or a folder that `kerasae train` wrote.
    """
    if data is not None:
        opening.is_path(data, **source)
    with shared.reporting(as_json) as show:
        opened = opening.open_model(model)
        from kerasae.data.files import split
        from kerasae.runs import measures

        if data is None:
            loaded = opening.held_out(opened, source["data_dir"])
            records = measures.measure(opened.recipe, opened.model, (loaded.train, loaded.test))
            num_examples, what = len(loaded.test[0]), f"{loaded.facts['data']}, held out"
        else:
            files, apply = opening.examples_of(opened, data, **source)
            values, what = files.values, data
            if opened.facts and files.fingerprint and opened.facts.get("fingerprint") == files.fingerprint:
                held_out = split(len(values), opened.recipe.data.test_fraction, opened.recipe.seed)[1]
                values, what = values[held_out], f"{data}, held out"
                _logger.info(
                    "These are the training data: measured on the %d examples that were held out.", len(values)
                )
            x = apply(values)
            records = measures.measure_each(measures.default_measurements(opened.model, x), opened.model, {"x_test": x})
            num_examples = len(x)
        show(
            {"model": model, "data": what, "num_examples": num_examples, "metrics": records},
            f"{opened.title} on {num_examples:,} examples of {what}\n{shared.metrics_table(records)}",
        )


@click.command("figures")
@click.argument("model")
@_data_option
@click.option("--folder", type=shared.PATH, required=True, help="Where to write them.")
@click.option("--dark", is_flag=True, help="Draw on a dark background.")
@shared.source_options
@shared.overwrite_option
@shared.json_option
def figures_command(model, data, folder, dark, overwrite, as_json, **source):
    """Draw every picture that applies to MODEL: codes, samples, filters and more, as PNG files.

    MODEL is a zoo id, a .keras file, or a folder that `kerasae train` wrote.
    """
    if data is not None:
        opening.is_path(data, **source)
    shared.check_new(folder, overwrite, shared.images_of)
    shared.check_apart(folder, data)
    with shared.reporting(as_json) as show:
        opened = opening.open_model(model)
        from kerasae.runs import recipes, report

        if data is None:
            loaded = opening.held_out(opened, source["data_dir"])
            (x, y), classes = loaded.test, loaded.facts["classes"]
            x_train, _ = recipes.split(opened.recipe, loaded.train[0])
        else:
            files, apply = opening.examples_of(opened, data, **source)
            x, y, classes = apply(files.values[: report.MAX_EXAMPLES]), files.labels, files.classes
            y, x_train = None if y is None else y[: len(x)], None
        view = report.View(opened.model, x, shared.class_names(y, classes), opened.history, x_train)
        with writing.together(folder, shared.images_of) as beside:
            names = list(report.save_figures(view, beside, dark))
        paths = {name: folder / f"{name}.png" for name in names}
        show({"model": model, "figures": paths}, "\n".join(map(str, paths.values())))


_from_data_to_out = shared.options(
    click.argument("model"),
    click.argument("data"),
    click.argument("out", type=shared.PATH),
    shared.source_options,
    shared.overwrite_option,
    shared.json_option,
)


@contextlib.contextmanager
def _opened(model, data, out, overwrite, as_json, **source):
    """The model and the examples that were named, once all is well: `(show, opened, files, apply)`."""
    shared.check_out(out, shared.TABLE_SUFFIXES, overwrite, data)
    opening.is_path(data, **source)
    with shared.reporting(as_json) as show:
        opened = opening.open_model(model)
        yield show, opened, *opening.examples_of(opened, data, **source)


@click.command()
@_from_data_to_out
def encode(model, out, **given):
    """Encode DATA with MODEL and write the codes to OUT: an .npy, .npz, .csv or .parquet file.

    DATA is a dataset's name, a folder of images, or an .npy, .npz, .csv, .tsv or .parquet file. It is scaled as the training data were. A
    table has one column per number of the code, z_1, z_2, …, beside file names and labels where there are any; an .npz file has them as
    arrays.
    """
    with _opened(model, out=out, **given) as (show, opened, files, apply):
        import numpy as np

        z = np.concatenate([opened.model.encode(apply(part)) for part in _parts(files.values)])
        beside = {}
        if files.names is not None:
            beside["file"] = np.asarray(files.names)
        if files.rows is not None:
            beside["row"] = files.rows
        if files.labels is not None:
            beside["label"] = shared.class_names(files.labels, files.classes)
        shared.write_numbers(out, z, [f"z_{i + 1}" for i in range(z[0].size)], "z", beside)
        show(
            {"model": model, "out": out, "shape": list(z.shape)},
            f"Wrote {z.shape[0]:,} codes of {z[0].size} numbers to {out}",
        )


@click.command()
@_from_data_to_out
def reconstruct(model, out, **given):
    """Reconstruct DATA with MODEL and write the reconstructions to OUT.

    OUT is an .npy file, a folder for PNG images, or for a table a .csv or .parquet file. Numbers are in the units of DATA; pixels lie in
    [0, 1].
    """
    with _opened(model, out=out, **given) as (show, opened, files, apply):
        named = files.fingerprint is None
        num = len(files.values)

        def rows():
            for part in _parts(files.values):
                made = opened.model.predict(apply(part), batch_size=256, verbose=0)
                yield made if named else opened.preparation.invert(made)

        _write_examples(out, rows(), num, opened.preparation, files.names, files.rows)
        show({"model": model, "out": out, "num": num}, f"Wrote {num:,} reconstructions to {out}")


@click.command()
@click.argument("model")
@click.argument("out", type=shared.PATH)
@click.option("--num", type=click.IntRange(min=1), default=64, show_default=True, help="How many to draw.")
@click.option("--seed", type=click.IntRange(min=0), help="Give one to get the same samples every time.")
@shared.overwrite_option
@shared.json_option
def sample(model, out, num, seed, overwrite, as_json):
    """Draw new examples from a MODEL with a prior, such as a variational one, and write them to OUT.

    OUT is an .npy file, a folder for PNG images, a .png file that shows all in a grid, or for a table a .csv or .parquet file.
    """
    shared.check_out(out, (*shared.TABLE_SUFFIXES, ".png"), overwrite)
    with shared.reporting(as_json) as show:
        opened = opening.open_model(model)
        if opened.model.prior is None:
            raise ValueError(
                f"{opened.title} can't make new examples: only families with a prior are trained to, such as variational. "
                "(kerasae train variational)"
            )
        checks.memory((num, *opened.preparation.shape), "float32", f"--num {num}", copies=2)
        made = opened.preparation.invert(opened.model.sample(num, seed=seed))
        if out.suffix == ".png":
            from kerasae import figures

            with writing.file(out) as beside:
                figures.save(figures.samples(made), beside)
        else:
            _write_examples(out, iter([made]), num, opened.preparation, None)
        show({"model": model, "out": out, "num": num, "seed": seed}, f"Wrote {num:,} samples to {out}")


def _parts(values):
    return (values[i : i + _ROWS_AT_ONCE] for i in range(0, len(values), _ROWS_AT_ONCE))


def _write_examples(out, parts, num, preparation, names, rows=None):
    """Writes examples, `parts` of them at a time; `rows` are their numbers where some were left out."""
    import numpy as np

    first = next(parts)
    if out.suffix == ".npy":
        with (
            writing.file(out) as path,
            open(path, "wb") as file,
        ):  # on a full disk, a memory map ends the process by a signal
            header = {"descr": first.dtype.str, "fortran_order": False, "shape": (num, *first.shape[1:])}
            np.lib.format.write_array_header_1_0(file, header)
            for part in itertools.chain([first], parts):
                file.write(np.ascontiguousarray(part, first.dtype).data)
        return
    if out.suffix:
        values = np.concatenate(list(itertools.chain([first], parts)))
        columns = preparation.columns or [f"x_{i + 1}" for i in range(values[0].size)]
        beside = {"file": np.asarray(names)} if names else {} if rows is None else {"row": rows}
        shared.write_numbers(out, values, columns, "x", beside)
        return
    if first.ndim != 4 or first.shape[-1] not in (1, 3) or first.min() < -0.5 or first.max() > 1.5:
        raise ValueError(
            f"These are no images in [0, 1], but {first.shape[1:]}: write them to an .npy, .csv or .parquet file."
        )
    digits = max(5, len(str(num - 1)))
    stems = (
        [Path(name).with_suffix("").as_posix() for name in names] if names else [f"{i:0{digits}}" for i in range(num)]
    )
    if len(set(stems)) < num:  # a.jpg and a.png
        stems = names
    with writing.together(out, shared.images_of) as beside:
        start = 0
        for part in itertools.chain([first], parts):
            pixels = np.rint(np.clip(part, 0, 1) * 255).astype("uint8")
            for stem, image in zip(stems[start:], pixels, strict=False):
                shared.write_image(beside / f"{stem}.png", image)
            start += len(part)
