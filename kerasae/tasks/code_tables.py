"""The tables that quantised codes are entropy-coded by."""

import numpy as np

# Codes are binned at a quarter of the training step; a stream's step is a whole multiple of that, so that its tables are sums of counts.
RESOLUTION = 4
_LARGEST_TABLE = 2**16


def count(z, step):
    """How many codes fall into each bin of width `step / 4`: `(offsets, counts)` as of `CodeTables`.

    Args:
        z: codes, (n, latent_dim).
        step: in units of the code.

    Raises:
        ValueError: where a code spreads over too many bins.
    """
    bins = _bins(z, step)
    # Room for what lies a little beyond the training images, at least 2 steps.
    margin = np.maximum(2 * RESOLUTION, (bins.max(axis=0) - bins.min(axis=0)) // 8)
    low, high = bins.min(axis=0) - margin, bins.max(axis=0) + margin
    if (high - low).max() >= _LARGEST_TABLE:
        raise ValueError(
            f"A code spreads over {(high - low).max()} bins: the codes' scales differ too much. Scale the model's codes alike, or let "
            "`fit` train a model."
        )
    columns = zip(bins.T, low, high, strict=True)
    return low, [np.bincount(column - first, minlength=last - first + 1) for column, first, last in columns]


class CodeTables:
    """Writes codes as a range coder's words, and reads them back.

    Args:
        step: width of a bin at the multiple 4, in units of the code.
        offsets: int64 array, the number of each table's first bin.
        counts: list of int64 arrays, one per code: how many training codes fell into each bin of width `step / 4`.
    """

    def __init__(self, step, offsets, counts):
        self.step, self.offsets, self.counts = step, offsets, counts

    def table(self, j, multiple):
        """Of code j at a multiple of `step / 4`: the first symbol, the symbols' weights (exact in float64), the code each stands for."""
        fine = np.arange(len(self.counts[j])) + self.offsets[j]
        symbols = (fine + multiple // 2) // multiple
        first, index = symbols[0], symbols - symbols[0]
        counts = np.bincount(index, weights=self.counts[j])
        sums = np.bincount(index, weights=self.counts[j] * fine)
        middle = (np.arange(len(counts)) + first) * multiple
        # The mean of the training codes in the bin, drawn to its middle where there were hardly any.
        values = (sums + middle) / (counts + 1) * (self.step / RESOLUTION)
        return first, counts + 0.5, values

    def least_bits(self, multiple):
        """The fewest bits that the codes of an image can take; the coder rounds probabilities to multiples of 2^-24."""
        bits = 0.0
        for j in range(len(self.counts)):
            _, weights, _ = self.table(j, multiple)
            bits += max(0.0, -np.log2(weights.max() / weights.sum() + 2.0**-20))
        return bits

    def write(self, z, multiple):
        """Codes (n, latent_dim) as uint32 words; those beyond a table are stored as its outermost bin."""
        import constriction

        coder = constriction.stream.queue.RangeEncoder()
        bins = _bins(z, self.step)
        for j, counts in enumerate(self.counts):
            first, weights, _ = self.table(j, multiple)
            fine = np.clip(bins[:, j], self.offsets[j], self.offsets[j] + len(counts) - 1)
            symbols = (fine + multiple // 2) // multiple - first
            if len(weights) > 1:  # of one symbol there is nothing to say
                coder.encode(symbols.astype("int32"), constriction.stream.model.Categorical(weights, perfect=False))
        return coder.get_compressed()

    def read(self, words, num_images, multiple):
        """The codes that `write` wrote, each at its bin's mean: float32, (num_images, latent_dim)."""
        import constriction

        coder = constriction.stream.queue.RangeDecoder(words)
        z = np.empty((num_images, len(self.counts)), "float32")
        for j in range(len(self.counts)):
            _, weights, values = self.table(j, multiple)
            symbols = 0
            if len(weights) > 1:
                model = constriction.stream.model.Categorical(weights, perfect=False)
                symbols = coder.decode(model, num_images)
            z[:, j] = values[symbols]
        return z


def _bins(z, step):
    """The numbers of the fine bins that codes fall into, (n, latent_dim)."""
    return np.rint(z.astype("float64") * (RESOLUTION / step)).astype("int64")
