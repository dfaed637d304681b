"""How stored values become a model's input: found once, on training data, kept in the model, applied to later data and in graphs."""

import dataclasses
import math

import numpy as np

from kerasae import checks

SCALINGS = ("auto", "none", "minmax", "standard")
# A value rounded to float32 is off by up to this share of itself.
_ROUNDING = 2.0**-24
# Of a column's scale: more than the first is lost digits, so that float64 is taken; more than the second is too much anywhere.
NOTICEABLE, TOO_MUCH = 1e-5, 1e-4
# What scaling does to a decoder's further outputs: `ln sigma^2` and `ln sigma` of p(x|z) grow by so many times `ln scale`.
_LOGARITHMS = {"log_variance": 2.0, "log_scale": 1.0}

_PHOTO_STEPS = (
    "turned as its camera says (EXIF), and what is transparent in it laid on white",
    'made {colours}, by Pillow\'s `convert("{mode}")`',
    "scaled to cover {width} x {height} pixels by Pillow's Lanczos filter, and cropped around the middle (`PIL.ImageOps.fit`)",
)


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How stored values become examples: `x = (values - offset) / scale`.

    A model carries it as `model.preparation`: it is saved in the `.keras` file, and what is exported of the model computes from stored
    values. The offset is subtracted in float64 where `takes` is that, and otherwise as two float32 numbers, its rounded value and the rest.

    Args:
        kind: `"images"`, `"array"` or `"table"`.
        shape: of one example.
        scaling: `"pixels"`: integers from 0 to 255 become [0, 1], and floats have to lie there; `"none"`; `"minmax"`: the training
            data's range becomes [0, 1], values beyond are clipped; or `"standard"`: mean 0 and variance 1 on the training data.
        offset, scale: one number, or one per column, or per channel of series.
        columns: of a table, in order. Default: all it has.
        levels: of image files whose pixels are no bytes (10 to 32 bits, floats): what becomes black and white. Default: each file's own.
        takes: what deployed graphs take: `"uint8"`, `"float32"`, or `"float64"`, where float32 would lose digits that matter. Default: as
            offset and scale need it; bytes for pixels whose scale is 255.
    """

    kind: str
    shape: tuple
    scaling: str = "none"
    offset: tuple = (0.0,)
    scale: tuple = (1.0,)
    columns: tuple | None = None
    levels: tuple | None = None
    takes: str | None = None

    def __post_init__(self):
        if self.takes is None:
            if self.scaling == "pixels":
                takes = "uint8" if tuple(self.scale) == (255.0,) else "float32"
            else:
                takes = dtype_for(self.offset, self.scale)
            object.__setattr__(self, "takes", takes)

    @classmethod
    def fit(cls, files, train, scaling="auto", unit_interval=False, missing=False):
        """The preparation of examples like these.

        Args:
            files: `kerasae.data.files.Files`.
            train: indices of the training examples; the others have no part in it.
            scaling: one of `SCALINGS`. `"auto"`: bytes, and images of floats in [0, 1], are pixels; other images are scaled as one, and
                tables by `"standard"`. Photos are pixels under `"none"` too.
            unit_interval: whether the model needs [0, 1], so that `"auto"` scales a table by `"minmax"`.
            missing: whether NaN is taken, for a missing value.
        """
        checks.choice(scaling, "scaling", SCALINGS)
        values = files.values
        shape = values.shape[1:]
        by_column = len(shape) < 3  # of tables and series
        columns = None if files.columns is None else tuple(files.columns)
        is_bytes = values.dtype == np.uint8
        if is_bytes and (scaling == "auto" or (scaling == "none" and files.kind == "images")):
            return cls(files.kind, shape, "pixels", (0.0,), (255.0,), columns, files.levels)
        numbers = checks.array(values, name="data", missing=missing)[train].astype("float64")
        least, most, mean_of, deviation_of = np.min, np.max, np.mean, np.std
        if missing:
            least, most, mean_of, deviation_of = np.nanmin, np.nanmax, np.nanmean, np.nanstd
        if scaling == "auto":
            if by_column:
                scaling = "minmax" if unit_interval else "standard"
            elif least(values) >= 0 and most(values) <= 1:
                return cls(files.kind, shape, "pixels", columns=columns, levels=files.levels)
            else:
                scaling = "minmax"
        # An image's pixels share one scale; a channel's steps do.
        axis = tuple(range(len(shape))) if by_column else None
        if missing and (empty := np.flatnonzero(np.isnan(numbers).all(axis))).size:
            names = (
                [columns[i] if columns is not None else f"column {i}" for i in empty] if by_column else ["all of them"]
            )
            raise ValueError(
                f"Columns without any value among the training examples: {checks.listed(names)}. Leave them out (--drop)."
            )
        low, mean, deviation = least(numbers, axis), mean_of(numbers, axis), deviation_of(numbers, axis)
        spread = most(numbers, axis) - low
        # A constant column stays constant; its standard deviation may be rounding.
        spread, deviation = (np.where(spread > 0, part, 1.0) for part in (spread, deviation))
        if is_bytes:
            takes = "uint8"
        else:  # what is stored in float32 has no digits that float32 could lose
            takes = "float32" if np.can_cast(values.dtype, "float32") else dtype_for(mean, deviation)
        offset, scale = {"none": (0.0, 1.0), "minmax": (low, spread), "standard": (mean, deviation)}[scaling]
        return cls(files.kind, shape, scaling, _numbers(offset), _numbers(scale), columns, files.levels, takes)

    @classmethod
    def of_model(cls, input_shape, of_series=False):
        """For a model of which nothing else is known: images are pixels, tables and series are taken as they are."""
        shape = tuple(input_shape)
        if None in shape:
            raise ValueError(
                f"The model takes examples of any size, {shape}: pass them as an .npy file of examples of one size."
            )
        if len(shape) == 2 and of_series:
            return cls("array", shape)
        return cls("table", shape) if len(shape) == 1 else cls("images", shape, "pixels", (0.0,), (255.0,))

    @classmethod
    def from_dict(cls, values):
        """From a dict that `to_dict` gave.

        Raises:
            ValueError: unless it is one.
        """
        try:
            values = {name: tuple(v) if isinstance(v, list) else v for name, v in dict(values).items()}
            if values["kind"] == "images" and "takes" not in values:
                # Earlier versions divided the bytes of photos by 255 whatever `scaling` said.
                values |= {"scaling": "pixels", "offset": (0.0,), "scale": (255.0,)}
            made = cls(**values)
            made._check()
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"This is no preparation that can be read, or it is damaged: {error}") from error
        return made

    def _check(self):
        """Raises an error unless all fields are of their kinds and sizes: files may hold anything."""
        shape = checks.positive_ints(self.shape, "shape")
        checks.choice(self.kind, "kind", ("images", "array", "table"))
        checks.choice(self.scaling, "scaling", ("pixels", *SCALINGS[1:]))
        checks.choice(self.takes, "takes", ("uint8", "float32", "float64"))
        for name in ("offset", "scale"):
            numbers = [checks.real_number(v, name) for v in getattr(self, name)]
            if len(numbers) != 1 and (len(shape) > 2 or len(numbers) != shape[-1]):
                raise ValueError(f"`{name}` must hold 1 number, or one per column or channel. Received: {len(numbers)}")
            if name == "scale" and min(numbers) <= 0:
                raise ValueError("`scale` must be above 0.")
        if self.levels is not None and len([checks.real_number(v, "levels") for v in self.levels]) != 2:
            raise ValueError("`levels` must be two numbers.")
        if self.columns is not None and (
            [len(self.columns)] != list(shape) or not all(isinstance(c, str) for c in self.columns)
        ):
            raise ValueError("`columns` must be the names of all columns.")

    def to_dict(self):
        """For a JSON file, and a model's config."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    # -- In NumPy ------------------------------------------------------------------------------------------------------------------------

    def apply(self, values, missing=False):
        """Examples, float32 of `(n, *shape)`; float64 where nothing is scaled and float32 would lose digits that matter.

        Args:
            values: as they are stored.
            missing: whether NaN is taken, for a missing value.

        Raises:
            ValueError: if the shape is another, or floats lie outside [0, 1] where pixels are expected.
        """
        if math.prod(values.shape[1:]) == math.prod(self.shape) and values.ndim <= 2:
            values = values.reshape(-1, *self.shape)  # images in rows, as tables hold them
        values = checks.array(values, self.shape, name="data", missing=missing)
        if self.scaling == "pixels":
            if values.dtype == np.uint8:
                return values / np.float32(255)
            low, high = float(np.nanmin(values)), float(np.nanmax(values))
            if low < 0 or high > 1:
                raise ValueError(
                    f"Pixels must be bytes of 0 to 255, or floats in [0, 1]. Received {values.dtype} from {low:g} to {high:g}."
                )
            return values.astype("float32")
        if self.scaling == "none":
            return values.astype("float64" if self.takes == "float64" else "float32")
        # Subtracted in float64: columns such as years and timestamps have large offsets.
        x = ((values - np.asarray(self.offset)) / np.asarray(self.scale)).astype("float32")
        return np.clip(x, 0, 1, out=x) if self.scaling == "minmax" else x

    def invert(self, x):
        """Values in the units of the files; photos come back as pixels in [0, 1]."""
        if self.units is None:
            return np.asarray(x)
        # A table stays in float64: columns such as timestamps need its digits.
        offset, scale = self.units
        values = x * scale + offset
        return values.astype("float64" if len(x.shape) == 2 else self.restored_dtype)

    def stored(self, x):
        """Examples as they would be stored, in the type that deployed graphs take: bytes are the nearest."""
        values = self.invert(x)
        if self.takes != "uint8":
            return values.astype(self.takes)
        whole = 255 if self.scaling == "pixels" or self.kind == "images" else 1
        return np.rint(np.clip(values * whole, 0, 255)).astype("uint8")

    @property
    def units(self):
        """`(offset, scale)` of what comes back, arrays; None where it stays as it is."""
        if self.scaling in ("pixels", "none"):
            return None
        white = 255.0 if self.kind == "images" and self.takes == "uint8" else 1.0
        return np.asarray(self.offset) / white, np.asarray(self.scale) / white

    # -- In graphs -----------------------------------------------------------------------------------------------------------------------

    @property
    def restored_dtype(self):
        """The type of what deployed graphs give back in the data's units."""
        return "float64" if self.takes == "float64" else "float32"

    def scaled(self, x):
        """`apply` of a tensor in the type that `takes` says, in its graph."""
        if self.scaling == "pixels":
            return scaled(x, 0.0, 255.0 if self.takes == "uint8" else 1.0)
        return scaled(x, self.offset, self.scale, clipped=self.scaling == "minmax")

    def restored(self, name, output):
        """`invert` of a tensor: an output of the name `reconstruction`, `log_variance` or `log_scale`; others stay as they are."""
        if self.units is None:
            return output
        if name == "reconstruction":
            return unscaled(output, *self.units, self.restored_dtype)
        if name in _LOGARITHMS:
            return output + (_LOGARITHMS[name] * np.log(self.units[1])).astype("float32")
        return output

    # -- In words ------------------------------------------------------------------------------------------------------------------------

    def describe(self):
        """In words."""
        what = {"images": "images", "array": "series" if len(self.shape) == 2 else "arrays", "table": "rows"}[self.kind]
        return f"{what} of shape {self.shape}, {self.way}"

    @property
    def way(self):
        """How values become examples, in words."""
        each = "column" if len(self.shape) == 1 else "channel"
        scaled = f"each {each} scaled" if len(self.scale) > 1 else "values scaled"
        ways = {
            "pixels": "pixels in [0, 1]" if self.scale == (1.0,) else "pixels of 0 to 255 scaled to [0, 1]",
            "none": "values as they are",
            "minmax": f"{scaled} to [0, 1] by the training data's range",
            "standard": f"{scaled} to mean 0 and variance 1 on the training data",
        }
        return ways[self.scaling]

    @property
    def changes_nothing(self):
        """Whether examples are the stored values: numbers as they are, or floats in [0, 1]."""
        return self.takes != "uint8" and (self.scaling == "none" or (self.scaling == "pixels" and self.scale == (1.0,)))

    @property
    def color(self):
        """What photos have to become, `"grey"` or `"rgb"`; None where examples are no photos."""
        if len(self.shape) != 3 or (self.scaling != "pixels" and self.takes != "uint8"):
            return None
        return {1: "grey", 3: "rgb"}.get(self.shape[-1])

    def photo_steps(self):
        """What becomes of a photo before its bytes go in: phrases; none where examples are no photos."""
        if self.color is None:
            return []
        mode, colours = {"rgb": ("RGB", "red, green and blue"), "grey": ("L", "grey")}[self.color]
        height, width, _ = self.shape
        steps = [s.format(mode=mode, colours=colours, width=width, height=height) for s in _PHOTO_STEPS]
        if self.levels is not None:
            steps.insert(
                1, "made bytes, where its pixels are none, with {:g} black and {:g} white".format(*self.levels)
            )
        return steps

    def before(self):
        """What must have been done to an example before a deployed graph takes it: a list of phrases."""
        if self.takes == "uint8":
            return self.photo_steps() if self.kind == "images" else []
        return ["divided by 255 where pixels are bytes"] if self.scaling == "pixels" else []

    def lost_digits(self, most=NOTICEABLE):
        """The columns of which float32 loses too much: `{name: (offset, error)}`, worst first; the error is in units of x."""
        if self.takes != "float64":
            return {}
        return lost_digits(self.offset, self.scale, self.columns, most)


