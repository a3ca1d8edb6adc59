"""Attribute-specific fashion retrieval: garments alike in one attribute, among those that have it.

``asfr-map-all/v1`` takes lists of one value per image and attribute, as ASEN, ASEN++ and RPF report it;
``asfr-multilabel/v1`` asks for every label of every image, as M3-Net does for DeepFashion;
``asfr-multilabel-class/v1`` asks the same with the label told, for models that represent images by class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from placket.protocols._ranking import (
    Integers,
    Ranked,
    Reals,
    Relevance,
    Similarity,
    check_similarity,
    checked,
    hash_of,
    rank,
    relevance,
    share,
)
from placket.protocols.result import Result
from placket.schema import AttributeSchema

__all__ = [
    "Embed",
    "EmbedClass",
    "asfr_map_all",
    "asfr_multilabel",
    "asfr_multilabel_class",
    "embed_from",
    "expected_average_precision",
]

Embed = Callable[[NDArray[np.int64], int], "Tensor | NDArray[Any]"]
"""``embed(image_ids [n] int64, attribute id)`` returns rows ``[n, D]``: L2-normalised or zero for similarity
"cosine", any finite ones for "dot"."""

EmbedClass = Callable[[NDArray[np.int64], int, int], "tuple[Tensor | NDArray[Any], Tensor | NDArray[Any]]"]
"""``embed(image_ids [n] int64, attribute id, value id)`` returns rows ``[n, F]``, L2-normalised or zero, and
the probabilities ``[n]`` that the images carry the value."""

CUTOFF = 100


def asfr_map_all(
    queries: ArrayLike,
    candidates: ArrayLike,
    embed: Embed,
    schema: AttributeSchema,
    *,
    similarity: Similarity = "cosine",
    missing: int = 0,
) -> Result:
    """Evaluate embeddings by ``asfr-map-all/v1``.

    Args:
        queries: ``[Q, 3]`` rows (image, attribute, value).
        candidates: ``[C, 3]`` rows of the same kind.
        embed: called once for each attribute and list, with the images in list order. It never sees a value.
            See ``embed_from`` for embeddings that exist.
        schema: names the attributes; those without queries are left out.
        similarity: "cosine" ranks L2-normalised rows; "dot" ranks any finite rows by their plain dot product,
            for estimated probabilities, whose product is the probability that two images share a value.
        missing: images of the lists that were left out because they are not there.

    Raises:
        ValueError: where the lists are empty or malformed, an attribute is not of the schema, ``similarity``
            is another, or ``embed`` returns rows that are neither L2-normalised nor zero ("cosine") or not
            finite ("dot").
    """
    caller = "asfr_map_all"
    check_similarity(caller, similarity)
    asked, offered = (
        triples(caller, name, rows, schema)
        for name, rows in (("queries", queries), ("candidates", candidates))
    )
    lists = list(single_label_lists(caller, asked, offered, schema))
    return _evaluate("asfr-map-all/v1", caller, lists, embed, similarity, missing, hash_of(asked, offered))


def asfr_multilabel(
    labels: ArrayLike,
    embed: Embed,
    schema: AttributeSchema,
    *,
    similarity: Similarity = "cosine",
    missing: int = 0,
) -> Result:
    """Evaluate embeddings by ``asfr-multilabel/v1``.

    Every label asks once: its image is the query, the other images that carry any label of the attribute are
    the candidates, in order of their ids, and those that carry the same label are relevant.

    Args:
        labels: ``[L, 3]`` rows (image, attribute, value), in any order; one that is there twice counts once.
        embed: called once for each attribute with the images that carry it. It never sees a value.
        schema: names the attributes; those without labels are left out.
        similarity: as in ``asfr_map_all``.
        missing: images of the split that were left out because they are not there.

    Raises:
        ValueError: as ``asfr_map_all``.
    """
    caller = "asfr_multilabel"
    check_similarity(caller, similarity)
    rows = _unique_labels(caller, labels, schema)
    lists = []
    for attribute, name, part in _attributes(caller, "labels", rows, schema):
        images, row = np.unique(part[:, 0], return_inverse=True)
        relevant = relevance(part[:, 2], part[:, 2], row, excluded=row)
        lists.append(Lists(attribute, name, None, row, images, relevant, len(images) - 1))
    return _evaluate("asfr-multilabel/v1", caller, lists, embed, similarity, missing, hash_of(rows))


def asfr_multilabel_class(
    labels: ArrayLike,
    embed: EmbedClass,
    schema: AttributeSchema,
    *,
    class_weight: float = 1.0,
    missing: int = 0,
) -> Result:
    """Evaluate class-conditioned embeddings by ``asfr-multilabel-class/v1``.

    Queries, candidates and relevance are those of ``asfr_multilabel``, but the query is (image, attribute,
    value): all are embedded by the value that is asked for. Its figures are not comparable with those of
    ``asfr-multilabel/v1``, where a model must find out what is asked for.

    Args:
        labels: as in ``asfr_multilabel``.
        embed: called once for each value that has labels, with the images that carry its attribute.
        schema: as in ``asfr_multilabel``.
        class_weight: weight w of the candidate's probability in the similarity, ``cosine + w x``; 0 ranks by
            the cosine alone.
        missing: as in ``asfr_multilabel``.

    Raises:
        ValueError: as ``asfr_multilabel``, or a probability is not in [0, 1].
    """
    caller = "asfr_multilabel_class"
    rows = _unique_labels(caller, labels, schema)
    values: dict[str, dict[str, Reals]] = {}
    floor: dict[str, Reals] = {}
    counts: dict[str, Integers] = {}
    candidates: dict[str, int] = {}
    for attribute, name, part in _attributes(caller, "labels", rows, schema):
        images, row = np.unique(part[:, 0], return_inverse=True)
        counts[name] = np.zeros(len(part), dtype=np.int64)
        candidates[name] = len(images) - 1
        for value in np.unique(part[:, 2]).tolist():
            asks = np.flatnonzero(part[:, 2] == value)
            own = row[asks]
            relevant = relevance(part[asks, 2], part[:, 2], row, excluded=own)
            embeddings, probabilities = embed(images.copy(), attribute, value)
            where = f", attribute {attribute} and value {value}"
            space = checked(caller, "embed must return", embeddings, images, "cosine", where)
            likely = _probabilities(caller, probabilities, images, where).to(space.device)
            asked = F.pad(space[torch.from_numpy(own).to(space.device)], (0, 1), value=class_weight)
            found = rank([asked], [torch.cat([space, likely[:, None]], 1)], relevant, [CUTOFF])
            for metric, figures in _figures(found, relevant).items():
                values.setdefault(metric, {}).setdefault(name, np.zeros(len(part)))[asks] = figures
            counts[name][asks] = relevant.counts
        floor[name] = expected_average_precision(counts[name], candidates[name])
    return Result.of(
        "asfr-multilabel-class/v1",
        values,
        floors={next(iter(values)): floor},
        missing=missing,
        queries={name: len(each) for name, each in counts.items()},
        candidates=candidates,
        without_relevant=sum(int((each == 0).sum()) for each in counts.values()),
        similarity=f"cosine by class + {class_weight:g} probability of the candidate",
        lists=hash_of(rows),
    )


def embed_from(embeddings: Tensor | NDArray[Any]) -> Embed:
    """Make an ``embed`` of embeddings ``[N, A, D]``: image n under attribute a is row ``[n, a]``."""
    if embeddings.ndim != 3:
        raise ValueError(f"embed_from: embeddings must have shape [N, A, D], got {list(embeddings.shape)}")

    def embed(images: NDArray[np.int64], attribute: int) -> Tensor | NDArray[Any]:
        return embeddings[images, attribute]

    return embed


def expected_average_precision(relevant: ArrayLike, candidates: int) -> NDArray[np.float64]:
    """Return the mean average precision of all orders of a list, the floor of any ranking.

    With R of N candidates relevant, the one at rank i is relevant with probability R / N and then has on
    average ``(i - 1)(R - 1) / (N - 1)`` relevant ones before it; the sum over ranks is
    ``(H + (R - 1) / (N - 1) (N - H)) / N``, H the N-th harmonic number. It is 0 where R is 0.

    Args:
        relevant: ``[Q]`` numbers of relevant candidates R.
        candidates: N.
    """
    r = np.asarray(relevant, dtype=np.float64)
    wrong = (r < 0) | (r > candidates)
    if wrong.any():
        raise ValueError(
            f"expected_average_precision: relevant must be in [0, {candidates}], got {r[wrong][0]:g}"
        )
    if candidates < 2:
        return r
    harmonic = math.fsum(1 / i for i in range(1, candidates + 1))
    expected = (harmonic + (r - 1) / (candidates - 1) * (candidates - harmonic)) / candidates
    return np.asarray(np.where(r > 0, expected, 0.0))


class Lists(NamedTuple):
    """Queries and candidates of one attribute."""

    attribute: int
    name: str
    query_images: Integers | None  # [Q]; None where the queries are candidates too
    query_rows: Integers  # [Q] rows of query_images, or of the candidates
    candidate_images: Integers  # [C]
    relevant: Relevance
    offered: int  # candidates that a query meets

    def embed(self, caller: str, embed: Embed, similarity: Similarity) -> tuple[Tensor, Tensor]:
        """Return the embeddings of queries and candidates, checked."""

        def called(images: Integers) -> Tensor:
            rows = embed(images.copy(), self.attribute)
            where = f" and attribute {self.attribute}"
            return checked(caller, "embed must return", rows, images, similarity, where)

        asked = None if self.query_images is None else called(self.query_images)
        candidates = called(self.candidate_images) if len(self.candidate_images) else None
        if candidates is None:
            assert asked is not None
            candidates = asked[:0]
        if asked is not None:
            return asked, candidates
        return candidates[torch.from_numpy(self.query_rows).to(candidates.device)], candidates


def single_label_lists(
    caller: str, queries: Integers, candidates: Integers, schema: AttributeSchema
) -> Iterator[Lists]:
    """Yield the lists of each attribute that has queries."""
    for attribute, name, asked in _attributes(caller, "queries", queries, schema):
        offered = candidates[candidates[:, 1] == attribute]
        relevant = relevance(asked[:, 2], offered[:, 2])
        rows = np.arange(len(asked))
        yield Lists(attribute, name, asked[:, 0], rows, offered[:, 0], relevant, len(offered))


def triples(caller: str, name: str, rows: ArrayLike, schema: AttributeSchema) -> Integers:
    """Return rows (image, attribute, value), checked."""
    array = np.asarray(rows)
    if array.ndim != 2 or array.shape[1] != 3 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"{caller}: {name} must be integers of shape [n, 3] (image, attribute, value), got "
            f"{array.dtype} {list(array.shape)}"
        )
    wrong = (array[:, 1] < 0) | (array[:, 1] >= len(schema))
    if wrong.any():
        raise ValueError(
            f"{caller}: attributes of {name} must be in [0, {len(schema)}), got {array[wrong][0, 1]} "
            f"in row {int(wrong.argmax())}"
        )
    return array.astype(np.int64)


def _unique_labels(caller: str, labels: ArrayLike, schema: AttributeSchema) -> Integers:
    """Return rows (image, attribute, value), each once, in order of attribute, image and value."""
    rows = triples(caller, "labels", labels, schema)
    return np.unique(rows[:, [1, 0, 2]], axis=0)[:, [1, 0, 2]]


def _probabilities(caller: str, given: Tensor | NDArray[Any], images: Integers, where: str) -> Tensor:
    found = torch.as_tensor(given).detach().float()
    if found.shape != (len(images),):
        raise ValueError(
            f"{caller}: embed must return probabilities of shape [{len(images)}], got {list(found.shape)}"
        )
    wrong = ~((found >= 0) & (found <= 1))
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"{caller}: embed must return probabilities from 0 to 1, got {found[first].item():.4g} for "
            f"image {images[first]}{where}"
        )
    return found


def _attributes(
    caller: str, name: str, rows: Integers, schema: AttributeSchema
) -> Iterator[tuple[int, str, Integers]]:
    if not len(rows):
        raise ValueError(f"{caller}: {name} must hold at least one row, got none")
    for attribute in np.unique(rows[:, 1]).tolist():
        yield attribute, schema.names[attribute], rows[rows[:, 1] == attribute]


def _evaluate(
    protocol: str,
    caller: str,
    lists: list[Lists],
    embed: Embed,
    similarity: Similarity,
    missing: int,
    digest: str,
) -> Result:
    values: dict[str, dict[str, Reals]] = {}
    floor: dict[str, Reals] = {}
    for part in lists:
        queries, candidates = part.embed(caller, embed, similarity)
        found = rank([queries], [candidates], part.relevant, [CUTOFF])
        for name, value in _figures(found, part.relevant).items():
            values.setdefault(name, {})[part.name] = value
        floor[part.name] = expected_average_precision(part.relevant.counts, part.offered)
    return Result.of(
        protocol,
        values,
        floors={next(iter(values)): floor},
        missing=missing,
        queries={part.name: len(part.relevant.counts) for part in lists},
        candidates={part.name: part.offered for part in lists},
        without_relevant=sum(int((part.relevant.counts == 0).sum()) for part in lists),
        similarity=similarity,
        lists=digest,
    )


def _figures(found: Ranked, relevant: Relevance) -> dict[str, Reals]:
    """Return the figures of each query by metric."""
    counts, hits, total = relevant.counts, found.hits[0, :, 0], found.precision_sum[0, :, 0]
    return {
        "MAP@all": found.average_precision[0],
        "E[MAP@all]": found.expected_average_precision[0],
        f"MAP@{CUTOFF}": share(total, hits),
        f"MAP@{CUTOFF}/min(R,{CUTOFF})": share(total, np.minimum(counts, CUTOFF)),
        f"MAP@{CUTOFF}/R": share(total, counts),
        f"Recall@{CUTOFF}": share(hits, counts),
    }
