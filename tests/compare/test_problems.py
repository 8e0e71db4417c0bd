from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from frankenstein.compare.catalog import catalog
from frankenstein.compare.problems import tabular
from frankenstein.compare.problems.digits import BATCH_SIZE, load_splits
from frankenstein.compare.problems.functions import beale, rosenbrock, stairs
from frankenstein.compare.problems.problem import Budget
from frankenstein.compare.suites import SUITES

PROBLEMS = catalog().problems


def start(name, seed, split):
    return PROBLEMS[name].run.start(seed, Budget(1, 1, split))


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_seed_decides_everything(name):
    """Same start and same batches at a seed, whatever the global generator does; another seed differs."""

    def losses(seed, noise):
        torch.manual_seed(noise)
        task = start(name, seed, "test")
        torch.manual_seed(noise + 1)
        first = [p.detach().clone() for p in task.parameters()]
        optimizer = torch.optim.SGD(task.parameters(), lr=1e-6)
        values = []
        for _ in range(40):
            optimizer.zero_grad()
            loss = task.loss(task.batch())
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        return first, values

    (weights, first), (same_weights, same), (other_weights, other) = losses(3, 0), losses(3, 99), losses(4, 0)
    assert all(torch.equal(a, b) for a, b in zip(weights, same_weights, strict=True))
    assert name == "tumours-logistic" or not torch.equal(weights[0], other_weights[0])  # that one starts from zeros
    assert first == same
    assert first != other


def test_starting_a_task_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for name in PROBLEMS:
        start(name, 0, "validation")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", PROBLEMS)
def test_validation_and_test_differ(name):
    if name == "tumours-logistic":
        validation, test = (tabular.load_splits()[split][0] for split in ("validation", "test"))
        assert not torch.equal(validation[0], test[0])
    else:
        scores = [start(name, 0, split).score() for split in ("validation", "test")]
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
    task = start("digits-mlp", 0, "test")
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
        n_parameters = sum(p.numel() for p in start(problem.name, 0, "test").parameters())
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


def test_tumours_keep_their_units():
    splits = tabular.load_splits()
    assert sum(len(labels) for _, labels in splits.values()) == 569
    spread = splits["train"][0].std(dim=0)
    assert spread.max() / spread.min() > 1e4
    for name, (features, labels) in splits.items():
        assert 0.6 < labels.mean() < 0.65  # stratified: 357 of 569
        assert name == "train" or features.mean(dim=0).abs().max() > 0
    assert splits["train"][0].mean(dim=0).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"worst": 0.99}, "digits-mlp: worst 0.99 must be finite, and worse than target 0.96"),
        ({"worst": 0.96}, "digits-mlp: worst 0.96 must be finite"),
        ({"target": math.nan}, "must be finite"),
        ({"worst": -math.inf}, "must be finite"),
        ({"n_evals": 0}, "n_evals 0 must be from 1 to n_steps 240"),
        ({"n_evals": 241}, "n_evals 241 must be from 1 to n_steps 240"),
    ],
)
def test_a_problem_that_cannot_be_scored_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PROBLEMS["digits-mlp"], **change)


def test_suites_name_what_there_is():
    for suite in SUITES.values():
        assert set(suite.problems) <= set(PROBLEMS)
        assert set(suite.optimizers) <= set(catalog().optimizers)
        assert len(set(suite.problems)) == len(suite.problems) >= 6
