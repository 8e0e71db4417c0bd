from __future__ import annotations

import time
import warnings
from itertools import chain, islice
from statistics import fmean

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.nn import functional
from training_cases import BATCH_SIZE, LR, Digits, factory, keeping, network, noisy, plain, scaled, train, weights

from frankenstein.analysis.telemetry import Telemetry
from frankenstein.compare.catalog import catalog
from frankenstein.compare.optimizers import Factory, OptimizerSpec
from frankenstein.compare.problems.problem import Budget
from frankenstein.experiments.experiment import ExperimentError
from frankenstein.experiments.training import Loop, Recipe, constant, cosine, run, step_decay

BUDGET = Budget(25, 5, "test")
BF16_TOLERANCE = 0.05  # of the weights' distances: bfloat16 has 8 bits, so about 0.4 % for each of a few roundings


def by_hand(n_steps, schedule=constant, accumulate=1, clip_norm=None, name="sgd", precision=torch.float32):
    """Return the weights and the losses of the plain task after a loop without any of the loop's parts."""
    torch.manual_seed(0)
    task = plain(0, BUDGET)
    optimizer = factory(name)(task.model.parameters())
    batches = chain.from_iterable(task.batches(epoch, 0, 0, 1) for epoch in range(n_steps))
    losses = []
    for step, (x, y) in zip(range(n_steps), batches, strict=False):
        optimizer.zero_grad()
        values = []
        for part_x, part_y in zip(x.chunk(accumulate), y.chunk(accumulate), strict=True):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                logits = task.model(part_x)
            loss = functional.cross_entropy(logits.float(), part_y)
            (loss / accumulate).backward()
            values.append(loss.detach())
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(task.model.parameters(), clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = LR * schedule(step)
        optimizer.step()
        losses.append(torch.stack(values).mean().item())
    return weights(task), losses


def by_the_loop(recipe, start=plain, name="sgd", budget=BUDGET):
    kept, tasks = keeping(start)
    measured = train(kept, recipe, budget, name)
    return weights(tasks[0]), measured


def distance(first, second):
    return sum((first[name] - second[name]).square().sum().item() for name in first) ** 0.5


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"name": "adam"},
        {"accumulate": 3},
        {"clip_norm": 0.5},
        {"schedule": cosine(25, n_warmup=4), "name": "adam"},
        {"schedule": step_decay(10), "accumulate": 2, "clip_norm": 1.0, "name": "frankenstein"},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_equals_a_loop_by_hand(options):
    """Bitwise: the weights, and the mean loss between the evaluations."""
    expected, losses = by_hand(25, **options)
    recipe = Recipe(**{key: value for key, value in options.items() if key != "name"})
    result, measured = by_the_loop(recipe, name=options.get("name", "sgd"))
    assert all(torch.equal(result[name], expected[name]) for name in expected)
    assert measured.curve["train_loss"] == [None, *(fmean(losses[i : i + 5]) for i in range(0, 25, 5))]


def test_mixed_precision():
    full, expected = by_hand(25)[0], by_hand(25, precision=torch.bfloat16)[0]
    result, _ = by_the_loop(Recipe(precision="bf16"))
    assert distance(result, expected) < BF16_TOLERANCE * distance(expected, by_hand(0)[0])
    assert distance(result, full) > 0.0
    assert all(value.dtype == torch.float32 for value in result.values() if value.is_floating_point())
    assert AcceleratorState._shared_state == {}  # nothing is left for whoever uses Accelerate next
    automatic, _ = by_the_loop(Recipe(precision="auto"))
    assert all(torch.equal(automatic[name], full[name]) for name in full)  # on a CPU it is float32


