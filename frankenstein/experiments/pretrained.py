"""Folders of pretrained networks: fetched from the hub, and read without noise and without tracebacks."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

from frankenstein.experiments import torchvision_anywhere  # noqa: F401  before transformers
from frankenstein.experiments.data.prepared import answers
from frankenstein.experiments.experiment import ExperimentError

import transformers  # isort: skip

__all__ = ["hub_folder", "quiet", "readable"]


def hub_folder(name: str, patterns: list[str]) -> Path:
    """Return the folder of a model of the public hub in the hub's cache on this machine; fetch what is not there.

    Args:
        name: On the hub: owner/name.
        patterns: Of the files that are wanted, such as `*.json`.

    Raises:
        ExperimentError: It cannot be had; the message says how to get it.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    # Asked first, with a short limit: where there is no network the library would try for most of a minute.
    is_reached = not constants.HF_HUB_OFFLINE and answers(constants.ENDPOINT)
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=not is_reached))
    except HFValidationError:
        raise ExperimentError(f"unknown model {name!r}: it is neither a file or folder nor a name on the hub") from None
    except (OSError, ValueError) as error:
        why = _first_line(error) if is_reached else "the hub cannot be reached"
        raise ExperimentError(
            f"cannot have the model {name} ({why}); connect to the hub, or put it into its cache: hf download {name}"
        ) from None


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn whatever reading raises into one line, and keep the libraries quiet.

    Args:
        what: Is read in the block: "the weights in FOLDER".

    Raises:
        ExperimentError: It cannot be read.
    """
    with quiet():
        try:
            yield
        except Exception as error:  # the readers of configurations, tokenizers and weights have no class in common
            raise ExperimentError(f"cannot read {what}: {_first_line(error)}; copy it again") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers, and what it calls, from writing warnings and bars."""
    log = transformers.utils.logging
    level, has_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):  # the reader of gguf files has a bar of its own
            yield
    finally:
        log.set_verbosity(level)
        if has_bars:
            log.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
