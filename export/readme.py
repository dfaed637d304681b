"""The README of a bundle, for whoever receives it."""

import math

_JS_ARRAYS = {"float32": "Float32Array", "float64": "Float64Array", "uint8": "Uint8Array", "int32": "Int32Array"}


def readme(manifest):
    """Markdown with snippets that run as they stand, in the bundle's folder."""
    parts = {part["name"]: part for part in manifest["parts"]}
    x = parts["encoder"]["inputs"][0]
    codes = [port["name"] for port in parts["encoder"]["outputs"]]
    # Free sizes need some number in a snippet.
    shape = [size if isinstance(size, int) else free for size, free in zip(x["shape"], [1, *[32] * 9], strict=False)]
    array = f'x = np.zeros({tuple(shape)}, "{x["dtype"]}")  # your examples'
    score = manifest["score"]
    sections = [
        f"# An autoencoder: {manifest['family']}\n\n"
        f"Written by kerasae {manifest['versions']['kerasae']}. To run it, neither Keras nor kerasae is needed. "
        "`manifest.json` holds the ports, versions, measurements, and size and SHA-256 of every file.\n",
        "| part | input | output |\n|---|---|---|\n"
        + "\n".join(
            f"| {part['name']}: {part['meaning']} | {_ports(part['inputs'])} | {_ports(part['outputs'])} |"
            for part in manifest["parts"]
        )
        + f"\n\n`score`: {score['definition']}; in {score['unit']}; {score['direction']}. "
        f"Preprocessing: {manifest['preprocessing']}.\n",
    ]
    if "onnx" in manifest["formats"]:
        sections.append(_onnx(manifest, array, shape, x["dtype"], codes))
    if "saved_model" in manifest["formats"]:
        sections.append(_tensorflow(array, codes, "sample" in parts))
    if "litert" in manifest["formats"]:
        sections.append(
            "## LiteRT\n\n`pip install numpy ai-edge-litert`\n\n```python\n"
            "import numpy as np\nfrom ai_edge_litert.interpreter import Interpreter\n\n"
            'reconstruct = Interpreter("autoencoder.tflite").get_signature_runner("reconstruct")\n'
            f"{array}\n"
            'reconstruction = reconstruct(x=x)["reconstruction"]\n'
            "print(reconstruction.shape)\n```\n"
        )
    if manifest["variants"]:
        sections.append(_variants(manifest["variants"]))
    parity = manifest["parity"]
    sections.append(
        "## Checked\n\nBefore it was given, every part in every format was run in a process without Keras, at batch "
        f"sizes {' and '.join(map(str, parity['batch_sizes']))}, on {parity['examples']} examples. The largest "
        f"difference from Keras was {parity['max_relative_difference']:.1e} of the largest value (tolerance "
        f"{max(parity['tolerance'].values()):g}).\n"
    )
    return "\n".join(sections)


def _onnx(manifest, array, shape, dtype, codes):
    unpacked = ", ".join(codes) if len(codes) > 1 else f"({codes[0]},)"
    return (
        "## ONNX Runtime\n\n`pip install numpy onnxruntime`\n\n```python\n"
        "import numpy as np\nimport onnxruntime\n\n"
        'encoder = onnxruntime.InferenceSession("encoder.onnx")\n'
        'decoder = onnxruntime.InferenceSession("decoder.onnx")\n'
        'scorer = onnxruntime.InferenceSession("score.onnx")\n'
        f"{array}\n"
        f'{unpacked} = encoder.run(None, {{"x": x}})\n'
        f'(reconstruction,) = decoder.run(["reconstruction"], {{"z": {codes[0]}}})\n'
        '(score,) = scorer.run(None, {"x": x})\n'
        "print(reconstruction.shape)\n```\n\n"
        f"`autoencoder.onnx` is encoder and decoder in a row. Opset {manifest['onnx']['opset']}, standard operators "
        "only.\n\n"
        "## Node.js\n\n`npm install onnxruntime-node`\n\n```js\n"
        'import * as ort from "onnxruntime-node";\n\n'
        'const autoencoder = await ort.InferenceSession.create("autoencoder.onnx");\n'
        f"const shape = {shape};\n"
        f"const data = new {_JS_ARRAYS.get(dtype, 'Float32Array')}({math.prod(shape)}); // your examples\n"
        f'const {{ reconstruction }} = await autoencoder.run({{ x: new ort.Tensor("{dtype}", data, shape) }});\n'
        "console.log(reconstruction.dims);\n```\n"
    )


def _tensorflow(array, codes, can_sample):
    sample = ""
    if can_sample:
        sample = (
            "New examples, the same ones for the same seed: "
            '`model.signatures["sample_from_seed"](num_samples=tf.constant(16), seed=tf.constant([0, 0]))`.\n\n'
        )
    return (
        "## TensorFlow\n\n`pip install numpy tensorflow`\n\n```python\n"
        "import numpy as np\nimport tensorflow as tf\n\n"
        'model = tf.saved_model.load("saved_model")\n'
        f"{array}\n"
        'codes = model.signatures["encode"](x=tf.constant(x))\n'
        f'reconstruction = model.signatures["decode"](z=codes["{codes[0]}"])["reconstruction"]\n'
        'score = model.signatures["score"](x=tf.constant(x))["score"]\n'
        "print(reconstruction.shape)\n```\n\n"
        '`model.signatures["reconstruct"]` is encoder and decoder in a row.\n\n'
        f"{sample}"
        "## TensorFlow Serving\n\n`request.json` holds a made-up example.\n\n```bash\n"
        'docker run -d -p 8501:8501 -v "$PWD/saved_model:/models/autoencoder/1" -e MODEL_NAME=autoencoder '
        "tensorflow/serving\n"
        "curl -d @request.json http://localhost:8501/v1/models/autoencoder:predict\n```\n"
    )


def _variants(variants):
    errors, sizes = variants["reconstruction_error"], list(variants["files"][0]["latency_ms"])
    rows = [
        f"| {row['file']} | {row['bytes']:,} | {errors[row['variant']]:.5g} | "
        + " | ".join(f"{row['latency_ms'][size]:.3g}" for size in sizes)
        + " |"
        for row in variants["files"]
        if row["part"] == "autoencoder"
    ]
    times = " | ".join(f"ms, batch of {size}" for size in sizes)
    examples = f"{variants['examples']} {'given' if variants['given'] else 'generated'} examples"
    return (
        f"## Lower precision\n\nSquared error of an example, mean over {examples}, and time on one thread of the "
        f"machine that wrote this:\n\n| file | bytes | squared error | {times} |\n|---|---|---|{'---|' * len(sizes)}\n"
        + "\n".join(rows)
        + "\n\nThe encoder and the decoder exist in the same precisions. `manifest.json` has their figures.\n"
    )


def _ports(ports):
    return ", ".join(
        f"`{port['name']}` ({', '.join(map(str, port['shape']))}) {port['dtype']}"
        + (f" in [{port['value_range'][0]:g}, {port['value_range'][1]:g}]" if port["value_range"] else "")
        for port in ports
    )
