"""Snapshots: bitwise, on disk, whole or not there; damage is one clear line."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import time

import numpy as np
import pytest
import torch
from landscape_cases import Normalised, Quadratic, record, save_for_ever
from torch import nn

from frankenstein.analysis.landscape import LandscapeError, Snapshots
from frankenstein.analysis.landscape.files import VectorWriter

WAIT_SECONDS = 60  # for a process to import torch and write a few files, on a busy machine


class Odd(nn.Module):
    """What is unlike a plain layer: shared, empty and complex parameters, buffers of several kinds."""

    def __init__(self, dtype):
        super().__init__()
        self.one, self.other = nn.Linear(3, 3, dtype=dtype), nn.Linear(3, 3, dtype=dtype)
        self.other.weight = self.one.weight
        self.nothing = nn.Parameter(torch.empty(0, 3, dtype=dtype))
        self.number = nn.Parameter(torch.tensor(0.3, dtype=dtype))
        self.turn = nn.Parameter(torch.randn(2, 3, dtype=torch.complex128 if dtype == torch.float64 else torch.cfloat))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("scale", torch.randn(2).bfloat16())
        self.register_buffer("cache", torch.randn(5), persistent=False)


def bits(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_bitwise(model, expected):
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_model_comes_back_bitwise(dtype, tmp_path):
    torch.manual_seed(0)
    model, snapshots = Odd(dtype), Snapshots(tmp_path)
    record(snapshots, model, 2)
    expected = bits(model)
    record(Snapshots(tmp_path / "other"), model, 2, seed=1)
    assert not torch.equal(model.one.weight, expected["one.weight"])
    model.scale.zero_()
    snapshots.load(model, 1)
    assert_bitwise(model, expected)


def test_a_vector_holds_the_parameters_in_order(tmp_path):
    model = Quadratic()
    Snapshots(tmp_path).save(model, 7)
    snapshot = Snapshots(tmp_path).at(7)
    assert np.array_equal(snapshot.weights(), torch.cat([model.weight.flatten(), model.bias]).detach().numpy())
    assert Snapshots(tmp_path).layout().names == ("weight", "bias")
    assert Snapshots(tmp_path).steps() == [7]


def test_statistics_belong_to_the_weights(tmp_path):
    model, snapshots = Normalised(), Snapshots(tmp_path)
    for step in range(2):
        model(torch.randn(8, 3))
        snapshots.save(model, step)
    assert [snapshots.at(step).buffers()["norm.num_batches_tracked"].item() for step in range(2)] == [1, 2]


def test_channels_last_is_recorded_in_the_order_of_the_shape(tmp_path):
    model = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
    Snapshots(tmp_path).save(model, 0)
    weights = Snapshots(tmp_path).at(0).weights()
    assert np.array_equal(weights[:24], model.weight.detach().contiguous().reshape(-1).numpy())


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda model: torch.compile(nn.DataParallel(model))])
def test_wrappers_are_left_out(wrap, tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    snapshots = Snapshots(tmp_path)
    snapshots.save(wrap(model), 0)
    assert snapshots.layout().names == ("0.weight", "0.bias", "1.weight", "1.bias")
    model[0] = torch.compile(model[0])
    snapshots.save(model, 1)
    assert snapshots.at(0).buffers().keys() == snapshots.at(1).buffers().keys()
    snapshots.load(wrap(model), 0)


def test_some_parameters_only(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    Snapshots(tmp_path, parameters=["1.weight"]).save(model, 0)
    before = bits(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    Snapshots(tmp_path).load(model, 0)
    assert torch.equal(model[1].weight, before["1.weight"])
    assert torch.equal(model[0].weight, before["0.weight"] + 1)


def test_a_training_that_goes_back_drops_what_came_after(tmp_path, capsys):
    snapshots = record(Snapshots(tmp_path), Quadratic(), 5)
    assert capsys.readouterr().err == ""
    model = Quadratic()
    snapshots.save(model, 2)
    assert snapshots.steps() == [0, 1, 2]
    assert np.array_equal(snapshots.at(2).weights()[:12], model.weight.detach().flatten().numpy())
    assert capsys.readouterr().err == f"{tmp_path}: 2 snapshots of steps after 2 are dropped\n"
    assert len(list(tmp_path.iterdir())) == 1 + 2 * 3


def test_a_full_disk_is_said_and_costs_only_that_snapshot(tmp_path, capsys, monkeypatch):
    model = Quadratic()
    snapshots = record(Snapshots(tmp_path), model, 3)
    files = sorted(tmp_path.iterdir())

    def write(writer, piece):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(VectorWriter, "write", write)
        snapshots.save(model, 3)
    said = f"no snapshot of step 3 in {tmp_path}: No space left on device; the training goes on\n"
    assert capsys.readouterr().err == said
    assert sorted(tmp_path.iterdir()) == files
    snapshots.save(model, 3)
    assert snapshots.steps() == [0, 1, 2, 3]


def test_a_kill_leaves_whole_snapshots(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=save_for_ever, args=(tmp_path,))
    process.start()
    deadline = time.monotonic() + WAIT_SECONDS
    while len(Snapshots(tmp_path).steps()) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.join()
    snapshots = Snapshots(tmp_path)
    steps = snapshots.steps()
    assert len(steps) >= 5
    for step in steps:
        assert len(snapshots.at(step).weights()) == 500 * 400 + 400
        snapshots.at(step).buffers()
    snapshots.save(nn.Linear(500, 400), steps[-1] + 1)
    assert snapshots.steps() == [*steps, steps[-1] + 1]


def _save_on_a_rank(folder):
    """Save a model under DistributedDataParallel and one whose parameters are sharded; return the rank."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Linear(5, 3)  # 3 rows on 2 processes do not divide
    Snapshots(folder / "ddp").save(nn.parallel.DistributedDataParallel(model), 0)
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    Snapshots(folder / "sharded").save(model, 0)
    return dist.get_rank()


