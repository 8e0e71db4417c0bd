"""Two processes train what one does: the same batches, each process its half of every one.

The functions that stand before the tests run on both at once.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from training_cases import BATCH_SIZE, factory, keeping, network, noisy, plain, train

from frankenstein.compare.problems.problem import Budget
from frankenstein.experiments.experiment import ExperimentError
from frankenstein.experiments.training import Recipe, cosine, read_progress

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
)

N_STEPS = 24
TOLERANCE = 2e-5  # absolute, of weights near 0.1: float32 sums over a batch in halves, carried on for 24 steps
RECIPE = Recipe(cosine(N_STEPS), clip_norm=0.5, checkpoint_seconds=0.0)
PARALLEL = ("ddp", "fsdp")


def as_torchrun(function, *arguments):
    """Call the function with the environment that torchrun gives each process."""
    rank, n_ranks = str(dist.get_rank()), str(dist.get_world_size())
    ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n_ranks, "LOCAL_WORLD_SIZE": n_ranks}
    os.environ.update(ours, OMP_NUM_THREADS="1", MASTER_ADDR="127.0.0.1")
    return function(*arguments)


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def outcome(recipe, start=plain, name="adam", n_steps=N_STEPS, folder=None):
    """Return the curve and the weights of a training, and the points that its watch saw."""
    seen = []
    budget = Budget(n_steps, 3, "test", watch=lambda step, _: seen.append(step), folder=folder)
    kept, tasks = keeping(start)
    measured = train(kept, recipe, budget, name)
    state = {key: whole(value).clone() for key, value in tasks[0].model.state_dict().items()}
    return measured, state, seen


def on_ranks(parallel, accumulate=1, **arguments):
    recipe = Recipe(RECIPE.schedule, "no", accumulate, RECIPE.clip_norm, parallel, 0.0)
    return as_torchrun(lambda: outcome(recipe, **arguments))


def killed_and_resumed(parallel, folder):
    """A training that ends at step 9 of itself, and one that goes on from there; against one that was not stopped."""

    class Killed(BaseException):
        pass

    def fragile(seed, budget):
        task, n_calls = noisy(seed, budget), iter(range(9))

        def loss(*arguments, inner=task.loss):
            if next(n_calls, None) is None:
                raise Killed
            return inner(*arguments)

        task.loss = loss
        return task

    recipe = Recipe(RECIPE.schedule, "no", 1, RECIPE.clip_norm, parallel, 0.0)

    def all_three():
        expected = outcome(recipe, noisy)
        try:
            outcome(recipe, fragile, folder=folder)
        except Killed:
            pass
        else:
            raise AssertionError("it was not stopped")
        if dist.get_rank() == 1:  # as if this one had been killed while it wrote its latest
            (newest,) = folder.glob("checkpoint/step-000000009.rank-1-*")
            newest.unlink()
        dist.barrier()
        return expected, outcome(recipe, noisy, folder=folder)

    return as_torchrun(all_three)


def with_clocks_of_their_own(folder):
    """Train with a checkpoint due at every step on the first process, and never on the other; return the steps kept."""
    seconds = 0.0 if dist.get_rank() == 0 else 1e9
    as_torchrun(train, plain, Recipe(checkpoint_seconds=seconds), Budget(5, 1, "test", folder=folder))
    return [path.name[:14] for path in sorted(folder.glob(f"checkpoint/*.rank-{dist.get_rank()}-*.pt"))]


def message(function, *arguments):
    """Return what the function refuses with."""
    try:
        as_torchrun(function, *arguments)
    except ExperimentError as error:
        return str(error)
    return ""


def refusals(folder):
    budget = Budget(2, 1, "test", folder=folder)

    def odd(seed, budget):
        task = plain(seed, budget)
        task.batch_size = BATCH_SIZE + 1
        return task

    return [
        message(train, plain, Recipe(), Budget(2, 1, "test"), "sophia"),
        message(train, odd, Recipe(), Budget(2, 1, "test")),
        message(train, plain, Recipe(), budget),
    ]


@pytest.mark.parametrize("parallel, accumulate", [("ddp", 1), ("ddp", 3), ("fsdp", 1), ("fsdp", 3)])
def test_equals_one_process(ranks, parallel, accumulate):
    """Guards against batches that overlap, gradients summed in place of averaged, and norms of a part of them."""
    expected, weights, steps = outcome(RECIPE)
    (first, first_weights, seen), (second, second_weights, not_seen) = ranks.run(on_ranks, parallel, accumulate)
    for measured, state in ((first, first_weights), (second, second_weights)):
        for name, value in weights.items():
            # FSDP and DDP keep the names of the parameters
            torch.testing.assert_close(state[name], value, rtol=0, atol=TOLERANCE)
        assert measured.curve["train_loss"][1:] == pytest.approx(expected.curve["train_loss"][1:], abs=TOLERANCE)
        assert (measured.n_params, measured.state_bytes) == (expected.n_params, expected.state_bytes)
    names = first.curve.keys() - {"seconds", "samples_per_second", "wait_share"}  # these are each process's own
    assert all(first.curve[name] == second.curve[name] for name in names)
    assert (seen, not_seen) == (steps, [])  # the first process alone shows numbers
    moved = network(0.0, has_norm=False).state_dict()["5.weight"] - weights["5.weight"]
    assert moved.abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("parallel", PARALLEL)
def test_resume_is_bitwise(ranks, tmp_path, parallel):
    """Guards against ranks that go on from different steps, and batch statistics or draws of the wrong rank."""
    for expected, resumed in ranks.run(killed_and_resumed, parallel, tmp_path):
        for name, value in expected[1].items():
            assert torch.equal(resumed[1][name], value), name
        assert resumed[0].curve["test_loss"] == expected[0].curve["test_loss"]
        assert resumed[0].curve["train_loss"] == expected[0].curve["train_loss"]
    assert read_progress(tmp_path).step == N_STEPS


def test_the_clock_of_the_first_process_decides(ranks, tmp_path):
    """Guards against states of different steps, of which none is whole."""
    assert ranks.run(with_clocks_of_their_own, tmp_path) == [["step-000000004", "step-000000005"]] * 2


def test_refusals(ranks, tmp_path):
    train(plain, Recipe(checkpoint_seconds=0.0), Budget(2, 1, "test", folder=tmp_path))
    for several, odd, fewer in ranks.run(refusals, tmp_path):
        assert "Sophia-H takes more of the loss than its gradient" in several and "one process" in several
        assert "cannot be shared evenly by 2 processes" in odd
        assert f"{Path('checkpoint')} holds a checkpoint of 1 process(es), this run has 2" in fewer
    assert factory("sophia").spec.backward  # which is why
