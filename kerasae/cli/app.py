"""The `kerasae` command. Keras and TensorFlow are imported by the commands that need them, so that the others answer at once."""

import logging
import os
import sys

import click

import kerasae
from kerasae.cli import detect, export, quickstart, shared, train, use, zoo


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(kerasae.__version__, prog_name="kerasae")
@click.option(
    "--module",
    "modules",
    metavar="NAME",
    multiple=True,
    help="A module of yours, imported first: families, kinds of networks and layers that it registers are known then.",
)
def cli(modules):
    """Autoencoders for Keras: fit one, get one ready-made, deploy one.

    MODEL is always a zoo id (`kerasae zoo list`), a .keras file, or a folder that `kerasae train` wrote. Results go to standard
    output, progress to standard error. Exit codes: 0 done, 1 error, 2 wrong usage, 130 interrupted.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    shown = logging.StreamHandler()
    shown.format = lambda record: shared.plain(record.getMessage())  # names in it may be anyone's
    logging.basicConfig(level=logging.INFO, handlers=[shown])
    for noisy in ("absl", "tensorflow", "tf2onnx", "matplotlib", "h5py", "httpx", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if modules:
        shared.import_keras()
        from kerasae.runs import recipes

        recipes.import_modules(modules)


def main():
    """Runs the command; an error at the door is one line, without a traceback."""
    try:
        cli.main(prog_name="kerasae", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except click.ClickException as error:
        error.message = shared.plain(error.message)
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        sys.exit(130)
    except MemoryError as error:
        shared.echo(f"Error: there is not enough memory. {error}".rstrip(), err=True)
        sys.exit(1)
    except (ValueError, OSError, ImportError) as error:
        shared.echo(f"Error: {error}", err=True)
        sys.exit(1)


for command in (
    train.train,
    use.evaluate,
    use.figures_command,
    use.encode,
    use.reconstruct,
    use.sample,
    export.bulk,
    detect.detect,
    quickstart.quickstart,
    zoo.zoo,
    export.export_command,
):
    cli.add_command(command)
