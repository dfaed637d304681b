"""Own files become examples, and whatever can't is named."""

import csv

import numpy as np
import pytest
from PIL import Image

from kerasae import checks
from kerasae.data import files
from kerasae.data.preparation import Preparation


def photo(path, size=(40, 30), color=(200, 40, 40), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).convert(mode).save(path, **options)


def table(path, header, rows, delimiter=","):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        if header:
            writer.writerow(header)
        writer.writerows(rows)
    return path


# images


def test_photos_of_any_size_are_scaled_and_cropped(tmp_path):
    photo(tmp_path / "a.JPG", (400, 200))
    photo(tmp_path / "sub" / "b.png", (50, 300))
    (tmp_path / "Thumbs.db").write_text("no image")
    (tmp_path / "._a.png").write_text("no image")
    read = files.read(tmp_path, image_size=(8, 12))
    assert read.names == ["a.JPG", "sub/b.png"]
    assert read.values.shape == (2, 8, 12, 3)
    assert read.values.dtype == np.uint8
    np.testing.assert_allclose(read.values.reshape(-1, 3).mean(0), (200, 40, 40), atol=3)


def test_a_crop_is_of_the_middle(tmp_path):
    image = np.zeros((10, 30), "uint8")
    image[:, 10:20] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    assert files.read(tmp_path, image_size=(10, 10)).values.min() == 255


def test_a_photo_is_turned_as_the_camera_says(tmp_path):
    image = np.zeros((20, 40, 3), "uint8")
    image[:, :20] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise: what was left is then at the top
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    (x,) = files.read(tmp_path).values
    assert x.shape == (40, 20, 3)
    assert x[:18].min() == 255
    assert x[22:].max() == 0


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("RGB", 3), ("P", 3), ("RGBA", 3)])
def test_color_is_that_of_the_images(tmp_path, mode, channels):
    photo(tmp_path / "a.png", mode=mode)
    assert files.read(tmp_path).values.shape == (1, 30, 40, channels)
    assert files.read(tmp_path, color="grey").values.shape[-1] == 1


def test_what_is_transparent_is_white_and_16_bits_become_8(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert files.read(tmp_path).values.min() == 255
    Image.fromarray(np.full((4, 4), 65535 // 2, "uint16")).save(tmp_path / "a.png")
    np.testing.assert_array_equal(files.read(tmp_path).values, 127)


def test_subfolders_are_classes(tmp_path):
    for name in ("2", "10", "1"):
        photo(tmp_path / name / "a.png")
    read = files.read(tmp_path)
    assert read.classes == ["1", "2", "10"]
    assert [read.classes[i] for i in read.labels] == [name.split("/")[0] for name in read.names]


def test_unreadable_images_are_named_or_left_out(tmp_path, caplog):
    photo(tmp_path / "good.png")
    content = (tmp_path / "good.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.jpg \(not an image\)"):
        files.read(tmp_path)
    read = files.read(tmp_path, skip_unreadable=True)
    assert read.names == ["good.png"]
    assert len(read.values) == 1
    assert "torn.png" in caplog.text
    (tmp_path / "good.png").unlink()
    with pytest.raises(ValueError, match="can't be read"):
        files.read(tmp_path, skip_unreadable=True)


def test_the_fingerprint_is_of_names_and_content(tmp_path):
    photo(tmp_path / "a.png")
    first = files.read(tmp_path).fingerprint
    (tmp_path / "a.png").touch()
    assert files.read(tmp_path).fingerprint == first
    photo(tmp_path / "b.png")
    second = files.read(tmp_path).fingerprint
    photo(tmp_path / "b.png", color=(1, 2, 3))
    assert len({first, second, files.read(tmp_path).fingerprint}) == 3


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(40, 30), (80, 60)], "2 different sizes, from 40x30 to 80x60 pixels.*--image-size"),
        ([(400, 300)], "400x300 pixels, which is large.*--image-size"),
    ],
)
def test_sizes_that_need_a_choice(tmp_path, sizes, message):
    for i, size in enumerate(sizes):
        photo(tmp_path / f"{i}.png", size)
    with pytest.raises(ValueError, match=message):
        files.read(tmp_path)


