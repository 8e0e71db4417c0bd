"""timm: a small ResNet by name, the optimizer by name, layer-wise learning rates and timm's own schedule.

python examples/timm_train.py
"""

import timm
import torch
from sklearn.datasets import load_digits
from timm.scheduler import CosineLRScheduler

import frankenstein.timm  # noqa: F401  registers the name

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels)
images = torch.nn.functional.interpolate(images, scale_factor=4.0)
order = torch.randperm(len(images))
train, test = order[:1400], order[1400:]

model = timm.create_model("test_resnet", in_chans=1, num_classes=10)
optimizer = timm.optim.create_optimizer_v2(model, opt="frankenstein", lr=3e-3, weight_decay=0.05, layer_decay=0.9)
n_epochs, batch_size = 4, 50
n_steps = n_epochs * len(train) // batch_size
scheduler = CosineLRScheduler(optimizer, t_initial=n_steps, warmup_t=20, t_in_epochs=False)  # scales group by group

n_updates = 0
for _ in range(n_epochs):
    for batch in train[torch.randperm(len(train))].split(batch_size):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        n_updates += 1
        scheduler.step_update(n_updates)

with torch.no_grad():
    accuracy = (model.eval()(images[test]).argmax(1) == labels[test]).float().mean().item()
print(f"optimizer: {type(optimizer).__name__}, {len(optimizer.param_groups)} parameter groups")
print(f"test accuracy after {n_epochs} epochs: {accuracy:.3f}")
