"""Several optimisers in one step do what one does: by an adversarial family of the tests' own."""

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from adversarial import AdversarialAutoencoder, adversarial
from families import fast

from kerasae.models import execution

BATCH_SIZE = 16
GROUPS = ("autoencoder", "discriminator", "generator")
SGD = keras.optimizers.SGD


@pytest.fixture(scope="module")
def x(digits):
    return digits[0][:50]


def compiled(build=adversarial, optimizer=None, **options):
    keras.utils.set_random_seed(0)
    model = build()
    model.compile(optimizer=optimizer or keras.optimizers.Adam(1e-2), **options)
    return model


def fit(model, x, epochs=1, **options):
    return model.fit(x, epochs=epochs, batch_size=BATCH_SIZE, shuffle=False, verbose=0, **options)


def assert_same(a, b, tolerance=0):
    for p, q in zip([*a.weights, *a.optimizer.variables], [*b.weights, *b.optimizer.variables], strict=True):
        np.testing.assert_allclose(p, q, rtol=0, atol=tolerance, err_msg=p.path)


def steps_by_hand(model, batches, rate):
    """Makhzani's two phases, written out: plain gradient descent by each group after the other."""
    reconstruction, discrimination, generation = [], [], []
    for x in batches:
        for loss_name, losses, variables in (
            (
                "reconstruction_loss",
                reconstruction,
                [*model.encoder.trainable_variables, *model.decoder.trainable_variables],
            ),
            ("discriminator_loss", discrimination, model.discriminator.trainable_variables),
            ("generator_loss", generation, model.encoder.trainable_variables),
        ):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(model.terms(x, model.forward(x, training=True))[loss_name])
            weight = 0.1 if loss_name == "generator_loss" else 1.0
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                variable.assign_sub(rate * weight * gradient)
            losses.append(float(loss) * len(x))
    count = sum(map(len, batches))
    return [sum(losses) / count for losses in (reconstruction, discrimination, generation)]


def test_each_group_is_updated_by_its_terms_after_the_other(x):
    model, by_hand = compiled(optimizer=SGD(1e-2)), compiled()
    history = fit(model, x).history
    batches = [x[i : i + BATCH_SIZE] for i in range(0, len(x), BATCH_SIZE)]
    reconstruction, discrimination, generation = steps_by_hand(by_hand, batches, 1e-2)
    for p, q in zip(model.weights, by_hand.weights, strict=True):
        np.testing.assert_allclose(p, q, rtol=0, atol=1e-6, err_msg=p.path)
    assert history["reconstruction_loss"] == pytest.approx([reconstruction], rel=1e-5)
    assert history["discriminator_loss"] == pytest.approx([discrimination], rel=1e-5)
    assert history["generator_loss"] == pytest.approx([generation], rel=1e-5)
    assert history["loss"] == pytest.approx([reconstruction + discrimination + 0.1 * generation], rel=1e-5)
    logs = model.evaluate(x, verbose=0, return_dict=True)
    terms = [logs[name] for name in model.term_names]
    assert logs["loss"] == pytest.approx(terms[0] + terms[1] + 0.1 * terms[2], rel=1e-5)


def test_a_group_may_take_several_steps(x):
    model = compiled(lambda: adversarial(discriminator_steps=3), SGD(1e-2))
    history = fit(model, x).history
    assert [int(model.optimizer[name].iterations) for name in GROUPS] == [4, 12, 4]
    assert int(model.optimizer.iterations) == 4
    terms = [history[name][0] for name in model.term_names]
    assert history["loss"] == pytest.approx([terms[0] + terms[1] + 0.1 * terms[2]], rel=1e-5)


def test_one_optimiser_is_copied_and_several_are_taken_by_name():
    adam = keras.optimizers.Adam(1e-3, beta_1=0.5, clipnorm=1.0)
    model = compiled(optimizer=adam)
    first, *others = model.optimizer.optimizers
    assert first is adam
    for name, other in zip(GROUPS[1:], others, strict=True):
        assert other is model.optimizer[name]
        assert {**other.get_config(), "name": None} == {**adam.get_config(), "name": None}
        assert (other.beta_1, other.clipnorm) == (0.5, 1.0)
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, 10)
    given = {"discriminator": "sgd", "generator": keras.optimizers.Adam(schedule), "autoencoder": SGD(0.5)}
    model = compiled(optimizer=given)
    assert [type(o).__name__ for o in model.optimizer.optimizers] == ["SGD", "SGD", "Adam"]
    assert model.optimizer["autoencoder"] is given["autoencoder"]
    assert [type(o).__name__ for o in compiled(optimizer="adam").optimizer.optimizers] == ["Adam"] * 3


