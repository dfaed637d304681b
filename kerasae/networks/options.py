"""The options of networks that the families' builders share: written, documented and turned into the two networks here, once."""

import dataclasses
import functools
import inspect
import itertools
import math
import re
import textwrap

import keras

from kerasae import checks, distributions
from kerasae.networks.kinds import kinds
from kerasae.networks.pair import check_pair
from kerasae.networks.stacking import decoder, encoder
from kerasae.registry import NETWORKS

_RAISES = "ValueError: on a shape, size or option that can't be, and where encoder and decoder don't fit together."
_SECTION = re.compile(r"^Args:\n((?:    .*\n)+)\n?", re.MULTILINE)
_ENTRY = re.compile(r"^    (\S[^:]*): .*\n(?:        .*\n)*", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """What a builder's caller asks of the two networks; a family's builder gets one, and `pair` makes them."""

    input_shape: tuple | int | None = None
    latent_dim: int | None = None
    hidden_units: tuple | None = None
    network: str = "dense"
    loss: str = "squared_error"
    activation: str = "relu"
    code_activation: str | None = None
    output_activation: str | None = None
    tied: bool = False
    mask_value: float | None = None
    encoder: keras.Model | None = None
    decoder: keras.Model | None = None

    def pair(self, heads=None, code_layer=None, log_variance=False, **changes):
        """The two networks: the user's own, or new ones.

        Args:
            heads: function of `latent_dim` that gives the encoder's outputs, `{name: size}`. Default: `{"z": latent_dim}`.
            code_layer: a layer behind the code, put behind a user's own encoder too.
            log_variance: whether the decoder has a second output, `log_variance`.
            **changes: of options, such as an activation that follows from the family's own.

        Returns:
            `(encoder, decoder)`.

        Raises:
            ValueError: where options are missing, wrong, or given beside networks of the user's own.
        """
        options = dataclasses.replace(self, **changes)
        if self.encoder is not None or self.decoder is not None:
            self._check_that_networks_come_alone()
            if code_layer is None:
                return self.encoder, self.decoder
            own, decoder_ = check_pair(self.encoder, self.decoder)
            return keras.Model(own.inputs, code_layer(own.outputs[0]), name="encoder"), decoder_
        if self.input_shape is None or self.latent_dim is None:
            raise ValueError("Pass `input_shape` and `latent_dim`, or your own `encoder` and `decoder`.")
        latent_dim = checks.positive_int(self.latent_dim, "latent_dim")
        hidden_units = options.hidden_units
        if hidden_units == () and NETWORKS[self.network].needs_hidden_units:
            hidden_units = None
        self._check_memory(hidden_units, latent_dim)
        head = options.output_activation or distributions.distortion(options.loss).head
        shared = (hidden_units, self.network, options.activation)
        return (
            encoder(
                self.input_shape,
                heads(latent_dim) if heads else {"z": latent_dim},
                *shared,
                head_activation=options.code_activation,
                code_layer=code_layer,
                mask_value=options.mask_value,
            ),
            decoder(
                self.input_shape,
                latent_dim,
                *shared,
                output_activation=head,
                tied=options.tied,
                log_variance=log_variance,
            ),
        )

    def _check_memory(self, hidden_units, latent_dim):
        """Raises where sizes were mistyped: each layer's kernel holds at least its inputs times its outputs, of whatever kind it is."""
        if hidden_units is None:
            hidden_units = NETWORKS[self.network].hidden_units
        # Only what takes examples of any rank is dense from the first layer on.
        features = math.prod(checks.feature_shape(self.input_shape)) if NETWORKS[self.network].axes is None else 1
        sizes = [features, *checks.positive_ints(hidden_units, "hidden_units"), latent_dim]
        weights = 2 * sum(a * b for a, b in itertools.pairwise(sizes))
        size = f"input_shape={self.input_shape}, hidden_units={tuple(sizes[1:-1])} and latent_dim={latent_dim:,}"
        what = f"A model with {size} takes {4 * weights / 2**30:.1f} GiB of memory"
        checks.fits(4 * weights, f"{what} or more", "Take smaller ones.")

    def _check_that_networks_come_alone(self):
        given = [name for name in ("input_shape", "latent_dim") if getattr(self, name) is not None]
        missing = [name for name in ("encoder", "decoder") if getattr(self, name) is None]
        if missing or given:
            raise ValueError(
                "Pass `encoder` and `decoder` alone, without input_shape and latent_dim, or none of the two. "
                + (f"Missing: `{missing[0]}`." if missing else f"Received besides: {given}")
            )


_DEFAULTS = dataclasses.asdict(NetworkOptions())
# What is said of each wherever a builder has it.
_TEXTS = {
    "input_shape": "shape of one example, without the batch, or an int for vectors.",
    "latent_dim": "size of the code, at least 1.",
    "hidden_units": "sizes of the encoder's hidden layers, which the decoder mirrors: {units}. Default: {default}.",
    "network": "{networks}, or a kind of your own (`kerasae.networks.register`).",
    "loss": '`"squared_error"`, or `"binary_crossentropy"` for data in [0, 1].',
    "activation": "of the hidden layers. Default: {default}.",
    "code_activation": "of the code. Default: {default}.",
    "output_activation": "of the reconstruction. Default: linear for squared error, sigmoid for cross-entropy.",
    "tied": "whether the decoder's kernels are the transposes of the encoder's (only {tied}): half the weights.",
    "mask_value": "for series of different lengths ({padding}): steps all of whose channels equal it are padding, and count for nothing. "
    "Default: none.",
    "encoder": "your own network, in place of shape, sizes, activations and `network`; with `decoder`.",
    "decoder": "your own network; with `encoder`.",
}
_POSITIONAL = ("input_shape", "latent_dim", "hidden_units", "network")
_BY_NAME = ("loss", "activation", "code_activation", "output_activation", "mask_value")
_OWN_NETWORKS = ("encoder", "decoder")
# What every model takes besides.
_OF_KERAS = {"seed", "name", "dtype", "trainable", "autocast"}


def takes_networks(*, without=(), **defaults):
    """Gives a family's builder the options of `NetworkOptions`: a decorator.

    The function takes a `NetworkOptions`, and behind a star the family's own options; what it becomes takes the shared options as well,
    each documented: `input_shape`, `latent_dim`, `hidden_units` and `network` first, the family's own by name, then the others. The
    function documents its own alone; what it says of a shared one takes the shared text's place.

    Args:
        without: names of shared options that the family does not have.
        **defaults: of shared options that differ from `NetworkOptions`; in this order, before the other shared ones. `tied` is an option
            where it is named.

    Example:

    ```python
    @kerasae.networks.takes_networks(activation="tanh")
    def bounded(networks, *, is_bounded=True, **kwargs):
        pair = networks.pair(code_activation="tanh" if is_bounded else networks.code_activation)
        return kerasae.models.Autoencoder(*pair, loss=networks.loss, **kwargs)


    model = bounded((8, 8, 1), latent_dim=2, loss="binary_crossentropy")
    ```
    """
    by_name = [name for name in dict.fromkeys((*defaults, *_BY_NAME)) if name not in _POSITIONAL]
    names = [name for name in (*_POSITIONAL, *by_name, *_OWN_NETWORKS) if name not in without]
    defaults = {name: defaults.get(name, _DEFAULTS[name]) for name in names}

    def decorate(function):
        signature = _signature(function, defaults)

        @functools.wraps(function)
        def builder(*args, **kwargs):
            # A family of one's own may hand others on to its class; where it was defined may have no name.
            if (function.__module__ or "").startswith("kerasae."):
                for name in set(kwargs) - _OF_KERAS - set(signature.parameters):
                    checks.choice(name, f"arguments of {function.__name__}", [*signature.parameters][:-1])
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            for name, parameter in signature.parameters.items():
                if isinstance(parameter.default, bool) and bound.arguments[name] not in (True, False):
                    raise ValueError(f"`{name}` must be True or False. Received: {bound.arguments[name]!r}")
            arguments = {**bound.arguments, **bound.arguments.get("kwargs", {})}
            arguments.pop("kwargs", None)
            options = NetworkOptions(**{name: arguments.pop(name) for name in defaults})
            return function(options, **arguments)

        builder.__signature__ = signature
        builder.__doc__ = _documentation(inspect.cleandoc(function.__doc__ or ""), signature)
        return builder

    return decorate


def _signature(function, defaults):
    """The builder's: shared positional options, the family's own, the other shared ones, a `seed` of the family's own, and the rest."""
    _, *own = inspect.signature(function).parameters.values()
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default) for name, default in defaults.items()
    ]
    positional = [p.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for p in shared if p.name in _POSITIONAL]
    keyword = [p for p in shared if p.name not in _POSITIONAL]
    seeds = [p for p in own if p.name == "seed"]
    rest = [p for p in own if p.kind is inspect.Parameter.VAR_KEYWORD]
    own = [p for p in own if p not in seeds and p not in rest]
    return inspect.Signature([*positional, *own, *keyword, *seeds, *rest])


