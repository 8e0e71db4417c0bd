"""Few-shot tasks: what is drawn, from which seed, and a meta-training that is stopped, goes on and is shared."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from omniglot_cases import write_omniglot
from training_cases import factory

from frankenstein.compare.problems.problem import Budget
from frankenstein.experiments.experiment import ExperimentError
from frankenstein.experiments.few_shot import N_TURNS, Characters, FewShot, MetaTraining, draw
from frankenstein.experiments.training import Loop, Recipe

FEW = FewShot(5, 2, n_queries=3, meta_batch=4, n_filters=4, n_batches=3, n_scored=6, n_scored_queries=4)
N_STEPS = 7
TOLERANCE = 2e-5  # absolute, of float32 weights: a meta-batch in halves sums in another order


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_omniglot(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def environment(monkeypatch, data, tmp_path_factory):
    monkeypatch.setenv("FRANKENSTEIN_DATA", str(data))
    monkeypatch.setenv("FRANKENSTEIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def numbered():
    """Characters whose drawings say which they are: border and middle are the row's number, and a corner is marked."""
    found = FEW.characters("train")
    pixels = torch.zeros_like(found.images.pixels)
    row = torch.arange(len(pixels))[:, None, None]
    pixels[:, 0] = row // 100
    pixels[:, 0, 1:-1, 1:-1] = row % 100
    pixels[:, 0, 0, -1] = 255
    return Characters(replace(found.images, pixels=pixels), found.rows)


def test_a_task_is_made_of_different_drawings_of_different_classes():
    """Guards against drawings that are in support and query at once, and one class under two labels."""
    characters = numbered()
    of_row = {int(row): i for i, rows in enumerate(characters.rows) for row in rows}
    support, query = draw(characters, FEW, 3, N_TURNS, [(0, step, 0) for step in range(40)])
    assert support.shape == (40, 5, 2, 28, 28) and query.shape == (40, 5, 3, 28, 28) and support.dtype == torch.uint8
    both = torch.cat([support, query], 2)
    corners = both[..., [0, 0, -1, -1], [-1, 0, 0, -1]] == 255  # as they were, and turned once, twice, three times
    turns = corners.int().argmax(-1)
    assert (corners.sum(-1) == 1).all() and (turns == turns[:, :, :1]).all()  # one turn for a class
    assert set(turns.flatten().tolist()) == set(range(N_TURNS))
    for task, turn in zip(100 * both[..., 0, 14].int() + both[..., 14, 14], turns, strict=True):
        classes = []
        for drawings, n_quarters in zip(task.tolist(), turn[:, 0].tolist(), strict=True):
            assert len(set(drawings)) == 5
            (character,) = {of_row[row] for row in drawings}
            classes.append((character, n_quarters))
        assert len(set(classes)) == 5
    upright = draw(characters, FEW, 3, 1, [(0, 0)])[0]
    assert (upright[..., 0, -1] == 255).all()


def test_a_task_follows_from_its_seed_alone():
    """Guards against a resumed training that sees other tasks, and processes that see the same ones."""
    task = MetaTraining(FEW, 3, Budget(6, 1, "test"))
    whole = [batch for epoch in (0, 1) for batch in task.batches(epoch, 0, 0, 1)]
    later = list(task.batches(1, 2, 0, 1))
    assert len(whole) == 2 * FEW.n_batches and len(later) == 1
    assert all(map(torch.equal, later[0], whole[5]))
    halves = [next(iter(task.batches(1, 2, rank, 2))) for rank in (0, 1)]
    assert all(torch.equal(torch.cat(parts), both) for *parts, both in zip(*halves, whole[5], strict=True))
    support = torch.cat([batch[0] for batch in whole]).flatten(1)
    assert len(support.unique(dim=0)) == len(support)
    other = next(iter(MetaTraining(FEW, 4, Budget(6, 1, "test")).batches(0, 0, 0, 1)))
    assert not torch.equal(other[0], whole[0][0])


def test_what_is_scored_on_is_not_trained_on():
    """Guards against tuning on the evaluation alphabets, and on alphabets that are trained on."""
    background, evaluation = FEW.characters("train"), FEW.characters("test")
    final = MetaTraining(FEW, 0, Budget(6, 1, "test"))
    assert final.train is background and final.scored is evaluation
    tuning = MetaTraining(FEW, 0, Budget(6, 1, "validation"))
    alphabets = background.images.table.column("alphabet").to_pylist()
    kept, held = ({alphabets[row] for rows in one.rows for row in rows} for one in (tuning.train, tuning.scored))
    assert kept and held and not kept & held and kept | held == set(alphabets)
    assert tuning.scored.images is background.images
    assert [part["n_characters"] for part in FEW.describe()] == [30, 21]


