"""What trains with each front-end, as its users would: one function each, all of the same signature.

    run(theta, grads, lrs, dtype, saved_after, options) -> theta after each step, (n_steps, ...) float64

After `saved_after` steps everything is saved the way of that framework, and a fresh optimizer goes on. `options` are
eps, momentum, base_lr, weight_decay, rule and skip_nonfinite, by these names.

Keras takes its backend when it is imported: `python front_ends.py CASES RESULTS` runs it in a process of its own.
"""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np


def numpy(theta, grads, lrs, dtype, saved_after, options):
    from frankenstein.rule import State, as_rule, init, update

    theta, path = theta.astype(dtype), []
    constants = {name: value for name, value in options.items() if name not in ("weight_decay", "rule")}
    state, rule = init(np, theta), as_rule(options.get("rule", "paper"))
    for i, (grad, lr) in enumerate(zip(grads, lrs, strict=True)):
        if i == saved_after:
            file = io.BytesIO()
            np.savez(file, **state._asdict())
            file.seek(0)
            state = State(**np.load(file))
        delta, state = update(np, grad.astype(dtype), state, lr=float(lr), rule=rule, **constants)
        theta = theta * theta.dtype.type(1 - lr * options.get("weight_decay", 0.0)) + delta
        path.append(theta)
    return np.array(path, "float64")


def torch(theta, grads, lrs, dtype, saved_after, options):
    import torch

    from frankenstein import Frankenstein

    options = {name: value for name, value in options.items() if name != "skip_nonfinite"} | (
        {"nonfinite": "skip"} if options.get("skip_nonfinite") else {}
    )
    param = torch.nn.Parameter(torch.tensor(theta, dtype=getattr(torch, dtype)))
    optimizer, path = Frankenstein([param], **options), []
    for i, (grad, lr) in enumerate(zip(grads, lrs, strict=True)):
        if i == saved_after:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            optimizer = Frankenstein([param], **options)
            optimizer.load_state_dict(torch.load(file, weights_only=True))
        optimizer.param_groups[0]["lr"] = float(lr)
        param.grad = torch.tensor(grad, dtype=param.dtype)
        optimizer.step()
        path.append(param.detach().numpy().copy())
    return np.array(path, "float64")


def optax(theta, grads, lrs, dtype, saved_after, options):
    import jax
    import jax.numpy as jnp
    import optax
    import orbax.checkpoint as ocp

    from frankenstein.optax import frankenstein

    jax.config.update("jax_enable_x64", True)  # as the rule's own tests do in this process
    rates = jnp.asarray(lrs, dtype)
    optimizer = frankenstein(lambda count: rates[count], **options)

    @jax.jit
    def step(params, state, grad):
        updates, state = optimizer.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    params = jnp.asarray(theta, dtype)
    state, path = optimizer.init(params), []
    for i, grad in enumerate(grads):
        if i == saved_after:
            with TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(Path(folder) / "state", state)
                checkpointer.wait_until_finished()
                state = checkpointer.restore(Path(folder) / "state", optimizer.init(params))
        params, state = step(params, state, jnp.asarray(grad, dtype))
        path.append(np.asarray(params))
    return np.array(path, "float64")


def keras(theta, grads, lrs, dtype, saved_after, options):
    import keras

    from frankenstein.keras import Frankenstein

    options = {"epsilon" if name == "eps" else name: value for name, value in options.items()}
    keras.config.set_floatx(dtype)  # the learning rate is of this dtype

    class Bare(keras.Model):
        """A weight without a task."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.weight = self.add_weight(shape=theta.shape, dtype=dtype, name="weight")
            self.built = True

        def call(self, x):
            return x * self.weight

    model = Bare()
    model.weight.assign(theta)
    model.compile(optimizer=Frankenstein(float(lrs[0]), **options))
    model.optimizer.build(model.trainable_variables)
    path = []
    for i, (grad, lr) in enumerate(zip(grads, lrs, strict=True)):
        if i == saved_after:
            with TemporaryDirectory() as folder:
                place = Path(folder) / "model.keras"
                model.save(place)
                model = keras.saving.load_model(place, custom_objects={"Bare": Bare})
        model.optimizer.learning_rate = np.asarray(lr, dtype)  # TensorFlow makes float32 of a float
        model.optimizer.apply([keras.ops.convert_to_tensor(grad, dtype)], model.trainable_variables)
        path.append(keras.ops.convert_to_numpy(model.weight).copy())
    return np.array(path, "float64")


def keras_cases(backend, cases):
    """Return what `keras` says of each case on a backend."""
    with TemporaryDirectory() as folder:
        asked, told = Path(folder) / "cases", Path(folder) / "results"
        asked.write_bytes(pickle.dumps(cases))
        command = [sys.executable, "-W", "error::UserWarning:frankenstein", __file__, str(asked), str(told)]
        environment = {**os.environ, "KERAS_BACKEND": backend, "JAX_ENABLE_X64": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return pickle.loads(told.read_bytes())


if __name__ == "__main__":
    cases = pickle.loads(Path(sys.argv[1]).read_bytes())
    Path(sys.argv[2]).write_bytes(pickle.dumps({name: keras(*case) for name, case in cases.items()}))
