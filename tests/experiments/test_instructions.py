"""Instructions as tokens, the loss of their answers, LoRA on a network, and what is wrong with files."""

from __future__ import annotations

import shutil
from pathlib import Path

import instruction_cases as cases
import pytest
import torch

from frankenstein.compare.catalog import catalog
from frankenstein.compare.optimizers import Factory
from frankenstein.compare.problems.problem import Budget
from frankenstein.experiments import language
from frankenstein.experiments.data import DataError, load
from frankenstein.experiments.experiment import ExperimentError
from frankenstein.experiments.instructions import IGNORED, answer_losses, drawn, encode
from frankenstein.experiments.language import Instructions, Tuning
from frankenstein.experiments.llama import VARIABLE, greedy, weights, with_lora
from frankenstein.experiments.training import Recipe, cosine

ROUNDING = 2e-5  # of float32 losses of about 6, summed in another order
N_ROWS, LENGTH = 120, 64


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return cases.write_network(tmp_path_factory.mktemp("network") / "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("data")
    cases.write_rows(made, cases.rows(N_ROWS))
    return made


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path, folder, network):
    monkeypatch.setenv("FRANKENSTEIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FRANKENSTEIN_DATA", str(folder))
    monkeypatch.setenv(VARIABLE, str(network))


def problem(recipe=Recipe(), **changes):  # noqa: B008  it is frozen
    return Instructions(
        "alpaca_9k", **{"max_length": LENGTH, "n_test": 20, "batch_size": 6, "recipe": recipe} | changes
    )


def task(split="test", seed=0, **changes):
    torch.manual_seed(seed)
    return Tuning(problem(**changes), seed, Budget(4, 2, split))


