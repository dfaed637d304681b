"""The folder that scores examples on a machine without TensorFlow: the detector as a bundle, a script, and a README."""

from pathlib import Path

from kerasae import writing
from kerasae.runs.examples import is_image

_TOLERANCE = 1e-4  # of the bundle: distances are small differences of large numbers


def color(preparation):
    """What photos have to become, or None where examples are no photos."""
    if preparation.scaling != "pixels" or not is_image(preparation.shape):
        return None
    return "rgb" if preparation.shape[-1] == 3 else "grey"


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
- `bundle/score_samples.onnx` takes `x`, float32 of shape (batch, {shape}), and gives `score`, float32 of shape (batch).
- It is an anomaly where `score < threshold`. The threshold, {threshold!r}, is in `detector.json`.

[bundle/README.md](bundle/README.md): the same graph in other runtimes and in TensorFlow, and how it was checked.
"""

_PHOTO_STEPS = """- A photo is turned as its camera says (EXIF), and what is transparent in it is laid on white.
- It becomes {colours}, by Pillow's `convert("{mode}")`.
- It is scaled to cover {width} x {height} pixels by Pillow's Lanczos filter, and cropped around the middle (`PIL.ImageOps.fit`).
- Its bytes are divided by 255: pixels in [0, 1], rows from the top."""


def write(folder, detector, preparation, x, dialect):
    """Writes the folder that runs a fitted detector without TensorFlow; `dialect` is how its tables are written, as far as was said."""
    from kerasae import export
    from kerasae.data import reading

    folder.mkdir()
    export.export(detector, folder / "bundle", x=x, tolerance=_TOLERANCE)
    facts = {
        "format": 1,
        "threshold": detector.offset_,
        "direction": "higher is more normal; below the threshold an example is an anomaly",
        "preparation": preparation.to_dict(),
        "color": color(preparation),
        "dialect": dialect,
    }
    writing.json(folder / "detector.json", facts)
    (folder / "reading").mkdir()
    for path in Path(reading.__file__).parent.glob("*.py"):
        (folder / "reading" / path.name).write_text(_standing_alone(path), encoding="utf-8")
    program = Path(export.__file__).with_name("clients") / "score.py"
    (folder / "score.py").write_text(_standing_alone(program), encoding="utf-8")
    (folder / "README.md").write_text(_readme(facts), encoding="utf-8")


def _standing_alone(path):
    """A module's text, where what it imports of kerasae lies beside it."""
    text = path.read_text(encoding="utf-8").replace("from kerasae.data import reading", "import reading")
    return text.replace("kerasae.data.reading", "reading")


def _readme(facts):
    """Markdown whose snippets run as they stand, in the folder."""
    preparation, color = facts["preparation"], facts["color"]
    shape = ", ".join(map(str, preparation["shape"]))
    words = {"threshold": facts["threshold"], "shape": shape, "pillow": "", "imports": "import numpy as np\n\n"}
    if color:
        height, width, _ = preparation["shape"]
        mode, colours = {"rgb": ("RGB", "red, green and blue"), "grey": ("L", "grey")}[color]
        words |= {
            "pillow": " pillow",
            "imports": "",
            "example": "photos/",
            "name": "file",
            "takes": "It takes photos of any size and colour, one or a folder of them, or an `.npy` file of pixels.",
            "x": f'detector.photo("photo.jpg")[None]  # or many, (n, {shape}): bytes, or floats in [0, 1]',
            "steps": _PHOTO_STEPS.format(colours=colours, mode=mode, width=width, height=height),
        }
    elif len(preparation["shape"]) == 1:
        columns = preparation["columns"]
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
