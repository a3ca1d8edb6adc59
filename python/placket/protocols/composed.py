"""Composed retrieval on any catalogue: an image and a text ask for another image (``composed-recall/v1``)."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy

from placket.data import Compositions, Split
from placket.protocols._ranking import Integers, checked, hash_of, rank, relevance
from placket.protocols.result import Result

__all__ = ["Reference", "composed_recall"]

Reference = Literal["kept", "removed"]
"""Whether a query's own image is among its candidates."""

CUTOFFS = (10, 50)


def composed_recall(
    compositions: Compositions,
    split: Split,
    queries: Tensor | NDArray[Any],
    images: Tensor | NDArray[Any],
    *,
    reference: Reference,
    present: NDArray[np.bool_] | None = None,
) -> Result:
    """Evaluate embeddings by ``composed-recall/v1``.

    Recall@10 and @50 are the shares of queries whose target, or another image of its group where there are
    ``Compositions.groups``, is among the first 10 and 50 images of the split.

    Args:
        compositions: the queries, ``Dataset.compositions``.
        split: of which they are; all its images are the gallery.
        queries: ``[m, D]`` L2-normalised or zero: image and text together, in the order of ``compositions``.
        images: ``[N, D]`` the same of every image of the split.
        reference: "kept", the query's own image is a candidate as any other (FashionIQ's custom), or
            "removed" (CIRR's). It stands in the result, and the two never compare.
        present: ``[N]`` which images are there; by default all. Those that are not leave the gallery, and
            queries with such a reference or target are left out; the result says how many images miss.

    Raises:
        ValueError: where targets are withheld, no query is left, or embeddings are of another shape or
            neither L2-normalised nor zero.
    """
    caller = "composed_recall"
    if reference not in get_args(Reference):
        raise ValueError(
            f"{caller}: reference must be one of {', '.join(get_args(Reference))}, got {reference!r}"
        )
    ends = known_ends(caller, compositions, split)
    there = there_of(caller, split, present)
    asked = checked(caller, "queries must be", queries, ends[:, 0], "cosine")
    offered = checked(caller, "images must be", images, np.arange(len(split)), "cosine")
    rows, gallery = np.flatnonzero(there[ends].all(axis=1)), np.flatnonzero(there)
    if not len(rows):
        raise ValueError(f"{caller}: present must leave a query, got none with reference and target")
    own = np.searchsorted(gallery, ends[rows, 0]) if reference == "removed" else None
    groups = np.arange(len(split)) if compositions.groups is None else compositions.groups.astype(np.int64)
    found = rank(
        [asked[from_numpy(rows).to(asked.device)]],
        [offered[from_numpy(gallery).to(offered.device)]],
        relevance(groups[ends[rows, 1]], groups[gallery], excluded=own),
        [1],
    )
    first = found.first[0]
    return Result.of(
        "composed-recall/v1",
        {f"Recall@{k}": {"all": ((first >= 1) & (first <= k)).astype(np.float64)} for k in CUTOFFS},
        missing=int((~there).sum()),
        queries={"all": len(rows)},
        candidates={"all": len(gallery) - (own is not None)},
        without_relevant=int((first == 0).sum()),
        similarity="cosine",
        lists=hash_of(ends[rows], gallery, groups[gallery], *([] if own is None else [own])),
        gallery=f"all images, reference {reference}",
        group="category",
    )


def known_ends(caller: str, compositions: Compositions, split: Split) -> Integers:
    """Return reference and target ``[m, 2]`` of queries, none of them withheld."""
    ends = np.stack([compositions.reference, compositions.target], axis=1).astype(np.int64)
    withheld = int((ends < 0).any(axis=1).sum())
    if withheld:
        raise ValueError(
            f"{caller}: targets must be known, got {withheld} of {len(ends)} withheld; "
            f"evaluate the split 'valid' instead of '{split.name}'"
        )
    return ends


def there_of(caller: str, split: Split, present: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Return which images are there ``[N]``, all by default."""
    there = np.ones(len(split), dtype=np.bool_) if present is None else np.asarray(present, dtype=np.bool_)
    if there.shape != (len(split),):
        raise ValueError(f"{caller}: present must have shape [{len(split)}], got {list(there.shape)}")
    return there
