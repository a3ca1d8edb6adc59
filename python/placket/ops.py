"""The operators as typed functions: each has a CPU and a CUDA kernel and, where there is a gradient, C++ autograd.

Dimensions: B images, C channels of a map of h x w positions, N rows, D channels of an embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["batch_norm_act", "cosine_triplet"]


def batch_norm_act(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int = 1,
    eps: float = 1e-5,
    relu: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise a map by statistics of the batch, add a residual and apply ReLU, in one pass.

    Args:
        input: ``[B, C, h, w]``; taken and returned in channels_last memory.
        residual: None, or a map like ``input`` that is added before the ReLU.
        weight, bias: ``[C]``, float32 (float64 for a float64 map).
        groups: statistics of this many equal parts of the batch are kept apart; divides B. With the three roles of a
            triplet batch one after another, 3 gives what three forwards would.
        eps: added to the variance.
        relu: whether negative values are cut off.

    Returns:
        The map, and mean and biased variance ``[groups, C]`` for the running statistics (they carry no gradient).
    """
    return torch.ops.placket.batch_norm_act(input, residual, weight, bias, groups, eps, relu)


@torch.library.register_fake("placket::batch_norm_act")
def _(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int = 1,
    eps: float = 1e-5,
    relu: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = weight.new_empty(groups, input.shape[1])
    output = torch.empty_like(input, memory_format=torch.channels_last)
    return output, statistics, torch.empty_like(statistics)


@torch.library.register_fake("placket::_batch_norm_act_backward")
def _(
    grad: Tensor,
    input: Tensor,
    output: Tensor,
    weight: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    map_like = torch.empty_like(input, memory_format=torch.channels_last)
    grad_residual = torch.empty_like(map_like) if residual else input.new_empty(0)
    return map_like, grad_residual, torch.empty_like(weight), torch.empty_like(weight)


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
