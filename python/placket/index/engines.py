"""Engines: what finds the best rows of an index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from placket import ops

__all__ = ["ENGINES", "Engine", "FlatEngine"]

Vectors = NDArray[np.float32]


class Engine(Protocol):
    """Finds the rows with the largest weighted sum of dot products over several spaces."""

    def search(
        self,
        vectors: Mapping[str, Vectors],
        queries: Mapping[str, Vectors],
        weights: Mapping[str, float],
        k: int,
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Return scores ``[k]``, descending, and rows ``[k]``; equal scores by row.

        Args:
            vectors: ``[N, D]`` of every space of the index, D its own in each; may be memory-mapped.
            queries: ``[D]`` for the spaces that count.
            weights: one for each query.
            k: at most N.
        """
        ...


class FlatEngine:
    """Scores every row, exactly."""

    def search(
        self,
        vectors: Mapping[str, Vectors],
        queries: Mapping[str, Vectors],
        weights: Mapping[str, float],
        k: int,
    ) -> tuple[Vectors, NDArray[np.int64]]:
        found = ops.flat_search(
            [torch.from_numpy(q)[None] for q in queries.values()],
            [torch.from_numpy(vectors[name]) for name in queries],
            [weights[name] for name in queries],
            k=k,
        )
        return found[0][0].numpy(), found[1][0].numpy()


ENGINES: dict[str, Callable[[], Engine]] = {"flat": FlatEngine}
"""Engines by the names that ``AttributeIndex.create`` takes."""
