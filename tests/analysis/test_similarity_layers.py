"""CKA of models: which layers there are, what batches may be, and that nothing is left behind."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch
from similarity_cases import EXACT, KERNELS, NAMES, Reused, hooks_of, inputs, reused_outputs, seeded
from torch import nn

from frankenstein.analysis.similarity import SimilarityError, cka, cka_of


def test_two_models_are_a_map_of_both():
    model, other, x = seeded(Reused), seeded(lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh()), 1), inputs(40)
    found = cka(model, x.split(20), other=other)
    assert (found.layers, found.other_layers, found.map.shape) == (NAMES, ("0", "1"), (7, 2))
    turned = cka(other, x.split(20), other=model)
    np.testing.assert_allclose(turned.map, found.map.T, atol=EXACT)
    np.testing.assert_allclose(turned.standard_error, found.standard_error.T, atol=EXACT)
    ours, theirs = reused_outputs(model, x)[5], other(x)
    assert cka(model, [x], other=other).map[5, 1] == pytest.approx(cka_of(ours, theirs), abs=EXACT)


def test_a_model_and_itself_is_the_model():
    model, x = seeded(Reused), inputs(40)
    np.testing.assert_allclose(cka(model, [x], other=model).map, cka(model, [x]).map, atol=EXACT)
    both = nn.Sequential(model, nn.Linear(3, 2))  # shares its layers
    assert cka(both, [x], other=model).map.shape == (8, 7)


def test_named_layers_are_those_in_the_order_of_their_calls():
    model, x = seeded(Reused), inputs(12)
    everything = cka(model, [x]).map
    found = cka(model, [x], layers=["last", "act"])
    assert found.layers == ("act", "act:1", "last", "act:2")
    chosen = [NAMES.index(name) for name in found.layers]
    np.testing.assert_allclose(found.map, everything[np.ix_(chosen, chosen)], atol=EXACT)
    found = cka(model, [x], other=model, layers=["first"], other_layers=["", "first"])
    assert (found.layers, found.other_layers) == (("first",), ("first", ""))
    assert cka(model, [x], other=model, layers=["first"]).other_layers == ("first",)


def test_a_block_that_calls_no_layer_is_one():
    """Attention computes with its projection but does not call it; a parametrization is called, but on weights."""
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = cka(attention, inputs(12, 5, 8).split(6))
    assert found.layers[:2] == ("self_attn", "dropout1")
    weighted = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), nn.ReLU())
    assert cka(weighted, [inputs(6)]).layers == ("0", "1")  # six samples: as many rows as the weights


def test_layers_of_compiled_models_are_seen():
    model, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU()), inputs(16)
    compiled = torch.compile(model, backend="eager").eval()
    with torch.no_grad():
        compiled(x[:8])  # compiled now, without hooks
    found = cka(compiled, x.split(8))
    assert found.layers == ("_orig_mod.0", "_orig_mod.1")
    np.testing.assert_array_equal(found.map, cka(model, x.split(8)).map)


def test_what_has_no_row_per_sample_is_left_out_unless_it_is_asked_for():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(5, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.out(x + self.embed(torch.arange(5)[None]))

    model, x = seeded(Positions), inputs(12, 5, 6)
    assert cka(model, [x]).layers == ("out",)
    with pytest.raises(
        SimilarityError, match=r"^layer 'embed' of the model .* each of 12 samples; got shape \(1, 5, 6\)"
    ):
        cka(model, [x], layers=["embed"])


@pytest.mark.parametrize(
    "batch",
    [
        lambda x: (x, torch.zeros(len(x))),
        lambda x: [x],
        lambda x: {"x": x},
        lambda x: ({"x": x}, torch.zeros(len(x))),
    ],
    ids=["tuple", "list", "mapping", "mapping and labels"],
)
def test_batches_are_what_loaders_give(batch):
    model, x = seeded(Reused), inputs(20)
    found = cka(model, (batch(part) for part in x.split(10)))
    np.testing.assert_array_equal(found.map, cka(model, x.split(10)).map)


def test_a_forward_of_your_own():
    model, x = seeded(Reused), inputs(20)
    batches, has_gradients = [{"features": part.double(), "label": 0} for part in x.split(10)], []

    def forward(model, batch):
        has_gradients.append(model(batch["features"].float()).requires_grad)

    np.testing.assert_array_equal(cka(model, batches, forward=forward).map, cka(model, x.split(10)).map)
    assert has_gradients == [False, False]


def test_autocast_does_not_reach_the_estimate():
    model, x, kept = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)), inputs(16), []

    def forward(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model[0](batch)
            kept[:] = hidden, model[1](hidden)

    found = cka(model, [x], forward=forward)
    assert kept[0].dtype == torch.bfloat16
    assert found.map[0, 1] == pytest.approx(cka_of(*kept), abs=EXACT)


def test_images_in_any_memory_format():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)))
    x = inputs(8, 3, 6, 6)
    found = cka(model, [x]).map
    turned = cka(model.to(memory_format=torch.channels_last), [x.to(memory_format=torch.channels_last)]).map
    np.testing.assert_allclose(turned, found, atol=1e-5)  # the convolution itself is float32, in another order


def test_a_layer_that_is_dead_has_no_similarity():
    model = nn.Sequential(nn.Linear(6, 4), nn.Threshold(1e9, 0.0), nn.Linear(4, 2))
    found = cka(model, inputs(20).split(10))
    np.testing.assert_array_equal(np.isnan(found.map), [[False, True, True], [True] * 3, [True] * 3])
    np.testing.assert_array_equal(np.isnan(found.standard_error), np.isnan(found.map))


def test_activations_are_not_kept():
    """When the last layer runs, all other outputs are gone."""

    class Wide(nn.Module):
        n_alive = 0

        def forward(self, x):
            x = x + 1
            alive.append(weakref.ref(x))
            self.n_alive = sum(ref() is not None for ref in alive)
            return x

    alive: list[weakref.ref] = []
    model = nn.Sequential(*(Wide() for _ in range(6)))
    cka(model, inputs(12).split(6))
    assert model[-1].n_alive <= 2  # its input and its output
    assert sum(ref() is not None for ref in alive) == 0


class Fragile(nn.Module):
    """Fails at its second call, after changing what a model keeps."""

    def __init__(self, error: BaseException | None) -> None:
        super().__init__()
        self.before, self.norm, self.drop = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout()
        self.register_buffer("n_calls", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))
        self.error = error

    def forward(self, x):
        self.n_calls += 1
        self.replaced = self.replaced + 1
        x = self.norm(self.before(x))
        if self.n_calls == 2 and self.error is not None:
            raise self.error
        return self.drop(x)


def state_of(model: nn.Module) -> tuple:
    modes = [part.training for part in model.modules()]
    return modes, hooks_of(model), {name: value.tolist() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("error", [None, RuntimeError("shapes\nof all kinds"), KeyError(), KeyboardInterrupt()])
def test_models_are_left_as_they_were(error):
    model, other = seeded(lambda: Fragile(None)), seeded(lambda: Fragile(error), 1)
    model.norm.eval()
    other.drop.p = 0.0
    before, buffers = (state_of(model), state_of(other)), (other.n_calls, other.replaced)
    batches = inputs(30).split(10)
    if error is None:
        cka(model, batches, other=other)
    else:
        with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else SimilarityError) as caught:
            cka(model, batches, other=other)
        if isinstance(error, Exception):
            reason = f"{type(error).__name__}: " + ("shapes" if error.args else "no message")
            assert str(caught.value) == f"the other model failed after layer 'norm' (batch 1): {reason}"
            assert caught.value.__cause__ is error
    assert (state_of(model), state_of(other)) == before
    assert other.n_calls is buffers[0] and other.replaced is buffers[1]
    assert model.training and not model.norm.training and model.drop.training


def test_a_pending_backward_pass_is_not_disturbed():
    """Buffers that did not change are not written: autograd would refuse to go back through them."""
    model, x = seeded(lambda: Fragile(None)), inputs(12)
    scale = model.norm.running_var * model.before.weight.sum()
    cka(model, [x])
    scale.sum().backward()
    assert model.before.weight.grad is not None


class Bad(nn.Sequential):
    """Its second layer gives `value` for one sample of one batch."""

    def __init__(self, value: float) -> None:
        super().__init__(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
        self.value, self.n_calls = value, 0

    def forward(self, x):
        self.n_calls += 1
        hidden = self[0](x)
        if self.n_calls == 2:
            hidden[3, 1] = self.value
        return self[2](self[1](hidden))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_activations_that_are_not_finite_are_named(kernel, value):
    model = Bad(value)
    with pytest.raises(SimilarityError, match=r"^activations of layer '1' of the model are not finite \(batch 1\)$"):
        cka(model, inputs(30).split(10), kernel=kernel)
    assert hooks_of(model) == 0 and model.training


@pytest.mark.parametrize(
    "how, said",
    [
        ({"layers": ["frist"]}, r"the model has no layer 'frist'; it has 'first'"),
        ({"layers": [3]}, r"the model has no layer 3; it has 'first', 'last', 'act'"),
        ({"layers": []}, r"must be a list of names; got \[\]"),
        ({"layers": "first"}, r"must be a list of names; got 'first'"),
        ({"layers": ["first", "unused"]}, r"the model did not call its layer 'unused' \(batch 0\)"),
        ({"other_layers": ["first"]}, "other_layers needs another model"),
        ({"other": nn.Linear(6, 2), "layers": ["first"]}, "the other model has no layer 'first'"),
        ({"batches": inputs(8)}, "batches must be a sequence of batches"),
        ({"batches": {"x": inputs(8)}}, "batches must be a sequence of batches"),
        ({"batches": ["text"]}, "batch 0 is a str without a tensor"),
        ({"batches": [torch.tensor(1.0)]}, "batch 0 is a Tensor without a tensor"),
        ({"batches": [inputs(8, 5)]}, r"the model failed in layer 'first' \(batch 0\): RuntimeError: mat1"),
        ({"kernel": "RBF"}, "unknown kernel 'RBF'"),
        ({"kernel": "rbf", "bandwidth": -1.0}, "bandwidth must be"),
        ({"forward": lambda model, batch: None}, r"called no layer that gives a row for each of 8 samples \(batch 0\)"),
    ],
)
def test_what_is_asked_wrongly_is_said_in_a_line(how, said):
    model = seeded(Reused)
    with pytest.raises(SimilarityError, match=said) as caught:
        cka(model, **{"batches": [inputs(8)], **how})
    assert "\n" not in str(caught.value)
    assert hooks_of(model) == 0 and model.training


def test_layers_that_differ_between_batches_are_refused():
    class Early(nn.Sequential):
        def forward(self, x):
            return self[0](x) if len(x) < 10 else self[1](self[0](x))

    model = Early(nn.Linear(6, 4), nn.ReLU())
    with pytest.raises(SimilarityError, match=r"called other layers than before \(batch 1\): 1; name the layers"):
        cka(model, inputs(15).split(10))
    assert cka(model, inputs(15).split(10), layers=["0"]).batch_sizes == (10, 5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_gpu_finds_what_a_cpu_finds(kernel):
    model, x = seeded(Reused), inputs(50)
    expected = cka(model, x.split(16), kernel=kernel)
    other = seeded(Reused).cuda()
    found = [cka(other, x.split(16), kernel=kernel), cka(model, x.split(16), other=other, kernel=kernel)]
    for sim in found:  # the layers themselves are float32
        np.testing.assert_allclose(sim.map, expected.map, atol=1e-4)
