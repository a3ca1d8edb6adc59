"""The operators and models in plain PyTorch: slow, obvious, and the definition that tests compare with."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_pool(logits: Tensor, values: Tensor, background: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    weights = logits.softmax(2)
    pooled = weights @ values.mT
    if not background:
        return pooled, values.new_empty(0), weights
    outside = (1 - weights) / max(values.shape[2] - 1, 1)
    return pooled, outside @ values.mT, weights


def batch_norm_act(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int = 1,
    eps: float = 1e-5,
    relu: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    outputs, means, variances = [], [], []
    for part in input.chunk(groups):
        mean = part.mean((0, 2, 3))
        variance = part.var((0, 2, 3), correction=0)
        normalized = (part - mean[:, None, None]) / (variance[:, None, None] + eps).sqrt()
        outputs.append(normalized * weight[:, None, None] + bias[:, None, None])
        means.append(mean)
        variances.append(variance)
    output = torch.cat(outputs)
    if residual is not None:
        output = output + residual
    return F.relu(output) if relu else output, torch.stack(means).detach(), torch.stack(variances).detach()


def cosine_triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 0.2) -> Tensor:
    a, p, n = (F.normalize(x, dim=1) for x in (anchor, positive, negative))
    return F.relu(margin - (a * p).sum(1) + (a * n).sum(1))


def region_patch_info_nce(
    region: Tensor,
    patch: Tensor,
    background: Tensor,
    labels: Tensor,
    attributes: Tensor,
    temperature: float = 0.07,
    alpha: float = 12.0,
) -> Tensor:
    wide = torch.float64 if region.dtype == torch.float64 else torch.float32
    if len(region) == 0:
        return region.to(wide).sum()
    r, p, b = (F.normalize(x.to(wide), dim=1) for x in (region, patch, background))
    same_attribute = attributes[:, None] == attributes
    positive = same_attribute & (labels[:, None] == labels)
    patches = r @ p.T / temperature
    backgrounds = r @ b.T / temperature + (math.log(alpha) if alpha > 0 else -math.inf)
    numerator = patches.masked_fill(~positive, -math.inf).logsumexp(1)
    negatives = backgrounds.masked_fill(~same_attribute, -math.inf)
    denominator = torch.cat([patches, negatives], 1).logsumexp(1)
    return (denominator - numerator).mean()
