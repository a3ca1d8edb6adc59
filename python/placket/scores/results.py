"""What the bench found: rows of all seeds together, differences, tables, a picture, and JSON."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from placket import report
from placket.protocols import Difference, Result, compare
from placket.runs import write_json, write_text
from placket.scores.training import MIRRORED, Record
from placket.tables import Format, render

__all__ = ["DataScores", "Row", "RowDifference", "Scores"]

_COLUMNS = {
    "embedding": "embedding",
    "agreement": "class agreement",
    "both": "both",
    "region weight": "β by attribute",
    "embedding" + MIRRORED: "embedding, mirrored",
    "agreement" + MIRRORED: "agreement, mirrored",
    "both" + MIRRORED: "both, mirrored",
}


@dataclass(frozen=True)
class Row:
    """A method or rival over all seeds."""

    title: str
    is_rival: bool
    rankings: dict[str, Result]
    """By way of ranking: each query's average precision is the mean over seeds."""
    by_seed: dict[str, list[float]]
    """Overall MAP in per cent of each seed, by way of ranking."""
    valid: dict[str, float]
    """Overall MAP on "valid", the mean over seeds."""
    seconds: float
    """Of the training; this and all below: the mean over seeds."""
    trained_per_second: float
    embedded_per_second: float
    """Images under every attribute, reading included."""
    parameters: int
    chosen: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    """By way of ranking and for each seed: see ``Record``."""

    @staticmethod
    def of(records: Sequence[Record], is_rival: bool) -> Row:
        """Make a row of the records of all seeds."""
        first, count = records[0], len(records)

        def mean(values: Sequence[float]) -> float:
            return sum(values) / count

        seconds = mean([record.seconds for record in records])
        trained = mean([record.trained_images for record in records])
        by_name = {name: [record.rankings[name] for record in records] for name in first.rankings}
        return Row(
            first.title,
            is_rival,
            {name: _mean_result(results) for name, results in by_name.items()},
            {name: [result.overall for result in results] for name, results in by_name.items()},
            {name: mean([record.valid[name] for record in records]) for name in first.valid},
            seconds,
            trained / seconds if seconds else 0.0,
            mean([record.images_per_second for record in records]),
            first.parameters,
            {name: [record.chosen[name] for record in records] for name in first.chosen},
        )

    def probabilities(self) -> str:
        """Return the kinds of class probabilities that rank by class agreement, the most frequent first."""
        kinds = Counter(
            name.partition(", ")[0] for each in self.chosen.get("agreement", ()) for name in each.values()
        )
        total = sum(kinds.values())
        return ", ".join(
            kind if count == total else f"{kind} ({count} of {total})" for kind, count in kinds.most_common()
        )

    def cells(self) -> dict[str, Any]:
        """Return the row of the table."""
        figures = {name: _figure(result) for name, result in self.rankings.items()}
        seeds = self.by_seed.get("embedding", [])
        return {
            "method": self.title,
            **figures,
            "seeds": (min(seeds), max(seeds)) if len(seeds) > 1 else None,
            "seconds": f"{self.seconds:.0f}" if self.seconds else None,
            "trained/s": f"{self.trained_per_second:.0f}" if self.trained_per_second else None,
            "embedded/s": f"{self.embedded_per_second:.0f}" if self.embedded_per_second else None,
            "parameters": f"{self.parameters:,}" if self.parameters else None,
        }


@dataclass(frozen=True)
class RowDifference:
    """The best method by some ways of ranking against a rival, MAP@all in per cent."""

    method: str
    ranking: str
    rival: str
    rival_ranking: str
    found: Difference
    """``found.b`` is the method's."""


