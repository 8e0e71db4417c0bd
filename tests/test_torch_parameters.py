"""Parameters and groups of every kind: layouts, sizes, dtypes, complex numbers, tied and frozen and sparse ones."""

from __future__ import annotations

import pytest
import torch
from torch_contract import (
    SETTINGS,
    STATE_KEYS,
    assert_bitwise,
    gradients,
    make,
    parameters,
    resumed,
    train,
    values,
)

# Layouts: the same numbers in another order in memory. A kernel on `param.contiguous()` would lose the update. --------

SHAPE = (6, 5, 3, 1)


def with_gaps(tensor):
    return torch.zeros(*tensor.shape, 3, dtype=tensor.dtype)[..., 1].copy_(tensor)


def odd_strides(tensor):
    """Contiguous, but the dimension of size 1 has a stride that says otherwise."""
    return tensor.contiguous().as_strided(tensor.shape, (*tensor.stride()[:-1], 77))


LAYOUTS = {
    "contiguous": torch.Tensor.contiguous,
    "transposed": lambda tensor: tensor.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "channels_last": lambda tensor: tensor.contiguous(memory_format=torch.channels_last),
    "with gaps": with_gaps,
    "odd strides": odd_strides,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(layout, grad_layout, dtype):
    """Guards against updates that are lost, or land elsewhere, where parameter and gradient are not contiguous."""
    plain = parameters(SHAPE, dtype=dtype)
    strided = [LAYOUTS[layout](plain[0].detach().clone()).requires_grad_()]
    strides = strided[0].stride()
    grads = gradients(plain, 5)
    expected = train(make(plain, weight_decay=0.1), grads)
    actual = make(strided, weight_decay=0.1)
    for step in grads:
        strided[0].grad = LAYOUTS[grad_layout](step[0].clone())
        actual.step()
    assert strided[0].stride() == strides
    assert_bitwise(values(actual), values(expected))
    assert_bitwise(values(resumed(actual)), values(expected))


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels_last"])
@pytest.mark.parametrize("load", [False, True])
def test_state_keeps_the_memory_format(layout, load):
    """Guards against state in another order than its parameter, which makes every step slow."""
    params = [LAYOUTS[layout](torch.ones(6, 5, 3, 2)).requires_grad_()]
    optimizer = train(make(params), [[torch.ones(6, 5, 3, 2)]])
    optimizer = resumed(optimizer) if load else optimizer
    for param, state in optimizer.state.items():
        assert all(state[key].stride() == param.stride() == params[0].stride() for key in STATE_KEYS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_expanded_gradients(dtype):
    """Guards against in-place work on a gradient of stride 0, such as that of a plain sum."""
    plain, expanded = parameters((4, 3), dtype=dtype), parameters((4, 3), dtype=dtype)
    optimizers = make(plain), make(expanded)
    for value in (0.3, -1.0, 2.0):
        plain[0].grad, expanded[0].grad = (
            torch.full((4, 3), value, dtype=dtype),
            torch.tensor(value, dtype=dtype).expand(4, 3),
        )
        for optimizer in optimizers:
            optimizer.step()
        assert expanded[0].grad.stride() == (0, 0)
    assert_bitwise(values(optimizers[1]), values(optimizers[0]))


# Sizes and dtypes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    "shapes",
    [[(0,), (3,), (2, 2)], [(3,), (2, 2), (0, 4)], [(0,)], [(3,), (), (1,)]],
    ids=["first", "last", "alone", "0d"],
)
def test_each_parameter_as_if_alone(shapes, setting):
    """Guards against empty and 0-dim parameters that break their neighbours or themselves."""
    params, alone = parameters(*shapes), parameters(*shapes)
    grads = gradients(params, 6)
    together = train(make(params, **SETTINGS[setting]), grads)
    for i, param in enumerate(alone):
        single = train(make([param], **SETTINGS[setting]), [[step[i]] for step in grads])
        assert_bitwise(
            values(single),
            [params[i].detach(), *(together.state[params[i]][k] for k in sorted(together.state[params[i]]))],
        )


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_scalar_is_a_vector_of_one(setting):
    """Guards against type promotion between 0-dim tensors: a float64 learning rate and a float32 parameter."""
    scalar, vector = parameters((), seed=3), parameters((1,), seed=3)
    grads = gradients(scalar, 10)
    one = train(make(scalar, **SETTINGS[setting]), grads)
    other = train(make(vector, **SETTINGS[setting]), [[grad.reshape(1) for grad in step] for step in grads])
    assert_bitwise([tensor.reshape(1) for tensor in values(one)], values(other))


def test_mixed_dtypes_in_one_group():
    """Guards against one parameter's dtype deciding how another is computed."""
    dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]
    params = [parameters((5,), dtype=dtype)[0] for dtype in dtypes]
    alone = [param.detach().clone().requires_grad_() for param in params]
    grads = gradients(params, 6)
    together = train(make(params), grads)
    for i, param in enumerate(alone):
        single = train(make([param]), [[step[i]] for step in grads])
        assert_bitwise(
            values(single),
            [params[i].detach(), *(together.state[params[i]][k] for k in sorted(together.state[params[i]]))],
        )


