"""Retrieval of a product's photos: consumer-to-shop (``c2s-topk/v1``) and in-shop (``inshop-recall/v1``).

A query is a photo of a known product; a candidate is relevant when it shows the same product. A photo is
never its own candidate, and where photos were shot in sequences, those of the query's sequence are none
either, which is the convention of Open-Metric-Learning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from placket import rerank as reranking
from placket.protocols._ranking import Integers, Reals, checked, hash_of, rank, ranked_by, relevance
from placket.protocols.result import Result

__all__ = ["Gallery", "Photos", "Rerank", "c2s_topk", "inshop_recall"]

Floats = NDArray[np.float32]
Gallery = Literal["all-shop", "per-subset"]
Rerank = Literal["k-reciprocal", "query-expansion"]
MOST_PAIRS = 100_000_000
"""Of query and candidate, for each of which ``k_reciprocal`` needs 20 bytes."""


class Photos(NamedTuple):
    """A list of photos, as queries or as gallery."""

    images: Integers
    """[n] a number of each photo, the same wherever it is listed, and of no other."""
    products: Integers
    """[n] what it shows; in a gallery -1 where that is not known."""
    categories: Integers | None = None
    """[n] within which is sought; None: among all."""
    sequences: Integers | None = None
    """[n] photos that were shot together; -1 for none."""


def c2s_topk(
    queries: Photos,
    gallery: Photos,
    query_embeddings: Tensor | NDArray[Any],
    gallery_embeddings: Tensor | NDArray[Any],
    *,
    gallery_kind: Gallery,
    categories: Sequence[str] = (),
    weights: ArrayLike | None = None,
    similarity: str = "cosine",
    rerank: Rerank | None = None,
    missing: int = 0,
) -> Result:
    """Evaluate embeddings by ``c2s-topk/v1``.

    Top-k accuracy is the share of consumer photos with at least one shop photo of their product among the
    first k = 1, 10, 20, 50. (It is not mmfashion's "Recall@k", which divides by the number of shop photos.)

    Args:
        queries: consumer photos.
        gallery: shop photos.
        query_embeddings, gallery_embeddings: ``[n, D]`` L2-normalised or zero, in list order; or
            ``[n, S, D]`` for S spaces, whose cosines are averaged.
        gallery_kind: "all-shop", the shop photos of validation and test as the benchmark has it, or
            "per-subset", those of the queries' split alone. It stands in the result.
        categories: names of the numbers in ``Photos.categories``.
        weights: ``[S]`` of the spaces in the average; equal by default.
        similarity: how the result describes what ranked the candidates.
        rerank: what changes the ranking after the search, ``placket.rerank.k_reciprocal`` or
            ``query_expansion`` with their defaults; the result's ``similarity`` says so. Each sees the
            queries of a category and all candidates there, a photo in both lists once; what is no answer for
            its sequence is taken out of the ranking, not of the neighbours. Several spaces are one, in which
            the cosine is their average.
        missing: photos of the lists that were left out because they are not there.

    Raises:
        ValueError: where the lists are empty or do not fit each other, a query's product is not known, or a
            row is neither L2-normalised nor zero; with ``rerank`` also where a row is zero, a weight
            negative, or for "k-reciprocal" a category has more than ``MOST_PAIRS``.
    """
    if gallery_kind not in get_args(Gallery):
        raise ValueError(
            f"c2s_topk: gallery_kind must be one of {', '.join(get_args(Gallery))}, got {gallery_kind!r}"
        )
    return _evaluate(
        "c2s-topk/v1",
        "c2s_topk",
        {f"top-{k} accuracy": k for k in (1, 10, 20, 50)},
        queries,
        gallery,
        (query_embeddings, gallery_embeddings),
        categories,
        weights,
        similarity,
        rerank,
        gallery=gallery_kind,
        missing=missing,
    )


def inshop_recall(
    queries: Photos,
    gallery: Photos,
    query_embeddings: Tensor | NDArray[Any],
    gallery_embeddings: Tensor | NDArray[Any],
    *,
    categories: Sequence[str] = (),
    weights: ArrayLike | None = None,
    similarity: str = "cosine",
    rerank: Rerank | None = None,
    missing: int = 0,
) -> Result:
    """Evaluate embeddings by ``inshop-recall/v1``.

    Recall@k, in this literature, is the share of queries with at least one photo of their product among the
    first k = 1, 10, 20, 30. Arguments are those of ``c2s_topk``.

    Raises:
        ValueError: as ``c2s_topk``.
    """
    return _evaluate(
        "inshop-recall/v1",
        "inshop_recall",
        {f"Recall@{k}": k for k in (1, 10, 20, 30)},
        queries,
        gallery,
        (query_embeddings, gallery_embeddings),
        categories,
        weights,
        similarity,
        rerank,
        missing=missing,
    )


def _evaluate(
    protocol: str,
    caller: str,
    cutoffs: dict[str, int],
    asked: Photos,
    offered: Photos,
    embeddings: tuple[Tensor | NDArray[Any], Tensor | NDArray[Any]],
    categories: Sequence[str],
    weights: ArrayLike | None,
    similarity: str,
    rerank: Rerank | None,
    **rest: Any,
) -> Result:
    if rerank is not None and rerank not in get_args(Rerank):
        raise ValueError(f"{caller}: rerank must be one of {', '.join(get_args(Rerank))}, got {rerank!r}")
    _check(caller, asked, offered)
    queries = _spaces(caller, "query_embeddings", embeddings[0], asked.images)
    gallery = _spaces(caller, "gallery_embeddings", embeddings[1], offered.images)
    if [x.shape[1] for x in queries] != [x.shape[1] for x in gallery]:
        shapes = [list(x.shape[1:]) for x in embeddings]
        raise ValueError(
            f"{caller}: query_embeddings and gallery_embeddings must have the same spaces, got {shapes}"
        )
    average = np.ones(len(queries)) if weights is None else np.asarray(weights, dtype=np.float64)
    if average.shape != (len(queries),):
        raise ValueError(
            f"{caller}: weights must have shape [{len(queries)}], one for each space, "
            f"got {list(average.shape)}"
        )
    first = np.zeros(len(asked.images), dtype=np.int64)
    precision = np.zeros(len(asked.images))
    without = 0
    if rerank is not None:
        queries, gallery = (_joined(caller, spaces, average) for spaces in (queries, gallery))
        average = np.ones(1)
        similarity += f", re-ranked by {_DESCRIBED[rerank]}"
    for category in _groups(asked, ()).values():
        met = _offered(asked, offered, category[0])
        scores: Floats | None = None
        if rerank is not None and len(met):
            own = _positions(asked.images[category], offered.images[met])
            several = _taken(queries, category)[0], _taken(gallery, met)[0]
            if rerank == "k-reciprocal":
                scores = _k_reciprocal(caller, *several, own)
            elif most := min(5, len(met) - int((own >= 0).any())):
                moved = reranking.query_expansion(*several, k=most, same=own)
                queries[0][torch.from_numpy(category).to(moved.device)] = moved
        for rows, kept in _parts(asked, offered, category, met):
            own = _positions(asked.images[rows], offered.images[kept])
            relevant = relevance(asked.products[rows], offered.products[kept], excluded=own)
            without += int((relevant.counts == 0).sum())
            if scores is not None:
                part = scores[np.searchsorted(category, rows)][:, np.searchsorted(met, kept)]
                first[rows], precision[rows] = ranked_by(
                    part, asked.products[rows], offered.products[kept], own
                )
                continue
            found = rank(_taken(queries, rows), _taken(gallery, kept), relevant, [1], average[None])
            first[rows], precision[rows] = found.first[0], found.average_precision[0]
    groups = _groups(asked, categories)
    figures = {name: ((first >= 1) & (first <= k)).astype(np.float64) for name, k in cutoffs.items()}
    figures["mAP"] = precision
    return Result.of(
        protocol,
        {name: {g: values[rows] for g, rows in groups.items()} for name, values in figures.items()},
        queries={g: len(rows) for g, rows in groups.items()},
        candidates={g: len(_offered(asked, offered, rows[0])) for g, rows in groups.items()},
        without_relevant=without,
        lists=hash_of(_columns(asked), _columns(offered)),
        group="category",
        similarity=similarity,
        **rest,
    )


_DESCRIBED = {
    "k-reciprocal": "k-reciprocal neighbours (k1 20, k2 6, weight 0.3)",
    "query-expansion": "query expansion (mean with the 5 nearest)",
}


def _joined(caller: str, spaces: Sequence[Tensor], weights: Reals) -> list[Tensor]:
    """Return the one space whose cosine is the weighted mean of the spaces' cosines."""
    if (weights < 0).any() or not weights.any():
        raise ValueError(f"{caller}: weights must not be negative with rerank, got {weights.tolist()}")
    roots = np.sqrt(weights / weights.sum()).tolist()
    return [torch.cat([space * root for space, root in zip(spaces, roots, strict=True)], dim=1)]


def _k_reciprocal(caller: str, queries: Tensor, gallery: Tensor, same: Integers) -> Floats:
    if len(queries) * len(gallery) > MOST_PAIRS:
        raise ValueError(
            f"{caller}: rerank must be of at most {MOST_PAIRS:,} pairs of query and candidate with "
            f"'k-reciprocal', got {len(queries):,} x {len(gallery):,}; 'query-expansion' has no such bound"
        )
    scores: Floats = reranking.k_reciprocal(queries, gallery, same=same).cpu().numpy()
    return scores


def _check(caller: str, queries: Photos, gallery: Photos) -> None:
    for name, photos in (("queries", queries), ("gallery", gallery)):
        if not len(photos.images):
            raise ValueError(f"{caller}: {name} must hold at least one photo, got none")
        for field, column in zip(Photos._fields, photos, strict=True):
            if column is not None and np.shape(column) != (len(photos.images),):
                raise ValueError(
                    f"{caller}: {field} of {name} must have shape [{len(photos.images)}], "
                    f"got {list(np.shape(column))}"
                )
        if len(np.unique(photos.images)) != len(photos.images):
            raise ValueError(f"{caller}: images of {name} must be there once each, got some twice")
    if (queries.categories is None) != (gallery.categories is None):
        raise ValueError(
            f"{caller}: categories must be given for queries and gallery or for neither, got one of them"
        )
    unknown = queries.products < 0
    if unknown.any():
        raise ValueError(
            f"{caller}: products of queries must be 0 or more, got {queries.products[unknown][0]} "
            f"for image {queries.images[unknown][0]}"
        )


def _spaces(caller: str, name: str, embeddings: Tensor | NDArray[Any], images: Integers) -> list[Tensor]:
    """Return the spaces of embeddings ``[n, D]`` or ``[n, S, D]``, checked."""
    rows = torch.as_tensor(embeddings)
    if rows.ndim not in (2, 3) or len(rows) != len(images):
        raise ValueError(
            f"{caller}: {name} must have shape [{len(images)}, D] or [{len(images)}, S, D], "
            f"got {list(rows.shape)}"
        )
    spaces = rows.unsqueeze(1) if rows.ndim == 2 else rows
    return [checked(caller, f"{name} must be", space, images, "cosine") for space in spaces.unbind(1)]


def _parts(
    asked: Photos, offered: Photos, rows: Integers, kept: Integers
) -> Iterator[tuple[Integers, Integers]]:
    """Yield rows of a category's queries with the rows of the gallery that they meet; each query once."""
    if asked.sequences is None or offered.sequences is None:
        yield rows, kept
        return
    shot, around = asked.sequences[rows], offered.sequences[kept]
    shot = np.where(np.isin(shot, around), shot, -1)
    for sequence in np.unique(shot).tolist():
        yield rows[shot == sequence], kept if sequence < 0 else kept[around != sequence]


def _offered(asked: Photos, offered: Photos, row: int) -> Integers:
    """Rows of the gallery in the category of a query."""
    if asked.categories is None or offered.categories is None:
        return np.arange(len(offered.images))
    return np.flatnonzero(offered.categories == asked.categories[row])


def _taken(spaces: Sequence[Tensor], rows: Integers) -> list[Tensor]:
    return [space[torch.from_numpy(rows).to(space.device)] for space in spaces]


def _groups(asked: Photos, names: Sequence[str]) -> dict[str, Integers]:
    """Rows of the queries by the name of their category."""
    if asked.categories is None:
        return {"all": np.arange(len(asked.images))}
    return {
        names[c] if names else str(c): np.flatnonzero(asked.categories == c)
        for c in np.unique(asked.categories).tolist()
    }


def _positions(wanted: Integers, listed: Integers) -> Integers:
    """Return where each wanted number is in a list, -1 where it is not."""
    order = np.argsort(listed, kind="stable")
    place = np.searchsorted(listed[order], wanted)
    inside = np.append(order, -1)[place]
    return np.where((inside >= 0) & (np.append(listed, -1)[inside] == wanted), inside, -1)


def _columns(photos: Photos) -> Integers:
    none = np.full(len(photos.images), -1)
    return np.stack([none if column is None else column for column in photos], axis=1).astype(np.int64)
