"""Which atom belongs to which system, and the sums and maxima over the atoms of a system.

This is all that the relaxation rule needs to know about arrays beyond their operators: it makes one body of it serve
numpy, torch (on a GPU too) and the ranks of an MPI program. What the rule does with every atom it hands over as
functions of rows, so that a large system can be gone through in pieces that fit into a processor's cache. Sums run over
the atoms of one system in their order, whatever else is in the batch, so a system's numbers do not depend on its
neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any, Literal

import numpy as np

Array = Any  # numpy.ndarray or torch.Tensor

Reduce = Callable[[Array, Literal["sum", "max"]], Array]
Products = Callable[..., list[tuple[Array, Array]]]  # of rows of some arrays

PIECE = 4096
"""Atoms of a shared system that are gone through at a time: two megabytes for a memory of 20 steps."""


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

    def inner(self, products: Products, arrays: tuple[Array, ...]) -> list[Array]:
        """Return the inner products, in each system, of the pairs that `products` makes of the arrays' rows.

        Args:
            products: Takes rows of the arrays; returns pairs of (n_rows, n_dims).
            arrays: Of (n_atoms, n_dims).

        Returns:
            Of (n_systems,), one for each pair.
        """
        sums = self.sum(self.xp.stack([(one * other).sum(-1) for one, other in products(*arrays)], -1))
        return [sums[:, i] for i in range(sums.shape[1])]

    def map(self, function: Callable[..., Array], arrays: tuple[Array, ...], out: Array) -> Array:
        """Return what a function makes of the rows of arrays (n_atoms, n_dims); `out` may be overwritten by it."""
        return function(*arrays)

    def store_and_dot(
        self,
        tables: tuple[Array, Array],
        slots: Array,
        is_stored: Array,
        pair: Callable[..., tuple[Array, Array]],
        arrays: tuple[Array, ...],
        vector: Array,
    ) -> list[Array]:
        """Store a new column in each of two tables, and take inner products of all columns, in one sum over processes.

        Args:
            tables: Of (n_atoms, memory, n_dims).
            slots: (n_systems,) the place of the new columns,
            is_stored: (n_systems,) in systems that have some.
            pair: Takes rows of the arrays; returns those of the new columns, (n_rows, n_dims) each.
            arrays: Of (n_atoms, n_dims).
            vector: (n_atoms, n_dims).

        Returns:
            Of (n_systems, memory): the products of each table with the second table's new column, then with the vector.
        """
        new, atoms = pair(*arrays), self.spread(is_stored)
        for table, column in zip(tables, new, strict=True):
            table[atoms, self.spread(slots)[atoms]] = column[atoms]
        vectors = (new[1], vector)
        every = self.sum(self.xp.concatenate([(t @ v[:, :, None])[:, :, 0] for v in vectors for t in tables], -1))
        return _split(every, tables[0].shape[1])

    def combine(
        self, scale: Array, vector: Array, tables: tuple[Array, ...], weights: tuple[Array, ...], out: Array
    ) -> Array:
        """Return scale (n_systems,) times vector (n_atoms, n_dims) plus the columns of tables times weights.

        Args:
            scale: (n_systems,).
            vector: (n_atoms, n_dims).
            tables: Of (n_atoms, memory, n_dims).
            weights: Of (n_systems, memory), one for each table.
            out: (n_atoms, n_dims), may be overwritten by the result.
        """
        total = self.spread(scale)[:, None] * vector
        for table, weight in zip(tables, weights, strict=True):
            total = total + (self.spread(weight)[:, None, :] @ table)[:, 0, :]
        return total

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
    operation on them is a product of a matrix and a vector. The atoms are gone through in pieces, so that what a pass
    makes of a piece is used again before it has left the processor's cache.

    Args:
        n_atoms: Atoms of this process.
        reduce: As for `Systems`; None: all are here.
    """

    def __init__(self, n_atoms: int, *, reduce: Reduce | None = None) -> None:
        self.xp, self.n_systems, self.n_atoms, self._reduce = np, 1, n_atoms, reduce

    def _pieces(self) -> Iterator[slice]:
        return (slice(start, start + PIECE) for start in range(0, self.n_atoms, PIECE))

    def _over_all(self, values: np.ndarray, how: Literal["sum", "max"]) -> np.ndarray:
        return self._reduce(values, how) if self._reduce else values

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum (n_atoms, k) values: (1, k)."""
        return self._over_all(values.sum(0, keepdims=True), "sum")

    def max(self, values: np.ndarray) -> np.ndarray:
        """Return the largest of (n_atoms,) values >= 0: (1,)."""
        return self._over_all(values.max(keepdims=True, initial=0.0), "max")

    def inner(self, products: Products, arrays: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        """Return inner products, (1,) each, as `Systems.inner` does."""
        nowhere = products(*(array[:0] for array in arrays))
        total = np.zeros((1, len(nowhere)))
        for at in self._pieces():
            total += [[np.vdot(one, other) for one, other in products(*(array[at] for array in arrays))]]
        total = self._over_all(total, "sum")
        return [total[:, i] for i in range(total.shape[1])]

    def map(self, function: Callable[..., np.ndarray], arrays: tuple[np.ndarray, ...], out: np.ndarray) -> np.ndarray:
        """Return what a function makes of the rows of arrays, in `out`."""
        for at in self._pieces():
            out[at] = function(*(array[at] for array in arrays))
        return out

    def store_and_dot(
        self,
        tables: tuple[np.ndarray, np.ndarray],
        slots: np.ndarray,
        is_stored: np.ndarray,
        pair: Callable[..., tuple[np.ndarray, np.ndarray]],
        arrays: tuple[np.ndarray, ...],
        vector: np.ndarray,
    ) -> list[np.ndarray]:
        """Store a new column in each of two tables and take inner products, as `Systems.store_and_dot` does."""
        memory = tables[0].shape[1]
        every = np.zeros((2, 2, memory))  # by vector, by table
        for at in self._pieces():
            new = pair(*(array[at] for array in arrays))
            for i, (table, column) in enumerate(zip(tables, new, strict=True)):
                piece = table[at]
                if is_stored[0]:
                    piece[:, slots[0]] = column
                for j, other in enumerate((new[1], vector[at])):
                    every[j, i] += other.ravel() @ _matrix(piece)
        return _split(self._over_all(every.reshape(1, -1), "sum"), memory)

    def combine(
        self,
        scale: np.ndarray,
        vector: np.ndarray,
        tables: tuple[np.ndarray, ...],
        weights: tuple[np.ndarray, ...],
        out: np.ndarray,
    ) -> np.ndarray:
        """Return the sum of a vector and columns of tables, in `out`."""
        for at in self._pieces():
            piece = scale[0] * vector[at]
            for table, weight in zip(tables, weights, strict=True):
                piece += (_matrix(table[at]) @ weight[0]).reshape(piece.shape)
            out[at] = piece
        return out

    def longest(self, vectors: np.ndarray) -> np.ndarray:
        """Return the largest Euclidean norm of the rows of (n_atoms, n_dims): (1,)."""
        largest = np.zeros(1)
        for at in self._pieces():
            squares = vectors[at] * vectors[at]
            square = squares[:, 0].copy()
            for column in squares.T[1:]:  # several times faster than a sum along so short an axis
                square += column
            np.maximum(largest, square.max(), out=largest)
        return np.sqrt(self._over_all(largest, "max"))

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Return (1, ...) values as they are: they are those of every atom."""
        return values


def _split(values: Array, width: int) -> list[Array]:
    """Cut (n_systems, n * width) into n arrays."""
    return [values[:, i : i + width] for i in range(0, values.shape[1], width)]


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
