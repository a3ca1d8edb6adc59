"""What a protocol found: figures, counts, and the values of each query, so that results can be compared."""

from __future__ import annotations

import base64
import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placket import __version__
from placket.protocols.statistics import Interval, mean_intervals, overall_intervals
from placket.runs import write_json
from placket.tables import Format, render

__all__ = ["Metric", "Result", "Values"]

Values = Mapping[str, NDArray[np.float64]]
"""One figure for each query, in [0, 1] and in list order, by group."""


@dataclass(frozen=True)
class Metric:
    """One figure of a result, in per cent; mappings are by group, in the result's order."""

    overall: float
    """Mean over all queries, or the plain mean of the groups where the protocol says so."""
    interval: Interval
    """95 % bootstrap interval of ``overall`` over queries."""
    mean_of_groups: float
    per_group: dict[str, float]
    group_intervals: dict[str, Interval]
    floor: dict[str, float] | None = None
    """What a random ranking is expected to reach; None where that is not computed."""
    floor_overall: float | None = None
    values: dict[str, NDArray[np.float64]] = field(default_factory=dict, repr=False, compare=False)
    """Of each query, in list order and in [0, 1]."""


@dataclass(frozen=True)
class Result:
    """What a protocol found; every figure in per cent.

    A group is what a protocol averages within: an attribute, a category of garments, or all queries. The
    properties ``overall`` to ``floor_overall`` are those of the first metric, by which results are known.
    """

    protocol: str
    """Name and version, and "subset" where images are missing: such a result is one of other lists."""
    metrics: dict[str, Metric]
    queries: dict[str, int]
    """By group."""
    candidates: dict[str, int]
    """By group."""
    without_relevant: int
    """Queries that no candidate can answer; they count as 0."""
    missing: int
    """Images of the lists that the data set lacks."""
    similarity: str
    """What ranked the candidates: "cosine", "dot", or in words."""
    lists: str
    """SHA-256 of all that says which query meets which candidate and what is relevant: equal where two
    results are comparable."""
    gallery: str = ""
    """Which gallery, where the protocol knows several."""
    group: str = "attribute"
    """What a group is."""
    by_group: bool = False
    """Whether ``overall`` is the mean of the groups instead of all queries."""
    version: str = __version__
    """Of the package."""

    @property
    def first(self) -> Metric:
        return next(iter(self.metrics.values()))

    @property
    def overall(self) -> float:
        return self.first.overall

    @property
    def interval(self) -> Interval:
        return self.first.interval

    @property
    def mean_of_attributes(self) -> float:
        return self.first.mean_of_groups

    @property
    def per_attribute(self) -> dict[str, float]:
        return self.first.per_group

    @property
    def attribute_intervals(self) -> dict[str, Interval]:
        return self.first.group_intervals

    @property
    def floor(self) -> dict[str, float]:
        return self.first.floor or {}

    @property
    def floor_overall(self) -> float | None:
        return self.first.floor_overall

    @property
    def average_precision(self) -> dict[str, NDArray[np.float64]]:
        """Of each query, in list order and in [0, 1], by the protocols that have "MAP@all"."""
        return self.metrics["MAP@all"].values

    @staticmethod
    def of(
        protocol: str,
        values: Mapping[str, Values],
        *,
        floors: Mapping[str, Values] | None = None,
        missing: int = 0,
        by_group: bool = False,
        **rest: Any,
    ) -> Result:
        """Make a result of the values of each query.

        Args:
            protocol: name and version; "subset" is added where images are missing.
            values: by metric, the first of which is the headline.
            floors: expected of random rankings, by metric; of those that are left out it is not known.
            missing: images of the lists that were left out because they are not there.
            by_group: whether ``overall`` is the mean of the groups.
            rest: the other fields.
        """
        return Result(
            protocol=f"{protocol} subset" if missing else protocol,
            metrics=_metrics(values, floors or {}, by_group),
            missing=missing,
            by_group=by_group,
            **rest,
        )

    def as_dicts(self, metric: str | None = None) -> list[dict[str, Any]]:
        """Return the rows of the table: the groups, "overall", and "mean of" the groups.

        Args:
            metric: that has its interval beside it; the first where None.
        """
        metric = metric or next(iter(self.metrics))
        if metric not in self.metrics:
            known = ", ".join(self.metrics)
            raise ValueError(f"as_dicts: metric must be one of {known}, got '{metric}'")

        chosen, floor = self.metrics[metric], self.metrics[metric].floor or {}

        def row(
            name: str,
            counts: tuple[int | None, int | None],
            interval: Interval | None,
            chance: float | None,
            figures: dict[str, float],
        ) -> dict[str, Any]:
            return {
                self.group: name,
                "queries": counts[0],
                "candidates": counts[1],
                metric: figures.pop(metric),
                "95 % interval": interval,
                "chance": chance,
                **figures,
            }

        every = self.metrics.items()
        groups = list(self.queries) if len(self.queries) > 1 else []
        rows = [
            row(
                g,
                (self.queries[g], self.candidates[g]),
                chosen.group_intervals[g],
                floor.get(g),
                {key: m.per_group[g] for key, m in every},
            )
            for g in groups
        ]
        counts = sum(self.queries.values()), sum(self.candidates.values())
        figures = {key: m.overall for key, m in every}
        rows.append(row("overall", counts, chosen.interval, chosen.floor_overall, figures))
        if groups and not self.by_group:
            mean_floor = math.fsum(floor.values()) / len(floor) if floor else None
            figures = {key: m.mean_of_groups for key, m in every}
            rows.append(row(f"mean of {_plural(self.group)}", (None, None), None, mean_floor, figures))
        return rows

    def table(
        self, format: Format = "text", *, metric: str | None = None, published: bool | str = False
    ) -> str:
        """Return the figures, with what makes them comparable below.

        The first metric stands with its interval and the figure of chance; where there are several, a second
        table has all of them.

        Args:
            format: "text", "markdown", "latex" or "html".
            metric: one alone, with its interval.
            published: put the literature's rows of the same protocol and lists above this result's, see
                ``placket.protocols.literature.beside``; a data set's name takes its rows.

        Raises:
            ValueError: there is no such format or metric, or no published rows for this protocol and these
                lists.
        """
        if published:
            from placket.protocols.literature import beside, block_of

            data = None if published is True else published
            note = f"{self.note}. {block_of(self, data).note}".removesuffix(" ")
            return render(beside(self, data), format=format, note=note)
        chosen = metric or next(iter(self.metrics))
        rows = self.as_dicts(chosen)
        columns = [self.group, "queries", "candidates", chosen, "95 % interval"]
        if self.metrics[chosen].floor is not None:
            columns.append("chance")
        if metric is not None or len(self.metrics) == 1:
            return render(rows, columns, format=format, note=self.note)
        every = render(rows, [self.group, *self.metrics], format=format, note=self.note)
        return render(rows, columns, format=format) + "\n\n" + every

    @property
    def note(self) -> str:
        """What makes the figures comparable, in one line."""
        gallery = f", gallery {self.gallery}" if self.gallery else ""
        return (
            f"{self.protocol}{gallery}, ranked by {self.similarity}, per cent; "
            f"{self.without_relevant} queries without a relevant candidate, {self.missing} images missing; "
            f"lists {self.lists[:12]}, placket {self.version}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all that is saved, in JSON's types.

        The values of each query are packed: float64, little-endian, compressed by zlib, in base64.
        """
        saved: dict[str, Any] = {"protocol": self.protocol, "overall": self.overall}
        for name, value in vars(self).items():
            if name != "metrics":
                saved[name] = value
        saved["metrics"] = {name: _metric_dict(metric) for name, metric in self.metrics.items()}
        return saved

    def to_json(self) -> str:
        """Return ``to_dict`` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``to_dict`` to a JSON file, at once and whole."""
        write_json(path, self.to_dict())

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Result:
        """Make the result of which ``to_dict`` returned ``data``; it equals the first.

        Raises:
            ValueError: it is none of these.
        """
        names = [name for name in Result.__dataclass_fields__ if name != "metrics"]
        try:
            metrics = {name: _metric_of(saved) for name, saved in data["metrics"].items()}
            return Result(**{name: data[name] for name in names}, metrics=metrics)
        except (KeyError, TypeError, AttributeError, zlib.error) as error:
            raise ValueError(f"Result: data must be what to_dict returns, got {error!r} in it") from error

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Result:
        """Read what ``save`` or ``placket evaluate --json`` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: it holds no result.
        """
        try:
            return Result.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: file must be a result saved as JSON, got {error}") from None


def _metrics(values: Mapping[str, Values], floors: Mapping[str, Values], by_group: bool) -> dict[str, Metric]:
    """Metrics of which each query has a value are resampled together."""
    found: dict[str, Metric] = {}
    for names in _alike(values):
        groups = list(values[names[0]])
        columns = [np.stack([100 * values[name][g] for name in names]) for g in groups]
        by_name = {g: mean_intervals(x) for g, x in zip(groups, columns, strict=True)}
        overall = overall_intervals(columns, by_group)
        for i, name in enumerate(names):
            per_group = {g: _per_cent([values[name][g]]) for g in groups}
            mean = math.fsum(per_group.values()) / len(per_group)
            found[name] = Metric(
                overall=mean if by_group else _per_cent(list(values[name].values())),
                interval=overall[i],
                mean_of_groups=mean,
                per_group=per_group,
                group_intervals={g: by_name[g][i] for g in groups},
                values=dict(values[name]),
            )
    for name, floor in floors.items():
        each = {g: _per_cent([x]) for g, x in floor.items()}
        mean = math.fsum(each.values()) / len(each)
        every = mean if by_group else _per_cent(list(floor.values()))
        found[name] = replace(found[name], floor=each, floor_overall=every)
    return {name: found[name] for name in values}


def _alike(values: Mapping[str, Values]) -> list[list[str]]:
    """Names of metrics in lists of those that have the same numbers of values in the same groups."""
    lists: dict[tuple[tuple[str, int], ...], list[str]] = {}
    for name, groups in values.items():
        lists.setdefault(tuple((g, len(x)) for g, x in groups.items()), []).append(name)
    return list(lists.values())


def _per_cent(parts: Sequence[NDArray[np.float64]]) -> float:
    every = np.concatenate(parts)
    return 100 * math.fsum(every.tolist()) / len(every)


def _metric_dict(metric: Metric) -> dict[str, Any]:
    packed = {
        g: base64.b64encode(zlib.compress(x.astype("<f8").tobytes())).decode()
        for g, x in metric.values.items()
    }
    return {**vars(metric), "values": packed}


def _metric_of(saved: Mapping[str, Any]) -> Metric:
    values = {
        g: np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<f8").astype(np.float64)
        for g, text in saved["values"].items()
    }
    pairs = {g: _pair(pair) for g, pair in saved["group_intervals"].items()}
    rest = {**saved, "interval": _pair(saved["interval"]), "group_intervals": pairs, "values": values}
    return Metric(**rest)


def _pair(value: Sequence[float]) -> Interval:
    low, high = value
    return low, high


def _plural(noun: str) -> str:
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
