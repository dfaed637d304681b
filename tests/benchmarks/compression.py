"""Compression of MNIST and Fashion-MNIST test images against what one would otherwise pick: `python tests/benchmarks/compression.py`.

Lossy: `kerasae.tasks.Codec` against JPEG and WebP (Pillow), bits per pixel at equal squared error. Lossless: `kerasae.tasks.LosslessCodec`
on raw and on binarised MNIST against PNG, WebP, gzip, bz2 and LZMA. Both sides are measured in the same run on all 10,000 test images, and
every stream is decoded again. The tables go to `tests/benchmarks/results/compression.md`.

The models are trained on the 60,000 training images (half an hour on one core, seeds given) and kept in `--cache`; test images choose
nothing. `TFDS_DATA_DIR` names the folder of the prepared datasets.
"""

import argparse
import bz2
import gzip
import io
import lzma
import math
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pooch
from PIL import Image

import kerasae
from kerasae import zoo
from kerasae.models import PixelVariationalAutoencoder
from kerasae.runs import examples
from kerasae.tasks.bitsback import LosslessCodec
from kerasae.tasks.codec import Codec

RESULTS = Path(__file__).parent / "results" / "compression.md"
HEAD = """# Compression

By `python tests/benchmarks/compression.py`: models trained on the training images with seed 0; test images chose nothing.
"""
RATE_WEIGHTS = (0.3, 0.03)
STEPS = (0.5, 1, 2)
QUALITIES = (1, 5, 15, 30, 50, 70, 85, 95)
RIVALS = ("JPEG", "WebP")
# The learning rate's cosine of the pixel model ends at 0 after so many epochs; the quoted run stopped half-way.
SCHEDULED_EPOCHS = 6


def load(name, num_images=None):
    """Training and test images as uint8, (n, 28, 28)."""
    return [np.rint(x[:num_images, ..., 0] * 255).astype("uint8") for x in kerasae.data.load(name)]


# -- The rivals --------------------------------------------------------------------------------------------------------------------------


def file_of(image, file_format, **options):
    """The bytes of an image file, and the pixels that it holds."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, file_format, **options)
    return file.getvalue(), np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("L"))


def mosaic(images):
    """All images side by side in one, as square as it gets, and the way back."""
    side = math.ceil(math.sqrt(len(images)))
    height, width = images.shape[1:]
    filled = np.zeros((side * side, height, width), "uint8")
    filled[: len(images)] = images
    picture = filled.reshape(side, side, height, width).swapaxes(1, 2).reshape(side * height, side * width)

    def back(picture):
        return picture.reshape(side, height, side, width).swapaxes(1, 2).reshape(-1, height, width)[: len(images)]

    return picture, back


def rival_curve(images, file_format, one_file):
    """(bits per pixel, squared error) at each quality; every image a file of its own, or all in one."""
    options = {"optimize": True} if file_format == "JPEG" else {"method": 4}
    points = []
    for quality in QUALITIES:
        if one_file:
            picture, back = mosaic(images)
            data, pixels = file_of(picture, file_format, quality=quality, **options)
            size, decoded = len(data), back(pixels)
        else:
            files = [file_of(image, file_format, quality=quality, **options) for image in images]
            size, decoded = sum(len(data) for data, _ in files), np.stack([pixels for _, pixels in files])
        points.append((8 * size / images.size, squared_error(images, decoded)))
    return points


def at_error(points, error):
    """A rival's bits per pixel at a squared error: straight between two qualities in the logarithm of the error."""
    points = sorted(points, key=lambda point: point[1])
    errors, rates = [math.log(e) for _, e in points], [rate for rate, _ in points]
    if error > points[-1][1]:
        return f"{rates[-1]:.3f} at {points[-1][1]:.2f}"
    if error < points[0][1]:
        return f"{rates[0]:.3f} at {points[0][1]:.2f}"
    return f"{np.interp(math.log(error), errors, rates):.3f}"


def squared_error(images, decoded):
    return kerasae.metrics.squared_error(images / 255, decoded / 255)


# -- Lossy -------------------------------------------------------------------------------------------------------------------------------


def fitted_codec(name, x_train, rate_weight, cache, epochs):
    path = cache / f"{name}-{rate_weight}-{epochs}.codec"
    if path.exists():
        return Codec.load(path)
    codec = Codec(
        latent_dim=128, hidden_units=(512, 256), rate_weight=rate_weight, epochs=epochs, random_state=0, verbose=2
    )
    codec.fit(x_train).save(path)
    return codec


