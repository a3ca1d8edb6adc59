"""Rankings and their figures in plain loops, as slow as they are readable."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def exact_rows(images: int, *spaces: int) -> Tensor:
    """Unit rows whose products are multiples of 1/2, exact in any order of summation, with many ties."""
    return torch.randint(2, (images, *spaces, 4)) - 0.5


def ranked(scores: Sequence[float], relevant: Sequence[bool]) -> list[bool]:
    """Relevance in the order of falling scores, equal ones by candidate order."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return [bool(relevant[i]) for i in order]


def precision_sum(ranked: Sequence[bool], k: int | None = None) -> float:
    return sum(sum(ranked[:i]) / i for i, hit in enumerate(ranked[:k], start=1) if hit)


def average_precision(ranked: Sequence[bool]) -> float:
    return precision_sum(ranked) / sum(ranked) if any(ranked) else 0.0


def rank_of_first(ranked: Sequence[bool]) -> int:
    return ranked.index(True) + 1 if any(ranked) else 0


def expected_average_precision(scores: Sequence[float], relevant: Sequence[bool]) -> float:
    """The mean over all orders of candidates with equal scores, candidate by candidate.

    At place t of n equal candidates, r of them relevant, one is relevant with probability r / n, and then
    (t - 1) (r - 1) / (n - 1) of those before it are, on average.
    """
    if not any(relevant):
        return 0.0
    total, before, hits = 0.0, 0, 0
    for score in sorted(set(scores), reverse=True):
        equal = [hit for s, hit in zip(scores, relevant, strict=True) if s == score]
        n, r = len(equal), sum(equal)
        for t in range(1, n + 1):
            above = (t - 1) * (r - 1) / (n - 1) if n > 1 else 0.0
            total += r / n * (hits + 1 + above) / (before + t)
        before, hits = before + n, hits + r
    return total / sum(relevant)
