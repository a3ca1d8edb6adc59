"""Exact search of every row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from placket import ops
from placket.index.engines import Vectors

__all__ = ["FlatEngine"]


class FlatEngine:
    """Scores every row, exactly."""

    # So many rows are joined over the spaces at a time; no result depends on it.
    BLOCK = 65_536

    def search(
        self,
        vectors: Mapping[str, Vectors],
        queries: Mapping[str, Vectors],
        weights: Mapping[str, float],
        k: int,
    ) -> tuple[Vectors, NDArray[np.int64]]:
        # The weighted sum over spaces is one dot product of rows put end to end.
        weighted = [np.float32(weights[s]) * q for s, q in queries.items()]
        query = torch.from_numpy(np.concatenate(weighted))[None]
        count = len(vectors[next(iter(queries))])
        scores, rows = np.zeros(0, np.float32), np.zeros(0, np.int64)
        for begin in range(0, count, self.BLOCK):
            parts = [vectors[s][begin : begin + self.BLOCK] for s in queries]
            block = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
            found = ops.flat_search(query, torch.from_numpy(block), min(k, len(block)))
            scores = np.concatenate([scores, found[0][0].numpy()])
            rows = np.concatenate([rows, found[1][0].numpy() + begin])
            # Blocks come in row order, so a stable sort keeps ties by row.
            best = np.argsort(-scores, kind="stable")[:k]
            scores, rows = scores[best], rows[best]
        return scores, rows
