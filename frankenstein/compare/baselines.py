"""The optimizers to compare with: torch's and the package pytorch-optimizer's, each as it was published.

None is written here. `docs/optimizers.md` is the table made of these entries; it also says where a class departs from
its publication. To add an optimizer, add an entry: its update as equations in LaTeX, and the defaults that its
publication, or its authors' own code, gives; weight decay too, which is 0 where the publication leaves it to the task.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from frankenstein.compare.optimizers import DECAY, OptimizerSpec, Range

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

ADAMW_SHARE = 3e-4 / 0.02  # Muon's published learning rates: of its AdamW part, and of its matrices


def lookahead(
    params: Iterable[Tensor],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    k: int = 5,
    alpha: float = 0.5,
) -> Optimizer:
    """Return Lookahead around Adam, with the 5 steps and the step size 0.5 of the paper's comparison."""
    from pytorch_optimizer import Lookahead
    from torch.optim import Adam

    return Lookahead(Adam(params, lr=lr, betas=betas), k=k, alpha=alpha)


def muon(params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95) -> Optimizer:
    """Return Muon on the parameters with two or more dimensions, its AdamW part on the others.

    The two learning rates keep their published ratio, so that tuning `lr` moves both.
    """
    from pytorch_optimizer import Muon

    params = list(params)
    matrices, others = [p for p in params if p.ndim >= 2], [p for p in params if p.ndim < 2]
    groups = [
        {"params": matrices, "use_muon": True, "lr": lr, "momentum": momentum},
        {"params": others, "use_muon": False, "lr": lr * ADAMW_SHARE},
    ]
    return Muon([group for group in groups if group["params"]])


def _equations(*parts: str) -> str:
    return r" \quad ".join(parts)


_OURS = "frankenstein.torch:Frankenstein"
_BASE_LR = ("base_lr", Range(1e-4, 1e-2))
_BETA1 = ("betas[0]", DECAY)

# Parts of several updates; a hat is Adam's correction of the start from zero (docs/optimizers.md has the legend).
_M = r"m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t"
_V = r"v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2"
_MOMENTS = _equations(_M, _V)
_V_ADAN = r"v_t = \beta_3 v_{t-1} + (1-\beta_3) (g_t + \beta_2 (g_t - g_{t-1}))^2"
_V_BELIEF = r"v_t = \beta_2 v_{t-1} + (1-\beta_2) (g_t - m_t)^2 + \epsilon"
_ADAM = r"\theta_t = \theta_{t-1} - \eta \frac{\hat{m}_t}{\sqrt{\hat{v}_t} + \epsilon}"
_RECTIFIED = r"\theta_t = \theta_{t-1} - \eta r_t \sqrt{1-\beta_2^t} \frac{\hat{m}_t}{\sqrt{v_t} + \epsilon}"
_EARLY = r"\mathrm{while}\ \varrho_t\ \mathrm{is\ small:}\ \theta_t = \theta_{t-1} - \eta \hat{m}_t"
_EVERY_K = r"\mathrm{every}\ k\ \mathrm{steps:}\ "
_PULL_BACK = _EVERY_K + r"\phi_t = \phi_{t-k} + \alpha (\theta_t - \phi_{t-k}), \ \theta_t = \phi_t"

