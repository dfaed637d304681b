"""Tables and images as people have them: the right values, whatever the dialect or depth; and what is left out is said."""

import gzip
import logging
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from kerasae.data import files, reading, tables
from kerasae.data.preparation import Preparation
from kerasae.data.reading import dialects

VALUES = [[1.5, -2.25], [1000.5, 3.0], [0.125, 40.0]]


def written(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("text", "encoding", "note"),
    [
        ("a,b\n1.5,-2.25\n1000.5,3\n.125,4e1\n", "utf-8-sig", "header in line 1"),
        ("größe;b\r\n1,5;-2,25\r\n1.000,5;3,0\r\n0,125;40\r\n", "latin-1", "decimal commas, encoding cp1252"),
        ("1,5;-2,25\n1000,5;3\n0,125;40\n", "utf-8", "no header, separator ';', decimal commas"),
        ('a,b\n"1,5","-2,25"\n"1000,5","3"\n"0,125","40"\n', "utf-8", "decimal commas"),
        ('a,b\n1.5,-2.25\n"1,000.5",3\n0.125,40\n', "utf-8", "header in line 1"),
        ("a\tb\n1.5\t-2.25\n1000.5\t3\n0.125\t40\n", "utf-16", r"separator '\t', encoding utf-16"),
        ("a\tb\n1.5\t-2.25\n1000.5\t3\n0.125\t40\n", "utf-16-le", "encoding utf-16-le"),
        ("sep=;\na;b\n1.5;-2.25\n1000.5;3\n0.125;40\n", "utf-8", "header in line 2"),
        ("\n\na,b\n1.5,-2.25\n\n1000.5,3\n0.125,40\n  \n,\n", "utf-8", "3 rows, header in line 3"),
        ("a,b,\n1.5,-2.25,\n1000.5,3,\n0.125,40,\n", "utf-8", "left out Unnamed: 2 (empty)"),
        ('"","a","b"\n"x",1.5,-2.25\n"y",1000.5,3\n"z",0.125,40\n', "utf-8", "left out Unnamed: 0 (an index"),
        ('"a","b"\n"x",1.5,-2.25\n"y",1000.5,3\n"z",0.125,40\n', "utf-8", "left out Unnamed: 0 (an index"),
        (",0,1\n7,1.5,-2.25\n9,1000.5,3.0\n12,0.125,40.0\n", "utf-8", "left out Unnamed: 0 (an index"),
    ],
)
def test_a_table_is_read_in_its_dialect(tmp_path, caplog, text, encoding, note):
    caplog.set_level(logging.INFO)
    np.testing.assert_array_equal(files.read(written(tmp_path / "a.csv", text, encoding)).values, VALUES)
    assert "2 columns, 3 rows" in caplog.text
    assert note in caplog.text
    packed = tmp_path / "b.csv.gz"
    packed.write_bytes(gzip.compress(text.encode(encoding)))
    np.testing.assert_array_equal(files.read(packed).values, VALUES)


def test_large_tables_are_read_alike(tmp_path, monkeypatch, caplog):
    for text, encoding in (
        ("größe;k;b\n1,5;x;-2,25\n\n1000,5;y;3\n0,125;x;40\n", "latin-1"),
        ("sep=,\na,k,b\n1.5,x,-2.25\n1000.5,y,3\n.125,x,40", "utf-8-sig"),
        ("1.5,x,-2.25\n1000.5,y,3\n0.125,x,4e1\n", "utf-16"),
        ("a,k,b\n1.5,x,-2.25\n1000.5,y,3\n0.125,x,+40\n7,x,NA\n", "utf-8"),
    ):
        path = written(tmp_path / "a.csv", text, encoding)
        label = reading.open_table(path).names[1]
        read = files.read(path, labels=label, skip_unreadable=True)
        monkeypatch.setattr(tables, "_LARGE", 0)
        again = files.read(path, labels=label, skip_unreadable=True)
        monkeypatch.undo()
        np.testing.assert_array_equal(read.values, VALUES)
        np.testing.assert_array_equal(again.values, VALUES)
        assert again.labels.tolist() == read.labels.tolist() == [0, 1, 0]
        assert again.columns == read.columns
    table = reading.open_table(written(tmp_path / "a.csv", "a,b\n1.5,-2.25\n1000.5,3\n0.125,40\n"))
    np.testing.assert_array_equal(tables._at_once(table, ["b"], None)[0], [[-2.25], [3], [40]])