def randomised(made):
    """Give the adapters' second matrices values, so that they matter."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for param in made.parameters():
            if param.requires_grad:
                param.normal_(std=0.3)
    return made


# Tokens ---------------------------------------------------------------------------------------------------------------


def encoded(tmp_path, rows, length):
    cases.write_rows(tmp_path, rows)
    return encode(load("alpaca_9k", "train", tmp_path), cases.tokenizer(), length)


def test_only_the_answer_has_labels_and_it_ends(tmp_path):
    words = cases.tokenizer()
    found = encoded(tmp_path, [{"instruction": " say red ", "input": "", "output": "red\n"}], 100)
    batch = found.padded([0])
    said = batch["labels"][0][batch["labels"][0] != IGNORED]
    assert words.decode(said) == f"red{cases.END}"
    assert words.decode(batch["tokens"][0]) == f"### Instruction:\nsay red\n\n### Response:\nred{cases.END}"
    assert found.n_answer(0) == len(said)


def test_what_is_cut_or_left_out_is_counted(tmp_path):
    rows = [
        {"instruction": "say", "input": "", "output": "x" * 500},
        {"instruction": "say " * 500, "input": "", "output": "red"},
        {"instruction": "say", "input": "", "output": "  \n"},
        {"instruction": "", "input": "red", "output": "red"},
        {"instruction": "say", "input": "", "output": "red"},
    ]
    found = encoded(tmp_path, rows, LENGTH)
    assert found.rows == [0, 4] and found.is_cut == [True, False]
    assert (found.n_empty, found.n_too_long) == (2, 1)
    assert len(found.tokens[0]) == LENGTH
    assert cases.tokenizer().eos_token_id not in found.tokens[0]  # what is cut does not end


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"instruction": "say", "input": "", "output": ""}] * 3, "no row has both an instruction and an output"),
        ([{"instruction": "say " * 99, "input": "", "output": "red"}], "every prompt has 64 tokens or more"),
        ([{"instruction": "say", "output": "red"}], "has no column input; it has: instruction, output"),
        ([{"instruction": "say", "input": "", "output": None}, *cases.rows(1)], "no output"),
    ],
)
def test_rows_that_cannot_be_used(rows, message, tmp_path):
    with pytest.raises(ExperimentError, match=message) as caught:
        encoded(tmp_path, rows, LENGTH)
    assert "\n" not in str(caught.value)


def test_batches_follow_from_seed_and_epoch_and_similar_lengths_come_together(tmp_path):
    rows = [row | {"output": "red " * (i * 7 % 23 + 1)} for i, row in enumerate(cases.rows(100))]
    found = encoded(tmp_path, rows, 200)

    def padding(batches):
        longest = [max(len(found.tokens[i]) for i in batch) for batch in batches]
        return sum(n * 6 - sum(len(found.tokens[i]) for i in batch) for n, batch in zip(longest, batches, strict=True))

    plain, bucketed = (drawn(found, list(range(100)), 6, window, 3, 1) for window in (1, 4))
    assert bucketed == drawn(found, list(range(100)), 6, 4, 3, 1)
    assert bucketed != drawn(found, list(range(100)), 6, 4, 3, 2) != drawn(found, list(range(100)), 6, 4, 4, 2)
    for batches in (plain, bucketed):
        assert len(batches) == 16 and all(len(batch) == 6 for batch in batches)
        assert len({i for batch in batches for i in batch}) == 96
    assert {i for batch in plain for i in batch} == {i for batch in bucketed for i in batch}
    assert padding(bucketed) < padding(plain) / 2


def test_no_prompt_is_held_out_and_trained_on(tmp_path, monkeypatch):
    """Guards against a test loss of what was learned by heart."""
    monkeypatch.setenv("FRANKENSTEIN_DATA", str(tmp_path))
    cases.write_rows(tmp_path, cases.rows(60) * 2)  # each prompt twice
    run = problem()
    samples, parts, choosing = run.encoded(), run.parts("test"), run.parts("validation")

    def asked(found):
        return {tuple(samples.question(i).tolist()) for i in found}

    assert len(parts.scored) == 20 and not asked(parts.train) & asked(parts.scored)
    assert not set(choosing.scored) & set(parts.scored) and not set(choosing.train) & set(parts.scored)
    assert not set(choosing.train) & set(choosing.scored)


def test_the_same_rows_are_held_out_at_every_length():
    short, long = problem(), problem(max_length=2 * LENGTH)
    held = [[run.encoded().rows[i] for i in run.parts("test").scored] for run in (short, long)]
    assert held[0] == held[1]


def test_too_few_rows():
    with pytest.raises(ExperimentError, match=r"has 120 samples of .* 115 to hold out and a batch of 6"):
        problem(n_test=115).parts("test")


# Loss -----------------------------------------------------------------------------------------------------------------


def test_losses_are_those_of_each_sample_alone():
    """Guards against padding that is seen, labels that are shifted, and prompts that count."""
    made = task()
    randomised(made.model)
    samples = sorted(made.parts.train, key=lambda i: made.encoded.n_prompt[i])[::20]  # prompts of several lengths
    batch = made.encoded.padded(samples)
    together = answer_losses(made.model, batch).sum(1)
    for i, sample in enumerate(samples):
        tokens, begin = made.encoded.tokens[sample], made.encoded.n_prompt[sample]
        logits = made.model(input_ids=tokens[None]).logits[0].log_softmax(-1)
        alone = -sum(logits[k - 1, tokens[k]] for k in range(begin, len(tokens)))
        assert together[i].item() == pytest.approx(alone.item(), rel=ROUNDING)


def test_the_loss_is_the_mean_over_all_answers_however_a_batch_is_shared():
    made = task()
    (whole, *_), (first, *_), (second, *_) = (list(made.batches(0, 0, rank, n)) for rank, n in ((0, 1), (0, 2), (1, 2)))
    n_answer = int((whole["labels"] != IGNORED).sum())
    expected = (answer_losses(made.model, whole).sum() / n_answer).item()
    assert made.loss(made.model, whole, 0).item() == pytest.approx(expected, rel=ROUNDING)
    shares = [made.loss(made.model, share, 0).item() for share in (first, second)]
    assert sum(shares) / 2 == pytest.approx(expected, rel=ROUNDING)
    assert shares[0] != pytest.approx(shares[1], rel=ROUNDING)
    one = made.encoded.n_answer
    assert made.score(made.model)["score"] == pytest.approx(
        sum(answer_losses(made.model, made.encoded.padded([i])).sum().item() for i in made.parts.scored)
        / sum(map(one, made.parts.scored)),
        rel=ROUNDING,
    )


def test_a_run_goes_on_after_a_kill_to_the_same_outcome(tmp_path):
    recipe = Recipe(cosine(6), accumulate=2, checkpoint_seconds=0.0)
    make = Factory(catalog().optimizers["frankenstein"], {"lr": 1e-2, "base_lr": 1e-2})
    whole = problem(recipe)(make, 0, Budget(6, 3, "test"))

    class KilledError(Exception):
        pass

    def kill(step, numbers):
        if step == 4:
            raise KilledError

    with pytest.raises(KilledError):
        problem(recipe)(make, 0, Budget(6, 3, "test", watch=kill, folder=tmp_path / "run"))
    again = problem(recipe)(make, 0, Budget(6, 3, "test", folder=tmp_path / "run"))
    for name in ("score", "train_loss", "step"):
        assert again.curve[name] == whole.curve[name]
    assert again.samples == whole.samples
    assert whole.curve["score"][-1] < whole.curve["score"][0] - 0.1
    assert any(one["before"] != one["after"] for one in whole.samples)


# Networks -------------------------------------------------------------------------------------------------------------


def test_adapters_start_from_nothing_and_leave_the_network_as_it_is(network):
    first, tokens = with_lora(network, "float32"), torch.arange(1, 20)[None]
    trained = [name for name, param in first.named_parameters() if param.requires_grad]
    n_layers, width, n_values = 2, 32, 16
    assert len(trained) == n_layers * 2 * 2 and all("_proj.lora_" in name for name in trained)
    assert sum(p.numel() for p in first.parameters() if p.requires_grad) == n_layers * 8 * (3 * width + n_values)
    with torch.no_grad():
        before = first(input_ids=tokens).logits
        with first.disable_adapter():
            assert torch.equal(first(input_ids=tokens).logits, before)
        randomised(first)
        assert not torch.allclose(first(input_ids=tokens).logits, before)
        assert torch.equal(with_lora(network, "float32")(input_ids=tokens).logits, before)
    base = {name: p for name, p in first.named_parameters() if not p.requires_grad}
    shared = dict(with_lora(network, "float32").named_parameters())
    assert all(p.data_ptr() == shared[name].data_ptr() for name, p in base.items())


def test_answers_are_the_most_likely_ones(network):
    model, question = randomised(with_lora(network, "float32")).eval(), torch.arange(5, 25)
    said, tokens = greedy(model, question, 12), question
    with torch.no_grad():
        for token in said:  # without the keys and values of the tokens before
            assert model(input_ids=tokens[None]).logits[0, -1].argmax() == token
            tokens = torch.cat([tokens, torch.tensor([token])])
    assert len(said) == 12 and len(set(said)) > 1


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def without_a_tensor(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def no_llama(folder):
    import transformers

    cases.write_network(folder, made_of=transformers.GPT2Config(vocab_size=300, n_embd=16, n_layer=1, n_head=2))


def fewer_tokens(folder):
    cases.write_network(folder, made_of=cases.config(vocab_size=200))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: cut(folder / "model.safetensors"), "cannot read the weights in"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"has no \*.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot read the"),
        (lambda folder: cut(folder / "tokenizer.json"), "cannot read the tokenizer in"),
        (without_a_tensor, "lack model.layers.1.mlp.up_proj.weight"),
        (no_llama, "is no LLaMA: it has no layers q_proj and v_proj"),
        (fewer_tokens, "the tokenizer in .* has 2.. tokens and the network 200"),
    ],
)
def test_networks_that_cannot_be_used(spoil, message, network, tmp_path, monkeypatch):
    folder = tmp_path / "spoiled"
    shutil.copytree(network, folder)
    spoil(folder)
    monkeypatch.setenv(VARIABLE, str(folder))
    with pytest.raises(ExperimentError, match=message) as caught:
        task()
    assert "\n" not in str(caught.value) and "spoiled" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.gguf", "no weights nowhere.gguf; name a gguf file"),
        ("bad.gguf", "cannot read .*bad.gguf as weights in gguf"),
        ("/nowhere/at/all", "neither a file or folder nor a name on the hub"),
    ],
)
def test_weights_that_are_nowhere(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("frankenstein.experiments.pretrained.answers", lambda url: False)
    Path("bad.gguf").write_bytes(b"GGUF" + bytes(1000))
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(ExperimentError, match=message) as caught:
        weights()
    assert "\n" not in str(caught.value)


def test_a_name_on_the_hub_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr("frankenstein.experiments.pretrained.answers", lambda url: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "someone/llama")
    with pytest.raises(ExperimentError, match=r"cannot have the model someone/llama \(the hub cannot be reached\)"):
        weights()


def test_records_say_what_was_trained_on(network):
    data, model = problem().describe()
    assert data["name"] == "alpaca_9k" and data["n_test"] == 20 and data["n_train"] == N_ROWS - 20
    assert model["name"] == "tiny" and len(model["sha256"]) == 64
    assert str(network.parent) not in str(model) and data["sha256"] != model["sha256"]
    assert issubclass(DataError, ExperimentError) and language.N_SHOWN < 20
