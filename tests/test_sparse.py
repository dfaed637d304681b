"""The sparse families: penalties against NumPy, k annealed by a callback."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasae import builders, losses
from kerasae.models import KAnnealing, SparseAutoencoder


def divergence(target, rate, penalty):
    """s(rho, r) in float64."""
    if penalty == "kl":
        return target * np.log(target / rate) + (1 - target) * np.log((1 - target) / (1 - rate))
    return np.abs(target - rate) if penalty == "absolute" else (target - rate) ** 2


def oracle(activations, target, penalty, average):
    a = activations.astype("float64")
    if penalty == "l1":
        return np.abs(a).sum(axis=1)
    if average == "example":
        return divergence(target, a.mean(axis=1), penalty)
    return np.full(len(a), divergence(target, a.mean(axis=0), penalty).sum())


@pytest.mark.parametrize("penalty", ["kl", "absolute", "squared", "l1"])
@pytest.mark.parametrize("average", ["example", "batch"])
@pytest.mark.parametrize("target", [0.05, 0.6])
def test_penalties(rng, penalty, average, target):
    activations = rng.uniform(0.01, 0.99, size=(6, 9)).astype("float32")
    expected = oracle(activations, target, penalty, average)
    np.testing.assert_allclose(
        losses.sparsity_penalty(activations, target, penalty, average), expected, rtol=1e-4, atol=1e-7
    )


def test_kl_is_zero_at_its_target_and_finite_at_the_ends():
    activations = np.array([[0.1, 0.3], [0.0, 0.0], [1.0, 1.0]], "float32")
    penalty = losses.sparsity_penalty(activations, 0.2, "kl", "example").numpy()
    assert penalty[0] == pytest.approx(0, abs=1e-6)
    assert np.isfinite(penalty).all()
    assert (penalty[1:] > 0.2).all()


@pytest.mark.parametrize("average", ["example", "batch"])
def test_the_models_term_is_the_weighted_sum_over_its_layers(digits, average):
    model = builders.sparse(
        (8, 8, 1),
        10,
        (12,),
        activation="sigmoid",
        average=average,
        layer_weights={"hidden_1": 0.5, "z": 2.0},
        sparsity_target={"hidden_1": 0.2, "z": 0.1},
        sparsity_weight=0.3,
    )
    model.compile("sgd")
    x = digits[1][:50]
    logs = model.evaluate(x, batch_size=50, verbose=0, return_dict=True)
    hidden = keras.Model(model.encoder.inputs, model.encoder.get_layer("hidden_1").output).predict(x, verbose=0)
    expected = 0.5 * oracle(hidden, 0.2, "kl", average) + 2.0 * oracle(model.encode(x), 0.1, "kl", average)
    assert logs["sparsity_loss"] == pytest.approx(expected.mean(), rel=1e-4)
    assert logs["loss"] == pytest.approx(logs["reconstruction_loss"] + 0.3 * logs["sparsity_loss"], rel=1e-5)


def test_the_penalty_brings_activations_to_their_target(digits):
    rates = {}
    for weight in (0.0, 10.0):
        keras.utils.set_random_seed(0)
        model = builders.sparse((8, 8, 1), 60, sparsity_target=0.1, sparsity_weight=weight, average="batch")
        model.compile(keras.optimizers.Adam(1e-2))
        model.fit(digits[0], epochs=30, batch_size=128, verbose=0)
        rates[weight] = model.encode(digits[1]).mean(axis=0)
    assert np.abs(rates[10.0] - 0.1).mean() < 0.02
    assert np.abs(rates[0.0] - 0.1).mean() > 0.1


@pytest.mark.parametrize("activation", ["relu", "linear", "tanh"])
def test_kl_on_activations_outside_the_unit_interval_is_refused(activation):
    with pytest.raises(
        ValueError, match=f"needs activations in \\[0, 1\\], and layer 'z' has the activation '{activation}'"
    ):
        builders.sparse((8, 8, 1), 10, code_activation=activation)
    builders.sparse((8, 8, 1), 10, code_activation=activation, penalty="squared")


def test_kl_checks_activations_of_unknown_range_on_every_batch(digits):
    def networks(scale):
        encoder = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Flatten(),
                keras.layers.Dense(4, "sigmoid"),
                keras.layers.Rescaling(scale),
            ]
        )
        return {"encoder": encoder, "decoder": builders.undercomplete((8, 8, 1), 4).decoder}

    for scale, inside in ((1.0, True), (3.0, False)):
        model = builders.sparse(**networks(scale))
        model.compile("sgd")
        if inside:
            model.fit(digits[0][:32], verbose=0)
        else:
            with pytest.raises(tf.errors.InvalidArgumentError, match=r"KL penalty needs activations in \[0, 1\]"):
                model.fit(digits[0][:32], verbose=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"penalty": "kll"}, "Did you mean 'kl'"),
        ({"average": "batches"}, "Did you mean 'batch'"),
        ({"sparsity_target": 0.0}, r"`sparsity_target\['z'\]` must be a finite number above 0"),
        ({"sparsity_target": 1.0}, "must lie below 1"),
        ({"sparsity_weight": -1}, "`sparsity_weight`"),
        ({"layer_weights": {"hidden_9": 1.0}}, "Received: 'hidden_9'"),
        ({"layer_weights": {}}, "at least one layer"),
        ({"layer_weights": {"z": -1.0}}, r"`layer_weights\['z'\]`"),
        ({"sparsity_target": {"hidden_1": 0.1}}, r"targets for: \['hidden_1'\]"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        builders.sparse((8, 8, 1), 4, (8,), **options)


def test_options_survive_a_file(tmp_path):
    model = builders.sparse((8, 8, 1), 4, (8,), sparsity_target={"z": 0.2}, layer_weights={"z": 3.0}, average="batch")
    model.save(tmp_path / "sparse.keras")
    loaded = keras.saving.load_model(tmp_path / "sparse.keras")
    assert isinstance(loaded, SparseAutoencoder)
    assert (loaded.layer_weights, loaded.sparsity_target, loaded.average) == ({"z": 3.0}, {"z": 0.2}, "batch")


# -- k-sparse --------------------------------------------------------------------------------------------------------


def test_k_anneals_by_epochs_and_stays(digits):
    model = builders.k_sparse((8, 8, 1), 40, k=5)
    model.compile("adam")
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(int(model.k_sparse_layer.current_k.numpy()))
    )
    model.fit(digits[0][:64], epochs=6, verbose=0, callbacks=[KAnnealing(25, epochs=4), watch])
    assert seen == [25, 20, 15, 10, 5, 5]
    kept = model.encoder(digits[1], training=True).numpy()
    assert ((kept != 0).sum(axis=1) <= 5).all()


def test_annealing_starts_wide_in_a_model_that_was_traced_narrow(digits):
    model = builders.k_sparse((8, 8, 1), 40, k=5)
    model.compile("adam")
    model.fit(digits[0][:64], verbose=0)
    model.fit(digits[0][:64], verbose=0, callbacks=[KAnnealing(30, epochs=2)])
    assert model.k_sparse_layer.current_k == 30
    assert ((model.encoder(digits[1], training=True).numpy() != 0).sum(axis=1) == 30).all()
    assert ((model.encode(digits[1]) != 0).sum(axis=1) <= 5).all()  # inference keeps alpha * k, annealed or not


def test_annealing_that_does_not_suit_the_model_is_refused(digits):
    model = builders.k_sparse((8, 8, 1), 40, k=5)
    model.compile("adam")
    for start_k in (4, 41):
        with pytest.raises(
            ValueError, match=f"must lie between the model's k, 5, and its number of units, 40. Received: {start_k}"
        ):
            model.fit(digits[0][:64], verbose=0, callbacks=[KAnnealing(start_k, epochs=2)])
    plain = builders.undercomplete((8, 8, 1), 4)
    plain.compile("adam")
    with pytest.raises(ValueError, match="needs a KSparseAutoencoder"):
        plain.fit(digits[0][:64], verbose=0, callbacks=[KAnnealing(4, epochs=2)])


def test_an_own_encoder_gets_the_layer_and_one_without_is_refused(rng):
    base = builders.undercomplete((8, 8, 1), 20)
    model = builders.k_sparse(encoder=base.encoder, decoder=base.decoder, k=3)
    assert ((model.encode(rng.random((4, 8, 8, 1))) != 0).sum(axis=1) == 3).all()
    from kerasae.models import KSparseAutoencoder

    with pytest.raises(ValueError, match="must end in kerasae.layers.KSparse"):
        KSparseAutoencoder(base.encoder, base.decoder)


def test_dead_units_are_counted(digits):
    model = builders.k_sparse((8, 8, 1), 30, k=3)
    kernel, bias = model.encoder.get_layer("z").get_weights()
    bias[:12] = 0
    kernel[:, :12] = 0  # never among the largest
    model.encoder.get_layer("z").set_weights([kernel, bias])
    model.compile("adam")
    active = model.active_units(digits[1])
    assert 3 <= active <= 18
    assert active == (model.encode(digits[1]).var(axis=0) > 0).sum()
    assert model.evaluate(digits[1], verbose=0, return_dict=True)["active_units"] == active
