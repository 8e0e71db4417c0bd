"""Which atom belongs to which system, and the sums and maxima over the atoms of a system.

This is all that the relaxation rule needs to know about arrays beyond their operators: it makes one body of it serve
numpy, torch (on a GPU too) and the ranks of an MPI program. Sums run over the atoms of one system in their order,
whatever else is in the batch, so a system's numbers do not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any, Literal

import numpy as np

Array = Any  # numpy.ndarray or torch.Tensor

Reduce = Callable[[Array, Literal["sum", "max"]], Array]


def namespace(array: Array) -> Any:
    """Return the module whose arrays these are: `numpy` or `torch`.

    Raises:
        TypeError: They are neither.
    """
    if isinstance(array, np.ndarray):
        return np
    if type(array).__module__.split(".")[0] == "torch" or hasattr(array, "new_zeros"):
        import torch

        return torch
    raise TypeError(f"Invalid array: {type(array).__name__}; allowed are numpy arrays and torch tensors")


class Systems:
    """The systems of a batch.

    Args:
        system_idx: (n_atoms,) integers, ascending: the system of each atom, from 0 on, none left out.
        reduce: Called with the (n_systems, k) sums or maxima over the atoms at hand and `"sum"` or `"max"`; returns
            those over all atoms. For programs whose atoms are spread over processes (an MPI allreduce). Such a
            process may hold no atom of a system: then `n_systems` is needed.
        n_systems: How many systems; by default the last index plus one.

    Raises:
        ValueError: The indices descend, or a system has no atom.

    Example:
        >>> import numpy as np
        >>> systems = Systems(np.array([0, 0, 1]))
        >>> systems.sum(np.array([[1.0], [2.0], [4.0]])).ravel().tolist()
        [3.0, 4.0]
    """

    def __init__(self, system_idx: Array, *, reduce: Reduce | None = None, n_systems: int | None = None) -> None:
        self.xp = namespace(system_idx)
        self.idx = system_idx
        counts = np.bincount(to_numpy(system_idx), minlength=n_systems or 0)
        self.n_systems = len(counts)
        if n_systems is not None and self.n_systems > n_systems:
            raise ValueError(f"Invalid system_idx: {self.n_systems - 1}; n_systems is {n_systems}")
        if (np.diff(to_numpy(system_idx)) < 0).any():
            raise ValueError("Invalid system_idx: it must ascend, the atoms of a system beside each other")
        empty = np.flatnonzero(counts == 0)
        if len(empty) and reduce is None:
            raise ValueError(f"Invalid system_idx: system {empty[0]} has no atom")
        self.counts = counts
        self._reduce = reduce
        self._present = np.flatnonzero(counts)  # systems with an atom here: all, unless processes share the atoms
        self._starts = (np.cumsum(counts) - counts)[self._present]
        if self.xp is not np:
            self._lengths = self.xp.as_tensor(counts, device=system_idx.device)

    def sum(self, values: Array) -> Array:
        """Sum (n_atoms, k) values over the atoms of each system: (n_systems, k)."""
        if self.xp is np:
            total = np.zeros((self.n_systems, values.shape[1]), values.dtype)
            if len(self._starts):
                total[self._present] = np.add.reduceat(values, self._starts, axis=0)
        else:
            total = self.xp.segment_reduce(values, "sum", lengths=self._lengths, axis=0)
        return self._reduce(total, "sum") if self._reduce else total

    def max(self, values: Array) -> Array:
        """Return the largest of (n_atoms,) values >= 0 in each system: (n_systems,)."""
        if self.xp is np:
            largest = np.zeros(self.n_systems, values.dtype)
            if len(self._starts):
                largest[self._present] = np.maximum.reduceat(values, self._starts)
        else:
            largest = self.xp.segment_reduce(values, "max", lengths=self._lengths, axis=0, initial=0.0)
        return self._reduce(largest, "max") if self._reduce else largest

    def inner(self, pairs: list[tuple[Array, Array]]) -> list[Array]:
        """Return the inner product of each pair of (n_atoms, n_dims) arrays in each system: (n_systems,) each."""
        sums = self.sum(self.xp.stack([(one * other).sum(-1) for one, other in pairs], -1))
        return [sums[:, i] for i in range(len(pairs))]

    def dots(self, tables: tuple[Array, ...], vectors: tuple[Array, ...]) -> list[Array]:
        """Return the inner products of the columns of tables with vectors, in one sum over all processes.

        Args:
            tables: Of (n_atoms, memory, n_dims).
            vectors: Of (n_atoms, n_dims).

        Returns:
            Of (n_systems, memory): those of the first vector with every table, then those of the second.
        """
        memory = tables[0].shape[1]
        every = self.sum(
            self.xp.concatenate([(table @ vector[:, :, None])[:, :, 0] for vector in vectors for table in tables], -1)
        )
        return [every[:, i : i + memory] for i in range(0, every.shape[1], memory)]

    def combine(self, table: Array, weights: Array) -> Array:
        """Sum the columns of (n_atoms, memory, n_dims) with weights (n_systems, memory): (n_atoms, n_dims)."""
        return (self.spread(weights)[:, None, :] @ table)[:, 0, :]

    def store(self, table: Array, slots: Array, vector: Array, is_stored: Array) -> None:
        """Write (n_atoms, n_dims) into one column of a table, `slots` (n_systems,), of the systems that store one."""
        atoms = self.spread(is_stored)
        table[atoms, self.spread(slots)[atoms]] = vector[atoms]

    def longest(self, vectors: Array) -> Array:
        """Return the largest Euclidean norm of the rows of (n_atoms, n_dims) in each system: (n_systems,)."""
        return self.max(row_norms(vectors))

    def spread(self, values: Array) -> Array:
        """Give every atom the value of its system: (n_systems, ...) to (n_atoms, ...)."""
        return values[self.idx]

    def select(self, keep: np.ndarray) -> tuple[Systems, Array]:
        """Return the systems where `keep` (n_systems,) is true, numbered anew, and the indices of their atoms."""
        atoms = np.flatnonzero(np.repeat(keep, self.counts))
        idx = np.repeat(np.arange(keep.sum()), self.counts[keep])
        if self.xp is not np:
            atoms, idx = (self.xp.as_tensor(array, device=self.idx.device) for array in (atoms, idx))
        return Systems(idx, reduce=self._reduce, n_systems=int(keep.sum())), atoms


class SharedSystem(Systems):
    """One system whose atoms may be spread over processes; numpy only.

    Its tables are (n_atoms, memory, n_dims) views of arrays that are stored as (n_atoms, n_dims, memory): then every
    operation on them is one product of a matrix and a vector.

    Args:
        n_atoms: Atoms of this process.
        reduce: As for `Systems`; None: all are here.
    """

    def __init__(self, n_atoms: int, *, reduce: Reduce | None = None) -> None:
        self.xp, self.n_systems, self.n_atoms, self._reduce = np, 1, n_atoms, reduce

    def _over_all(self, values: np.ndarray, how: Literal["sum", "max"]) -> np.ndarray:
        return self._reduce(values, how) if self._reduce else values

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum (n_atoms, k) values: (1, k)."""
        return self._over_all(values.sum(0, keepdims=True), "sum")

    def max(self, values: np.ndarray) -> np.ndarray:
        """Return the largest of (n_atoms,) values >= 0: (1,)."""
        return self._over_all(values.max(keepdims=True, initial=0.0), "max")

    def inner(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """Return the inner product of each pair of (n_atoms, n_dims) arrays: (1,) each."""
        sums = self._over_all(np.array([[np.vdot(one, other) for one, other in pairs]]), "sum")
        return [sums[:, i] for i in range(len(pairs))]

    def dots(self, tables: tuple[np.ndarray, ...], vectors: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        """Return the inner products of the columns of tables with vectors, as `Systems.dots` does."""
        rows = np.array([vector.ravel() for vector in vectors])
        every = np.concatenate([rows @ _matrix(table) for table in tables], -1)  # (n_vectors, n_tables * memory)
        every = self._over_all(every.reshape(1, -1), "sum")
        memory = tables[0].shape[1]
        return [every[:, i : i + memory] for i in range(0, every.shape[1], memory)]

    def combine(self, table: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Sum the columns of (n_atoms, memory, n_dims) with weights (1, memory): (n_atoms, n_dims)."""
        return (_matrix(table) @ weights[0]).reshape(self.n_atoms, table.shape[2])

    def store(self, table: np.ndarray, slots: np.ndarray, vector: np.ndarray, is_stored: np.ndarray) -> None:
        """Write (n_atoms, n_dims) into column `slots[0]` of a table, if `is_stored[0]`."""
        if is_stored[0]:
            table[:, slots[0]] = vector

    def longest(self, vectors: np.ndarray) -> np.ndarray:
        """Return the largest Euclidean norm of the rows of (n_atoms, n_dims): (1,)."""
        return np.sqrt(self.max(np.einsum("ij,ij->i", vectors, vectors)))

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Give every atom the value of the system: (1, ...) to (n_atoms, ...)."""
        return np.broadcast_to(values, (self.n_atoms, *values.shape[1:]))


def _matrix(table: np.ndarray) -> np.ndarray:
    """Return a table (n_atoms, memory, n_dims) as the matrix (n_atoms * n_dims, memory) that it is stored as."""
    return table.swapaxes(1, 2).reshape(-1, table.shape[1])


def row_norms(vectors: Array) -> Array:
    """Return the Euclidean norm of each row of (n_atoms, n_dims): (n_atoms,)."""
    return namespace(vectors).sqrt((vectors * vectors).sum(-1))


def to_numpy(array: Array) -> np.ndarray:
    """Return the array as a numpy array; of a torch tensor, its values."""
    return array.detach().cpu().numpy() if hasattr(array, "detach") else np.asarray(array)


def is_number(value: Any) -> bool:
    """Return whether this is a real number."""
    return isinstance(value, Real) and not isinstance(value, bool)
