"""What the figures hold: their pictures, points, lines and names, on scikit-learn's digits."""

import os

import keras
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from kerasae import builders, figures, losses, metrics
from kerasae.figures import drawing
from kerasae.layers import GaussianCorruption
from kerasae.models import contractive, jacobian

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
    (image,) = figure.axes[0].images
    return np.asarray(image.get_array())


def tile(array, row, column, size=8):
    """RGB of one image, which must be opaque."""
    top, left = row * (size + GAP), column * (size + GAP)
    rgba = array[top : top + size, left : left + size]
    assert (rgba[..., 3] == 1).all()
    return rgba[..., :3]


def as_rgb(image):
    return np.repeat(np.clip(np.reshape(image, (8, 8, 1)), 0, 1), 3, axis=2)


def as_signed(image):
    """RGB of an array whose largest magnitude is the end of the scale."""
    return colormaps["RdBu_r"](0.5 + 0.5 * np.squeeze(image) / np.abs(image).max())[..., :3]


def names(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


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
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgba(colour)[:3]]
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def contrast(a, b):
    """As WCAG 2.1 defines it: 4.5 makes text readable, 3 graphics."""
    low, high = sorted([luminance(a), luminance(b)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_class_names_are_readable_on_light_and_dark(codes, labels, style):
    with plt.style.context(style):
        figure = figures.codes_2d(codes, labels)
    for ax in figure.axes:
        for text in (*ax.texts, ax.xaxis.label, ax.title):
            assert contrast(text.get_color(), ax.get_facecolor()) > 7
        halo = ax.texts[0].get_path_effects()[0]
        assert halo._gc["foreground"] == ax.get_facecolor()


@pytest.mark.parametrize(
    ("codes", "labels", "message"),
    [
        ({}, None, "`codes` must be a dict"),
        (np.zeros((3, 2)), None, "`codes` must be a dict"),
        ({"a": np.zeros((3, 1))}, None, r"`codes\['a'\]` must have shape \(batch, 2\) or wider.*\(3, 1\)"),
        ({"a": np.zeros((1, 3))}, None, r"`codes\['a'\]` must hold at least 2 codes"),
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


def test_codes_2d_shows_images_where_their_codes_are():
    # A column of codes that are alike, a far corner, and one beside the column that is farther from the middle of its cell.
    z = np.array([[0.0, 0.0], [0.1, 0.1], [16.0, 16.0]])
    images = np.stack([np.full((4, 2, 1), value) for value in (0.2, 0.5, 0.8)])
    figure = figures.codes_2d({"a": z}, labels=["p", "q", "p"], images=images)
    (ax,) = figure.axes
    low, high = ax.get_xlim()
    size = (high - low) / 16
    # Of those that share a cell the one nearer its middle.
    nearer = 0.2 if abs((0 - low) / size - 0.5) < abs((0.1 - low) / size - 0.5) else 0.5
    (picture,) = ax.images
    assert picture.get_extent() == [low, high, *ax.get_ylim()]
    pixels = np.asarray(picture.get_array())
    rows, columns = np.nonzero(pixels[..., 3])
    assert len(rows) == 2 * 4 * 2  # two images, as they are
    per_pixel = (high - low) / len(pixels)
    for value, at in ((nearer, 0), (0.8, 16)):
        rows, columns = np.nonzero((pixels[..., 3] == 255) & (pixels[..., 0] == round(255 * value)))
        assert low + per_pixel * columns.mean() == pytest.approx(at, abs=size)
        assert high - per_pixel * rows.mean() == pytest.approx(at, abs=size)
    *_, frames = ax.collections
    handles = {text.get_text(): to_hex(handle.get_color()) for text, handle in
               zip(figure.legends[0].get_texts(), figure.legends[0].legend_handles, strict=True)}  # fmt: skip
    assert [to_hex(c) for c in frames.get_edgecolor()] == [handles["p" if nearer == 0.2 else "q"], handles["p"]]
    assert (ax.get_xlim(), ax.get_ylim()) == ((low, high), (low, high))
    with pytest.raises(ValueError, match=r"one image per code. Received: 2 for 3 codes\['a'\]"):
        figures.codes_2d({"a": z}, images=images[:2])


def test_codes_2d_draws_the_principal_components_of_wider_codes(x):
    z = x.reshape(len(x), -1)[:300]
    figure = figures.codes_2d({"wide": z})
    pca = PCA(2).fit(z)
    expected = pca.transform(z)
    drawn = np.array([point[:2] for point in points(figure.axes[0])], float)
    # A component's sign means nothing.
    for column in range(2):
        np.testing.assert_allclose(np.sort(np.abs(drawn[:, column])), np.sort(np.abs(expected[:, column])), atol=1e-3)
    shares = [f"{100 * share:.0f} %" for share in pca.explained_variance_ratio_]
    ax = figure.axes[0]
    assert ax.get_xlabel() == f"component 1 of 64 ({shares[0]} of variance)"
    assert ax.get_ylabel() == f"component 2 of 64 ({shares[1]} of variance)"


@pytest.mark.filterwarnings("error")
def test_codes_2d_draws_codes_that_do_not_vary():
    figure = figures.codes_2d({"dead": np.zeros((9, 3))})
    assert figure.axes[0].get_xlabel() == "component 1 of 3 (0 % of variance)"


def test_codes_beside_pca_draws_both_in_one_figure(x, labels):
    model = builders.undercomplete((8, 8, 1), 2, (16,))
    shown = x[:200, ..., None]
    figure = figures.codes_beside_pca(model, shown, labels[:200])
    assert [ax.get_title() for ax in figure.axes] == ["autoencoder", "PCA"]
    assert [ax.get_xlabel()[:11] for ax in figure.axes] == ["code 1", "component 1"]
    drawn = np.array([point[:2] for point in points(figure.axes[0])], float)
    np.testing.assert_allclose(drawn, sorted(map(tuple, model.encode(shown))), atol=1e-6)
    assert len(points(figure.axes[1])) == 200
    drawn_inside(figure)


# What models do


@pytest.mark.parametrize("given", [False, True])
def test_denoising_shows_three_rows_and_their_psnr(x, given):
    model = builders.denoising((8, 8, 1), 8, (16,), corruption="gaussian", noise_stddev=0.3)
    clean = x[:20, ..., None]
    seed = model.corruption.seed_generator.state.numpy()
    corrupted = x[:20, ..., None] / 2 if given else None
    figure = figures.denoising(model, clean, corrupted, num_images=4)
    np.testing.assert_array_equal(model.corruption.seed_generator.state.numpy(), seed)
    if not given:
        noise = GaussianCorruption(0.3)
        noise.seed_generator.state.assign([0, 0])
        corrupted = np.asarray(noise(clean[:4], training=True))
        assert np.abs(corrupted - clean[:4]).std() > 0.1
    denoised = model.predict(corrupted[:4], verbose=0)
    array = picture(figure)
    assert array.shape == (3 * 8 + 2 * GAP, 4 * 8 + 3 * GAP, 4)
    for row, images in enumerate((clean, corrupted, denoised)):
        for column in range(4):
            np.testing.assert_allclose(tile(array, row, column), as_rgb(images[column]), atol=1e-5)
    psnrs = [
        np.mean(-10 * np.log10(((clean[:4] - np.clip(images[:4], 0, 1)) ** 2).mean(axis=(1, 2, 3))))
        for images in (corrupted, denoised)
    ]
    expected = ["clean", f"corrupted, {psnrs[0]:.1f} dB", f"denoised, {psnrs[1]:.1f} dB"]
    assert names(figure.axes[0].yaxis) == expected
    drawn_inside(figure)


def test_denoising_needs_a_corruption(x):
    with pytest.raises(ValueError, match="no corruption of its own: pass `x_corrupted`"):
        figures.denoising(builders.undercomplete((8, 8, 1), 2, (16,)), x[..., None])
    with pytest.raises(ValueError, match="`x_corrupted` must hold x's images, corrupted. Received 2 for 3"):
        figures.denoising(None, x[:3], x[:2])


@pytest.mark.parametrize("with_images", [False, True])
def test_code_activations_draws_what_is_not_zero(x, with_images):
    z = np.array([[0, 2.0, 0, -1, 0], [3, 0, 0, 0, 0], [0, 0, 0, 0, 0], [9, 9, 9, 9, 9]])
    figure = figures.code_activations(z, x[:4] if with_images else None, num_images=3)
    axes = np.reshape(figure.axes, (3, -1))
    assert axes.shape == (3, 1 + with_images)
    for i, row in enumerate(axes):
        if with_images:
            np.testing.assert_allclose(row[0].images[0].get_array()[..., :3], as_rgb(x[i]), atol=1e-7)
        drawn = {segment[1][0]: segment[1][1] for segment in row[-1].collections[0].get_segments()}
        assert drawn == {unit: z[i, unit] for unit in np.flatnonzero(z[i])}
        assert row[-1].get_ylabel() == "activation"
        assert row[-1].get_ylim()[0] < -1
        assert row[-1].get_ylim() == axes[0, -1].get_ylim()
    assert [row[-1].get_title() for row in axes] == [f"{n} of 5 units active" for n in (2, 1, 0)]
    assert axes[-1, -1].get_xlabel() == "unit"
    drawn_inside(figure)


def test_code_activations_of_a_k_sparse_model_shows_k_units(x):
    model = builders.k_sparse((8, 8, 1), 30, (), k=7)
    figure = figures.code_activations(model.encode(x[:10, ..., None]), num_images=2)
    assert [ax.get_title() for ax in figure.axes] == ["7 of 30 units active"] * 2


def test_top_images_sorts_images_by_each_units_response(x, labels):
    z = np.zeros((50, 4))
    z[[7, 3, 9], 0] = 1, 3, 2  # responds to three images
    z[10:20, 2] = -np.arange(10)  # strongest where it is negative
    z[:, 3] = np.arange(50)
    figure = figures.top_images(z, x[:50], num_units=3, num_images=5)
    ax, array = figure.axes[0], picture(figure)
    assert names(ax.yaxis) == ["unit 3", "−unit 2", "unit 0"]  # by variance; unit 1 is dead
    for row, expected in enumerate([[49, 48, 47, 46, 45], [19, 18, 17, 16, 15], [3, 9, 7]]):
        for column, image in enumerate(expected):
            np.testing.assert_allclose(tile(array, row, column), as_rgb(x[image]), atol=1e-7)
    assert array[2 * (8 + GAP) :, 3 * (8 + GAP) :, 3].sum() == 0  # no response, no image
    assert ax.get_xlabel() == "images, by falling response"
    drawn_inside(figure)


def test_top_images_sorts_units_by_the_class_they_respond_to(x):
    classes = np.array(["b", "a", "b", "c", "a", "c"])
    z = np.array([[9, 0, 0], [0, 0, 9], [8, 0, 1], [0, 7, 0], [1, 0, 8], [0, 8, 0]])
    figure = figures.top_images(z, x[:6], classes, num_images=2)
    expected = ["unit 2: class a (2 of 2)", "unit 0: class b (2 of 2)", "unit 1: class c (2 of 2)"]
    assert names(figure.axes[0].yaxis) == expected
    np.testing.assert_allclose(tile(picture(figure), 0, 0), as_rgb(x[1]), atol=1e-7)
    figure = figures.top_images(z, x[:6], units=[1, 0])
    assert names(figure.axes[0].yaxis) == ["unit 1", "unit 0"]


# Weights


def conv_model(channels):
    return builders.undercomplete((8, 8, channels), 4, (6, 5), network="conv")


def tied_model():
    return builders.linear((8, 8, 1), 7, tied=True)


def own_model():
    encoder = keras.Sequential(
        [keras.Input((8, 8)), keras.layers.Flatten(), keras.layers.Dense(9), keras.layers.ReLU(), keras.layers.Dense(3)]
    )
    z = keras.Input((3,))
    hidden = keras.layers.Dense(5, activation="relu")(z)
    x = keras.layers.Reshape((8, 8))(keras.layers.Dense(64)(hidden))
    return builders.undercomplete(encoder=encoder, decoder=keras.Model(z, x))


@pytest.mark.parametrize(
    ("make", "first", "last"),
    [
        (
            lambda: builders.undercomplete((8, 8, 1), 4, (6, 5)),
            lambda m: m.encoder.get_layer("hidden_1").kernel.numpy().T.reshape(6, 8, 8),
            lambda m: m.decoder.get_layer("logits").kernel.numpy().reshape(6, 8, 8),
        ),
        (
            tied_model,
            lambda m: m.encoder.get_layer("z").kernel.numpy().T.reshape(7, 8, 8),
            lambda m: m.encoder.get_layer("z").kernel.numpy().T.reshape(7, 8, 8),
        ),
        (
            lambda: builders.variational((8, 8, 1), 3, (), likelihood="gaussian", variance="predicted"),
            lambda m: m.encoder.get_layer("z_mean").kernel.numpy().T.reshape(3, 8, 8),
            lambda m: m.decoder.get_layer("logits").kernel.numpy().reshape(3, 8, 8),
        ),
        (
            own_model,
            lambda m: m.encoder.layers[1].kernel.numpy().T.reshape(9, 8, 8),
            lambda m: m.decoder.layers[2].kernel.numpy().reshape(5, 8, 8),
        ),
        (
            lambda: conv_model(1),
            lambda m: np.moveaxis(m.encoder.get_layer("hidden_1").kernel.numpy(), 3, 0)[..., 0],
            lambda m: np.moveaxis(m.decoder.get_layer("logits").kernel.numpy(), 3, 0)[..., 0],
        ),
    ],
    ids=["dense", "tied", "predicted", "own", "conv"],
)
def test_filters_and_atoms_are_the_weights(make, first, last):
    model = make()
    for draw, what, where, expected in (
        (figures.filters, "filters", "encoder", first(model)),
        (figures.atoms, "atoms", "decoder", last(model)),
    ):
        figure = draw(model, 4 if len(expected) > 4 else 64, columns=2)
        shown, size = min(len(expected), 4), expected.shape[1]
        for i in range(shown):
            np.testing.assert_allclose(tile(picture(figure), *divmod(i, 2), size), as_signed(expected[i]), atol=1e-6)
        count = f"first 4 of {len(expected)}" if len(expected) > 4 else f"all {len(expected)}"
        assert figure.axes[0].get_xlabel().startswith(f"{count} {what} of the {where}'s layer '")
        assert figure.axes[1].get_ylabel() == "value"
        drawn_inside(figure)


def test_colour_filters_are_colour_images():
    model = conv_model(3)
    weights = np.moveaxis(model.encoder.get_layer("hidden_1").kernel.numpy(), 3, 0)
    figure = figures.filters(model)
    expected = 0.5 + 0.5 * weights[1] / np.abs(weights[1]).max()
    np.testing.assert_allclose(tile(picture(figure), 0, 1, 4), expected, atol=1e-6)
    assert len(figure.axes) == 1  # a colour has no scale


def test_weights_that_are_no_images_are_refused():
    table = builders.undercomplete(30, 4, (8,))
    with pytest.raises(ValueError, match=r"kernel of 'hidden_1', a Dense of shape \(30, 8\).*of shape \(30,\)"):
        figures.filters(table)
    with pytest.raises(ValueError, match=r"kernel of 'logits', a Dense of shape \(8, 30\).*before images"):
        figures.atoms(table)
    with pytest.raises(ValueError, match=r"a Conv2D of shape \(4, 4, 2, 6\)"):
        figures.filters(conv_model(2))
    flat = keras.Sequential([keras.Input((8, 8)), keras.layers.Flatten()])
    back = keras.Sequential([keras.Input((64,)), keras.layers.Reshape((8, 8))])
    with pytest.warns(UserWarning, match="vercomplete"):
        model = builders.undercomplete(encoder=flat, decoder=back)
    with pytest.raises(ValueError, match="no layer with a kernel"):
        figures.filters(model)


def test_signed_images_scale_each_by_its_own_magnitude():
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 1)) * np.array([1, 10, 0.1, 1, 0])[:, None, None, None]
    figure = figures.signed_images(images, columns=5)
    array = picture(figure)
    for i in range(4):
        np.testing.assert_allclose(tile(array, 0, i), as_signed(images[i]), atol=1e-6)
    np.testing.assert_allclose(tile(array, 0, 4), np.broadcast_to(colormaps["RdBu_r"](0.5)[:3], (8, 8, 3)), atol=1e-6)
    assert names(figure.axes[1].yaxis) == ["−max", "0", "max"]
    drawn_inside(figure)


# Latents


def pixels(z):
    """Images whose first pixels are the code, from -4 to 4."""
    images = np.zeros((len(z), 8, 8))
    images[:, 0, : z.shape[1]] = z / 8 + 0.5
    return images


def code_in(array, row, column, latent_dim):
    return (tile(array, row, column)[0, :latent_dim, 0] - 0.5) * 8


def test_traversal_changes_one_latent_at_a_time():
    z = np.array([0.5, -1.0, 2.0])
    figure = figures.traversal(pixels, z)
    ax, array = figure.axes[0], picture(figure)
    for row in range(3):
        for column, value in enumerate(np.linspace(-3, 3, 9)):
            expected = z.copy()
            expected[row] = value
            np.testing.assert_allclose(code_in(array, row, column, 3), expected, atol=1e-5)
    assert names(ax.yaxis) == ["$z_{1}$", "$z_{2}$", "$z_{3}$"]
    assert names(ax.xaxis) == ["-3", "0", "3"]
    assert ax.get_xlabel() == "value of the latent (standard deviations of the prior)"
    drawn_inside(figure)


def test_traversal_takes_a_range_for_each_latent():
    values = np.array([[0, 1], [1, 3], [-2, 2]])
    figure = figures.traversal(pixels, np.zeros(3), values, latents=[2, 0])
    array = picture(figure)
    np.testing.assert_allclose(code_in(array, 0, 1, 3), [0, 0, 2], atol=1e-5)
    np.testing.assert_allclose(code_in(array, 1, 1, 3), [1, 0, 0], atol=1e-5)
    assert names(figure.axes[0].yaxis) == ["$z_{3}$: -2 to 2", "$z_{1}$: 0 to 1"]
    shared = figures.traversal(pixels, np.zeros(3), [0, 1])
    assert shared.axes[0].get_xlabel() == "value of the latent"


def test_interpolation_goes_from_code_to_code(x):
    model = builders.variational((8, 8, 1), 5, (16,))
    start, end = x[:3, ..., None], x[3:6, ..., None]
    figure = figures.interpolation(model, start, end, num_steps=5)
    array = picture(figure)
    assert array.shape == (3 * 8 + 2 * GAP, 7 * 8 + 6 * GAP, 4)
    z_start, z_end = model.encoder.predict(start, verbose=0)[0], model.encoder.predict(end, verbose=0)[0]
    for step in range(5):
        t = step / 4
        decoded = model.decoder.predict((1 - t) * z_start + t * z_end, verbose=0)
        for row in range(3):
            np.testing.assert_allclose(tile(array, row, 1 + step), as_rgb(decoded[row]), atol=1e-5)
    for row in range(3):
        np.testing.assert_allclose(tile(array, row, 0), as_rgb(start[row]), atol=1e-6)
        np.testing.assert_allclose(tile(array, row, 6), as_rgb(end[row]), atol=1e-6)
    assert names(figure.axes[0].xaxis) == ["start", "0", "0.25", "0.5", "0.75", "1", "end"]
    assert figure.axes[0].get_xlabel() == "share of the end's code"
    drawn_inside(figure)


def bars(ax):
    """(position, height, hatch) of every bar, from left to right."""
    return sorted((bar.get_x() + bar.get_width() / 2, bar.get_height(), bar.get_hatch()) for bar in ax.patches)


@pytest.mark.parametrize("isotropic", [False, True])
def test_unit_kl_draws_each_latents_kl(isotropic):
    random = np.random.default_rng(0)
    z_mean = (random.normal(size=(500, 6)) * [1, 0.05, 2, 0, 0.5, 0.01]).astype("float32")
    z_log_var = random.normal(-1, 0.3, (500, 1 if isotropic else 6)).astype("float32")
    figure = figures.unit_kl(z_mean, z_log_var)
    ax = figure.axes[0]
    sigma2 = np.exp(z_log_var.astype(float))
    kl = (0.5 * (sigma2 + z_mean.astype(float) ** 2 - 1 - z_log_var)).mean(axis=0)
    order = np.argsort(-kl)
    drawn = bars(ax)
    np.testing.assert_allclose([bar[0] for bar in drawn], np.arange(6), atol=1e-9)
    np.testing.assert_allclose([bar[1] for bar in drawn], kl[order], rtol=1e-6)
    active = z_mean.var(axis=0) > 0.01
    assert [bar[2] is None for bar in drawn] == list(active[order])  # told apart without colour
    assert names(ax.xaxis) == [f"$z_{{{i + 1}}}$" for i in order]
    assert legend(ax) == ["active (variance of $\\mu$ > 0.01): 3", "collapsed: 3"]
    total = float(np.mean(losses.kl_standard_normal(z_mean, z_log_var)))
    assert ax.get_title() == f"{total:.2f} nats in all, 3 of 6 latents active"
    assert "nats" in ax.get_ylabel()
    drawn_inside(figure)


@pytest.mark.parametrize(("threshold", "num_active"), [(0.01, 2), (0, 3)])
def test_unit_variance_tells_dead_units(threshold, num_active):
    z = np.random.default_rng(0).normal(size=(500, 4)) * [3, 0, 1, 0.01]
    figure = figures.unit_variance(z, threshold)
    ax = figure.axes[0]
    assert metrics.active_units(z, threshold) == num_active
    np.testing.assert_allclose([bar[1] for bar in bars(ax)], np.sort(z.var(axis=0))[::-1], atol=1e-12)
    assert [bar[2] is None for bar in bars(ax)] == [i < num_active for i in range(4)]
    assert names(ax.xaxis) == ["0", "2", "3", "1"]
    assert legend(ax) == [f"active (variance > {threshold:g}): {num_active}", f"dead: {4 - num_active}"]
    assert ax.get_title() == f"{num_active} of 4 units active"
    assert ax.get_ylabel() == "variance (squared units of the code)"
    assert ax.get_yscale() == "symlog"
    assert [line.get_ydata()[0] for line in ax.lines] == ([threshold] if threshold else [])
    drawn_inside(figure)


def test_unit_bars_of_large_codes_have_no_names():
    figure = figures.unit_variance(np.random.default_rng(0).normal(size=(20, 150)))
    assert figure.axes[0].get_xlabel() == "units, sorted"
    assert len(bars(figure.axes[0])) == 150
    figures.unit_variance(np.zeros((3, 2)))  # all are dead


# Jacobians


def test_jacobian_spectrum_of_a_linear_encoder_is_its_kernels(x):
    model = builders.linear((8, 8, 1), 6)
    kernel = model.encoder.get_layer("z").kernel.numpy()
    deep = builders.contractive((8, 8, 1), 5, (16,))
    figure = figures.jacobian_spectrum({"linear": model, "deep": deep}, x[:7, ..., None])
    ax = figure.axes[0]
    linear, curve = ax.lines
    np.testing.assert_allclose(linear.get_ydata(), np.linalg.svd(kernel, compute_uv=False), rtol=1e-4)
    np.testing.assert_array_equal(linear.get_xdata(), np.arange(1, 7))
    assert len(curve.get_ydata()) == 5
    assert linear.get_linestyle() != curve.get_linestyle()
    assert linear.get_marker() != curve.get_marker()
    assert legend(ax) == ["linear", "deep"]
    assert ax.get_yscale() == "log"
    assert ax.get_xlabel() == "rank of the singular value"
    assert ax.get_ylabel() == "singular value (code per input), mean"
    drawn_inside(figure)


@pytest.mark.parametrize("make", [builders.contractive, builders.variational, builders.k_sparse])
def test_jacobians_agree_with_the_contractive_penalty(x, make, monkeypatch):
    model = make((8, 8, 1), 5, (16,), **({"k": 3} if make is builders.k_sparse else {}))
    shown = x[:6, ..., None]
    monkeypatch.setattr(jacobian, "_ELEMENTS_AT_ONCE", 2 * 5 * 64)  # two examples at a time
    figure = figures.jacobian_spectrum({"model": model}, shown[:1])
    encoder = model.encoder
    if make is builders.variational:
        encoder = keras.Model(encoder.inputs, encoder.outputs[0])
    norm = contractive.squared_jacobian_norm(encoder, shown).numpy()
    values = figure.axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(np.nansum(np.square(values)), norm[0], rtol=1e-4)
    assert np.isfinite(values).sum() == (3 if make is builders.k_sparse else 5)
    jacobians = list(jacobian.jacobians(model.encoder, shown, model.code_of))
    assert [len(jacobian) for jacobian in jacobians] == [2, 2, 2]
    np.testing.assert_allclose(np.square(np.concatenate(jacobians)).sum(axis=(1, 2)), norm, rtol=1e-4)


def test_singular_values_draws_their_means():
    figure = figures.singular_values({"a": [[4.0, 2.0, 0.0], [2.0, 1.0, 0.0]], "b": [[1.0]]})
    a, b = figure.axes[0].lines
    np.testing.assert_array_equal(a.get_ydata(), [3.0, 1.5, np.nan])
    np.testing.assert_array_equal(b.get_ydata(), [1.0])


def test_tangents_are_the_leading_right_singular_vectors(x):
    model = builders.linear((8, 8, 1), 6)
    figure = figures.tangents(model, x[:3, ..., None], num_tangents=4)
    _, values, directions = np.linalg.svd(model.encoder.get_layer("z").kernel.numpy().T, full_matrices=False)
    array = picture(figure)
    for row in range(3):
        np.testing.assert_allclose(tile(array, row, 0), as_rgb(x[row]), atol=1e-6)
        for i in range(4):
            direction = directions[i] * np.sign(directions[i][np.abs(directions[i]).argmax()])
            shown = tile(array, row, 1 + i)
            # Two steps of the colour scale for rounding.
            np.testing.assert_allclose(shown, as_signed(direction.reshape(8, 8)), atol=0.05)
            assert (shown[..., 0] - shown[..., 2]).max() > 0.3  # its largest entry is red
    ax = figure.axes[0]
    assert names(ax.xaxis) == ["image", "1", "2", "3", "4"]
    assert [text.get_text() for text in ax.texts] == [f"{value:.2g}" for value in values[:4]] * 3
    assert "singular value" in ax.get_xlabel()
    drawn_inside(figure)


def test_tangents_are_no_more_than_the_code_has():
    model = builders.undercomplete((6, 6, 3), 2, (8,))
    figure = figures.tangents(model, np.random.default_rng(0).random((2, 6, 6, 3)))
    assert picture(figure).shape == (2 * 6 + 1, 3 * 6 + 2, 4)
    assert len(figure.axes) == 1


# Errors, rates


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_error_histograms_show_shares_of_each_group(scale):
    random = np.random.default_rng(0)
    normal, anomalous = random.normal(10, 2, 400), random.normal(20, 4, 50)
    if scale == "log":
        normal, anomalous = np.exp(normal / 3), np.exp(anomalous / 2)
    threshold = float(np.quantile(normal, 0.95))
    figure = figures.error_histograms(normal, anomalous, threshold, unit="nats", num_bins=20)
    ax = figure.axes[0]
    assert ax.get_xscale() == scale
    for patch, errors in zip(ax.patches, (normal, anomalous), strict=True):
        shares, edges, _ = patch.get_data()
        assert len(shares) == 20
        np.testing.assert_allclose(shares.sum(), 100)
        np.testing.assert_allclose(shares, 100 * np.histogram(errors, edges)[0] / len(errors))
    assert ax.patches[0].get_hatch() != ax.patches[1].get_hatch()
    found = 100 * (anomalous > threshold).mean()
    assert legend(ax) == [
        "normal (400): 5.0 % above",
        f"anomalous (50): {found:.1f} % above",
        f"threshold {threshold:.4g}",
    ]
    assert ax.lines[0].get_xdata()[0] == threshold
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("nats per example", "share of the group (%)")
    drawn_inside(figure)


def test_error_histograms_without_threshold():
    figure = figures.error_histograms([1.0, 2.0], [3.0])
    assert legend(figure.axes[0]) == ["normal (2)", "anomalous (1)"]
    figure = figures.error_histograms([1.0, 2.0], [3.0], names=("training", "test"))
    assert legend(figure.axes[0]) == ["training (2)", "test (1)"]
    figure = figures.error_histograms([1.0, 2.0], threshold=1.5)
    assert legend(figure.axes[0]) == ["normal (2): 50.0 % above", "threshold 1.5"]
    figures.error_histograms([1.0, 1.0], [1.0], threshold=1)  # nothing varies


def test_rate_distortion_joins_points_by_rate():
    curves = {"ours": ([0.8, 0.1, 0.4], [30, 20, 26]), "PNG": (1.5, 40.0), "JPEG": np.array([[0.3, 0.6], [20, 25]])}
    figure = figures.rate_distortion(curves)
    ax = figure.axes[0]
    drawn = {line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in ax.lines}
    assert drawn == {"ours": ([0.1, 0.4, 0.8], [20, 26, 30]), "PNG": ([1.5], [40]), "JPEG": ([0.3, 0.6], [20, 25])}
    assert legend(ax) == list(curves)
    assert len({line.get_marker() for line in ax.lines}) == 3
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("rate (bits per pixel)", "PSNR (dB)")
    assert ax.get_xlim()[0] == 0
    drawn_inside(figure)


def test_many_curves_are_told_apart_by_more_than_colour():
    figure = figures.rate_distortion({f"codec {i}": (i, i) for i in range(12)})
    lines = figure.axes[0].lines
    assert len({(to_hex(line.get_color()), line.get_marker(), line.get_linestyle()) for line in lines}) == 12
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == 12


# Every figure in light and dark, and in given axes


def every_figure(x, labels, model):
    """Name to a function of an axes, or None where a figure has several."""
    shown, codes = x[..., None], model.encode(x[..., None])
    z_mean, z_log_var = model.encoder.predict(shown, verbose=0)
    rows = {"a": x, "b": x}
    return {
        "reconstructions": lambda ax=None: figures.reconstructions(rows, 4, ax=ax),
        "samples": lambda ax=None: figures.samples(x[:4], ax=ax),
        "latent_grid": lambda ax=None: figures.latent_grid(lambda z: x[: len(z)], n=2, ax=ax),
        "denoising": lambda ax=None: figures.denoising(model, shown, shown / 2, 4, ax=ax),
        "codes_2d": lambda: figures.codes_2d({"a": codes}, labels),
        "codes_beside_pca": lambda: figures.codes_beside_pca(model, shown, labels),
        "code_activations": lambda: figures.code_activations(codes, x),
        "top_images": lambda ax=None: figures.top_images(codes, x, labels, ax=ax),
        "filters": lambda ax=None: figures.filters(model, ax=ax),
        "atoms": lambda ax=None: figures.atoms(model, ax=ax),
        "signed_images": lambda ax=None: figures.signed_images(x[:4] - 0.5, ax=ax),
        "traversal": lambda ax=None: figures.traversal(model.decode, codes[0], ax=ax),
        "interpolation": lambda ax=None: figures.interpolation(model, shown[:2], shown[2:4], ax=ax),
        "unit_kl": lambda ax=None: figures.unit_kl(z_mean, z_log_var, ax=ax),
        "unit_variance": lambda ax=None: figures.unit_variance(codes, ax=ax),
        "singular_values": lambda ax=None: figures.singular_values({"a": [[2.0, 1.0]]}, ax=ax),
        "jacobian_spectrum": lambda ax=None: figures.jacobian_spectrum({"a": model}, shown[:2], ax=ax),
        "tangents": lambda ax=None: figures.tangents(model, shown[:2], ax=ax),
        "error_histograms": lambda ax=None: figures.error_histograms([1.0, 2.0], [3.0], 2.5, ax=ax),
        "series": lambda: figures.series(np.sin(np.arange(40)), -np.arange(40.0), -30.0, np.zeros(40)),
        "rate_distortion": lambda ax=None: figures.rate_distortion({"a": (1, 2)}, ax=ax),
        "training_curves": lambda: figures.training_curves({"loss": [2.0, 1.0], "val_loss": [2.0, 1.5]}),
    }


@pytest.fixture(scope="module")
def drawings(x, labels):
    return every_figure(x[:60], labels[:60], builders.variational((8, 8, 1), 4, (16,)))


def public_drawings():
    return [name for name in figures.__all__ if name not in {"save", "theme"}]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", public_drawings())
def test_every_figure_is_readable_in_light_and_dark(drawings, name, dark):
    with plt.style.context("default" if dark else "dark_background"), figures.theme(dark):
        figure = drawings[name]()
    # Drawn, or saved, after the context has ended.
    drawn_inside(figure)
    ground = figure.get_facecolor()
    assert luminance(ground) == (0 if dark else 1)
    for ax in figure.axes:
        assert ax.get_facecolor() == ground
        texts = [*ax.texts] if name != "tangents" else []  # those stand in light images
        texts += [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.get_xticklabels(), *ax.get_yticklabels()]
        texts += ax.get_legend().get_texts() if ax.get_legend() else []
        for text in texts:
            assert contrast(text.get_color(), ground) > 7, text
        for line in ax.lines:
            assert contrast(line.get_color(), ground) > 3, line
        for patch in ax.patches:
            assert contrast(patch.get_edgecolor(), ground) > 3, patch
    for legends in figure.legends:
        assert all(contrast(text.get_color(), ground) > 7 for text in legends.get_texts())


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in public_drawings()
        if n not in {"codes_2d", "codes_beside_pca", "code_activations", "series", "training_curves"}
    ],
)
def test_a_given_axes_is_drawn_in(drawings, name):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert drawings[name](ax=right) is figure
    assert right.has_data()
    assert not left.has_data()