def test_optimisers_that_do_not_fit_the_groups_are_refused():
    with pytest.raises(
        ValueError,
        match=r"\['autoencoder', 'discriminator', 'generator'\]. Missing: \['generator'\]; unknown: \['critic'\]",
    ):
        compiled(optimizer={"autoencoder": "sgd", "discriminator": "sgd", "critic": "sgd"})
    shared = SGD()
    with pytest.raises(ValueError, match="Each group needs an optimiser of its own"):
        compiled(optimizer={"autoencoder": shared, "discriminator": shared, "generator": "sgd"})

    def frozen():
        model = adversarial()
        model.discriminator.trainable = False
        return model

    with pytest.raises(ValueError, match=r"groups \['discriminator'\] have nothing to train"):
        compiled(frozen)


def test_a_family_with_one_group_takes_its_name_and_no_other():
    from families import FAMILIES

    build, sgd = FAMILIES["undercomplete-dense"], SGD()
    assert compiled(build, {"autoencoder": sgd}).optimizer is sgd
    assert isinstance(compiled(build, {"class_name": "SGD", "config": {"learning_rate": 0.5}}).optimizer, SGD)
    with pytest.raises(ValueError, match=r"Missing: \['autoencoder'\]; unknown: \['discriminator'\]"):
        compiled(build, {"discriminator": "sgd"})


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(1e-2),
    "own": lambda: {"autoencoder": "adam", "discriminator": SGD(0.1, momentum=0.9), "generator": "rmsprop"},
    "clipped, accumulated": lambda: SGD(0.1, momentum=0.5, global_clipnorm=1.0, gradient_accumulation_steps=2),
    "averaged": lambda: keras.optimizers.Adam(1e-2, use_ema=True, ema_overwrite_frequency=3),
}


@pytest.mark.parametrize("optimizer", fast({"own", "clipped, accumulated"}, OPTIMIZERS))
def test_stop_save_load_and_go_on_as_if_nothing_had_happened(x, tmp_path, optimizer):
    uninterrupted, stopped = (compiled(optimizer=OPTIMIZERS[optimizer]()) for _ in range(2))
    fit(uninterrupted, x)
    fit(uninterrupted, x)
    fit(stopped, x)
    stopped.save(tmp_path / "model.keras")
    stopped.save_weights(tmp_path / "model.weights.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        restored = compiled(optimizer=OPTIMIZERS[optimizer]())
        restored.load_weights(tmp_path / "model.weights.h5")
    assert isinstance(loaded, AdversarialAutoencoder)
    assert json.dumps(loaded.get_compile_config()) == json.dumps(stopped.get_compile_config())
    for model in (loaded, restored):
        assert_same(stopped, model)
        fit(model, x)
        assert_same(uninterrupted, model)


def test_backup_and_checkpoints_resume_exactly(x, tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def backup():
        return [keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))]

    uninterrupted, resumed = compiled(), compiled()
    fit(uninterrupted, x, epochs=2)
    checkpoint = keras.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.keras"))
    with pytest.raises(KeyboardInterrupt):
        fit(compiled(), x, epochs=2, callbacks=[*backup(), checkpoint, Interrupt()])
    fit(resumed, x, epochs=2, callbacks=backup())
    loaded = keras.saving.load_model(tmp_path / "1.keras")
    fit(loaded, x, epochs=2, initial_epoch=1)
    for model in (resumed, loaded):
        assert_same(uninterrupted, model)


def without_noise(monkeypatch):
    """XLA draws other numbers from the same seed."""
    monkeypatch.setattr(tf.random, "stateless_normal", lambda shape, seed, alg: tf.fill(shape, 0.5))


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"steps_per_execution": 3}, {"run_eagerly": True}])
def test_execution_options_change_nothing(x, options, monkeypatch):
    without_noise(monkeypatch)
    plain, other = compiled(optimizer=SGD(1e-2), jit_compile=False), compiled(optimizer=SGD(1e-2), **options)
    histories = [fit(model, x).history for model in (plain, other)]
    assert_same(plain, other, tolerance=2e-5)
    for name in histories[0]:
        np.testing.assert_allclose(histories[0][name], histories[1][name], rtol=1e-4)