OPTIMIZERS = (
    OptimizerSpec(
        "frankenstein",
        "Frankenstein",
        _OURS,
        {"lr": 1e-3, "base_lr": 1e-3},
        _BASE_LR,
        is_rate=True,
        rule=_equations(
            r"\beta_1 = 1 - \operatorname{clip}((1-\mu) \sqrt{\eta / \eta_0}, 0.05, 0.99)",
            r"P_t = \frac{1}{\pi} \arccos(\tanh(m_{t-1} g_t))",
            r"x_t = g_t^2 + \epsilon, \ \bar{v}_t = \max(v_{t-1}, x_t)",
            r"\rho_t = \log(\operatorname{clip}(e + \sqrt{x_t} + \frac{1}{2} - P_t, e^{0.8}, e^{1.05}))",
            r"\xi_t = \frac{1 + e^{-1/2}}{1 + e^{-\vert x_{t-1} - P_t \vert}}",
            r"d_t = \eta \xi_t \frac{g_t}{\sqrt{\bar{v}_t}}",
            r"m_t = \rho_t \beta_1 m_{t-1} - d_t, \ \theta_t = \theta_{t-1} + \beta_1 m_t - d_t",
            r"v_t = \bar{v}_t - \frac{x_t}{x_{t-1}} \vert \frac{1}{2} - P_t \vert (\bar{v}_t - x_t)",
        ),
        source="arXiv:2503.02147, Algorithm 1",
    ),
    OptimizerSpec(
        "frankenstein-tied",
        "Frankenstein (base_lr = lr)",
        _OURS,
        {"lr": 1e-3, "momentum": 0.9},
        ("momentum", Range(0.01, 0.95, "decay")),  # all that eq. 3 can express: it clips 1 - beta1 at 0.05 and 0.99
        tied=("base_lr",),
        rule=r"\mathrm{Frankenstein,\ but}\ \eta_0 = \eta, \ \beta_1 = 1 - \operatorname{clip}(1-\mu, 0.05, 0.99)",
        source="arXiv:2503.02147, Algorithm 1",
    ),
    OptimizerSpec(
        "frankenstein-authors",
        "Frankenstein (authors)",
        _OURS,
        {"lr": 1e-3, "base_lr": 1e-3},
        _BASE_LR,
        {"rule": "authors"},
        is_rate=True,
        rule=_equations(
            r"\mathrm{Frankenstein,\ but}\ \beta_1 = 1 - \operatorname{clip}((1-\mu) \sqrt{\eta / \eta_0}, 0.05, 0.95)",
            r"\rho_t = \log(\operatorname{clip}(e + \sqrt{\bar{v}_t} + \frac{1}{2} - P_t, e^{-0.2}, e^{1.03}))",
            r"v_t = \bar{v}_t - \min(1, \frac{x_t}{x_{t-1}}) \vert \frac{1}{2} - P_t \vert (\bar{v}_t - x_t)",
        ),
        source="the released code of arXiv:2503.02147",
    ),
    OptimizerSpec(
        "sgd",
        "SGD (Nesterov)",
        "torch.optim:SGD",
        {"lr": 1e-3, "momentum": 0.9},
        ("momentum", DECAY),
        {"nesterov": True},
        rule=_equations(r"b_t = \mu b_{t-1} + g_t", r"\theta_t = \theta_{t-1} - \eta (g_t + \mu b_t)"),
        source="Nesterov 1983; Sutskever et al., ICML 2013",
    ),
    OptimizerSpec(
        "rmsprop",
        "RMSprop",
        "torch.optim:RMSprop",
        {"lr": 1e-2, "alpha": 0.9},
        ("alpha", DECAY),
        rule=_equations(
            r"v_t = \alpha v_{t-1} + (1-\alpha) g_t^2",
            r"\theta_t = \theta_{t-1} - \eta \frac{g_t}{\sqrt{v_t} + \epsilon}",
        ),
        source="Tieleman and Hinton, Neural Networks for Machine Learning, lecture 6e, 2012",
    ),
    OptimizerSpec(
        "adam",
        "Adam",
        "torch.optim:Adam",
        {"lr": 1e-3, "betas[0]": 0.9},
        _BETA1,
        rule=_equations(_MOMENTS, _ADAM),
        source="Kingma and Ba, arXiv:1412.6980",
    ),
    OptimizerSpec(
        "amsgrad",
        "AMSGrad",
        "torch.optim:Adam",
        {"lr": 1e-3, "betas[0]": 0.9},
        _BETA1,
        {"amsgrad": True},
        rule=_equations(
            _MOMENTS,
            r"\bar{v}_t = \max(\bar{v}_{t-1}, v_t)",
            r"\theta_t = \theta_{t-1} - \eta \frac{\hat{m}_t}{\sqrt{\bar{v}_t / (1-\beta_2^t)} + \epsilon}",
        ),
        source="Reddi, Kale and Kumar, arXiv:1904.09237",
    ),
    OptimizerSpec(
        "adamw",
        "AdamW",
        "torch.optim:AdamW",
        {"lr": 1e-3, "betas[0]": 0.9},
        _BETA1,
        rule=_equations(_MOMENTS, _ADAM.replace(r"= \theta", r"= (1-\eta\lambda) \theta")),
        source="Loshchilov and Hutter, arXiv:1711.05101",
    ),
    OptimizerSpec(
        "lookahead",
        "Lookahead (Adam)",
        "frankenstein.compare.baselines:lookahead",
        {"lr": 1e-3, "betas[0]": 0.9},
        _BETA1,
        rule=_equations(_MOMENTS, _ADAM, _PULL_BACK),
        source="Zhang et al., arXiv:1907.08610",
    ),
    OptimizerSpec(
        "adabound",
        "AdaBound",
        "pytorch_optimizer:AdaBound",
        {"lr": 1e-3, "betas[0]": 0.9},
        _BETA1,
        rule=_equations(
            _MOMENTS,
            r"l_t = \eta_f (1 - \frac{1}{\gamma t + 1}), \ u_t = \eta_f (1 + \frac{1}{\gamma t})",
            r"s_t = \eta \frac{\sqrt{1-\beta_2^t}}{(1-\beta_1^t) (\sqrt{v_t} + \epsilon)}",
            r"\theta_t = \theta_{t-1} - \operatorname{clip}(s_t, l_t, u_t) m_t",
        ),
        source="Luo et al., arXiv:1902.09843",
    ),
    OptimizerSpec(
        "ranger",
        "Ranger",
        "pytorch_optimizer:Ranger",
        {"lr": 1e-3, "betas[0]": 0.95},
        _BETA1,
        {"degenerated_to_sgd": True},  # without it the first five steps go uphill
        rule=_equations(r"g_t \leftarrow g_t - \operatorname{mean}(g_t)", _MOMENTS, _RECTIFIED, _EARLY, _PULL_BACK),
        source="Wright, github.com/lessw2020/Ranger-Deep-Learning-Optimizer, 2019",
    ),
    OptimizerSpec(
        "radam",
        "RAdam",
        "torch.optim:RAdam",
        {"lr": 1e-3, "betas[0]": 0.9},
        _BETA1,
        rule=_equations(_MOMENTS, _RECTIFIED, _EARLY),
        source="Liu et al., arXiv:1908.03265",
    ),
    OptimizerSpec(
        "padam",
        "PAdam",
        "pytorch_optimizer:PAdam",
        {"lr": 0.1, "betas[0]": 0.9},
        _BETA1,
        {"partial": 0.125},  # the paper's p; the class has 1/4
        rule=_equations(
            _MOMENTS,
            r"\theta_t = \theta_{t-1} - \eta \sqrt{1-\beta_2^t} \frac{\hat{m}_t}{(\sqrt{v_t} + \epsilon)^{2p}}",
        ),
        source="Chen et al., arXiv:1806.06763",
    ),
    OptimizerSpec(
        "adabelief",
        "AdaBelief",
        "pytorch_optimizer:AdaBelief",
        {"lr": 1e-3, "betas[0]": 0.9},
        _BETA1,
        rule=_equations(_M, _V_BELIEF, _ADAM),
        source="Zhuang et al., arXiv:2010.07468",
    ),
    OptimizerSpec(
        "lamb",
        "LAMB",
        "pytorch_optimizer:Lamb",
        {"lr": 1e-3, "betas[0]": 0.9},
        _BETA1,
        {"adam_debias": True},  # without it the class multiplies the step by 1 / (1 - beta1^t), at first by ten
        rule=_equations(
            _MOMENTS,
            r"u_t = \frac{m_t}{\sqrt{v_t} + \epsilon}",
            r"\theta_t = \theta_{t-1} - \eta \frac{\min(\Vert \theta_{t-1} \Vert, 10)}{\Vert u_t \Vert} u_t",
        ),
        source="You et al., arXiv:1904.00962",
    ),
    OptimizerSpec(
        "adan",
        "Adan",
        "pytorch_optimizer:Adan",
        {"lr": 1e-3, "betas[0]": 0.98},
        _BETA1,
        rule=_equations(
            _M,
            r"n_t = \beta_2 n_{t-1} + (1-\beta_2) (g_t - g_{t-1})",
            _V_ADAN,
            r"\theta_t = \theta_{t-1} - \eta \frac{\hat{m}_t + \beta_2 \hat{n}_t}{\sqrt{\hat{v}_t} + \epsilon}",
        ),
        source="Xie et al., arXiv:2208.06677",
    ),
    OptimizerSpec(
        "sophia",
        "Sophia-H",
        "pytorch_optimizer:SophiaH",
        {"lr": 0.06, "betas[0]": 0.96},
        _BETA1,
        backward={"create_graph": True},
        rule=_equations(
            _M,
            _EVERY_K + r"h_t = \beta_2 h_{t-1} + (1-\beta_2) z \odot (\nabla^2 L) z, \ z \sim N(0, 1)",
            r"\theta_t = \theta_{t-1} - \eta \operatorname{clip}(\frac{m_t}{\max(h_t, \epsilon)}, -p, p)",
        ),
        source="Liu et al., arXiv:2305.14342",
    ),
    OptimizerSpec(
        "lion",
        "Lion",
        "pytorch_optimizer:Lion",
        {"lr": 1e-4, "betas[0]": 0.9},
        _BETA1,
        rule=_equations(
            r"\theta_t = \theta_{t-1} - \eta \operatorname{sign}(\beta_1 m_{t-1} + (1-\beta_1) g_t)",
            r"m_t = \beta_2 m_{t-1} + (1-\beta_2) g_t",
        ),
        source="Chen et al., arXiv:2302.06675",
    ),
    OptimizerSpec(
        "tiger",
        "Tiger",
        "pytorch_optimizer:Tiger",
        {"lr": 1e-3, "beta": 0.965},
        ("beta", DECAY),
        rule=_equations(
            r"m_t = \beta m_{t-1} + (1-\beta) g_t",
            r"\theta_t = (1-\eta\lambda) \theta_{t-1} - \eta \operatorname{sign}(m_t)",
        ),
        source="Su, github.com/bojone/tiger, 2023",
    ),
    OptimizerSpec(
        "muon",
        "Muon",
        "frankenstein.compare.baselines:muon",
        {"lr": 0.02, "momentum": 0.95},
        ("momentum", DECAY),
        rule=_equations(
            r"b_t = \mu b_{t-1} + (1-\mu) g_t",
            r"U S V^\top = \operatorname{svd}((1-\mu) g_t + \mu b_t), \ O_t \approx U V^\top",
            r"\theta_t = \theta_{t-1} - \eta \sqrt{\max(1, \frac{\mathrm{rows}}{\mathrm{columns}})} O_t",
            r"\mathrm{vectors:\ AdamW}",
        ),
        source="Jordan et al., kellerjordan.github.io/posts/muon, 2024",
    ),
    OptimizerSpec(
        "soap",
        "SOAP",
        "pytorch_optimizer:SOAP",
        {"lr": 3e-3, "betas[0]": 0.95},
        _BETA1,
        rule=_equations(
            _M,
            r"v_t = \beta_2 v_{t-1} + (1-\beta_2) (Q_L^\top g_t Q_R)^2",
            r"L_t = \beta_2 L_{t-1} + (1-\beta_2) g_t g_t^\top, \ R_t = \beta_2 R_{t-1} + (1-\beta_2) g_t^\top g_t",
            _EVERY_K + r"Q_L, Q_R = \operatorname{eigenvectors}(L_t, R_t)",
            r"N_t = Q_L \frac{Q_L^\top m_t Q_R}{\sqrt{v_t} + \epsilon} Q_R^\top",
            r"\theta_t = (1-\eta\lambda) (\theta_{t-1} - \eta \frac{\sqrt{1-\beta_2^t}}{1-\beta_1^t} N_t)",
        ),
        source="Vyas et al., arXiv:2409.11321",
    ),
    OptimizerSpec(
        "schedule-free",
        "Schedule-Free AdamW",
        "pytorch_optimizer:ScheduleFreeAdamW",
        {"lr": 2.5e-3, "betas[0]": 0.9},
        _BETA1,
        rule=_equations(
            r"y_t = (1-\beta_1) z_{t-1} + \beta_1 \theta_{t-1}, \ g_t = \nabla L(y_t)",
            _V,
            r"z_t = z_{t-1} - \eta \frac{g_t}{\sqrt{\hat{v}_t} + \epsilon}",
            r"\theta_t = (1 - \frac{1}{t}) \theta_{t-1} + \frac{1}{t} z_t",
        ),
        source="Defazio et al., arXiv:2405.15682",
    ),
)
