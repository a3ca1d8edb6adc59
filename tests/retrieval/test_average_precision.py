from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from placket import ops, reference


def oracle(scores: list[float], relevant: list[bool]) -> float:
    """The formula of the papers, word for word, in Python's floats."""
    order = sorted(range(len(scores)), key=lambda c: (-scores[c], c))
    found, total = 0, 0.0
    for rank, c in enumerate(order, 1):
        if relevant[c]:
            found += 1
            total += found / rank
    return total / found if found else 0.0


def of_scores(scores: list[float], relevant: list[int], device: torch.device) -> float:
    """AP of one query whose candidates have the given scores."""
    query = torch.ones(1, 1, device=device)
    candidates = torch.tensor(scores, device=device, dtype=torch.float32)[:, None]
    values = torch.tensor(relevant, device=device, dtype=torch.int64)
    return ops.average_precision(query, candidates, values.new_ones(1), values).item()


@pytest.mark.parametrize(
    ("scores", "relevant", "expected"),
    [
        # Manning, Raghavan, Schuetze, Introduction to Information Retrieval, exercise 8.8 (system 1).
        ([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], [1, 0, 1, 0, 0, 0, 0, 0, 1, 1], (1 + 2 / 3 + 3 / 9 + 4 / 10) / 4),
        # The same book, system 2.
        (
            [10, 9, 8, 7, 6, 5, 4, 3, 2, 1],
            [0, 1, 0, 0, 1, 1, 1, 0, 0, 0],
            (1 / 2 + 2 / 5 + 3 / 6 + 4 / 7) / 4,
        ),
        # scikit-learn's documentation of average_precision_score.
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], (1 + 2 / 3) / 2),
        ([1, 1, 1], [0, 0, 1], 1 / 3),  # a tie is in candidate order
        ([1, 1, 1], [1, 0, 0], 1.0),
        ([0.0, -0.0, 0.0], [0, 1, 0], 1 / 2),  # -0 ties with 0
        ([-1e30, 1e30, float("inf"), float("-inf")], [1, 0, 0, 1], (1 / 3 + 2 / 4) / 2),
        ([3, 2, 1], [0, 0, 0], 0.0),
        ([5], [1], 1.0),
        ([], [], 0.0),
    ],
)
def test_average_precision_by_hand(scores, relevant, expected, device):
    assert of_scores(scores, relevant, device) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 2, 7), (17, 33, 9), (70, 501, 64), (0, 4, 3), (2, 0, 3), (4, 5, 0)]
)
@pytest.mark.parametrize("values", [1, 3, 50])
def test_average_precision_matches_oracle(shape, values, device, whole_vectors):
    count, length, dims = shape
    q, c = whole_vectors(count, dims, device), whole_vectors(length, dims, device)
    qv, cv = torch.randint(values, (count,), device=device), torch.randint(values, (length,), device=device)
    ours = ops.average_precision(q, c, qv, cv)
    assert ours.dtype == torch.float64
    expected = [oracle(s.tolist(), (cv == v).tolist()) for s, v in zip(q @ c.T, qv, strict=True)]
    assert ours.tolist() == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(ours, reference.average_precision(q, c, qv, cv), atol=1e-12, rtol=0)


def normalized(rows: int, device: torch.device) -> Tensor:
    return F.normalize(torch.randn(rows, 100, device=device), dim=1)


def test_average_precision_errors():
    q, c, qv, cv = torch.ones(2, 3), torch.ones(4, 3), torch.ones(2).long(), torch.ones(4).long()
    for change, message in [
        ({"queries": q[0]}, r"rank_metrics: queries must have shape \[Q, D\], got \[3\]"),
        ({"query_values": cv}, r"rank_metrics: query_groups must have shape \[Q\], got \[4\]"),
        ({"query_values": q}, r"value_groups: query_values must have shape \[Q\], got \[2, 3\]"),
        ({"candidate_values": c}, r"value_groups: candidate_values must have shape \[C\], got \[4, 3\]"),
        ({"block": 0}, "rank_metrics: block must be at least 1, got 0"),
    ]:
        args = {"queries": q, "candidates": c, "query_values": qv, "candidate_values": cv} | change
        with pytest.raises(ValueError, match=message):
            ops.average_precision(**args)
    with pytest.raises(TypeError, match="value_groups: query_values must be Long, got Int"):
        ops.average_precision(q, c, qv.int(), cv)


@pytest.mark.parametrize(
    ("queries", "candidates", "values"), [(1, 1, 1), (9, 40, 3), (40, 9, 30), (0, 3, 2), (3, 0, 2)]
)
def test_value_groups_hold_the_equal_values(queries: int, candidates: int, values: int, device: torch.device):
    wanted = torch.randint(values, (queries,), device=device) - 2
    offered = torch.randint(values, (candidates,), device=device) - 2
    groups, offsets, rows = ops.value_groups(wanted, offered)
    assert offsets.shape == (candidates + 2,)
    assert (offsets.diff() >= 0).all()
    for value, group in zip(wanted.tolist(), groups.tolist(), strict=True):
        own = rows[offsets[group] : offsets[group + 1]]
        assert torch.equal(own, (offered == value).nonzero()[:, 0])


def test_average_precision_registration(device: torch.device, opcheck):
    q, c = normalized(5, device), normalized(11, device)
    values = torch.randint(3, (16,), device=device).split([5, 11])
    opcheck(torch.ops.placket.average_precision.default, q, c, *values, 4)
    opcheck(torch.ops.placket.value_groups.default, *values)


def test_average_precision_compiles(device: torch.device):
    compiled = torch.compile(ops.average_precision, fullgraph=True, dynamic=True)
    for count in (3, 5):
        args = (
            normalized(count, device),
            normalized(8, device),
            *torch.ones(count + 8).long().to(device).split([count, 8]),
        )
        assert torch.equal(compiled(*args), ops.average_precision(*args))


def test_average_precision_under_autocast(device: torch.device):
    q, c = normalized(6, device), normalized(40, device)
    values = torch.randint(3, (46,), device=device).split([6, 40])
    expected = ops.average_precision(q, c.bfloat16().float(), *values)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(ops.average_precision(q, c.bfloat16(), *values), expected)
