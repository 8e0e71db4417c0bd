"""What is distributed, on two processes: the result is that of one process, bit for bit.

The programs, which stand before their tests, run on every rank, and compare there with an optimizer on whole tensors.
FSDP2 takes no 0-dim parameters; here one stays outside, and with it a matrix: plain tensors in the same group.
"""

from __future__ import annotations

import copy
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from ranks import Ranks
from torch import nn
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel
from torch_contract import assert_bitwise, gradients, make, parameters, train, values

from frankenstein.torch import Frankenstein

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
)

ODD = ((5, 3), (1, 7), (1,), (33,), (0, 3))  # the second rank has less, or nothing
BLOCKS = ((5, 1030), (1, 4096), (65, 64), (3, 2, 700))  # these can have 8-bit state
SHAPES = ((), *ODD, *BLOCKS, (5000,), (4, 3))  # the first and the last are not sharded
FORMATS = ("float32", "bfloat16", "8bit")
NORM_TOLERANCE = 1e-5  # relative; a norm is summed in another order, in float32


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    with Ranks(tmp_path_factory.mktemp("ranks")) as ranks:
        yield ranks


class Bag(nn.Module):
    """Parameters of all `SHAPES`, the same on every rank."""

    def __init__(self, dtype=torch.float32, is_sharded=True):
        super().__init__()
        self.tensors = nn.ParameterList(parameters(*SHAPES, dtype=dtype))
        if is_sharded:
            fully_shard(self, ignored_params={self.tensors[0], self.tensors[-1]})


def whole(tensor):
    """The tensor that the ranks hold together; torch cannot put together one that has no elements."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) and tensor.numel() else tensor


def like(params, steps):
    """Gradients, of which every rank has the whole, sharded as the parameters are."""

    def one(param, grad):
        if grad is None or not isinstance(param, DTensor):
            return grad
        return distribute_tensor(grad, param.device_mesh, param.placements, src_data_rank=None)

    return [[one(param, grad) for param, grad in zip(params, step, strict=True)] for step in steps]


def assert_same_as_whole(optimizer, expected):
    """Parameters, state and options of a sharded optimizer are those of one on whole tensors."""
    for group, other in zip(optimizer.param_groups, expected.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {k: v for k, v in other.items() if k != "params"}
        for param, reference in zip(group["params"], other["params"], strict=True):
            state, after = optimizer.state.get(param, {}), expected.state.get(reference, {})
            assert state.keys() == after.keys()
            if reference.numel():
                assert_bitwise([whole(param)], [reference])
                assert_bitwise([whole(state[key]) for key in state], [after[key] for key in state])


@contextmanager
def torchs_own_imports():
    """Some of torch's modules call at their import what torch itself warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        yield


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 65), nn.Tanh(), nn.Linear(65, 64), nn.Tanh(), nn.Linear(64, 1))


def sharded_network(**options):
    model = network()
    for layer in (model[0], model[2], model[4], model):
        fully_shard(layer, **options)
    return model


def inputs(step, rank=None):
    """A batch, or a rank's half of it."""
    batch = torch.randn(8, 64, generator=torch.Generator().manual_seed(step))
    return batch if rank is None else batch.chunk(2)[rank]


def loss_of(model, batch):
    return model(batch).square().mean()


def train_network(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, inputs(step)).backward()
        optimizer.step()


# FSDP2 ----------------------------------------------------------------------------------------------------------------

EXTRAS = {
    "plain": {},
    "decay": {"weight_decay": 0.1, "maximize": True},
    "skip": {"weight_decay": 0.1, "nonfinite": "skip"},
    "raise": {"nonfinite": "raise"},
}
HOW = {"default": {}, "one by one": {"fused": False}, "foreach": {"foreach": True}}


