from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
MODULES = {"my_problems.py"}  # for `frankenstein compare --module`, which has its own test below
EXAMPLES = sorted(path for path in FOLDER.glob("*.py") if path.name not in MODULES)
# What each example must print: it shows that it did its work, not only that it ran.
EXPECTED = {
    "accelerate_loop.py": r"after 20 epochs: 0\.9[5-9]\d\nbytes of state for each parameter: 4\.\d",
    "ase_relax.py": r"Frankenstein\s+(1\d|2[0-5]) force calls, 5\.47\d eV, converged: True",
    "equinox_mlp.py": r"test accuracy after 20 epochs: 0\.9[5-9]\d",
    "flax_nnx.py": r"test accuracy after 20 epochs: 0\.9[5-9]\d",
    "hf_trainer.py": r"optimizer: Frankenstein\ntest accuracy after 10 epochs: 0\.9\d\d",
    "keras_digits.py": r"backend torch, 560 steps, test accuracy 0\.9[5-9]\d",
    "lammps_relax.py": r"2047 atoms: converged after [23]\d force calls, -3\.53\d+ eV per atom",
    "lightning_module.py": r"test accuracy of the averaged weights: 0\.9[5-9]\d",
    "netket_vmc.py": r"Frankenstein +-[78]\.\d+ .*\nAdam .*\nSGD with stochastic reconfiguration +-[78]\.\d+",
    "timm_train.py": r"Frankenstein, \d+ parameter groups\ntest accuracy after 4 epochs: (0\.9[5-9]\d|1\.000)",
    "torch_digits.py": r"test accuracy after 20 epochs: 0\.9[5-9]\d",
}
# Warnings that are Lightning's own: of its use of torch, and advice that depends on the machine; and Keras's own: of
# its variables, where numpy reads them.
IGNORED = {
    "keras_digits.py": ["__array__ implementation doesn't accept a copy keyword:DeprecationWarning"],
    "lightning_module.py": [
        "`isinstance(treespec, LeafSpec)` is deprecated:FutureWarning:lightning.pytorch.utilities._pytree",
        "The `srun` command is available on your system:UserWarning",
        "The 'train_dataloader' does not have many workers:UserWarning",
        "GPU available but not used:UserWarning",
    ],
}
NEEDS_TORCHVISION = {"hf_trainer.py", "lightning_module.py", "timm_train.py"}
RUN = (
    "import runpy, sys, frankenstein.experiments.torchvision_anywhere; runpy.run_path(sys.argv[1], run_name='__main__')"
)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example(path):
    command = [sys.executable, "-W", "error"]
    command += [part for warning in IGNORED.get(path.name, []) for part in ("-W", f"ignore:{warning}")]
    command += ["-c", RUN, str(path)] if path.name in NEEDS_TORCHVISION else [str(path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert re.search(EXPECTED[path.name], done.stdout)


def test_the_module_of_docs_extend(tmp_path, capsys):
    """The command of docs/extend.md, shortened: a problem and an optimizer from outside the package."""
    from frankenstein.cli import main

    path = FOLDER / "my_problems.py"
    n_lines = len([line for line in path.read_text().splitlines() if line and not line.startswith(("import", "from"))])
    assert n_lines <= 40
    command = ["compare", "--module", str(path), "--problems", "diabetes", "--optimizers", "nadam", "adam"]
    assert main([*command, "--trials", "3", "--seeds", "2", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "diabetes: squared error (lower is better), target 0.56" in out
    assert "NAdam" in out
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert {record["outcome"] for record in records} == {"finished"}
    assert all(list(record["provenance"]["modules"]) == ["my_problems.py"] for record in records)
    assert min(record["score"] for record in records) < 0.56
