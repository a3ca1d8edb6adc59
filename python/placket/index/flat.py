"""Exact search of every row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from placket import ops
from placket.index.engines import Found, Vectors
from placket.index.segments import LocalEngine, Segment
from placket.index.where import Expression

__all__ = ["FlatEngine", "create", "load"]

Scores = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]


class FlatEngine(LocalEngine):
    """Scores every row that fulfils the condition, exactly, segment by segment."""

    def search(
        self,
        queries: Mapping[str, Vectors],
        weights: Mapping[str, float],
        k: int,
        where: Expression | None,
    ) -> list[list[Found]]:
        segments = self.segments
        count = len(next(iter(queries.values())))
        found = [_nothing(count, len(queries))]
        found += [_scan(segment, queries, weights, k, segment.select(where)) for segment in segments]
        scores, rows, parts = (np.concatenate(every, axis=-1) for every in zip(*found, strict=True))
        numbers = np.repeat(np.arange(-1, len(segments)), [part[0].shape[1] for part in found])
        # Segments come in the order of addition, and a stable sort keeps it among equal scores.
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
        parts = np.take_along_axis(parts, best[None], 2)
        numbers = numbers[best]
        return [
            [
                Found(
                    segments[numbers[q, i]].id(int(rows[q, i])),
                    float(scores[q, i]),
                    {name: float(parts[s, q, i]) for s, name in enumerate(queries)},
                    segments[numbers[q, i]].metadata(int(rows[q, i])),
                )
                for i in range(scores.shape[1])
            ]
            for q in range(count)
        ]


def _scan(
    segment: Segment,
    queries: Mapping[str, Vectors],
    weights: Mapping[str, float],
    k: int,
    keep: NDArray[np.bool_] | None,
) -> Scores:
    """Return scores ``[Q, k]``, rows ``[Q, k]`` and parts ``[S, Q, k]`` of the best rows of a segment."""
    kept = np.arange(segment.rows) if keep is None else np.flatnonzero(keep)
    if not len(kept):
        return _nothing(len(next(iter(queries.values()))), len(queries))
    parts = np.stack([_cosines(q, segment.vectors[s].array("rows")[kept]) for s, q in queries.items()])
    scores = np.zeros(parts.shape[1:], np.float32)
    for s, name in enumerate(queries):
        scores += np.float32(weights[name]) * parts[s]
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, best, 1), kept[best], np.take_along_axis(parts, best[None], 2)


def _cosines(queries: Vectors, rows: Vectors) -> Vectors:
    scores, at = ops.flat_search(torch.from_numpy(queries), torch.from_numpy(rows), len(rows))
    ordered = torch.empty_like(scores).scatter_(1, at, scores)
    return ordered.numpy()


def _nothing(count: int, spaces: int) -> Scores:
    return (
        np.zeros((count, 0), np.float32),
        np.zeros((count, 0), np.int64),
        np.zeros((spaces, count, 0), np.float32),
    )


def create(path: Path, spaces: Mapping[str, int], options: Mapping[str, Any]) -> FlatEngine:
    """Make an empty index in a folder."""
    if options:
        raise ValueError(f"AttributeIndex.create: engine 'flat' has no options, got {sorted(options)[0]!r}")
    return FlatEngine.create(path, "flat", spaces, options)


def load(path: Path, manifest: Mapping[str, Any], read_only: bool) -> FlatEngine:
    """Open the index in a folder."""
    return FlatEngine.load(path, read_only)
