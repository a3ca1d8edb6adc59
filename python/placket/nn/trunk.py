"""Trunks: from images to feature maps."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from placket import _C
from placket.nn.spec_module import SpecModule, TensorSpec

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Trunk(SpecModule):
    """A built-in trunk: images ``[B, 3, H, W]`` to a map ``[B, channels, h, w]``.

    Args:
        name: ``"name[,key=value...]"``: ``resnet18 | resnet34 | resnet50`` (``stage=2|3``, ``width=``),
            ``squeezenet1_0`` (``stage=4|8|16``), ``efficientnet_lite0`` (``stage=4|8|16|32|head``),
            ``vit_{tiny,small,base,large}_patchP_R`` or ``vit`` (``width=``, ``depth=``, ``heads=``,
            ``patch=``, ``image=``, ``mlp=``), both with ``dropout=`` and ``norm=true|false``.
        generator: of the initial values; None takes torch's default generator.

    Attributes:
        channels: of the map.
        mean, std: of RGB in [0, 1], what the published weights were made with.
        freeze_batch_norm: if true, training mode keeps BatchNorm's running statistics, and uses them.

    Raises:
        ValueError: unknown name or key; the text lists the known ones.
    """

    def __init__(self, name: str, generator: torch.Generator | None = None) -> None:
        super().__init__([TensorSpec(*spec) for spec in _C.trunk_spec(name)], generator)
        self.name = name
        self.channels = _C.trunk_channels(name)
        self.mean, self.std = _C.trunk_normalization(name)
        self.freeze_batch_norm = False

    def forward(self, images: Tensor, groups: int = 1) -> Tensor:
        """Return the map.

        Args:
            images: ``[B, 3, H, W]``, normalised.
            groups: in training, BatchNorm's statistics of this many equal parts of the batch are kept apart,
                as if each were a forward pass of its own.
        """
        statistics = self.training and not self.freeze_batch_norm
        return cast(
            Tensor,
            torch.ops.placket.trunk_features(
                images, self.tensors(), self.name, self.training, statistics, groups
            ),
        )

    def extra_repr(self) -> str:
        return f"'{self.name}', channels={self.channels}"


def channels_of(module: nn.Module) -> int:
    """Return the channels of the map that a module makes of images.

    Asked of ``module.channels`` or ``module.num_features`` (timm); otherwise of one 64 x 64 image.

    Raises:
        ValueError: the module does not give a map ``[B, C, h, w]``.
    """
    for name in ("channels", "num_features"):
        channels = getattr(module, name, None)
        if isinstance(channels, int):
            return channels
    parameter = next(module.parameters(), torch.empty(0))
    training = module.training
    module.eval()
    with torch.no_grad():
        features = module(torch.zeros(1, 3, 64, 64, device=parameter.device, dtype=parameter.dtype))
    module.train(training)
    if features.dim() != 4:
        raise ValueError(f"trunk: output must have shape [B, C, h, w], got {list(features.shape)}")
    return int(features.shape[1])