def step_sharded(dtype, options):
    model, reference = Bag(dtype), Bag(dtype, is_sharded=False)
    optimizer, expected = make(model.parameters(), **options), make(reference.parameters(), **options)
    grads = gradients(list(reference.parameters()), 5)
    if options.get("nonfinite") == "skip":
        for grad in (grad for step in grads[1:] for grad in step if grad.dim() and grad.numel()):
            grad[0] = float("nan")
            grad.view(-1)[-1] = float("inf")
    train(expected, grads)
    grads = like(list(model.parameters()), grads)
    with CommDebugMode() as communication:
        train(optimizer, grads)
    n_calls = len(grads) if options.get("nonfinite") == "raise" else 0
    assert communication.get_total_counts() == n_calls
    assert_same_as_whole(optimizer, expected)
    stored = {"float32": torch.float32, "bfloat16": torch.bfloat16, "8bit": torch.uint8}[options["state_dtype"]]
    for param in model.parameters():
        state = optimizer.state[param]
        assert ("compensation" in state) == (dtype == torch.bfloat16)
        if param.shape in BLOCKS:
            assert state["momentum_buffer"].dtype == stored
        if isinstance(param, DTensor):
            assert all(tensor.placements == param.placements for tensor in state.values())


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", FORMATS)
@pytest.mark.parametrize("how", HOW)
def test_sharded_is_whole(ranks, how, state_dtype, dtype, extra):
    """Guards against a step that depends on where a parameter is cut, on an empty part, and against communication."""
    ranks.run(step_sharded, dtype, {"state_dtype": state_dtype, **HOW[how], **EXTRAS[extra]})


def step_compiled(options):
    model, other = Bag(), Bag()
    optimizer, expected = make(model.parameters(), **options), make(other.parameters(), **options)
    grads = like(list(model.parameters()), gradients(parameters(*SHAPES), 3))
    train(expected, grads)
    optimizer.step = torch.compile(optimizer.step, backend="aot_eager")
    with torchs_own_imports():
        train(optimizer, grads)
    torch._dynamo.reset()
    assert_bitwise(*([whole(t) for t in values(each) if t.numel()] for each in (optimizer, expected)))


@pytest.mark.parametrize(
    "options", [{}, {"foreach": True}, {"state_dtype": "8bit"}], ids=["float32", "foreach", "8bit"]
)
def test_compiled_step(ranks, options):
    """Guards against a compiler that follows the sharding of each operation, and stumbles over parts of odd sizes."""
    ranks.run(step_compiled, options)


def train_sharded(policy, state_dtype, n_accumulated):
    options = {} if policy is None else {"mp_policy": policy}
    model, reference = sharded_network(**options), network()
    optimizer, expected = (make(each.parameters(), state_dtype=state_dtype) for each in (model, reference))
    for step in range(3):
        optimizer.zero_grad()
        expected.zero_grad()
        for part in range(n_accumulated):
            model.set_requires_gradient_sync(part == n_accumulated - 1)
            loss_of(model, inputs(n_accumulated * step + part)).backward()
            accumulate(reference, inputs(n_accumulated * step + part), policy)
        optimizer.step()
        expected.step()
    assert_same_as_whole(optimizer, expected)


def accumulate(model, batch, policy):
    """Add gradients, which are those of a copy in low precision where the policy says so."""
    low = copy.deepcopy(model).to(torch.float32 if policy is None else policy.param_dtype)
    low.zero_grad()
    loss_of(low, batch.to(low[0].weight.dtype)).backward()
    for param, other in zip(model.parameters(), low.parameters(), strict=True):
        param.grad = other.grad.float() if param.grad is None else param.grad + other.grad.float()


@pytest.mark.parametrize(
    "policy, state_dtype, n_accumulated",
    [
        (None, "float32", 1),
        (None, "8bit", 2),
        (MixedPrecisionPolicy(param_dtype=torch.bfloat16), "float32", 1),
        (MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32), "bfloat16", 1),
    ],
    ids=["float32", "accumulated", "bfloat16", "bfloat16 reduced in float32"],
)
def test_sharded_training_is_whole(ranks, policy, state_dtype, n_accumulated):
    """Guards against gradients as FSDP2 hands them over, accumulated or of mixed precision, being taken for others."""
    ranks.run(train_sharded, policy, state_dtype, n_accumulated)


def clip_sharded():
    model, reference = sharded_network(), network()
    optimizer, expected = make(model.parameters()), make(reference.parameters())
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, inputs(step)).backward()
        whole_grads = [whole(param.grad) for param in model.parameters()]
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1e-3).full_tensor()
        torch.testing.assert_close(norm, nn.utils.get_total_norm(whole_grads), rtol=NORM_TOLERANCE, atol=0.0)
        clipped = [whole(param.grad) for param in model.parameters()]
        assert nn.utils.get_total_norm(clipped) < 2e-3 < norm
        optimizer.step()
        train(expected, [clipped])
    assert_same_as_whole(optimizer, expected)


def test_clipped_gradients(ranks):
    ranks.run(clip_sharded)


