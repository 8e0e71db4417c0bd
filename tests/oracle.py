"""Algorithm 1 of arXiv:2503.02147, one scalar parameter, 50 digits: the only second statement of the rule.

Written from the paper's text with its own operations (`acos`, no rearrangement), so that a slip in `rule.py` shows.
"""

from __future__ import annotations

from mpmath import acos, e, exp, log, mp, mpf, pi, sqrt, tanh

mp.dps = 50

# range of 1 - beta1, what rho looks at, rho's log range, limit of x_t / x_{t-1}
PRESETS = {
    "paper": {"gap": ("0.05", "0.99"), "rho": "x", "log": ("0.8", "1.05"), "ratio": None},
    "authors": {"gap": ("0.05", "0.95"), "rho": "v", "log": ("-0.2", "1.03"), "ratio": 1},
}


def clip(value, low, high):
    return min(max(value, low), high)


def trajectory(theta, grads, lrs, *, preset="paper", eps=1e-8, momentum=0.9, base_lr=1e-3, weight_decay=0.0):
    """Return one dict of `theta, m, v, x, P, rho, xi, beta1, beta2` (mpf) per step."""
    c = PRESETS[preset]
    theta, eps, momentum, base_lr, weight_decay = map(mpf, (theta, eps, momentum, base_lr, weight_decay))
    half = mpf(1) / 2
    m, v, x_before = mpf(0), mpf(0), mpf(lrs[0])
    steps = []
    for grad, rate in zip(grads, lrs, strict=True):
        g, lr = mpf(grad), mpf(rate)
        theta *= 1 - lr * weight_decay
        beta1 = 1 - clip((1 - momentum) * sqrt(lr / base_lr), mpf(c["gap"][0]), mpf(c["gap"][1]))
        P = acos(tanh(m * g)) / pi
        x = g * g + eps
        v = max(v, x)
        root = sqrt(x if c["rho"] == "x" else v)
        rho = log(clip(e + root + half - P, exp(mpf(c["log"][0])), exp(mpf(c["log"][1]))))
        xi = (1 + exp(-half)) / (1 + exp(-abs(x_before - P)))
        m = rho * beta1 * m - lr * g * xi / sqrt(v)
        theta = theta + beta1 * m - lr * g * xi / sqrt(v)
        ratio = x / x_before
        if c["ratio"] is not None:
            ratio = clip(ratio, 0, c["ratio"])
        beta2 = 1 - ratio * abs(half - P)
        v = beta2 * v + (1 - beta2) * x
        x_before = x
        steps.append(
            {"theta": theta, "m": m, "v": v, "x": x, "P": P, "rho": rho, "xi": xi} | {"beta1": beta1, "beta2": beta2}
        )
    return steps