def test_long_fits_run_compiled_steps(x, monkeypatch):
    """As for a family of the library's."""
    monkeypatch.setattr(execution, "WORTHWHILE_STEPS", 1)
    monkeypatch.setattr(AdversarialAutoencoder, "__module__", "kerasae.models.adversarial")
    without_noise(monkeypatch)
    planned, plain = compiled(optimizer=SGD(1e-2)), compiled(optimizer=SGD(1e-2), jit_compile=False)
    histories = [model.fit(x, batch_size=3, epochs=2, shuffle=False, verbose=0).history for model in (planned, plain)]
    assert list(planned.compiled_steps.by_plan) == [(True, 16)]
    assert_same(planned, plain, tolerance=2e-5)
    for name in histories[0]:
        np.testing.assert_allclose(histories[0][name], histories[1][name], rtol=1e-4)


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_each_groups_gradients_are_clipped(x, clip):
    model = compiled(optimizer=SGD(1.0, **{clip: 1e-4}))
    before = [w.numpy() for w in model.trainable_weights]
    model.train_on_batch(x)
    steps = [np.abs(w.numpy() - b).max() for w, b in zip(model.trainable_weights, before, strict=True)]
    # the encoder is in two groups
    assert 0 < max(steps) <= 2e-4 * 1.001


def test_each_optimiser_scales_its_loss_in_mixed_precision(x, tmp_path):
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        model = compiled()
        assert all(isinstance(o, keras.optimizers.LossScaleOptimizer) for o in model.optimizer.optimizers)
        # An overflow in one group leaves the scale of the others.
        for name, optimizer in model.optimizer.by_group.items():
            optimizer.dynamic_scale.assign(float("inf") if name == "discriminator" else 128.0)
        model.train_on_batch(x)
        scales = [float(o.dynamic_scale) for o in model.optimizer.optimizers]
        assert scales == [128.0, float("inf"), 128.0]
        assert [int(o.iterations) for o in model.optimizer.optimizers] == [1, 0, 1]
        model.optimizer["discriminator"].dynamic_scale.assign(2.0**15)
        history = fit(model, x, epochs=5).history
        assert history["reconstruction_loss"][-1] < history["reconstruction_loss"][0]
        assert np.isfinite(list(history.values())).all()
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert_same(model, loaded)
        for m in (model, loaded):
            fit(m, x)
        assert_same(model, loaded)
    finally:
        keras.mixed_precision.set_dtype_policy("float32")


def test_keras_callbacks_find_every_optimiser(x):
    model = compiled()
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    history = fit(model, x, callbacks=[halve]).history
    assert [float(o.learning_rate) for o in model.optimizer.optimizers] == pytest.approx([5e-3] * 3)
    assert sum(name.startswith("learning_rate_") for name in history) == 3
    model.optimizer.learning_rate = 1e-3
    assert [float(o.learning_rate) for o in model.optimizer.optimizers] == pytest.approx([1e-3] * 3)
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-3)
    rate = model.optimizer.learning_rate
    rate.assign(rate * 0.5)
    assert [float(o.learning_rate) for o in (model.optimizer, *model.optimizer.optimizers)] == pytest.approx([5e-4] * 4)
    model.optimizer["generator"].learning_rate.assign(1e-5)
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.1, patience=1, min_delta=1e9)
    fit(model, x, epochs=2, callbacks=[plateau])
    assert [float(o.learning_rate) for o in model.optimizer.optimizers] == pytest.approx([5e-5, 5e-5, 1e-6])


def test_averaged_weights_are_taken_over_group_by_group(x):
    model = compiled(optimizer=SGD(1e-2, use_ema=True, ema_momentum=0.5))
    fit(model, x)
    by_variable = {}
    for name, group in model.training_groups.items():
        averages = [v for v in model.optimizer[name].variables if v.name.endswith("average")]
        by_variable |= {id(v): a for v, a in zip(group.variables, averages, strict=True)}
    for variable in model.trainable_variables:
        np.testing.assert_array_equal(variable, by_variable[id(variable)], err_msg=variable.path)


def test_regularisers_reach_the_group_of_their_layers(x):
    build = lambda: adversarial(regularizer=keras.regularizers.L2(10.0))  # noqa: E731
    model = compiled(build, SGD(1e-3))
    kernel = model.discriminator.layers[0].kernel
    before = float(tf.norm(kernel.value))
    history = fit(model, x, epochs=5).history
    assert float(tf.norm(kernel.value)) < 0.8 * before
    terms = [history[name][-1] for name in model.term_names]
    # the regulariser is logged once
    assert history["loss"][-1] - (terms[0] + terms[1] + 0.1 * terms[2]) == pytest.approx(
        10.0 * float(tf.norm(kernel.value)) ** 2, rel=0.2
    )
