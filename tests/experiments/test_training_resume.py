"""A training that is stopped goes on from its checkpoint, and ends bitwise as if it had not been stopped."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from training_cases import Digits, keeping, network, noisy, rich_recipe, scaled, train, train_to_file, weights

from frankenstein.compare.catalog import catalog
from frankenstein.compare.problems.problem import Budget
from frankenstein.experiments.experiment import ExperimentError
from frankenstein.experiments.training import Recipe, cosine
from frankenstein.experiments.training import run as training_run

N_STEPS = 20
LIMIT_SECONDS = 60.0  # for a process to come to a step; it takes about three


class Stopped(BaseException):
    """Like a kill: nothing on its way may catch it."""


def stopping(start, step):
    """Return `start`, whose task is stopped when it is asked for more losses than `step` steps of two parts need."""

    def fragile(seed, budget):
        task, calls = start(seed, budget), iter(range(2 * step))

        def loss(*arguments, inner=task.loss):
            if next(calls, None) is None:
                raise Stopped
            return inner(*arguments)

        task.loss = loss
        return task

    return fragile


def run(folder, start=noisy, name="sgd", recipe=None, **changes):
    """Return the curve without times, and the weights, of a training to its end."""
    kept, tasks = keeping(start)
    budget = Budget(**({"n_steps": N_STEPS, "n_evals": 4, "split": "test", "folder": folder} | changes))
    measured = train(kept, recipe or rich_recipe(N_STEPS), budget, name)
    return untimed(measured.curve), weights(tasks[0])


def untimed(curve):
    return {name: curve[name] for name in ("step", "score", "test_loss", "train_loss")}


def stop(folder, step=9, start=noisy, name="sgd", recipe=None):
    with pytest.raises(Stopped):
        run(folder, stopping(start, step), name, recipe)


def assert_same(result, expected):
    assert result[0] == expected[0]
    for key, value in expected[1].items():
        assert torch.equal(result[1][key], value), key


def files(folder):
    return sorted((folder / "checkpoint").iterdir())


def wait_for_step(process, folder, step):
    """Return once a checkpoint of `step` or later is there."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline and process.is_alive():
        steps = [int(path.name[5:14]) for path in (folder / "checkpoint").glob("step-*.pt")]
        if max(steps, default=0) >= step:
            return
        time.sleep(0.001)
    raise AssertionError(f"exit code {process.exitcode} before step {step}")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX")
def test_killed_processes(tmp_path):
    """Real kills at arbitrary moments, within the writing of a checkpoint too: momentum, schedule, noise, dropout."""
    n_steps, draw = 150, random.Random(3)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "accelerate", "frankenstein.experiments.training.run", "sklearn.datasets"])

    def start(folder, target):
        process = context.Process(target=train_to_file, args=(str(folder), n_steps, str(target)))
        process.start()
        return process

    for step in sorted(draw.sample(range(5, 120), 3)):
        process = start(tmp_path / "killed", tmp_path / "killed.pt")
        wait_for_step(process, tmp_path / "killed", step)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    last = start(tmp_path / "killed", tmp_path / "killed.pt")
    train_to_file(str(tmp_path / "whole"), n_steps, str(tmp_path / "whole.pt"))
    last.join(LIMIT_SECONDS)
    assert last.exitcode == 0
    expected, result = (torch.load(tmp_path / f"{name}.pt") for name in ("whole", "killed"))
    assert_same((untimed(result["curve"]), result["weights"]), (untimed(expected["curve"]), expected["weights"]))


@pytest.mark.parametrize("name", catalog().optimizers)
def test_every_optimizer(tmp_path, name):
    """Guards against state that an optimizer keeps to itself, and learning rates scaled twice by the schedule."""
    stop(tmp_path, name=name)
    assert_same(run(tmp_path, name=name), run(None, name=name))


def test_the_scale_of_the_loss(tmp_path, monkeypatch):
    accelerators = []

    @contextmanager
    def kept(*arguments):
        with scaled(*arguments) as accelerator:
            accelerators.append(accelerator)
            yield accelerator

    monkeypatch.setattr(training_run, "accelerated", kept)
    stop(tmp_path)
    assert_same(run(tmp_path), run(None))
    stopped, resumed, whole = (accelerator.scaler.get_scale() for accelerator in accelerators)
    assert stopped < resumed == whole == 2.0**15  # doubled five times in 20 steps


