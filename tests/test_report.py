"""A report is one file, with everything in it and nothing that runs."""

import base64
import dataclasses
import re

import numpy as np
import pytest

import kerasae
from kerasae import builders
from kerasae.runs import report

RECORD = {
    "metric": "squared_error",
    "arguments": {},
    "value": 1.25,
    "unit": "squared <b>",
    "protocol": "of test & others",
    "num_examples": 1000,
    "split": "test",
}


def view(digits, builder="variational", **kwargs):
    model = getattr(builders, builder)((8, 8, 1), latent_dim=kwargs.pop("latent_dim", 2), hidden_units=(8,), **kwargs)
    model.compile()
    return report.View(model, digits[1][:40], np.arange(40) % 3, {"loss": [2.0, 1.0]}, digits[0][:60])


def test_a_report_holds_everything_escaped(tmp_path):
    from PIL import Image

    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    path = tmp_path / "report.html"
    report.write(
        path, "<script>x</script>", {"data": "a&b.csv"}, [RECORD], {"samples": tmp_path / "a.png"}, 'x = "</pre>$y"'
    )
    text = path.read_text()
    assert "<script" not in text
    assert "a&amp;b.csv" in text
    assert "squared &lt;b&gt;" in text
    assert "x = &quot;&lt;/pre&gt;$y&quot;" in text
    assert "1.25" in text
    (image,) = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert base64.b64decode(image) == (tmp_path / "a.png").read_bytes()
    assert not re.search(r'(src|href)="(?!data:)', text)  # complete in itself


@pytest.mark.parametrize(
    ("builder", "options", "drawn", "not_drawn"),
    [
        (
            "variational",
            {},
            {"training", "errors", "rate_distortion", "latent_grid", "samples", "unit_kl", "codes"},
            {"unit_variance", "denoising"},
        ),
        ("denoising", {}, {"denoising", "unit_variance", "filters", "atoms", "tangents"}, {"samples", "unit_kl"}),
        ("k_sparse", {"latent_dim": 6, "k": 2}, {"code_activations", "top_images"}, {"traversal", "latent_grid"}),
    ],
)
def test_figures_that_apply_are_drawn(builder, options, drawn, not_drawn, digits, tmp_path):
    paths = report.save_figures(view(digits, builder, **options), tmp_path)
    assert drawn <= set(paths)
    assert not not_drawn & set(paths)
    assert all(path.stat().st_size > 1000 for path in paths.values())


def test_of_a_table_no_images_are_drawn(rng, tmp_path):
    model = builders.undercomplete((6,), latent_dim=2, hidden_units=(8,))
    model.compile()
    paths = report.save_figures(report.View(model, rng.normal(size=(30, 6)).astype("float32")), tmp_path)
    assert set(paths) == {"codes", "unit_variance", "jacobian_spectrum"}


def test_errors_of_training_and_test_examples_are_drawn_apart(digits):
    seen = view(digits, "undercomplete")
    figure = report.FIGURES["errors"].draw(seen)
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["training (60)", "test (40)"]
    expected = np.square(seen.x - seen.model.predict(seen.x, verbose=0)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(seen.errors(seen.x), expected, rtol=1e-5)
    shares, edges, _ = ax.patches[1].get_data()
    np.testing.assert_allclose(shares, 100 * np.histogram(expected, edges)[0] / 40)


def test_coarser_codes_cost_less(digits):
    seen = view(digits, "undercomplete", latent_dim=6)
    figure = report.FIGURES["rate_distortion"].draw(seen)
    rates = figure.axes[0].lines[0].get_xdata()
    codec = kerasae.tasks.Codec(seen.model).fit(seen.x_train)
    assert sorted(codec.bits_per_pixel(seen.x, step) for step in (0.25, 0.5, 1, 2, 4, 8, 16)) == pytest.approx(rates)
    worse, best = figure.axes[0].lines[0].get_ydata()[[0, -1]]
    assert worse < best


def test_without_training_examples_nothing_is_compared_with_them(digits):
    seen = dataclasses.replace(view(digits), x_train=None)
    assert not report.FIGURES["errors"].applies(seen)
    assert not report.FIGURES["rate_distortion"].applies(seen)
    dark = dataclasses.replace(view(digits), x=digits[1][:40] - 0.5)  # the codec takes pixels
    assert not report.FIGURES["rate_distortion"].applies(dark)