def test_a_scaled_loss_changes_nothing_and_a_step_that_overflows_is_left_out(monkeypatch):
    """Bitwise, for the scales are powers of two."""
    monkeypatch.setattr(run, "accelerated", scaled)
    expected, _ = by_hand(25)
    result, measured = by_the_loop(Recipe())
    assert all(torch.equal(result[name], expected[name]) for name in expected)
    assert measured.optimizer_seconds_per_step > 0.0

    def overflowing(seed, budget):
        """The gradient of the first step is not finite, its loss is."""
        task, is_first = plain(seed, budget), iter([True])
        task.loss = lambda *arguments: Digits.loss(task, *arguments) * (1e38 if next(is_first, False) else 1.0)
        return task

    initial, _ = by_hand(0)
    result, measured = by_the_loop(Recipe(), overflowing, budget=Budget(1, 1, "test"))
    assert all(torch.equal(result[name], initial[name]) for name in initial)
    assert (measured.n_steps_done, measured.diverged) == (1, "")


@pytest.mark.parametrize("name", ["sophia", "lbfgs"])
def test_a_scaled_loss_is_refused_to_who_needs_the_loss_itself(monkeypatch, name):
    lbfgs = OptimizerSpec("lbfgs", "L-BFGS", "torch.optim:LBFGS", {"lr": 0.5}, uses_closure=True)
    spec = lbfgs if name == "lbfgs" else catalog().optimizers[name]
    monkeypatch.setattr(run, "accelerated", scaled)
    with pytest.raises(ExperimentError, match="takes more of the loss than its gradient, which precision fp16 scales"):
        Loop(plain)(Factory(spec, spec.default), 0, BUDGET)


def test_what_is_measured():
    seen = []
    _, measured = by_the_loop(Recipe(), budget=Budget(25, 5, "test", watch=lambda *point: seen.append(point)))
    numbers = {"score", "seconds", "train_loss", "samples_per_second", "wait_share", "test_loss"}
    assert measured.curve.keys() == {"step"} | numbers
    assert {len(values) for values in measured.curve.values()} == {6}
    assert measured.curve["step"] == [0, 5, 10, 15, 20, 25] == [step for step, _ in seen]
    assert seen[0][1].keys() == {"score", "seconds", "test_loss"}
    assert seen[-1][1] == {name: measured.curve[name][-1] for name in numbers}
    assert (measured.n_steps_done, measured.diverged) == (25, "")
    n_params = sum(param.numel() for param in network(has_norm=False).parameters())
    assert measured.n_params == n_params and measured.state_bytes == 4 * n_params
    assert 0.0 < measured.optimizer_seconds_per_step < measured.seconds_per_step
    seconds = measured.curve["seconds"][-1] - measured.curve["seconds"][-2]
    assert measured.curve["samples_per_second"][-1] == pytest.approx(5 * BATCH_SIZE / seconds)


def test_it_learns():
    _, measured = by_the_loop(Recipe(cosine(150), precision="auto"), noisy, "adam", Budget(150, 3, "test"))
    assert measured.curve["score"][0] < 0.3
    assert measured.curve["score"][-1] > 0.8


def test_waiting_for_batches_is_measured_and_overlaps_with_computing():
    """Sleeping stands for work that another processor does; a batch is made while the one before it is used."""

    def slow(make_seconds, use_seconds):
        def start(seed, budget):
            task = plain(seed, budget)

            def batches(*arguments):
                for batch in Digits.batches(task, *arguments):
                    time.sleep(make_seconds)
                    yield batch

            def loss(*arguments, inner=task.loss):
                time.sleep(use_seconds)
                return inner(*arguments)

            task.batches, task.loss = batches, loss
            return task

        return by_the_loop(Recipe(), start, budget=Budget(10, 1, "test"))[1]

    assert slow(0.02, 0.0).curve["wait_share"][-1] > 0.5
    assert slow(0.0, 0.02).curve["wait_share"][-1] < 0.5
    both = slow(0.03, 0.03)
    assert both.seconds_per_step < 0.06  # in turn they would take longer than that


