"""What is known of every family: one record beside its builder, for everything that works with all of them."""

import dataclasses
from collections.abc import Callable

from kerasae.registry import FAMILIES


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models.

    Args:
        name: of the builder: what `kerasae.builders`, estimators, recipes and the command line call it.
        builder: function that gives a model, ready to compile.
        title: what to call it in a sentence.
        purpose: what it is for, one phrase.
        paper: authors and year.
        real_valued: options of the builder for data that may leave [0, 1], such as tables in units of their own. Whoever sets the first
            one has chosen, and gets none of them.
        takes_missing: whether its models take NaN, for a missing value.
    """

    name: str
    builder: Callable
    title: str
    purpose: str
    paper: str
    real_valued: dict = dataclasses.field(default_factory=dict)
    takes_missing: bool = False

    def for_real_values(self, given):
        """Options of the builder for data that may leave [0, 1]: those given, and `real_valued` where they leave it open."""
        chosen = next(iter(self.real_valued), None) in given
        return dict(given) if chosen else {**self.real_valued, **given}


def family(*, title, purpose, paper, real_valued=None, takes_missing=False):
    """Registers a builder, under its function's name, as a family's: a decorator, whose arguments are those of `Family`, as literals.

    Raises:
        ValueError: where another family has the name.

    Example:

    ```python
    @kerasae.models.family(title="plain", purpose="nothing in particular", paper="none")
    @kerasae.networks.takes_networks()
    def plain(networks, **kwargs):
        return kerasae.models.Autoencoder(*networks.pair(), loss=networks.loss, **kwargs)


    model = kerasae.builders.plain((8, 8, 1), latent_dim=2)
    ```
    """

    def registered(builder):
        record = Family(builder.__name__, builder, title, purpose, paper, real_valued or {}, takes_missing)
        FAMILIES.add(record.name, record, builder)
        return builder

    return registered


def families():
    """The records of all families, `Family` each, by name: the package's own, and those that you have registered."""
    return [FAMILIES[name] for name in FAMILIES]
