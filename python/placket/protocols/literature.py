"""Published figures, each with its protocol, data set and source, and a run beside those it compares with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from placket.protocols.result import Result

__all__ = ["PublishedBlock", "PublishedRow", "beside", "block_of", "published"]


@dataclass(frozen=True)
class PublishedRow:
    """One line of a published table, in per cent."""

    method: str
    metrics: dict[str, float]
    """Overall figures by the names that ``Result.metrics`` has."""
    per_group: tuple[float, ...]
    """Of the first metric, in the order of the block's groups; empty where not published."""
    source: str
    evidence: str
    """"published": read in the source; "second-hand": the source quotes another; "derived": computed."""
    note: str = ""


@dataclass(frozen=True)
class PublishedBlock:
    """What was published by one protocol on one data set."""

    protocol: str
    """One of ``PROTOCOLS``, or in brackets what it is instead."""
    data: str
    groups: tuple[str, ...]
    queries: tuple[int, ...]
    """Of each group; empty where nobody published them."""
    candidates: tuple[int, ...]
    lists: str
    """``Result.lists`` of the published lists; empty where they are not at hand."""
    note: str
    rows: tuple[PublishedRow, ...]

    def matches(self, result: Result) -> bool:
        """Return whether a result is by this protocol and, as far as can be told, by these lists."""
        given = (
            (self.queries, tuple(result.queries.values())),
            (self.candidates, tuple(result.candidates.values())),
        )
        return (
            bool(self.queries)
            and self.protocol == result.protocol
            and self.lists in ("", result.lists)
            and all(not known or known == found for known, found in given)
        )


@cache
def published() -> tuple[PublishedBlock, ...]:
    """Return all figures of ``published.yaml``."""
    text = Path(__file__).with_name("published.yaml").read_text(encoding="utf-8")
    saved = yaml.safe_load(text)
    return tuple(_block(block, saved["sources"]) for block in saved["blocks"])


def block_of(result: Result, data: str | None = None) -> PublishedBlock:
    """Return what was published by a result's protocol and lists.

    Args:
        result: of the published lists.
        data: name of the data set that is meant; found by protocol and lists where None.

    Raises:
        ValueError: nothing published is by this protocol and these lists.
    """
    for block in published():
        if data in (None, block.data) and block.matches(result):
            return block
    known = "; ".join(f"{block.protocol} on {block.data}" for block in published() if block.queries)
    counts = "/".join(map(str, result.queries.values()))
    raise ValueError(
        f"published: protocol and lists must be those of {known if data is None else data}, got "
        f"{result.protocol}, lists {result.lists[:12]} with {counts} queries"
    )


def beside(result: Result, data: str | None = None) -> list[dict[str, Any]]:
    """Return the rows of a table: the literature's by the same protocol and lists, and the result last.

    Arguments and errors are those of ``block_of``.
    """
    block = block_of(result, data)
    names = list(result.queries)
    measured = PublishedRow(
        f"this run (placket {result.version})",
        {name: metric.overall for name, metric in result.metrics.items()},
        tuple(result.per_attribute.values()),
        "",
        "measured",
    )
    rows = (*block.rows, measured)
    metrics = [name for name in result.metrics if any(name in row.metrics for row in block.rows)]
    by_group = any(row.per_group for row in block.rows)
    return [
        {
            "method": row.method,
            **({g: _at(row.per_group, i) for i, g in enumerate(names)} if by_group else {}),
            **{name: row.metrics.get(name) for name in metrics},
            "evidence": row.evidence,
            "source": "; ".join(filter(None, (row.source, row.note))),
        }
        for row in rows
    ]


def _at(values: tuple[float, ...], i: int) -> float | None:
    return values[i] if values else None


def _block(saved: Mapping[str, Any], sources: Mapping[str, str]) -> PublishedBlock:
    return PublishedBlock(
        protocol=saved["protocol"],
        data=saved["data"],
        groups=tuple(saved.get("groups", ())),
        queries=tuple(saved.get("queries", ())),
        candidates=tuple(saved.get("candidates", ())),
        lists=saved.get("lists", ""),
        note=saved.get("note", ""),
        rows=tuple(_row(row, sources) for row in saved["rows"]),
    )


def _row(saved: Mapping[str, Any], sources: Mapping[str, str]) -> PublishedRow:
    rest = {key: saved[key] for key in ("method", "evidence", "note") if key in saved}
    metrics = {key: float(value) for key, value in saved.items() if key not in (*rest, "source", "per_group")}
    return PublishedRow(
        metrics=metrics,
        per_group=tuple(map(float, saved.get("per_group", ()))),
        source=sources[saved["source"]],
        **rest,
    )
