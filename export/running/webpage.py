"""A web page that runs a model in the browser, as a static folder."""

import json
import logging
import shutil
import subprocess
import tarfile
from pathlib import Path

import keras

from kerasae import checks, runtime, writing
from kerasae.export.bundle import export
from kerasae.export.parts import ExportError

RUNTIME = "onnxruntime-web@1.30.0"
_RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_PAGE = Path(__file__).parents[1] / "clients" / "page"

_logger = logging.getLogger(__name__)


def page(model, folder, *, denoiser=None, runtime=None, x=None, title=None, replace=False):
    """Writes a web page on which one draws, and sees the reconstruction, a denoised version, the score and the codes.

    The folder holds all that the page needs, and any web server can host it:
    `python -m http.server --directory <folder>`. The model runs in the browser (WebAssembly, 14 MB); nothing is sent.

    Args:
        model: kerasae model of gray or RGB images in [0, 1], `(height, width, 1 or 3)` or `(height, width)`.
        folder: where the page goes; a new or empty folder.
        denoiser: another model, of images of the same shape, that denoises. Default: `model` does.
        runtime: the `dist` folder of onnxruntime-web. Default: the package is fetched with npm.
        x: real examples, `(n, *input_shape)`: what the score of a drawing is compared with, and the range of codes that
            can be pointed at. Default: no comparison, codes from -3 to 3.
        title: of the page. Default: the model's name.
        replace: whether a page that `folder` holds, and nothing else, is replaced, once the new one is ready.

    Raises:
        ValueError: before any work, on a model that is not one of such images, a `runtime` without the files, where npm
            is needed and missing, and on a folder that can't be written or holds anything but, with `replace`, a page.
        ExportError: where the package can't be fetched, and as `export`.

    Example:

    ```python
    model = kerasae.builders.variational((8, 8, 1), latent_dim=2, hidden_units=(32,))
    kerasae.export.page(model, "page")
    ```
    """
    shape = _image_shape(model, "model")
    if denoiser is not None and _image_shape(denoiser, "denoiser") != shape:
        raise ValueError(
            f"`denoiser` must take images of the model's shape, {shape}. Received: {denoiser.encoder.inputs[0].shape[1:]}"
        )
    if runtime is not None:
        missing = [name for name in _RUNTIME_FILES if not (Path(runtime) / name).is_file()]
        if missing:
            raise ValueError(f"`runtime` must be the `dist` folder of onnxruntime-web. {runtime} lacks {missing}.")
    elif shutil.which("npm") is None:
        raise ValueError(
            f"The page needs {RUNTIME}, which npm fetches, and there is no npm here. Install Node.js, or pass as "
            "`runtime` the `dist` folder of the package from elsewhere."
        )
    if x is not None:
        x = checks.array(x, model.encoder.inputs[0].shape[1:], name="x")
    try:
        with writing.folder(folder, _files_of if replace else None) as new:
            if runtime is None:
                runtime = _fetch_runtime(new.parent)
            shutil.copytree(_PAGE, new, dirs_exist_ok=True)
            (new / "ort").mkdir()
            for name in _RUNTIME_FILES:
                shutil.copyfile(Path(runtime) / name, new / "ort" / name)
            export(model, new / "model", ["onnx"], x=x)
            if denoiser is not None:
                export(denoiser, new / "denoiser", ["onnx"])
            settings = {"title": title or model.name.replace("_", " ").capitalize(), "denoiser": denoiser is not None}
            (new / "page.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")
    except OSError as error:
        raise ExportError(f"The page could not be written, and {folder} is as it was: {error}") from error
    _logger.info("Wrote %s", folder)


def _files_of(folder):
    """Names of the files of the page in a folder; none where there is none."""
    if not (folder / "page.json").is_file():
        return set()
    bundles = {f"{name}/{file}" for name in ("model", "denoiser") for file in runtime.files_of(folder / name)}
    return {"page.json", *writing.held(_PAGE), *(f"ort/{name}" for name in _RUNTIME_FILES)} | bundles


def _image_shape(model, name):
    """Height and width, of a model that a drawing can be given to."""
    if not isinstance(model, keras.Model) or not hasattr(model, "functions"):
        raise ValueError(f"`{name}` must be a kerasae model. Received: {model!r}")
    if len(model.encoder.inputs) != 1:
        names = [tensor.name for tensor in model.encoder.inputs]
        raise ValueError(
            f"A page needs a `{name}` with one input, and this one takes {names}. Export a bundle instead."
        )
    x = model.encoder.inputs[0]
    shape = tuple(x.shape[1:])
    is_image = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))
    prepared = model.preparation
    if prepared is not None and prepared.scaling != "pixels":
        raise ValueError(
            f"A page shows pixels in [0, 1], and `{name}` was trained on {prepared.describe()}. Export a bundle instead."
        )
    if not is_image or None in shape or x.dtype not in ("float32", "uint8"):
        raise ValueError(
            f"A page needs a `{name}` of images, (height, width, 1 or 3) or (height, width) in float32 or uint8. "
            f"Received one of: {shape} in {x.dtype}"
        )
    return shape[:2]


def _fetch_runtime(workspace):
    """The `dist` folder of the package from npm."""
    _logger.info("Fetching %s with npm", RUNTIME)
    packed = subprocess.run(
        ["npm", "pack", RUNTIME, "--silent"], cwd=workspace, capture_output=True, text=True, check=False
    )
    if packed.returncode != 0:
        raise ExportError(
            f"npm could not fetch {RUNTIME}: {packed.stderr.strip()[-500:]}. Pass the `dist` folder of the package as "
            "`runtime`."
        )
    with tarfile.open(workspace / packed.stdout.strip().splitlines()[-1]) as archive:
        wanted = [archive.getmember(f"package/dist/{name}") for name in _RUNTIME_FILES]
        archive.extractall(workspace, wanted, filter="data")
    return workspace / "package" / "dist"
