"""Bootstrap intervals over queries, and permutation tests of paired differences.

Random numbers come from Philox, a counter-based generator, so that equal seeds give equal figures anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Interval", "bootstrap_interval"]

Interval = tuple[float, float]
_RESAMPLES = 2000
_BLOCK_BYTES = 1 << 23


def bootstrap_interval(
    values: ArrayLike, *, share: float = 0.95, resamples: int = _RESAMPLES, seed: int = 0
) -> Interval:
    """Return the percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: ``[n]`` one figure for each query.
        share: of the resampled means that lies inside.
        resamples: of n values each, drawn with replacement by a counter-based generator.
        seed: equal seeds give equal intervals.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"bootstrap_interval: values must have shape [n] with n >= 1, got {list(x.shape)}")
    return _intervals(_resampled_means(x[None], resamples, np.random.Philox(seed)), share)[0]


def mean_intervals(columns: NDArray[np.float64], seed: int = 0) -> list[Interval]:
    """Return ``bootstrap_interval`` of M figures ``[M, n]`` of the same n queries."""
    return _intervals(_resampled_means(columns, _RESAMPLES, np.random.Philox(seed)))


def overall_intervals(groups: Sequence[NDArray[np.float64]], by_group: bool, seed: int = 0) -> list[Interval]:
    """Return the intervals of M overall means.

    Args:
        groups: ``[M, n_g]`` each, the same M figures of every group's queries.
        by_group: whether the overall figure is the plain mean of the groups' means, which are then resampled
            each for itself, or the mean of all queries.
        seed: equal seeds give equal intervals.
    """
    if not by_group:
        return mean_intervals(np.concatenate(groups, axis=1), seed)
    means = [
        _resampled_means(group, _RESAMPLES, np.random.Philox(np.random.SeedSequence([seed, g])))
        for g, group in enumerate(groups)
    ]
    return _intervals(np.mean(means, axis=0))


def permutation_p_values(weighted: NDArray[np.float64], permutations: int, seed: int) -> list[float]:
    """Return two-sided p-values of M paired differences by random changes of sign.

    If neither of two models is better, each query's difference is as likely to have the other sign. The
    p-value is the share of the sign patterns, the observed one among them, whose sum is at least as far from
    0 as the observed (Phipson and Smyth 2010).

    Args:
        weighted: ``[M, n]`` differences of the same n queries, times the query's weight in the overall mean.
        permutations: drawn sign patterns.
        seed: equal seeds give equal p-values.
    """
    random = np.random.Generator(np.random.Philox(seed))
    changed = weighted[:, (weighted != 0).any(axis=0)]
    total, n = changed.sum(axis=1), changed.shape[1]
    # Patterns that differ in rounding only are as extreme; 1e-12 of the greatest sum is far above rounding
    # and far below one query's share.
    bound = np.abs(total) - 1e-12 * np.abs(changed).sum(axis=1)
    extreme = np.ones(len(changed))
    size = max(1, _BLOCK_BYTES // (8 * max(n, 1)))
    for start in range(0, permutations, size):
        rows = min(size, permutations - start)
        bits = random.integers(256, size=(rows, -(-n // 8)), dtype=np.uint8)
        flipped = np.unpackbits(bits, axis=1, count=n).astype(np.float64)
        extreme += (np.abs(total - 2 * (flipped @ changed.T)) >= bound).sum(axis=0)
    return [float(count) / (permutations + 1) for count in extreme]


def _resampled_means(
    columns: NDArray[np.float64], resamples: int, stream: np.random.BitGenerator
) -> NDArray[np.float64]:
    """Return means ``[M, resamples]`` of M figures ``[M, n]`` of the same n queries, drawn together."""
    random = np.random.Generator(stream)
    count, n = columns.shape
    size = max(1, _BLOCK_BYTES // (8 * count * n))
    means = [
        # take, unlike an index, leaves the draws of a figure side by side, so that its sums do not depend on
        # the other figures.
        columns.take(random.integers(n, size=(min(size, resamples - start), n)), axis=1).mean(axis=2)
        for start in range(0, resamples, size)
    ]
    return np.concatenate(means, axis=1)


def _intervals(means: NDArray[np.float64], share: float = 0.95) -> list[Interval]:
    """Return the percentile interval of each row of resampled means ``[M, resamples]``."""
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2], axis=1)
    return list(zip(low.tolist(), high.tolist(), strict=True))