@dataclass(frozen=True)
class DataScores:
    """The table of one data set."""

    name: str
    settings: dict[str, Any]
    """The bench."""
    rows: list[Row]
    """Methods, then rivals."""
    differences: list[RowDifference]

    @staticmethod
    def of(name: str, settings: Mapping[str, Any], rows: Sequence[Row]) -> DataScores:
        """Sort the methods by their embeddings and compare the best ones with the rivals."""
        methods = [row for row in rows if not row.is_rival]
        methods.sort(key=lambda row: -row.rankings["embedding"].overall)
        rivals = [row for row in rows if row.is_rival]
        ordered = [*methods, *rivals]
        return DataScores(name, dict(settings), ordered, list(_differences(methods, rivals)))

    def tables(self, format: Format = "text") -> str:
        """Return the scores, those of each attribute, and the differences."""
        by_embedding = {
            row.title: row.rankings["embedding"] for row in self.rows if "embedding" in row.rankings
        }
        chance = next(iter(by_embedding.values()))
        rows = [row.cells() for row in self.rows]
        rows.append({"method": "chance", "embedding": f"{chance.floor_overall:.1f}"})
        used = {key for row in rows for key, value in row.items() if value is not None}
        headings = {
            "method": self.name,
            **_COLUMNS,
            "seeds": "seeds",
            "seconds": "trained, s",
            "trained/s": "trained images/s",
            "embedded/s": "embedded images/s",
            "parameters": "parameters",
        }
        columns = {key: heading for key, heading in headings.items() if key in used}
        attributes = [{"method": title, **_by_attribute(result)} for title, result in by_embedding.items()]
        attributes.append(
            {"method": "chance", **{name: f"{value:.1f}" for name, value in chance.floor.items()}}
        )
        differences = [
            {
                "method": f"{each.method}, by {_COLUMNS[each.ranking]}",
                "rival": f"{each.rival}, by {_COLUMNS[each.rival_ranking]}",
                "difference": each.found.difference,
                "95 % interval": each.found.interval,
                "p": f"{each.found.p_value:.4f}",
            }
            for each in self.differences
        ]
        parts = [
            render(rows, columns, 1, format, note=self._note()),
            render(
                attributes,
                {"method": "by embedding", **{name: name for name in chance.per_attribute}},
                1,
                format,
            ),
        ]
        if differences:
            parts.append(render(differences, None, 1, format, note=_DIFFERENCES))
        return "\n\n".join(parts)

    def picture(self) -> str:
        """Return the scores by embedding and by both as an SVG file."""
        series = {"embedding": "by embedding", "agreement": "by class agreement", "both": "by both"}
        rows = [
            (
                row.title,
                {
                    label: (row.rankings[name].overall, row.rankings[name].interval)
                    for name, label in series.items()
                    if name in row.rankings
                },
            )
            for row in self.rows
        ]
        chance = next(
            row.rankings["embedding"].floor_overall for row in self.rows if "embedding" in row.rankings
        )
        title = f"{self.name}: MAP, per cent, with 95 % intervals"
        return report.intervals_svg(rows, title, {"chance": chance or 0.0})

    def _note(self) -> str:
        settings = self.settings
        counts = sorted({len(each) for row in self.rows for each in row.by_seed.values()})
        seeds = " seed" if counts == [1] else " seeds: lowest and highest by embedding"
        return (
            "asfr-map-all/v1, test split, per cent, with 95 % bootstrap intervals over queries; "
            f"{' or '.join(map(str, counts))}{seeds}; {settings['trunk']} at {settings['size']} "
            f"pixels, {settings['seconds']:g} seconds for each method and the classifier{self._agreement()}"
        )

    def _agreement(self) -> str:
        """Say whose class agreement is that of which probabilities, chosen for each attribute and seed."""
        titles: dict[str, list[str]] = {}
        for row in self.rows:
            if kinds := row.probabilities():
                titles.setdefault(kinds, []).append(row.title)
        said = "; ".join(f"{' / '.join(named)}: {kinds}" for kinds, named in titles.items())
        return said and f"; class agreement by what is best on valid for each attribute and seed, {said}"


_DIFFERENCES = (
    "the method that is best on the validation split, by its embedding alone and by any ranking; paired by "
    "query, p by random changes of sign"
)


