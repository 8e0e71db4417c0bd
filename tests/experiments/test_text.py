"""Labelled texts: what is left out, how they are cut into tokens and batches, and hidden states on the disk."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
from review_cases import LONGEST, write_model, write_reviews, write_split

from frankenstein.experiments import bert, text
from frankenstein.experiments.data import SOURCES
from frankenstein.experiments.experiment import ExperimentError
from frankenstein.experiments.text import bucketed, clean, corpus, hidden_states, in_order, tokenised

HALF = 1e-3  # relative error of half precision, 2^-11, and a margin for values below its normal range


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("FRANKENSTEIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(SOURCES, "imdb", replace(SOURCES["imdb"], n_rows={}))
    corpus.cache_clear()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("model") / "tiny"))


def refusal(call, *arguments):
    with pytest.raises(ExperimentError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


def parts(found):
    return {
        part: {found.texts["test" if part == "test" else "train"][row] for row in rows.tolist()}
        for part, rows in found.rows.items()
    }


def test_no_text_is_in_two_parts(tmp_path):
    """Guards against texts of the test set that are trained on because they differ in a line break only."""
    train = [f"review {i}" for i in range(20)]
    train += ["review 3", "review  3", "seen<br />there", "seen there", "alone"]
    write_split(tmp_path, "train", {"text": train, "label": [0] * 25})
    write_split(tmp_path, "test", {"text": ["seen there", "review 0", "other", "other"], "label": [1] * 4})
    found = corpus("imdb", tmp_path)
    assert (found.n_also_in_test, found.n_repeated) == (3, 2)
    assert {part: len(rows) for part, rows in found.rows.items()} == {"train": 14, "validation": 6, "test": 4}
    texts = parts(found)
    assert not texts["train"] & texts["validation"] and not texts["test"] & (texts["train"] | texts["validation"])
    assert texts["train"] | texts["validation"] == {f"review {i}" for i in range(1, 20)} | {"alone"}


def test_line_breaks_are_taken_out():
    assert clean(" One<br /><br />two.\n Three<br />") == "One two. Three"


@pytest.mark.parametrize("empty", ["", "  ", "<br /><br />"])
def test_an_empty_text_is_refused(tmp_path, empty):
    write_reviews(tmp_path)
    write_split(tmp_path, "test", {"text": ["good", empty], "label": [1, 0]})
    message = refusal(corpus, "imdb", tmp_path)
    assert "imdb/test.parquet, row 1" in message and "empty" in message


def test_a_missing_column_and_data_without_texts_are_refused(tmp_path):
    write_reviews(tmp_path)
    write_split(tmp_path, "test", {"review": ["good"], "label": [1]})
    assert "no column text" in refusal(corpus, "imdb", tmp_path)
    assert "no labelled texts" in refusal(corpus, "cifar10_12k", tmp_path)


def test_a_long_text_loses_its_end_and_keeps_its_marks(tmp_path, model):
    """Guards against a text of just the longest length that is counted as cut, or loses a word."""
    write_split(
        tmp_path, "train", {"text": ["good film", "the good film", "the lovely film was good"], "label": [1, 1, 0]}
    )
    write_split(tmp_path, "test", {"text": ["bad"], "label": [0]})
    words = bert.tokenizer(model)
    found = corpus("imdb", tmp_path)
    tokens = tokenised(replace(found, rows={**found.rows, "train": torch.arange(3)}), "train", words, 5)
    read = [words.convert_ids_to_tokens(tokens.values[a:b].tolist()) for a, b in tokens.starts.unfold(0, 2, 1).tolist()]
    assert read == [
        ["[CLS]", "good", "film", "[SEP]"],
        ["[CLS]", "the", "good", "film", "[SEP]"],
        ["[CLS]", "the", "lovely", "film", "[SEP]"],
    ]
    assert tokens.n_cut == 1 and tokens.labels.tolist() == [1.0, 1.0, 0.0]
    values, lengths, labels = tokens.batch(torch.tensor([2, 0]))
    assert lengths.tolist() == [5, 4] and values[1, 4] == 0 and labels.tolist() == [0.0, 1.0]
    assert values[:, 0].tolist() == [words.cls_token_id] * 2 and values.dtype == torch.int64


def test_batches_of_like_lengths():
    lengths = torch.randint(5, 300, (1000,), generator=torch.Generator().manual_seed(0))
    batches = bucketed(lengths, 3, 1, 16)
    assert batches.shape == (62, 16)
    assert max(Counter(batches.flatten().tolist()).values()) == 1
    padded = (lengths[batches].max(1).values * 16).sum() / lengths[batches].sum()
    shuffled = torch.randperm(992, generator=torch.Generator().manual_seed(0)).view(62, 16)
    assert padded < 1.1 < 1.6 < (lengths[shuffled].max(1).values * 16).sum() / lengths[shuffled].sum()
    longest = lengths[batches].max(1).values.float()
    steps = torch.arange(62.0)
    assert torch.corrcoef(torch.stack([steps, longest]))[0, 1].abs() < 0.4  # not from short to long


def test_the_order_follows_from_seed_and_epoch_alone():
    lengths = torch.arange(5, 105)
    first = bucketed(lengths, 3, 1, 8)
    torch.manual_seed(1)
    assert torch.equal(first, bucketed(lengths, 3, 1, 8))
    for seed, epoch in ((4, 1), (3, 2)):
        other = bucketed(lengths, seed, epoch, 8)
        assert {frozenset(rows.tolist()) for rows in first} != {frozenset(rows.tolist()) for rows in other}
    assert bucketed(lengths[:5], 3, 1, 8).shape == (0, 8)


@pytest.fixture
def tokens(tmp_path, model):
    found = corpus("imdb", write_reviews(tmp_path / "data"))
    return tokenised(found, "train", bert.tokenizer(model), LONGEST)


def test_hidden_states_are_those_of_the_encoder(tokens, model):
    encoder = bert.encoder(model, is_pretrained=True).train()  # with dropout on: it must be switched off
    states = hidden_states(model, encoder, tokens)
    assert states.values.shape == (int(tokens.lengths.sum()), 32) and states.values.dtype == torch.float16
    for row in (0, 5, len(tokens) - 1):
        values, lengths, _ = tokens.batch(torch.tensor([row]))
        with torch.no_grad():
            expected = encoder.eval()(values).last_hidden_state[0]
        found, (length,), _ = states.batch(torch.tensor([row]))
        assert length == lengths[0] == len(expected)
        torch.testing.assert_close(found[0].float(), expected, rtol=HALF, atol=HALF)


def test_hidden_states_are_worked_out_once_for_each_text_and_weights(tokens, model, tmp_path, monkeypatch):
    """Guards against the states of other texts or weights, and of a file that was damaged."""
    calls, encode = [], text._encode
    monkeypatch.setattr(text, "_encode", lambda *arguments: (calls.append(1), encode(*arguments)))
    encoder = bert.encoder(model, is_pretrained=True)
    first = hidden_states(model, encoder, tokens).values.clone()
    assert torch.equal(first, hidden_states(model, encoder, tokens).values) and len(calls) == 1
    (path,) = (tmp_path / "cache" / "hidden").glob("*.npy")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert torch.equal(first, hidden_states(model, encoder, tokens).values) and len(calls) == 2
    shorter = replace(tokens, values=tokens.values[:9], starts=torch.tensor([0, 4, 9]), labels=tokens.labels[:2])
    split_elsewhere = replace(shorter, starts=torch.tensor([0, 5, 9]))
    hidden_states(model, encoder, shorter)
    hidden_states(model, encoder, split_elsewhere)
    assert len(calls) == 4
    with torch.no_grad():
        encoder.embeddings.word_embeddings.weight[5] += 1.0
    assert not torch.equal(first, hidden_states(model, encoder, tokens).values) and len(calls) == 5


def test_too_little_disk_says_how_much_it_takes(tokens, model, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    message = refusal(hidden_states, model, bert.encoder(model, is_pretrained=True), tokens)
    needed = 2 * 32 * len(tokens.values)
    assert f"needs {needed / 1e9:.3g} GB" in message and "FRANKENSTEIN_CACHE" in message


def test_states_beyond_half_precision_are_refused(tokens, model, tmp_path):
    encoder = bert.encoder(model, is_pretrained=True)
    with torch.no_grad():
        encoder.encoder.layer[-1].output.LayerNorm.weight.fill_(1e6)
    assert "half precision" in refusal(hidden_states, model, encoder, tokens)
    assert not list((tmp_path / "cache" / "hidden").glob("*.npy"))


def test_all_texts_are_scored_once(tokens):
    rows = torch.cat([labels for _, _, labels in in_order(tokens, 7)])
    assert len(rows) == len(tokens) and rows.sum() == tokens.labels.sum()
    longest = [values.shape[1] for values, _, _ in in_order(tokens, 7)]
    assert longest == sorted(longest)