@pytest.mark.parametrize(
    ("first", "rows", "header"),
    [
        ("0,1,2", ["5,1,7", "3,2,9"], True),  # pandas' names of whole numbers
        ("0", ["0.5", "1.5"], True),
        ("2019,2020,2021", ["5,1,7", "3,2,9"], True),
        ("name,2019,2020,2021", ["x,1.5,2.5,3.5", "y,2.5,1.5,0.5"], True),
        ("400,402.5,405,407.5,410,412.5,415,417.5", ["1,3,2,4,5,7,6,8", "3,1,2,4,5,7,6,8"], True),  # wavelengths
        ("a,3", ["1.5,2.5", "2.5,3.5"], True),
        ("5.1,3.5,setosa", ["4.9,3.0,setosa", "6.3,3.3,virginica"], False),
        ("39,State-gov,<=50K", ["50,?,<=50K", "38,Private,>50K"], False),
        ("0.1,0.2,0.3", ["5,1,7", "3,2,9"], False),
        ("1,2,3", ["2,3,4", "3,4,5"], None),
        ("0,1", ["1,0", "1,1"], None),
        ("1", ["2", "3"], False),
    ],
)
def test_what_a_first_line_is(tmp_path, first, rows, header):
    path = written(tmp_path / "a.csv", "\n".join([first, *rows]))
    if header is None:
        with pytest.raises(ValueError, match="may name the columns or be the first row.*--no-header"):
            reading.open_table(path)
    else:
        assert (reading.open_table(path).line == 1) == header
    for said in (True, False):
        table = reading.open_table(path, header=said)
        assert (table.names == first.split(",")) == said
        assert sum(len(chunk.values) for chunk in table.chunks(table.names)) == len(rows) + 1 - said


def test_a_column_of_decimal_commas_has_no_separator(tmp_path):
    read = files.read(written(tmp_path / "a.csv", "wert\n1,5\n2,25\n-3,0\n"))
    np.testing.assert_array_equal(read.values, [[1.5], [2.25], [-3]])


def test_options_say_what_a_table_is(tmp_path):
    path = written(tmp_path / "a.csv", "1|2,5\n3|4,5\n", "utf-16")
    read = files.read(path, header=False, decimal=",", encoding="utf-16", separator="|")
    np.testing.assert_array_equal(read.values, [[1, 2.5], [3, 4.5]])
    for options, message in (
        ({"encoding": "utf-8"}, "a.csv can't be read as utf-8 text.*--encoding"),
        ({"encoding": "klingon"}, "unknown encoding: klingon"),
        ({"separator": "ab"}, "separator must be one character"),
    ):
        with pytest.raises(ValueError, match=message):
            files.read(path, **options)
    np.save(tmp_path / "a.npy", np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"'decimal' doesn't apply to \.npy"):
        files.read(tmp_path / "a.npy", decimal=",")


def test_missing_cells_and_booleans(tmp_path):
    path = written(tmp_path / "a.csv", "a,b\n1,TRUE\nNA,1\n?,0\n2,False\n3,\n4,oops\n")
    with pytest.raises(ValueError) as raised:
        files.read(path)
    # One error says all, and what to do.
    for part in (
        "'b' ('oops' in line 7)",
        "--drop b)",
        "'a' (2 of 6 rows, first row 2), 'b' (1 of 6 rows, first row 5)",
        "--skip-unreadable",
    ):
        assert part in str(raised.value)
    read = files.read(path, skip_unreadable=True)
    np.testing.assert_array_equal(read.values, [[1, 1], [2, 0]])
    assert read.numbers([0, 1]) == [1, 4]


def test_rows_of_text_and_gaps_are_left_out_and_said(tmp_path, caplog):
    path = written(tmp_path / "a.csv", "id,a,b,c\nx1,1,2,u\nx2,,3,v\nx3,4,inf,u\nx4,5,6,w\nx5,7\n")
    with pytest.raises(ValueError, match="line 6 has 2 cells, and the header in line 1 has 4"):
        files.read(path)
    read = files.read(path, drop=["c"], skip_unreadable=True)
    np.testing.assert_array_equal(read.values, [[1, 2], [5, 6]])
    assert read.columns == ["a", "b"]
    assert "left out 3 rows with gaps or text, the first: row 2, where 'a' is missing in line 3" in caplog.text
    assert "left out c (as asked), left out id (text)" in caplog.text
    assert files.read(path, drop=["c,id"], skip_unreadable=True).columns == ["a", "b"]
    read = files.read(path, drop=["id"], labels="c", skip_unreadable=True)
    assert [read.classes[i] for i in read.labels] == ["u", "w"]


