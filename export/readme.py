"""The README of a bundle, for whoever receives it."""


def readme(manifest):
    """Markdown with snippets that run as they stand, in the bundle's folder."""
    parts = {part["name"]: part for part in manifest["parts"]}
    x = parts["encoder"]["inputs"][0]
    codes = [port["name"] for port in parts["encoder"]["outputs"]]
    unpacked = ", ".join(codes) if len(codes) > 1 else f"({codes[0]},)"
    # Free sizes need some number in a snippet.
    shape = [1, *(size if isinstance(size, int) else 32 for size in x["shape"][1:])]
    parity = manifest["parity"]
    sections = [
        f"# An autoencoder: {manifest['family']}\n\n"
        f"Written by kerasae {manifest['versions']['kerasae']}. To run it, neither Keras nor kerasae is needed. "
        "`manifest.json` holds the ports, versions, measurements, and size and SHA-256 of every file.\n",
        "| part | input | output |\n|---|---|---|\n"
        + "\n".join(
            f"| {part['name']}: {part['meaning']} | {_ports(part['inputs'])} | {_ports(part['outputs'])} |"
            for part in manifest["parts"]
        )
        + "\n",
    ]
    array = f'x = np.zeros({tuple(shape)}, "{x["dtype"]}")  # your examples, any number of them'
    if "onnx" in manifest["formats"]:
        sections.append(
            "## ONNX Runtime\n\n`pip install numpy onnxruntime`\n\n```python\n"
            "import numpy as np\nimport onnxruntime\n\n"
            'encoder = onnxruntime.InferenceSession("encoder.onnx")\n'
            'decoder = onnxruntime.InferenceSession("decoder.onnx")\n'
            f"{array}\n"
            f'{unpacked} = encoder.run(None, {{"x": x}})\n'
            f'(reconstruction,) = decoder.run(None, {{"z": {codes[0]}}})\n'
            "print(reconstruction.shape)\n```\n\n"
            f"`autoencoder.onnx` is both in a row. Opset {manifest['onnx']['opset']}, standard operators only.\n"
        )
    if "saved_model" in manifest["formats"]:
        sections.append(
            "## TensorFlow\n\n`pip install numpy tensorflow`\n\n```python\n"
            "import numpy as np\nimport tensorflow as tf\n\n"
            'model = tf.saved_model.load("saved_model")\n'
            f"{array}\n"
            'codes = model.signatures["encode"](x=tf.constant(x))\n'
            f'reconstruction = model.signatures["decode"](z=codes["{codes[0]}"])["reconstruction"]\n'
            "print(reconstruction.shape)\n```\n\n"
            '`model.signatures["reconstruct"]` is both in a row.\n'
        )
    sections.append(
        "## Checked\n\nBefore it was given, every part in every format was run in a process without Keras, at batch "
        f"sizes {' and '.join(map(str, parity['batch_sizes']))}, on {parity['examples']} examples. The largest "
        f"difference from Keras was {parity['max_relative_difference']:.1e} of the largest value (tolerance "
        f"{parity['tolerance']:g}).\n"
    )
    return "\n".join(sections)


def _ports(ports):
    return ", ".join(
        f"`{port['name']}` ({', '.join(map(str, port['shape']))}) {port['dtype']}"
        + (f" in [{port['value_range'][0]:g}, {port['value_range'][1]:g}]" if port["value_range"] else "")
        for port in ports
    )
