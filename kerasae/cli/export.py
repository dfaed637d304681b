"""`kerasae export` and `kerasae bulk`."""

from pathlib import Path

import click

from kerasae.cli import opening, shared

_ARRAY = click.Path(exists=True, dir_okay=False)


@click.command("export")
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--format", "formats", multiple=True, help="saved_model, onnx or litert; repeat for more. Default: the first two."
)
@click.option("--opset", type=int, help="ONNX opset. Default: 21.")
@click.option("--image-input", help='"uint8": take images of 0 to 255, and scale them inside.')
@click.option("--batch-size", type=int, help="Export for this batch size alone. Default: any size.")
@click.option("--variant", "variants", multiple=True, help="float16, int8_dynamic or int8_static; repeat for more.")
@click.option("--calibration", type=_ARRAY, help=".npy file of examples from which int8_static takes its ranges.")
@click.option(
    "--examples", "x", type=_ARRAY, help=".npy file of real examples for the check, the scores and the codes."
)
@shared.array_option
@click.option("--page", is_flag=True, help="Write a web page to draw on instead; any web server can host FOLDER.")
@click.option("--denoiser", help="With --page: another model that denoises, a zoo id or a .keras file.")
@click.option("--runtime", help="With --page: the dist folder of onnxruntime-web. Default: fetched by npm.")
@click.option("--replace", is_flag=True, help="Replace the bundle or page in FOLDER.")
def export_command(model, folder, page, denoiser, runtime, replace, **options):
    """Export MODEL to FOLDER as SavedModel and ONNX, and check that the files compute what the model computes.

    MODEL is a zoo id, a .keras file, or a folder that `kerasae train` wrote.
    """
    options = {name: value for name, value in options.items() if value is not None and value != ()}
    for name, given in (("--denoiser", denoiser), ("--runtime", runtime)):
        if given and not page:
            raise click.UsageError(f"{name} belongs to --page.")
    from kerasae.data import arrays

    array = options.pop("array", None)
    for name in {"x", "calibration"} & set(options):
        options[name] = arrays.stored(options[name], array)[0]
    if page:
        if foreign := sorted(set(options) - {"x"}):
            raise click.UsageError(f"--page takes no {', '.join(foreign)}.")
        from kerasae import export

        with shared.raised_as(click.ClickException, export.ExportError):
            export.page(
                opening.open_model(model).model,
                folder,
                denoiser=denoiser and opening.open_model(denoiser).model,
                runtime=runtime,
                title=Path(model).stem,
                replace=replace,
                **options,
            )
        shared.echo(f"Wrote {folder.resolve()}. Look at it: python -m http.server --directory {folder}")
        return
    export_checked(opening.open_model(model).model, folder, replace=replace, **options)
    shared.echo(f"Wrote {folder.resolve()}")


def export_checked(model, folder, **options):
    """Exports, and prints the largest difference between Keras and each file, run in a process without Keras."""
    from kerasae import export

    with shared.raised_as(click.ClickException, export.ExportError):
        manifest = export.export(model, folder, **options)
    largest = {}
    for row in manifest["parity"]["measured"]:
        key = row["part"], row["format"]
        largest[key] = max(row["max_difference"], largest.get(key, 0.0))
    shared.echo(f"{'part':<18}{'format':<14}{'largest difference from Keras':>30}")
    for (part, form), difference in largest.items():
        shared.echo(f"{part:<18}{form:<14}{difference:>30.2g}")


@click.command()
@click.argument("bundle", type=shared.Folder())
@click.argument("inputs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.argument("output", type=shared.PATH)
@click.option("--part", default="encoder", show_default=True, help="Which part of the bundle to run.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes. Default: one per core.")
@click.option("--batch-size", type=click.IntRange(min=1), default=1024, show_default=True)
@click.option("--column", help="The Parquet column with the examples. [x, or a table's columns by name]")
@click.option("--keep", multiple=True, help='A column to copy to the output, or "all"; repeat for more. Default: id.')
@click.option("--scheduler", help="Address of a Dask scheduler. Default: run on this machine.")
@shared.overwrite_option
@shared.json_option
def bulk(bundle, inputs, output, as_json, **options):
    """Run an exported BUNDLE over many Parquet files with Dask, and write Parquet files to the folder OUTPUT.

    Call it again to continue a run that was stopped. Needs `pip install 'kerasae[bulk]'`, but no TensorFlow.
    """
    with shared.reporting(as_json) as show:
        from kerasae.export import bulk as engine

        # One input can be a folder or a pattern, and "all" is a word of its own.
        paths = [str(path) for path in inputs] if len(inputs) > 1 else str(inputs[0])
        options["keep"] = "all" if options["keep"] == ("all",) else list(options["keep"]) or None
        with shared.raised_as(click.ClickException, RuntimeError):
            result = engine.run(bundle, paths, output, **options)
        show(result, "\n".join(f"{name}: {value}" for name, value in result.items()))