def _save_where_nothing_can_be_written(folder):
    """Of sharded parameters all processes must come to all gathers, whatever happens to the one that writes."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2))
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    Snapshots(folder / "file" / "below").save(model, 0)
    total = torch.ones(1)
    dist.all_reduce(total)
    return total.item()


def test_only_the_main_process_writes(ranks, tmp_path):
    assert ranks.run(_save_on_a_rank, tmp_path) == [0, 1]
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    expected = torch.cat([model.weight.flatten(), model.bias]).detach().numpy()
    for name in ("ddp", "sharded"):
        snapshots = Snapshots(tmp_path / name)
        assert np.array_equal(snapshots.at(0).weights(), expected), name
        assert snapshots.layout().names == ("weight", "bias")


def test_a_failure_to_write_leaves_no_process_waiting(ranks, tmp_path):
    (tmp_path / "file").touch()
    assert ranks.run(_save_where_nothing_can_be_written, tmp_path) == [2.0, 2.0]


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "pattern, damage, message",
    [
        ("step-*2.weights*", cut, "is damaged (mmap length is greater than file size); restore it"),
        ("step-*2.weights*", flip, "is damaged (its checksum is wrong); restore it, or make it again"),
        ("step-*2.weights*", lambda path: path.write_bytes(b""), "is damaged (No data left in file)"),
        ("step-*2.weights*", lambda path: np.save(path, np.ones(3)), "expected float64 of shape (13,)"),
        ("step-*2.weights*", lambda path: path.unlink(), "has no snapshot of step 2; there are 2, of steps 0 to 1"),
        ("step-*2.buffers*.pt", flip, "is damaged (its checksum is wrong)"),
        ("step-*2.buffers*.pt", lambda path: path.unlink(), "is missing; restore it"),
        ("layout.json", cut, "is damaged; restore it, or record the training again"),
        ("layout.json", lambda path: path.write_text("[]"), "is damaged; restore it"),
        ("layout.json", lambda path: path.unlink(), "is missing: record snapshots there"),
        ("layout.json", lambda path: path.write_text('{"format": 9, "parameters": []}'), "the format 9, this version"),
    ],
)
def test_damage_is_one_line(pattern, damage, message, tmp_path):
    model = Quadratic()
    snapshots = record(Snapshots(tmp_path), model, 3)
    (path,) = tmp_path.glob(pattern)
    damage(path)
    before = bits(model)
    with pytest.raises(LandscapeError) as caught:
        snapshots.load(model, 2)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert_bitwise(model, before)


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda s: s.save(nn.Linear(2, 2), 1),
            "parameter 'weight' is of shape (2, 2), expected of shape (3, 4); record",
        ),
        (lambda s: s.save(nn.Sequential(nn.Linear(4, 3)), 1), "'weight' is absent, expected of shape (3, 4)"),
        (lambda s: s.save(Quadratic(torch.float32), 1), "the weights are float32, expected float64"),
        (
            lambda s: s.load(nn.Linear(4, 3), 0),
            "parameter 'bias' is of shape (3,), expected of shape (1,); give the model",
        ),
        (lambda s: s.save(Quadratic(), -1), "step -1 cannot be recorded"),
        (lambda s: s.save(nn.ReLU(), 1), "the model has no parameters"),
        (lambda s: s.save(Whole(), 1), "parameter 'codes' is int8: only floating-point weights have a landscape"),
        (lambda s: s.at(9), "has no snapshot of step 9; there are 2, of steps 0 to 1"),
        (lambda s: Snapshots(s.folder, ["w"]).save(Quadratic(), 1), "no parameter 'w'; it has weight, bias"),
        (lambda s: Snapshots(s.folder, ["bias"]).save(Quadratic(), 1), "parameter 'weight' is absent"),
        (lambda s: Snapshots(s.folder / "x").layout(), "is missing: record snapshots there, or name another folder"),
    ],
)
def test_what_cannot_be_is_one_line(call, message, tmp_path):
    snapshots = record(Snapshots(tmp_path), Quadratic(), 2)
    with pytest.raises(LandscapeError) as caught:
        call(snapshots)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert snapshots.steps() == [0, 1]


def test_buffers_of_another_model_are_refused(tmp_path):
    snapshots = Snapshots(tmp_path)
    snapshots.save(nn.Sequential(nn.BatchNorm1d(3)), 0)
    with pytest.raises(LandscapeError, match=r"buffer '0.running_mean' of the model is not that of the snapshot"):
        snapshots.load(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)), 0)


def test_layout_says_what_the_parameters_are(tmp_path):
    Snapshots(tmp_path).save(nn.Linear(2, 1, dtype=torch.bfloat16), 0)
    described = json.loads((tmp_path / "layout.json").read_text())
    assert described["parameters"] == [
        {"name": "weight", "shape": [1, 2], "dtype": "bfloat16"},
        {"name": "bias", "shape": [1], "dtype": "bfloat16"},
    ]
