"""`kerasae detect`: from photos and tables to a detector, and to a machine that has neither Keras nor TensorFlow."""

import csv
import json
import math
import pickle
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_sample_images

from kerasae import tasks
from kerasae.cli.app import cli
from kerasae.data import files
from kerasae.runs import checkpoints
from kerasae.runs import detector as detectors
from kerasae.writing import sha256

QUICK = ["--set", "epochs=1", "--set", "max_samples=100"]
WITHOUT_TENSORFLOW = "import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None\n"
# What a server lacks can't be imported.
WITHOUT = "import sys; sys.modules.update(dict.fromkeys(['tensorflow', 'keras', 'kerasae', 'sklearn', 'pyarrow']))\n"


def call(*arguments, code=0):
    result = CliRunner().invoke(cli, ["detect", *map(str, arguments)])
    if isinstance(result.exception, (ValueError, OSError)):
        assert code == 1, result.exception
        return str(result.exception)
    assert result.exit_code == code, (result.output, result.exception)
    return result.output if code else result.stdout


def crops(image, folder, num, seed=0):
    """Crops of a photo, of different sizes."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    for i in range(num):
        height, width = random.integers(40, 80, 2)
        top, left = random.integers(0, 300, 2)
        Image.fromarray(image[top : top + height, left : left + width]).save(
            folder / f"{i:02}.{('png', 'jpg', 'JPG')[i % 3]}"
        )
    return folder


def many_kinds(photo, folder):
    """One photo as cameras, scanners and designers store it."""
    folder.mkdir()
    photo.save(folder / "plain.png")
    lying = Image.Exif()
    lying[0x0112] = 6
    photo.transpose(Image.Transpose.ROTATE_90).save(folder / "lying.jpg", exif=lying)
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    photo.convert("P").save(folder / "palette.png")
    photo.convert("L").save(folder / "grey.png")
    clear = photo.copy()
    clear.putalpha(100)
    clear.save(folder / "clear.png")
    Image.fromarray(np.asarray(photo.convert("L"), "uint16") * 257).save(folder / "sixteen.png")
    photo.resize((400, 90)).save(folder / "wide.webp")
    (folder / "inner").mkdir()
    photo.save(folder / "inner" / "a.tif")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with photos, and a detector fitted to them; and what that printed."""
    root = tmp_path_factory.mktemp("photos")
    china, flower = load_sample_images().images
    crops(china, root / "photos", 40)
    (root / "photos" / "torn.jpg").write_bytes((root / "photos" / "01.jpg").read_bytes()[:300])
    crops(flower, root / "odd", 8)
    many_kinds(Image.fromarray(china[100:180, 200:260]), root / "new")
    arguments = ["fit", root / "photos", "--anomalies", root / "odd", "--folder", root / "detector", *QUICK]
    assert "--skip-unreadable" in call(*arguments, code=1)
    assert not (root / "detector").exists()
    return root, call(*arguments, "--skip-unreadable", "--test-fraction", 0.25, "--json")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table whose last column is a name, and a detector of the others."""
    root = tmp_path_factory.mktemp("table")
    values = np.random.default_rng(0).normal(size=(80, 3)) * (1, 10, 1000) + (0, 5, 1e6)
    write_table(root / "table.csv", values)
    call("fit", root / "table.csv", "--drop", "name", "--folder", root / "detector", *QUICK)
    return root, values


def write_table(path, values, order=(0, 1, 2)):
    with open(path, "w", newline="") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow([*np.array(["a", "b", "c"])[list(order)], "name"])
        rows.writerows([*row[list(order)], f"row {i}"] for i, row in enumerate(values))


def read(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def on_a_server(folder, *arguments, code=0):
    """What score.py prints, in a process that has NumPy, ONNX Runtime and Pillow only."""
    run = f"{WITHOUT}import runpy; sys.argv = ['score.py', *sys.argv[1:]]; runpy.run_path('score.py', run_name='__main__')"
    result = subprocess.run(
        [sys.executable, "-c", run, *map(str, arguments)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == code, result.stderr
    return list(csv.DictReader(result.stdout.splitlines())), result.stderr


def test_a_threshold_that_is_no_number_is_refused(table, tmp_path, monkeypatch):
    from kerasae.runs.detector import Scorer

    server = tmp_path / "server"
    shutil.copytree(table[0] / "detector" / "server", server)
    facts = json.loads((server / "detector.json").read_text())
    (server / "detector.json").write_text(json.dumps({**facts, "threshold": float("nan")}))
    monkeypatch.syspath_prepend(server)
    on_server = runpy.run_path(str(server / "score.py"))["Detector"]
    for make, folder in ((Scorer, tmp_path), (on_server, server)):
        with pytest.raises(ValueError, match="threshold"):
            make(folder)


def test_a_detector_is_complete_in_itself(photos):
    root, printed = photos
    made, folder = json.loads(printed), root / "detector"
    assert {p.name for p in folder.iterdir()} == {
        *("detector.pkl", "metrics.json", "scores.csv", "report.html", "figures", "server")
    }
    assert {p.name for p in (folder / "server").iterdir()} == {
        *("README.md", "detector.json", "runtime.py", "score.py", "reading", "bundle")
    }
    assert (made["num_train"], made["num_test"], made["num_anomalies"]) == (30, 10, 8)
    detector = pickle.loads((folder / "detector.pkl").read_bytes())
    assert detector.offset_ == made["threshold"]
    assert json.loads((folder / "server" / "detector.json").read_text())["threshold"] == made["threshold"]
    rows = read(folder / "scores.csv")
    assert [float(row["score"]) for row in rows] == sorted(float(row["score"]) for row in rows)
    odd = {
        which: [row["anomaly"] == "1" for row in rows if row["which"] == which]
        for which in ("held out", "known anomaly")
    }
    measured = {record["metric"]: record["value"] for record in made["metrics"]}
    assert measured["false_alarms"] == pytest.approx(100 * np.mean(odd["held out"]))
    assert measured["found"] == pytest.approx(100 * np.mean(odd["known anomaly"]))
    held_out, known = (np.array([float(row["score"]) for row in rows if row["which"] == which]) for which in odd)
    assert measured["roc_auc"] == pytest.approx(np.mean(held_out[:, None] > known))
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png") == 2
    assert f"{made['threshold']:.6g}" in page


def test_a_stopped_fit_goes_on(table, tmp_path, monkeypatch):
    root, _ = table
    shutil.copy(root / "table.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detectors, "_SECONDS_BETWEEN_STATES", 0)
    fit = [
        "fit",
        "table.csv",
        "--drop",
        "name",
        "--folder",
        "detector",
        "--set",
        "epochs=3",
        "--set",
        "max_samples=100",
    ]
    save, saved = checkpoints.Progress.save, []

    def stop(self, model, epoch, logs):
        save(self, model, epoch, logs)
        saved.append((self.folder.name, epoch))
        if len(saved) == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.Progress, "save", stop)
        assert "Go on with the same command" in CliRunner().invoke(cli, ["detect", *fit]).stderr
    assert saved[-1] == ("member-1", 2)
    assert [p.name for p in Path("detector").iterdir()] == [".checkpoint-detector"]
    assert "epochs was 3 and is 4" in call(*fit, "--set", "epochs=4", code=1)
    result = json.loads(call(*fit, "--json"))
    assert not list(Path("detector").glob(".*"))
    call(*fit[:-4], "--set", "epochs=3", "--set", "max_samples=100", "--folder", "whole")
    assert result["threshold"] == pytest.approx(
        json.loads(Path("whole/metrics.json").read_text())["threshold"], rel=1e-4
    )


def test_a_fit_that_stops_early_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch):
    monkeypatch.setattr(detectors, "_SECONDS_BETWEEN_STATES", 0)
    x, save, saved = np.random.default_rng(0).normal(size=(90, 4)), checkpoints.Progress.save, []

    def fitted(folder, stop=math.inf):
        def saving(self, model, epoch, logs):
            save(self, model, epoch, logs)
            saved.append(epoch)
            if epoch == stop:
                raise KeyboardInterrupt

        options = {"validation_fraction": 0.3, "patience": 2, "max_samples": 60, "n_estimators": 1, "epochs": 12}
        detector = tasks.AnomalyDetector(**options, learning_rate=0.05, random_state=0)
        (tmp_path / folder).mkdir(exist_ok=True)
        detector._going_on = detectors._going_on(tmp_path / folder)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints.Progress, "save", saving)
            detector.fit(x)
        return [*detector.estimators_[0].get_weights(), detector.offset_]

    whole, epochs = fitted("whole"), list(saved)
    assert 3 < len(epochs) < 12  # it stops early
    for stop in (len(epochs) - 1, len(epochs)):
        with pytest.raises(KeyboardInterrupt):
            fitted(f"{stop}", stop)
        saved.clear()
        for a, b in zip(fitted(f"{stop}"), whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert saved == epochs[stop:]
        assert len(list((tmp_path / f"{stop}" / "member-0").glob("*.stopping.npz"))) == 2


def test_scores_are_the_detector_s(photos, tmp_path):
    root, _ = photos
    printed = json.loads(call("score", root / "detector", root / "new", "--json"))
    detector = pickle.loads((root / "detector" / "detector.pkl").read_bytes())
    x = files.read(root / "new", image_size=(64, 64), color="rgb").values / np.float32(255)
    expected = detector.score_samples(x)
    np.testing.assert_allclose([row["score"] for row in printed["examples"]], expected, rtol=1e-3)
    assert [row["anomaly"] for row in printed["examples"]] == (expected < detector.offset_).astype(int).tolist()
    call("score", root / "detector", root / "new", tmp_path / "s.csv")
    assert [(r["file"], float(r["score"])) for r in read(tmp_path / "s.csv")] == [
        (r["file"], pytest.approx(r["score"])) for r in printed["examples"]
    ]
    assert "is there already" in call("score", root / "detector", root / "new", tmp_path / "s.csv", code=1)
    call("score", root / "detector", root / "new", tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as stored:
        assert set(stored.files) == {"file", "score", "anomaly"}
    np.save(tmp_path / "x.npy", x)  # the same pixels as floats
    call("score", root / "detector", tmp_path / "x.npy", tmp_path / "s.npy")
    np.testing.assert_allclose(np.load(tmp_path / "s.npy"), expected, rtol=1e-3)
    result = CliRunner().invoke(cli, ["export", str(root / "detector"), str(tmp_path / "bundle")])
    assert "kerasae detect score" in str(result.exception)
    text = call("score", root / "detector", root / "new" / "plain.png")
    assert text.split()[0] == "plain.png"


def test_scoring_needs_no_tensorflow(photos):
    root, _ = photos
    code = f"{WITHOUT_TENSORFLOW}from kerasae.cli import main; main()"
    arguments = ["detect", "score", str(root / "detector"), str(root / "new")]
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 9


def test_a_graph_that_was_swapped_is_refused(photos, table, tmp_path):
    detector = shutil.copytree(photos[0] / "detector", tmp_path / "detector")
    shutil.copy(table[0] / "detector" / "server" / "bundle" / "score_samples.onnx", detector / "server" / "bundle")
    assert "is not the file that was exported" in call("score", detector, photos[0] / "new", code=1)


def test_a_server_scores_raw_photos_alike(photos, tmp_path):
    root, _ = photos
    server = shutil.copytree(root / "detector" / "server", tmp_path / "server")
    call("score", root / "detector", root / "new", tmp_path / "here.csv")
    here = {row["file"]: row for row in read(tmp_path / "here.csv")}
    there, _ = on_a_server(server, root / "new")
    assert {row["file"] for row in there} == set(here)
    for row in there:
        assert float(row["score"]) == pytest.approx(float(here[row["file"]]["score"]), rel=1e-5)
        assert row["anomaly"] == here[row["file"]]["anomaly"]
    rows, said = on_a_server(server, root / "photos", code=1)
    assert len(rows) == 40  # the broken one doesn't keep the others
    assert said.startswith("torn.jpg: ")
    with open(server / "bundle" / "score_samples.onnx", "ab") as file:
        file.write(b"x")
    _, said = on_a_server(server, root / "new", code=1)
    assert "is not the file that was exported" in said


def test_what_holds_other_files_hashes_is_on_record_itself(photos, tmp_path):
    root, _ = photos
    server = shutil.copytree(root / "detector", tmp_path / "detector") / "server"
    manifest, facts = server / "bundle" / "manifest.json", server / "detector.json"
    manifest.write_text(manifest.read_text() + " ")
    _, said = on_a_server(server, root / "new", code=1)
    message = "its SHA-256 is not the one on record"
    assert message in said
    assert message in call("score", tmp_path / "detector", root / "new", code=1)
    facts.write_text(facts.read_text() + " ")
    assert "If you changed it yourself, score with" in call("score", tmp_path / "detector", root / "new", code=1)
    # Detectors of earlier versions hold no such records.
    (tmp_path / "detector" / "metrics.json").write_text("{}")
    facts.write_text(json.dumps({k: v for k, v in json.loads(facts.read_text()).items() if k != "manifest"}))
    call("score", tmp_path / "detector", root / "new")


def test_a_reader_that_stops_is_no_error(table, tmp_path):
    root, values = table
    np.save(tmp_path / "many.npy", np.repeat(values, 200, axis=0))
    commands = (f"{root}/detector/server/score.py {tmp_path}/many.npy | head -1", "-m kerasae.cli zoo list | true")
    for command in commands:
        command = f"set -o pipefail; {sys.executable} {command}"
        result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert (result.returncode != 0, result.stderr) == (True, ""), command
    assert result.stdout == ""


def test_a_servers_graph_names_no_file_outside(photos, tmp_path):
    """ONNX Runtime would read its weights from wherever it says."""
    import onnx

    server = shutil.copytree(photos[0] / "detector" / "server", tmp_path / "server")
    graph, manifest, facts = (
        server / n for n in ("bundle/score_samples.onnx", "bundle/manifest.json", "detector.json")
    )
    model = onnx.load(graph)
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="../../secret")
    onnx.save(model, graph)
    made, entry = json.loads(manifest.read_text()), {"sha256": sha256(graph), "bytes": graph.stat().st_size}
    made["files"]["score_samples.onnx"] = entry
    manifest.write_text(json.dumps(made))
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "manifest": sha256(manifest)}))
    _, said = on_a_server(server, photos[0] / "new", code=1)
    assert "weights lie in another file" in said


@pytest.mark.parametrize("name", ["score_samples.onnx", "../score_samples.onnx"])
def test_a_changed_detector_scores_nothing(photos, tmp_path, name):
    root, _ = photos
    bundle = shutil.copytree(root / "detector", tmp_path / "detector") / "server" / "bundle"
    if name.startswith(".."):
        shutil.copy(bundle / "score_samples.onnx", bundle.parent)
        text = (bundle / "manifest.json").read_text()
        (bundle / "manifest.json").write_text(text.replace('"score_samples.onnx"', json.dumps(name)))
        message = "names a file outside the bundle"
    else:
        with open(bundle / name, "ab") as file:
            file.write(b"x")
        message = "is not the file that was exported"
    assert message in call("score", tmp_path / "detector", root / "new", code=1)


def test_the_readme_for_the_server_is_true(photos, table, tmp_path):
    for root in (photos[0], table[0]):
        server = shutil.copytree(root / "detector" / "server", tmp_path / root.name)
        text = (server / "README.md").read_text()
        assert f"{json.loads((server / 'detector.json').read_text())['threshold']!r}" in text
        (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        shutil.copy(photos[0] / "new" / "plain.png", server / "photo.jpg")
        result = subprocess.run(
            [sys.executable, "-c", WITHOUT + block], cwd=server, capture_output=True, text=True, check=False
        )
        assert result.stdout.strip() in ("[ True]", "[False]"), result.stderr


def test_tables_go_by_their_columns(table, tmp_path):
    root, values = table
    detector = pickle.loads((root / "detector" / "detector.pkl").read_bytes())
    new = values[:20] + 1
    expected = detector.score_samples(new.astype("float32"))
    write_table(tmp_path / "new.csv", new, order=(2, 0, 1))
    scored = json.loads(call("score", root / "detector", tmp_path / "new.csv", "--json"))
    np.testing.assert_allclose([row["score"] for row in scored["examples"]], expected, rtol=1e-3)
    assert [row["row"] for row in scored["examples"]] == list(range(1, 21))
    rows, _ = on_a_server(root / "detector" / "server", tmp_path / "new.csv")
    np.testing.assert_allclose([float(row["score"]) for row in rows], expected, rtol=1e-3)
    np.save(tmp_path / "new.npy", new)
    rows, _ = on_a_server(root / "detector" / "server", tmp_path / "new.npy")
    np.testing.assert_allclose([float(row["score"]) for row in rows], expected, rtol=1e-3)
    np.savetxt(tmp_path / "bare.csv", new, delimiter=",")
    rows, _ = on_a_server(root / "detector" / "server", tmp_path / "bare.csv")
    assert len(rows) == 20
    (tmp_path / "less.csv").write_text("a;c\n1;2\n")
    assert (
        "lacks columns that the model was trained on: b"
        in on_a_server(root / "detector" / "server", tmp_path / "less.csv", code=1)[1]
    )


def test_the_server_reads_what_detect_score_reads(table, tmp_path, monkeypatch, capsys):
    import pyarrow as pa
    from pyarrow import parquet

    root, values = table
    folder, new = root / "detector", values[:6].copy()
    expected = np.array(
        [row["score"] for row in json.loads(call("score", folder, root / "table.csv", "--json"))["examples"]]
    )
    new[1, 1], new[3, 2], new[4, 0] = np.nan, np.inf, 1e300
    monkeypatch.syspath_prepend(folder / "server")

    def scored(name, *array, code=1):
        """What the server prints of a file."""
        monkeypatch.setattr(sys, "argv", ["score.py", str(tmp_path / name), *array])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(folder / "server" / "score.py"), run_name="__main__")
        printed, said = capsys.readouterr()
        if isinstance(ended.value.code, str):  # Python prints it, and ends with 1
            said, ended.value.code = said + ended.value.code, 1
        assert ended.value.code == code
        return list(csv.DictReader(printed.splitlines())), said

    lines = ["when;a;b;text;c", *(f"2024;{a:.17g};{b:.17g};x;{c:.17g}" for a, b, c in new), "", "  ;;;;"]
    (tmp_path / "new.csv").write_text("\n".join(lines).replace("nan", "NA").replace(".", ","), encoding="utf-16")
    np.save(tmp_path / "new.npy", new)
    parquet.write_table(
        pa.table({"c": new[:, 2], "more": ["x"] * 6, "a": new[:, 0], "b": new[:, 1]}), tmp_path / "new.parquet"
    )
    for name in ("new.csv", "new.npy", "new.parquet"):
        rows, said = scored(name)
        assert [row["row"] for row in rows] == ["1", "3", "6"]
        np.testing.assert_allclose([float(row["score"]) for row in rows], expected[[0, 2, 5]], rtol=1e-5)
        assert [line.split(":")[0] for line in said.splitlines()] == ["2", "4", "5"]
        if name != "new.npy":
            assert "2: 'b' is missing" in said
            assert "4: 'c' is infinite" in said
    (tmp_path / "whole.csv").write_text("a,b,c\nTrue,0,1e6\n0,TRUE,1e6\n")
    rows, _ = scored("whole.csv", code=0)
    (tmp_path / "whole.csv").write_text("a,b,c\n1,0,1e6\n0,1,1e6\n")
    assert scored("whole.csv", code=0)[0] == rows
    (tmp_path / "less.csv").write_text("a;b\n1;2\n")
    (tmp_path / "odd.csv").write_text("a,b,c\n1,2,oops\n1,2\n")
    np.savez(tmp_path / "two.npz", new=new[[0, 2, 5]], other=new)
    rows, _ = scored("two.npz", "new", code=0)
    np.testing.assert_allclose([float(row["score"]) for row in rows], expected[[0, 2, 5]], rtol=1e-5)
    np.save(tmp_path / "wide.npy", np.ones((3, 5)))
    for name, message in (
        ("less.csv", "lacks columns that the model was trained on: c. It has: a, b"),
        ("odd.csv", "1: 'c' is 'oops' in line 2, and no number\n2: line 3 has 2 cells, and the header in line 1 has 3"),
        ("missing.csv", "There is no file or folder"),
        ("two.npz", "holds the arrays ['new', 'other']: name one"),
        ("wide.npy", r"must have the shape (3,). Received: (5,)"),
    ):
        assert message in scored(name)[1]
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    assert "not photos" in scored("a.png")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("fit missing --folder d", 1, "no file or folder 'missing'"),
        ("fit empty --folder d", 1, "It is empty"),
        ("fit few.csv --folder d", 1, "hold no numbers: 'name'"),
        ("fit few.csv --folder d --drop name", 1, "At least 10 examples"),
        ("fit few.csv --folder few.csv", 1, "is a file"),
        ("fit few.csv --folder d --image-size 8", 1, "'image_size' doesn't apply"),
        ("fit few.csv --folder full", 1, "is not empty"),
        ("fit few.csv --folder d --anomalies missing", 1, "no file or folder 'missing'"),
        ("fit many.csv --folder d --set epoch=1", 2, "Did you mean 'epochs'"),
        ("score full few.csv", 1, "no folder that `kerasae detect fit` wrote"),
        ("score full few.csv out.txt", 2, "OUT must end in"),
        ("score full few.csv missing/out.csv", 1, "no folder missing"),
    ],
)
def test_mistakes_are_said_at_the_door(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "few.csv", np.ones((5, 3)))
    np.savetxt(tmp_path / "many.csv", np.eye(20), delimiter=",")
    for folder in ("empty", "full"):
        (tmp_path / folder).mkdir()
    (tmp_path / "full" / "a").write_text("")
    before = set(tmp_path.rglob("*"))
    assert message in call(*arguments.split(), code=code)
    assert set(tmp_path.rglob("*")) == before


def test_memory_is_checked_before_training(monkeypatch):
    copies = []
    monkeypatch.setattr(detectors.checks, "memory", lambda shape, _, __, number, more: copies.append(number))
    detectors._check_memory("photos", 1000, (64, 64, 3), 500, 100)
    detectors._check_memory("photos", 1000, (64, 64, 3), 500, None)
    detectors._check_memory("photos", 100, (64, 64, 3), 6400, None)  # few rows are repeated, but not in memory
    weights = 10 * 512 / 1000
    assert copies == pytest.approx([3.75 + 0.7 + weights, 3.75 + 7.0 + weights, 5.0 + 7.0 + 10 * weights])
