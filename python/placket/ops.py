"""The operators as typed functions: each has a CPU and a CUDA kernel and, where there is a gradient, C++ autograd.

Dimensions: B images, C channels of a map of h x w positions, N rows, D channels of an embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["average_precision", "batch_norm_act", "cosine_triplet", "flat_search"]


def average_precision(
    queries: Tensor, candidates: Tensor, query_values: Tensor, candidate_values: Tensor, block: int = 256
) -> Tensor:
    """Return the average precision of each query over the whole candidate list.

    ``AP(q) = (1 / R_q) sum_i rel_i (sum_{j <= i} rel_j) / i``, and 0 where no candidate is relevant.
    Candidates are ranked by dot product in float32, ties by candidate order; a candidate is relevant when its
    value equals the query's. On CPU the bits depend on neither ``block`` nor the number of threads.

    Args:
        queries: ``[Q, D]`` float32, usually L2-normalised.
        candidates: ``[C, D]`` float32.
        query_values: ``[Q]`` int64.
        candidate_values: ``[C]`` int64.
        block: of so many queries scores exist at a time.

    Returns:
        ``[Q]`` float64 in [0, 1].

    Raises:
        ValueError: where a score is NaN.
    """
    return torch.ops.placket.average_precision(queries, candidates, query_values, candidate_values, block)


@torch.library.register_fake("placket::average_precision")
def _(
    queries: Tensor, candidates: Tensor, query_values: Tensor, candidate_values: Tensor, block: int = 256
) -> Tensor:
    return queries.new_empty(queries.shape[0], dtype=torch.float64)


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


def flat_search(queries: Tensor, database: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` rows of the database with the largest dot product, exactly; equal scores by row.

    On CPU the bits depend on neither the number of threads nor the other queries.

    Args:
        queries: ``[Q, D]`` float32.
        database: ``[N, D]`` float32.
        k: at most N.

    Returns:
        Scores ``[Q, k]`` float32, descending, and rows ``[Q, k]`` int64.

    Raises:
        ValueError: where a score is NaN.
    """
    return torch.ops.placket.flat_search(queries, database, k)


@torch.library.register_fake("placket::flat_search")
def _(queries: Tensor, database: Tensor, k: int) -> tuple[Tensor, Tensor]:
    scores = queries.new_empty(queries.shape[0], k)
    return scores, torch.empty_like(scores, dtype=torch.int64)
