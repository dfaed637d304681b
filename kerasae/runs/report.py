"""All the figures that a model has, and one HTML file with them and with what was measured."""

import base64
import dataclasses
import functools
import html
import logging
import string
from collections.abc import Callable

import numpy as np

from kerasae import figures

_logger = logging.getLogger(__name__)

MAX_EXAMPLES = 2000  # that figures look at: more are slow and are not told apart
_MAX_CODES = 256  # of a model whose codes are written as bytes
_NUM_CODED = 500
_STEPS = (0.25, 0.5, 1, 2, 4, 8, 16)  # of `kerasae.tasks.Codec.encode`


@dataclasses.dataclass(frozen=True)
class View:
    """What figures are drawn from: a model, examples that it was not trained on, their classes or None, its training or None, and
    examples that it was trained on or None."""

    model: object
    x: np.ndarray
    labels: np.ndarray | None = None
    history: dict | None = None
    x_train: np.ndarray | None = None

    @functools.cached_property
    def codes(self):
        return self.model.encode(self.x)

    @functools.cached_property
    def reconstruction(self):
        return self.model.predict(self.x[:10], verbose=0)

    def errors(self, x):
        """Each example's squared error."""
        made = self.model.predict(x, verbose=0)
        return np.square(x - made, dtype="float64").reshape(len(x), -1).sum(axis=1)

    @property
    def images(self):
        return self.x.ndim == 4 and self.x.shape[-1] in (1, 3)

    @property
    def coded(self):
        """Whether the codec can write the codes of these images, quickly."""
        can = self.images and self.flat and self.codes.shape[1] <= _MAX_CODES and self.x_train is not None
        return can and 0 <= min(self.x.min(), self.x_train.min()) and max(self.x.max(), self.x_train.max()) <= 1

    @property
    def flat(self):
        return self.codes.ndim == 2


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure, when there is something to see in it, and how it is drawn; both of a `View`."""

    caption: str
    applies: Callable
    draw: Callable


# name: Figure. Adding a line adds a figure to `kerasae figures`, to `kerasae train` and to the report.
FIGURES = {
    "training": Figure(
        "Every logged term by epoch; validation examples have no part in training.",
        lambda v: v.history,
        lambda v: figures.training_curves(v.history, unit=v.model.likelihood.unit),
    ),
    "reconstructions": Figure(
        "Test examples, and what the model makes of them.",
        lambda v: v.images,
        lambda v: figures.reconstructions({"input": v.x[:10], "reconstruction": v.reconstruction}),
    ),
    "errors": Figure(
        "Squared errors of examples that the model was trained on, and of test examples: where these lie further right, it knows its "
        "training examples by heart.",
        lambda v: v.x_train is not None,
        lambda v: figures.error_histograms(v.errors(v.x_train), v.errors(v.x), names=("training", "test")),
    ),
    "denoising": Figure(
        "Test examples, corrupted as in training, and what the model makes of them.",
        lambda v: v.images and v.model.corruption is not None,
        lambda v: figures.denoising(v.model, v.x[:10]),
    ),
    "codes": Figure(
        "Codes of test examples beside their principal components.",
        lambda v: v.model.code_size and v.model.code_size >= 2 and len(v.x) >= 3,
        lambda v: figures.codes_beside_pca(v.model, v.x, v.labels),
    ),
    "rate_distortion": Figure(
        "What test images cost as bytes, and how good they come back, as their codes are rounded more and more coarsely (tasks.Codec).",
        lambda v: v.coded,
        lambda v: figures.rate_distortion({"rounded codes": _rates(v)}),
    ),
    "samples": Figure(
        "New examples: decoded draws from the prior.",
        lambda v: v.images and v.model.prior is not None,
        lambda v: figures.samples(v.model.sample(64, seed=0)),
    ),
    "latent_grid": Figure(
        "What each place of the two-dimensional code decodes to.",
        lambda v: v.images and v.model.prior is not None and v.model.code_size == 2,
        lambda v: figures.latent_grid(v.model.decode),
    ),
    "traversal": Figure(
        "One code, with one latent changed at a time over the range that test examples have: the latents that vary most.",
        lambda v: v.images and v.flat and not v.model.sparse_code,
        lambda v: figures.traversal(
            v.model.decode,
            v.codes.mean(axis=0),
            values=np.quantile(v.codes, np.linspace(0.05, 0.95, 9), axis=0).T,
            latents=np.sort(np.argsort(-v.codes.var(axis=0))[:12]),
        ),
    ),
    "interpolation": Figure(
        "From one test example to another by a straight line between their codes.",
        lambda v: v.images and len(v.x) >= 2,
        lambda v: figures.interpolation(v.model, *np.split(v.x[: 2 * min(4, len(v.x) // 2)], 2)),
    ),
    "unit_kl": Figure(
        "How much each latent tells of an example, and which have collapsed.",
        lambda v: v.model.posterior is not None and len(v.x) >= 2,
        lambda v: figures.unit_kl(*v.model.encoder.predict(v.x, verbose=0)),
    ),
    "unit_variance": Figure(
        "How much each unit of the code varies, and which are dead.",
        lambda v: v.model.posterior is None and len(v.x) >= 2,
        lambda v: figures.unit_variance(v.codes, v.model.active_variance),
    ),
    "code_activations": Figure(
        "Which units a few test examples activate.",
        lambda v: v.model.sparse_code,
        lambda v: figures.code_activations(v.codes[:6], v.x[:6] if v.images else None),
    ),
    "top_images": Figure(
        "The test examples that a unit responds to most.",
        lambda v: v.images and v.flat and v.model.posterior is None,
        lambda v: figures.top_images(v.codes, v.x, v.labels),
    ),
    "filters": Figure(
        "What the encoder's first layer looks for.", lambda v: v.images, lambda v: figures.filters(v.model)
    ),
    "atoms": Figure("What the decoder's last layer paints with.", lambda v: v.images, lambda v: figures.atoms(v.model)),
    "jacobian_spectrum": Figure(
        "How strongly a small change of the input changes the code, by direction: steep where the model knows a manifold.",
        lambda v: v.model.code_size and v.model.code_size <= 256,
        lambda v: figures.jacobian_spectrum({"encoder": v.model}, v.x[:20]),
    ),
    "tangents": Figure(
        "The changes of an image that its code reacts to most.",
        lambda v: v.images and v.model.code_size and v.model.code_size <= 256,
        lambda v: figures.tangents(v.model, v.x[:5]),
    ),
}


# Of figures that others than `save_figures` draw for a report.
_MORE_CAPTIONS = {
    "scores": "Minus the scores of examples that the detector was not fitted to; what lies above the threshold is called an anomaly.",
    "oddest": "Of the examples that were held out, the oddest and the most normal, each row from its extreme on; and of the known "
    "anomalies, those that look most normal to the detector.",
}


def _rates(view):
    """`(bits a pixel, PSNR)` of test images at several steps; tables are counted on training images."""
    from kerasae import metrics, tasks

    codec = tasks.Codec(view.model).fit(view.x_train)
    x = view.x[:_NUM_CODED]
    streams = [codec.encode(x, step) for step in _STEPS]
    rates = [8 * len(stream) / np.prod(x.shape[:3]) for stream in streams]
    return rates, [metrics.psnr(x, codec.decode(stream)) for stream in streams]


def save_figures(view, folder, dark=False):
    """Draws every figure that applies, as PNG files.

    Args:
        view: `View`.
        folder: where to.
        dark: as in `kerasae.figures.theme`.

    Returns:
        `{name: path}`, in the table's order.
    """
    if len(view.x) > MAX_EXAMPLES:
        labels = None if view.labels is None else view.labels[:MAX_EXAMPLES]
        view = dataclasses.replace(view, x=view.x[:MAX_EXAMPLES], labels=labels)
    if view.x_train is not None:
        view = dataclasses.replace(view, x_train=view.x_train[:MAX_EXAMPLES])
    paths = {}
    for name, figure in FIGURES.items():
        if not figure.applies(view):
            continue
        try:
            with figures.theme(dark):
                paths[name] = figures.save(figure.draw(view), folder / f"{name}.png")
        except ValueError as error:
            # Of the user's own networks, a figure can ask for layers that they don't have.
            _logger.info("no figure %r: %s", name, error)
    return paths


def write(path, title, facts, measures, pictures, recipe):
    """Writes a report: one HTML file, pictures and all, that needs no network and runs no code.

    Args:
        path: of the file.
        title: what the model is called.
        facts: `{name: value}`, what is to be known of it, in order.
        measures: records as of `kerasae.runs.measures.measure`.
        pictures: `{name of a figure: path of a PNG file}`.
        recipe: TOML text.
    """
    escape = html.escape
    rows = [
        f"<tr><td>{escape(_called(m))}</td><td class=number>{m['value']:.4g}</td><td>{escape(m['unit'])}</td>"
        f"<td>{escape(m['protocol'])}; {m['num_examples']:,} {escape(m['split'])} examples</td></tr>"
        for m in measures
    ]
    captions = {name: figure.caption for name, figure in FIGURES.items()} | _MORE_CAPTIONS
    shown = [
        f'<figure id="{escape(name)}"><figcaption><b>{escape(name.replace("_", " "))}</b> {escape(captions[name])}</figcaption>'
        f'<img alt="{escape(captions[name])}" src="data:image/png;base64,{base64.b64encode(p.read_bytes()).decode()}"></figure>'
        for name, p in pictures.items()
    ]
    text = _PAGE.substitute(
        title=escape(title),
        facts="".join(f"<tr><th>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in facts.items()),
        measures="".join(rows),
        figures="\n".join(shown),
        recipe=escape(recipe),
    )
    path.write_text(text, encoding="utf-8")


def _called(measure):
    arguments = ", ".join(f"{k}={v}" for k, v in measure["arguments"].items())
    return measure["metric"] + (f" ({arguments})" if arguments else "")


def write_csv(path, columns):
    """Writes `{name: values}`."""
    import csv

    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


_PAGE = string.Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid #8884; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 2rem 0; overflow-x: auto; }
figcaption { margin-bottom: .5rem; }
img { max-width: 100%; background: #fff; }
pre { overflow-x: auto; padding: 1rem; border: 1px solid #8884; }
</style>
<h1>$title</h1>
<table>$facts</table>
<h2>Measured</h2>
<table><tr><th>figure</th><th class="number">value</th><th>unit</th><th>protocol</th></tr>$measures</table>
<h2>Seen</h2>
$figures
<h2>Recipe</h2>
<pre>$recipe</pre>
</html>
""")
