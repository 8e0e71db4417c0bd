"""Run every code block that is marked `python` in README.md and docs/."""

import os
from importlib.util import find_spec

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

# To import these is to load timm or Lightning, and with them torchvision, which does not load beside every torch.
collect_ignore = ["frankenstein/timm.py", "frankenstein/analysis/landscape/lightning.py"]
if "KERAS_BACKEND" not in os.environ:  # which Keras takes when it is imported: test_keras.py runs these for each
    collect_ignore += ["frankenstein/keras.py", "tests/keras_backend.py"]
if find_spec("triton") is None:
    collect_ignore.append("frankenstein/kernels/cuda_rule.py")

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser()], patterns=["README.md", "docs/*.md"]).pytest()
