"""The operators as typed functions: each has a CPU and a CUDA kernel and, where there is a gradient, C++ autograd.

Dimensions: N rows, D channels of an embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cosine_triplet"]


def cosine_triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 0.2) -> Tensor:
    """Return the triplet hinge ``max(0, margin - cos(a, p) + cos(a, n))`` of each row.

    Args:
        anchor, positive, negative: ``[N, D]``, one floating dtype; rows need not be normalised (a zero row has
            cosine 0).
        margin: by how much the positive must be nearer, in cosine; 0.2 in ASEN, ASEN++ and RPF.

    Returns:
        ``[N]``; the loss of the papers is its mean, and ``(hinge > 0).mean()`` is the share of active triplets.
    """
    return torch.ops.placket.cosine_triplet(anchor, positive, negative, margin)


@torch.library.register_fake("placket::cosine_triplet")
def _(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 0.2) -> Tensor:
    return anchor.new_empty(anchor.shape[0])


@torch.library.register_fake("placket::_cosine_triplet_backward")
def _(
    grad: Tensor, anchor: Tensor, positive: Tensor, negative: Tensor, margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(anchor, memory_format=torch.contiguous_format),
        torch.empty_like(positive, memory_format=torch.contiguous_format),
        torch.empty_like(negative, memory_format=torch.contiguous_format),
    )
