"""Train a small network on handwritten digits with Frankenstein: the whole of a PyTorch training, in one file.

python examples/torch_digits.py
"""

import torch
from sklearn.datasets import load_digits

from frankenstein import Frankenstein

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
order = torch.randperm(len(images))
train, test = order[:1400], order[1400:]

model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
n_epochs, batch_size = 20, 50
optimizer = Frankenstein(model.parameters(), lr=1e-3, weight_decay=1e-2)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=n_epochs * len(train) // batch_size)

for _ in range(n_epochs):
    for batch in train[torch.randperm(len(train))].split(batch_size):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        scheduler.step()

accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean().item()
print(f"test accuracy after {n_epochs} epochs: {accuracy:.3f}")