def test_frozen_parameters_and_those_without_gradient():
    """Guards against weight decay, momentum or state on a parameter that has no gradient."""
    params = parameters((3,), (3,), (3,))
    params[1].requires_grad_(False)
    start = [param.detach().clone() for param in params]
    optimizer = make(params, weight_decay=0.5, lr=0.1)
    optimizer.step()
    assert not optimizer.state
    train(optimizer, [[step[0], None, None] for step in gradients(params, 3)])
    assert_bitwise([param.detach() for param in params[1:]], start[1:])
    assert list(optimizer.state) == [params[0]] and not torch.equal(params[0], start[0])


def test_zero_gradient_is_not_no_gradient():
    """Guards against skipping a gradient of zeros: momentum goes on, as in torch's optimizers."""
    params = parameters((3,))
    optimizer = train(make(params), gradients(params, 3))
    before = params[0].detach().clone()
    train(optimizer, [[torch.zeros(3)]])
    assert (params[0] != before).all()


# Complex numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
def test_complex_is_two_real_numbers(setting, dtype):
    """Guards against |g|^2 as the squared gradient: real and imaginary part are independent, also through a file."""
    pairs = parameters((4, 3, 2), (2,), dtype=dtype.to_real())
    params = [torch.view_as_complex(pair.detach().clone()).requires_grad_() for pair in pairs]
    grads = gradients(pairs, 8)
    expected = train(make(pairs, **SETTINGS[setting]), grads)
    optimizer = make(params, **SETTINGS[setting])
    for i, step in enumerate(grads):
        if i == 4:
            optimizer = resumed(optimizer)
        train(optimizer, [[torch.view_as_complex(grad) for grad in step]])
    assert all(tensor.dtype == dtype for tensor in values(optimizer))
    assert_bitwise([torch.view_as_real(tensor) for tensor in values(optimizer)], values(expected))


@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_half_of_a_complex_gradient_may_be_bad(nonfinite):
    """Guards against a NaN in the imaginary part that takes the real part with it."""
    param = torch.full((2,), 1 + 1j, requires_grad=True)
    train(make([param], nonfinite=nonfinite), [[torch.tensor([complex(1.0, float("nan")), 1 + 1j])]])
    pairs = torch.view_as_real(param.detach())
    assert (pairs[:, 0] < 1).all() and pairs[1, 1] < 1
    assert pairs[0, 1].isnan() if nonfinite == "propagate" else pairs[0, 1] == 1


def test_conjugated_views():
    """Guards against gradients, or parameters, that are conjugated lazily: the bit ignored, or the update lost."""
    plain = parameters((5,), dtype=torch.complex64)
    lazy_grad = [plain[0].detach().clone().requires_grad_()]
    lazy_param = [plain[0].detach().clone().conj_physical().conj().requires_grad_()]
    assert lazy_param[0].is_conj() and torch.equal(lazy_param[0], plain[0])
    optimizers = [make(params, weight_decay=0.1) for params in (plain, lazy_grad, lazy_param)]
    for (grad,) in gradients(plain, 5):
        plain[0].grad, lazy_grad[0].grad, lazy_param[0].grad = grad, grad.conj_physical().conj(), grad.clone()
        assert lazy_grad[0].grad.is_conj()
        for optimizer in optimizers:
            optimizer.step()
    assert_bitwise(values(optimizers[1]), values(optimizers[0]))
    assert_bitwise(values(optimizers[2]), values(optimizers[0]))


