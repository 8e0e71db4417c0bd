"""Break `frankenstein/rule.py` in eight ways, one at a time: each must turn its tests red.

Run by `make mutants`. The file is put back in the end, also after Ctrl-C.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RULE = ROOT / "frankenstein" / "rule.py"

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


def is_red() -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/test_rule.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):  # pytest itself failed: that proves nothing
        raise SystemExit(done.stdout + done.stderr)
    return done.returncode == 1


def main() -> int:
    source = RULE.read_text()
    if is_red():
        raise SystemExit("the suite is red before any mutation")
    survivors = []
    try:
        for name, (old, new) in MUTANTS.items():
            if source.count(old) != 1:
                raise SystemExit(f"mutant {name!r}: {old!r} stands {source.count(old)} times in rule.py; mend the list")
            RULE.write_text(source.replace(old, new))
            red = is_red()
            print(f"{'killed  ' if red else 'SURVIVED'}  {name}", flush=True)
            if not red:
                survivors.append(name)
    finally:
        RULE.write_text(source)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
