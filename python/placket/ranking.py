"""Measures of rankings: what ``ops.rank_metrics`` returns, and the same of ranked lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

__all__ = ["RankMetrics", "rank_metrics_of_lists"]


class RankMetrics(NamedTuple):
    """Measures of each query's ranking: ``[Q]``, or ``[W, Q]`` for W weightings, with K cutoffs.

    With R relevant candidates in the ranking, the i-th of them at rank r_i from 1; all are 0 where R is 0.
    """

    average_precision: Tensor
    """``[..., Q]`` float64: ``sum_i (i / r_i) / R``, candidates of equal score in candidate order."""
    expected_average_precision: Tensor
    """``[..., Q]`` float64: its mean over all orders of candidates of equal score (McSherry and Najork, ECIR
    2008); the same bits where there are none."""
    hits: Tensor
    """``[..., Q, K]`` int64: how many r_i are at most K."""
    precision_sum: Tensor
    """``[..., Q, K]`` float64: the sum of ``i / r_i`` over these; over R, min(R, K) or the hits it is one of
    the three MAP@K of the literature."""
    first: Tensor
    """``[..., Q]`` int64: r_1."""


def rank_metrics_of_lists(
    ranked: ArrayLike,
    query_groups: ArrayLike,
    group_offsets: ArrayLike,
    group_rows: ArrayLike,
    excluded: ArrayLike | None = None,
    cutoffs: Sequence[int] = (),
) -> RankMetrics:
    """Measure rankings that someone else has made; relevance is given as to ``ops.rank_metrics``.

    A relevant candidate that its list lacks is never found: it counts in R and adds nothing. A list knows no
    scores, so that the expected average precision is the plain one.

    Args:
        ranked: ``[Q, L]`` candidate rows, best first; a negative number is no candidate and takes no rank.
        query_groups: ``[Q]`` the group of each query.
        group_offsets: ``[G + 1]`` where each group begins in ``group_rows``, and where the last ends.
        group_rows: ``[N]`` candidate rows.
        excluded: None, or ``[Q]`` a row for each query that is not ranked, -1 for none.
        cutoffs: K ranks, each at least 1.

    Raises:
        ValueError: where shapes do not agree, a cutoff is below 1 or a list holds a candidate twice.
    """
    lists, groups = np.asarray(ranked), np.asarray(query_groups)
    offsets, rows = np.asarray(group_offsets), np.asarray(group_rows)
    count = len(groups)
    left_out = np.full(count, -1) if excluded is None else np.asarray(excluded)
    if lists.ndim != 2 or len(lists) != count:
        raise ValueError(
            f"rank_metrics_of_lists: ranked must have shape [{count}, L] like query_groups, "
            f"got {list(lists.shape)}"
        )
    if left_out.shape != (count,):
        raise ValueError(
            f"rank_metrics_of_lists: excluded must have shape [{count}], got {list(left_out.shape)}"
        )
    if min(cutoffs, default=1) < 1:
        raise ValueError(f"rank_metrics_of_lists: cutoffs must be at least 1, got {min(cutoffs)}")
    average, first = np.zeros(count), np.zeros(count, np.int64)
    hits, sums = np.zeros((count, len(cutoffs)), np.int64), np.zeros((count, len(cutoffs)))
    for q, (row, group) in enumerate(zip(lists, groups, strict=True)):
        wanted = rows[offsets[group] : offsets[group + 1]]
        wanted = wanted[wanted != left_out[q]]
        ranks = _ranks(row[(row >= 0) & (row != left_out[q])], wanted, q)
        precision = np.arange(1, len(ranks) + 1) / ranks
        average[q] = precision.sum() / max(len(wanted), 1)
        first[q] = ranks[0] if len(ranks) else 0
        hits[q] = np.searchsorted(ranks, cutoffs, side="right")
        sums[q] = [precision[:found].sum() for found in hits[q]]
    tensors = map(torch.from_numpy, (average, average.copy(), hits, sums, first))
    return RankMetrics(*tensors)


def _ranks(candidates: NDArray[np.int64], wanted: NDArray[np.int64], query: int) -> NDArray[np.int64]:
    """Return the ranks, from 1, of the candidates that are wanted."""
    if len(np.unique(candidates)) < len(candidates):
        values, times = np.unique(candidates, return_counts=True)
        raise ValueError(
            f"rank_metrics_of_lists: ranked must hold each candidate once, got {values[times > 1][0]} "
            f"more than once for query {query}"
        )
    return np.flatnonzero(np.isin(candidates, wanted)) + 1
