"""Mean average precision over whole lists (performance.md 4.2, row C6) against the usual ways to get it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from paired import compare
from torch import Tensor

from placket import ops, reference

# Attribute, queries, candidates, dimensions, values: of the published lists, but fewer queries.
SHAPES = [
    ("FashionAI skirt length", 128, 1703, 1024, 6),
    ("DeepFashion fabric", 128, 5914, 1024, 218),
    ("demo", 100, 400, 128, 5),
]


def loop(queries: Tensor, candidates: Tensor, query_values: Tensor, candidate_values: Tensor) -> Tensor:
    """Rank with NumPy and walk down each list in Python, as evaluation scripts of this field do."""
    every = (queries @ candidates.T).numpy()
    values = candidate_values.numpy()
    result = []
    for scores, wanted in zip(every, query_values.tolist(), strict=True):
        relevant = values[np.argsort(-scores)] == wanted
        found, total = 0, 0.0
        for rank, hit in enumerate(relevant, 1):
            if hit:
                found += 1
                total += found / rank
        result.append(total / found if found else 0.0)
    return torch.tensor(result, dtype=torch.float64)


def run() -> list[Any]:
    records = []
    for name, count, length, dims, values in SHAPES:
        random = torch.Generator().manual_seed(0)
        q = F.normalize(torch.randn(count, dims, generator=random), dim=1)
        c = F.normalize(torch.randn(length, dims, generator=random), dim=1)
        qv = torch.randint(values, (count,), generator=random)
        cv = torch.randint(values, (length,), generator=random)
        peers = {
            "Python loop": lambda q=q, c=c, qv=qv, cv=cv: loop(q, c, qv, cv),
            "torch argsort": lambda q=q, c=c, qv=qv, cv=cv: reference.average_precision(q, c, qv, cv),
        }
        ours = ops.average_precision(q, c, qv, cv)
        for peer in peers.values():
            # Two scores that differ in their last bit may change places and move a query's AP by 1 / rank.
            torch.testing.assert_close(peer().mean(), ours.mean(), atol=1e-5, rtol=0)
        records.append(
            compare(
                f"average_precision, {name}: {count} x {length}, D = {dims}",
                lambda q=q, c=c, qv=qv, cv=cv: ops.average_precision(q, c, qv, cv),
                peers,
            )
        )
    return records


if __name__ == "__main__":
    for record in run():
        print(record)
