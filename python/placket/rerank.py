"""Re-ranking of retrieved candidates: k-reciprocal neighbours, query expansion, further attributes.

Rows of embeddings are L2-normalised; the distance of two is 1 minus their cosine. Everything is exact, and
equal similarities go by candidate order, as everywhere in placket.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from placket import ops

__all__ = ["attribute_rerank", "k_reciprocal", "query_expansion"]

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]


def k_reciprocal(
    queries: Tensor,
    candidates: Tensor,
    *,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    same: ArrayLike | None = None,
) -> Tensor:
    """Return scores by k-reciprocal encoding (Zhong et al., CVPR 2017, section 3).

    Queries and candidates are taken together, N images. The neighbours ``N(p, k)`` are p itself and the k
    images nearest to it, the reciprocal ones ``R(p, k)`` those of them that have p among theirs. ``R*(p)`` is
    ``R(p, k1)`` and ``R(q, k1 / 2)`` of each q in it of whose ``R(q, k1 / 2)`` at least two thirds are in
    ``R(p, k1)``. p is encoded by ``exp(-d(p, i))`` for i in ``R*(p)``, 0 elsewhere, and then by the mean of
    the encodings of p and its k2 - 1 nearest images (1 leaves the encoding as it is). With the Jaccard
    distance of two encodings, ``1 - sum min / sum max``, the distance is
    ``(1 - weight) d_Jaccard + weight d``.

    That neighbours count p itself, in addition to k and as one of k2, is as in the authors' program. Unlike
    there, encodings are not divided by their sum, and d not by its largest value, which an outlier could set.

    Args:
        queries: ``[Q, D]`` float32.
        candidates: ``[C, D]`` float32.
        k1: neighbours of the encoding.
        k2: images of the mean.
        weight: lambda, of the original distance, 0 to 1.
        same: ``[Q]`` the candidate that is the query itself, which then counts as one image; -1 for none.

    Returns:
        ``[Q, C]`` float32, minus the distance: the higher, the nearer. Memory grows with 20 bytes Q C and
        with N k1.

    Raises:
        ValueError: k1, k2, weight or ``same`` is out of range, or a row is not L2-normalised.
    """
    _check_rows("k_reciprocal", queries=queries, candidates=candidates)
    own = _same("k_reciprocal", same, queries, candidates)
    apart = own < 0
    first = int(apart.sum())
    count = first + len(candidates)
    if not 1 <= k2 <= k1 + 1 or k1 < 1:
        raise ValueError(f"k_reciprocal: k1 must be at least 1 and k2 from 1 to k1 + 1, got {k1} and {k2}")
    if not 0 <= weight <= 1:
        raise ValueError(f"k_reciprocal: weight must be from 0 to 1, got {weight}")
    every = torch.cat([queries[torch.from_numpy(apart).to(queries.device)], candidates]).float().cpu()
    asked = np.where(apart, np.cumsum(apart) - 1, first + own)
    near = _neighbours(every, min(k1, count - 1))
    whole = _reciprocal(near, near.shape[1])
    half = _reciprocal(near, min(k1 // 2 + 1, near.shape[1]))
    rows = [_expanded(whole[p], half) for p in range(count)]
    encoded = [_encoding(every, p, members) for p, members in enumerate(rows)]
    members, values = _mean_encodings(rows, encoded, near[:, :k2])
    scores = _jaccard(members, values, asked, first)
    scores *= weight - 1
    cosine = (every[torch.from_numpy(asked)] @ every[first:].T).double().numpy()
    cosine -= 1
    cosine *= weight
    scores += cosine
    return torch.from_numpy(scores).float().to(queries.device)


def query_expansion(
    queries: Tensor,
    candidates: Tensor,
    *,
    k: int = 5,
    alpha: float = 0.0,
    same: ArrayLike | None = None,
) -> Tensor:
    """Return queries moved towards their nearest candidates.

    ``normalise(q + sum_i max(0, cos(q, c_i))^alpha c_i)`` over the k nearest. With alpha 0 it is average
    query expansion (Chum et al., ICCV 2007), with alpha 3 that of Radenovic et al. (TPAMI 2018).

    Args:
        queries: ``[Q, D]`` float32.
        candidates: ``[C, D]`` float32.
        k: candidates to add, at most C, or C - 1 where a query is among them.
        alpha: exponent of the cosine, at least 0.
        same: ``[Q]`` the candidate that is the query itself, which is not added; -1 for none.

    Returns:
        ``[Q, D]`` float32, L2-normalised.

    Raises:
        ValueError: k, alpha or ``same`` is out of range, or a row is not L2-normalised.
    """
    _check_rows("query_expansion", queries=queries, candidates=candidates)
    own = _same("query_expansion", same, queries, candidates)
    most = len(candidates) - int((own >= 0).any())
    if not 1 <= k <= most:
        raise ValueError(f"query_expansion: k must be from 1 to {most}, got {k}")
    if alpha < 0:
        raise ValueError(f"query_expansion: alpha must be at least 0, got {alpha}")
    scores, rows = _search(queries.float(), candidates.float(), k + len(candidates) - most)
    others = rows != torch.from_numpy(own).to(rows.device)[:, None]
    # Itself need not be among the first where others are equal to it: then the last is one too many.
    kept = others & (others.cumsum(1) <= k)
    scores, rows = scores[kept].unflatten(0, (len(queries), k)), rows[kept].unflatten(0, (len(queries), k))
    added = torch.einsum("qk,qkd->qd", scores.clamp(min=0) ** alpha, candidates.float()[rows])
    return F.normalize(queries.float() + added, dim=1)


def attribute_rerank(
    queries: Mapping[str, Tensor],
    candidates: Mapping[str, Tensor],
    first: str,
    weights: Mapping[str, float],
    k: int = 100,
) -> tuple[Tensor, Tensor]:
    """Rank by one attribute space and sort its first K by a weighted sum over several.

    Args:
        queries: ``[Q, D_s]`` float32 by space.
        candidates: ``[C, D_s]`` float32 by space.
        first: the space whose first K candidates are kept.
        weights: of the cosines in the sum, by space; ``first`` counts there only where it is named.
        k: candidates to sort, at most C.

    Returns:
        Scores ``[Q, k]`` float32, descending, and rows ``[Q, k]`` int64 of the candidates; of equal scores
        the one that is nearer in the first space comes first.

    Raises:
        ValueError: k is out of range, a space is not there, or a row is not L2-normalised.
    """
    for space in (first, *weights):
        if space not in queries or space not in candidates:
            known = ", ".join(name for name in queries if name in candidates)
            raise ValueError(f"attribute_rerank: space must be one of {known}, got '{space}'")
        _check_rows("attribute_rerank", queries=queries[space], candidates=candidates[space])
    if not weights:
        raise ValueError("attribute_rerank: weights must name at least one space, got none")
    if not 1 <= k <= len(candidates[first]):
        raise ValueError(f"attribute_rerank: k must be from 1 to {len(candidates[first])}, got {k}")
    _, rows = _search(queries[first].float(), candidates[first].float(), k)
    scores = torch.zeros(rows.shape, device=rows.device)
    for space, weight in weights.items():
        scores += weight * torch.einsum("qd,qkd->qk", queries[space].float(), candidates[space].float()[rows])
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    return scores, rows.gather(1, order)


def _check_rows(caller: str, **rows: Tensor) -> None:
    for name, given in rows.items():
        # 1e-2 leaves room for rows that were normalised in bfloat16; NaN fails the comparison.
        wrong = ~((given.float().norm(dim=-1) - 1).abs() <= 1e-2)
        if given.ndim != 2 or wrong.any():
            got = f"shape {list(given.shape)}" if given.ndim != 2 else f"{int(wrong.sum())} rows that are not"
            raise ValueError(f"{caller}: {name} must have L2-normalised rows [n, D], got {got}")


def _same(caller: str, same: ArrayLike | None, queries: Tensor, candidates: Tensor) -> Integers:
    own = np.full(len(queries), -1) if same is None else np.asarray(same, dtype=np.int64)
    if own.shape != (len(queries),) or ((own < -1) | (own >= len(candidates))).any():
        raise ValueError(
            f"{caller}: same must have shape [{len(queries)}] and values from -1 to {len(candidates) - 1}, "
            f"got shape {list(own.shape)}" + (f" and {own.min()} to {own.max()}" if own.size else "")
        )
    return own


def _search(queries: Tensor, database: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores and rows of the k best, ``[Q, min(k, N)]``."""
    scores, rows, _ = ops.flat_search([queries], [database], [1.0], k=k)
    return scores, rows


