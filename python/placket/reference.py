"""The operators and models in plain PyTorch: slow, obvious, and the definition that tests compare with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