def test_folders_without_images(tmp_path):
    with pytest.raises(ValueError, match="no images.*It is empty"):
        files.read(tmp_path)
    (tmp_path / "a.heic").write_text("")
    with pytest.raises(ValueError, match=r"Found: 1 \.heic"):
        files.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        files.read(tmp_path / "missing")
    (tmp_path / "a.docx").write_text("")
    with pytest.raises(ValueError, match="must be a folder of images, or end in"):
        files.read(tmp_path / "a.docx")


def test_images_fit_a_model(tmp_path):
    photo(tmp_path / "a.png")
    like = Preparation.of_model((8, 8, 1))
    read = files.read(tmp_path, like=like)
    assert read.values.shape == (1, 8, 8, 1)
    with pytest.raises(ValueError, match="rows of 6 numbers, not images"):
        files.read(tmp_path, like=Preparation.of_model((6,)))


# arrays


def test_arrays(tmp_path, rng):
    images = rng.integers(0, 256, (12, 5, 4), dtype="uint8")
    np.save(tmp_path / "a.npy", images)
    np.testing.assert_array_equal(files.read(tmp_path / "a.npy").values, images[..., None])
    np.savez(tmp_path / "a.npz", x=images, y=np.arange(12) % 3)
    read = files.read(tmp_path / "a.npz", labels="y")
    np.testing.assert_array_equal(read.labels, np.arange(12) % 3)
    assert read.classes == ["0", "1", "2"]


def test_what_is_no_array_of_examples(tmp_path):
    np.savez(tmp_path / "two.npz", x_train=np.ones((3, 2)), x_test=np.ones((3, 2)))
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "vector.npy", np.ones(3))
    np.save(tmp_path / "first.npy", np.ones((3, 3, 8, 8)))
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY")
    for name, options, message in (
        ("two.npz", {}, r"holds the arrays \['x_train', 'x_test'\].*--array"),
        ("two.npz", {"array": "x_trian"}, "Did you mean 'x_train'"),
        ("objects.npy", {}, "can't be read as a NumPy file of numbers"),
        ("torn.npy", {}, "can't be read"),
        ("vector.npy", {}, r"Received: \(3,\)"),
        ("first.npy", {}, "channels first.*transpose"),
        ("first.npy", {"columns": ["a"]}, "doesn't apply to .npy"),
    ):
        with pytest.raises(ValueError, match=message):
            files.read(tmp_path / name, **options)


# tables


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", [True, False])
def test_csv(tmp_path, delimiter, header):
    path = table(tmp_path / "a.csv", ["a", "b"] if header else None, [[1, 2.5], [3, 4]], delimiter)
    read = files.read(path)
    np.testing.assert_array_equal(read.values, [[1, 2.5], [3, 4]])
    assert len(read.columns) == 2
    assert (read.columns == ["a", "b"]) == header


def test_parquet_columns_and_labels(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"a": [1, 2], "b": [True, False], "c": ["x", "y"]}), tmp_path / "a.parquet")
    read = files.read(tmp_path / "a.parquet", labels="c")
    assert read.columns == ["a", "b"]
    np.testing.assert_array_equal(read.values, [[1, 1], [2, 0]])
    assert read.classes == ["x", "y"]
    assert files.read(tmp_path / "a.parquet", columns=["b"]).columns == ["b"]
    assert files.read(tmp_path / "a.parquet", drop=["c", "a"]).columns == ["b"]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([[1, "x"], [2, "y"]], {}, r"hold no numbers: 'b' \('x'\).*--drop"),
        ([[1, 2], ["", 3], [1, "NaN"]], {}, r"'a' \(1 of 3 rows, first row 2\), 'b' \(1 of 3 rows, first row 3\)"),
        ([[1, 2]], {"columns": ["aa"]}, "Did you mean 'a'"),
        ([[1, 2]], {"drop": ["a", "b"]}, "No column"),
        ([], {}, "has no rows"),
        ([[1, 2, 3]], {}, "can't be read as a table"),
        ([[1, 2]], {"image_size": (8, 8)}, "'image_size' doesn't apply"),
    ],
)
def test_what_is_no_table_of_numbers(tmp_path, rows, options, message):
    with pytest.raises(ValueError, match=message):
        files.read(table(tmp_path / "a.csv", ["a", "b"], rows), **options)


