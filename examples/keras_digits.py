"""Keras on the torch or the JAX backend: a network on handwritten digits, saved and loaded with its optimizer.

KERAS_BACKEND=jax python examples/keras_digits.py
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from sklearn.datasets import load_digits

from frankenstein.keras import Frankenstein

keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(images))
images, labels = images[order].astype("float32") / 16, labels[order]
train, test = slice(0, 1400), slice(1400, None)

model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(128, "relu"), keras.layers.Dense(10)])
model.compile(
    optimizer=Frankenstein(1e-3, weight_decay=1e-2),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
model.fit(images[train], labels[train], batch_size=50, epochs=10, verbose=0)

with TemporaryDirectory() as folder:
    model.save(Path(folder) / "model.keras")
    model = keras.saving.load_model(Path(folder) / "model.keras")  # the optimizer goes on where it was
model.fit(images[train], labels[train], batch_size=50, epochs=10, verbose=0)

accuracy = model.evaluate(images[test], labels[test], verbose=0)[1]
print(f"backend {keras.backend.backend()}, {int(model.optimizer.iterations)} steps, test accuracy {accuracy:.3f}")