@dataclass(frozen=True)
class Scores:
    """Everything that the bench found.

    Attributes:
        setting: its name.
        seeds: how many.
        made: versions and machine.
        data: the tables.
    """

    setting: str
    seeds: int
    made: dict[str, str]
    data: list[DataScores]

    def tables(self, format: Format = "text") -> str:
        return "\n\n".join(each.tables(format) for each in self.data)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it in JSON's types."""
        data = [
            {
                **vars(each),
                "rows": [
                    {**vars(row), "rankings": {n: r.to_dict() for n, r in row.rankings.items()}}
                    for row in each.rows
                ],
                "differences": [{**vars(d), "found": vars(d.found)} for d in each.differences],
            }
            for each in self.data
        ]
        return {**vars(self), "data": data}

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Scores:
        """Read ``scores.json``.

        Raises:
            OSError: the file cannot be read.
            ValueError: it holds no scores.
        """
        try:
            return _scores_of(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{os.fspath(path)}: file must be scores saved as JSON, got {error!r}") from None

    def write(self, folder: Path) -> None:
        """Write ``scores.json``, ``scores.md``, ``scores.html`` and, for each data set, ``NAME.svg``."""
        write_json(folder / "scores.json", self.to_dict())
        write_text(folder / "scores.md", self.tables("markdown") + "\n")
        sections = []
        for each in self.data:
            picture = each.picture()
            write_text(folder / f"{each.name}.svg", picture)
            sections.append(report.Section(each.name, "", picture + each.tables("html")))
        made = ", ".join(f"{name} {value}" for name, value in self.made.items())
        report.write_report(folder / "scores.html", "Scores", sections, f"setting '{self.setting}'; {made}")


def _mean_result(results: Sequence[Result]) -> Result:
    """Return the result in which each query has the mean of its average precisions over seeds."""
    first = results[0]
    if len({result.lists for result in results}) > 1:
        raise ValueError("scores: seeds must have the same lists, got different ones; remove the folder")
    values = {
        group: np.mean([result.average_precision[group] for result in results], axis=0)
        for group in first.average_precision
    }
    keys = ("queries", "candidates", "without_relevant", "lists", "missing", "version")
    said = " / ".join(dict.fromkeys(result.similarity for result in results))  # chosen for each seed
    rest = {key: getattr(first, key) for key in keys}
    mean = Result.of(first.protocol, {"MAP@all": values}, similarity=said, **rest)
    metric = replace(mean.first, floor=first.floor, floor_overall=first.floor_overall)
    return replace(mean, metrics={"MAP@all": metric})


def _differences(methods: Sequence[Row], rivals: Sequence[Row]) -> list[RowDifference]:
    """Compare the method best on "valid", by embedding and by any ranking, with the rivals that learned."""
    pairs = [(row, name) for row in methods for name in row.valid]
    best = [
        max(own, key=lambda pair: pair[0].valid[pair[1]])
        for own in ([pair for pair in pairs if pair[1] == "embedding"], pairs)
    ]
    return [
        RowDifference(
            row.title,
            name,
            rival.title,
            ranking,
            compare(result, row.rankings[name]).metrics["MAP@all"],
        )
        for row, name in (best if best[0] != best[1] else best[:1])
        for rival in rivals
        if "agreement" in rival.rankings
        for ranking, result in rival.rankings.items()
    ]


def _figure(result: Result) -> str:
    low, high = result.interval
    return f"{result.overall:.1f} ({low:.1f} – {high:.1f})"


def _by_attribute(result: Result) -> dict[str, str]:
    intervals = result.attribute_intervals
    return {
        name: f"{value:.1f} ({intervals[name][0]:.1f} – {intervals[name][1]:.1f})"
        for name, value in result.per_attribute.items()
    }


def _scores_of(data: Mapping[str, Any]) -> Scores:
    tables = []
    for each in data["data"]:
        rows = [
            Row(**{**row, "rankings": {n: Result.from_dict(r) for n, r in row["rankings"].items()}})
            for row in each["rows"]
        ]
        differences = [
            RowDifference(
                **{**d, "found": Difference(**{**d["found"], "interval": tuple(d["found"]["interval"])})}
            )
            for d in each["differences"]
        ]
        tables.append(DataScores(**{**each, "rows": rows, "differences": differences}))
    return Scores(**{**data, "data": tables})
