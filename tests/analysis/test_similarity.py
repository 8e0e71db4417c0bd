"""CKA against closed forms, the estimator as it is printed, and full batches."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from similarity_cases import (
    EXACT,
    KERNELS,
    NAMES,
    Reused,
    inputs,
    printed_cka,
    printed_hsic,
    random,
    related,
    reused_outputs,
    seeded,
)
from torch import nn

from frankenstein.analysis import hsic
from frankenstein.analysis.similarity import SimilarityError, cka, cka_of


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("n", [4, 5, 32])
def test_the_estimate_is_the_printed_one(kernel, n):
    x, y = related(n)
    assert cka_of(x, y, kernel=kernel, bandwidth=0.5) == pytest.approx(
        printed_cka([(x, y)], kernel=kernel, bandwidth=0.5), abs=EXACT
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("is_debiased", [True, False])
def test_a_representation_is_itself_whatever_its_rotation_scale_and_place(kernel, is_debiased):
    x, how = random(16, 6), {"kernel": kernel, "is_debiased": is_debiased}
    rotation = np.linalg.qr(random(6, 6, seed=1))[0]
    assert cka_of(x, x, **how) == pytest.approx(1.0, abs=EXACT)
    assert cka_of(x, -30.0 * x @ rotation + 5.0, **how) == pytest.approx(1.0, abs=EXACT)
    assert cka_of(x, x * np.arange(1, 7), **how) < 0.99  # stretched along one axis it is another


@pytest.mark.parametrize("kernel", KERNELS)
def test_order_does_not_matter(kernel):
    x, y = related(20)
    found = cka_of(x, y, kernel=kernel)
    order = np.random.default_rng(2).permutation(20)
    assert cka_of(y, x, kernel=kernel) == pytest.approx(found, abs=EXACT)
    assert cka_of(x[order], y[order], kernel=kernel) == pytest.approx(found, abs=EXACT)
    assert abs(cka_of(x, y[order], kernel=kernel) - found) > 0.1  # of x and y together, that is


def test_independent_representations_have_none_once_debiased():
    """The plain estimate is near d / (n + d) for d features: E tr(S²) of Wishart matrices."""
    n, d, n_draws = 32, 8, 200
    draws = [random(2, n, d, seed=seed) for seed in range(n_draws)]
    plain = [cka_of(x, y, is_debiased=False) for x, y in draws]
    debiased = np.array([cka_of(x, y) for x, y in draws])
    # The means of both scatter by 0.003 to 0.005 over 200 draws; the ratio of means is not quite the mean of ratios.
    assert np.mean(plain) == pytest.approx(d / (n + d), abs=0.015)
    standard_error = debiased.std(ddof=1) / math.sqrt(n_draws)
    assert abs(debiased.mean()) < 3 * standard_error < 0.02
    assert debiased.min() < 0  # not cut off at 0, which would be a bias again


def test_batches_are_unbiased_for_the_whole():
    """The mean over all batches of five of seven samples is the estimate of all seven: a U-statistic."""
    x, y = related(7)
    parts = [printed_hsic(x[list(chosen)], y[list(chosen)]) for chosen in combinations(range(7), 5)]
    assert np.mean(parts) == pytest.approx(printed_hsic(x, y), abs=EXACT)
    ours = [hsic.centred_kernel(torch.tensor(z), hsic.Kernel("linear", 1.0)).values.flatten() for z in (x, y)]
    assert float(ours[0] @ ours[1]) / (7 * 4) == pytest.approx(np.mean(parts), abs=EXACT)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("is_debiased", [True, False])
def test_a_constant_has_no_similarity(kernel, is_debiased):
    x, how = random(10, 3), {"kernel": kernel, "is_debiased": is_debiased}
    assert math.isnan(cka_of(x, np.full((10, 2), 0.1), **how))
    assert math.isnan(cka_of(np.zeros((10, 2)), x, **how))


@pytest.mark.parametrize("n", [7, 10, 13])
def test_one_sample_that_differs_has_no_debiased_similarity(n):
    """Whichever it is: without the diagonal, all that is left is rounding."""
    for idx in (0, 5):
        x = np.repeat(random(1, 3), n, axis=0)
        x[idx] += random(3, seed=1)
        assert math.isnan(cka_of(x, random(n, 3, seed=2)))


def test_rbf_has_a_width_where_most_samples_are_the_same():
    x, y = random(30, 50), random(30, 4, seed=1)
    x[6:] = x[5]
    found = cka_of(x, y, kernel="rbf")
    assert found == pytest.approx(printed_cka([(x, y)], kernel="rbf"), abs=EXACT)
    x[6:] += 1e-8 * random(24, 50)  # as a network rounds: distances still of 0, as far as the width goes
    assert cka_of(x, y, kernel="rbf") == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_digits_survive_a_far_origin_and_large_numbers(kernel):
    x, y = related(16)
    found = cka_of(x, y, kernel=kernel)
    assert cka_of(x + 1e6, y, kernel=kernel) == pytest.approx(found, abs=1e-8)  # x itself is rounded by 1e-10
    assert cka_of(torch.tensor(1e30 * x, dtype=torch.float32), y, kernel=kernel) == pytest.approx(found, abs=1e-5)


def test_parts_of_a_layer_are_the_layer(monkeypatch):
    """Large layers are turned into float64 in parts."""
    x, y = random(8, 5, 7, 3), random(8, 11, seed=1)
    whole = cka_of(x, y)
    monkeypatch.setattr(hsic, "N_ELEMENTS", 8 * 4)
    assert cka_of(x, y) == pytest.approx(whole, abs=EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.complex64])
def test_every_dtype_is_computed_in_float64(dtype):
    x, y = (torch.tensor(10 * random(9, 5, seed=seed)).to(dtype) for seed in (0, 1))
    before = x.clone()
    wide = [torch.view_as_real(z) if z.is_complex() else z for z in (x, y)]
    expected = printed_cka([tuple(z.to(torch.float64).numpy() for z in wide)])
    assert cka_of(x, y) == pytest.approx(expected, abs=EXACT)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "x, y, how, said",
    [
        (random(3, 2), random(3, 2), {}, "the same 4 or more samples"),
        (random(1, 2), random(1, 2), {"is_debiased": False}, "the same 2 or more samples"),
        (random(5, 2), random(6, 2), {}, r"shapes \(5, 2\) and \(6, 2\)"),
        (random(5), random(5), {}, "with features"),
        (random(5, 2), np.full((5, 2), math.nan), {}, "y is not finite"),
        (np.array([[math.inf], [1], [2], [3]]), random(4, 2), {"kernel": "rbf"}, "x is not finite"),
        (random(5, 2), random(5, 2), {"kernel": "cosine"}, "unknown kernel 'cosine'; there are linear and rbf"),
        (random(5, 2), random(5, 2), {"kernel": "rbf", "bandwidth": 0.0}, "bandwidth must be .* above 0; got 0.0"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_line(x, y, how, said):
    with pytest.raises(SimilarityError, match=said) as caught:
        cka_of(x, y, **how)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_call_of_a_layer_is_a_layer(kernel):
    model, x = seeded(Reused), inputs(40)
    found = cka(model, [x], kernel=kernel)
    assert found.layers == found.other_layers == NAMES
    outputs = reused_outputs(model, x)
    expected = [[cka_of(ours, theirs, kernel=kernel) for theirs in outputs] for ours in outputs]
    np.testing.assert_allclose(found.map, expected, atol=EXACT)
    np.testing.assert_allclose(found.map.diagonal(), 1.0, atol=EXACT)
    assert np.isnan(found.standard_error).all()  # one batch does not know its error
    assert (found.kernel, found.bandwidth) == (kernel, {"linear": None, "rbf": 0.8}[kernel])


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_short_last_batch_counts_by_its_samples(kernel):
    model, x = seeded(Reused), inputs(3 * 16 + 5)
    found = cka(model, x.split(16), kernel=kernel)
    parts = [[z.numpy().astype(float) for z in reused_outputs(model, batch)] for batch in x.split(16)]
    expected = [[printed_cka([(p[i], p[j]) for p in parts], kernel=kernel) for j in range(7)] for i in range(7)]
    np.testing.assert_allclose(found.map, expected, atol=EXACT)
    assert (found.batch_sizes, found.n_batches, found.n_samples, found.n_left_out) == ((16, 16, 16, 5), 4, 53, 0)


def test_fewer_than_four_samples_are_left_out_and_counted():
    model, x = seeded(Reused), inputs(16 + 3)
    found = cka(model, [x[:16], x[16:], x[:0]])
    np.testing.assert_array_equal(found.map, cka(model, [x[:16]]).map)
    assert (found.batch_sizes, found.n_left_out) == ((16,), 3)
    assert np.isfinite(cka(model, [x[:4]]).map).all()
    with pytest.raises(SimilarityError, match=r"at least 4 samples; the largest .* all have 6"):
        cka(model, x[:6].split(3))
    with pytest.raises(SimilarityError, match="at least 4 samples; there is none"):
        cka(model, [])


def linear_layers(seed: int) -> tuple[nn.Sequential, float]:
    """Two linear layers, and their CKA for inputs N(0, 1): |Sxy|² / |Sxx| |Syy| in covariances of outputs."""
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)), seed)
    a = model[0].weight.detach().double()
    b = model[1].weight.detach().double() @ a
    return model, float((a @ b.T).square().sum() / ((a @ a.T).norm() * (b @ b.T).norm()))


@pytest.mark.parametrize(
    "sizes", [[24] * 12, [24] * 40 + [7], [60] * 6 + [10] * 9], ids=["few", "more than groups", "unequal"]
)
def test_the_standard_error_is_the_error(sizes):
    """Over draws of the data, the closed form is met in the mean, and the scatter is as large as is said."""
    model, exact = linear_layers(seed=1)
    n_draws = 100
    found = [cka(model, inputs(sum(sizes), seed=seed).split(sizes)) for seed in range(n_draws)]
    maps, errors = (
        np.array(values)[:, 0, 1] for values in zip(*((s.map, s.standard_error) for s in found), strict=True)
    )
    scatter = maps.std(ddof=1)
    assert abs(maps.mean() - exact) < 3 * scatter / math.sqrt(n_draws)
    # A scatter of 100 draws is known to 7 %, and errors of few batches are about a tenth too small.
    assert 0.78 < errors.mean() / scatter < 1.2
    assert found[0].standard_error[0, 0] < EXACT


@pytest.mark.parametrize("n_batches, n_groups", [(2, 2), (5, 5), (64, 32)])
def test_the_standard_error_is_that_of_the_jackknife(n_batches, n_groups):
    """As it is printed for groups of one size: each left out in turn."""
    model, _ = linear_layers(seed=1)
    batches = list(inputs(8 * n_batches).split(8))
    without = [
        cka(model, [batch for idx, batch in enumerate(batches) if idx % n_groups != left_out]).map
        for left_out in range(n_groups)
    ]
    squares = np.square(without - np.mean(without, axis=0)).sum(axis=0)
    expected = np.sqrt((n_groups - 1) / n_groups * squares)
    np.testing.assert_allclose(cka(model, batches).standard_error, expected, atol=EXACT)


@pytest.mark.parametrize("kernel", KERNELS)
def test_batches_agree_with_the_full_batch_within_the_standard_error(kernel):
    model, deviations = seeded(Reused), []
    for seed in range(20):
        x = inputs(12 * 20 + 9, seed=seed)
        found, whole = (cka(model, x.split(size), kernel=kernel) for size in (20, len(x)))
        differs = found.map < 0.999  # some layers here only shift and scale: they are the same but for rounding
        deviations.append(((found.map - whole.map) / found.standard_error)[differs])
    # Both have seen the same samples, so they differ by less than either does from the truth; but by something.
    assert 0.2 < np.sqrt(np.mean(np.square(deviations))) < 1.0
    assert np.abs(deviations).max() < 4.0