def _documentation(text, signature):
    """The docstring with all arguments, in the signature's order: the family's own text, else the shared one's."""
    own = _SECTION.search(text)
    entries = {
        name.strip(" *"): entry[0] for entry in _ENTRY.finditer(own[1] if own else "") for name in entry[1].split(",")
    }
    lines = []
    for name, parameter in signature.parameters.items():
        entry = entries.get(name)
        if entry is None and parameter.kind is inspect.Parameter.VAR_KEYWORD:
            entry = _entry("**kwargs", f"{'' if 'seed' in signature.parameters else '`seed` and '}`name` of the model.")
        elif entry is None and name in _TEXTS:
            entry = _entry(name, _TEXTS[name].format(**_facts(name, parameter.default)))
        if entry is not None and entry not in lines:
            lines.append(entry)
    section = f"Args:\n{''.join(lines)}\n"
    if own:
        text = text[: own.start()] + section + text[own.end() :]
    else:
        head, _, tail = text.partition("\n\nReturns:")
        text = f"{head}\n\n{section}Returns:{tail}" if tail else f"{head}\n\n{section}".rstrip()
    if "\nRaises:\n" in text:
        return text.replace("\nRaises:\n", f"\nRaises:\n    {_RAISES}\n", 1)
    return re.sub(r"(\n\nExample:\n|\n\nReference:\n|\Z)", rf"\n\nRaises:\n    {_RAISES}\1", text, count=1)


def _entry(name, text):
    return textwrap.fill(text, 118, initial_indent=f"    {name}: ", subsequent_indent=" " * 8) + "\n"


def _facts(name, default):
    """What a shared option's text names: its default, and what the kinds of networks say of themselves."""
    if default is None:
        default = _of_kinds(lambda kind: kind.hidden_units) if name == "hidden_units" else "linear"
    return {
        "default": "none" if default == () else default,
        "units": _of_kinds(lambda kind: kind.units),
        "networks": ", ".join(f'`"{name}"`' for name in kinds()),
        "tied": " or ".join(f'`"{name}"`' for name, kind in kinds().items() if kind.can_tie),
        "padding": ", ".join(f'`"{name}"`' for name, kind in kinds().items() if kind.takes_padding),
    }


def _of_kinds(fact):
    return ", ".join(f'{fact(kind)} (`"{name}"`)' for name, kind in kinds().items())
