"""The trunks as ordinary modules of torch.nn, with the customary names: what the C++ models must equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class IbnA(nn.Module):
    """IBN-a: InstanceNorm on the first half of the channels (Pan et al., ECCV 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.half = channels // 2
        self.IN = nn.InstanceNorm2d(self.half, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.half)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.IN(x[:, : self.half]), self.BN(x[:, self.half :])], 1)


class ResNetBlock(nn.Module):
    def __init__(self, inputs: int, width: int, outputs: int, stride: int, ibn: bool = False) -> None:
        super().__init__()
        self.bottleneck = outputs != width
        if self.bottleneck:
            self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(outputs)
        else:
            self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1 = IbnA(width) if ibn else nn.BatchNorm2d(width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(
        self, depths: list[int], expansion: int, width: int = 64, *, last_stride: int = 2, ibn: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        self.layers = len(depths)
        for i, depth in enumerate(depths):
            inner = width << i
            blocks = []
            first = 1 if i == 0 else last_stride if i == 3 else 2
            for j in range(depth):
                stride = first if j == 0 else 1
                blocks.append(ResNetBlock(inputs, inner, inner * expansion, stride, ibn and i < 3))
                inputs = inner * expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))

    def maps(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        maps = []
        for i in range(self.layers):
            x = self.get_submodule(f"layer{i + 1}")(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x)[-1]


class Fire(nn.Module):
    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, 2, ceil_mode=True)

        self.features = nn.Sequential(
            nn.Conv2d(3, 96, 7, 2),
            nn.ReLU(),
            pool(),
            Fire(96, 16, 64),
            Fire(128, 16, 64),
            Fire(128, 32, 128),
            pool(),
            Fire(256, 32, 128),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            pool(),
            Fire(512, 64, 256),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


class SameConv(nn.Conv2d):
    """TensorFlow's padding: ceil(size / stride) outputs, the odd zero at the end."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size in (x.shape[3], x.shape[2]):
            stride, kernel = self.stride[0], self.kernel_size[0]
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, None, self.stride, 0, 1, self.groups)


def lite_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class MbConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = inputs * expand
        self.expands = expand != 1
        self.residual = stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = SameConv(inputs, inner, 1, bias=False)
            self._bn0 = lite_norm(inner)
        self._depthwise_conv = SameConv(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = lite_norm(inner)
        self._project_conv = SameConv(inner, outputs, 1, bias=False)
        self._bn2 = lite_norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    def __init__(self, head: bool) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, 2, bias=False)
        self._bn0 = lite_norm(32)
        blocks = [MbConv(32, 16, 3, 1, 1)]
        inputs = 16
        for repeats, kernel, stride, outputs in (
            (2, 3, 2, 24),
            (2, 5, 2, 40),
            (3, 3, 2, 80),
            (3, 5, 1, 112),
            (4, 5, 2, 192),
            (1, 3, 1, 320),
        ):
            for i in range(repeats):
                blocks.append(MbConv(inputs, outputs, kernel, stride if i == 0 else 1, 6))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self.head = head
        if head:
            self._conv_head = SameConv(320, 1280, 1, bias=False)
            self._bn1 = lite_norm(1280)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))) if self.head else x


class VitAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, width = x.shape
        q, k, v = self.qkv(x).view(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(3)
        return self.proj((weights @ v).transpose(1, 2).reshape(count, tokens, width))


class VitMlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class VitBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = VitAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = VitMlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)


class Vit(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, patch: int, image: int, norm: bool) -> None:
        super().__init__()
        side = image // patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side + 1, width))
        self.patch_embed = PatchEmbed(width, patch)
        self.blocks = nn.Sequential(*(VitBlock(width, heads, 4 * width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6) if norm else nn.Identity()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed.proj(x)
        count, width, rows, columns = x.shape
        positions = self.pos_embed
        if (rows, columns) != (self.side, self.side):
            grid = positions[:, 1:].transpose(1, 2).reshape(1, width, self.side, self.side)
            grid = F.interpolate(grid, (rows, columns), mode="bicubic", antialias=True)
            positions = torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], 1)
        x = torch.cat([self.cls_token.expand(count, 1, width), x.flatten(2).transpose(1, 2)], 1)
        x = self.norm(self.blocks(x + positions))
        return x[:, 1:].transpose(1, 2).reshape(count, width, rows, columns)


def randomize(module: nn.Module) -> None:
    """Give every tensor values that show in the output, running statistics too."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith(("running_var", "bn.weight")) or (".bn" in name and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("bias", "running_mean", "cls_token", "pos_embed")):
                tensor.normal_(0, 0.2)