def test_a_column_of_remarks_and_an_empty_one_are_left_out(tmp_path, caplog):
    path = written(tmp_path / "a.csv", "a,remark,empty,b\n1,,,2\n3,checked,,4\n,,,6\n7,,,8\n")
    read = files.read(path, skip_unreadable=True)
    np.testing.assert_array_equal(read.values, [[1, 2], [3, 4], [7, 8]])
    assert "left out remark (text)" in caplog.text
    assert "left out empty (no value)" in caplog.text
    assert "left out 1 row with gaps or text" in caplog.text


def test_digits_that_float64_lacks_are_said(tmp_path, caplog):
    path = written(tmp_path / "a.csv", "ts,a\n1700000000123456789,1\n1700000000123456999,2\n")
    caplog.set_level(logging.INFO)
    assert files.read(path).values[0, 0] == 1700000000123456789.0
    assert "rounded to 16 digits: ts" in caplog.text


def test_whole_numbers_may_become_decimals_late_in_a_file(tmp_path):
    rows = ["7,1"] * 300_000 + ["7.5,2"]
    read = files.read(written(tmp_path / "a.csv", "\n".join(["a,b", *rows])))
    assert read.values.shape == (300_001, 2)
    assert read.values[-1].tolist() == [7.5, 2]


def test_what_only_looks_like_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(dialects, "_LONGEST_LINE", 10**5)
    for content, message in (
        (b"PK\x03\x04 and more", "spreadsheet or a zip archive"),
        (gzip.compress(b"a,b\n1,2\n" * 50)[:-20], "can't be read as a table"),
        (b"\n \n", "is empty"),
        (b"a,b,a\n1,2,3\n", "share a name: a"),
        (gzip.compress(b"1" * 10**6), "a line has more than"),
        (b'a,b\n1,"2\n' + b"3,4\n" * 40_000, "line .*quotation mark"),
    ):
        (tmp_path / "a.csv").write_bytes(content)
        with pytest.raises(ValueError, match=message) as raised:
            files.read(tmp_path / "a.csv")
        assert "a.csv" in str(raised.value)


def test_a_table_goes_by_names_or_by_places(tmp_path):
    like = Preparation("table", (2,), columns=("1", "0"))
    np.testing.assert_array_equal(
        files.read(written(tmp_path / "a.csv", "0,1\n3,4\n1,0\n"), like=like).values, [[4, 3], [0, 1]]
    )
    bare = written(tmp_path / "b.csv", "3.5,4\n1,0\n")
    like = Preparation("table", (2,), columns=("b", "a"))
    np.testing.assert_array_equal(files.read(bare, like=like).values, [[3.5, 4], [1, 0]])
    read = files.read(written(tmp_path / "b.csv", "1,2\n7.5,1.5\n4.5,3.5\n"), like=like)
    np.testing.assert_array_equal(read.values, [[1, 2], [7.5, 1.5], [4.5, 3.5]])
    # An earlier version read a header of numbers as a row, and named the columns itself.
    like = Preparation("table", (2,), columns=("f0", "f1"))
    np.testing.assert_array_equal(
        files.read(written(tmp_path / "a.csv", "0,1\n3.5,4.5\n"), like=like).values, [[3.5, 4.5]]
    )
    read = files.read(written(tmp_path / "a.csv", "x,y,z\n1,2,3\n"), like=like, columns=["z", "x"])
    np.testing.assert_array_equal(read.values, [[3, 1]])


# parquet


def test_parquet_of_a_frame(tmp_path):
    import pandas as pd

    frame = pd.DataFrame({"a": [1.5, 2.5, 3.5], "b": pd.Categorical([3, 1, 3]), "c": pd.array([1, None, 2], "Int64")})
    frame[frame.a > 2].set_index(pd.Index([7, 9], name="when")).to_parquet(tmp_path / "a.parquet")
    assert files.read(tmp_path / "a.parquet", drop=["c"]).columns == ["a", "b"]
    with pytest.raises(ValueError, match=r"'c' \(1 of 2 rows, first row 1\)"):
        files.read(tmp_path / "a.parquet")
    read = files.read(tmp_path / "a.parquet", skip_unreadable=True)
    np.testing.assert_array_equal(read.values, [[3.5, 3, 2]])
    assert read.numbers([0]) == [2]


