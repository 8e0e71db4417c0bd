"""JAX with Flax NNX: a network on handwritten digits, with a cosine schedule.

python examples/flax_nnx.py
"""

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from frankenstein.optax import frankenstein

images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(images))
images, labels = jnp.asarray(images[order] / 16, "float32"), jnp.asarray(labels[order])
train, test = slice(0, 1400), slice(1400, None)

n_epochs, batch_size = 20, 50
n_steps = n_epochs * 1400 // batch_size
rngs = nnx.Rngs(0)
model = nnx.Sequential(nnx.Linear(64, 128, rngs=rngs), nnx.relu, nnx.Linear(128, 10, rngs=rngs))
schedule = optax.cosine_decay_schedule(3e-3, n_steps)
optimizer = nnx.Optimizer(model, frankenstein(schedule, weight_decay=1e-2), wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, x, y):
    def loss(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    optimizer.update(model, nnx.grad(loss)(model))


x, y = images[train], labels[train]
for epoch in range(n_epochs):
    rows = np.random.default_rng(epoch).permutation(len(x))
    for batch in rows.reshape(-1, batch_size):
        step(model, optimizer, x[batch], y[batch])

accuracy = (model(images[test]).argmax(1) == labels[test]).mean()
print(f"test accuracy after {n_epochs} epochs: {accuracy:.3f}")