def test_evaluation_mode_and_the_weights_that_are_meant_to_be_used(monkeypatch):
    modes = []

    class Recorded(torch.optim.SGD):
        def eval(self):
            modes.append("eval")

        def train(self):
            modes.append("train")

    def start(seed, budget):
        task = noisy(seed, budget)

        def score(model):
            modes.append((model.training, torch.is_grad_enabled()))
            return Digits.score(task, model)

        def loss(model, *arguments):
            assert model.training
            return Digits.loss(task, model, *arguments)

        task.score, task.loss = score, loss
        return task

    monkeypatch.setattr(torch.optim, "Recorded", Recorded, raising=False)
    spec = OptimizerSpec("recorded", "Recorded", "torch.optim:Recorded", {"lr": 1e-3})
    Loop(start)(Factory(spec, spec.default), 0, Budget(4, 2, "test"))
    assert modes == ["eval", (False, False), "train"] * 3


def test_optimizers_with_a_closure():
    """L-BFGS asks for the loss several times a step: of the same batch, with the same noise and the same dropout."""
    seeds = []

    def start(seed, budget):
        task = noisy(seed, budget)

        def loss(model, batch, seed):
            value = Digits.loss(task, model, batch, seed)
            seeds.append((seed, batch[0].sum().item()))
            return value

        task.loss = loss
        return task

    spec = OptimizerSpec("lbfgs", "L-BFGS", "torch.optim:LBFGS", {"lr": 0.5}, uses_closure=True)
    measured = Loop(start, Recipe(accumulate=2))(Factory(spec, spec.default), 0, Budget(3, 1, "test"))
    assert measured.n_steps_done == 3
    assert len(set(seeds)) == 6 < len(seeds) / 3  # three steps of two parts


@pytest.mark.parametrize("name", catalog().optimizers)
def test_the_schedule_reaches_every_optimizer(name):
    """With a learning rate of nothing nothing moves; Lookahead's, for one, stands in an optimizer within it."""
    initial, _ = by_hand(0)
    result, _ = by_the_loop(Recipe(lambda step: 0.0), name=name, budget=Budget(6, 1, "test"))
    assert all(torch.equal(result[key], initial[key]) for key in initial)


@pytest.mark.parametrize("name", ["sophia", "frankenstein", "schedule-free"])
def test_the_seed_decides(name):
    results = []
    for noise, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(noise)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kept, tasks = keeping(noisy)
            train(kept, Recipe(), BUDGET, name, seed)
        results.append(weights(tasks[0])["5.weight"])
        expected = torch.rand(1, generator=torch.Generator().manual_seed(noise))
        assert torch.equal(torch.rand(1), expected)  # the global generator is as it was
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_every_step_and_part_has_its_own_seed():
    seeds = []

    def start(seed, budget):
        task = noisy(seed, budget)
        task.loss = lambda model, batch, seed: (
            seeds.append((seed, torch.rand(1).item())) or Digits.loss(task, model, batch, seed)
        )
        return task

    by_the_loop(Recipe(accumulate=2), start)
    assert len({seed for seed, _ in seeds}) == len({draw for _, draw in seeds}) == len(seeds) == 50


def test_frozen_parameters():
    def start(seed, budget):
        task = plain(seed, budget)
        task.model[0].requires_grad_(False)
        return task

    result, measured = by_the_loop(Recipe(), start)
    initial, _ = by_hand(0)
    assert torch.equal(result["0.weight"], initial["0.weight"])
    assert not torch.equal(result["5.weight"], initial["5.weight"])
    assert measured.n_params == result["5.weight"].numel() + result["5.bias"].numel()


def diverging(seed, budget):
    """The loss is not finite at the seventh step."""
    task, n_calls = plain(seed, budget), iter(range(6))
    task.loss = lambda *arguments: (
        Digits.loss(task, *arguments) * (1.0 if next(n_calls, None) is not None else torch.nan)
    )
    return task


def without_a_score(seed, budget):
    task, scores = plain(seed, budget), iter([0.5, 0.5])
    task.score = lambda model: {"score": next(scores, float("nan"))}
    return task


@pytest.mark.parametrize("start, what, step, n_points", [(diverging, "loss", 7, 2), (without_a_score, "score", 10, 3)])
def test_divergence_stops_the_run(start, what, step, n_points):
    _, measured = by_the_loop(Recipe(), start)
    assert (measured.diverged, measured.n_steps_done) == (f"the {what} was not finite at step {step}", step)
    assert {len(values) for values in measured.curve.values()} == {n_points}


