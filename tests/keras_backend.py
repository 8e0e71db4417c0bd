"""The Keras optimizer in everything that Keras puts around one, on the backend of this process.

`test_keras.py` runs this file once for each backend, since Keras takes its backend when it is imported.
"""

from __future__ import annotations

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import ops
from sklearn.datasets import load_digits

from frankenstein.keras import Frankenstein
from frankenstein.rule import Rule, State, as_rule, init, update

SINGLE = 2e-6  # a few float32 roundings of numbers near 1
BACKEND = keras.backend.backend()


def digits():
    found = load_digits()
    return (found.data / 16).astype("float32"), found.target.astype("int32")


def network(seed=0, dtype=None):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(32, "relu", dtype=dtype), keras.layers.Dense(10, dtype=dtype)]
    )


def compiled(optimizer, **options):
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"], **options)
    return model


def weights(model):
    return [ops.convert_to_numpy(one) for one in model.trainable_variables]


def variable(value, dtype="float32"):
    return keras.Variable(np.asarray(value), dtype=dtype, name="weight")


def stepped(optimizer, grads, start=(1.0, -2.0, 0.5), dtype="float32"):
    """Return the weight after each gradient."""
    weight, path = variable(start, dtype), []
    optimizer.build([weight])
    for grad in grads:
        optimizer.apply([ops.convert_to_tensor(np.asarray(grad), dtype)], [weight])
        path.append(ops.convert_to_numpy(ops.cast(weight, "float32")).copy())
    return np.array(path)


def apply(optimizer, grad, weight):
    """Take a step; on JAX by the stateless way, the only one that scaled losses have there."""
    grad = ops.convert_to_tensor(grad, "float32")
    if BACKEND != "jax":
        optimizer.apply([grad], [weight])
        return
    kept = [one.value for one in optimizer.variables]
    (moved,), kept = optimizer.stateless_apply(kept, [grad], [weight.value])
    for one, value in zip([weight, *optimizer.variables], [moved, *kept], strict=True):
        one.assign(value)


def by_the_rule(grads, lrs, start=(1.0, -2.0, 0.5), weight_decay=0.0, **options):
    theta, path = np.array(start), []
    state: State = init(np, theta)
    for grad, lr in zip(grads, lrs, strict=True):
        delta, state = update(np, np.asarray(grad, "float64"), state, lr=lr, **options)
        theta = theta * (1 - lr * weight_decay) + delta
        path.append(theta)
    return np.array(path)


GRADS = np.random.default_rng(0).normal(size=(6, 3))


def test_fit_learns():
    x, y = digits()
    model = compiled(Frankenstein(1e-3))
    history = model.fit(x[:1500], y[:1500], batch_size=50, epochs=6, verbose=0, shuffle=False)
    assert history.history["loss"][-1] < 0.5 * history.history["loss"][0]
    assert model.evaluate(x[1500:], y[1500:], verbose=0)[1] > 0.85


