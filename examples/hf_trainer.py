"""Hugging Face Trainer: a small vision transformer on handwritten digits.

python examples/hf_trainer.py
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from frankenstein import Frankenstein

images, labels = load_digits(return_X_y=True)
images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
rows = [{"pixel_values": images[i], "labels": int(labels[i])} for i in order]
config = ViTConfig(
    image_size=8,
    patch_size=2,
    num_channels=1,
    num_labels=10,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
)

torch.manual_seed(0)
model = ViTForImageClassification(config)
with tempfile.TemporaryDirectory() as folder:
    args = TrainingArguments(
        output_dir=folder,
        num_train_epochs=10,
        per_device_train_batch_size=50,
        weight_decay=0.01,  # the Trainer keeps it from biases and norms
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    optimizer = (Frankenstein, {"lr": 1e-3})  # this lr: the Trainer's own learning_rate is not used
    trainer = Trainer(model, args, train_dataset=rows[:1400], optimizer_cls_and_kwargs=optimizer)
    trainer.train()
    predicted = trainer.predict(rows[1400:])

print(f"optimizer: {type(trainer.optimizer.optimizer).__name__}")
print(f"test accuracy after 10 epochs: {(predicted.predictions.argmax(1) == predicted.label_ids).mean():.3f}")
