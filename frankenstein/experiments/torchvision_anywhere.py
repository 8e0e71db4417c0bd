"""Importing this makes `import torchvision` work beside a CPU build of torch; import it before timm and transformers.

torchvision's wheel on PyPI is built for CUDA. Beside a CPU build of torch its C extension does not load, and then
`import torchvision` fails, because it describes two operators that are not there; with it fail all that import it when
it is installed: timm, transformers, and Lightning by way of torchmetrics. Here the operators are declared, without
code: nothing here calls them. Where torchvision loads, or is not installed, nothing is done.
"""

import torch

try:
    import torchvision
except ModuleNotFoundError:
    pass
except RuntimeError as error:
    if "torchvision::nms does not exist" not in str(error):
        raise
    OPERATORS = torch.library.Library("torchvision", "FRAGMENT")  # they live as long as this does
    for name in ("nms", "qnms"):
        OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401