def test_saved_and_loaded_it_goes_on_bitwise(tmp_path):
    x, y = digits()
    settings = {"batch_size": 50, "verbose": 0, "shuffle": False}
    whole = compiled(Frankenstein(1e-3, weight_decay=0.1, rule="authors"))
    whole.fit(x[:500], y[:500], epochs=4, **settings)
    first = compiled(Frankenstein(1e-3, weight_decay=0.1, rule="authors"))
    first.fit(x[:500], y[:500], epochs=2, **settings)
    first.save(tmp_path / "model.keras")
    second = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(second.optimizer, Frankenstein) and int(second.optimizer.iterations) == 20
    second.fit(x[:500], y[:500], epochs=2, **settings)
    for a, b in zip(weights(second), weights(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_config_has_every_argument():
    rule = replace(Rule(), use_xi=False)
    optimizer = Frankenstein(2e-3, 1e-6, 0.8, 2e-4, rule, True, weight_decay=0.1, clipnorm=1.0, name="ours")
    config = json.loads(json.dumps(optimizer.get_config()))
    again = Frankenstein.from_config(config)
    assert again.get_config() == optimizer.get_config()
    assert as_rule(again.rule) == rule and again.skip_nonfinite and again.epsilon == 1e-6 and again.base_lr == 2e-4
    found = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert isinstance(found, Frankenstein) and found.get_config() == optimizer.get_config()


def test_a_schedule_is_a_learning_rate_for_each_step():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([2, 4], [1e-3, 1e-2, 1e-4])
    lrs = [float(schedule(i)) for i in range(6)]
    assert len(set(lrs)) == 3
    path = stepped(Frankenstein(schedule), GRADS)
    np.testing.assert_allclose(path, by_the_rule(GRADS, lrs), atol=SINGLE)


def test_weight_decay_is_decoupled_applied_once_and_can_be_kept_from_a_variable():
    path = stepped(Frankenstein(1e-2, weight_decay=0.5), GRADS)
    np.testing.assert_allclose(path, by_the_rule(GRADS, [1e-2] * 6, weight_decay=0.5), atol=SINGLE)
    optimizer = Frankenstein(1e-2, weight_decay=0.5)
    kept, other = (keras.Variable([1.0, -2.0, 0.5], dtype="float32", name=name) for name in ("kept", "other"))
    optimizer.exclude_from_weight_decay(var_names=["kept"])
    optimizer.build([kept, other])
    for grad in GRADS:
        optimizer.apply([ops.convert_to_tensor(grad, "float32")] * 2, [kept, other])
    np.testing.assert_allclose(ops.convert_to_numpy(kept), by_the_rule(GRADS, [1e-2] * 6)[-1], atol=SINGLE)
    np.testing.assert_allclose(ops.convert_to_numpy(other), path[-1], atol=SINGLE)


def test_clipped_gradients():
    clipped = [grad * min(1.0, 0.1 / np.linalg.norm(grad)) for grad in GRADS]
    path = stepped(Frankenstein(1e-2, clipnorm=0.1), GRADS)
    np.testing.assert_allclose(path, by_the_rule(clipped, [1e-2] * 6), atol=SINGLE)
    path = stepped(Frankenstein(1e-2, clipvalue=0.1), GRADS)
    np.testing.assert_allclose(path, by_the_rule(GRADS.clip(-0.1, 0.1), [1e-2] * 6), atol=SINGLE)


def test_accumulated_gradients_are_one_step_on_their_mean():
    path = stepped(Frankenstein(1e-2, gradient_accumulation_steps=2), GRADS)
    means = GRADS.reshape(3, 2, 3).mean(1)
    np.testing.assert_allclose(path[1::2], by_the_rule(means, [1e-2] * 3), atol=SINGLE)
    np.testing.assert_array_equal(path[2], path[1])


def test_moving_averages_of_the_weights():
    weight = variable([1.0, -2.0, 0.5])
    optimizer = Frankenstein(1e-2, use_ema=True, ema_momentum=0.5)
    optimizer.build([weight])
    average = np.zeros(3)
    for i, grad in enumerate(GRADS):
        optimizer.apply([ops.convert_to_tensor(grad, "float32")], [weight])
        now = ops.convert_to_numpy(weight)
        average = now if i == 0 else 0.5 * average + 0.5 * now
    optimizer.finalize_variable_values([weight])
    np.testing.assert_allclose(ops.convert_to_numpy(weight), average, atol=SINGLE)


def test_a_scaled_loss_changes_nothing_and_a_step_that_overflows_is_left_out():
    inner = Frankenstein(1e-2)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)
    weight, path = variable([1.0, -2.0, 0.5]), []
    optimizer.build([weight])
    for i, grad in enumerate(GRADS):
        if i == 3:
            before = ops.convert_to_numpy(weight).copy()
            apply(optimizer, np.full(3, np.inf), weight)
            np.testing.assert_array_equal(ops.convert_to_numpy(weight), before)
        scale = float(ops.convert_to_numpy(optimizer.dynamic_scale))
        apply(optimizer, scale * grad, weight)
        path.append(ops.convert_to_numpy(weight).copy())
    np.testing.assert_allclose(path, by_the_rule(GRADS, [1e-2] * 6), atol=SINGLE)


def test_state_of_low_precision_variables_is_float32():
    optimizer = Frankenstein(1e-2)
    path = stepped(optimizer, GRADS, dtype="bfloat16")
    kept = [one for one in optimizer.variables if one.shape == (3,)]
    assert len(kept) == 3 and {one.dtype for one in kept} == {"float32"}
    np.testing.assert_allclose(
        path, by_the_rule(GRADS, [1e-2] * 6), atol=6 * 2**-7
    )  # a rounding a step, of numbers to 2


def test_skipped_elements_stay():
    grads = GRADS.copy()
    grads[0, 1], grads[4, 1] = np.nan, np.inf
    path = stepped(Frankenstein(1e-2, skip_nonfinite=True), grads)
    np.testing.assert_allclose(path, by_the_rule(grads, [1e-2] * 6, skip_nonfinite=True), atol=SINGLE)
    assert path[0, 1] == -2.0 and path[4, 1] == path[3, 1]


@pytest.mark.skipif(BACKEND != "jax", reason="stateless training is JAX's")
def test_stateless_training_on_jax():
    import jax

    x, y = digits()
    model, optimizer = network(), Frankenstein(1e-3)
    optimizer.build(model.trainable_variables)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def objective(trained, others, x, y):
        logits, others = model.stateless_call(trained, others, x)
        return loss(y, logits), others

    @jax.jit
    def step(trained, others, kept, x, y):
        (value, others), grads = jax.value_and_grad(objective, has_aux=True)(trained, others, x, y)
        trained, kept = optimizer.stateless_apply(kept, grads, trained)
        return value, trained, others, kept

    trained, others, kept = ([one.value for one in many] for many in (
        model.trainable_variables, model.non_trainable_variables, optimizer.variables))  # fmt: skip
    for i in range(10):
        _, trained, others, kept = step(trained, others, kept, x[50 * i : 50 * i + 50], y[50 * i : 50 * i + 50])
    fitted = compiled(Frankenstein(1e-3))
    fitted.fit(x[:500], y[:500], batch_size=50, verbose=0, shuffle=False)
    for a, b in zip(trained, weights(fitted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)  # fit adds up its losses in another order
    assert step._cache_size() == 1


@pytest.mark.parametrize(
    "options, message",
    [
        ({"learning_rate": 1}, "`learning_rate` should be float"),
        ({"learning_rate": -1e-3}, "Invalid learning_rate: -0.001; allowed is a finite number >= 0"),
        ({"epsilon": 0.0}, "Invalid epsilon: 0.0"),
        ({"momentum": 1.0}, "Invalid momentum: 1.0"),
        ({"weight_decay": -1.0}, "Invalid weight_decay: -1.0"),
        ({"rule": "papers"}, "Invalid rule: 'papers'"),
        ({"betas": (0.9, 0.999)}, "Argument\\(s\\) not recognized: {'betas'"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        Frankenstein(**options)
