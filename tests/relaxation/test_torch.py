"""The relaxation rule on torch tensors: the path of numpy, on the device and in the precision of the input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from relaxation_systems import batched, lennard_jones, random_cluster

from frankenstein.relaxation import minimize, relax
from frankenstein.relaxation.systems import to_numpy

SIZES = [13, 4, 7, 2]
STARTS = [random_cluster(size, seed) for seed, size in enumerate(SIZES)]
SYSTEM_IDX = np.repeat(np.arange(len(SIZES)), SIZES)
FMAX = 0.01
SAME = 1e-12  # torch and numpy sum in another order; that a cluster is no chaos yet needs few steps:
N_STEPS = 15

DEVICES = [
    "cpu",
    *(["cuda"] if torch.cuda.is_available() else []),
    *(["mps"] if torch.backends.mps.is_available() else []),
]


def torch_lennard_jones(positions):
    """Energy and forces by autograd; both keep their history, which the rule must not keep alive."""
    positions = positions.detach().requires_grad_()
    first, second = torch.triu_indices(len(positions), len(positions), 1, device=positions.device)
    sixth = ((positions[first] - positions[second]) ** 2).sum(-1) ** -3
    energy = 4.0 * (sixth**2 - sixth).sum()
    (gradient,) = torch.autograd.grad(energy, positions, create_graph=True)
    return energy, -gradient


def torch_batched(sizes):
    def evaluate(positions, systems):
        parts = positions.split([sizes[i] for i in systems])
        energies, forces = zip(*(torch_lennard_jones(part) for part in parts), strict=True)
        return torch.stack(energies), torch.cat(forces)

    return evaluate


def tensors(which, **options):
    return torch.cat([torch.as_tensor(STARTS[i], **options) for i in which]), torch.repeat_interleave(
        torch.arange(len(which)), torch.tensor([SIZES[i] for i in which])
    )


def through_numpy(positions, systems):
    """The forces of the numpy run, bit by bit, as tensors."""
    energies, forces = batched(lennard_jones, SIZES)(positions.numpy(), systems)
    return torch.as_tensor(energies), torch.as_tensor(forces)


def paths(evaluate, start, system_idx):
    path = []
    options = {"fmax": 1e-9, "maxstep": 0.08, "maxcalls": N_STEPS + 1}
    relax(evaluate, start, system_idx, callback=lambda _, x, *__: path.append(to_numpy(x).copy()), **options)
    return np.array(path)


def test_double_precision_goes_the_way_of_numpy():
    expected = paths(batched(lennard_jones, SIZES), np.concatenate(STARTS), SYSTEM_IDX)
    path = paths(through_numpy, *tensors(range(len(SIZES)), dtype=torch.float64))
    assert path.shape == expected.shape == (N_STEPS + 1, sum(SIZES), 3)
    np.testing.assert_allclose(path, expected, rtol=0, atol=SAME)
    assert abs(expected[-1] - expected[0]).max() > 0.5  # it has gone somewhere


def test_minimize_goes_the_way_of_numpy():
    def value_and_grad(x):
        return float(((x - 1.0) ** 4).sum() + (x[0] * x[1]) ** 2), 4.0 * (x - 1.0) ** 3 + 2.0 * x[0] * x[1] * swapped(x)

    def swapped(x):
        return x[[1, 0]]

    start = np.array([3.0, -2.0])
    options = {"gtol": 1e-8, "maxcalls": N_STEPS}
    expected = minimize(value_and_grad, start, **options)
    found = minimize(value_and_grad, torch.as_tensor(start), **options)
    assert isinstance(found.x, torch.Tensor) and isinstance(found.grad, torch.Tensor)
    np.testing.assert_allclose(found.x.numpy(), expected.x, rtol=0, atol=SAME)
    assert (found.calls, found.reason) == (expected.calls, expected.reason)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_converges_on_the_device_and_in_the_precision_of_the_input(device, dtype):
    if device == "mps":
        pytest.skip("the rule computes in float64, which mps has not")
    positions, system_idx = tensors(range(len(SIZES)), dtype=dtype, device=device)
    result = relax(torch_batched(SIZES), positions, system_idx.to(device), fmax=FMAX, maxstep=0.08)
    assert result.reasons == ("converged",) * len(SIZES)
    assert result.positions.device == positions.device and result.positions.dtype == dtype
    forces = torch_batched(SIZES)(result.positions, range(len(SIZES)))[1]
    assert forces.norm(dim=1).max() <= FMAX


@pytest.mark.parametrize("which", [[0], [1], [2], [3], [2, 3, 0, 1], [3, 1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_system_in_a_batch_goes_the_way_it_goes_alone(which, dtype):
    every = relax(torch_batched(SIZES), *tensors(range(len(SIZES)), dtype=dtype), fmax=FMAX, maxstep=0.08)
    assert len(set(every.calls)) > 2
    some = relax(torch_batched([SIZES[i] for i in which]), *tensors(which, dtype=dtype), fmax=FMAX, maxstep=0.08)
    ends = np.cumsum([0, *SIZES])
    expected = torch.cat([every.positions[ends[i] : ends[i + 1]] for i in which])
    assert torch.equal(some.positions, expected)
    np.testing.assert_array_equal(some.calls, every.calls[which])
    np.testing.assert_array_equal(some.energies, every.energies[which])


def test_no_history_is_kept_and_the_input_stays():
    positions, system_idx = tensors(range(len(SIZES)), dtype=torch.float64)
    kept = positions.clone()
    seen = []
    options = {"fmax": FMAX, "maxstep": 0.08, "callback": lambda _, x, *__: seen.append(x.requires_grad)}
    result = relax(torch_batched(SIZES), positions, system_idx, **options)
    assert len(seen) > 10 and not any(seen)
    assert not result.positions.requires_grad
    assert torch.equal(positions, kept)


def test_positions_that_require_a_gradient_give_those_that_do_not():
    positions, system_idx = tensors([1], dtype=torch.float64)
    expected = relax(torch_batched([4]), positions, system_idx, fmax=FMAX)
    result = relax(torch_batched([4]), positions.clone().requires_grad_(), system_idx, fmax=FMAX)
    assert not result.positions.requires_grad
    assert torch.equal(result.positions, expected.positions)


def test_inference_mode():
    def evaluate(positions, systems):
        return through_numpy(positions, systems)

    start = tensors(range(len(SIZES)), dtype=torch.float64)
    expected = relax(evaluate, *start, fmax=FMAX, maxstep=0.08)
    with torch.inference_mode():
        result = relax(evaluate, *tensors(range(len(SIZES)), dtype=torch.float64), fmax=FMAX, maxstep=0.08)
    assert torch.equal(result.positions, expected.positions)
    assert result.reasons == expected.reasons