def step_with_one_inf(wrap):
    """Scale the loss by a power of two, which changes no bit of the gradients; the second step has an inf on rank 1."""
    model, scaler = wrap()
    reference = network()
    optimizer, expected = make(model.parameters()), make(reference.parameters())
    for step in range(3):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, inputs(step))).backward()
        if step != 1:
            train_network(reference, expected, [step])
        elif dist.get_rank() == 1:
            grad = next(param.grad for param in model.parameters() if param.grad is not None and param.grad.numel())
            (grad.to_local() if isinstance(grad, DTensor) else grad).view(-1)[0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0
    return model, optimizer, expected


def fsdp2_scaled():
    _, optimizer, expected = step_with_one_inf(lambda: (sharded_network(), torch.amp.GradScaler("cpu", init_scale=4.0)))
    assert_same_as_whole(optimizer, expected)


def test_scaled_gradients(ranks):
    """Guards against a step that one rank takes and the other does not, for its part of the gradients overflowed."""
    ranks.run(fsdp2_scaled)


def raise_on_all(is_sharded):
    model, reference = Bag(), Bag(is_sharded=False)
    optimizer = make(model.named_parameters(), nonfinite="raise")
    expected = make(reference.parameters(), nonfinite="raise")
    first, bad, last = gradients(list(reference.parameters()), 3)
    params = list(model.parameters())
    train(optimizer, like(params, [first]))
    train(expected, [first])
    before = values(optimizer)
    (step,) = like(params, [bad])
    if not is_sharded:
        step[-1][0, 0] = float("nan")
    elif dist.get_rank() == 1:
        step[1].to_local()[-1, 0] = float("nan")
    name = f"tensors.{1 if is_sharded else len(SHAPES) - 1}"
    with pytest.raises(RuntimeError, match=f"'{name}' has 1 gradient elements.*nothing was changed"):
        train(optimizer, [step])
    assert_bitwise(*([getattr(t, "_local_tensor", t) for t in each] for each in (values(optimizer), before)))
    train(optimizer, like(params, [last]))
    train(expected, [last])
    assert_bitwise(*([whole(t) for t in values(each) if t.numel()] for each in (optimizer, expected)))


@pytest.mark.parametrize("is_sharded", [True, False], ids=["on one rank", "on both"])
def test_all_ranks_raise(ranks, is_sharded):
    """Guards against one rank that raises while the other moves its part, and then waits for it."""
    ranks.run(raise_on_all, is_sharded)


def step_columns(state_dtype):
    """Columns are sharded, as tensor parallelism does it."""
    mesh = init_device_mesh("cpu", (2,))
    plain = parameters((70, 131))
    params = [distribute_tensor(plain[0].detach(), mesh, [Shard(1)], src_data_rank=None).requires_grad_()]
    optimizer = make(params, state_dtype=state_dtype)
    expected = make(plain, state_dtype="float32" if state_dtype == "8bit" else state_dtype)
    grads = gradients(plain, 4)
    train(expected, grads)
    train(optimizer, like(params, grads))
    assert_bitwise(map(whole, values(optimizer)), values(expected))


@pytest.mark.parametrize("state_dtype", FORMATS)
def test_sharded_columns(ranks, state_dtype):
    """Guards against 8-bit blocks that reach over two ranks: where rows are cut, the state stays float32."""
    ranks.run(step_columns, state_dtype)


# Distributed checkpoints ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A run that is saved after three of six steps.

    Attributes:
        options: The optimizer's.
        n_before: Steps before it is saved.
        is_flat: With a flat state dict.
        late: Parameters that have no gradient before it is saved.
        frozen: Parameters that need none.
        has_empty_group: With a group without parameters.
    """

    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    n_before: int = 3
    is_flat: bool = False
    late: tuple[int, ...] = ()
    frozen: tuple[int, ...] = ()
    has_empty_group: bool = False

    def start(self, is_sharded: bool, **options: Any) -> tuple[Bag, Frankenstein]:
        model = Bag(self.dtype, is_sharded)
        params = list(model.parameters())
        for i in self.frozen:
            params[i].requires_grad_(False)
        groups = [{"params": params[:6]}, {"params": params[6:], "weight_decay": 0.1}]
        groups += [{"params": [], "weight_decay": 0.3}] if self.has_empty_group else []
        return model, make(groups, **{**self.options, **options})

    def train(self, model: Bag, optimizer: Frankenstein, steps: range) -> None:
        params = list(model.parameters())
        for step, grads in enumerate(gradients(parameters(*SHAPES, dtype=self.dtype), 6)):
            missing = {*self.frozen, *(self.late if step < self.n_before else ())}
            if step in steps:
                train(optimizer, like(params, [[None if i in missing else grad for i, grad in enumerate(grads)]]))


PARTS = ("model", "optim")


def save(case, folder, is_sharded):
    model, optimizer = case.start(is_sharded)
    case.train(model, optimizer, range(case.n_before))
    kept = get_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=case.is_flat))
    dcp.save(dict(zip(PARTS, kept, strict=True)), checkpoint_id=folder, no_dist=not is_sharded)


def load_and_go_on(case, folder, is_sharded, **options):
    """Load into other parameters and an optimizer with other options, and compare with a run that never stopped."""
    model, optimizer = case.start(is_sharded, eps=1e-3, momentum=0.5, **options)
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
    flat = StateDictOptions(flatten_optimizer_state_dict=case.is_flat)
    kept = dict(zip(PARTS, get_state_dict(model, optimizer, options=flat), strict=True))
    planner = DefaultLoadPlanner(allow_partial_load=bool(case.late))
    dcp.load(kept, checkpoint_id=folder, no_dist=not is_sharded, planner=planner)
    set_state_dict(model, optimizer, **{f"{part}_state_dict": kept[part] for part in PARTS}, options=flat)
    case.train(model, optimizer, range(case.n_before, 6))
    reference, expected = case.start(is_sharded=False)
    case.train(reference, expected, range(6))
    assert_same_as_whole(optimizer, expected)


CASES = {
    f"{state_dtype} state, {str(dtype)[6:]}": Case({"state_dtype": state_dtype}, dtype)
    for state_dtype in FORMATS
    for dtype in (torch.float32, torch.bfloat16)
} | {
    "flat": Case({"state_dtype": "8bit"}, torch.bfloat16, is_flat=True),
    "no step yet": Case({"state_dtype": "8bit"}, torch.bfloat16, n_before=0),
    "no gradient yet": Case(late=(1, 7)),
    "no gradient yet, 8bit": Case({"state_dtype": "8bit"}, late=(1, 7)),
    "frozen": Case({"state_dtype": "8bit"}, frozen=(1, 7)),
    "empty group": Case(has_empty_group=True),
    "tensor lr": Case({"lr": torch.tensor(1e-2), "nonfinite": "raise"}),
}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # one process is what is meant
@pytest.mark.parametrize("case", CASES)
def test_checkpoints_move_between_one_process_and_two(ranks, case, tmp_path):
    """Guards against state that is lost, rounded or cut elsewhere on the way, and against missing first state."""
    case = CASES[case]
    ranks.run(save, case, tmp_path / "of two", True)
    load_and_go_on(case, tmp_path / "of two", False)
    ranks.run(load_and_go_on, case, tmp_path / "of two", True)
    save(case, tmp_path / "of one", False)
    ranks.run(load_and_go_on, case, tmp_path / "of one", True)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
def test_codes_are_not_taken_for_numbers(tmp_path, state_dtype):
    """Guards against 8-bit codes that a distributed checkpoint copies, as numbers, into state of another format."""
    case = Case({"state_dtype": "8bit"})
    save(case, tmp_path, False)
    with pytest.raises(ValueError, match="make the optimizer that loads with state_dtype='8bit'"):
        load_and_go_on(case, tmp_path, False, state_dtype=state_dtype)


def gather_and_spread(state_dtype, dtype):
    """Rank 0 holds the whole, on its way to one file, and hands it out again."""
    case = Case({"state_dtype": state_dtype}, dtype)
    model, optimizer = case.start(is_sharded=True)
    case.train(model, optimizer, range(3))
    kept = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    model, optimizer = case.start(is_sharded=True)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, kept[0], options=options)  # set_state_dict takes rank 1's empty one for none at all
    set_optimizer_state_dict(model, optimizer, kept[1], options=options)
    case.train(model, optimizer, range(3, 6))
    reference, expected = case.start(is_sharded=False)
    case.train(reference, expected, range(6))
    assert_same_as_whole(optimizer, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", FORMATS)
def test_state_is_gathered_and_spread(ranks, state_dtype, dtype):
    ranks.run(gather_and_spread, state_dtype, dtype)


# DDP, ZeRO, FSDP1 -----------------------------------------------------------------------------------------------------


def train_ddp(state_dtype):
    model, reference = network(seed=dist.get_rank()), network(seed=0)  # DDP starts with what rank 0 has
    parallel = DistributedDataParallel(model)
    optimizer = make(model.parameters(), state_dtype=state_dtype, weight_decay=0.1)
    expected = make(reference.parameters(), state_dtype=state_dtype, weight_decay=0.1)
    for step in range(4):
        optimizer.zero_grad()
        loss_of(parallel, inputs(step, dist.get_rank())).backward()
        optimizer.step()
        halves = [
            torch.autograd.grad(loss_of(reference, inputs(step, rank)), reference.parameters()) for rank in (0, 1)
        ]
        train(expected, [[a / 2 + b / 2 for a, b in zip(*halves, strict=True)]])  # two terms have one sum
    assert_same_as_whole(optimizer, expected)


@pytest.mark.parametrize("state_dtype", FORMATS)
def test_ddp(ranks, state_dtype):
    """Guards against ranks that drift apart: both are, bit for bit, one process with the mean of the gradients."""
    ranks.run(train_ddp, state_dtype)


def train_zero(state_dtype):
    with torchs_own_imports():
        from torch.distributed.optim import ZeroRedundancyOptimizer

    def start(lr):
        model = network()
        options = {"optimizer_class": Frankenstein, "state_dtype": state_dtype, "weight_decay": 0.1}
        return model, DistributedDataParallel(model), ZeroRedundancyOptimizer(model.parameters(), lr=lr, **options)

    reference = network()
    expected = make(reference.parameters(), lr=1e-2, state_dtype=state_dtype, weight_decay=0.1)
    train_network(reference, expected, range(3))
    model, parallel, optimizer = start(1e-2)
    train_network(parallel, optimizer, range(3))
    assert 0 < len(optimizer.optim.state) < len(list(model.parameters()))  # the rest is on the other rank
    assert_bitwise(model.parameters(), reference.parameters())
    optimizer.consolidate_state_dict(to=0)
    box = [optimizer.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box)
    for i, entry in expected.state_dict()["state"].items():
        assert box[0]["state"][i].keys() == entry.keys()
        assert_bitwise(box[0]["state"][i].values(), entry.values())
    saved = model.state_dict()
    model, parallel, optimizer = start(1.0)
    model.load_state_dict(saved)
    optimizer.load_state_dict(box[0])
    train_network(parallel, optimizer, range(3, 6))
    train_network(reference, expected, range(3, 6))
    assert_bitwise(model.parameters(), reference.parameters())


@pytest.mark.parametrize("state_dtype", FORMATS)
def test_zero_redundancy_optimizer(ranks, state_dtype):
    ranks.run(train_zero, state_dtype)


def fsdp1_network():
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(network(), use_orig_params=True, device_id=torch.device("cpu"))


def train_fsdp1(state_dtype):
    model, reference = fsdp1_network(), network()
    optimizer = make(model.parameters(), state_dtype=state_dtype)
    expected = make(reference.parameters(), state_dtype="float32" if state_dtype == "8bit" else state_dtype)
    train_network(model, optimizer, range(4))
    train_network(reference, expected, range(4))
    with model.summon_full_params(model):
        assert_bitwise(model.parameters(), reference.parameters())


@pytest.mark.parametrize("state_dtype", FORMATS)
def test_fsdp1(ranks, state_dtype):
    """Guards against 8-bit blocks in FSDP1's pieces of flat parameters, which end anywhere: the state stays float32."""
    ranks.run(train_fsdp1, state_dtype)


def fsdp1_scaled():
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    model, _, expected = step_with_one_inf(lambda: (fsdp1_network(), ShardedGradScaler("cpu", init_scale=4.0)))
    with model.summon_full_params(model):
        assert_bitwise(model.parameters(), expected.param_groups[0]["params"])


def test_sharded_scaler(ranks):
    ranks.run(fsdp1_scaled)


# The processes --------------------------------------------------------------------------------------------------------


def fail_on_rank_1():
    if dist.get_rank() == 1:
        raise ValueError("on rank 1")
    dist.barrier()


def leave_rank_0_alone():
    if dist.get_rank() == 0:
        dist.barrier()


def test_a_rank_that_fails_or_hangs_ends_the_call(tmp_path):
    """Guards against tests that wait for ever, and against a group that is used after a failure."""
    with Ranks(tmp_path) as ranks:
        with pytest.raises(AssertionError, match=r"(?s)rank 0: did not come to an end.*rank 1: .*on rank 1"):
            ranks.run(fail_on_rank_1)
        with pytest.raises(AssertionError, match=r"^rank 0: did not come to an end in time$"):
            ranks.run(leave_rank_0_alone, limit_seconds=10)
        assert ranks.run(dist.get_rank) == [0, 1]