# Groups ---------------------------------------------------------------------------------------------------------------


def test_empty_lists_and_empty_groups():
    """Guards against an optimizer of nothing, and against refusing a group that trainers leave empty."""
    with pytest.raises(ValueError, match="empty parameter list"):
        make([])
    params = parameters((3,))
    optimizer = make([{"params": [], "lr": 0.5}, {"params": params}])
    train(optimizer, gradients(params, 2))
    assert optimizer.param_groups[0]["lr"] == 0.5 and optimizer.param_groups[0]["momentum"] == 0.9
    assert resumed(optimizer).param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("named", [False, True])
def test_tied_parameters_move_once(named):
    """Guards against a step per mention of a parameter that is listed twice."""
    (first, tied), alone = parameters((3,), (2,)), parameters((3,), (2,))
    group = [tied, first, tied]
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = make([(f"p{i}", p) for i, p in enumerate(group)] if named else group)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(tied), id(first)]
    assert optimizer.param_groups[0].get("param_names") == (["p0", "p1"] if named else None)
    grads = gradients([tied, first], 3)
    expected = train(make([alone[1], alone[0]]), grads)
    assert_bitwise(values(train(optimizer, grads)), values(expected))
    assert_bitwise(values(resumed(optimizer)), values(expected))


def test_one_parameter_in_two_groups_is_refused():
    """Guards against two learning rates for one parameter."""
    (param,) = parameters((3,))
    with pytest.raises(ValueError, match="more than one parameter group"):
        make([{"params": [param]}, {"params": [param]}])


def test_group_added_after_some_steps():
    """Guards against counters shared between parameters: new ones start fresh, old ones go on."""
    params, alone = parameters((3,), (2,)), parameters((3,), (2,))
    grads = gradients(params, 9)
    optimizer = train(make(params[:1]), [step[:1] for step in grads[:4]])
    optimizer.add_param_group({"params": params[1], "lr": 1e-2, "rule": "authors"})
    train(optimizer, grads[4:])
    late = train(make(alone[1:], lr=1e-2, rule="authors"), [step[1:] for step in grads[4:]])
    early = train(make(alone[:1]), [step[:1] for step in grads])
    assert_bitwise(values(optimizer), [values(early)[0], values(late)[0], *values(early)[1:], *values(late)[1:]])


@pytest.mark.parametrize("params", [[torch.ones(2)], torch.ones(2)], ids=["list", "tensor"])
def test_group_that_is_no_dictionary(params):
    """Guards against our own checks failing before torch can say what is wrong."""
    with pytest.raises(TypeError, match="param_group must be a dict"):
        make(parameters((1,))).add_param_group(params)


@pytest.mark.parametrize("name", [None, "embedding.weight"])
def test_sparse_gradients_are_refused(name):
    """Guards against a step that has moved half of the parameters when it fails, and a message that names none."""
    dense, table = parameters((3,)), torch.nn.Embedding(5, 2, sparse=True)
    dense[0].grad = torch.ones(3)
    table(torch.tensor([1, 2])).sum().backward()
    before = [dense[0].detach().clone(), table.weight.detach().clone()]
    if name:
        optimizer = make([("dense", dense[0]), (name, table.weight)])
    else:
        optimizer = make([{"params": dense}, {"params": [table.weight]}])
    with pytest.raises(
        RuntimeError, match=f"sparse gradients: parameter '{name}'" if name else "parameter 0 of group 1"
    ):
        optimizer.step()
    assert_bitwise([dense[0].detach(), table.weight.detach()], before)
    assert not optimizer.state


def test_named_parameters():
    """Guards against names that get in the way of the step or of a checkpoint."""
    model = torch.nn.Linear(3, 2)
    optimizer = make(model.named_parameters())
    grads = gradients(list(model.parameters()), 4)
    twin = [param.detach().clone().requires_grad_() for param in model.parameters()]
    assert_bitwise(values(train(optimizer, grads)), values(train(make(twin), grads)))
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    loaded = make(torch.nn.Linear(3, 2).named_parameters())
    loaded.load_state_dict(optimizer.state_dict())
    assert_bitwise(values(loaded)[2:], values(optimizer)[2:])