def test_columns_of_lists_and_tensors(tmp_path, rng):
    import pyarrow as pa
    from pyarrow import parquet

    images = rng.integers(0, 256, (5, 4, 3), dtype="uint8")
    tensors = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.uint8(), (4, 3)), pa.FixedSizeListArray.from_arrays(images.reshape(-1), 12)
    )
    lists = pa.array([[1.0, 2], [3, 4], [5, 6], [7, 8], [9, 10]])
    table = pa.table({"id": [1, 2, 3, 4, 5], "x": tensors, "v": lists})
    parquet.write_table(table, tmp_path / "both.parquet")
    parquet.write_table(table.drop_columns(["v"]), tmp_path / "a.parquet")
    for read in (files.read(tmp_path / "a.parquet"), files.read(tmp_path / "both.parquet", columns=["x"])):
        np.testing.assert_array_equal(read.values, images[..., None])
        assert read.values.dtype == np.uint8
    read = files.read(tmp_path / "both.parquet", columns=["v"], like=Preparation("table", (2,)))
    np.testing.assert_array_equal(read.values, [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]])
    with pytest.raises(ValueError, match=r"hold lists: x, v.*--columns"):
        files.read(tmp_path / "both.parquet")
    with pytest.raises(ValueError, match=r"hold lists: x\. Name one alone"):
        files.read(tmp_path / "both.parquet", columns=["id", "x"])
    parquet.write_table(pa.table({"x": [[1.0, 2], [3]]}), tmp_path / "odd.parquet")
    with pytest.raises(ValueError, match="Lists of different lengths.*rows 1 to 2"):
        files.read(tmp_path / "odd.parquet")


# arrays


def test_arrays_with_gaps(tmp_path, caplog):
    x = np.arange(12.0).reshape(4, 3)
    x[1, 1], x[2, 0] = np.nan, np.inf
    np.save(tmp_path / "a.npy", x)
    with pytest.raises(ValueError, match=r"a\.npy holds NaN or infinity in 2 of 4 examples, first in example 2"):
        files.read(tmp_path / "a.npy")
    read = files.read(tmp_path / "a.npy", skip_unreadable=True)
    np.testing.assert_array_equal(read.values, x[[0, 3]])
    assert read.numbers([0, 1]) == [1, 4]
    assert "left out 2 with NaN or infinity" in caplog.text


def test_missing_values_are_taken_where_they_may_be(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = written(tmp_path / "t.csv", "a,b\n1,2\n,4\n5,NA\n")
    read = files.read(path, missing=True)
    np.testing.assert_array_equal(read.values, [[1, 2], [np.nan, 4], [5, np.nan]])
    assert "2 columns, 3 rows, header in line 1, 2 missing values" in caplog.text
    np.save(tmp_path / "t.npy", read.values)
    np.testing.assert_array_equal(files.read(tmp_path / "t.npy", missing=True).values, read.values)
    # Text and infinity are no missing values, nor is a column of nothing else.
    path = written(tmp_path / "u.csv", "a,b\n1,2\n,4\n5,much\ninf,6\n")
    with pytest.raises(ValueError, match=r"hold no numbers: 'b' \('much' in line 4\)"):
        files.read(path, missing=True)
    read = files.read(path, missing=True, skip_unreadable=True)
    np.testing.assert_array_equal(read.values, [[1, 2], [np.nan, 4]])
    assert read.numbers([0, 1]) == [1, 2]
    with pytest.raises(ValueError, match="hold no value at all: b"):
        files.read(written(tmp_path / "v.csv", "a,b\n1,\n2,\n"), missing=True)
    path = written(tmp_path / "w.csv", "a,b,name\n1,2,u\n,4,v\n")
    with pytest.raises(ValueError, match=r"^Columns of \S+ hold no numbers: 'name' \('u'.*--drop name") as raised:
        files.read(path, missing=True)
    assert "gaps" not in str(raised.value)
    read = files.read(path, missing=True, drop=["name"])
    with pytest.raises(ValueError, match="Columns without any value among the training examples: a"):
        Preparation.fit(read, np.array([1]), missing=True)


# images


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_deep_pixels_are_scaled_by_their_bits(tmp_path, caplog, bits):
    caplog.set_level(logging.INFO)
    white = 2**bits - 1
    for name, value in (("a.png", white), ("b.tif", white // 2), ("c.png", 0)):
        Image.fromarray(np.full((4, 4), value, "uint16")).save(tmp_path / name)
    read = files.read(tmp_path)
    np.testing.assert_array_equal(read.values[:, 0, 0, 0], [255, 127, 0])
    assert read.levels == (0, white)
    assert f"3 of them of more than 8 bits (0 to {white}) scaled to 8" in caplog.text
    # A dark one alone is scaled as it was among the others.
    prepared = Preparation.fit(read, [0, 1, 2])
    like = Preparation.from_dict(prepared.to_dict())
    np.testing.assert_array_equal(files.read(tmp_path / "b.tif", like=like).values, read.values[1:2])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.float32([0, 0.5, 1]), [0, 128, 255]),
        (np.float32([0, 51, 255]), [0, 51, 255]),
        (np.float32([-1000, 0, 3000]), [0, 64, 255]),  # computed tomography
        (np.int32([-1000, 0, 3000]), [0, 64, 255]),
        (np.int32([0, 2**20, 2**30]), [0, 0, 255]),
    ],
)
def test_float_and_32_bit_pixels(tmp_path, values, expected):
    Image.fromarray(values[None]).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(files.read(tmp_path).values[0, 0, :, 0], expected)


