"""Break `frankenstein/rule.py` in eight ways, one at a time: each must turn its tests red.

Run by `make mutants`, on a copy: the checkout is never touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = [f"tests/{path.name}" for path in sorted((ROOT / "tests").glob("test_rule*.py"))]

MUTANTS = {
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


def is_red(checkout: Path) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
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


def main() -> int:
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        checkout = Path(folder)
        for name in ("frankenstein", "tests"):
            shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", checkout)
        rule = checkout / "frankenstein" / "rule.py"
        source = rule.read_text()
        if is_red(checkout):
            raise SystemExit("the suite is red before any mutation")
        for name, (old, new) in MUTANTS.items():
            if source.count(old) != 1:
                raise SystemExit(f"mutant {name!r}: {old!r} stands {source.count(old)} times in rule.py; mend the list")
            rule.write_text(source.replace(old, new))
            red = is_red(checkout)
            print(f"{'killed  ' if red else 'SURVIVED'}  {name}", flush=True)
            if not red:
                survivors.append(name)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
