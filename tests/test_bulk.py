"""Bulk runs: Parquet in and out, against the model itself; refusals; a cluster that loses a worker."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import kerasae
from kerasae import builders, runtime
from kerasae.export import bulk
from kerasae.export.running import bulk as engine
from kerasae.export.running import parquet

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("distributed")

SHAPE, FEATURES = (8, 8, 1), 64


@pytest.fixture(scope="module")
def model():
    return builders.variational(SHAPE, latent_dim=3, hidden_units=(16,))


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bulk") / "bundle"
    kerasae.export.export(model, folder, "onnx")
    return folder


@pytest.fixture(scope="module")
def x(digits):
    return digits[1][:150]


def fixed_lists(x):
    return pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), int(np.prod(x.shape[1:])))


def tensors(x):
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(x))


def lists(x):
    return pa.array([row.ravel().tolist() for row in x], pa.list_(pa.float64()))


def write(path, x, make=fixed_lists, row_group_size=None, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": pa.array([f"image-{i}" for i in range(len(x))], pa.string()), "x": make(x), **columns})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def column(path, name):
    return np.stack(pq.read_table(path)[name].to_numpy()).reshape(pq.read_metadata(path).num_rows, -1)


# -- One file ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [fixed_lists, tensors, lists])
def test_codes_are_the_models(model, bundle, x, tmp_path, make):
    # Batches of 64 over row groups of 40: neither divides 150.
    source = write(tmp_path / "in.parquet", x, make, row_group_size=40)
    assert bulk.encode_file(bundle, source, tmp_path / "out.parquet", batch_size=64) == len(x)
    z_mean, z_log_var = model.encoder(x)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["id", "z_mean", "z_log_var"]
    assert table.schema.field("z_mean").type == pa.list_(pa.float32(), 3)
    assert table["id"].to_pylist() == [f"image-{i}" for i in range(len(x))]
    np.testing.assert_allclose(column(tmp_path / "out.parquet", "z_mean"), z_mean, atol=1e-5)
    np.testing.assert_allclose(column(tmp_path / "out.parquet", "z_log_var"), z_log_var, atol=1e-5)


@pytest.mark.parametrize(("name", "first"), [("pixel{}", 0), ("pixel_{}", 1)])
def test_numbered_columns_are_put_in_the_order_of_their_numbers(model, bundle, x, tmp_path, name, first):
    flat = x.reshape(len(x), -1)
    # In the order of the alphabet, pixel10 comes before pixel2.
    order = sorted(range(FEATURES), key=lambda i: name.format(i + first))
    pq.write_table(pa.table({name.format(i + first): flat[:, i] for i in order}), tmp_path / "in.parquet")
    bulk.encode_file(bundle, tmp_path / "in.parquet", tmp_path / "out.parquet", column="pixel")
    np.testing.assert_allclose(column(tmp_path / "out.parquet", "z_mean"), model.encode(x, verbose=0), atol=1e-5)


def test_score_autoencoder_and_decoder(model, bundle, x, tmp_path):
    source = write(tmp_path / "in.parquet", x)
    bulk.encode_file(bundle, source, tmp_path / "score.parquet", "score")
    (expected,) = kerasae.streams.score(model, [x], verbose=0)
    np.testing.assert_allclose(pq.read_table(tmp_path / "score.parquet")["score"].to_numpy(), expected, rtol=1e-5)
    bulk.encode_file(bundle, source, tmp_path / "images.parquet", "autoencoder")
    images = pq.read_table(tmp_path / "images.parquet")["reconstruction"].combine_chunks()
    assert images.type.shape == list(SHAPE)
    np.testing.assert_allclose(images.to_numpy_ndarray(), model.predict(x, verbose=0), atol=1e-5)
    # The encoder's output is the decoder's input.
    bulk.encode_file(bundle, source, tmp_path / "codes.parquet")
    bulk.encode_file(bundle, tmp_path / "codes.parquet", tmp_path / "decoded.parquet", "decoder", column="z_mean")
    np.testing.assert_allclose(
        column(tmp_path / "decoded.parquet", "reconstruction").reshape(images.to_numpy_ndarray().shape),
        images.to_numpy_ndarray(),
        atol=1e-6,
    )


def test_other_columns_are_kept_on_request(bundle, x, tmp_path):
    source = write(tmp_path / "in.parquet", x, label=pa.array(np.arange(len(x))), text=pa.array(["a"] * len(x)))
    for keep, names in [(None, ["id"]), ("all", ["id", "label", "text"]), (["label"], ["label"]), ((), [])]:
        bulk.encode_file(bundle, source, tmp_path / "out.parquet", keep=keep)
        assert pq.read_schema(tmp_path / "out.parquet").names == [*names, "z_mean", "z_log_var"]
    assert pq.read_table(tmp_path / "out.parquet").num_rows == len(x)


def test_a_bundle_of_8_bit_images_and_one_batch_size(tmp_path, digits):
    model = builders.undercomplete(SHAPE, latent_dim=3, hidden_units=(16,))
    kerasae.export.export(model, tmp_path / "bundle", "onnx", image_input="uint8", batch_size=4)
    images = np.random.default_rng(0).integers(0, 256, (10, *SHAPE))
    for dtype in ("uint8", "int64"):
        write(tmp_path / "in.parquet", images.astype(dtype))
        bulk.encode_file(tmp_path / "bundle", tmp_path / "in.parquet", tmp_path / "out.parquet")
        expected = model.encode((images / 255).astype("float32"), verbose=0)
        np.testing.assert_allclose(column(tmp_path / "out.parquet", "z"), expected, atol=1e-5)
    for wrong, message in [
        (images + 1, "from 0 to 255. Received .* to 256"),
        (images / 255, "takes uint8, and .* float64"),
    ]:
        write(tmp_path / "in.parquet", wrong)
        with pytest.raises(ValueError, match=message):
            bulk.encode_file(tmp_path / "bundle", tmp_path / "in.parquet", tmp_path / "out.parquet")


def test_a_file_without_rows_gives_columns_without_rows(bundle, x, tmp_path):
    write(tmp_path / "in.parquet", x[:0])
    assert bulk.encode_file(bundle, tmp_path / "in.parquet", tmp_path / "out.parquet") == 0
    assert pq.read_schema(tmp_path / "out.parquet").field("z_mean").type == pa.list_(pa.float32(), 3)


def with_nan(x):
    x = x.copy()
    x[-1, 0, 0, 0] = np.nan
    return x


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda x: {"x": fixed_lists(with_nan(x))}, {}, "NaN or infinity in rows 128 to 149 of .*in.parquet"),
        (lambda x: {"x": pa.array([[1e300] * 64])}, {}, "Values beyond float32, 1e\\+300 to 1e\\+300, in rows 0 to 0"),
        (
            lambda x: {f"x{i}": pa.array(["a"]) for i in range(64)},
            {},
            "Column 'x0' of .* must hold numbers. Received: string",
        ),
        (lambda x: {"x": fixed_lists(x * 255)}, {}, "from 0 to 1. Received 0 to 255 .*image_input='uint8'"),
        (lambda x: {"x": fixed_lists(x[:, :7])}, {}, r"64 numbers, shape \(8, 8, 1\), and column 'x' .* has 56"),
        (lambda x: {"x": lists(x[:, :7])}, {}, "64 numbers, .* Received 56 in rows 0 to 63"),
        (lambda x: {"x": pa.array([[0.5] * 64, [0.5] * 63])}, {}, "Lists of different lengths, 64 and 63"),
        (lambda x: {"x": pa.array([[0.5] * 64, None])}, {}, "Column 'x' holds nulls"),
        (lambda x: {"x": pa.array([[0.5] * 63 + [None]])}, {}, "Column 'x' holds nulls"),
        (lambda x: {"x": pa.array(["a"])}, {}, "must hold lists of numbers or tensors. Received: string"),
        (lambda x: {"x": pa.array([["a"]])}, {}, "must hold lists of numbers. Received: list"),
        (lambda x: {"x": fixed_lists(x)}, {"column": "image"}, "no column 'image', and none numbered image0"),
        (lambda x: {"x0": pa.array([0.5]), "x2": pa.array([0.5])}, {}, "2 columns x0 to x2, which are not numbered"),
        (lambda x: {"x": fixed_lists(x)}, {"keep": ["label"]}, "no column 'label' to keep"),
        (lambda x: {"x": fixed_lists(x), "z_mean": fixed_lists(x)}, {"keep": "all"}, "part's own output has that name"),
        (lambda x: {"x": fixed_lists(x)}, {"part": "encode"}, "`part` must be one of .*'encoder'.* Received: 'encode'"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_left(bundle, x, tmp_path, make, options, message):
    pq.write_table(pa.table(make(x)), tmp_path / "in.parquet")
    with pytest.raises(ValueError, match=message):
        bulk.encode_file(bundle, tmp_path / "in.parquet", tmp_path / "out.parquet", batch_size=64, **options)
    assert os.listdir(tmp_path) == ["in.parquet"]


def test_a_tampered_bundle_is_refused(bundle, x, tmp_path):
    write(tmp_path / "in.parquet", x)
    shutil.copytree(bundle, tmp_path / "bundle")
    content = (bundle / "encoder.onnx").read_bytes()
    (tmp_path / "bundle" / "encoder.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="encoder.onnx is not the file that was exported"):
        bulk.encode_file(tmp_path / "bundle", tmp_path / "in.parquet", tmp_path / "out.parquet")
    with pytest.raises(ValueError, match="There is no bundle at"):
        bulk.encode_file(tmp_path / "bundel", tmp_path / "in.parquet", tmp_path / "out.parquet")


def test_a_damaged_file_is_named(bundle, x, tmp_path):
    source = write(tmp_path / "in.parquet", x)
    source.write_bytes(source.read_bytes()[:1000])
    with pytest.raises(ValueError, match="in.parquet can't be read as Parquet"):
        bulk.encode_file(bundle, source, tmp_path / "out.parquet")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak where Linux has it")
def test_memory_does_not_grow_with_the_file(bundle, tmp_path):
    code = (
        "import pathlib, pickle, sys\n"
        "sys.modules['kerasae'] = None\n"
        "pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())(*sys.argv[2:])\n"
        "assert 'tensorflow' not in sys.modules\n"
        # What getrusage gives holds the parent's memory too.
        "print(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    (tmp_path / "code").write_bytes(engine._as_code(bulk.encode_file))
    peaks = []
    for rows in (50_000, 400_000):  # 12 and 98 MiB, one row group
        x = np.random.default_rng(0).random((rows, FEATURES), dtype="float32")
        write(tmp_path / "in.parquet", x)
        command = [
            sys.executable,
            "-c",
            code,
            tmp_path / "code",
            bundle,
            tmp_path / "in.parquet",
            tmp_path / "out.parquet",
        ]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024)
    assert peaks[1] - peaks[0] < 30


# -- Doors that need no cluster ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("tcp://10.1.2.3:8786", "another machine and not encrypted.*insecure=True"),
        ("tcp://scheduler.example:8786", "another machine and not encrypted"),
        ("10.1.2.3:8786", "must be an address such as"),
        ("http://127.0.0.1:8787", "must be an address such as"),
        (8786, "must be an address such as"),
    ],
)
def test_an_unsafe_scheduler_is_refused(bundle, tmp_path, scheduler, message):
    with pytest.raises(ValueError, match=message):
        bulk.run(bundle, tmp_path, tmp_path / "out", scheduler=scheduler)


def test_loopback_and_tls_and_permission_pass():
    for address, insecure in [
        ("tcp://127.0.0.1:1", False),
        ("tcp://localhost:1", False),
        ("tcp://[::1]:1", False),
        ("tls://10.1.2.3:1", False),
        ("tcp://10.1.2.3:1", True),
    ]:
        assert engine._check_scheduler(address, insecure) == address


def test_run_refuses_before_any_work(bundle, x, tmp_path):
    source = write(tmp_path / "in" / "a.parquet", x)
    out = tmp_path / "out"
    for inputs, output, options, message in [
        (tmp_path / "nowhere", out, {}, "names no Parquet file"),
        ([tmp_path / "b.parquet"], out, {}, "no file .*b.parquet"),
        (tmp_path / "in", tmp_path / "in", {}, "is the inputs' folder"),
        ([source, source], out, {}, "have the same name"),
        (tmp_path / "in", source / "out", {}, "must be a folder that can be written"),
        (tmp_path / "in", out, {"workers": 0}, "`workers` must be a whole number"),
        (tmp_path / "in", out, {"column": "image"}, "no column 'image'"),
        (write(tmp_path / "empty" / "e.parquet", x[:0]), out, {}, "hold no rows: 1 files"),
    ]:
        with pytest.raises(ValueError, match=message):
            bulk.run(bundle, inputs, output, verbose=0, **options)
    assert not list(tmp_path.rglob("*.partial"))


def test_an_output_of_something_else_is_not_replaced(bundle, x, tmp_path):
    source = write(tmp_path / "in" / "a.parquet", x)
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(source, out / "a.parquet")
    with pytest.raises(ValueError, match="is not an output of this command"):
        bulk.run(bundle, tmp_path / "in", out, verbose=0)
    bulk.encode_file(bundle, source, out / "a.parquet", "score")
    with pytest.raises(ValueError, match="made with another model_sha256, part than"):
        bulk.run(bundle, tmp_path / "in", out, verbose=0)
    report = bulk.run(bundle, tmp_path / "in", out, "score", verbose=0)
    assert (report["files"], report["skipped"]) == (0, 1)
    write(source, x[::-1])
    with pytest.raises(ValueError, match="source_mtime_ns"):
        bulk.run(bundle, tmp_path / "in", out, "score", verbose=0)


# -- On Dask -----------------------------------------------------------------------------------------------------------------------------


def test_a_run_resumes_and_goes_round_bad_files(model, bundle, x, tmp_path, capsys):
    for i in range(4):
        write(tmp_path / "in" / "deep" / f"{i}.parquet", x[30 * i : 30 * i + 30])
    write(tmp_path / "in" / "bad.parquet", with_nan(x))
    write(tmp_path / "in" / "_hidden.parquet", x)
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    (out / "deep" / ".0.parquet.beef.partial").touch()  # what a killed run leaves
    bulk.encode_file(bundle, tmp_path / "in" / "deep" / "2.parquet", out / "deep" / "2.parquet")
    made = (out / "deep" / "2.parquet").stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"1 of 4 files failed; the others are done. .*bad.parquet: NaN or infinity"):
        bulk.run(bundle, tmp_path / "in", out, workers=1)
    assert "240/240" in capsys.readouterr().err  # rows of the progress bar
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert files == [f"deep/{i}.parquet" for i in range(4)]
    assert (out / "deep" / "2.parquet").stat().st_mtime_ns == made
    codes = np.concatenate([column(out / file, "z_mean") for file in files])
    np.testing.assert_allclose(codes, model.encode(x[:120], verbose=0), atol=1e-5)

    (tmp_path / "in" / "bad.parquet").unlink()
    report = bulk.run(bundle, tmp_path / "in", out, workers=1, verbose=0)
    assert (report["rows"], report["files"], report["skipped"]) == (0, 0, 4)


def test_a_killed_worker_is_started_again_and_the_run_completes(model, bundle, tmp_path, capfd):
    x = np.random.default_rng(0).random((4000, *SHAPE), dtype="float32")
    count = 8
    for i in range(count):
        write(tmp_path / "in" / f"{i}.parquet", x)
    out, result = tmp_path / "out", {}
    before = set(psutil.Process().children(recursive=True))

    def work():
        # Batches of one, so that a file takes long enough to be killed in.
        result.update(bulk.run(bundle, tmp_path / "in", out, workers=1, batch_size=1, verbose=0))

    thread = threading.Thread(target=work)
    thread.start()
    deadline = time.monotonic() + 120
    while not list(out.glob("[!.]*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.02)
    # The nanny's child is the worker.
    processes = set(psutil.Process().children(recursive=True)) - before
    workers = [process for process in processes if "spawn_main" in " ".join(process.cmdline())]
    assert len(workers) == 1
    assert len(list(out.glob("[!.]*.parquet"))) < count
    workers[0].kill()
    thread.join(timeout=300)
    assert (result["files"], result["rows"]) == (count, count * len(x))
    assert not list(out.glob(".*"))
    assert capfd.readouterr().err == ""
    for path in out.glob("*.parquet"):
        assert pq.read_metadata(path).num_rows == len(x)
    np.testing.assert_allclose(column(out / "7.parquet", "z_mean"), model.encode(x, verbose=0), atol=1e-5)
    assert not [process for process in processes if process.is_running() and process.status() != "zombie"]


def test_a_file_that_kills_its_workers_is_said_in_one_sentence(monkeypatch):
    import distributed

    class Client:
        def submit(self, *args, **kwargs):
            error = distributed.KilledWorker("task", None, 3)
            return type("Future", (), {"exception": lambda self: error})()

    monkeypatch.setattr(distributed, "as_completed", iter)
    _, failures = engine._compute(Client(), "bundle", [("a.parquet", "out")], {"a.parquet": 10}, {}, verbose=0)
    with pytest.raises(
        RuntimeError, match=r"1 of 1 files failed.* a.parquet: each of the 4 processes that took it died"
    ):
        engine._raise(failures, 1)


def certificate(folder):
    """A self-signed certificate for the loopback address, as Dask's configuration takes it."""
    pem = folder / "tls.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    subprocess.run(
        [*command, "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", pem, "-out", folder / "cert.pem"],
        check=True,
        capture_output=True,
    )
    with pem.open("a") as file:
        file.write((folder / "cert.pem").read_text())
    return {"ca_file": str(folder / "cert.pem"), "cert": str(pem), "key": str(pem)}


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["tcp", "tls"])
def test_the_same_on_a_cluster_that_is_there(model, bundle, x, tmp_path, protocol):
    import dask
    from distributed import LocalCluster
    from distributed.security import Security

    config, security = {}, None
    if protocol == "tls":
        if shutil.which("openssl") is None:
            pytest.skip("makes its certificate with openssl")
        files = certificate(tmp_path)
        paths = {"cert": files["cert"], "key": files["key"]}
        config = {"distributed.comm.tls.ca-file": files["ca_file"]}
        config |= {f"distributed.comm.tls.client.{kind}": path for kind, path in paths.items()}
        roles = {
            f"tls_{role}_{kind}": path for role in ("client", "scheduler", "worker") for kind, path in paths.items()
        }
        security = Security(tls_ca_file=files["ca_file"], require_encryption=True, **roles)
    write(tmp_path / "in" / "a.parquet", x)
    with LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, security=security
    ) as cluster:
        assert cluster.scheduler_address.startswith(f"{protocol}://127.0.0.1")
        with dask.config.set(config):
            report = bulk.run(bundle, tmp_path / "in", tmp_path / "out", scheduler=cluster.scheduler_address, verbose=0)
    assert report["rows"] == len(x)
    np.testing.assert_allclose(column(tmp_path / "out" / "a.parquet", "z_mean"), model.encode(x, verbose=0), atol=1e-5)


def test_the_code_that_travels_names_nothing_of_this_package(tmp_path):
    (tmp_path / "code").write_bytes(engine._as_code(bulk.encode_file))
    program = (
        "import sys; sys.modules['kerasae'] = None\n"
        "import pickle, pathlib; f = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "try: f('/nowhere', 'a', 'b')\nexcept ValueError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", program, tmp_path / "code"], capture_output=True, text=True, check=True)
    assert "There is no bundle at" in run.stdout


def test_the_fingerprint_survives_json(bundle, x, tmp_path):
    source = write(tmp_path / "in.parquet", x)
    part = parquet.part_of(runtime.Bundle(bundle), "score")
    fingerprint = parquet.Source(source, part, keep=("id",)).fingerprint
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert Path(source).stat().st_size == fingerprint["source_bytes"]
