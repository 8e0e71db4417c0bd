from __future__ import annotations

import math

import pytest
import torch

from frankenstein.compare.optimizers import DEFAULT_OPTIMIZERS, OPTIMIZERS
from frankenstein.compare.problems import PROBLEMS
from frankenstein.compare.problems.digits import BATCH_SIZE, load_splits
from frankenstein.compare.problems.functions import beale, rosenbrock, stairs


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_seed_decides_everything(name):
    """Same start and same batches at a seed, whatever the global generator does; another seed differs."""

    def losses(seed, noise):
        torch.manual_seed(noise)
        task = PROBLEMS[name].start(seed, "test")
        torch.manual_seed(noise + 1)
        start = [p.detach().clone() for p in task.parameters()]
        optimizer = torch.optim.SGD(task.parameters(), lr=1e-4)
        return start, [task.step(optimizer) for _ in range(40)]

    (start, first), (same_start, same), (other_start, other) = losses(3, 0), losses(3, 99), losses(4, 0)
    assert all(torch.equal(a, b) for a, b in zip(start, same_start, strict=True))
    assert not torch.equal(start[0], other_start[0])
    assert first == same
    assert first != other


def test_starting_a_task_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for problem in PROBLEMS.values():
        problem.start(0, "validation")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", PROBLEMS)
def test_validation_and_test_differ(name):
    scores = [PROBLEMS[name].start(0, split).score() for split in ("validation", "test")]
    assert scores[0] != scores[1]


def test_splits_are_disjoint_complete_and_stratified():
    splits = load_splits()
    assert sum(len(labels) for _, labels in splits.values()) == 1797
    images = torch.cat([x.reshape(len(x), -1) for x, _ in splits.values()])
    assert len(torch.unique(images, dim=0)) == 1797  # no image stands twice, within or across splits
    for images, labels in splits.values():
        assert images.min() == 0
        assert images.max() == 1
        counts = torch.bincount(labels) / len(labels)
        assert torch.all((counts - 0.1).abs() < 0.01)


def test_every_image_is_seen_once_an_epoch():
    task = PROBLEMS["digits-mlp"].start(0, "test")
    epoch = torch.cat([task.batch() for _ in range(len(task.train_x) // BATCH_SIZE)])
    assert len(torch.unique(epoch)) == len(epoch)
    following = torch.cat([task.batch() for _ in range(len(task.train_x) // BATCH_SIZE)])
    assert not torch.equal(epoch, following)


@pytest.mark.parametrize(("function", "minimum"), [(beale, [3.0, 0.5]), (rosenbrock, [1.0, 1.0]), (stairs, [0.0])])
def test_functions_have_their_published_minimum(function, minimum):
    x = torch.tensor(minimum, dtype=torch.float64, requires_grad=True)
    value = function(x)
    (gradient,) = torch.autograd.grad(value, x)
    assert value.item() == 0
    assert torch.all(gradient.abs() < 1e-12)
    for step in torch.eye(len(minimum), dtype=torch.float64) * 1e-2:
        assert function(x.detach() + step) > 0


def test_stairs_are_flat_at_every_period():
    x = torch.tensor([2 * math.pi, 3 * math.pi], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(stairs(x), x)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 2.0], dtype=torch.float64))


def test_number_of_parameters_is_what_the_titles_say():
    for problem in PROBLEMS.values():
        n_parameters = sum(p.numel() for p in problem.start(0, "test").parameters())
        assert f"({n_parameters:,} parameters" in problem.title or problem.metric.startswith("log10")


def test_bounded():
    accuracy, value = PROBLEMS["digits-mlp"], PROBLEMS["beale"]
    assert [accuracy.bounded(score) for score in (0.9, 0.05, math.nan)] == [0.9, 0.1, 0.1]
    assert [value.bounded(score) for score in (-3.0, 7.0, math.inf, math.nan)] == [-3.0, 3.0, 3.0, 3.0]
    assert value.bounded(-math.inf) == 3.0
    assert accuracy.reaches_target(0.97)
    assert not accuracy.reaches_target(0.95)
    assert value.reaches_target(-5)
    assert not value.reaches_target(0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_defaults_are_the_classes_own(name):
    """`default_lr` is what a user gets who names no learning rate."""
    spec = OPTIMIZERS[name]
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = spec.make([parameter], spec.default)
    plain = type(optimizer)([parameter], **spec.options)
    assert {name: plain.defaults[name] for name in spec.default} == spec.default
    assert set(DEFAULT_OPTIMIZERS) <= set(OPTIMIZERS)


def test_tied_arguments_follow_the_learning_rate():
    """`base_lr = lr` at every learning rate that is tried; the plain entry keeps the default."""
    parameter = torch.nn.Parameter(torch.ones(2))
    assert OPTIMIZERS["frankenstein-tied"].make([parameter], {"lr": 0.3}).defaults["base_lr"] == 0.3
    assert OPTIMIZERS["frankenstein"].make([parameter], {"lr": 0.3}).defaults["base_lr"] == 1e-3
