"""ASEN, ASEN v2, CSN and ASEN++ as ordinary modules of torch.nn, with the names of the published code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from plain_trunks import ResNet
from torch import Tensor, nn


def attend(logits: Tensor, x: Tensor) -> Tensor:
    """Logits [B, h, w] and a map [B, C, h, w] to pooled features [B, C]."""
    attention = logits.flatten(1).softmax(1).view(logits.shape)
    return torch.einsum("bhw,bchw->bc", attention, x)


class ChannelGate(nn.Module):
    """What the published classes share: fc1 and fc2 over pooled features and an attribute."""

    fc1: nn.Linear
    fc2: nn.Linear

    def gate(self, pooled: Tensor, attribute: Tensor) -> Tensor:
        hidden = F.relu(self.fc1(torch.hstack([pooled, F.relu(attribute)])))
        return pooled * torch.sigmoid(self.fc2(hidden))


class PlainAsen(ChannelGate):
    def __init__(self, attributes: int, channels: int, width: int, hidden: int, embedding: int) -> None:
        super().__init__()
        self.backbonenet = ResNet([3, 4, 6], 4, channels // 16)
        self.mask_fc1 = nn.Linear(attributes, width, bias=False)
        self.mask_fc2 = nn.Linear(attributes, channels, bias=False)
        self.fc1 = nn.Linear(2 * channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.feature_fc = nn.Linear(channels, embedding)
        self.conv1 = nn.Conv2d(channels, width, 1)
        self.conv2 = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor, attributes: Tensor) -> Tensor:
        x = self.backbonenet(images)
        one_hot = F.one_hot(attributes, self.mask_fc1.in_features).to(x.dtype)
        both = torch.tanh(self.conv1(x)) * torch.tanh(self.mask_fc1(one_hot))[:, :, None, None]
        pooled = attend(torch.tanh(self.conv2(both)).squeeze(1), x)
        return F.normalize(self.feature_fc(self.gate(pooled, self.mask_fc2(one_hot))))


class PlainAsenV2(ChannelGate):
    def __init__(self, attributes: int, channels: int, width: int, hidden: int) -> None:
        super().__init__()
        self.backbonenet = ResNet([2, 2, 2], 1, channels // 4)
        self.attr_embedding = nn.Embedding(attributes, width)
        self.attr_transform1 = nn.Linear(width, width)
        self.conv1 = nn.Conv2d(channels, width, 1)
        self.img_bn1 = nn.BatchNorm2d(width)
        self.attr_transform2 = nn.Linear(width, width)
        self.fc1 = nn.Linear(channels + width, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, images: Tensor, attributes: Tensor) -> Tensor:
        x, e = self.backbonenet(images), self.attr_embedding(attributes)
        keys = torch.tanh(self.img_bn1(self.conv1(x)))
        query = torch.tanh(self.attr_transform1(e))
        pooled = attend(torch.einsum("bd,bdhw->bhw", query, keys) / query.shape[1] ** 0.5, x)
        return F.normalize(self.gate(pooled, self.attr_transform2(e)))


class PlainCsn(nn.Module):
    def __init__(self, attributes: int, channels: int, embedding: int) -> None:
        super().__init__()
        self.embeddingnet = ResNet([3, 4, 6], 1, channels // 4)
        self.embed_fc = nn.Linear(channels, embedding)
        self.masks = nn.Embedding(attributes, embedding)

    def forward(self, images: Tensor, attributes: Tensor) -> Tensor:
        pooled = self.embeddingnet(images).mean((2, 3))
        return F.normalize(self.embed_fc(pooled) * F.relu(self.masks(attributes)))


class PlainAttention(ChannelGate):
    """The two attentions and the projection of one branch of ASEN++."""

    def __init__(self, attribute: int, channels: int, width: int, hidden: int, embedding: int) -> None:
        super().__init__()
        self.attr_transform1 = nn.Linear(attribute, width)
        self.conv = nn.Conv2d(channels, width, 1)
        self.attr_transform2 = nn.Linear(attribute, attribute)
        self.fc1 = nn.Linear(channels + attribute, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.feature_fc = nn.Linear(channels, embedding)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        query = torch.tanh(self.attr_transform1(e))
        logits = torch.einsum("bd,bdhw->bhw", query, torch.tanh(self.conv(x))) / query.shape[1] ** 0.5
        return self.feature_fc(self.gate(attend(logits, x), self.attr_transform2(e)))


class PlainTable(nn.Module):
    def __init__(self, attributes: int, width: int) -> None:
        super().__init__()
        self.attr_embedding = nn.Embedding(attributes, width)


class PlainAsenPlusPlus(nn.Module):
    def __init__(self, attributes: int, table: int, embedding: int, *, local: bool = True) -> None:
        super().__init__()
        shared = PlainTable(attributes, table)
        branches = {
            "global": {
                "attrnet": shared,
                "basenet": ResNet([3, 4, 6], 4, 8),
                "attnnet": PlainAttention(table, 128, 10, 9, embedding),
            },
            "local": {
                "attrnet": shared,
                "basenet": ResNet([3, 4, 6], 1, 8),
                "attnnet": PlainAttention(table, 32, 7, 6, embedding),
            },
        }
        if not local:
            del branches["local"]
        self.choices = nn.ModuleDict({level: nn.ModuleDict(parts) for level, parts in branches.items()})

    def forward(self, images: Tensor, attributes: Tensor, level: str = "global") -> Tensor:
        parts = self.choices[level]
        return parts["attnnet"](parts["basenet"](images), parts["attrnet"].attr_embedding(attributes))
