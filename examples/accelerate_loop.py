"""Accelerate: a loop with accumulated gradients, clipping and OneCycleLR, that keeps the state in 8 bits.

python examples/accelerate_loop.py
"""

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from frankenstein import Frankenstein

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
order = torch.randperm(len(images))
train, test = order[:1400], order[1400:]

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
optimizer = Frankenstein(model.parameters(), lr=1e-3, weight_decay=1e-2, state_dtype="8bit")
loader = DataLoader(TensorDataset(images[train], labels[train]), batch_size=25, shuffle=True)
n_epochs = 20
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=n_epochs * len(loader) // 2)
model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)

for _ in range(n_epochs):
    for pixels, digits in loader:
        with accelerator.accumulate(model):
            accelerator.backward(torch.nn.functional.cross_entropy(model(pixels), digits))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean().item()
n_bytes = sum(tensor.nbytes for state in optimizer.state.values() for tensor in state.values())
n_params = sum(param.numel() for param in model.parameters())
print(f"test accuracy after {n_epochs} epochs: {accuracy:.3f}")
print(f"bytes of state for each parameter: {n_bytes / n_params:.1f}")
