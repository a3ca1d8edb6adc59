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


@pytest.mark.parametrize("spread", ["uniform", "outliers", "one value", "tiny"])
def test_average_precision_for_any_spread_of_scores(spread: str, device: torch.device):
    """The bucket table is exact however the relevant scores are spread."""
    scores = torch.randn(4000, dtype=torch.float64)
    if spread == "outliers":
        scores[::100] = scores[::100] ** 15
    if spread == "one value":
        scores = scores.round()
    if spread == "tiny":
        scores = scores * 1e-44
    scores = scores.float()
    relevant = (torch.rand(4000) < 0.2).long()
    expected = oracle(scores.tolist(), relevant.bool().tolist())
    assert of_scores(scores.tolist(), relevant.tolist(), device) == pytest.approx(expected, abs=1e-12)


def normalized(rows: int, device: torch.device) -> Tensor:
    return F.normalize(torch.randn(rows, 100, device=device), dim=1)


def test_average_precision_does_not_depend_on_blocks_threads_or_company(by_threads):
    cpu = torch.device("cpu")
    q, c = normalized(67, cpu), normalized(403, cpu)
    # Twins: equal candidates must tie wherever they stand.
    c[200:] = c[torch.randperm(200).repeat(2)[:203]]
    qv, cv = torch.randint(4, (67,)), torch.randint(4, (403,))
    expected = ops.average_precision(q, c, qv, cv)
    for block in (1, 2, 7, 64, 1000):
        for got in by_threads(lambda block=block: ops.average_precision(q, c, qv, cv, block)):
            assert torch.equal(got, expected)
    alone = [ops.average_precision(q[i : i + 1], c, qv[i : i + 1], cv).item() for i in range(67)]
    assert alone == expected.tolist()


def test_average_precision_layouts(device: torch.device):
    q, c = normalized(9, device), normalized(30, device)
    qv, cv = torch.randint(3, (9,), device=device), torch.randint(3, (30,), device=device)
    expected = ops.average_precision(q, c, qv, cv)
    wide = torch.stack([q, q], 2)[:, :, 0]
    assert torch.equal(
        ops.average_precision(wide, c.T.contiguous().T, qv, torch.stack([cv, cv], 1)[:, 0]), expected
    )
    odd = torch.cat([q.new_zeros(1), q.flatten()])[1:].view_as(q)
    assert torch.equal(ops.average_precision(odd, c, qv, cv), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_average_precision_refuses_nan(bad: float, device: torch.device):
    q, c = torch.ones(3, 2, device=device), torch.zeros(5, 2, device=device)
    q[1, 1] = bad  # inf * 0 is NaN
    with pytest.raises(ValueError, match="average_precision: scores must be numbers, got NaN"):
        ops.average_precision(q, c, *torch.zeros(8, dtype=torch.int64, device=device).split([3, 5]))


def test_average_precision_errors():
    q, c, qv, cv = torch.ones(2, 3), torch.ones(4, 3), torch.ones(2).long(), torch.ones(4).long()
    for change, message in [
        ({"queries": q[0]}, r"queries must have shape \[Q, D\], got \[3\]"),
        ({"candidates": c[:, :2]}, r"candidates must have shape \[C, D\] with D of queries, got \[4, 2\]"),
        ({"query_values": cv}, r"query_values must have shape \[Q\], got \[4\]"),
        ({"candidate_values": qv}, r"candidate_values must have shape \[C\], got \[2\]"),
        ({"block": 0}, "block must be at least 1, got 0"),
    ]:
        args = {"queries": q, "candidates": c, "query_values": qv, "candidate_values": cv} | change
        with pytest.raises(ValueError, match="average_precision: " + message):
            ops.average_precision(**args)
    with pytest.raises(TypeError, match="average_precision: candidates must be Float, got Double"):
        ops.average_precision(q, c.double(), qv, cv)
    with pytest.raises(TypeError, match="average_precision: query_values must be Long, got Int"):
        ops.average_precision(q, c, qv.int(), cv)


def test_average_precision_registration(device: torch.device, opcheck):
    q, c = normalized(5, device), normalized(11, device)
    values = torch.randint(3, (16,), device=device).split([5, 11])
    opcheck(torch.ops.placket.average_precision.default, q, c, *values, 4)


def test_average_precision_has_no_gradient():
    q, values = torch.ones(2, 3, requires_grad=True), torch.zeros(2).long()
    with pytest.raises(RuntimeError, match="derivative for placket::average_precision is not implemented"):
        ops.average_precision(q, torch.ones(2, 3), values, values).sum().backward()


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


def test_average_precision_cuda_kernel_on_cpu_tensors(whole_vectors):
    """The CUDA kernel is made of ATen calls for any device, so that its logic is tested without a GPU."""
    cpu = torch.device("cpu")
    q, c = whole_vectors(33, 5, cpu), whole_vectors(120, 5, cpu)
    values = torch.randint(6, (153,)).split([33, 120])
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    op = torch.ops.placket.average_precision.default
    for block in (1, 10, 256):
        got = op.redispatch(cuda, q, c, *values, block)
        torch.testing.assert_close(got, ops.average_precision(q, c, *values), atol=1e-12, rtol=0)
    for count, length in ((0, 4), (3, 0)):
        empty = op.redispatch(cuda, q[:count], c[:length], values[0][:count], values[1][:length])
        assert torch.equal(empty, torch.zeros(count, dtype=torch.float64))
    with pytest.raises(ValueError, match="average_precision: scores must be numbers, got NaN"):
        op.redispatch(cuda, q.log(), c, *values)
