"""What the figures hold: their pictures, points, lines and names, on scikit-learn's digits."""

import doctest
import os

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from kerasae import figures

GAP = 1  # between 8 x 8 images


@pytest.fixture(scope="module")
def x():
    return (load_digits().images / 16).astype("float32")


@pytest.fixture(scope="module")
def labels():
    return load_digits().target


@pytest.fixture(scope="module")
def codes(x):
    z = PCA(3).fit_transform(x.reshape(len(x), -1))
    return {"autoencoder": z[:, :2], "PCA": z[:, 1:]}


@pytest.fixture(autouse=True)
def pyplot_stays_empty():
    plt.close("all")
    yield
    assert plt.get_fignums() == []


def picture(figure):
    """The one picture of a figure of images, RGBA."""
    (ax,) = figure.axes
    (image,) = ax.images
    return np.asarray(image.get_array())


def tile(array, row, column, size=8):
    """RGB of one image, which must be opaque."""
    top, left = row * (size + GAP), column * (size + GAP)
    rgba = array[top : top + size, left : left + size]
    assert (rgba[..., 3] == 1).all()
    return rgba[..., :3]


def as_rgb(image):
    return np.repeat(np.reshape(image, (8, 8, 1)), 3, axis=2)


def drawn_inside(figure):
    """Draws, and checks that all text is whole within the figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    drawn = [(ax, ax.get_tightbbox(renderer)) for ax in figure.axes]
    drawn += [(legend, legend.get_window_extent(renderer)) for legend in figure.legends]
    for artist, box in drawn:
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, artist
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, artist


def test_long_row_names_are_whole(x):
    drawn_inside(figures.reconstructions({"input": x, "principal components, 30 of them": x}))


def test_docstring_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(figures)
    assert result.attempted >= 6
    assert result.failed == 0


# Saving


def test_save_writes_a_png_of_the_figures_size(x, tmp_path):
    figure = figures.samples(x[:9])
    path = figures.save(figure, tmp_path / "new" / "samples.png")
    assert path == tmp_path / "new" / "samples.png"
    pixels = matplotlib.image.imread(path)
    width, height = (figure.get_size_inches() * 150).astype(int)
    assert pixels.shape == (height, width, 4)
    assert (pixels[..., 3] == 1).all()  # opaque, or dark text vanishes on a dark page
    assert pixels[..., 0].std() > 0.2  # and not blank
    assert os.listdir(path.parent) == ["samples.png"]


def test_save_lets_others_read(x, tmp_path):
    (tmp_path / "plain").touch()
    path = figures.save(figures.samples(x[:1]), tmp_path / "samples.png")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_save_replaces_whole_or_not_at_all(x, tmp_path, monkeypatch):
    path = figures.save(figures.samples(x[:1]), tmp_path / "samples.png")
    before = path.read_bytes()
    figure = figures.samples(x[:16])

    def fail_half_way(file, **_):
        file.write_bytes(b"\x89PNG half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(figure, "savefig", fail_half_way)
        with pytest.raises(OSError, match="disk full"):
            figures.save(figure, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["samples.png"]
    figures.save(figure, str(path))
    assert path.read_bytes() != before


@pytest.mark.parametrize("name", ["samples.jpg", "samples"])
def test_save_wants_a_png(x, tmp_path, name):
    with pytest.raises(ValueError, match=r"must end in \.png\. Received: .*samples"):
        figures.save(figures.samples(x[:1]), tmp_path / name)


# Images


@pytest.mark.parametrize("num_images", [1, 4, 10])
def test_reconstructions_shows_every_row_in_order(x, num_images, caplog):
    corrupted = x + np.random.default_rng(0).normal(0, 0.5, x.shape)
    rows = {"clean": x, "corrupted": corrupted[..., None], "denoised": x**2}
    figure = figures.reconstructions(rows, num_images)
    array = picture(figure)
    assert array.shape == (3 * 8 + 2 * GAP, num_images * 8 + (num_images - 1) * GAP, 4)
    for row, images in enumerate(rows.values()):
        for column in range(num_images):
            expected = as_rgb(np.clip(images[column], 0, 1))
            np.testing.assert_allclose(tile(array, row, column), expected, atol=1e-7)
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(rows)
    # Each name stands level with the middle of its row.
    np.testing.assert_allclose(ax.get_yticks(), [3.5 + row * (8 + GAP) for row in range(3)])
    assert len(ax.get_xticks()) == 0
    drawn_inside(figure)
    assert caplog.records == []  # matplotlib would warn of values outside [0, 1]


def test_images_stand_apart(x):
    array = picture(figures.samples(np.ones((4, 8, 8))))
    assert (array[8, :, 3] == 0).all()
    assert (array[:, 8, 3] == 0).all()
    assert array[..., 3].sum() == 4 * 64


def test_reconstructions_shows_what_there_is(x):
    assert picture(figures.reconstructions({"input": x[:3]}, 10)).shape == (8, 3 * 8 + 2 * GAP, 4)


def test_colour_images_keep_their_channels():
    images = np.random.default_rng(0).random((5, 8, 8, 3))
    array = picture(figures.reconstructions({"input": images, "grey": images.mean(axis=3)}))
    np.testing.assert_allclose(tile(array, 0, 4), images[4], atol=1e-7)
    np.testing.assert_allclose(tile(array, 1, 4), as_rgb(images[4].mean(axis=2)), atol=1e-7)


def test_oblong_images_are_not_distorted():
    figure = figures.samples(np.random.default_rng(0).random((6, 20, 10)), columns=3)
    gap = 1
    assert picture(figure).shape == (2 * 20 + gap, 3 * 10 + 2 * gap, 4)
    assert figure.axes[0].get_aspect() == 1


@pytest.mark.parametrize(
    ("n", "columns", "shape"), [(9, None, (3, 3)), (10, None, (3, 4)), (10, 3, (4, 3)), (2, 5, (1, 2))]
)
def test_samples_fills_its_grid_row_by_row(x, n, columns, shape):
    array = picture(figures.samples(x[:n, ..., None], columns))
    assert array.shape[:2] == tuple(side * 8 + (side - 1) * GAP for side in shape)
    for i in range(n):
        np.testing.assert_allclose(tile(array, *divmod(i, shape[1])), as_rgb(x[i]), atol=1e-7)
    assert array[..., 3].sum() == n * 64  # nothing after the last


def test_latent_grid_decodes_the_quantiles_of_the_prior():
    seen = []

    def decode(z):
        seen.append(z)
        # Pixel (0, 0) shows z_1 and pixel (0, 1) shows z_2.
        images = np.zeros((len(z), 8, 8, 1))
        images[:, 0, :2, 0] = z / 4 + 0.5
        return images

    figure = figures.latent_grid(decode, n=5, quantiles=(0.1, 0.9))
    (z,) = seen
    assert z.shape == (25, 2)
    assert z.dtype == "float32"
    quantiles = [-1.281552, -0.524401, 0, 0.524401, 1.281552]  # of 0.1, 0.3, 0.5, 0.7, 0.9
    array = picture(figure)
    for row in range(5):
        for column in range(5):
            shown = (tile(array, row, column)[0, :2, 0] - 0.5) * 4
            # z_1 grows to the right, z_2 upwards.
            np.testing.assert_allclose(shown, [quantiles[column], quantiles[4 - row]], atol=1e-5)
    ax = figure.axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$z_1$", "$z_2$")
    assert [text.get_text() for text in ax.get_xticklabels()] == ["-1.28", "0.00", "1.28"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["1.28", "0.00", "-1.28"]
    assert list(ax.get_xticks()) == [3.5, 3.5 + 2 * (8 + GAP), 3.5 + 4 * (8 + GAP)]
    drawn_inside(figure)


def test_latent_grid_defaults_are_15_by_15_from_5_to_95_percent(x):
    seen = []
    figure = figures.latent_grid(lambda z: seen.append(z) or x[: len(z)])
    assert seen[0].shape == (225, 2)
    np.testing.assert_allclose([seen[0].min(), seen[0].max()], [-1.644854, 1.644854], atol=1e-5)
    np.testing.assert_allclose(tile(picture(figure), 14, 14), as_rgb(x[224]), atol=1e-7)


@pytest.mark.parametrize(
    "draw",
    [
        lambda x, ax: figures.reconstructions({"input": x}, 4, ax=ax),
        lambda x, ax: figures.samples(x[:4], ax=ax),
        lambda x, ax: figures.latent_grid(lambda z: x[: len(z)], n=2, ax=ax),
    ],
)
def test_images_are_drawn_in_given_axes(x, draw):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert draw(x, right) is figure
    assert len(right.images) == 1
    assert len(left.images) == 0


@pytest.mark.parametrize(
    "draw",
    [
        lambda images: figures.reconstructions({"input": images}),
        figures.samples,
        lambda images: figures.latent_grid(lambda z: images, n=2),
    ],
)
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 64)), r"must hold images of shape .*\(4, 64\)"),
        (np.zeros((4, 8, 8, 2)), r"must hold images of shape .*\(4, 8, 8, 2\)"),
        (np.zeros((4, 8, 8, 3, 1)), "must hold images of shape"),
        (np.zeros((0, 8, 8)), "is empty"),
        (np.full((4, 8, 8), np.nan), "holds NaN"),
        (np.full((4, 8, 8), 255, "uint8"), r"must lie in \[0, 1\].*uint8 up to 255.*Divide by 255"),
        (np.full((4, 8, 8), "a"), "must hold real numbers"),
    ],
)
def test_images_are_checked(draw, images, message):
    with pytest.raises(ValueError, match=message):
        draw(images)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: figures.reconstructions({}), "`rows` must be a dict"),
        (lambda x: figures.reconstructions(x), "`rows` must be a dict"),
        (lambda x: figures.reconstructions({"a": x, "b": x[1:]}), "as many images"),
        (lambda x: figures.reconstructions({"a": x, "b": x[:, 1:]}), "the same size"),
        (lambda x: figures.reconstructions({"a": x}, 0), "`num_images` must be a whole number"),
        (lambda x: figures.samples(x[:4], columns=0), "`columns` must be a whole number"),
        (lambda x: figures.samples(x[:4], columns=1.5), "`columns` must be a whole number"),
        (lambda x: figures.latent_grid(lambda z: x[:4], n=1), "`n` must be at least 2"),
        (lambda x: figures.latent_grid(lambda z: x[:5], n=2), "must return 4 images. Received 5"),
        (lambda x: figures.latent_grid(lambda z: x[:4], 2, (0, 1)), "`quantiles` must have"),
        (lambda x: figures.latent_grid(lambda z: x[:4], 2, (0.9, 0.1)), "`quantiles` must have"),
    ],
)
def test_image_settings_are_checked(x, call, message):
    with pytest.raises(ValueError, match=message):
        call(x)


# Codes


def points(ax):
    """(x, y, colour) of every point, in the order of x and y."""
    rows = []
    for collection in ax.collections:
        offsets = np.asarray(collection.get_offsets())
        colours = np.broadcast_to(collection.get_facecolors(), (len(offsets), 4))
        rows += [(*offset, to_hex(colour)) for offset, colour in zip(offsets, colours, strict=True)]
    return sorted(rows)


def test_codes_2d_colours_every_point_by_its_class(codes, labels):
    figure = figures.codes_2d(codes, labels)
    assert [ax.get_title() for ax in figure.axes] == ["autoencoder", "PCA"]
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "class"
    assert [text.get_text() for text in legend.get_texts()] == [str(i) for i in range(10)]
    colours = [to_hex(handle.get_color()) for handle in legend.legend_handles]
    assert len(set(colours)) == 10
    for ax, z in zip(figure.axes, codes.values(), strict=True):
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("code 1", "code 2")
        expected = sorted((*row, colours[label]) for row, label in zip(z, labels, strict=True))
        drawn = points(ax)
        assert len(drawn) == len(z)
        np.testing.assert_allclose([p[:2] for p in drawn], [p[:2] for p in expected], rtol=1e-6)
        assert [p[2] for p in drawn] == [p[2] for p in expected]
        assert [text.get_text() for text in ax.texts] == [str(i) for i in range(10)]
        for label, text in enumerate(ax.texts):
            np.testing.assert_allclose(text.xy, np.median(z[labels == label], axis=0))
    drawn_inside(figure)


def test_codes_2d_hides_no_class_behind_the_next(codes, labels):
    order = np.argsort(labels, kind="stable")
    figure = figures.codes_2d({"sorted": codes["PCA"][order]}, labels[order])
    (scatter,) = figure.axes[0].collections
    last = [to_hex(colour) for colour in scatter.get_facecolors()[-200:]]
    assert len(set(last)) == 10


def test_codes_2d_without_labels(codes):
    figure = figures.codes_2d({"PCA": codes["PCA"]})
    (ax,) = figure.axes
    drawn = points(ax)
    assert len(drawn) == len(codes["PCA"])
    assert len({colour for *_, colour in drawn}) == 1
    assert len(ax.texts) == 0
    assert figure.legends == []


def test_codes_2d_tells_more_classes_than_colours_apart():
    z = np.random.default_rng(0).normal(size=(240, 2))
    names = np.array([f"class {i % 24:02}" for i in range(240)])
    figure = figures.codes_2d({"z": z}, names)
    handles = figure.legends[0].legend_handles
    assert len({(to_hex(handle.get_color()), handle.get_marker()) for handle in handles}) == 24
    assert [text.get_text() for text in figure.axes[0].texts] == sorted(set(names))
    collections = figure.axes[0].collections
    assert [len(collection.get_offsets()) for collection in collections] == [100, 100, 40]
    assert len({len(collection.get_paths()[0].vertices) for collection in collections}) > 1
    assert len(points(figure.axes[0])) == 240


def luminance(colour):
    return to_rgba(colour)[:3] @ np.array([0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_class_names_are_readable_on_light_and_dark(codes, labels, style):
    with plt.style.context(style):
        figure = figures.codes_2d(codes, labels)
    for ax in figure.axes:
        background = luminance(ax.get_facecolor())
        for text in (*ax.texts, ax.xaxis.label, ax.title):
            assert abs(luminance(text.get_color()) - background) > 0.8
        halo = ax.texts[0].get_path_effects()[0]
        assert halo._gc["foreground"] == ax.get_facecolor()


@pytest.mark.parametrize(
    ("codes", "labels", "message"),
    [
        ({}, None, "`codes` must be a dict"),
        (np.zeros((3, 2)), None, "`codes` must be a dict"),
        ({"a": np.zeros((3, 3))}, None, r"`codes\['a'\]` must have shape \(batch, 2\).*\(3, 3\)"),
        ({"a": np.zeros((3, 2, 1))}, None, r"`codes\['a'\]` must have shape"),
        ({"a": np.zeros((0, 2))}, None, "is empty"),
        ({"a": np.full((3, 2), np.nan)}, None, "holds NaN"),
        ({"a": np.zeros((3, 2))}, [0, 1], r"`labels` must hold one class per code.*\(2,\)"),
        ({"a": np.zeros((3, 2)), "b": np.zeros((2, 2))}, [0, 1, 2], r"codes\['b'\]"),
        ({"a": np.zeros((3, 2))}, np.eye(3), "one class per code"),
        ({"a": np.zeros((60, 2))}, np.arange(60), "at most 50 distinct .*Received 60"),
    ],
)
def test_codes_2d_checks_its_arguments(codes, labels, message):
    with pytest.raises(ValueError, match=message):
        figures.codes_2d(codes, labels)


# Training curves


HISTORY = {
    "loss": [150.0, 120.0, 110.0],
    "kl_loss": [5.0, 20.0, 24.0],
    "accuracy": [0.1, 0.5, 0.6],
    "learning_rate": [1e-3, 1e-3, 1e-4],
    "val_loss": [130.0, float("nan"), 112.0],
    "val_kl_loss": [6.0, 21.0, 25.0],
    "val_accuracy": [0.2, 0.4, 0.5],
}


@pytest.mark.parametrize("unit", ["nats", "squared error"])
def test_training_curves_pairs_each_term_with_its_twin(unit):
    figure = figures.training_curves(HISTORY, unit)
    terms = ["loss", "kl_loss", "accuracy", "learning_rate"]
    assert [ax.get_title() for ax in figure.axes] == terms
    assert [ax.get_ylabel() for ax in figure.axes] == [unit, unit, "accuracy", "learning_rate"]
    for ax, term in zip(figure.axes, terms, strict=True):
        assert ax.get_xlabel() == "epoch"
        lines = {line.get_label(): line for line in ax.lines}
        expected = {"training": HISTORY[term]}
        if f"val_{term}" in HISTORY:
            expected["validation"] = HISTORY[f"val_{term}"]
        assert list(lines) == list(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(lines[name].get_xdata(), [1, 2, 3])
            np.testing.assert_array_equal(lines[name].get_ydata(), values)
        legend = ax.get_legend()
        shown = [text.get_text() for text in legend.get_texts()] if legend else ["training"]
        assert shown == list(expected)
        if len(lines) == 2:  # told apart without colour
            assert lines["training"].get_linestyle() != lines["validation"].get_linestyle()
    drawn_inside(figure)


def test_training_curves_has_whole_epochs_and_shows_a_single_one():
    figure = figures.training_curves({"loss": [3.0]})
    (line,) = figure.axes[0].lines
    assert line.get_marker() == "o"
    figure = figures.training_curves({"loss": [3.0, 2.0]})
    assert all(tick == round(tick) for tick in figure.axes[0].get_xticks())


def test_training_curves_names_a_lone_validation_term():
    figure = figures.training_curves({"val_loss": [3.0, 2.0]})
    (ax,) = figure.axes
    assert ax.get_title() == "loss"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["validation"]


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ({}, "`history` must be a dict"),
        ([1.0, 2.0], "`history` must be a dict"),
        ({"loss": []}, "one value per epoch"),
        ({"loss": 3.0}, "one value per epoch"),
        ({"loss": [1.0, 2.0], "val_loss": [1.0]}, r"`validation_freq`, put NaN.*\(2,\).*\(1,\)"),
    ],
)
def test_training_curves_checks_its_history(history, message):
    with pytest.raises(ValueError, match=message):
        figures.training_curves(history)
