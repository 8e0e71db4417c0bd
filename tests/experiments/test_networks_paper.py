"""The published configuration of Table 1, tried on two processes: true networks, sizes and batches, images of noise."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
from PIL import Image

from frankenstein.compare.store.records import read
from frankenstein.experiments import table1

N_TRAIN, N_TEST = 256, 8
# The real set's number of rows is known, and a part of it is refused: here, and only here, there are fewer.
DRIVER = """
import sys
from dataclasses import replace
from frankenstein.experiments.data import SOURCES
SOURCES["imagenet"] = replace(SOURCES["imagenet"], n_rows={})
from frankenstein.cli import main
sys.exit(main())
"""


@pytest.mark.slow
def test_two_processes_take_steps_of_the_published_recipe(tmp_path):
    generator = np.random.default_rng(0)
    for split, n in (("train", N_TRAIN), ("validation", N_TEST)):
        images = []
        for _ in range(n):
            buffer = io.BytesIO()
            Image.fromarray(generator.integers(0, 255, (260, 300, 3), dtype=np.uint8)).save(buffer, "JPEG")
            images.append({"bytes": buffer.getvalue(), "path": None})
        rows = {"image": images, "label": [i * 3 % 1000 for i in range(n)]}
        kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        (tmp_path / "imagenet").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, kinds).to_parquet(tmp_path / "imagenet" / f"{split}.parquet")
    (tmp_path / "driver.py").write_text(DRIVER)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(tmp_path / "driver.py")]
    command += [
        "reproduce",
        "table1",
        "--preset",
        "paper",
        "--steps",
        "2",
        "--starts",
        "1",
        "--methods",
        "frankenstein",
    ]
    environment = {**os.environ, "FRANKENSTEIN_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [*command, "--data-dir", str(tmp_path), "--out", str(out)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = read(out, pytest.fail)
    assert sorted(record["problem"] for record in records) == sorted(problem.name for problem in table1.PROBLEMS[1:])
    for record in records:
        assert record["outcome"] == "finished" and record["n_steps_done"] == 2
        assert record["settings"] == {"lr": 1e-3, "base_lr": 1e-3}
        assert record["optimizer_config"]["options"] == {"weight_decay": 1e-2}
        assert record["n_params"] > 11e6
        assert record["curve"]["train_loss"][1] == pytest.approx(np.log(1000), abs=1.5)  # chance
    assert (out / "report.html").exists()
