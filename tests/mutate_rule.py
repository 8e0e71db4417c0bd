"""Break the two rules and the C kernel in eight ways each, one at a time: each must turn its tests red.

Run by `make mutants`, on a copy: the checkout is never touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Rule:
    """A file, its tests, and the ways to break it: name -> (what stands there, what then stands there)."""

    file: str
    tests: list[str]
    mutants: dict[str, tuple[str, str]]
    is_compiled: bool = False


UPDATE = {
    "eps dropped": ("x_t = grad * grad + eps", "x_t = grad * grad + 0.0 * eps + 1e-30"),
    "sign of the alignment": ("xp.atan(xp.tanh(0.5 * (state.m * grad)))", "xp.atan(xp.tanh(-0.5 * (state.m * grad)))"),
    "cancelling form of P": (
        "(2.0 / math.pi) * xp.atan(xp.tanh(0.5 * (state.m * grad)))",
        "0.5 - xp.acos(xp.tanh(state.m * grad)) / math.pi",
    ),
    "rho's upper limit": (
        "rho_log_range: tuple[float, float] = (0.8, 1.05)",
        "rho_log_range: tuple[float, float] = (0.8, 1.04)",
    ),
    "xi looks at the new gradient": ("xp.abs(x - 0.5 + alignment)", "xp.abs(x_t - 0.5 + alignment)"),
    "no Nesterov": ("delta = f.beta1 * m - d", "delta = m"),
    "second moment rearranged": ("f.v_hat - f.w * (f.v_hat - f.x_t)", "(1.0 - f.w) * f.v_hat + f.w * f.x_t"),
    "x_0 is base_lr": ("x_0 = (lr or base_lr) if", "x_0 = base_lr if"),
}

RELAXATION = {
    "no relaxed maximum": ("lift = xp.clip(rule.alignment * xp.sqrt(uu * cc) - uc, 0.0, None)", "lift = 0.0 * uc"),
    "norm of the lifted change": ("lifted_cc = cc + lift * (2.0 * uc + lift * uu)", "lifted_cc = cc + lift * 2.0 * uc"),
    "no acceleration": ("rule.acceleration * state.secant", "state.secant"),
    "reset on any slope uphill": ("slope > rule.reset_slope", "slope > 0.0"),
    "the limit does not grow": ("state.step_limit * rule.grow", "state.step_limit"),
    "secant of the lifted change": ("abs(uc) / cc, state.secant", "abs(uc) / lifted_cc, state.secant"),
    "oldest pair kept": ("inverse[rows, slot, :] = 0.0", "pass"),
    "the second loop not transposed": (
        "_times(xp.swapaxes(state.direction_change_inv, 1, 2), forth)",
        "_times(state.direction_change_inv, forth)",
    ),
}

KERNEL = {
    "the part of 1 / pi that float32 lacks": ("p = FMA(p, s, 1.11408154e-08f);", "p = p * s;"),
    "P for m g < -1": ("near : copy_sign(far, z)", "near : far"),
    "large numbers taken as small": ("return largest < bits_of(1.0f) &&", "return largest < bits_of(8.0f) &&"),
    "gradients beyond the range taken as small": ("&& largest_grad <= bits_of(o->grad_limit)", ""),
    "the low part of ln 2": ("r = FMA(k, 2.12194440e-4f, r);", ""),
    "what the root has lost": ("below_low = FMA(a, root_low, below_low);", ""),
    "skip forgets x": ("x_[i] = usable ? f.x_t : x;", "x_[i] = f.x_t;"),
    "no weight decay": ("FMA(th, options.decay, delta)", "(th + delta)"),
}
KERNEL_TESTS = ["tests/test_kernel_accuracy.py", "tests/test_kernels.py", "tests/test_kernel_state.py"]

RULES = [
    Rule("frankenstein/rule.py", [f"tests/{p.name}" for p in sorted((ROOT / "tests").glob("test_rule*.py"))], UPDATE),
    Rule("frankenstein/relaxation/rule.py", ["tests/relaxation/test_relaxation_rule.py"], RELAXATION),
    Rule("frankenstein/kernels/cpu_rule.h", KERNEL_TESTS, KERNEL, is_compiled=True),
]


def is_red(checkout: Path, tests: list[str]) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *tests]
    done = subprocess.run(
        command,
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):  # pytest itself failed: that proves nothing
        raise SystemExit(done.stdout + done.stderr)
    return done.returncode == 1


def compile_(checkout: Path, rule: Rule) -> None:
    if rule.is_compiled:
        command = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build_ext", "-i", "-f"]
        subprocess.run(command, cwd=checkout, check=True)


def survivors(checkout: Path, rule: Rule) -> list[str]:
    file = checkout / rule.file
    source = file.read_text()
    compile_(checkout, rule)
    if is_red(checkout, rule.tests):
        raise SystemExit(f"the tests of {rule.file} are red before any mutation")
    found = []
    for name, (old, new) in rule.mutants.items():
        if source.count(old) != 1:
            raise SystemExit(f"mutant {name!r}: {old!r} stands {source.count(old)} times in {rule.file}; mend the list")
        file.write_text(source.replace(old, new))
        compile_(checkout, rule)
        red = is_red(checkout, rule.tests)
        print(f"{'killed  ' if red else 'SURVIVED'}  {rule.file}: {name}", flush=True)
        if not red:
            found.append(name)
    file.write_text(source)
    return found


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder)
        for name in ("frankenstein", "tests"):
            shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, checkout)
        return 1 if [name for rule in RULES for name in survivors(checkout, rule)] else 0


if __name__ == "__main__":
    sys.exit(main())