def test_the_time_so_far_is_kept(tmp_path):
    recipe = rich_recipe(N_STEPS)
    stop(tmp_path, recipe=recipe)
    state = torch.load(files(tmp_path)[-1], weights_only=True)
    assert state["here"][0] == 9
    kept, _ = keeping(noisy)
    measured = train(kept, recipe, Budget(N_STEPS, 4, "test", folder=tmp_path))
    n_before = len(state["curve"]["step"])
    assert measured.curve["seconds"][:n_before] == state["curve"]["seconds"]
    assert measured.curve["seconds"][n_before] > state["here"][1]
    assert measured.seconds_per_step * N_STEPS >= measured.curve["seconds"][-1]


def test_whoever_watches_sees_all_points_again(tmp_path):
    stop(tmp_path)
    seen = []
    curve, _ = run(tmp_path, watch=lambda step, numbers: seen.append((step, numbers["score"], "train_loss" in numbers)))
    assert seen == [(step, score, step > 0) for step, score in zip(curve["step"], curve["score"], strict=True)]


def test_a_finished_training_is_not_trained_again(tmp_path):
    expected = run(tmp_path)
    assert_same(run(tmp_path, stopping(noisy, 0)), expected)


def test_two_are_kept_and_the_clock_decides(tmp_path):
    run(tmp_path)
    assert [path.name[:14] for path in files(tmp_path)] == ["step-000000019", "step-000000020"]
    run(tmp_path / "rare", recipe=Recipe(cosine(N_STEPS), checkpoint_seconds=1e6))
    assert not (tmp_path / "rare" / "checkpoint").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damage(tmp_path, capsys, damage):
    """The one before is used; where both are damaged, the training starts again. Either way the end is the same."""

    def spoil(path):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)

    expected = run(None)
    for n_damaged, first_step in ((1, 8), (2, 0)):
        folder = tmp_path / str(n_damaged)
        stop(folder)
        for path in files(folder)[-n_damaged:]:
            spoil(path)
        steps = []

        def counting(seed, budget, steps=steps):
            task = noisy(seed, budget)
            task.batches = lambda epoch, first, *ranks: (
                steps.append(epoch * task.n_batches + first) or Digits.batches(task, epoch, first, *ranks)
            )
            return task

        assert_same(run(folder, counting), expected)
        assert steps[0] == first_step
        assert capsys.readouterr().err.count("is damaged and is left out") == n_damaged


def test_what_a_kill_leaves_of_a_file_is_no_checkpoint(tmp_path):
    stop(tmp_path)
    (tmp_path / "checkpoint" / "rank-0.tmp").write_bytes(b"half of it")
    assert_same(run(tmp_path), run(None))
    assert not (tmp_path / "checkpoint" / "rank-0.tmp").exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    stop(tmp_path)
    with pytest.raises(ExperimentError, match=r"another run, with n_steps 20 where this one has 30; remove it"):
        run(tmp_path, n_steps=30)
    with pytest.raises(ExperimentError, match=r"with optimizer torch\.optim:SGD nesterov=True lr=0\.003"):
        run(tmp_path, name="adam")

    def other(seed, budget):
        return Digits(network(has_norm=False), budget.split)

    with pytest.raises(ExperimentError, match=r"of another model: 1\.bias is only in one of the two"):
        run(tmp_path, other)


def test_a_checkpoint_that_cannot_be_written_does_not_stop_the_training(tmp_path, capsys):
    (tmp_path / "checkpoint").write_text("a file where the folder should be")
    assert_same(run(tmp_path), run(None))
    assert "no checkpoint at step 20 in" in capsys.readouterr().err


def test_a_full_disk_does_not_stop_the_training(tmp_path, capsys):
    """Files may grow to 4 kB in the block: the writer fails in the middle of one."""
    resource = pytest.importorskip("resource")
    expected = run(None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        result = run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_same(result, expected)
    assert "; the training goes on\n" in capsys.readouterr().err
    assert files(tmp_path) == []


def test_frozen_weights_are_not_in_it(tmp_path):
    """A checkpoint of a large network that is trained in a small part is small."""

    def frozen(seed, budget):
        task = noisy(seed, budget)
        task.model[0].requires_grad_(False)
        return task

    stop(tmp_path, start=frozen)
    state = torch.load(files(tmp_path)[-1], weights_only=True)
    assert not {"0.weight", "0.bias"} & state["model"].keys()
    assert {"1.weight", "1.running_mean", "5.weight"} <= state["model"].keys()
    assert_same(run(tmp_path, frozen), run(None, frozen))


def test_paths_are_not_in_it(tmp_path):
    run(tmp_path)
    assert all(str(Path(tmp_path)).encode() not in path.read_bytes() for path in files(tmp_path))