def dtype_for(offset, scale):
    """What values of such an offset and scale must be in, so that float32 loses no digits that matter: a NumPy type's name."""
    return "float64" if np.max(_errors(offset, scale)) > NOTICEABLE else "float32"


def lost_digits(offset, scale, columns=None, most=NOTICEABLE):
    """As `Preparation.lost_digits`, of offsets and scales, with the columns' names or None."""
    errors = np.ravel(_errors(offset, scale))
    names = (
        columns if columns is not None and len(columns) == len(errors) else [f"column {i}" for i in range(len(errors))]
    )
    offsets = np.broadcast_to(np.ravel(offset), errors.shape)
    worst = [i for i in np.argsort(-errors, kind="stable") if errors[i] > most]
    return {names[i]: (float(offsets[i]), float(errors[i])) for i in worst}


def check_unscaled(values, columns, how):
    """Raises where numbers that are not scaled lose digits in the float32 that models compute in.

    Args:
        values: `(n, ...)`, in any type; NaN is left out.
        columns: names, or None.
        how: they could be scaled, for the message.
    """
    if np.can_cast(values.dtype, "float32"):  # there are none to lose
        return
    # A channel's steps share a unit, and so do an image's pixels.
    axis = tuple(range(values.ndim - 1)) if values.ndim < 4 else None
    low, high = np.nanmin(values, axis=axis), np.nanmax(values, axis=axis)
    # Of a constant column none matter.
    spread = np.where(high > low, np.nanstd(values, axis=axis, dtype="float64"), np.inf)
    if lost := lost_digits(np.nanmean(values, axis=axis, dtype="float64"), spread, columns, TOO_MUCH):
        raise ValueError(
            f"Models compute in float32, which loses digits of {len(lost)} columns that aren't scaled: {in_words(lost)}. Let them be "
            f"scaled ({how}), or subtract a constant first, such as the first day of a time."
        )


