"""`kerasae train`."""

import contextlib
import logging
import os
import sys
import traceback
from pathlib import Path

import click

from kerasae import checks, registry, untrusted, writing
from kerasae.cli import drafts, opening, shared

_logger = logging.getLogger(__name__)


def _count(minimum):
    return {"type": click.IntRange(min=minimum), "metavar": "N"}


def _fraction(**bounds):
    return {"type": click.FloatRange(min=0, min_open=True, **bounds), "metavar": "X"}


_HELP = """Train an autoencoder, and write all there is to know about it to a folder.

\b
FAMILY is one of
{families}

Options override a recipe file. --resume continues a run that was stopped.
""".format(
    families="\n".join(f"  {name:15} {facts['purpose']}" for name, facts in registry.FAMILIES.declared().items())
)


@click.command(cls=shared.TakingColumns, options_metavar="--data DATA --folder RUN [OPTIONS]", help=_HELP)
@click.argument("what", metavar="FAMILY|RECIPE.toml", required=False)
@click.option(
    "--data", help='"digits", "mnist", …; a folder of images; .npy, .npz, .csv(.gz), .tsv or .parquet.', metavar="DATA"
)
@click.option(
    "--folder", type=shared.PATH, required=True, metavar="RUN", help="Where to write weights, report and all."
)
@click.option("--latent-dim", **_count(1), help="Size of the code. [16, or half the features where that is less]")
@click.option(
    "--hidden-units", type=shared.Numbers("N,N", ","), help="Units of each hidden layer, such as 512,256, or filters."
)
@click.option(
    "--network",
    type=click.Choice(registry.NETWORKS.declared()),
    help="Kind of network. [conv for images of more than 32 pixels, else dense]",
)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Another option of the family's builder.")
@click.option("--epochs", **_count(1), help="Passes over the data. [20 to 400: about 2,000 batches]")
@click.option("--batch-size", **_count(1), help="Of all workers together. [32; 128 from 10,000 examples on]")
@click.option("--learning-rate", **_fraction(), help="Of the optimiser. [0.001]")
@click.option("--seed", **_count(0), help="Seed of the weights, the noise and the split. [0]")
@click.option("--validation", **_count(0), help="Training examples to hold out for the curves. [a tenth]")
@click.option("--test-fraction", **_fraction(max=1, max_open=True), help="Of your own data, to hold out. [0.1]")
@shared.reading_options
@click.option(
    "--scaling",
    metavar="WAY",
    type=click.Choice(["auto", "none", "minmax", "standard"]),
    help="How numbers are scaled: auto, none, minmax or standard.",
)
@click.option(
    "--workers", **_count(1), help="Train in so many processes on this machine. (For several machines, set TF_CONFIG.)"
)
@click.option(
    "--wait",
    type=click.FloatRange(min=1),
    metavar="X",
    default=300,
    help="Seconds to wait for the other workers. [300]",
)
@click.option("--resume", is_flag=True, help="Continue a stopped run after its last whole epoch.")
@click.option("--overwrite", is_flag=True, help="Start again, and replace the run in the folder.")
@shared.json_option
@shared.data_dir_option
@click.option("--local-worker", is_flag=True, hidden=True)
def train(what, data, folder, settings, workers, wait, resume, overwrite, as_json, data_dir, local_worker, **options):
    from kerasae.runs import workers as processes

    task = processes.task()
    if task and workers:
        raise click.UsageError("--workers starts processes, and TF_CONFIG says that this is one already: choose.")
    if what is None and not resume:
        raise click.UsageError("Train what? Give a family, such as variational, or a recipe file.")
    with shared.reporting(as_json) as show:
        if local_worker:
            processes.watch_parent()
        finished = _claim(folder, resume, overwrite, task)
        if finished and (what is None or resume):
            _logger.info("%s is finished already.", folder)
            show(*_trained(folder))
            return
        try:
            writing.writable(folder, "--folder")
            with contextlib.nullcontext() if task else writing.locked(folder, "training"):
                _train(what, data, folder, settings, workers, wait, overwrite, data_dir, local_worker, task, options)
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()  # of what failed at the door nothing stays
        if task is None or (task[0] == 0 and not local_worker):
            show(*_trained(folder))


