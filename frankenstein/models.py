"""Machine-learned potentials that compute many structures in one forward pass, for relaxing them as a batch.

A batched model is called with a list of `ase.Atoms` and returns one `Prediction` for each, or the exception that says
why there is none: one bad structure does not spoil the others. Weights come with the packages; nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["BatchedModel", "Prediction", "chgnet", "sevennet"]

Graph = Any  # of the library: a structure with its neighbour lists

NOT_IN_MPTRJ = {"Po", "At", "Rn", "Fr", "Ra"}
"""Up to Pu, the elements without a structure in MPtrj, the training set: CHGNet gives them untrained numbers."""

VOIGT = ((0, 5, 4), (5, 1, 3), (4, 3, 2))
"""Where xx, yy, zz, yz, xz, xy stand in a 3 x 3 matrix."""

SEVENNET_TO_VOIGT = (0, 1, 2, 4, 5, 3)
"""7net orders the stress xx, yy, zz, xy, yz, xz."""

CPU_BATCH_ATOMS, GPU_BATCH_ATOMS = 64, 1_000
"""A processor is busy with one structure already, and CHGNet takes about 11 MB for an atom of a crystal."""


class Prediction(NamedTuple):
    """What a model says of one structure.

    Attributes:
        energy: In eV.
        forces: (n_atoms, 3) float64, in eV/Angstrom.
        stress: (3, 3) float64, in eV/Angstrom^3, positive under tension as in ASE; None without a cell.
    """

    energy: float
    forces: np.ndarray
    stress: np.ndarray | None


@dataclass(frozen=True)
class BatchedModel:
    """A model with which structures are computed together; `chgnet` and `sevennet` make one.

    Attributes:
        name: Of the model.
        version: Of its weights and its package.
        elements: Symbols that it was trained on. None: any.
        device: Where it computes.
        batch_atoms: Most atoms of one forward pass; a longer list takes several.
        to_graph: Turns a structure into what `forward` takes. ValueError: this structure cannot be computed.
        forward: One forward pass over all graphs.
    """

    name: str
    version: str
    elements: frozenset[str] | None
    device: str
    batch_atoms: int
    to_graph: Callable[[Atoms], Graph]
    forward: Callable[[list[Graph]], list[Prediction]]

    def __call__(self, structures: Sequence[Atoms]) -> list[Prediction | Exception]:
        """Compute the structures in as few forward passes as `batch_atoms` allows.

        A batch that fails as a whole, for want of memory say, is halved until it passes.

        Args:
            structures: Never modified. Their own calculators are not used.

        Returns:
            For each structure its prediction, or an exception whose message says in one line why there is none.
        """
        answers: dict[int, Prediction | Exception] = {}
        graphs: list[tuple[int, int, Graph]] = []  # number, atoms, graph
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the packages; what matters to the user is in the answers
            for number, atoms in enumerate(structures):
                try:
                    graphs.append((number, len(atoms), self._graph(atoms)))
                except Exception as error:
                    answers[number] = error
            for batch in _batches(graphs, self.batch_atoms):
                predictions = self._forward([graph for _, _, graph in batch])
                for (number, _, _), prediction in zip(batch, predictions, strict=True):
                    answers[number] = self._judged(prediction, structures[number])
        return [answers[number] for number in range(len(structures))]

    def _judged(self, answer: Prediction | Exception, atoms: Atoms) -> Prediction | Exception:
        if isinstance(answer, Prediction) and not np.isfinite([answer.energy, *answer.forces.flat]).all():
            answer = ValueError("its energy or a force is not finite; do atoms overlap?")
        if isinstance(answer, Exception):
            return ValueError(f"{self.name} cannot compute {atoms.get_chemical_formula()}: {_one_line(answer)}")
        return answer

    def _forward(self, graphs: list[Graph]) -> Sequence[Prediction | Exception]:
        """Compute a batch; where that fails, its halves, down to the graph that is at fault."""
        try:
            return self.forward(graphs)
        except Exception as error:
            if len(graphs) == 1:
                return [error]
        half = len(graphs) // 2
        return [*self._forward(graphs[:half]), *self._forward(graphs[half:])]

    def _graph(self, atoms: Atoms) -> Graph:
        formula = atoms.get_chemical_formula()
        if len(atoms) == 0:
            raise ValueError(f"{self.name} cannot compute a structure without atoms")
        if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
            raise ValueError(f"{self.name} cannot compute {formula}: a position or the cell is not finite")
        if self.elements is not None and (unknown := sorted(set(atoms.symbols) - self.elements)):
            raise ValueError(f"{self.name} cannot compute {formula}: it was not trained on {', '.join(unknown)}")
        try:
            return self.to_graph(atoms)
        except Exception as error:
            raise ValueError(f"{self.name} cannot compute {formula}: {_one_line(error)}") from error


def chgnet(device: str = "cpu", batch_atoms: int | None = None) -> BatchedModel:
    """Return CHGNet 0.3.0, the weights of the package `chgnet`: any inorganic crystal, energies as in MPtrj.

    It computes in float32, so a structure's numbers may depend on its batch in the last bits. Measured on a processor
    with 24 rattled, strained crystals (forces up to 7 eV/Angstrom) in random batches: forces were bitwise those of the
    structure alone, energies within 2.4e-7 eV/atom, stresses within 1.7e-7 eV/Angstrom^3.

    Args:
        device: "cpu", "cuda" or "mps".
        batch_atoms: Most atoms of one forward pass. None: 64 on a processor, 1,000 elsewhere.

    Returns:
        The model. Structures need a cell, and every atom a neighbour within 6 Angstrom.

    Raises:
        ImportError: The package is not installed.
    """
    with _quiet():
        library = _load_package("chgnet.model.model", package="chgnet", extra="chgnet")
        adaptor = importlib.import_module("pymatgen.io.ase").AseAtomsAdaptor
        model = library.CHGNet.load(model_name="0.3.0", use_device=device, verbose=False)
    model.graph_converter.set_isolated_atom_response("ignore")
    gpa = importlib.import_module("ase.units").GPa
    n_known = model.composition_model.fc.weight.shape[-1]

    def to_graph(atoms: Atoms) -> Graph:
        if atoms.cell.rank < 3:
            raise ValueError("it has no cell; give it one with some vacuum")
        # elements, positions and cell only: what else a structure carries can trip its conversion
        plain = type(atoms)(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        graph = model.graph_converter(adaptor.get_structure(plain))
        n_isolated = len(atoms) - len(set(graph.atom_graph.reshape(-1, 2)[:, 0].tolist()))
        if n_isolated:
            raise ValueError(
                f"{n_isolated} of {len(atoms)} atoms without a neighbour within {graph.atom_graph_cutoff} A"
            )
        return graph

    def forward(graphs: list[Graph]) -> list[Prediction]:
        found = model.predict_graph(graphs, task="efs", batch_size=len(graphs))
        return [
            Prediction(
                energy=float(one["e"]) * len(one["f"]),
                forces=one["f"].astype(float),
                stress=one["s"].astype(float) * gpa,
            )
            for one in ([found] if len(graphs) == 1 else found)
        ]

    return BatchedModel(
        name="chgnet",
        version=f"0.3.0 (chgnet {version('chgnet')})",
        elements=frozenset(_symbols(range(1, n_known + 1))) - NOT_IN_MPTRJ,
        device=device,
        batch_atoms=_batch_atoms(batch_atoms, device),
        to_graph=to_graph,
        forward=forward,
    )


def sevennet(device: str = "cpu", batch_atoms: int | None = None) -> BatchedModel:
    """Return 7net-0, the weights of the package `sevenn`: any inorganic crystal or molecule, energies as in MPtrj.

    It computes in float32, so a structure's numbers may depend on its batch in the last bits. Measured on a processor
    with 24 rattled, strained crystals (forces up to 8 eV/Angstrom) in random batches: forces within 1e-6 eV/Angstrom of
    those of the structure alone (bitwise the same with one thread), energies within 2.4e-7 eV/atom, stresses within
    4.5e-8 eV/Angstrom^3.

    Args:
        device: "cpu" or "cuda".
        batch_atoms: Most atoms of one forward pass. None: 64 on a processor, 1,000 elsewhere.

    Returns:
        The model. Some atom of a structure needs a neighbour within 5 Angstrom.

    Raises:
        ImportError: The package is not installed.
    """
    with _quiet():
        graphs_of = _load_package("sevenn.train.dataload", package="sevenn", extra="sevennet")
        data = importlib.import_module("sevenn.atom_graph_data")
        geometric = importlib.import_module("torch_geometric.data")
        keys = importlib.import_module("sevenn._keys")
        model = importlib.import_module("sevenn.util").load_checkpoint("7net-0").build_model()
    model.set_is_batch_data(True)
    model.to(device)
    model.eval()

    def to_graph(atoms: Atoms) -> Graph:
        graph = graphs_of.unlabeled_atoms_to_graph(atoms, model.cutoff, with_shift=False)
        if graph[keys.EDGE_IDX].shape[1] == 0:
            raise ValueError(f"no atom has a neighbour within {model.cutoff:g} A")
        return data.AtomGraphData.from_numpy_dict(graph), atoms.cell.rank == 3

    def forward(graphs: list[Graph]) -> list[Prediction]:
        batch = geometric.Batch.from_data_list([graph for graph, _ in graphs]).to(device)
        output = model(batch)
        energies, forces, stresses = (
            output[key].detach().cpu().numpy().astype(float)
            for key in (keys.PRED_TOTAL_ENERGY, keys.PRED_FORCE, keys.PRED_STRESS)
        )
        ends = np.cumsum([len(graph[keys.ATOMIC_NUMBERS]) for graph, _ in graphs])[:-1]
        return [
            Prediction(float(energy), own, -stress[list(SEVENNET_TO_VOIGT)][np.array(VOIGT)] if has_cell else None)
            for energy, own, stress, (_, has_cell) in zip(
                energies.ravel(), np.split(forces, ends), stresses.reshape(-1, 6), graphs, strict=True
            )
        ]

    return BatchedModel(
        name="sevennet",
        version=f"7net-0 (sevenn {version('sevenn')})",
        elements=frozenset(_symbols(model.type_map)),
        device=device,
        batch_atoms=_batch_atoms(batch_atoms, device),
        to_graph=to_graph,
        forward=forward,
    )


def _batches(graphs: list[tuple[int, int, Graph]], batch_atoms: int) -> Iterator[list[tuple[int, int, Graph]]]:
    """Cut the list where the next structure would be one too many; one that is larger than a batch goes alone."""
    batch: list[tuple[int, int, Graph]] = []
    for entry in graphs:
        if batch and sum(n_atoms for _, n_atoms, _ in batch) + entry[1] > batch_atoms:
            yield batch
            batch = []
        batch.append(entry)
    if batch:
        yield batch


def _symbols(numbers: Any) -> list[str]:
    from ase.data import chemical_symbols

    return [chemical_symbols[int(number)] for number in numbers]


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _batch_atoms(batch_atoms: int | None, device: str) -> int:
    if batch_atoms is None:
        return CPU_BATCH_ATOMS if device == "cpu" else GPU_BATCH_ATOMS
    if not (isinstance(batch_atoms, int | np.integer) and batch_atoms >= 1):
        raise ValueError(f"Invalid batch_atoms: {batch_atoms!r}; allowed are whole numbers of at least 1 and None")
    return int(batch_atoms)


def _load_package(module: str, *, package: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"The package {package} is not here (no module {error.name}): pip install '.[{extra}]' (in the checkout)"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the packages print and warn of while they load: none of it is about the user's structures."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
