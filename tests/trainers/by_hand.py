"""What the tests of trainers compare with: a network, its data, and the loop that a trainer writes for its user.

Everything runs on one CPU thread and is seeded, so a trainer that does the same gives the same bits.
"""

from __future__ import annotations

import contextlib
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from frankenstein import Frankenstein

WEIGHT_DECAY = 0.1  # large enough to show in ten steps
CLIP = 0.5  # below the gradient norm of a fresh network, so that it does clip

# What is passed to the optimizer, and the parameters' dtype. One weight has the 4,096 elements from which on the
# state is stored in 8 bits.
SETTINGS = {
    "defaults": ({}, torch.float32),
    "unfused": ({"fused": False}, torch.float32),
    "bfloat16 state": ({"state_dtype": "bfloat16"}, torch.float32),
    "8-bit state": ({"state_dtype": "8bit", "nonfinite": "skip"}, torch.float32),
    "bfloat16 weights": ({}, torch.bfloat16),  # kahan_sum is on
}
STATE_DTYPES = {
    "defaults": torch.float32,
    "unfused": torch.float32,
    "bfloat16 state": torch.bfloat16,
    "8-bit state": torch.uint8,
    "bfloat16 weights": torch.float32,
}


class Network(nn.Module):
    """Two layers with a norm between them; it returns the loss first, as Hugging Face's Trainer wants it."""

    def __init__(self, dtype=torch.float32, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 10))
        self.to(dtype)

    def forward(self, pixels, labels):
        logits = self.layers(pixels.to(self.layers[0].weight.dtype))
        return cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels), logits


@cache
def digits():
    """Return 1,797 images as (1797, 64) pixels between 0 and 1, and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels)


def batches(n_batches, size=16):
    """Return batches as dictionaries, cut from the data in its order (which is no order of labels)."""
    pixels, labels = digits()
    return [{"pixels": pixels[i : i + size], "labels": labels[i : i + size]} for i in range(0, n_batches * size, size)]


def groups(model, weight_decay=WEIGHT_DECAY):
    """Return two parameter groups: only matrices decay."""
    params = list(model.parameters())
    return [
        {"params": [param for param in params if param.dim() > 1], "weight_decay": weight_decay},
        {"params": [param for param in params if param.dim() < 2], "weight_decay": 0.0},
    ]


def optimizer(model, **options):
    return Frankenstein(groups(model), **options)


def loop(model, optimizer, batches, *, scheduler=None, clip=None, clip_in_groups=False, n_accumulate=1, autocast=False):
    """Train on each batch once; return the losses.

    A norm depends in its last bit on the order of its parts: `clip_in_groups` takes the optimizer's.
    """
    losses, clipped = [], list(model.parameters())
    if clip_in_groups:
        clipped = [param for group in optimizer.param_groups for param in group["params"]]
    for i, batch in enumerate(batches, 1):
        with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
            loss = model(**batch)[0]
        losses.append(loss.item())
        (loss / n_accumulate).backward()
        if i % n_accumulate == 0:
            if clip:
                torch.nn.utils.clip_grad_norm_(clipped, clip)
            optimizer.step()
            if scheduler:
                scheduler.step()
            optimizer.zero_grad()
    return losses


def mean_loss(model):
    """Return the loss over all digits; ten equal guesses have 2.3."""
    pixels, labels = digits()
    with torch.no_grad():
        return model(pixels=pixels, labels=labels)[0].item()


def state_dtype(optimizer):
    """Return the dtype of the state of the first weight, the one of 4,096 elements."""
    return optimizer.state[optimizer.param_groups[0]["params"][0]]["second_moment"].dtype
