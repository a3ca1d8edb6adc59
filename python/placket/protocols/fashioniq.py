"""Composed retrieval on FashionIQ: an image and a sentence that says what shall differ.

The two protocols differ in the gallery alone, by several points: ``fashioniq-original/v1`` ranks all images
of the category in the split, ``fashioniq-val/v1`` the references and targets of its queries. The reference
image stays in the gallery in both, as in CLIP4Cir's evaluation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from placket.data import Compositions, Split
from placket.protocols._ranking import Integers, checked, hash_of, rank, relevance
from placket.protocols.composed import CUTOFFS, known_ends, there_of
from placket.protocols.result import Result

__all__ = ["fashioniq_original", "fashioniq_val"]


def fashioniq_original(
    compositions: Compositions,
    split: Split,
    queries: Tensor | NDArray[Any],
    images: Tensor | NDArray[Any],
    *,
    present: NDArray[np.bool_] | None = None,
) -> Result:
    """Evaluate embeddings by ``fashioniq-original/v1``.

    Recall@10 and @50 are the shares of queries whose one target is among the first 10 and 50 images of the
    query's category; overall figures are the plain means of the categories.

    Args:
        compositions: the queries, ``Dataset.compositions``.
        split: of which they are; its attribute "category" says the images of each gallery.
        queries: ``[m, D]`` L2-normalised or zero: reference and sentence together, in the order of
            ``compositions``.
        images: ``[N, D]`` the same of every image of the split.
        present: ``[N]`` which images are there; by default all. Those that are not leave the galleries, and
            queries with such a reference or target are left out; the result says how many images miss.

    Raises:
        ValueError: where targets are withheld, the split has no categories, no query is left, or embeddings
            are of another shape or neither L2-normalised nor zero.
    """
    return _evaluate("fashioniq-original/v1", compositions, split, queries, images, present)


def fashioniq_val(
    compositions: Compositions,
    split: Split,
    queries: Tensor | NDArray[Any],
    images: Tensor | NDArray[Any],
    *,
    present: NDArray[np.bool_] | None = None,
) -> Result:
    """Evaluate embeddings by ``fashioniq-val/v1``: as ``fashioniq_original``, but for the smaller gallery."""
    return _evaluate("fashioniq-val/v1", compositions, split, queries, images, present)


def _evaluate(
    protocol: str,
    compositions: Compositions,
    split: Split,
    queries: Tensor | NDArray[Any],
    images: Tensor | NDArray[Any],
    present: NDArray[np.bool_] | None,
) -> Result:
    caller = protocol.split("/")[0].replace("-", "_")
    if compositions.category is None or "category" not in split.schema.names:
        raise ValueError(f"{caller}: compositions must have categories, got those of {split.root} without")
    ends = known_ends(caller, compositions, split)
    there = there_of(caller, split, present)
    attribute = split.schema.index("category")
    asked = checked(caller, "queries must be", queries, ends[:, 0], "cosine")
    offered = checked(caller, "images must be", images, np.arange(len(split)), "cosine")
    first: dict[str, Integers] = {}
    galleries: dict[str, Integers] = {}
    lists: list[Integers] = []
    listed: list[Integers] = []
    for category in np.unique(compositions.category).tolist():
        rows = np.flatnonzero(compositions.category == category)
        if protocol.startswith("fashioniq-original"):
            labels = (split.labels.attribute == attribute) & (split.labels.value == category)
            gallery = np.unique(split.labels.images()[labels])
        else:
            gallery = np.unique(ends[rows])
        listed += [gallery, ends[rows].ravel()]
        gallery, rows = gallery[there[gallery]], rows[there[ends[rows]].all(axis=1)]
        if not len(rows):
            continue
        name = split.schema[attribute].values[category]
        found = rank(
            [asked[torch.from_numpy(rows).to(asked.device)]],
            [offered[torch.from_numpy(gallery).to(offered.device)]],
            relevance(ends[rows, 1], gallery),
            [1],
        )
        first[name], galleries[name] = found.first[0], gallery
        lists += [ends[rows], gallery]
    if not first:
        raise ValueError(f"{caller}: present must leave a query, got none with reference and target")
    every = np.unique(np.concatenate(listed))
    return Result.of(
        protocol,
        {
            f"Recall@{k}": {g: ((r >= 1) & (r <= k)).astype(np.float64) for g, r in first.items()}
            for k in CUTOFFS
        },
        by_group=True,
        missing=int((~there[every]).sum()),
        queries={g: len(ranks) for g, ranks in first.items()},
        candidates={g: len(gallery) for g, gallery in galleries.items()},
        without_relevant=sum(int((ranks == 0).sum()) for ranks in first.values()),
        similarity="cosine",
        lists=hash_of(*lists),
        group="category",
    )
