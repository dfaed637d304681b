"""Sends a request to TensorFlow Serving, which serves a bundle's SavedModel. Needs the standard library only.

    docker run -p 8501:8501 -v "$PWD/<bundle>/saved_model:/models/autoencoder/1" -e MODEL_NAME=autoencoder tensorflow/serving
    python serving.py http://localhost:8501/v1/models/autoencoder <request.json>

The request is `{"inputs": {"x": [example, ...]}}`, such as `request.json` in the bundle. Prints JSON: the codes, the
reconstruction and the score of every example.
"""

import json
import signal
import sys
import urllib.request
from pathlib import Path

SIGNATURES = ("encode", "reconstruct", "score")


def ask(model, signature, inputs):
    """The outputs of a signature: a dict, or the bare value if there is only one."""
    body = json.dumps({"signature_name": signature, "inputs": inputs}).encode()
    request = urllib.request.Request(f"{model}:predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)["outputs"]


def signature_outputs(model):
    """`{signature: names of its outputs}`; a single output comes from Serving without its name."""
    with urllib.request.urlopen(f"{model}/metadata") as response:
        signatures = json.load(response)["metadata"]["signature_def"]["signature_def"]
    return {name: list(signature["outputs"]) for name, signature in signatures.items()}


def main(model, request):
    inputs = json.loads(Path(request).read_text(encoding="utf-8"))["inputs"]
    names, answers = signature_outputs(model), {}
    for signature in SIGNATURES:
        outputs = ask(model, signature, inputs)
        answers.update(outputs if len(names[signature]) > 1 else {names[signature][0]: outputs})
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends in silence where `head` has read enough
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