def _neighbours(every: Tensor, k: int) -> Integers:
    """Each image itself, then the k nearest others, ``[N, k + 1]``."""
    _, found = _search(every, every, k + 1)
    rows = found.numpy()
    own = np.arange(len(rows))[:, None]
    # Itself need not be among the first where others are equal to it.
    others = np.stack([row[row != p][:k] for p, row in enumerate(rows)])
    return np.concatenate([own, others], axis=1)


def _reciprocal(near: Integers, size: int) -> list[Integers]:
    """Those of the first neighbours of each image that have it among theirs."""
    first = near[:, :size]
    return [row[(first[row] == p).any(axis=1)] for p, row in enumerate(first)]


def _expanded(reciprocal: Integers, half: list[Integers]) -> Integers:
    added = [reciprocal]
    for q in reciprocal.tolist():
        shared = np.isin(half[q], reciprocal).sum()
        if 3 * shared >= 2 * len(half[q]):
            added.append(half[q])
    return np.unique(np.concatenate(added))


def _encoding(every: Tensor, p: int, members: Integers) -> Reals:
    cosine: Reals = (every[torch.from_numpy(members)] @ every[p]).double().numpy()
    return np.asarray(np.exp(cosine - 1))


def _mean_encodings(
    rows: list[Integers], encoded: list[Reals], near: Integers
) -> tuple[list[Integers], list[Reals]]:
    """The mean of the encodings of each image's first neighbours."""
    members, values = [], []
    for neighbours in near.tolist():
        places, inverse = np.unique(np.concatenate([rows[n] for n in neighbours]), return_inverse=True)
        weights = np.concatenate([encoded[n] for n in neighbours])
        members.append(places)
        values.append(np.bincount(inverse, weights) / len(neighbours))
    return members, values


def _jaccard(members: list[Integers], values: list[Reals], asked: Integers, first: int) -> Reals:
    """Jaccard distances of the encodings asked to those from ``first`` on, by lists of who has what."""
    count = len(members) - first
    owner = np.repeat(np.arange(count), [len(m) for m in members[first:]])
    place = np.concatenate(members[first:])
    order = np.argsort(place, kind="stable")
    owner, value = owner[order], np.concatenate(values[first:])[order]
    begin = np.searchsorted(place[order], np.arange(len(members) + 1))
    sums = np.array([v.sum() for v in values[first:]])
    distances = np.ones((len(asked), count))
    for row, q in enumerate(asked.tolist()):
        least = np.zeros(count)
        for p, v in zip(members[q].tolist(), values[q].tolist(), strict=True):
            those = slice(begin[p], begin[p + 1])
            least[owner[those]] += np.minimum(v, value[those])
        distances[row] = 1 - least / (values[q].sum() + sums - least)
    return distances