def in_words(lost):
    """What `lost_digits` gives, for a message."""
    return checks.listed(
        f"{name!r} (around {offset:.10g}, off by up to {error:.1g} of its scale)"
        for name, (offset, error) in lost.items()
    )


def scaled(x, offset, scale, clipped=False):
    """`(x - offset) / scale` of a tensor, in float32, of Keras or TensorFlow; of float64 the offset is subtracted before it is rounded."""
    from keras import ops

    offset, scale = np.asarray(offset, "float64"), np.asarray(scale, "float64")
    is_float64 = x.dtype == "float64"
    if is_float64:
        x = ops.cast((x - offset) / scale, "float32")
    else:
        high = offset.astype("float32")
        rest = ((offset - high) / scale).astype("float32")
        x = ops.cast(x, "float32")
        x = x - high if high.any() else x
        x = x / scale.astype("float32") if (scale != 1).any() else x
        # Divided on its own: TensorFlow's optimiser would join two numbers that are subtracted in a row, and round the sum.
        x = x - rest if rest.any() else x
    return ops.clip(x, 0.0, 1.0) if clipped else x


def unscaled(x, offset, scale, dtype="float32"):
    """`x * scale + offset` of a float32 tensor, in a type."""
    from keras import ops

    values, rounded = ops.cast(x, dtype) * np.asarray(scale, dtype), np.asarray(offset, dtype)
    if dtype == "float32" and dtype_for(offset, scale) == "float64":
        rest = (np.asarray(offset, "float64") - rounded).astype(dtype)
        # The maximum changes nothing, but keeps LiteRT from adding a large offset to the last layer's bias: sums would lose digits.
        values = ops.maximum(values + rest, np.finfo(dtype).min)
    return values + rounded


def _errors(offset, scale):
    return np.abs(np.asarray(offset, "float64")) * _ROUNDING / np.asarray(scale, "float64")


def _numbers(values):
    return tuple(float(v) for v in np.atleast_1d(values))
