"""Exact weighted top-k from one ranked list a space.

An engine that ranks each space by itself gives, for a query, the items nearest in that space. The threshold
algorithm (Fagin, Lotem, Naor, "Optimal aggregation algorithms for middleware", JCSS 66, 2003, section 4)
makes the best of a weighted sum from such lists: whoever is in none of them scores at most the weighted sum
of the lists' last cosines, so that as soon as k items score more, these are the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from placket import ops
from placket.index.engines import Vectors

__all__ = ["Best", "Numbers", "Ranked", "cosines", "rescored", "rounding", "weighted_sum", "weighted_top_k"]

Numbers: TypeAlias = NDArray[np.int64]
"""Of rows, the smaller one added earlier; or of queries, from 0."""


class Ranked(NamedTuple):
    """Best of one space for one query."""

    rows: Numbers
    """``[n]``, no row twice."""
    cosines: Vectors
    """``[n]``, best first: descending, or ascending for a negative weight; each within ``slack``."""


class Best(NamedTuple):
    """Answer to one query: n items, n at most k, by falling score, equal scores by row."""

    rows: Numbers
    scores: Vectors
    """``[n]``."""
    cosines: Vectors
    """``[n, S]``."""


def cosines(asked: Sequence[Vectors], queries: Numbers, rows: Sequence[Vectors]) -> Vectors:
    """Return cosines ``[n, S]`` of rows with the query of the number beside each.

    They are those of the flat engine in every bit, whatever stands beside a row.

    Args:
        asked: S arrays of queries, unit rows ``[Q, D]``.
        queries: ``[n]``, numbers of queries; those of one query stand together.
        rows: S arrays of unit rows ``[n, D]``.
    """
    found = np.empty((len(queries), len(asked)), np.float32)
    edges = [0, *(np.flatnonzero(np.diff(queries)) + 1).tolist(), len(queries)]
    for begin, end in pairwise(edges):
        if begin < end:
            one = [torch.from_numpy(each[queries[begin]][None]) for each in asked]
            own = [torch.from_numpy(each[begin:end]) for each in rows]
            _, places, parts = ops.flat_search(one, own, [1.0] * len(asked), None, end - begin)
            found[begin + places[0].numpy()] = parts[0].numpy()
    return found


def rounding(dim: int) -> float:
    """Return how far two float32 dot products of the same two unit vectors can be apart.

    Each is within ``D u / (1 - D u)`` of the true one, in whatever order it is summed, u = 2^-24 (Higham,
    "Accuracy and stability of numerical algorithms", 2002, section 3.1); four u more are for the rounding of
    the vectors to unit length.
    """
    unit = 2.0**-24
    return 2 * (dim * unit / (1 - dim * unit) + 4 * unit)


def weighted_sum(cosines: Vectors, weights: Sequence[float]) -> Vectors:
    """Return scores ``[n]`` of cosines ``[n, S]``: products and sums in float32, spaces in order."""
    scores = np.zeros(len(cosines), np.float32)
    for space, weight in enumerate(weights):
        scores += np.float32(weight) * cosines[:, space]
    return scores


def weighted_top_k(
    ranked: Callable[[int, Numbers, int], Sequence[Ranked]],
    exact: Callable[[Numbers, Numbers], Vectors],
    everything: Callable[[], Numbers],
    weights: Sequence[float],
    *,
    queries: int,
    k: int,
    slack: float,
    deepest: int,
    first: int = 128,
) -> list[Best]:
    """Return the best items under the weighted sum of cosines, as if all had been scored.

    Args:
        ranked: ``(space, queries [q], depth)`` gives for each of these queries the ``depth`` best of a space,
            fewer only where no more are there. Not asked for spaces of weight 0.
        exact: ``(queries [n], rows [n])`` gives the cosines ``[n, S]`` of each query with the row beside it;
            NaN where the item is no more. The rows of one query stand together.
        everything: gives every row; asked where lists of ``deepest`` do not decide.
        weights: S, finite, not all 0.
        queries: how many there are.
        k: at least 1.
        slack: the most by which a listed cosine may be off.
        deepest: beyond it, scoring every row is cheaper, or longer lists are not to be had.
        first: depth of the first lists, 2 k at least; each next is twice as deep.
    """
    asked = [space for space, weight in enumerate(weights) if weight]
    merges = [_Merge(weights, asked, k, slack) for _ in range(queries)]
    left = list(range(queries))
    depth = max(first, 2 * k)
    while left and depth <= deepest:
        lists = [ranked(space, np.array(left), depth) for space in asked]
        bounds = [merges[query].bounds([found[place] for found in lists]) for place, query in enumerate(left)]
        pending = left
        while pending:
            wanted = [merges[query].next_rows() for query in pending]
            _score(exact, merges, pending, wanted)
            pending = [query for query, rows in zip(pending, wanted, strict=True) if len(rows)]
        # Every item is in every space: one list that has all shows all there are.
        whole = [any(len(found[place].rows) < depth for found in lists) for place in range(len(left))]
        # Above, not at: an item of the same score that was added earlier may still be in no list.
        left = [
            query
            for query, bound, all_seen in zip(left, bounds, whole, strict=True)
            if not all_seen and merges[query].least() <= bound
        ]
        depth *= 2
    if left:
        rows = everything()
        for query in left:
            _score(exact, merges, [query], [merges[query].unseen(rows)])
    return [merge.best() for merge in merges]


def rescored(
    ranked: Callable[[int, Numbers, int], Sequence[Ranked]],
    exact: Callable[[Numbers, Numbers], Vectors],
    weights: Sequence[float],
    *,
    queries: int,
    k: int,
    depth: int,
) -> list[Best]:
    """Return the best of what the lists hold: for lists of an approximate index, which promise nothing more.

    The arguments are those of ``weighted_top_k``; ``depth`` is how deep every list is.
    """
    asked = [space for space, weight in enumerate(weights) if weight]
    lists = [ranked(space, np.arange(queries), depth) for space in asked]
    held = [np.unique(np.concatenate([found[query].rows for found in lists])) for query in range(queries)]
    merges = [_Merge(weights, asked, k, 0.0) for _ in range(queries)]
    _score(exact, merges, range(queries), held)
    return [merge.best() for merge in merges]


def _score(
    exact: Callable[[Numbers, Numbers], Vectors],
    merges: Sequence[_Merge],
    queries: Sequence[int],
    rows: Sequence[Numbers],
) -> None:
    """Score rows of several queries at once."""
    counts = [len(each) for each in rows]
    if not sum(counts):
        return
    found = exact(np.repeat(np.array(queries), counts), np.concatenate(rows))
    for query, each, part in zip(queries, rows, np.split(found, np.cumsum(counts)[:-1]), strict=True):
        merges[query].add(each, part)


class _Merge:
    """What is known of one query."""

    def __init__(self, weights: Sequence[float], asked: Sequence[int], k: int, slack: float) -> None:
        self._weights, self._k = weights, k
        self._asked = np.array([weights[space] for space in asked])
        # Off by the lists' own slack, and by float32 in products and sums.
        self._slack = np.abs(self._asked).sum() * (slack + (len(weights) + 1) * 2.0**-24)
        self._best = Best(
            np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((0, len(weights)), np.float32)
        )
        self._seen = np.zeros(0, np.int64)
        self._waiting, self._highest = np.zeros(0, np.int64), np.zeros(0)

    def bounds(self, lists: Sequence[Ranked]) -> float:
        """Take new lists; return what an item in none of them scores at most."""
        last = np.array([float(found.cosines[-1]) if len(found.cosines) else 0.0 for found in lists])
        rows = np.unique(np.concatenate([found.rows for found in lists]))
        known = np.tile(last, (len(rows), 1))
        for place, found in enumerate(lists):
            known[np.searchsorted(rows, found.rows), place] = found.cosines
        highest = known @ self._asked + self._slack
        order = np.argsort(-highest, kind="stable")
        order = order[~np.isin(rows[order], self._seen)]
        self._waiting, self._highest = rows[order], highest[order]
        return float(last @ self._asked + self._slack)

    def next_rows(self) -> Numbers:
        """Return rows to score next; none where no row waiting can be among the best."""
        count = min(max(2 * self._k, 64), int(np.searchsorted(-self._highest, -self.least(), "right")))
        rows, self._waiting, self._highest = (
            self._waiting[:count],
            self._waiting[count:],
            self._highest[count:],
        )
        return rows

    def unseen(self, rows: Numbers) -> Numbers:
        return rows[~np.isin(rows, self._seen)]

    def add(self, rows: Numbers, found: Vectors) -> None:
        self._seen = np.concatenate([self._seen, rows])
        there = ~np.isnan(found).any(axis=1)
        rows, found = rows[there], found[there]
        rows = np.concatenate([self._best.rows, rows])
        scores = np.concatenate([self._best.scores, weighted_sum(found, self._weights)])
        kept = np.lexsort((rows, -scores))[: self._k]
        self._best = Best(rows[kept], scores[kept], np.concatenate([self._best.cosines, found])[kept])

    def least(self) -> float:
        """Return the score to reach."""
        return float(self._best.scores[-1]) if len(self._best.scores) == self._k else -np.inf

    def best(self) -> Best:
        return self._best
