"""Structures from files: everything that ASE reads, all frames, each with a name that stays the same."""

from __future__ import annotations

import gzip
import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.io import iread
from ase.io.formats import UnknownFileTypeError
from ase.neighborlist import neighbor_list

SAME_PLACE = 1e-3  # Angstrom: atoms that are closer have no direction in which to push each other apart
N_NAMED = 3  # so many pairs of overlapping atoms are named
PACKED = (".gz", ".bz2", ".xz")

Say = Callable[[str], None]


class Structure(NamedTuple):
    """A structure as it was read.

    Attributes:
        name: File and frame number; no other structure of the run has it.
        atoms: Without a calculator.
        file: Where it stands.
        frame: Its number there.
    """

    name: str
    atoms: Atoms
    file: Path
    frame: int


class Unread(NamedTuple):
    """What could not be read.

    Attributes:
        name: Of the frame; of a whole file, its path.
        file: Which.
        frame: Its number in the file, which was not read any further. None: there is nothing of the file.
        message: Why, in a line.
    """

    name: str
    file: Path
    frame: int | None
    message: str


class SliceError(Exception):
    """A slice of frames cannot be understood; the message is one line for the user."""


def frame_slice(text: str) -> slice:
    """Return what `:`, `5`, `-1`, `10:20` or `::10` says of frames.

    Raises:
        SliceError: It says something else.

    Examples:
        >>> frame_slice("::10"), frame_slice("-1")
        (slice(None, None, 10), slice(-1, None, None))
    """
    if not re.fullmatch(r"-?\d+|(-?\d+)?:(-?\d+)?(:(-?[1-9]\d*)?)?", text):
        raise SliceError(f"{text!r} says no frames; write a number or a slice, as 0, -1, :10 or ::10")
    if ":" in text:
        return slice(*(int(part) if part else None for part in text.split(":")))
    number = int(text)
    return slice(number, number + 1 or None)


def read(
    files: Sequence[Path], frames: slice, complain: Say, known: Mapping[str, str] | None = None
) -> list[Structure | Unread]:
    """Return the structures of all files, in order, and in their places what could not be read.

    Args:
        files: What ASE reads, compressed or not; a file that is named twice is read once.
        frames: Of each file.
        complain: Called with one line for each file, or rest of a file, that cannot be read.
        known: Names that files have from an earlier run.
    """
    files = unique(files)
    found: list[Structure | Unread] = []
    for path, stem in zip(files, stems(files, known), strict=True):
        images, why = _images(path, complain)
        numbers = range(len(images))[frames]
        if images and not numbers and not why:
            why = f"it has {plural(len(images), 'frame')}, and --index chooses none"
        for number in numbers:
            atoms = images[number]
            atoms.calc = None
            found.append(Structure(f"{stem}-{number:04d}", atoms, path, number))
        if why:
            complain(f"{path}: {why}")
            frame = len(images) if numbers else None
            found.append(Unread(str(path) if frame is None else f"{stem}-{frame:04d}", path, frame, why))
    return found


def unique(files: Iterable[Path]) -> list[Path]:
    """Return each file once."""
    return list({path.resolve(): path for path in files}.values())


def plural(n: int, what: str) -> str:
    """Return so many of them.

    Examples:
        >>> plural(1, "frame"), plural(1200, "frame")
        ('1 frame', '1,200 frames')
    """
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def stems(files: Iterable[Path], known: Mapping[str, str] | None = None) -> list[str]:
    """Return a name for each file: that of the file, with folders or a number where two would be the same.

    Args:
        files: Each once.
        known: Names that some of them have already and keep.

    Examples:
        >>> stems([Path("a/POSCAR"), Path("b/POSCAR"), Path("wbm.extxyz.gz")])
        ['a_POSCAR', 'b_POSCAR', 'wbm']
        >>> stems([Path("a/POSCAR"), Path("b/POSCAR")], {"a/POSCAR": "POSCAR"})
        ['POSCAR', 'b_POSCAR']
    """
    files, known = list(files), known or {}
    fresh = iter(_fresh_stems([path for path in files if str(path) not in known], files, known.values()))
    return [known[str(path)] if str(path) in known else next(fresh) for path in files]


def _fresh_stems(files: list[Path], beside: list[Path], taken_before: Iterable[str]) -> list[str]:
    """Return names for these files, in view of those beside them and of the names that are taken."""
    files = [path.absolute() for path in files]
    names = [_safe(_bare_name(path)) for path in files]
    counts = Counter(_safe(_bare_name(path)).casefold() for path in beside)  # some disks do not tell upper from lower
    names = [
        f"{_safe(path.parent.name)}_{name}" if counts[name.casefold()] > 1 and path.parent.name else name
        for path, name in zip(files, names, strict=True)
    ]
    taken = {name.casefold() for name in taken_before}
    for i, name in enumerate(names):
        number, unique = 1, name
        while unique.casefold() in taken:
            number += 1
            unique = f"{name}.{number}"
        taken.add(unique.casefold())
        names[i] = unique
    return names