def lossy(name, x_train, x_test, cache, epochs, num_single):
    rivals = {
        (file_format, one_file): rival_curve(x_test, file_format, one_file)
        for file_format in RIVALS
        for one_file in (False, True)
    }
    lines = [
        f"\n## Lossy, {name}: bits per pixel at the same squared error\n",
        f"{len(x_test):,} test images, 8 bits in, 8 bits out; headers, tables and containers included on both sides. Squared error: summed "
        "over an image's pixels in [0, 1], mean over images. Ours: all images in one container, and each in a container of its own (mean "
        f"of the first {min(num_single, len(x_test)):,}); the codec itself ({{size}}) is not counted, as little as JPEG's program is. JPEG "
        "(Pillow, optimised tables) and WebP (method 4): all images as one mosaic, and each a file of its own; between the qualities "
        f'{", ".join(map(str, QUALITIES))} straight in the logarithm of the error. "r at e": its worst or best quality takes r at the '
        "error e, and there is nothing beyond.\n",
        "| rate_weight, step | squared error | PSNR of the mean error, dB | ours, one container | JPEG, one file | WebP, one file "
        "| ours, one an image | JPEG, one an image | WebP, one an image |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    sizes = []
    for rate_weight in RATE_WEIGHTS:
        codec = fitted_codec(name, x_train, rate_weight, cache, epochs)
        sizes.append((cache / f"{name}-{rate_weight}-{epochs}.codec").stat().st_size)
        for step in STEPS:
            stream = codec.encode(x_test, step)
            error = squared_error(x_test, codec.decode(stream))
            single = [len(codec.encode(image[None], step)) for image in x_test[:num_single]]
            rates = [
                f"{8 * len(stream) / x_test.size:.3f}",
                *(at_error(rivals[rival, True], error) for rival in RIVALS),
                f"{8 * np.mean(single) / x_test[0].size:.3f}",
                *(at_error(rivals[rival, False], error) for rival in RIVALS),
            ]
            psnr = 10 * math.log10(x_test[0].size / error)
            row = [f"{rate_weight}, {step}", f"{error:.2f}", f"{psnr:.2f}", *rates]
            lines.append(f"| {' | '.join(row)} |")
            print(lines[-1], flush=True)
    lines[1] = lines[1].replace("{size}", f"{max(sizes) / 2**20:.1f} MiB")
    return lines


# -- Lossless ----------------------------------------------------------------------------------------------------------------------------


def pixel_model(x_train, cache, epochs):
    """The zoo's `variational-dense-mnist`, trained further with pixel networks."""
    path = cache / f"pixels-mnist-{epochs}.keras"
    if path.exists():
        return keras.saving.load_model(path, compile=False)
    keras.utils.set_random_seed(0)
    start = zoo.load("variational-dense-mnist")
    model = PixelVariationalAutoencoder(start.encoder, start.decoder, seed=0)
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, SCHEDULED_EPOCHS * -(-len(x_train) // 128))
    model.compile(keras.optimizers.Adam(schedule), jit_compile=False)
    model.fit(x_train[..., None].astype("float32") / 255, batch_size=128, epochs=epochs, verbose=2)
    model.compile("sgd", jit_compile=False)  # without Adam's moments
    model.save(path)
    return model


def general_rivals(images, one_bit=False):
    """Bits per pixel of the usual lossless formats."""
    packed = np.packbits(images).tobytes() if one_bit else images.tobytes()
    sizes = {
        "gzip -9, one stream": len(gzip.compress(packed, 9)),
        "bz2 -9, one stream": len(bz2.compress(packed, 9)),
        "LZMA -9e, one stream": len(lzma.compress(packed, preset=9 | lzma.PRESET_EXTREME)),
    }
    if not one_bit:
        picture, _ = mosaic(images)
        for title, file_format, options in (
            ("PNG", "PNG", {"optimize": True}),
            ("WebP lossless", "WEBP", {"lossless": True, "quality": 100, "method": 6}),
        ):
            sizes[f"{title}, one mosaic"] = len(file_of(picture, file_format, **options)[0])
            sizes[f"{title}, a file an image"] = sum(len(file_of(x, file_format, **options)[0]) for x in images)
    return {title: 8 * size / images.size for title, size in sizes.items()}


def lossless(title, note, model, images, published, rivals):
    codec = LosslessCodec(model)
    start = time.process_time()
    stream = codec.encode(images, verbose=1)
    encoded = time.process_time()
    decoded = codec.decode(stream, verbose=1)
    seconds = encoded - start, time.process_time() - encoded
    if not np.array_equal(decoded, images):
        raise SystemExit(f"{title}: the decoded images differ")
    x = images.astype("float32")[..., None] / (1 if images.max() == 1 else 255)
    model.compile("sgd", jit_compile=False)
    logs = model.evaluate(x, batch_size=256, verbose=0, return_dict=True)
    nats = logs["reconstruction_loss"] + logs["kl_loss"]
    counts = [n for n in (1, 10, 100, 1000) if n < len(images)]
    small = ", ".join(f"{n}: {8 * len(codec.encode(images[:n])) / images[:n].size:.3f}" for n in counts)
    return [
        f"\n## Lossless, {title}: bits per pixel\n",
        f"{note} {len(images):,} test images in one container, {len(stream):,} bytes, initial bits and container included; decoded equal, "
        f"bit for bit. Encoded in {seconds[0]:.0f} and decoded in {seconds[1]:.0f} seconds of CPU. The model's negative ELBO on them is "
        f"{nats:.2f} nats, {nats / math.log(2) / images[0].size:.4f} bits per pixel, of which KL {logs['kl_loss']:.2f} nats. Containers of "
        f"the first n images: {small}.\n",
        "| | bits per pixel |",
        "|---|---|",
        f"| **ours, bits-back** | **{8 * len(stream) / images.size:.4f}** |",
        *(f"| {name} | {rate:.3f} |" for name, rate in sorted(rivals.items(), key=lambda item: item[1])),
        *(f"| {name}, in print | {rate} |" for name, rate in published.items()),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cache", type=Path, default=pooch.os_cache("kerasae") / "benchmarks", help="folder of the trained models"
    )
    parser.add_argument(
        "--only", choices=("lossy", "raw", "binarised"), help="one part; the others in the results stay as they are"
    )
    parser.add_argument("--epochs", type=int, default=10, help="of each lossy codec (default 10)")
    parser.add_argument("--pixel-epochs", type=int, default=3, help="of the pixel model, at most 6 (default 3)")
    parser.add_argument("--num-images", type=int, help="only the first of each split; prints, and writes nothing")
    parser.add_argument(
        "--num-single", type=int, default=500, help="images whose own containers are measured (default 500)"
    )
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    lines = []
    mnist = load("mnist", arguments.num_images)
    if arguments.only in (None, "lossy"):
        for name in ("mnist", "fashion_mnist"):
            x_train, x_test = mnist if name == "mnist" else load(name, arguments.num_images)
            lines += lossy(name, x_train, x_test, arguments.cache, arguments.epochs, arguments.num_single)
    x_train, x_test = mnist
    if arguments.only in (None, "raw"):
        lines += lossless(
            "raw MNIST",
            "256 grey levels.",
            pixel_model(x_train, arguments.cache, arguments.pixel_epochs),
            x_test,
            {"Bit-Swap (Kingma et al. 2019)": 1.29, "BB-ANS (Townsend et al. 2019)": 1.41},
            general_rivals(x_test),
        )
    if arguments.only in (None, "binarised"):
        binary = examples.binarized(x_test / np.float32(255)).astype("uint8")
        lines += lossless(
            "binarised MNIST",
            "Trained on dynamically binarised images (`zoo/models/variational-dense-mnist-binarized`); test images binarised once, each "
            "pixel 1 with probability its intensity, from seed 0.",
            zoo.load("variational-dense-mnist-binarized"),
            binary,
            {"BB-ANS (Townsend et al. 2019)": 0.194},
            general_rivals(binary, one_bit=True),
        )
    print("\n".join(lines))
    if arguments.num_images is None:
        write("\n".join(lines))


def write(text):
    """Writes sections to the results, in place of those there that have their titles."""
    sections = {}
    for part in (RESULTS.read_text() if RESULTS.exists() else "", text):
        sections.update({section.splitlines()[0]: section.rstrip() for section in f"\n{part}".split("\n## ")[1:]})
    order = ("Lossy", "Lossless, raw", "Lossless, binarised")
    sections = sorted(sections.values(), key=lambda section: [not section.startswith(title) for title in order])
    RESULTS.parent.mkdir(exist_ok=True)
    beside = RESULTS.with_name(f".{RESULTS.name}.{os.getpid()}")
    beside.write_text(HEAD + "".join(f"\n## {section}\n" for section in sections))
    os.replace(beside, RESULTS)


if __name__ == "__main__":
    main()
