"""MMFL-Net as ordinary modules of torch.nn, in training and in use: what the C++ model must equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from plain_trunks import ResNet
from torch import Tensor, nn

from placket.nn import MmflNet


class Normed(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Node(Normed):
    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)
        self.shares = nn.Parameter(torch.ones(2))
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = F.relu(self.shares)
        return F.relu(super().forward(self.depthwise((a * x + b * y) / (a + b + 1e-4))))


class Fusion(nn.Module):
    def __init__(self, channels: list[int], dim: int, out: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(Normed(c, dim) for c in channels)
        self.down = nn.ModuleDict({"1": Node(dim), "0": Node(dim)})
        self.up = nn.ModuleDict({"1": Node(dim), "2": Node(dim)})
        self.join = Normed(3 * dim, out)

    @staticmethod
    def like(x: Tensor, other: Tensor) -> Tensor:
        if x.shape[2:] == other.shape[2:]:
            return x
        if x.shape[2] > other.shape[2]:
            return F.max_pool2d(x, 3, 2, 1)
        return F.interpolate(x, size=other.shape[2:])

    def forward(self, maps: list[Tensor]) -> Tensor:
        l3, l4, l5 = (lateral(x) for lateral, x in zip(self.lateral, maps, strict=True))
        p4 = self.down["1"](l4, self.like(l5, l4))
        p3 = self.down["0"](l3, self.like(p4, l3))
        n4 = self.up["1"](p4, self.like(p3, l4))
        n5 = self.up["2"](l5, self.like(n4, l5))
        return F.relu(self.join(torch.cat([self.like(p3, l4), n4, self.like(n5, l4)], 1)))


class Block(nn.Sequential):
    def __init__(self, dim: int) -> None:
        super().__init__(Normed(dim, dim // 4), Normed(dim // 4, dim // 4, 3), Normed(dim // 4, dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self[2](F.relu(self[1](F.relu(self[0](x))))) + x)


class LightConv(Normed):
    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, groups=dim)
        self.pointwise = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(self.pointwise(x)))


class Gate(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, max(1, dim // 16))
        self.fc2 = nn.Linear(max(1, dim // 16), dim)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))[..., None, None]


class Local(Block):
    def __init__(self, dim: int, drop: float) -> None:
        super().__init__(dim)
        self.share = drop
        self.reduce = Normed(dim, dim // 4)
        self.streams = nn.ModuleList(
            nn.Sequential(*(LightConv(dim // 4) for _ in range(depth + 1))) for depth in range(4)
        )
        self.gate = Gate(dim // 4)
        self.expand = Normed(dim // 4, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        reduced = F.relu(self.reduce(x))
        y = F.relu(self.expand(sum(self.gate(stream(reduced)) for stream in self.streams)) + x)
        if self.training and self.share > 0:
            keep = torch.ones(len(y), 1, y.shape[2], 1, dtype=y.dtype)
            for image, kept in zip(y.detach(), keep, strict=True):
                order = image.square().mean((0, 2)).argsort(descending=True).tolist()
                kept[0, [row for place, row in enumerate(order) if place / len(order) < self.share]] = 0
            y = y * keep
        return y


class PlainMmfl(nn.Module):
    """Takes the weights of an MmflNet under their own names."""

    def __init__(
        self,
        trunk: ResNet,
        channels: list[int],
        *,
        dim: int,
        fusion: int,
        embedding: int,
        stripes: tuple[int, ...],
        local: bool,
        drop: float,
        values: int,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.stripes = stripes
        head = nn.Module()
        if fusion:
            head.fusion = Fusion(channels, fusion, dim)
        else:
            head.project = Normed(channels[-1], dim)
        head.whole = Block(dim)
        for n in stripes:
            head.add_module(f"part{n}", Block(dim))
        if local:
            head.local = Local(dim, drop)
        count = 1 + sum(1 + n for n in stripes) + local
        head.reduce = nn.Module()
        head.reduce.weight = nn.Parameter(torch.randn(count, dim, embedding))
        head.neck = nn.BatchNorm1d(count * embedding)
        head.neck.bias = None
        if values:
            head.attributes = nn.Linear(count * embedding, values)
        self.head = head

    @classmethod
    def of(cls, model: MmflNet, trunk: ResNet, channels: list[int]) -> PlainMmfl:
        """Return plain modules with the weights of a model, whose trunk has maps of these channels."""
        c = model.config
        module = cls(
            trunk,
            channels,
            dim=c.map_dim,
            fusion=c.fusion_dim,
            embedding=c.embedding_dim,
            stripes=c.stripes,
            local=c.local,
            drop=c.drop,
            values=c.attributes,
        )
        missing, unexpected = module.load_state_dict(model.state_dict(), strict=False)
        assert all(name.endswith("num_batches_tracked") for name in missing)
        assert unexpected == []
        return module

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        head = self.head
        maps = self.trunk.maps(images)[-3:]
        x = head.fusion(maps) if hasattr(head, "fusion") else F.relu(head.project(maps[-1]))
        pooled = [head.whole(x).amax((2, 3))]
        for n in self.stripes:
            y = head.get_submodule(f"part{n}")(x)
            stripes = F.adaptive_avg_pool2d(y, (n, 1)).squeeze(3)
            pooled += [y.amax((2, 3)), *stripes.unbind(2)]
        if hasattr(head, "local"):
            pooled.append(head.local(x).amax((2, 3)))
        features = torch.stack([p @ w for p, w in zip(pooled, head.reduce.weight, strict=True)], 1)
        rows = head.neck(features.flatten(1))
        logits = head.attributes(rows) if hasattr(head, "attributes") else None
        return features, rows.view_as(features), logits
