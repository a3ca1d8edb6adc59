"""What the protocols share: relevance as the operator takes it, checks of embeddings, hashes of lists."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from placket import ops

Similarity = Literal["cosine", "dot"]
Integers = NDArray[np.int64]
Reals = NDArray[np.float64]


class Relevance(NamedTuple):
    """Which of C candidates answer which of Q queries: those that have the value that a query wants."""

    query_groups: Integers  # [Q]
    group_offsets: Integers  # [G + 1]
    group_rows: Integers  # [labels of the candidates]
    excluded: Integers | None  # [Q] the candidate that is none to a query, or -1
    counts: Integers  # [Q] relevant candidates


def relevance(
    wanted: Integers, values: Integers, rows: Integers | None = None, excluded: Integers | None = None
) -> Relevance:
    """Make the relevance of queries that want a value.

    Args:
        wanted: ``[Q]`` the value of each query.
        values: ``[L]`` of the candidates.
        rows: ``[L]`` the candidate that has each value; by default candidate i has ``values[i]``.
        excluded: ``[Q]`` the candidate that is none to a query, -1 where all are.
    """
    rows = np.arange(len(values)) if rows is None else rows
    every, group = np.unique(np.concatenate([wanted, values]), return_inverse=True)
    asked, having = group[: len(wanted)], group[len(wanted) :]
    order = np.lexsort((rows, having))
    offsets = np.searchsorted(having[order], np.arange(len(every) + 1))
    counts = np.diff(offsets)[asked]
    if excluded is not None and not (excluded >= 0).any():
        excluded = None
    if excluded is not None:
        width = 1 + max(rows.max(initial=0), excluded.max(initial=0))
        counts = counts - ((excluded >= 0) & np.isin(asked * width + excluded, having * width + rows))
    return Relevance(asked, offsets, rows[order], excluded, counts)


class Ranked(NamedTuple):
    """What ranking Q queries by W weightings of the spaces gives; K cutoffs."""

    average_precision: Reals  # [W, Q]
    expected_average_precision: Reals  # [W, Q] over all orders of candidates with equal scores
    hits: Integers  # [W, Q, K] relevant candidates among the first
    precision_sum: Reals  # [W, Q, K] sum of the precisions at them
    first: Integers  # [W, Q] rank of the first relevant one, 0 for none


def rank(
    queries: Sequence[Tensor],
    candidates: Sequence[Tensor],
    relevant: Relevance,
    cutoffs: Sequence[int],
    weights: ArrayLike | None = None,
) -> Ranked:
    """Rank candidates by the weighted sum of dot products in S spaces.

    Args:
        queries, candidates: ``[Q, D_s]`` and ``[C, D_s]`` float32 for each space.
        relevant: of these queries and candidates.
        cutoffs: of ``hits`` and ``precision_sum``.
        weights: ``[W, S]`` float32; by default one weighting, of ones.
    """
    device = queries[0].device
    mixed = torch.as_tensor(
        np.ones((1, len(queries))) if weights is None else np.asarray(weights), dtype=torch.float32
    )
    if not len(candidates[0]):
        shape = len(mixed), len(queries[0])
        by_cutoff = np.zeros((*shape, len(cutoffs)))
        return Ranked(
            np.zeros(shape), np.zeros(shape), by_cutoff.astype(np.int64), by_cutoff, np.zeros(shape, np.int64)
        )

    def placed(array: Integers) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device)

    found = ops.rank_metrics(
        list(queries),
        list(candidates),
        mixed.to(device),
        placed(relevant.query_groups),
        placed(relevant.group_offsets),
        placed(relevant.group_rows),
        None if relevant.excluded is None else placed(relevant.excluded),
        list(cutoffs),
    )
    return Ranked(*(tensor.cpu().numpy() for tensor in found))


def ranked_by(
    scores: NDArray[np.float32], wanted: Integers, values: Integers, excluded: Integers
) -> tuple[Integers, Reals]:
    """Rank candidates by scores; equal ones stay in their order, as everywhere.

    Args:
        scores: ``[Q, C]``.
        wanted: ``[Q]`` the value of each query.
        values: ``[C]`` of the candidates.
        excluded: ``[Q]`` the candidate that is none to a query, -1 where all are.

    Returns:
        ``[Q]`` the rank of each query's first relevant candidate, 0 for none, and its average precision.
    """
    first, precision = np.zeros(len(scores), np.int64), np.zeros(len(scores))
    for q, row in enumerate(scores):
        order = np.argsort(-row, kind="stable")
        order = order[order != excluded[q]]
        places = np.flatnonzero(values[order] == wanted[q]) + 1
        if len(places):
            first[q] = places[0]
            precision[q] = (np.arange(1, len(places) + 1) / places).mean()
    return first, precision


def check_similarity(caller: str, similarity: str) -> None:
    if similarity not in get_args(Similarity):
        raise ValueError(f"{caller}: similarity must be 'cosine' or 'dot', got {similarity!r}")


def checked(
    caller: str,
    name: str,
    embeddings: Tensor | NDArray[Any],
    images: Integers,
    similarity: Similarity,
    where: str = "",
) -> Tensor:
    """Return embeddings ``[n, D]`` in float32, L2-normalised again for "cosine".

    Args:
        caller, name: of the function and of its argument, for messages.
        embeddings: of these images.
        images: ``[n]``, for messages.
        similarity: "cosine" takes L2-normalised rows and zeros, "dot" any finite rows.
        where: what else tells the row.
    """
    rows = torch.as_tensor(embeddings).detach().float()
    if rows.ndim != 2 or len(rows) != len(images):
        raise ValueError(f"{caller}: {name} shape [{len(images)}, D], got {list(rows.shape)}")
    norms = rows.norm(dim=1)
    if similarity == "cosine":
        # 1e-2 leaves room for rows that were normalised in bfloat16; NaN fails the comparison.
        wrong = ~(((norms - 1).abs() <= 1e-2) | (norms == 0))
        kind = "L2-normalised"
    else:
        wrong = ~rows.isfinite().all(dim=1)
        kind = "finite"
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"{caller}: {name} {kind} rows, got norm {norms[first].item():.4g} for "
            f"image {images[first]}{where}"
        )
    return F.normalize(rows, dim=1) if similarity == "cosine" else rows


def hash_of(*lists: Integers) -> str:
    """Return the SHA-256 of lists of integers."""
    digest = hashlib.sha256()
    for rows in lists:
        digest.update(f"{len(rows)}\n".encode() + rows.astype("<i8").tobytes())
    return digest.hexdigest()


def share(part: NDArray[Any], whole: NDArray[Any]) -> Reals:
    """Return ``part / whole``, 0 where the whole is 0."""
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)
