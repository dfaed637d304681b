"""A family is one record beside its builder: what works with all families finds it there. The options that builders share."""

import inspect
import runpy
from pathlib import Path

import numpy as np
import pytest

import kerasae
from kerasae import builders, models, tasks
from kerasae.registry import FAMILIES

ROOT = Path(__file__).parents[1]
# What users call: names, order, defaults, and what is given by name only.
SIGNATURES = {
    "undercomplete": "(input_shape=None, latent_dim=None, hidden_units=None, network='dense', *, loss='squared_error', activation='relu', "
    "code_activation=None, output_activation=None, mask_value=None, encoder=None, decoder=None, **kwargs)",
    "linear": "(input_shape=None, latent_dim=None, hidden_units=(), *, tied=False, encoder=None, decoder=None, **kwargs)",
    "deep": "(input_shape=None, latent_dim=None, hidden_units=(1000, 500, 250), network='dense', *, tied=False, "
    "loss='squared_error', activation='relu', code_activation=None, output_activation=None, mask_value=None, encoder=None, "
    "decoder=None, **kwargs)",
    "denoising": "(input_shape=None, latent_dim=None, hidden_units=None, network='dense', *, corruption='gaussian', noise_stddev=None, "
    "corruption_rate=None, loss='squared_error', activation='relu', code_activation=None, output_activation=None, "
    "mask_value=None, encoder=None, decoder=None, seed=None, **kwargs)",
    "k_sparse": "(input_shape=None, latent_dim=None, hidden_units=(), network='dense', *, k=25, alpha=1.0, by='magnitude', tied=False, "
    "loss='squared_error', activation='relu', code_activation=None, output_activation=None, mask_value=None, encoder=None, "
    "decoder=None, **kwargs)",
    "sparse": "(input_shape=None, latent_dim=None, hidden_units=(), network='dense', *, sparsity_weight=1.0, sparsity_target=0.05, "
    "penalty='kl', average='example', layer_weights=None, loss='squared_error', activation='relu', code_activation=None, "
    "output_activation=None, mask_value=None, encoder=None, decoder=None, **kwargs)",
    "contractive": "(input_shape=None, latent_dim=None, hidden_units=(), network='dense', *, contraction_weight=0.1, jacobian='exact', "
    "loss='squared_error', activation='sigmoid', code_activation='sigmoid', output_activation=None, tied=False, "
    "mask_value=None, encoder=None, decoder=None, **kwargs)",
    "variational": "(input_shape=None, latent_dim=None, hidden_units=None, network='dense', *, likelihood='bernoulli', variance=1.0, "
    "posterior='diagonal', beta=1.0, activation='relu', output_activation=None, mask_value=None, encoder=None, "
    "decoder=None, **kwargs)",
    "rate_distortion": "(input_shape=None, latent_dim=None, hidden_units=None, network='dense', *, rate_weight=0.1, activation='relu', "
    "code_activation=None, output_activation=None, mask_value=None, encoder=None, decoder=None, **kwargs)",
    "incomplete": "(input_shape=None, latent_dim=None, hidden_units=None, network='dense', *, k=20, activation='relu', "
    "output_activation=None, encoder=None, decoder=None, **kwargs)",
    "pixels": "(input_shape=None, latent_dim=None, hidden_units=None, network='dense', *, radius=4, ink_units=(64, 32), "
    "value_units=(256, 160), activation='relu', encoder=None, decoder=None, **kwargs)",
}


def ours():
    return [record for record in models.families() if record.builder.__module__.startswith("kerasae.")]


@pytest.fixture
def plain():
    """A family of a user's own."""

    @models.family(title="plain", purpose="tests", paper="none", real_valued={"loss": "squared_error"})
    @kerasae.networks.takes_networks(
        hidden_units=(6,), loss="binary_crossentropy", tied=False, without=("code_activation",)
    )
    def plain(networks, *, weight=1.0, **kwargs):
        """A plain autoencoder.

        Args:
            weight: of nothing.
            latent_dim, activation: chosen by
                hand.

        Returns:
            A model.
        """
        assert weight == 2.0
        return models.Autoencoder(*networks.pair(), loss=networks.loss, **kwargs)

    yield plain
    FAMILIES.remove("plain")


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_stay(name):
    assert str(inspect.signature(getattr(builders, name))) == SIGNATURES[name]


