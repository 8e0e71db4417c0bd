from __future__ import annotations

import re
from importlib.metadata import EntryPoint

import pytest
import torch

from frankenstein.compare import catalog as C
from frankenstein.compare.catalog import Catalog, CatalogError, catalog
from frankenstein.compare.cells import Cell, Job

MODULE = '''
import torch
from frankenstein.compare.optimizers import OptimizerSpec
from frankenstein.compare.problems.problem import Measurements, Problem

class Half(torch.optim.SGD):
    """Half the step."""
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr / 2)

def run(make_optimizer, seed, budget):
    x = torch.full((3,), float(seed + 1), requires_grad=True)
    optimizer = make_optimizer([x])
    curve = {"step": [], "score": [], "seconds": []}
    for step in range(budget.n_steps + 1):
        if step in budget.eval_steps:
            curve["step"].append(step)
            curve["score"].append(x.square().sum().item())
            curve["seconds"].append(0.001 * step)
        optimizer.zero_grad()
        x.square().sum().backward()
        optimizer.step()
    return Measurements(curve, n_steps_done=budget.n_steps)

PROBLEMS = [Problem("bowl", "A bowl", "height", False, 0.01, 100.0, 20, 4, run)]
OPTIMIZERS = [OptimizerSpec("half", "Half SGD", f"{__name__}:Half", {"lr": 0.1})]
'''


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MODULE)
    return path


def test_a_module_of_the_users_adds_problems_and_optimizers(module):
    known = catalog((str(module),))
    assert known.problems.keys() - catalog().problems.keys() == {"bowl"}
    assert known.optimizers.keys() - catalog().optimizers.keys() == {"half"}
    assert re.fullmatch(r"[0-9a-f]{64}", known.sources["mine.py"])
    record = Job(Cell("bowl", "half", {"lr": 0.5}, 0, "test", modules=(str(module),))).run()
    assert record["outcome"] == "finished", record["reason"]
    assert record["curve"]["score"][:2] == [3.0, pytest.approx(3.0 * 0.5**10, rel=1e-5)]  # x halves at each step
    assert record["provenance"]["modules"] == known.sources


def test_a_dotted_name_works_too(module, monkeypatch):
    monkeypatch.syspath_prepend(module.parent)
    assert "bowl" in catalog(("mine",)).problems


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("def f(:", "cannot be imported: SyntaxError"),
        ("import nonsense_package", "cannot be imported: ModuleNotFoundError: No module named 'nonsense_package'"),
        ("x = 1", "has neither PROBLEMS nor OPTIMIZERS; it needs one of these sequences"),
        ("PROBLEMS = [1]", "PROBLEMS holds 1, which is no Problem"),
        (MODULE.replace('"half"', '"adam"'), "the name 'adam' is taken; choose another"),
    ],
)
def test_a_module_that_cannot_be_used_is_one_line(tmp_path, text, message):
    path = tmp_path / "wrong.py"
    path.write_text(text)
    with pytest.raises(CatalogError) as error:
        catalog((str(path),))
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_module_that_is_not_there():
    with pytest.raises(CatalogError, match=r"--module no/such.py: there is no such file"):
        catalog(("no/such.py",))
    with pytest.raises(CatalogError, match=r"--module no_such_module cannot be imported: ModuleNotFoundError"):
        catalog(("no_such_module",))


def test_installed_packages_add_theirs(module, monkeypatch):
    monkeypatch.syspath_prepend(module.parent)
    point = EntryPoint(name="mine", value="mine", group=C.ENTRY_POINTS)
    monkeypatch.setattr(C, "entry_points", lambda group: [point] if group == C.ENTRY_POINTS else [])
    assert "bowl" in C._make.__wrapped__(()).problems


def test_any_class_can_be_named(monkeypatch):
    spec = Catalog({}, {}, {}).optimizer("torch.optim:NAdam")
    assert spec.default == {"lr": 2e-3, "betas[0]": 0.9}
    assert spec.space(1.0).keys() == {"lr", "betas[0]"}
    (group,) = spec.make([torch.ones(2, requires_grad=True)], {"lr": 0.5, "betas[0]": 0.8}).param_groups
    assert (group["lr"], group["betas"]) == (0.5, (0.8, 0.999))
    assert Catalog({}, {}, {}).optimizer("torch.optim:SGD").default == {"lr": 1e-3, "momentum": 0.9}
    assert Catalog({}, {}, {}).optimizer("torch.optim:Adagrad").space(1.0).keys() == {"lr"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torch.optim:Nonsense", "torch.optim has no class 'Nonsense'"),
        ("no_such_module:SGD", "cannot be imported: ModuleNotFoundError"),
        ("json:dumps", "has no argument lr; describe it in a module of your own"),
    ],
)
def test_a_class_that_cannot_be_used_is_one_line(name, message):
    with pytest.raises(CatalogError, match=message):
        catalog().optimizer(name)