def test_curves_stand_out_on_white_and_black():
    for colour in drawing.LINE_COLOURS:
        assert min(contrast(colour, "white"), contrast(colour, "black")) >= 3


IMAGES_ONLY = [
    lambda x: figures.denoising(builders.undercomplete(12, 2, ()), x, x),
    lambda x: figures.code_activations(x, images=x),
    lambda x: figures.top_images(x, images=x),
    lambda x: figures.signed_images(x),
    lambda x: figures.traversal(builders.undercomplete(12, 2, ()).decode, np.zeros(2)),
    lambda x: figures.interpolation(builders.undercomplete(12, 2, ()), x, x),
    lambda x: figures.tangents(builders.undercomplete(12, 2, ()), x),
]


@pytest.mark.parametrize("draw", IMAGES_ONLY)
def test_tables_are_refused_where_images_are_needed(draw):
    with pytest.raises(ValueError, match=r"must hold images of shape .* Rows of a table are no images"):
        draw(np.random.default_rng(0).random((5, 12)).astype("float32"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: figures.code_activations(x[:3], x[:4]),
            "`images` must hold one entry per code, of which there are 3",
        ),
        (lambda x: figures.code_activations(x[:, 0, 0]), "`codes` must have the batch first"),
        (lambda x: figures.top_images(x[:3], x[:4]), "`images` must hold one entry per code"),
        (lambda x: figures.top_images(x[:3], x[:3], labels=[1, 2]), "`labels` must hold one entry per code"),
        (lambda x: figures.top_images(x[:3], x[:3], units=[64]), "`units` must be whole numbers from 0 to 63"),
        (lambda x: figures.top_images(x[:3], x[:3], units=[0.5]), "`units` must be whole numbers"),
        (
            lambda x: figures.traversal(pixels, x[0]),
            r"`z` must be one code, of shape \(latent_dim,\). Received: \(8, 8\)",
        ),
        (
            lambda x: figures.traversal(pixels, np.zeros(2), np.zeros((3, 4))),
            r"`values` must have shape \(steps,\) or \(2, steps\)",
        ),
        (lambda x: figures.traversal(pixels, np.zeros(2), latents=[2]), "`latents` must be whole numbers from 0 to 1"),
        (lambda x: figures.traversal(lambda z: x[:5], np.zeros(2)), "must return 18 images. Received 5"),
        (lambda x: figures.interpolation(None, x[:2], x[:3]), "as many images, of the same size"),
        (lambda x: figures.interpolation(None, x[:2], x[:2], 1), "`num_steps` must be at least 2"),
        (lambda x: figures.unit_kl(x[:, 0], x[:, 0, :3]), r"`z_log_var` must have the shape of `z_mean`, \(1797, 8\)"),
        (lambda x: figures.unit_kl(x[:1, 0], x[:1, 0]), "at least 2 examples"),
        (lambda x: figures.unit_variance(x, -1), "`threshold` must be a finite number of at least 0"),
        (lambda x: figures.singular_values({}), "`values` must be a dict"),
        (lambda x: figures.singular_values({"a": [1.0]}), r"`values\['a'\]` must have shape"),
        (lambda x: figures.singular_values({"a": [[-1.0]]}), "must be at least 0"),
        (lambda x: figures.jacobian_spectrum({}, x), "`models` must be a dict"),
        (lambda x: figures.error_histograms(x, x), r"`normal` must have shape \(batch\)"),
        (lambda x: figures.error_histograms([1.0], [np.inf]), "`anomalous` holds NaN"),
        (lambda x: figures.error_histograms([1.0], [2.0], np.nan), "`threshold` must be a finite number"),
        (lambda x: figures.rate_distortion({"a": 3}), r"`curves\['a'\]` must be \(bits_per_pixel, psnr\)"),
        (lambda x: figures.rate_distortion({"a": ([1, 2], [3])}), "as many finite rates as ratios"),
        (lambda x: figures.rate_distortion({"a": (1, np.inf)}), "as many finite rates as ratios"),
    ],
)
def test_arguments_are_checked(x, call, message):
    with pytest.raises(ValueError, match=message):
        call(x)


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
