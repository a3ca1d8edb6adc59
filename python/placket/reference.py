"""The operators and models in plain PyTorch: slow, obvious, and the definition that tests compare with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cosine_triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 0.2) -> Tensor:
    a, p, n = (F.normalize(x, dim=1) for x in (anchor, positive, negative))
    return F.relu(margin - (a * p).sum(1) + (a * n).sum(1))