def test_a_table_fits_a_model(tmp_path):
    like = Preparation("table", (2,), columns=("b", "a"))
    path = table(tmp_path / "a.csv", ["a", "more", "b"], [[1, "text", 2]])
    np.testing.assert_array_equal(files.read(path, like=like).values, [[2, 1]])
    with pytest.raises(ValueError, match="lacks columns that the model was trained on: b"):
        files.read(table(tmp_path / "b.csv", ["a"], [[1]]), like=like)


# scaling


def fitted(values, *args, train=slice(None), kind="table", **kwargs):
    return Preparation.fit(files.Files(kind, values, ""), np.arange(len(values))[train], *args, **kwargs)


def test_standard_scaling_is_scikit_learns(rng):
    from sklearn.preprocessing import StandardScaler

    values = rng.normal((5, 2e9, 7), (3, 100, 0), (50, 3))
    preparation = fitted(values, train=slice(40))
    assert preparation.scaling == "standard"
    expected = StandardScaler().fit(values[:40]).transform(values)
    np.testing.assert_allclose(preparation.apply(values), expected, atol=1e-5)
    np.testing.assert_allclose(preparation.invert(preparation.apply(values)), values, rtol=1e-6)


def test_minmax_is_learned_from_training_data_and_cut(rng):
    values = np.array([[0.0], [10.0], [20.0], [-5.0]])
    preparation = fitted(values, "minmax", train=slice(2))
    np.testing.assert_array_equal(preparation.apply(values), [[0], [1], [1], [0]])
    assert fitted(values, unit_interval=True).scaling == "minmax"


def test_pixels(rng):
    values = rng.integers(0, 256, (4, 3, 3, 1), dtype="uint8")
    preparation = fitted(values, kind="array")
    x = preparation.apply(values)
    np.testing.assert_array_equal(x, values / np.float32(255))
    np.testing.assert_array_equal(preparation.apply(x), x)  # scaled already
    with pytest.raises(ValueError, match=r"floats in \[0, 1\]. Received float32 from 0 to 255"):
        preparation.apply(np.linspace(0, 255, 9, dtype="float32").reshape(1, 3, 3, 1))


def test_float_images_share_one_scale():
    assert fitted(np.linspace(0, 1, 18).reshape(2, 3, 3, 1), kind="array").scaling == "pixels"
    preparation = fitted(np.linspace(-2, 6, 18).reshape(2, 3, 3, 1), kind="array")
    assert (preparation.scaling, preparation.offset, preparation.scale) == ("minmax", (-2.0,), (8.0,))


def test_a_preparation_survives_json(rng):
    import json

    preparation = fitted(rng.normal(size=(20, 3)))
    assert Preparation.from_dict(json.loads(json.dumps(preparation.to_dict()))) == preparation


def test_split():
    train, test = files.split(50, 0.1, seed=0)
    assert len(test) == 5
    assert sorted([*train, *test]) == list(range(50))
    np.testing.assert_array_equal(files.split(50, 0.1, seed=0)[1], test)
    assert not np.array_equal(files.split(50, 0.1, seed=1)[1], test)
    with pytest.raises(ValueError, match="At least 10 examples"):
        files.split(9, 0.1, seed=0)


def test_what_does_not_fit_into_memory_is_refused():
    with pytest.raises(ValueError, match="takes .* GiB of memory as 1,000,000,000 examples"):
        checks.memory((10**9, 64, 64, 3), "float32", "photos")