def _claim(folder, resume, overwrite, task):
    """Whether the run in the folder is finished; raises where it holds what may not be touched."""
    from kerasae.runs import checkpoints, workers

    if resume and overwrite:
        raise click.UsageError("--resume goes on, --overwrite starts again: choose.")
    if folder.exists() and not folder.is_dir():
        raise click.ClickException(f"{folder} is a file. Choose another --folder.")
    writing.recover(folder)
    own = workers.checkpoint(folder, task[0]) if task else folder / checkpoints.CHECKPOINT
    begun = (own / "run.json").is_file()
    finished = checkpoints.is_finished(folder) and not begun
    held = [name for name in writing.held(folder) if task is None or not name.startswith(checkpoints.CHECKPOINT)]
    if overwrite:
        if held and not checkpoints.files_of(folder):
            raise click.ClickException(
                f"{folder} holds no run, but {checks.listed(held)}: nothing of that is replaced. Choose another --folder."
            )
        return False
    if resume:
        if "metrics.json" in held and not (begun or finished or task):
            raise click.ClickException(
                f"{folder / 'metrics.json'} is damaged, or not of a run: nothing can go on from it."
            )
        if held and not (begun or finished or task):
            raise click.ClickException(f"There is no run in {folder} to resume.")
        return finished
    if begun:
        raise click.ClickException(
            f"{folder} holds an unfinished run: --resume goes on with it, --overwrite starts again."
        )
    if held:
        what = "a finished run" if finished else f"other files: {checks.listed(held)}"
        raise click.ClickException(
            f"{folder} is not empty, it holds {what}. Choose another --folder"
            + (", or --overwrite." if finished else ".")
        )
    return False


def _train(what, data, folder, settings, workers, wait, overwrite, data_dir, local_worker, task, options):
    from kerasae.runs import checkpoints, examples, recipes, training
    from kerasae.runs import workers as processes

    begun = (processes.checkpoint(folder, task[0]) if task else folder / checkpoints.CHECKPOINT) / "run.json"
    recipe = None
    if what is None:
        if not begun.is_file():
            raise click.ClickException(f"There is no run in {folder} to resume.")
        recipe = checkpoints.begun_recipe(begun.parent)
        if given := [f"--{n.replace('_', '-')}" for n, v in options.items() if v] + ["--set"] * bool(settings):
            raise click.UsageError(f"--resume goes on as the run was begun: {given[0]} can't be changed.")
    else:
        if what.endswith(".toml"):
            recipe = recipes.read(what)
        changes, draft = drafts.draft(what, recipe, data, settings, options)
        shared.check_apart(folder, draft.data.path)
    shared.import_keras()
    # Before anything else of TensorFlow, as it wants.
    strategy = processes.strategy(*task, wait) if task else None
    if what is None:
        recipes.import_modules(recipe.modules)
        loaded = examples.load(recipe, data_dir)
    else:
        with shared.raised_as(click.UsageError, *drafts.usage_errors(recipe, settings)):
            recipes.check(draft)
        with opening.dataset_errors(data):
            likelihood_is_open = recipe is None and drafts.leaves_likelihood_open(draft)
            loaded = examples.load(draft, data_dir, False if likelihood_is_open else None)
        recipe = drafts.completed(changes, loaded, all_open=recipe is None)
    facts = loaded.facts
    # The process that started a local worker has said so.
    _logger.log(logging.DEBUG if local_worker else loaded.weight, loaded.line)
    _logger.log(
        logging.DEBUG if local_worker else logging.INFO,
        "%s: %s",
        recipe.family,
        ", ".join(f"{name}={value}" for name, value in recipe.model.items()),
    )
    fingerprint = facts.get("fingerprint")
    if strategy is not None:
        checkpoint = processes.checkpoint(folder, task[0])
        _train_as_worker(strategy, recipe, loaded, checkpoint, fingerprint, task[0], overwrite)
        if task[0] == 0 and not local_worker:
            _finish_elsewhere(folder, data_dir)
        return
    if overwrite:
        for state in (folder / checkpoints.CHECKPOINT).glob("worker-*"):
            writing.remove(state)
    if workers is not None and workers > 1:
        for i in range(workers):
            checkpoints.begin(processes.checkpoint(folder, i), recipe, fingerprint, overwrite)
        overwrite = False
        command = ["train", "--folder", str(folder), "--resume", "--local-worker", "--wait", str(wait)]
        command += ["--data-dir", str(data_dir)] if data_dir else []
        with shared.raised_as(click.ClickException, processes.WorkerError):
            processes.run(folder, workers, command)
    with _stopping_names_resume(folder):
        training.run(
            recipe,
            folder,
            verbose=shared.verbose(),
            complete=_complete(recipe),
            loaded=loaded,
            start_again=overwrite,
        )


