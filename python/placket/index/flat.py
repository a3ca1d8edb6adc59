"""Exact search of every row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from placket import ops
from placket.index.arrays import Array
from placket.index.engines import Found, Vectors
from placket.index.segments import LocalEngine, Segment, described
from placket.index.where import Expression

__all__ = ["FlatEngine", "create", "load"]

_Best = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]
"""Scores ``[Q, k']``, rows ``[Q, k']``, cosines ``[Q, k', S]``."""
_STORAGE = {"float32": None, "bfloat16": torch.bfloat16, "int8": torch.int8}


class FlatEngine(LocalEngine):
    """Scores every row that fulfils the condition, exactly, segment by segment.

    With the storage "bfloat16" or "int8" it has a smaller copy of the rows beside them, reads that, and
    scores the few rows that can be among the best in float32: the hits are the same in every bit.
    """

    def search(
        self,
        queries: Mapping[str, Vectors],
        weights: Mapping[str, float],
        k: int,
        where: Expression | None,
    ) -> list[list[Found]]:
        segments = self.segments
        count = len(next(iter(queries.values())))
        found: list[_Best] = [
            (
                np.zeros((count, 0), np.float32),
                np.zeros((count, 0), np.int64),
                np.zeros((count, 0, len(queries)), np.float32),
            )
        ]
        found += [self._scan(segment, queries, weights, k, segment.select(where)) for segment in segments]
        scores, rows, parts = (np.concatenate(every, axis=1) for every in zip(*found, strict=True))
        numbers = np.repeat(np.arange(-1, len(segments)), [one[0].shape[1] for one in found])
        # Segments come in the order of addition, and a stable sort keeps it among equal scores.
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        items = described(segments, numbers[best].ravel(), np.take_along_axis(rows, best, 1).ravel())
        hits = best.shape[1]
        return [
            [
                Found(
                    items[at][0],
                    float(scores[q, i]),
                    dict(zip(queries, parts[q, i].tolist(), strict=True)),
                    items[at][1],
                )
                for at, i in enumerate(best[q].tolist(), q * hits)
            ]
            for q in range(count)
        ]

    def _scan(
        self,
        segment: Segment,
        queries: Mapping[str, Vectors],
        weights: Mapping[str, float],
        k: int,
        keep: NDArray[np.bool_] | None,
    ) -> _Best:
        """Return the best rows of a segment."""
        asked = [torch.from_numpy(rows) for rows in queries.values()]
        stored = [segment.vectors[name] for name in queries]
        rows = [torch.from_numpy(arrays.array("rows")) for arrays in stored]
        used = [weights[name] for name in queries]
        kept = None if keep is None else torch.from_numpy(keep)
        if self._dtype is None:
            found = ops.flat_search(asked, rows, used, kept, k)
        else:
            codes = [torch.from_numpy(arrays.array("codes")).view(self._dtype) for arrays in stored]
            bounds = [torch.from_numpy(arrays.array("bounds")) for arrays in stored]
            found = ops.flat_search_compressed(asked, rows, codes, bounds, used, kept, k)
        scores, places, parts = found
        return scores.numpy(), places.numpy(), parts.numpy()

    @property
    def _dtype(self) -> torch.dtype | None:
        return _STORAGE[self._options["storage"]]

    def _arrays(self, rows: Vectors) -> dict[str, Array]:
        if self._dtype is None:
            return {"rows": rows}
        codes, bounds = ops.quantize(torch.from_numpy(rows), self._dtype)
        # NumPy has no bfloat16.
        plain = codes.view(torch.int16) if self._dtype == torch.bfloat16 else codes
        return {"codes": plain.numpy(), "bounds": bounds.numpy(), "rows": rows}


def create(path: Path, spaces: Mapping[str, int], options: Mapping[str, Any]) -> FlatEngine:
    """Make an empty index in a folder.

    Options:
        storage: "float32"; or "bfloat16" or "int8", which take half or a quarter more on disk and are
            searched faster, with the same hits.
    """
    given = {"storage": "float32", **options}
    if unknown := given.keys() - {"storage"}:
        raise ValueError(
            f"AttributeIndex.create: options of engine 'flat' must be storage, got {sorted(unknown)[0]!r}"
        )
    if given["storage"] not in _STORAGE:
        raise ValueError(
            f"AttributeIndex.create: storage must be one of {list(_STORAGE)}, got {given['storage']!r}"
        )
    return FlatEngine.create(path, "flat", spaces, given)


def load(path: Path, manifest: Mapping[str, Any], read_only: bool) -> FlatEngine:
    """Open the index in a folder."""
    return FlatEngine.load(path, read_only)
