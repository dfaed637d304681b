"""The folder that scores examples on a machine without TensorFlow: the detector as a bundle, a script, and a README."""

import shutil
from pathlib import Path

from kerasae import runtime, writing

_TOLERANCE = 1e-4  # of the bundle: distances are small differences of large numbers


_README = """# An anomaly detector

It gives every example a score: higher is more normal, and **below {threshold:.6g} an example is called an anomaly**. This folder is all it
needs, with Python and these packages:

```bash
pip install numpy onnxruntime{pillow}
python score.py {example} > scores.csv
```

{takes}
`scores.csv` has a line an example: its {name}, its score, and 1 where it is an anomaly. What can't be read is named on standard error and
left out, and the exit code is then 1. In a program of your own, from this folder:

```python
{imports}from score import Detector

detector = Detector(".")
x = {x}
print(detector.scores(x) < detector.threshold)
```

## How an example becomes a score

{steps}
- `bundle/score_samples.onnx` takes `x`, {dtype} of shape (batch, {shape}), and gives `score`, float32 of shape (batch).
- It is an anomaly where `score < threshold`. The threshold, {threshold!r}, is in `detector.json`.

[bundle/README.md](bundle/README.md): the same graph in other runtimes and in TensorFlow, and how it was checked.
"""


def write(folder, detector, preparation, x, dialect):
    """Writes the folder that runs a fitted detector without TensorFlow; `dialect` is how its tables are written, as far as was said."""
    from kerasae import export
    from kerasae.data import reading

    folder.mkdir()
    if preparation.takes == "uint8":
        x = preparation.stored(x)
    manifest = export.export(detector, folder / "bundle", x=x, tolerance=_TOLERANCE)
    facts = {
        "format": 1,
        "manifest": writing.sha256(folder / "bundle" / "manifest.json"),
        "threshold": detector.offset_,
        "direction": "higher is more normal; below the threshold an example is an anomaly",
        "preparation": preparation.to_dict(),
        "color": preparation.color,
        "dialect": dialect,
    }
    writing.json(folder / "detector.json", facts)
    shutil.copyfile(runtime.__file__, folder / "runtime.py")
    (folder / "reading").mkdir()
    for path in Path(reading.__file__).parent.glob("*.py"):
        (folder / "reading" / path.name).write_text(_standing_alone(path), encoding="utf-8")
    program = Path(export.__file__).with_name("clients") / "score.py"
    (folder / "score.py").write_text(_standing_alone(program), encoding="utf-8")
    words = _readme(facts, preparation, manifest["parts"][0]["inputs"][0]["dtype"])
    (folder / "README.md").write_text(words, encoding="utf-8")


def _standing_alone(path):
    """A module's text, where what it imports of kerasae lies beside it."""
    text = path.read_text(encoding="utf-8").replace("from kerasae.data import reading", "import reading")
    text = text.replace("from kerasae import runtime", "import runtime")
    return text.replace("kerasae.data.reading", "reading")


def _readme(facts, preparation, dtype):
    """Markdown whose snippets run as they stand, in the folder."""
    shape = ", ".join(map(str, preparation.shape))
    words = {
        "threshold": facts["threshold"],
        "shape": shape,
        "dtype": dtype,
        "pillow": "",
        "imports": "import numpy as np\n\n",
    }
    if preparation.color:
        steps = "\n".join(f"- A photo must be {step}." for step in preparation.photo_steps())
        words |= {
            "pillow": " pillow",
            "imports": "",
            "example": "photos/",
            "name": "file",
            "takes": "It takes photos of any size and colour, one or a folder of them, or an `.npy` file of pixels.",
            "x": f'detector.photo("photo.jpg")[None]  # or many, (n, {shape}): bytes, or floats in [0, 1]',
            "steps": f"{steps}\n- Rows come from the top.",
        }
    elif len(preparation.shape) == 1:
        columns = preparation.columns
        named = f"the columns {', '.join(f'`{c}`' for c in columns)}" if columns else f"{shape} columns"
        words |= {
            "example": "table.csv",
            "name": "row",
            "takes": f"It takes a `.csv`, `.tsv` or `.csv.gz` file with {named},\na `.parquet` file where `pyarrow` is installed, or an "
            "`.npy` file of examples.",
            "x": f"np.zeros((1, {shape}))  # your rows",
            "steps": f"- {named[0].upper()}{named[1:]}, in this order, go in as they are: the graph scales them.",
        }
    else:
        words |= {
            "example": "examples.npy",
            "name": "row",
            "takes": "It takes an `.npy` file of examples, or a `.parquet` file with a column of them where `pyarrow` is installed.",
            "x": f"np.zeros((1, {shape}))  # your examples",
            "steps": "- Numbers go in as they are: the graph scales them.",
        }
    return _README.format(**words)
