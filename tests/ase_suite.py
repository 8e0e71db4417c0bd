"""Run ASE's own optimizer tests on our class: `python tests/ase_suite.py [FOLDER | ase-*.tar.gz] [pytest's options]`.

The tests are those inside the installed ASE; or, if a path is given, those of an unpacked or packed source release of
the same version. Where a test takes a list of optimizers, ours is added to it; where it names one, ours takes its
place. This file is also the pytest plugin that does so. Tests in which ours did not run are not reported as passed.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest

# Where a test is parametrized: the name of the parameter, or of the fixture.
ADDED = {
    "optimize/test_optimizers.py": "optcls",
    "optimize/test_pure.py": "optname",
    "optimize/test_optimizer_restart.py": "opt",
    "optimize/test_replay.py": "optcls",
    "test_linesearch_maxstep.py": "optcls, name",
}
# Where it is not: the optimizers whose name in the test's module is given to ours.
INSTEAD = {
    "optimize/test_maxstep.py": ["MDMin"],
    "optimize/test_nsteps.py": ["BFGS"],
    "optimize/test_optimize_stepwise.py": ["BFGS"],
    "optimize/test_optimizer_restart.py": ["BFGS"],  # asks `opt is BFGS` to know who keeps the trajectory
    "optimize/test_restart.py": ["BFGS"],
    "constraints/test_CO2linear_Au111.py": ["BFGS"],
    "constraints/test_external_force.py": ["FIRE"],
    "constraints/test_fix_bond_length_mic.py": ["FIRE"],
    "constraints/test_fixbondlength_CO2_Au111.py": ["BFGS"],
    "constraints/test_fixcom.py": ["BFGS"],
    "constraints/test_fixedline_fixedplane.py": ["BFGS"],
    "constraints/test_fixsubsetcom.py": ["BFGS"],
    "constraints/test_mirror.py": ["FIRE"],
    "emt/test_emt1.py": ["BFGS"],
    "emt/test_emt_h3o2m.py": ["BFGS", "QuasiNewton"],
    "filter/test_cellfilter.py": ["LBFGS", "MDMin"],
    "filter/test_filter.py": ["QuasiNewton"],
    "forcefields/test_combine_mm2.py": ["FIRE"],
    "neb/test_COCu111.py": ["BFGS", "QuasiNewton"],
    "neb/test_COCu111_2.py": ["BFGS"],
    "neb/test_autoneb.py": ["BFGS", "QuasiNewton"],
    "neb/test_dynamic_neb.py": ["BFGS"],
    "neb/test_neb.py": ["BFGS"],
    "neb/test_neb_tr.py": ["BFGS", "FIRE"],
    "neb/test_shared_calculator_neb.py": ["BFGS"],
    "test_example.py": ["QuasiNewton"],
    "test_stress.py": ["BFGS"],
    "vibrations/test_vibrations_example.py": ["BFGS"],
}
FOREIGN = ("alpha", "damping", "dt", "dtmax", "force_consistent", "use_line_search")  # settings of others

# Tests that cannot hold for another optimizer than the one they were written for.
NOT_OURS = {
    "test_fix_bond_length_mic": "compares with the energy at which FIRE stops, to 1e-6 eV; ours ends 1.4e-6 eV lower",
    "test_neb_tr": "compares FIRE's number of steps with and without rotation, which have to differ by a quarter",
}
CONFIG = (
    "[pytest]\nmarkers =\n    optimize\n    slow\nfaulthandler_timeout = 120\nfaulthandler_exit_on_timeout = true\n"
)

used: list[type] = []


@functools.cache
def ours(name: str) -> type:
    """Return our class under another's name, deaf to the settings of the optimizers whose place it takes."""
    from frankenstein.ase import Frankenstein

    class Deaf(Frankenstein):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            used.append(Deaf)
            super().__init__(*args, **{name: value for name, value in kwargs.items() if name not in FOREIGN})

    Deaf.__name__ = Deaf.__qualname__ = name
    return Deaf


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: Any) -> None:
    """Add our class to the parameters of a test, or put it into the test's module."""
    path = _path(metafunc.module.__file__)
    parameter, added = ADDED.get(path), ours("Frankenstein")
    for name in INSTEAD.get(path, []):
        setattr(metafunc.module, name, added if parameter else ours(name))
    for mark in metafunc.definition.iter_markers("parametrize"):
        if mark.args[0] == parameter:
            case = (added, "Frankenstein") if "," in parameter else added
            mark.args[1].extend([case] if case not in mark.args[1] else [])
    for fixture in metafunc._arg2fixturedefs.get(parameter, []):
        if fixture.params is not None and added not in fixture.params:
            fixture.params = (*fixture.params, added)


def pytest_collection_modifyitems(items: list) -> None:
    """Keep what may run on our class; say why where that makes no sense."""
    items[:] = [item for item in items if _path(item.path) not in ADDED or "Frankenstein" in item.name]
    for item in items:
        if item.originalname in NOT_OURS:
            item.add_marker(pytest.mark.xfail(reason=NOT_OURS[item.originalname], strict=False))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: Any) -> None:
    """Forget what the test before used."""
    used.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: Any) -> Any:
    """Skip, afterwards, what did not use our class."""
    result = yield
    if not used:
        pytest.skip("did not use our class")
    return result


def _path(file: Any) -> str:
    return str(file).replace("\\", "/").rpartition("/ase/test/")[2]


def run(source: str | None, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the tests in a process of their own.

    Args:
        source: Folder or packed release whose tests to take; None: the installed ASE.
        options: For pytest.
    """
    with tempfile.TemporaryDirectory() as folder:
        if source is None:
            import ase

            tests = Path(ase.__file__).parent / "test"
        elif Path(source).is_dir():
            tests = Path(source) / "ase" / "test"
        else:
            with tarfile.open(source) as archive:
                archive.extractall(folder, filter="data")
            tests = next(Path(folder).glob("*/ase/test"))
        files = [str(tests / name) for name in sorted(ADDED.keys() | INSTEAD.keys())]
        missing = [file for file in files if not Path(file).is_file()]
        if missing:
            raise FileNotFoundError(f"no ASE tests: {missing[0]} does not exist")
        config = Path(folder) / "pytest.ini"
        config.write_text(CONFIG)
        roots = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(tests.parents[1])]
        script = f"import sys; sys.path[:0] = {roots!r}; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
        command = [sys.executable, "-c", script, "-c", str(config), "-p", "ase_suite", "-p", "no:cacheprovider"]
        return subprocess.run(
            [*command, "-rA", "--tb=short", "--show-capture=no", *options, *files],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip


if __name__ == "__main__":
    given = sys.argv[1:]
    path = given.pop(0) if given and not given[0].startswith("-") else None
    done = run(path, *given)
    print(done.stdout[-30_000:], done.stderr[-5_000:], sep="\n")
    sys.exit(done.returncode)
