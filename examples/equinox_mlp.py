"""JAX with Equinox: a network on handwritten digits; its weights decay, its biases do not.

python examples/equinox_mlp.py
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from frankenstein.optax import frankenstein

images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(images))
images, labels = jnp.asarray(images[order] / 16, "float32"), jnp.asarray(labels[order])
train, test = slice(0, 1400), slice(1400, None)

model = eqx.nn.MLP(64, 10, width_size=128, depth=1, key=jax.random.key(0))
optimizer = frankenstein(1e-3, weight_decay=1e-2, mask=lambda params: jax.tree.map(lambda one: one.ndim > 1, params))
state = optimizer.init(eqx.filter(model, eqx.is_array))  # activations are leaves of the model, too


@eqx.filter_jit
def step(model, state, x, y):
    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()

    grads = eqx.filter_grad(loss)(model)
    updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_array))
    return eqx.apply_updates(model, updates), state


x, y = images[train], labels[train]
for epoch in range(20):
    for batch in np.random.default_rng(epoch).permutation(len(x)).reshape(-1, 50):
        model, state = step(model, state, x[batch], y[batch])

accuracy = (jax.vmap(model)(images[test]).argmax(1) == labels[test]).mean()
print(f"test accuracy after 20 epochs: {accuracy:.3f}")