def test_float_pixels_without_numbers_are_named(tmp_path):
    Image.fromarray(np.float32([[0, np.nan]])).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif \(its pixels hold NaN"):
        files.read(tmp_path)


def test_all_kinds_of_images_are_read_or_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    image, other = Image.new("RGB", (8, 8), (200, 40, 40)), tmp_path / "other"
    (tmp_path / "photos").mkdir()
    other.mkdir()
    for name in ("a.png", "b.gif", "c.ppm", "d.jp2", "e.bmp", "f.webp"):
        image.save(tmp_path / "photos" / name)
    image.save(tmp_path / "photos" / "g.jfif", format="JPEG")
    image.save(tmp_path / "photos" / "h.tif", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    image.save(other / "i.png")
    os.symlink(other, tmp_path / "photos" / "linked")
    os.symlink(tmp_path / "photos", other / "back")  # a circle
    (tmp_path / "photos" / "k.heic").write_bytes(b"no image")
    os.rename(tmp_path / "photos" / "a.png", os.fsencode(tmp_path / "photos") + b"/caf\xe9.png")
    read = files.read(tmp_path / "photos")
    assert read.names == [
        *("b.gif", "c.ppm"),
        r"caf\xe9.png",
        *("d.jp2", "e.bmp", "f.webp", "g.jfif", "h.tif", "linked/i.png"),
    ]
    np.testing.assert_allclose(read.values, np.broadcast_to([200, 40, 40], read.values.shape), atol=3)
    assert (
        "9 images to 8x8 pixels, rgb, 8 bits, the first page alone of 1 with several, left out 1 .heic (export photos of phones as JPEG)"
        in caplog.text
    )
    assert len(caplog.records) == 1


def png_of_16_bits(path, pixels):
    """An RGB file of 16 bits per colour, which Pillow doesn't write; pixels are uint16 of (height, width, 3)."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def test_colours_of_16_bits_are_cut_to_the_upper_8_and_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    png_of_16_bits(tmp_path / "a.png", np.full((4, 4, 3), [0x8123, 0x40FF, 0xFFFF], "uint16"))
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    np.testing.assert_array_equal(files.read(tmp_path).values[0, 0, 0], [0x81, 0x40, 0xFF])
    assert "8 bits, 1 of them of 16 bits per colour, of which Pillow reads the upper 8" in caplog.text


def test_folders_that_cant_be_read_and_broken_links_are_said(tmp_path, caplog, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "closed").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    own = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return own(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(
        ValueError, match=r"closed \(a folder: Permission denied\), gone.png \(.*No such file.*--skip-unreadable"
    ):
        files.read(tmp_path)
    assert files.read(tmp_path, skip_unreadable=True).names == ["a.png"]
    assert len(caplog.records) == 1
    assert "left out 2 that can't be read: closed (a folder: Permission denied), gone.png" in caplog.text
    (tmp_path / "a.png").unlink()
    (tmp_path / "gone.png").unlink()
    with pytest.raises(ValueError, match=r"no images in .*closed can't be read: Permission denied"):
        files.read(tmp_path)
