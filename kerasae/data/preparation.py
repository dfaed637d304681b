"""How stored values become a model's input: found once, on training data, kept beside the model, and applied to later data."""

import dataclasses
import math

import numpy as np

from kerasae import checks

SCALINGS = ("auto", "none", "minmax", "standard")


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How stored values become examples: `x = (values - offset) / scale`.

    Args:
        kind: `"images"`, `"array"` or `"table"`.
        shape: of one example.
        scaling: `"pixels"`: integers from 0 to 255 become [0, 1], and floats have to lie there; `"none"`; `"minmax"`: the training
            data's range becomes [0, 1], values beyond are clipped; or `"standard"`: mean 0 and variance 1 on the training data.
        offset, scale: one number, or one per column.
        columns: of a table, in order. Default: all it has.
        levels: of image files whose pixels are no bytes (10 to 32 bits, floats): what becomes black and white. Default: each file's own.
    """

    kind: str
    shape: tuple
    scaling: str = "none"
    offset: tuple = (0.0,)
    scale: tuple = (1.0,)
    columns: tuple | None = None
    levels: tuple | None = None

    @classmethod
    def fit(cls, files, train, scaling="auto", unit_interval=False):
        """The preparation of examples like these.

        Args:
            files: `kerasae.data.files.Files`.
            train: indices of the training examples; the others have no part in it.
            scaling: one of `SCALINGS`. `"auto"`: bytes, and images of floats in [0, 1], are pixels; other images are scaled as one, and
                tables by `"standard"`.
            unit_interval: whether the model needs [0, 1], so that `"auto"` scales a table by `"minmax"`.
        """
        checks.choice(scaling, "scaling", SCALINGS)
        values = files.values
        shape = values.shape[1:]
        is_table = len(shape) == 1
        columns = None if files.columns is None else tuple(files.columns)
        if values.dtype == np.uint8 and scaling == "auto":
            return cls(files.kind, shape, "pixels", (0.0,), (255.0,), columns, files.levels)
        numbers = checks.array(values, name="data")[train].astype("float64")
        if scaling == "auto":
            if is_table:
                scaling = "minmax" if unit_interval else "standard"
            elif values.min() >= 0 and values.max() <= 1:
                return cls(files.kind, shape, "pixels", columns=columns, levels=files.levels)
            else:
                scaling = "minmax"
        axis = 0 if is_table else None  # an image's pixels share one scale
        if scaling == "none":
            offset, scale = 0.0, 1.0
        elif scaling == "minmax":
            offset, scale = numbers.min(axis), np.ptp(numbers, axis)
        else:
            offset, scale = numbers.mean(axis), numbers.std(axis)
        # A constant column stays constant.
        scale = np.where(np.asarray(scale) > 0, scale, 1.0)
        return cls(files.kind, shape, scaling, _numbers(offset), _numbers(scale), columns, files.levels)

    @classmethod
    def of_model(cls, input_shape):
        """For a model of which nothing else is known: images are pixels, tables are taken as they are."""
        shape = tuple(input_shape)
        if None in shape:
            raise ValueError(
                f"The model takes examples of any size, {shape}: pass them as an .npy file of examples of one size."
            )
        return cls("table", shape) if len(shape) == 1 else cls("images", shape, "pixels", (0.0,), (255.0,))

    @classmethod
    def from_dict(cls, values):
        """From a dict that `to_dict` gave."""
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})

    def to_dict(self):
        """For a JSON file."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    def apply(self, values):
        """Examples, float32 of `(n, *shape)`.

        Raises:
            ValueError: if the shape is another, or floats lie outside [0, 1] where pixels are expected.
        """
        if math.prod(values.shape[1:]) == math.prod(self.shape) and values.ndim <= 2:
            values = values.reshape(-1, *self.shape)  # images in rows, as tables hold them
        values = checks.array(values, self.shape, name="data")
        if self.scaling == "pixels" or (self.kind == "images" and values.dtype == np.uint8):
            if values.dtype == np.uint8:
                return values / np.float32(255)
            low, high = float(values.min()), float(values.max())
            if low < 0 or high > 1:
                raise ValueError(
                    f"Pixels must be bytes of 0 to 255, or floats in [0, 1]. Received {values.dtype} from {low:g} to {high:g}."
                )
            return values.astype("float32")
        offset, scale = np.asarray(self.offset), np.asarray(self.scale)
        # Subtracted in float64: columns such as years and timestamps have large offsets.
        x = ((values - offset) / scale).astype("float32")
        return np.clip(x, 0, 1, out=x) if self.scaling == "minmax" else x

    def invert(self, x):
        """Values in the units of the files; pixels stay in [0, 1]."""
        if self.scaling in ("pixels", "none"):
            return np.asarray(x)
        # A table stays in float64: columns such as timestamps need its digits.
        values = x * np.asarray(self.scale) + np.asarray(self.offset)
        return values.astype("float64" if len(x.shape) == 2 else "float32")

    def describe(self):
        """In words."""
        scaled = "each column scaled" if len(self.scale) > 1 else "values scaled"
        ways = {
            "pixels": "pixels in [0, 1]" if self.scale == (1.0,) else "pixels of 0 to 255 scaled to [0, 1]",
            "none": "values as they are",
            "minmax": f"{scaled} to [0, 1] by the training data's range",
            "standard": f"{scaled} to mean 0 and variance 1 on the training data",
        }
        what = {"images": "images", "array": "arrays", "table": "rows"}[self.kind]
        return f"{what} of shape {self.shape}, {ways[self.scaling]}"


def _numbers(values):
    return tuple(float(v) for v in np.atleast_1d(values))