def test_a_run_in_the_middle_of_an_epoch_is_the_same_as_one_to_its_end():
    """Guards against batches of an epoch that depend on how many of them are asked for."""
    (short, _), (long, _) = by_hand(13), by_hand(25)
    assert all(torch.equal(by_the_loop(Recipe(), budget=Budget(13, 1, "test"))[0][name], short[name]) for name in short)
    assert not torch.equal(short["5.weight"], long["5.weight"])


def test_an_error_while_batches_are_made_comes_out():
    def start(seed, budget):
        task = plain(seed, budget)

        def batches(*arguments):
            yield next(Digits.batches(task, *arguments))
            raise OSError("a corrupt image")

        task.batches = batches
        return task

    with pytest.raises(OSError, match="a corrupt image"):
        by_the_loop(Recipe(), start)


def short_epoch(seed, budget):
    task = plain(seed, budget)
    task.batches = lambda *arguments: islice(Digits.batches(task, *arguments), 9)
    return task


def no_batch(seed, budget):
    return Digits(network(), budget.split, n_samples=BATCH_SIZE - 1)


@pytest.mark.parametrize(
    "start, recipe, message",
    [
        (short_epoch, {}, "epoch 0 gave 9 batches from number 0 on; its task says 10 in all"),
        (no_batch, {}, "an epoch has no batch of 24 samples; choose a smaller batch or more samples"),
        (plain, {"accumulate": 5}, "has 24 samples, which cannot be accumulated in 5 equal parts; change the batch"),
        (plain, {"accumulate": 0}, "accumulate is 0; it must be 1 or more"),
        (plain, {"clip_norm": 0.0}, "clip_norm is 0.0; it must be above 0, or None"),
        (plain, {"clip_norm": float("nan")}, "clip_norm is nan; it must be above 0, or None"),
        (plain, {"checkpoint_seconds": -1.0}, "checkpoint_seconds is -1.0; it must be 0 or more"),
        (plain, {"precision": "fp8"}, "precision is 'fp8'; it may be no, bf16, fp16, auto"),
        (plain, {"parallel": "tp"}, "parallel is 'tp'; it may be ddp, fsdp"),
        (plain, {"precision": "fp16"}, "precision fp16 needs a GPU; on the CPU choose no, bf16 or auto"),
    ],
)
def test_refusals(start, recipe, message):
    with pytest.raises(ExperimentError) as refused:
        by_the_loop(Recipe(**recipe), start)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_the_curve_has_what_the_rule_did():
    """As `Telemetry` says it of a loop by hand; the training is the same, and other optimizers have none."""
    watched, measured = by_the_loop(Recipe(telemetry=True), name="frankenstein")
    alone, before = by_the_loop(Recipe(), name="frankenstein")
    assert all(torch.equal(watched[name], alone[name]) for name in alone)
    names = [name for name in measured.curve if name.startswith("telemetry/0/")]
    assert measured.curve.keys() - set(names) == before.curve.keys() and len(names) > 40
    torch.manual_seed(0)
    task = plain(0, BUDGET)
    optimizer = factory("frankenstein")(task.model.parameters())
    with Telemetry(optimizer, every=5) as telemetry:
        batches = chain.from_iterable(task.batches(epoch, 0, 0, 1) for epoch in range(25))
        for _, (x, y) in zip(range(25), batches, strict=False):
            optimizer.zero_grad()
            functional.cross_entropy(task.model(x), y).backward()
            optimizer.step()
    expected = telemetry.curves(measured.curve["step"])
    assert expected["telemetry/0/rho_q50"][0] is None and expected["telemetry/0/rho_q50"][-1] > 0
    assert {name: measured.curve[name] for name in names} == {name: expected[name] for name in names}
    assert by_the_loop(Recipe(telemetry=True), name="adam")[1].curve.keys() == before.curve.keys()


def test_no_gpu():
    with pytest.raises(ExperimentError, match="torch sees none here; run it on the CPU"):
        by_the_loop(Recipe(), budget=Budget(2, 1, "test", device="cuda"))
