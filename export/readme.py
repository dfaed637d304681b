"""The README of a bundle, for whoever receives it."""

import math

_JS_ARRAYS = {"float32": "Float32Array", "float64": "Float64Array", "uint8": "Uint8Array", "int32": "Int32Array"}


def readme(manifest):
    """Markdown with snippets that run unchanged in the bundle's folder."""
    if manifest["score"] is None:
        return _estimator_readme(manifest)
    parts = {part["name"]: part for part in manifest["parts"]}
    ports = parts["encoder"]["inputs"]
    codes = [port["name"] for port in parts["encoder"]["outputs"]]
    score = manifest["score"]
    sections = [
        _head("An autoencoder", manifest)
        + f"\n\n`score`: {score['definition']}; unit: {score['unit']}; {score['direction']}. "
        f"Preprocessing: {manifest['preprocessing']}.\n{_columns(manifest)}",
    ]
    if "onnx" in manifest["formats"]:
        sections.append(_onnx(manifest, ports, codes))
    if "saved_model" in manifest["formats"]:
        conditions = [port["name"] for port in parts["decoder"]["inputs"][1:]]
        sections.append(_tensorflow(ports, codes, conditions, "sample" in parts))
    if "litert" in manifest["formats"]:
        sections.append(
            "## LiteRT\n\n`pip install numpy ai-edge-litert`\n\n```python\n"
            "import numpy as np\nfrom ai_edge_litert.interpreter import Interpreter\n\n"
            'reconstruct = Interpreter("autoencoder.tflite").get_signature_runner("reconstruct")\n'
            f"{_arrays(ports)}\n"
            f'reconstruction = reconstruct({"x=x" if len(ports) == 1 else "**inputs"})["reconstruction"]\n'
            "print(reconstruction.shape)\n```\n"
        )
    if manifest["variants"]:
        sections.append(_variants(manifest["variants"]))
    return "\n".join([*sections, _checked(manifest["parity"])])


def _estimator_readme(manifest):
    """Markdown for an estimator, whose parts take raw examples and give the final answer."""
    part = manifest["parts"][0]
    x, output = part["inputs"][0], part["outputs"][0]["name"]
    array = f'x = np.zeros({tuple([1, *x["shape"][1:]])}, "{x["dtype"]}")  # your examples, unscaled'
    sections = [
        _head("A fitted estimator", manifest) + f"\n\nPreprocessing: {manifest['preprocessing']}.\n{_columns(manifest)}"
    ]
    if "onnx" in manifest["formats"]:
        sections.append(
            "## ONNX Runtime\n\n`pip install numpy onnxruntime`\n\n```python\nimport numpy as np\nimport onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("{part["onnx"]["file"]}")\n{array}\n'
            f'({output},) = session.run(None, {{"{x["name"]}": x}})\nprint({output}.shape)\n```\n'
        )
    if "saved_model" in manifest["formats"]:
        sections.append(
            "## TensorFlow\n\n`pip install numpy tensorflow`\n\n```python\nimport numpy as np\nimport tensorflow as tf\n\n"
            f'model = tf.saved_model.load("saved_model")\n{array}\n'
            f'{output} = model.signatures["{part["name"]}"]({x["name"]}=tf.constant(x))["{output}"]\n'
            f"print({output}.shape)\n```\n\n`request.json` is a sample request for TensorFlow Serving.\n"
        )
    return "\n".join([*sections, _checked(manifest["parity"])])


def _columns(manifest):
    """The columns of a table, in order, with what is done to them in the graph."""
    facts = manifest["preparation"] or {}
    if not facts.get("columns"):
        return ""
    names = [" ".join(name.replace("`", "'").split()) for name in facts["columns"]]
    rows = [f"`{name}`" for name in names[:100]] + [f"and {len(names) - 100} more"] * (len(names) > 100)
    return (
        f"\n`x` has these columns, in this order and in their own units: {', '.join(rows)}. The graph scales them "
        f"({facts['scaling']}); `preparation` in `manifest.json` has every offset and scale.\n"
    )


def _head(title, manifest):
    """The title, and a table of the parts."""
    return (
        f"# {title}: {manifest['family']}\n\n"
        f"Written by kerasae {manifest['versions']['kerasae']}. It runs without Keras or kerasae. "
        "`manifest.json` lists the inputs and outputs, versions, measurements, and the size and SHA-256 of every file.\n\n"
        "| part | input | output |\n|---|---|---|\n"
        + "\n".join(
            f"| {part['name']}: {part['meaning']} | {_ports(part['inputs'])} | {_ports(part['outputs'])} |"
            for part in manifest["parts"]
        )
    )


def _checked(parity):
    """How the files were checked."""
    return (
        "## Checked\n\nDuring the export every part was run in every format in a process without Keras, at batch "
        f"sizes {' and '.join(map(str, parity['batch_sizes']))}, on {parity['examples']} examples. The largest "
        f"difference from Keras was {parity['max_relative_difference']:.1e} relative to the largest value (tolerance "
        f"{max(parity['tolerance'].values()):g}).\n"
    )