@contextlib.contextmanager
def _stopping_names_resume(folder):
    """Where the run in the folder is stopped by Ctrl-C, names the command that goes on with it."""
    try:
        yield
    except KeyboardInterrupt:
        from kerasae.runs.checkpoints import CHECKPOINT

        if (folder / CHECKPOINT / "run.json").is_file():
            shared.echo(f"\nStopped. Go on with: kerasae train --resume --folder {folder}", err=True)
        raise


def _train_as_worker(strategy, recipe, loaded, checkpoint, fingerprint, index, overwrite):
    import tensorflow as tf

    from kerasae.runs import checkpoints, training
    from kerasae.runs import workers as processes

    checkpoints.begin(checkpoint, recipe, fingerprint, overwrite)
    try:
        training.train(recipe, loaded.train[0], checkpoint, 0 if index else shared.verbose(), fingerprint, strategy)
    except processes.WorkerError as error:
        _end(str(error))
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError):
        _end("A worker is gone, or gave no sign of life for a minute. Start all again, with --resume.")
    except BaseException:
        traceback.print_exc()
        _end("This worker stopped. Start all again, with --resume.")


def _end(message):
    """Ends the process at once: what is left of the cluster would wait for the one that is gone."""
    shared.echo(f"Error: {message}", err=True)
    sys.stderr.flush()
    os._exit(1)


def _finish_elsewhere(folder, data_dir):
    """Measures and draws in a process that knows of no workers: what they have left, nothing there may wait for."""
    import subprocess

    from kerasae.runs.workers import COMMAND

    command = [*COMMAND, "train", "--folder", str(folder), "--resume", "--json"]
    command += ["--data-dir", str(data_dir)] if data_dir else []
    environment = {name: value for name, value in os.environ.items() if name != "TF_CONFIG"}
    if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False).returncode:
        raise click.ClickException(
            f"Trained, but not measured. Try: kerasae train --resume --folder {folder}, without TF_CONFIG."
        )


def _complete(recipe):
    def complete(beside, model, loaded, history, facts):
        from kerasae.runs import recipes, report

        x, y = loaded.test
        _logger.info("drawing …")
        x_train, _ = recipes.split(recipe, loaded.train[0])
        view = report.View(model, x, shared.class_names(y, loaded.facts["classes"]), history, x_train)
        pictures = report.save_figures(view, beside / "figures")
        report.write_csv(
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
    measured = {"metric": str, "value": (int, float), "unit": str}
    facts = untrusted.json(folder / "metrics.json", {"metrics": [measured]})
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    result = {"folder": str(folder.resolve()), **facts, "files": files}
    text = f"""{shared.metrics_table(facts["metrics"])}

In {folder.resolve()}:
  report.html    everything in one file, for a browser
  figures/       {", ".join(Path(f).stem for f in files if f.startswith("figures"))}
  model.keras    kerasae encode | reconstruct | sample | evaluate | export {folder}
  recipe.toml    kerasae train {folder}/recipe.toml trains it again"""
    return result, text