@pytest.mark.parametrize("record", ours(), ids=lambda record: record.name)
def test_records_are_whole_and_every_argument_is_documented(record):
    assert all(isinstance(text, str) and text for text in (record.title, record.purpose, record.paper))
    doc = inspect.getdoc(record.builder)
    arguments = doc.partition("\nArgs:\n")[2].partition("\n\n")[0]
    for name in inspect.signature(record.builder).parameters:
        assert name in arguments
    assert all(f"\n{section}:\n" in doc for section in ("Returns", "Raises", "Example", "Reference"))
    assert "\n\n\n" not in doc
    assert set(record.real_valued) <= set(inspect.signature(record.builder).parameters)


def test_records_are_read_without_importing_the_families():
    declared = FAMILIES.declared()
    assert set(declared) == {record.name for record in ours()}
    for record in ours():
        facts = {"title": record.title, "purpose": record.purpose, "paper": record.paper}
        facts |= {"takes_missing": True} if record.takes_missing else {}
        assert declared[record.name] == facts | ({"real_valued": record.real_valued} if record.real_valued else {})


def test_the_builders_are_those_of_the_records():
    names = [record.name for record in models.families()]
    assert dir(builders) == builders.__all__ == names
    assert all(getattr(builders, record.name) is record.builder for record in models.families())
    with pytest.raises(AttributeError, match="no attribute 'variation'. It has: .*'variational'"):
        _ = builders.variation


def test_a_family_of_a_user_s_own_is_found(plain):
    x = np.random.default_rng(0).normal(size=(40, 5))
    assert "plain" in dir(builders)
    model = builders.plain(5, 2, weight=2.0, seed=3, name="mine")
    assert (model.distortion, model.name, model.seed) == ("binary_crossentropy", "mine", 3)
    # Data of an estimator may leave [0, 1]: the record says what the builder is to be given then.
    reducer = tasks.Reducer(model="plain", epochs=1, model_options={"weight": 2.0}, random_state=0).fit(x)
    assert reducer.model_.distortion == "squared_error"
    assert [layer.units for layer in reducer.model_.encoder.layers if hasattr(layer, "units")] == [6, 2]
    with pytest.raises(ValueError, match="`model` must be one of .*'plain'.* Did you mean 'plain'"):
        tasks.Reducer(model="plan", random_state=0).fit(x)


def test_shared_options_stand_in_signature_and_documentation(plain):
    assert str(inspect.signature(plain)) == (
        "(input_shape=None, latent_dim=None, hidden_units=(6,), network='dense', *, weight=1.0, loss='binary_crossentropy', tied=False, "
        "activation='relu', output_activation=None, mask_value=None, encoder=None, decoder=None, **kwargs)"
    )
    doc = inspect.getdoc(plain)
    assert doc.startswith("A plain autoencoder.\n\nArgs:\n    input_shape: shape of one example")
    assert doc.count("latent_dim, activation: chosen by\n        hand.\n") == 1
    assert "Default: (6,)." in doc
    assert "\n    weight: of nothing.\n" in doc
    assert doc.index("weight:") < doc.index("loss:") < doc.index("tied:") < doc.index("**kwargs: `seed` and `name`")
    assert "\n\nReturns:\n    A model.\n\nRaises:\n    ValueError: on a shape, size or option that can't be" in doc


def test_wrong_options_are_refused(plain):
    with pytest.raises(TypeError, match="multiple values for argument 'latent_dim'"):
        plain(5, 2, latent_dim=3)
    with pytest.raises(ValueError, match="Unrecognized keyword arguments.*code_activation"):
        plain(5, 2, weight=2.0, code_activation="relu")
    plain.__name__ = "variational"
    with pytest.raises(ValueError, match="There is a family 'variational' already, of kerasae.models.variational"):
        models.family(title="a", purpose="b", paper="c")(plain)
    assert builders.variational(5, 2).term_names == ("reconstruction_loss", "kl_loss")


def test_an_explicit_choice_stands_before_the_record_s():
    variational = FAMILIES["variational"]
    assert variational.for_real_values({}) == {"likelihood": "gaussian", "variance": "learned"}
    assert variational.for_real_values({"variance": 0.1, "beta": 2}) == {
        "likelihood": "gaussian",
        "variance": 0.1,
        "beta": 2,
    }
    assert variational.for_real_values({"likelihood": "bernoulli"}) == {"likelihood": "bernoulli"}


def test_the_tables_on_pages_have_a_row_per_family():
    tables = runpy.run_path(str(ROOT / "docs/make_tables.py"))
    for page in tables["PAGES"]:
        assert (ROOT / page).read_text() == tables["written"](page), "run python docs/make_tables.py"