def test_the_score_and_its_interval():
    """Guards against an interval over queries, which are not independent, and against characters that are turned."""
    task = MetaTraining(FEW, 0, Budget(6, 1, "test"))
    task.scored = numbered()
    task.few_shot = replace(FEW, n_scored=11)  # a last part that is short

    def knows(support, query):  # all queries of even tasks, one in five of the others
        assert (support[..., 0, -1] == 255).all() and (query[..., 0, -1] == 255).all()
        right = torch.arange(5).repeat_interleave(query.shape[2])
        answers = [torch.where(torch.tensor(i % 2 == 0), right, torch.zeros_like(right)) for i in range(len(query))]
        return torch.nn.functional.one_hot(torch.stack(answers), 5).float()

    knows.parameters = task.model.parameters
    found = task.score(knows)
    shares = np.array([1.0, 0.2] * 5 + [1.0])
    assert found["score"] == pytest.approx(shares.mean())
    assert found["half_width"] == pytest.approx(1.96 * shares.std(ddof=1) / np.sqrt(11))
    assert found == task.score(knows)


def train(folder=None, n_calls=None, n_parts=1):
    """Return the curve and the weights; the training ends of itself at call number `n_calls` of the loss."""
    made = []

    def start(seed, budget):
        made.append(MetaTraining(FEW, seed, budget))
        inner, calls = made[0].loss, iter(range(n_calls or 10**9))

        def loss(*arguments):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return inner(*arguments)

        made[0].loss = loss
        return made[0]

    recipe = Recipe(accumulate=n_parts, checkpoint_seconds=0.0)
    measured = Loop(start, recipe)(factory("adam", lr=0.01), 1, Budget(N_STEPS, 2, "test", folder=folder))
    return measured.curve, {name: value.clone() for name, value in made[0].model.state_dict().items()}


def test_resume_is_bitwise(tmp_path):
    """Guards against tasks, or an inner loop, that depend on anything but seed and step."""
    curve, weights = train()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, n_calls=5)
    again, resumed = train(tmp_path)
    assert all(torch.equal(resumed[name], value) for name, value in weights.items())
    for name in ("score", "half_width", "test_loss", "train_loss"):
        assert again[name] == curve[name]
    assert curve["test_loss"][-1] < curve["test_loss"][0]


def test_a_meta_batch_in_parts_is_the_same():
    """Guards against parts that are summed, or that share normalisation."""
    whole, parts = (train(n_parts=n)[1] for n in (1, 2))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=TOLERANCE)


def on_ranks(data, cache):
    rank, n_ranks = str(torch.distributed.get_rank()), str(torch.distributed.get_world_size())
    ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n_ranks, "LOCAL_WORLD_SIZE": n_ranks}
    os.environ.update(ours, OMP_NUM_THREADS="1", MASTER_ADDR="127.0.0.1")
    os.environ.update(FRANKENSTEIN_DATA=data, FRANKENSTEIN_CACHE=cache)
    return train()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without processes")
def test_two_processes_train_what_one_does(ranks):
    """Guards against an inner loop that DDP does not see through."""
    curve, weights = train()
    for theirs, values in ranks.run(on_ranks, os.environ["FRANKENSTEIN_DATA"], os.environ["FRANKENSTEIN_CACHE"]):
        assert theirs["train_loss"][1:] == pytest.approx(curve["train_loss"][1:], abs=TOLERANCE)
        for name, value in weights.items():
            torch.testing.assert_close(values[name], value, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "few_shot, message",
    [
        (replace(FEW, n_ways=121), "split train has 30 characters, 4 classes each with those turned, and a task needs"),
        (replace(FEW, n_ways=22), "split test has 21 characters and a task needs 22 classes; use the whole data set"),
        (replace(FEW, n_shots=18), "character 0 has 20 drawings and a task needs 21 (shots and queries)"),
        (replace(FEW, n_shots=17), "character 30 has 20 drawings and a task needs 21 (shots and queries)"),
    ],
)
def test_too_few_data(few_shot, message):
    """Guards against tasks that could not be drawn, found out in the middle of a comparison."""
    with pytest.raises(ExperimentError) as caught:
        few_shot.describe()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_real_characters(shared, monkeypatch):
    monkeypatch.setenv("FRANKENSTEIN_DATA", str(shared / "data"))
    found = FEW.characters("test")
    assert len(found.rows) == 659 and {len(rows) for rows in found.rows} == {20}
