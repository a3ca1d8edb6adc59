"""The operators as typed functions: each has a CPU and a CUDA kernel and, where there is a gradient, C++ autograd.

Dimensions: B images, A attributes, C channels of a map of P = h x w positions, N rows, D (or E) channels of
an embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["attention_pool", "batch_norm_act", "cosine_triplet", "region_patch_info_nce"]


def attention_pool(logits: Tensor, values: Tensor, background: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Pool a map under each attribute's attention, and under what the attention leaves out.

    ``weights = softmax_P(logits)``, ``pooled = sum_P weights * values`` and ``background = sum_P (1 -
    weights) * values / (P - 1)`` (RPF, SIGIR 2023), the last in closed form from the sum over the positions.

    Args:
        logits: ``[B, A, P]``; a NaN makes its attribute's three results NaN.
        values: ``[B, C, P]`` of the same dtype; a channels_last map's ``flatten(2)`` is read without a copy.
        background: whether the second result is wanted.

    Returns:
        pooled ``[B, A, C]``, background ``[B, A, C]`` (empty unless wanted; 0 where P is 1, since nothing is
        outside the attention then), and weights ``[B, A, P]``.
    """
    return torch.ops.placket.attention_pool(logits, values, background)


@torch.library.register_fake("placket::attention_pool")
def _(logits: Tensor, values: Tensor, background: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    pooled = values.new_empty(logits.shape[0], logits.shape[1], values.shape[1])
    outside = torch.empty_like(pooled) if background else values.new_empty(0)
    return pooled, outside, torch.empty_like(logits, memory_format=torch.contiguous_format)


@torch.library.register_fake("placket::_attention_pool_backward")
def _(
    grad_pooled: Tensor | None,
    grad_background: Tensor | None,
    grad_weights: Tensor | None,
    weights: Tensor,
    values: Tensor,
    logits_grad: bool,
    values_grad: bool,
) -> tuple[Tensor, Tensor]:
    grad_logits = torch.empty_like(weights) if logits_grad else values.new_empty(0)
    if not values_grad:
        return grad_logits, values.new_empty(0)
    if values.transpose(1, 2).is_contiguous() and not values.is_contiguous():
        return grad_logits, torch.empty_like(values.transpose(1, 2)).transpose(1, 2)
    return grad_logits, torch.empty_like(values, memory_format=torch.contiguous_format)


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


def region_patch_info_nce(
    region: Tensor,
    patch: Tensor,
    background: Tensor,
    labels: Tensor,
    attributes: Tensor,
    temperature: float = 0.07,
    alpha: float = 12.0,
) -> Tensor:
    """Return the E-InfoNCE loss between the region and patch embeddings of a batch (RPF, SIGIR 2023).

    The mean over anchors i of ``-log(sum_pos exp(r_i.p_j / t) / (sum_all exp(r_i.p_j / t) + alpha * sum_same
    exp(r_i.b_k / t)))``: positives are the patches of the anchor's attribute and label, its own among them;
    negatives are all patches, those of other attributes too, and the backgrounds of the anchor's attribute.

    Args:
        region, patch, background: ``[N, E]``, one floating dtype; rows are normalised inside. Three separate
            forwards of a triplet batch are concatenated to N = 3 x triplets.
        labels: ``[N]`` int64, the value of the row's attribute (counted by attribute or over all of them).
        attributes: ``[N]`` int64.
        temperature: above 0.
        alpha: weight of the backgrounds, at least 0.

    Returns:
        A scalar, float32 (float64 for float64 rows); 0 for N = 0, NaN where a row holds a NaN.
    """
    return torch.ops.placket.region_patch_info_nce(
        region, patch, background, labels, attributes, temperature, alpha
    )


@torch.library.register_fake("placket::region_patch_info_nce")
def _(
    region: Tensor,
    patch: Tensor,
    background: Tensor,
    labels: Tensor,
    attributes: Tensor,
    temperature: float = 0.07,
    alpha: float = 12.0,
) -> Tensor:
    return region.new_empty((), dtype=torch.float64 if region.dtype == torch.float64 else torch.float32)


@torch.library.register_fake("placket::_region_patch_info_nce_backward")
def _(
    grad: Tensor,
    region: Tensor,
    patch: Tensor,
    background: Tensor,
    labels: Tensor,
    attributes: Tensor,
    temperature: float,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(region, memory_format=torch.contiguous_format),
        torch.empty_like(patch, memory_format=torch.contiguous_format),
        torch.empty_like(background, memory_format=torch.contiguous_format),
    )