def _shape(port):
    # A snippet needs a number even for sizes that are free.
    return [size if isinstance(size, int) else free for size, free in zip(port["shape"], [1, *[32] * 9], strict=False)]


def _arrays(ports):
    """Python that makes `x`, or, where there are several inputs, a dict `inputs` of them all."""
    arrays = [f'np.zeros({tuple(_shape(port))}, "{port["dtype"]}")' for port in ports]
    if len(ports) == 1:
        return f"x = {arrays[0]}  # your examples"
    lines = [f'    "{port["name"]}": {array},' for port, array in zip(ports, arrays, strict=True)]
    return "\n".join(["inputs = {  # your examples", *lines, "}"])


def _onnx(manifest, ports, codes):
    unpacked = ", ".join(codes) if len(codes) > 1 else f"({codes[0]},)"
    feed = '{"x": x}' if len(ports) == 1 else "inputs"
    tensors = "".join(
        f'  {port["name"]}: new ort.Tensor("{port["dtype"]}", '
        f"new {_JS_ARRAYS.get(port['dtype'], 'Float32Array')}({math.prod(_shape(port))}), {_shape(port)}),\n"
        for port in ports
    )
    return (
        "## ONNX Runtime\n\n`pip install numpy onnxruntime`\n\n```python\n"
        "import numpy as np\nimport onnxruntime\n\n"
        'encoder = onnxruntime.InferenceSession("encoder.onnx")\n'
        'decoder = onnxruntime.InferenceSession("decoder.onnx")\n'
        'scorer = onnxruntime.InferenceSession("score.onnx")\n'
        f"{_arrays(ports)}\n"
        f"{unpacked} = encoder.run(None, {feed})\n"
        f'(reconstruction,) = decoder.run(["reconstruction"], {{"z": {codes[0]}}})\n'
        f"(score,) = scorer.run(None, {feed})\n"
        "print(reconstruction.shape)\n```\n\n"
        f"`autoencoder.onnx` is the encoder followed by the decoder. Opset {manifest['onnx']['opset']}, standard operators "
        "only.\n\n"
        "## Node.js\n\n`npm install onnxruntime-node`\n\n```js\n"
        'import * as ort from "onnxruntime-node";\n\n'
        'const autoencoder = await ort.InferenceSession.create("autoencoder.onnx");\n'
        f"const inputs = {{ // your examples\n{tensors}}};\n"
        "const { reconstruction } = await autoencoder.run(inputs);\n"
        "console.log(reconstruction.dims);\n```\n"
    )


def _tensorflow(ports, codes, conditions, can_sample):
    feed = "x=tf.constant(x)" if len(ports) == 1 else "**inputs"
    tensors = "" if len(ports) == 1 else "inputs = {name: tf.constant(value) for name, value in inputs.items()}\n"
    sample = ""
    given = "".join(f', {name}=inputs["{name}"]' for name in conditions)
    if can_sample:
        beside = f", with {', '.join(conditions)} besides, one per sample" if conditions else ""
        sample = (
            f"New examples; the same seed gives the same ones{beside}: "
            '`model.signatures["sample_from_seed"](num_samples=tf.constant(16), seed=tf.constant([0, 0]))`.\n\n'
        )
    return (
        "## TensorFlow\n\n`pip install numpy tensorflow`\n\n```python\n"
        "import numpy as np\nimport tensorflow as tf\n\n"
        'model = tf.saved_model.load("saved_model")\n'
        f"{_arrays(ports)}\n{tensors}"
        f'codes = model.signatures["encode"]({feed})\n'
        f'reconstruction = model.signatures["decode"](z=codes["{codes[0]}"]{given})["reconstruction"]\n'
        f'score = model.signatures["score"]({feed})["score"]\n'
        "print(reconstruction.shape)\n```\n\n"
        '`model.signatures["reconstruct"]` is the encoder followed by the decoder.\n\n'
        f"{sample}"
        "## TensorFlow Serving\n\n`request.json` is a sample request.\n\n```bash\n"
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
        f"## Lower precision\n\nSquared error per example, mean over {examples}, and time on one thread of the "
        f"machine that wrote this bundle:\n\n| file | bytes | squared error | {times} |\n|---|---|---|{'---|' * len(sizes)}\n"
        + "\n".join(rows)
        + "\n\nThe encoder and the decoder exist in the same precisions; `manifest.json` has their measurements.\n"
    )


def _ports(ports):
    return ", ".join(
        f"`{port['name']}` ({', '.join(map(str, port['shape']))}) {port['dtype']}"
        + (f" in [{port['value_range'][0]:g}, {port['value_range'][1]:g}]" if port["value_range"] else "")
        for port in ports
    )
