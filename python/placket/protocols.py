"""Evaluation protocols: which queries meet which candidates, and what is counted.

``asfr-map-all/v1`` is attribute-specific fashion retrieval as ASEN, ASEN++ and RPF report it. A query is an
image with an attribute; the candidates of that attribute are ranked by the cosine similarity of float32
embeddings (or, where asked for, their plain dot product), ties by candidate order; a candidate is relevant
when its value equals the query's. A query's average precision is taken over the whole list and is 0 where no
candidate is relevant. The overall figure is the mean over all queries, so an attribute weighs as much as it
has queries; the plain mean of the attributes stands beside it. All figures are per cent.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from placket import _C, __version__, ops
from placket.runs import write_json
from placket.schema import AttributeSchema

__all__ = [
    "PROTOCOLS",
    "Embed",
    "Result",
    "Similarity",
    "asfr_map_all",
    "attention_peaks",
    "bootstrap_interval",
    "embed_from",
    "expected_average_precision",
    "input_window",
    "pointing",
]

Embed = Callable[[NDArray[np.int64], int], "Tensor | NDArray[Any]"]
"""``embed(image_ids [n] int64, attribute id)`` returns rows ``[n, D]``: L2-normalised or zero for similarity
"cosine", any finite ones for "dot"."""

Similarity = Literal["cosine", "dot"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Result:
    """What a protocol found; every figure in per cent, every mapping by attribute name in schema order."""

    protocol: str
    overall: float
    """Mean over all queries."""
    interval: Interval
    """95 % bootstrap interval of ``overall`` over queries."""
    mean_of_attributes: float
    per_attribute: dict[str, float]
    attribute_intervals: dict[str, Interval]
    floor: dict[str, float]
    """What a random ranking is expected to reach."""
    floor_overall: float
    queries: dict[str, int]
    candidates: dict[str, int]
    without_relevant: int
    """Queries that no candidate can answer; they count as 0."""
    missing: int
    """Images of the lists that the data set lacks."""
    similarity: str
    """What ranked the candidates: "cosine" or "dot"."""
    lists: str
    """SHA-256 of the query and candidate lists: equal where two results are comparable."""
    version: str = __version__
    """Of the package."""
    average_precision: dict[str, NDArray[np.float64]] = field(default_factory=dict, repr=False, compare=False)
    """Of each query, in list order and in [0, 1]; not saved."""

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return the rows of the table: the attributes, "overall", and "mean of attributes"."""
        rows = [
            _row(
                name,
                self.queries[name],
                self.candidates[name],
                value,
                self.attribute_intervals[name],
                self.floor[name],
            )
            for name, value in self.per_attribute.items()
        ]
        rows.append(
            _row(
                "overall",
                sum(self.queries.values()),
                sum(self.candidates.values()),
                self.overall,
                self.interval,
                self.floor_overall,
            )
        )
        mean_floor = math.fsum(self.floor.values()) / len(self.floor)
        rows.append(_row("mean of attributes", None, None, self.mean_of_attributes, None, mean_floor))
        return rows

    def table(self) -> str:
        """Return the table as aligned text, with what makes it comparable below."""
        lines = [("attribute", "queries", "candidates", "MAP", "95 % interval", "chance")]
        for row in self.as_dicts():
            interval = row["interval"]
            lines.append(
                (
                    row["attribute"],
                    "" if row["queries"] is None else str(row["queries"]),
                    "" if row["candidates"] is None else str(row["candidates"]),
                    f"{row['map']:.2f}",
                    "" if interval is None else f"{interval[0]:.2f} - {interval[1]:.2f}",
                    f"{row['floor']:.2f}",
                )
            )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = "\n".join(
            "  ".join(
                c.ljust(w) if i == 0 else c.rjust(w)
                for i, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        )
        return (
            f"{text}\n{self.protocol}, ranked by {self.similarity}, per cent; "
            f"{self.without_relevant} queries without a relevant candidate, {self.missing} images missing; "
            f"lists {self.lists[:12]}, placket {self.version}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all that is saved, in JSON's types."""
        skip = "average_precision"
        return {f.name: _listed(getattr(self, f.name)) for f in fields(self) if f.name != skip}

    def to_json(self) -> str:
        """Return ``to_dict`` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``to_dict`` to a JSON file, at once and whole."""
        write_json(path, self.to_dict())

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Result:
        """Make the result of which ``to_dict`` returned ``data``; it equals the first."""
        intervals = {name: _pair(value) for name, value in data["attribute_intervals"].items()}
        return Result(**{**data, "interval": _pair(data["interval"]), "attribute_intervals": intervals})


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
    if similarity not in get_args(Similarity):
        raise ValueError(f"asfr_map_all: similarity must be 'cosine' or 'dot', got {similarity!r}")
    query_rows, candidate_rows = _rows("queries", queries, schema), _rows("candidates", candidates, schema)
    if not len(query_rows):
        raise ValueError("asfr_map_all: queries must hold at least one row, got none")
    precision: dict[str, NDArray[np.float64]] = {}
    floor: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    for attribute in np.unique(query_rows[:, 1]).tolist():
        name = schema.names[attribute]
        asked = query_rows[query_rows[:, 1] == attribute]
        offered = candidate_rows[candidate_rows[:, 1] == attribute]
        counts[name] = len(offered)
        having = Counter(offered[:, 2].tolist())
        relevant = np.array([having[value] for value in asked[:, 2].tolist()])
        floor[name] = expected_average_precision(relevant, len(offered))
        if len(offered):
            precision[name] = _average_precision(asked, offered, attribute, embed, similarity)
        else:
            precision[name] = np.zeros(len(asked))
    every, every_floor = np.concatenate(list(precision.values())), np.concatenate(list(floor.values()))
    per_attribute = {name: _per_cent(values) for name, values in precision.items()}
    return Result(
        protocol="asfr-map-all/v1",
        overall=_per_cent(every),
        interval=bootstrap_interval(100 * every),
        mean_of_attributes=math.fsum(per_attribute.values()) / len(per_attribute),
        per_attribute=per_attribute,
        attribute_intervals={name: bootstrap_interval(100 * values) for name, values in precision.items()},
        floor={name: _per_cent(values) for name, values in floor.items()},
        floor_overall=_per_cent(every_floor),
        queries={name: len(values) for name, values in precision.items()},
        candidates=counts,
        without_relevant=int((every_floor == 0).sum()),
        missing=missing,
        similarity=similarity,
        lists=_hash(query_rows, candidate_rows),
        average_precision=precision,
    )


PROTOCOLS: dict[str, Callable[..., Result]] = {"asfr-map-all/v1": asfr_map_all}
"""Protocols by the names that commands and configurations use."""


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


def bootstrap_interval(
    values: ArrayLike, *, share: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: ``[n]`` one figure for each query.
        share: of the resampled means that lies inside.
        resamples: of n values each, drawn with replacement by a counter-based generator.
        seed: equal seeds give equal intervals.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"bootstrap_interval: values must have shape [n] with n >= 1, got {list(x.shape)}")
    random = np.random.Generator(np.random.Philox(seed))
    means = np.array([x[random.integers(len(x), size=len(x))].mean() for _ in range(resamples)])
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def attention_peaks(attention: Tensor | NDArray[Any]) -> NDArray[np.float64]:
    """Return where attention maps are largest, as the centre of that cell.

    Args:
        attention: ``[n, h, w]``.

    Returns:
        ``[n, 2]`` x and y as shares of width and height; NaN for a map whose cells are all equal, which
        points nowhere. Of several equal maxima the first in row order counts.
    """
    maps = torch.as_tensor(attention).detach().cpu()
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise ValueError(f"attention_peaks: attention must have shape [n, h, w], got {list(maps.shape)}")
    if maps.isnan().any():
        raise ValueError("attention_peaks: attention must be numbers, got NaN")
    _, height, width = maps.shape
    cells = maps.flatten(1)
    place = cells.argmax(1).numpy()
    peaks = np.stack([(place % width + 0.5) / width, (place // width + 0.5) / height], axis=1)
    peaks[(cells == cells[:, :1]).all(1).numpy()] = np.nan
    return peaks


def input_window(
    width: int,
    height: int,
    box: Sequence[int] | None = None,
    *,
    size: int,
    fit: str = "crop",
    box_margin: float = 0.0,
    target_ratio: float = 1.25,
) -> tuple[float, float, float, float]:
    """Return the part of an image that a model's square input shows, as preprocessing cuts it.

    The box (the whole image without one) grows by ``box_margin`` of its sides and is cut to the image; with
    "pad" it becomes a square about its centre, with "target_pad" no longer than ``target_ratio``; the short
    side is resized to ``size`` and the centre kept.

    Args:
        width, height: of the image, in pixels.
        box: x0, y0, x1, y1 of the garment, x1 and y1 exclusive.
        size, fit, box_margin, target_ratio: as in the model's preprocessing.

    Returns:
        x0, y0, x1, y1 in pixels of the image; with "pad" and "target_pad" it may leave the image.
    """
    preprocess = _C.Preprocess(size=size, fit=fit, box_margin=box_margin, target_ratio=target_ratio)
    x0, y0, x1, y1 = _C.frame(height, width, box, preprocess)[1]
    return x0, y0, x1, y1


def pointing(peaks: ArrayLike, windows: ArrayLike, regions: Sequence[ArrayLike]) -> NDArray[np.bool_]:
    """Tell which attention maxima fall inside the true region of their attribute (the pointing game).

    Args:
        peaks: ``[n, 2]`` of ``attention_peaks``.
        windows: ``[n, 4]`` the part of its image that each map covers, of ``input_window``.
        regions: for each map the boxes ``[r, 4]`` (x0, y0, x1, y1; x1 and y1 exclusive, in pixels of the
            image) that make up the region; inside one of them is inside.

    Returns:
        ``[n]``; its mean is the share that points right.
    """
    at, cut = np.asarray(peaks, dtype=np.float64), np.asarray(windows, dtype=np.float64)
    if at.shape != (len(regions), 2) or cut.shape != (len(regions), 4):
        raise ValueError(
            f"pointing: peaks and windows must have shapes [{len(regions)}, 2] and [{len(regions)}, 4] as "
            f"there are {len(regions)} regions, got {list(at.shape)} and {list(cut.shape)}"
        )
    points = cut[:, :2] + at * (cut[:, 2:] - cut[:, :2])
    inside = np.zeros(len(regions), dtype=np.bool_)
    for i, (x, y) in enumerate(points):
        for x0, y0, x1, y1 in np.asarray(regions[i], dtype=np.float64).reshape(-1, 4):
            inside[i] |= bool(x0 <= x < x1 and y0 <= y < y1)
    return inside


def _average_precision(
    asked: NDArray[np.int64],
    offered: NDArray[np.int64],
    attribute: int,
    embed: Embed,
    similarity: Similarity,
) -> NDArray[np.float64]:
    queries, candidates = (_embedded(rows, attribute, embed, similarity) for rows in (asked, offered))
    wanted, values = (torch.from_numpy(rows[:, 2].copy()).to(queries.device) for rows in (asked, offered))
    precision: NDArray[np.float64] = ops.average_precision(queries, candidates, wanted, values).cpu().numpy()
    return precision


def _embedded(rows: NDArray[np.int64], attribute: int, embed: Embed, similarity: Similarity) -> Tensor:
    """Return the embeddings of a list's images, checked."""
    embeddings = torch.as_tensor(embed(rows[:, 0].copy(), attribute)).detach().float()
    if embeddings.ndim != 2 or len(embeddings) != len(rows):
        raise ValueError(
            f"asfr_map_all: embed must return shape [{len(rows)}, D], got {list(embeddings.shape)}"
        )
    norms = embeddings.norm(dim=1)
    if similarity == "cosine":
        # 1e-2 leaves room for rows that were normalised in bfloat16; NaN fails the comparison.
        wrong = ~(((norms - 1).abs() <= 1e-2) | (norms == 0))
        kind = "L2-normalised"
    else:
        wrong = ~embeddings.isfinite().all(dim=1)
        kind = "finite"
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(
            f"asfr_map_all: embed must return {kind} rows, got norm {norms[first].item():.4g} for "
            f"image {rows[first, 0]} and attribute {attribute}"
        )
    return F.normalize(embeddings, dim=1) if similarity == "cosine" else embeddings


def _rows(name: str, rows: ArrayLike, schema: AttributeSchema) -> NDArray[np.int64]:
    array = np.asarray(rows)
    if array.ndim != 2 or array.shape[1] != 3 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"asfr_map_all: {name} must be integers of shape [n, 3] (image, attribute, value), got "
            f"{array.dtype} {list(array.shape)}"
        )
    wrong = (array[:, 1] < 0) | (array[:, 1] >= len(schema))
    if wrong.any():
        raise ValueError(
            f"asfr_map_all: attributes of {name} must be in [0, {len(schema)}), got {array[wrong][0, 1]} "
            f"in row {int(wrong.argmax())}"
        )
    return array.astype(np.int64)


def _hash(*lists: NDArray[np.int64]) -> str:
    digest = hashlib.sha256()
    for rows in lists:
        digest.update(f"{len(rows)}\n".encode() + rows.astype("<i8").tobytes())
    return digest.hexdigest()


def _per_cent(values: NDArray[np.float64]) -> float:
    return 100 * math.fsum(values.tolist()) / len(values)


def _row(
    name: str,
    queries: int | None,
    candidates: int | None,
    value: float,
    interval: Interval | None,
    floor: float,
) -> dict[str, Any]:
    return {
        "attribute": name,
        "queries": queries,
        "candidates": candidates,
        "map": value,
        "interval": interval,
        "floor": floor,
    }


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _pair(value: Sequence[float]) -> Interval:
    low, high = value
    return low, high
