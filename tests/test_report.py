"""A report is one file, with everything in it and nothing that runs."""

import base64
import re

import numpy as np
import pytest

from kerasae import builders, report

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
    return report.View(model, digits[1][:40], np.arange(40) % 3, {"loss": [2.0, 1.0]})


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
        ("variational", {}, {"training", "latent_grid", "samples", "unit_kl", "codes"}, {"unit_variance", "denoising"}),
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