def _bare_name(path: Path) -> str:
    name = path.name
    for suffix in PACKED:
        name = name.removesuffix(suffix)
    return Path(name).stem


def _safe(name: str) -> str:
    """Return the name with what a file name should not have as hyphens."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "structure"


def _images(path: Path, complain: Say) -> tuple[list[Atoms], str]:
    """Return the frames of a file up to the first that cannot be read, and why that cannot."""
    images: list[Atoms] = []
    why = ""
    try:
        if path.is_dir():
            raise ValueError("it is a folder; name the files in it")
        if _is_empty(path):
            raise ValueError("it is empty")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for atoms in iread(path, ":"):
                images.append(atoms)
    except UnknownFileTypeError:
        why = "cannot be read: ASE does not know its format; rename it, as NAME.cif or NAME.extxyz"
    except Exception as error:
        where = f"frame {len(images)} cannot" if images else "cannot"
        why = f"{where} be read: {_reason(error)}"
    else:
        for text in dict.fromkeys(_first_line(str(warning.message)) for warning in caught):
            complain(f"warning: {path}: {text}")
        why = "" if images else "cannot be read: it holds no structure"
    return images, why


def _is_empty(path: Path) -> bool:
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        return not file.read(1)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, ValueError) and str(error).startswith("it "):
        return str(error)
    if isinstance(error, KeyError) and re.fullmatch("[A-Z][a-z]{0,2}", str(error.args[0])):
        return f"unknown element {error.args[0]}"
    return f"{type(error).__name__}: {_first_line(str(error))}" if str(error) else type(error).__name__


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def fault(
    atoms: Atoms, elements: frozenset[str] | None, calculator: str, *, has_cell: bool, is_for_clusters: bool
) -> str:
    """Return in a line why this structure cannot be relaxed, or nothing.

    Args:
        atoms: Never modified.
        elements: That the calculator knows. None: all.
        calculator: Its name.
        has_cell: Whether the cell is to be relaxed as well.
        is_for_clusters: Whether the calculator knows nothing of periodic structures.
    """
    if len(atoms) == 0:
        return "it has no atoms"
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(1))
    if len(bad):
        return f"the position of atom {bad[0]} ({atoms.symbols[bad[0]]}) is not finite (atoms count from 0)"
    if not np.isfinite(atoms.cell.array).all():
        return "its cell is not finite"
    flat = [axis for axis, vector, is_periodic in zip("abc", atoms.cell, atoms.pbc, strict=True)
            if is_periodic and not vector.any()]  # fmt: skip
    if flat or (atoms.pbc.all() and atoms.cell.volume < SAME_PLACE**3):
        return f"it is periodic along {', '.join(flat) or 'a, b, c'}, but its cell has no extent there"
    if elements is not None and (unknown := sorted(set(atoms.symbols) - elements)):
        return f"{calculator} does not know {', '.join(unknown)}; it knows {_listed(elements)}"
    if is_for_clusters and atoms.pbc.any():
        return (
            f"it is periodic, and {calculator} is for clusters in empty space; for crystals give your own calculator "
            "as --calculator module:Factory"
        )
    if has_cell and not (atoms.pbc.any() and atoms.cell.rank == 3):
        return "--cell needs a periodic structure with three cell vectors"
    if has_cell and not atoms.pbc.all():
        axes = ", ".join(axis for axis, is_periodic in zip("abc", atoms.pbc, strict=True) if is_periodic)
        return (
            f"it is periodic along {axes} only, and --cell relaxes all of a cell: relax its atoms alone, without "
            "--cell, or use ASE with frankenstein.ase and FrechetCellFilter(atoms, mask=...)"
        )
    return _overlaps(atoms)


def _overlaps(atoms: Atoms) -> str:
    first, second, distances = (array.tolist() for array in _pairs(atoms))
    pairs = [
        f"{i} ({atoms.symbols[i]}) and {j} ({atoms.symbols[j]})" for i, j in zip(first, second, strict=True) if i < j
    ]
    if not pairs:
        return ""
    more = f", and {plural(len(pairs) - N_NAMED, 'pair')} more" if len(pairs) > N_NAMED else ""
    return (
        f"atoms {'; '.join(pairs[:N_NAMED])}{more} lie on each other (distance {min(distances):.3g}); move or remove "
        "one of them (atoms count from 0)"
    )


def _pairs(atoms: Atoms) -> Any:
    return neighbor_list("ijd", atoms, SAME_PLACE)


def _listed(elements: frozenset[str]) -> str:
    names = sorted(elements)
    return ", ".join(names) if len(names) <= 15 else f"{len(names)} elements"


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's content; of one that cannot be read, nothing."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
