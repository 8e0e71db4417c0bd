"""How sharp a minimum is: eigenvalues and trace of the Hessian, of which only products with vectors are computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.attention import SDPBackend, sdpa_kernel

from frankenstein.analysis.landscape.errors import LandscapeError
from frankenstein.analysis.landscape.layout import unwrapped
from frankenstein.analysis.landscape.moving import kept

# Of the eigenvalues: what products in that precision can still tell apart.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
ROUNDING = 1e-3  # of a gradient, computed twice: a GPU adds up in any order
CURE = "pip install '.[analysis]' (in the checkout)"


@dataclass(frozen=True)
class Sharpness:
    """The curvature of a loss at a point.

    Attributes:
        largest: Eigenvalues of the Hessian, the largest first.
        smallest: The other end of the spectrum, the smallest first: negative where it is a saddle.
        trace: The sum of all eigenvalues, an estimate.
        trace_error: Its standard error.
        n_samples: Random vectors that the trace is the mean over.
        seed: Of these vectors, and of where the eigenvalues' iteration starts.
    """

    largest: list[float]
    smallest: list[float]
    trace: float
    trace_error: float
    n_samples: int
    seed: int


def sharpness(
    model: Module,
    loss: Module,
    batches: Iterable[tuple[Any, Tensor]],
    *,
    n_largest: int = 5,
    n_smallest: int = 1,
    n_samples: int = 30,
    tolerance: float | None = None,
    seed: int = 0,
) -> Sharpness:
    """Return eigenvalues and trace of the Hessian of the mean (or summed) loss over the batches.

    The parameters that require gradients are its variables; the model is in evaluation mode meanwhile, so that dropout
    is off and BatchNorm uses its running statistics, and as it was afterwards.

    The trace is Hutchinson's estimate by curvlinops: the mean of z'Hz over vectors of random signs. Its samples are
    independent, so their scatter is the standard error; Hutch++ takes as many products in one sample, which says
    nothing of its error, and as many vectors in memory. Eigenvalues are those of Lanczos' method (`eigsh`), which
    finds the ends of the spectrum first, and takes the longer the closer an eigenvalue lies to its neighbours: tens of
    products for the largest of a network, often hundreds for the smallest.

    Args:
        model: Takes the inputs of a batch as its one argument.
        loss: Of outputs and targets, with `reduction` "mean" or "sum": `torch.nn.CrossEntropyLoss()`.
        batches: Pairs of inputs and targets, the same each time they are gone through.
        n_largest: Eigenvalues from the upper end, 1 or more.
        n_smallest: From the lower end.
        n_samples: Random vectors, 2 or more; the error falls with the square root.
        tolerance: Of the eigenvalues, relative; None is what the precision of the parameters allows: 1e-5 in float32,
            1e-10 in float64. To tell 10 from 11, 1e-2 is enough and takes a fraction of the time.
        seed: Of random numbers; torch's own are not touched.

    Raises:
        LandscapeError: There are not so many eigenvalues, the loss has no such reduction, the Hessian is not finite, or
            model or data are not the same when asked twice.
        ImportError: curvlinops or scipy is not installed.
    """
    model = unwrapped(model)
    parameters: list[Tensor] = [one for one in model.parameters() if one.requires_grad]
    n = sum(one.numel() for one in parameters)
    dtype = _check(loss, parameters, batches)
    _check_numbers(n, n_largest, n_smallest, n_samples)
    tolerance = _checked(tolerance, TOLERANCE[dtype])
    hessian_of, hutchinson_trace, eigsh = _libraries()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    # Fused attention has no second derivative, the one written out has.
    with torch.random.fork_rng(list(devices)), kept(model), sdpa_kernel(SDPBackend.MATH):
        torch.manual_seed(seed)
        model.eval()
        hessian = hessian_of(model, loss, parameters, batches, check_deterministic=False, batch_size_fn=_n_samples)
        _check_twice(hessian)
        samples = np.array([hutchinson_trace(hessian, num_matvecs=1).item() for _ in range(n_samples)])
        if not np.isfinite(samples).all():
            raise LandscapeError("the Hessian has a NaN or infinity; check the loss at these weights")
        start = np.random.default_rng(seed).standard_normal(n)
        solve: Callable[..., np.ndarray] = partial(eigsh, v0=start, tol=tolerance, return_eigenvectors=False)
        product = hessian.to_scipy(dtype=np.float64)
        if not product.matvec(start).any():  # of a loss that is linear, which the iteration cannot begin with
            solve = _zeros
        largest = sorted(solve(product, k=n_largest, which="LA").tolist(), reverse=True)
        smallest = sorted(solve(product, k=n_smallest, which="SA").tolist()) if n_smallest else []
    trace_error = samples.std(ddof=1) / math.sqrt(n_samples)
    return Sharpness(largest, smallest, float(samples.mean()), float(trace_error), n_samples, seed)


def _zeros(product: Any, k: int, which: str) -> np.ndarray:
    return np.zeros(k)


def _n_samples(inputs: Any) -> int:
    """Return how many samples are in the inputs of a batch: a tensor, or tensors by name."""
    return len(inputs if isinstance(inputs, Tensor) else next(iter(inputs.values())))


def _check_twice(hessian: Any) -> None:
    """Check that the gradient is finite, and the same when it is computed again."""
    once, again = hessian.gradient(), hessian.gradient()
    size = torch.stack([one.norm() for one in once]).norm()
    if not torch.isfinite(size):
        raise LandscapeError("the gradient has a NaN or infinity; check the loss at these weights")
    if torch.stack([(a - b).norm() for a, b in zip(once, again, strict=True)]).norm() > ROUNDING * size:
        raise LandscapeError(
            "the gradient is not the same when it is computed twice; give batches in memory, without augmentation, and "
            "a model whose evaluation is not random"
        )


def _check(loss: Module, parameters: list[Tensor], batches: Iterable[Any]) -> torch.dtype:
    """Check what the Hessian is made of; return the dtype of all parameters."""
    if getattr(loss, "reduction", None) not in ("mean", "sum"):
        raise LandscapeError(
            f"the loss {type(loss).__name__} has no `reduction` of 'mean' or 'sum'; use one of torch.nn, or a module "
            "with that attribute"
        )
    if iter(batches) is batches or next(iter(batches), None) is None:
        raise LandscapeError("batches must be a collection that is gone through many times, such as a list, not empty")
    dtypes = {one.dtype for one in parameters}
    if len(dtypes) != 1 or not dtypes <= TOLERANCE.keys():
        has = ", ".join(sorted(map(str, dtypes))) or "none"
        raise LandscapeError(
            f"trained parameters must all be float32 or all float64, and are {has}; use model.double()"
        )
    return dtypes.pop()


def _check_numbers(n: int, n_largest: int, n_smallest: int, n_samples: int) -> None:
    if not (1 <= n_largest < n and 0 <= n_smallest < n):
        raise LandscapeError(
            f"{n_largest} largest and {n_smallest} smallest eigenvalues were asked for; of {n} trained parameters "
            f"there are 1 to {n - 1} and 0 to {n - 1}"
        )
    if n_samples < 2:
        raise LandscapeError(f"{n_samples} samples have no standard error; take 2 or more")


def _checked(tolerance: float | None, finest: float) -> float:
    if tolerance is None:
        return finest
    if not finest <= tolerance < 1:
        raise LandscapeError(
            f"tolerance is {tolerance}; it must be at least {finest:g}, of that precision, and below 1"
        )
    return tolerance


def _libraries() -> tuple[Any, Any, Any]:
    """Return the Hessian, curvlinops' trace and scipy's eigenvalues."""
    try:
        from scipy.sparse.linalg import eigsh

        from frankenstein.analysis.landscape.hessian import Hessian, hutchinson_trace
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in ("curvlinops", "scipy"):
            raise
        raise ImportError(f"sharpness needs {name}; {CURE}", name=name) from error
    return Hessian, hutchinson_trace, eigsh
