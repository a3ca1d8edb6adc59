"""Whether two models differ: the same queries under the same protocol, one beside the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placket.protocols.result import Metric, Result
from placket.protocols.statistics import Interval, overall_intervals, permutation_p_values
from placket.tables import Format, render

__all__ = ["Comparison", "Difference", "compare"]


@dataclass(frozen=True)
class Difference:
    """One metric of two results, in per cent."""

    a: float
    b: float
    difference: float
    """``b - a``."""
    interval: Interval
    """95 % bootstrap interval of the difference over queries, both results of a query drawn together."""
    p_value: float
    """Two-sided, of the hypothesis that the two differ by chance."""


@dataclass(frozen=True)
class Comparison:
    """Two results by the same protocol and lists."""

    protocol: str
    lists: str
    metrics: dict[str, Difference]
    permutations: int
    seed: int

    def table(self, format: Format = "text") -> str:
        """Return the differences; see ``placket.tables.render`` for the formats."""
        rows = [
            {
                "metric": name,
                "A": found.a,
                "B": found.b,
                "B - A": found.difference,
                "95 % interval": found.interval,
                "p": f"{found.p_value:.4f}",
            }
            for name, found in self.metrics.items()
        ]
        note = (
            f"{self.protocol}, per cent; paired by query, p by {self.permutations} random changes of sign "
            f"(seed {self.seed}); lists {self.lists[:12]}"
        )
        return render(rows, format=format, note=note)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it in JSON's types."""
        metrics = {name: {**vars(found)} for name, found in self.metrics.items()}
        return {**vars(self), "metrics": metrics}


def compare(a: Result, b: Result, *, permutations: int = 10_000, seed: int = 0) -> Comparison:
    """Compare two results query by query.

    Args:
        a, b: results by the same protocol and lists, made here or read by ``Result.load``.
        permutations: random sign patterns for the p-values, the least of which is 1 / (permutations + 1).
        seed: of bootstrap and permutation; equal seeds give equal figures.

    Raises:
        ValueError: protocols, galleries or lists differ, or they have no metric in common.
    """
    for what in ("protocol", "gallery", "lists"):
        left, right = getattr(a, what), getattr(b, what)
        if left != right:
            raise ValueError(
                f"compare: results must have the same {what}, got {left or 'none'} and {right or 'none'}"
            )
    if permutations < 1:
        raise ValueError(f"compare: permutations must be at least 1, got {permutations}")
    names = [name for name in a.metrics if name in b.metrics and a.metrics[name].values]
    if not names:
        raise ValueError(f"compare: results must have a metric in common, got {list(a.metrics)}")
    found = {
        name: _difference(a.metrics[name], b.metrics[name], a.by_group, permutations, seed) for name in names
    }
    return Comparison(a.protocol, a.lists, found, permutations, seed)


def _difference(a: Metric, b: Metric, by_group: bool, permutations: int, seed: int) -> Difference:
    groups = [(100 * (b.values[g] - a.values[g]))[None] for g in a.values]
    sizes = _sizes(a.values)
    if sizes != _sizes(b.values):
        raise ValueError(
            f"compare: results must have the same queries, got {sizes} and {_sizes(b.values)} of them"
        )
    count = sum(sizes.values())
    weights = [1 / (len(groups) * group.shape[1]) if by_group else 1 / count for group in groups]
    weighted = np.concatenate([w * group for w, group in zip(weights, groups, strict=True)], axis=1)
    return Difference(
        a=a.overall,
        b=b.overall,
        difference=b.overall - a.overall,
        interval=overall_intervals(groups, by_group, seed)[0],
        p_value=permutation_p_values(weighted, permutations, seed)[0],
    )


def _sizes(values: Mapping[str, NDArray[np.float64]]) -> dict[str, int]:
    return {name: len(x) for name, x in values.items()}
