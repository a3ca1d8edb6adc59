from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from placket import ops, reference
from placket.ranking import RankMetrics, rank_metrics_of_lists

CPU = torch.device("cpu")
CUTOFFS = (1, 3, 10, 10_000)


def relevance(
    queries: int, candidates: int, groups: int, share: float, device: torch.device, excluded: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Sequence[int]]:
    """Groups that overlap, some of them empty, and for half of the queries a candidate that is left out."""
    member = torch.rand(groups, candidates) < share * torch.rand(groups, 1)
    member[:1] = False
    offsets = F.pad(member.sum(1).cumsum(0), (1, 0))
    rows = member.nonzero()[:, 1]
    asked = torch.randint(groups, (queries,))
    left_out = torch.randint(candidates, (queries,)) if candidates else torch.full((queries,), -1)
    left_out[torch.rand(queries) < 0.5] = -1
    left_out = left_out.to(device) if excluded else None
    return asked.to(device), offsets.to(device), rows.to(device), left_out, CUTOFFS


def assert_same(ours: RankMetrics, expected: RankMetrics) -> None:
    """Counts agree exactly. Sums of up to some hundred fractions below 1 may be rounded in another order."""
    assert torch.equal(ours.hits, expected.hits)
    assert torch.equal(ours.first, expected.first)
    for name in ("average_precision", "expected_average_precision", "precision_sum"):
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name), atol=1e-11, rtol=0)


def assert_identical(ours: RankMetrics, expected: RankMetrics) -> None:
    for name, mine, theirs in zip(RankMetrics._fields, ours, expected, strict=True):
        assert torch.equal(mine, theirs), name


def of_scores(scores: list[float], relevant: list[int], device: torch.device, **more: object) -> RankMetrics:
    """The measures of one query; ``relevant`` are rows."""
    rows = torch.tensor(relevant, dtype=torch.int64, device=device)
    return ops.rank_metrics_of_scores(
        torch.tensor([scores], dtype=torch.float32, device=device),
        rows.new_zeros(1),
        rows.new_tensor([0, len(relevant)]),
        rows,
        **more,
    )


@pytest.mark.parametrize(
    ("scores", "relevant", "expected"),
    [
        # Manning, Raghavan, Schuetze, Introduction to Information Retrieval, exercise 8.8 (system 1).
        ([10, 9, 8, 7, 6, 5, 4, 3, 2, 1], [0, 2, 8, 9], (1 + 2 / 3 + 3 / 9 + 4 / 10) / 4),
        # scikit-learn's documentation of average_precision_score.
        ([0.1, 0.4, 0.35, 0.8], [2, 3], (1 + 2 / 3) / 2),
        ([1, 1, 1], [2], 1 / 3),  # a tie is in candidate order
        ([1, 1, 1], [0], 1.0),
        ([0.0, -0.0, 0.0], [1], 1 / 2),  # -0 ties with 0
        ([-1e30, 1e30, float("inf"), float("-inf")], [0, 3], (1 / 3 + 2 / 4) / 2),
        ([float("-inf"), float("-inf"), 1], [1], 1 / 3),
        ([float("inf"), float("inf"), 1], [0, 2], (1 + 2 / 3) / 2),
        ([3, 2, 1], [], 0.0),
        ([5], [0], 1.0),
        ([], [], 0.0),
    ],
)
def test_rank_metrics_average_precision_by_hand(scores, relevant, expected, device):
    assert of_scores(scores, relevant, device).average_precision.item() == pytest.approx(expected, abs=1e-15)


def test_rank_metrics_cutoffs_by_hand(device: torch.device):
    got = of_scores([9, 8, 7, 6, 5, 4], [1, 2, 5], device, cutoffs=[1, 2, 3, 6, 100])
    assert got.hits.tolist() == [[0, 1, 2, 3, 3]]
    sums = [0, 1 / 2, 1 / 2 + 2 / 3, 1 / 2 + 2 / 3 + 3 / 6, 1 / 2 + 2 / 3 + 3 / 6]
    assert got.precision_sum.tolist() == [pytest.approx(sums, abs=1e-15)]
    assert got.first.tolist() == [2]
    left_out = of_scores(
        [9, 8, 7, 6, 5, 4], [1, 2, 5], device, cutoffs=[1, 3], excluded=torch.tensor([1], device=device)
    )
    assert left_out.hits.tolist() == [[0, 1]]
    assert left_out.first.tolist() == [2]
    assert left_out.average_precision.item() == pytest.approx((1 / 2 + 2 / 5) / 2, abs=1e-15)
    nothing = of_scores([9, 8], [1], device, cutoffs=[2], excluded=torch.tensor([1], device=device))
    assert [field.item() for field in nothing] == [0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("scores", "relevant"),
    [
        ([1, 1], [0]),
        ([1, 1, 1, 1, 1], [1, 4]),
        ([2, 1, 1, 1, 0], [0, 2]),
        ([3, 2, 2, 2, 2, 1, 1], [1, 3, 6]),
        ([1, 2, 1, 2, 1, 2, 0], [0, 1, 2, 3, 6]),
        ([0, 0, 5, 0, 0, 0, 0], [0, 1]),
    ],
)
def test_rank_metrics_expectation_is_the_mean_over_all_orders(scores, relevant, device):
    """Every order of the candidates is tried; ties then fall by their place in it."""
    total, orders = 0.0, 0
    for order in itertools.permutations(range(len(scores))):
        ranked = sorted(order, key=lambda c: -scores[c])
        found, precision = 0, 0.0
        for rank, c in enumerate(ranked, 1):
            if c in relevant:
                found += 1
                precision += found / rank
        total += precision / len(relevant)
        orders += 1
    got = of_scores(scores, relevant, device).expected_average_precision.item()
    assert got == pytest.approx(total / orders, abs=1e-12)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (3, 2, 7), (17, 33, 9), (12, 301, 64), (3, 1100, 3), (0, 4, 3), (2, 0, 3), (4, 5, 0)]
)
@pytest.mark.parametrize(("groups", "share"), [(1, 0.0), (2, 1.0), (9, 0.3)])
def test_rank_metrics_matches_reference(shape, groups, share, device, whole_vectors):
    """Scores are whole numbers: exact in any order of summation, with many ties."""
    count, length, dims = shape
    queries = [whole_vectors(count, d, device) for d in (dims, 5)]
    candidates = [whole_vectors(length, d, device) for d in (dims, 5)]
    weights = torch.tensor([[1.0, 0.0], [0.5, 2.0], [0.0, -1.0]], device=device)
    relevant = relevance(count, length, groups, share, device)
    ours = ops.rank_metrics(queries, candidates, weights, *relevant)
    assert ours.hits.shape == (3, count, len(CUTOFFS))
    assert_same(ours, reference.rank_metrics(queries, candidates, weights, *relevant))
    scores = queries[0] @ candidates[0].T
    of_matrix = ops.rank_metrics_of_scores(scores, *relevant)
    assert_identical(of_matrix, RankMetrics(*(field[0] for field in ours)))


@pytest.mark.parametrize("spread", ["uniform", "outliers", "one value", "two values", "tiny", "infinite"])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.9])
def test_rank_metrics_for_any_spread_of_scores(spread: str, share: float, device: torch.device):
    """The table of buckets is exact however the relevant scores are spread."""
    scores = torch.randn(3, 1100, dtype=torch.float64)
    if spread == "outliers":
        scores[:, ::100] = scores[:, ::100] ** 15
    if spread == "one value":
        scores = torch.ones_like(scores)
    if spread == "two values":
        scores = scores.sign()
    if spread == "tiny":
        scores = scores * 1e-44
    if spread == "infinite":
        scores[:, ::7] = float("inf")
        scores[:, 1::7] = -float("inf")
    scores = scores.float().to(device)
    relevant = relevance(3, 1100, 2, share, device)
    assert_same(
        ops.rank_metrics_of_scores(scores, *relevant), reference.rank_metrics_of_scores(scores, *relevant)
    )


def test_rank_metrics_expectation_is_the_same_bits_without_ties(device: torch.device):
    scores = torch.rand(9, 3000, device=device).argsort(1).float()
    got = ops.rank_metrics_of_scores(scores, *relevance(9, 3000, 4, 0.4, device))
    assert torch.equal(got.expected_average_precision, got.average_precision)


def embeddings(rows: int, dims: int, device: torch.device) -> Tensor:
    return F.normalize(torch.randn(rows, dims, device=device), dim=1)


def test_rank_metrics_does_not_depend_on_blocks_threads_or_company(by_threads):
    queries = [embeddings(67, d, CPU) for d in (100, 17)]
    candidates = [embeddings(403, d, CPU) for d in (100, 17)]
    # Twins: equal candidates must tie wherever they stand.
    twins = torch.randperm(200).repeat(2)[:203]
    for block in candidates:
        block[200:] = block[twins]
    weights = torch.tensor([[0.3, 0.7], [1.0, 0.0]])
    groups, *same, excluded, cutoffs = relevance(67, 403, 5, 0.5, CPU)
    relevant = (groups, *same, excluded, cutoffs)
    expected = ops.rank_metrics(queries, candidates, weights, *relevant)
    for block in (1, 2, 7, 64, 1000):
        for got in by_threads(
            lambda block=block: ops.rank_metrics(queries, candidates, weights, *relevant, block)
        ):
            assert_identical(got, expected)
    for q in range(67):
        one = slice(q, q + 1)
        alone = ops.rank_metrics(
            [x[one] for x in queries], candidates, weights, groups[one], *same, excluded[one], cutoffs
        )
        assert_identical(alone, RankMetrics(*(field[:, one] for field in expected)))


def test_rank_metrics_weightings_equal_single_runs(device: torch.device):
    queries = [embeddings(20, d, device) for d in (64, 32, 8)]
    candidates = [embeddings(300, d, device) for d in (64, 32, 8)]
    weights = torch.rand(5, 3, device=device)
    weights[0] = torch.tensor([0, 1, 0])
    relevant = relevance(20, 300, 4, 0.3, device)
    together = ops.rank_metrics(queries, candidates, weights, *relevant)
    for w in range(5):
        alone = ops.rank_metrics(queries, candidates, weights[w : w + 1], *relevant)
        assert_identical(alone, RankMetrics(*(field[w : w + 1] for field in together)))
    middle = ops.rank_metrics(queries[1:2], candidates[1:2], weights.new_ones(1, 1), *relevant)
    assert_identical(middle, RankMetrics(*(field[:1] for field in together)))


def test_rank_metrics_layouts(device: torch.device):
    q, c = embeddings(9, 31, device), embeddings(30, 31, device)
    relevant = relevance(9, 30, 3, 0.4, device)
    weights = torch.ones(1, 1, device=device)
    expected = ops.rank_metrics([q], [c], weights, *relevant)
    wide = torch.stack([q, q], 2)[:, :, 0]
    strided = tuple(torch.stack([x, x], 1)[:, 0] for x in relevant[:4])
    odd = torch.cat([q.new_zeros(1), q.flatten()])[1:].view_as(q)
    for queries in (wide, odd):
        got = ops.rank_metrics(
            [queries], [c.T.contiguous().T], weights.expand(1, 2)[:, :1], *strided, relevant[4]
        )
        assert_identical(got, expected)
    scores = torch.randn(30, 9, device=device).T
    assert_identical(
        ops.rank_metrics_of_scores(scores, *relevant),
        ops.rank_metrics_of_scores(scores.contiguous(), *relevant),
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("empty", [False, True])
def test_rank_metrics_refuses_nan(bad: float, empty: bool, device: torch.device):
    q, c = torch.ones(3, 2, device=device), torch.zeros(5, 2, device=device)
    q[1, 1] = bad  # inf * 0 is NaN
    groups = torch.zeros(3, dtype=torch.int64, device=device)
    rows = groups[: 0 if empty else 1]
    relevant = (groups, groups.new_tensor([0, len(rows)]), rows)
    with pytest.raises(ValueError, match="rank_metrics: scores must be numbers, got NaN"):
        ops.rank_metrics([q], [c], torch.ones(1, 1, device=device), *relevant)
    with pytest.raises(ValueError, match="rank_metrics_of_scores: scores must be numbers, got NaN"):
        ops.rank_metrics_of_scores(q @ c.T, *relevant)


def test_rank_metrics_errors():
    good = {
        "queries": [torch.ones(2, 3)],
        "candidates": [torch.ones(4, 3)],
        "weights": torch.ones(1, 1),
        "query_groups": torch.tensor([0, 1]),
        "group_offsets": torch.tensor([0, 2, 3]),
        "group_rows": torch.tensor([1, 3, 0]),
        "excluded": torch.tensor([-1, 3]),
        "cutoffs": [1],
    }
    ops.rank_metrics(**good)
    for change, message in [
        ({"queries": []}, "queries must hold at least one tensor, got none"),
        ({"candidates": []}, "candidates must hold 1 tensors like queries, got 0"),
        ({"weights": torch.ones(1, 2)}, r"weights must have shape \[W, S\] with S .*, got \[1, 2\]"),
        ({"queries": [torch.ones(3)]}, r"queries must have shape \[Q, D\], got \[3\]"),
        ({"candidates": [torch.ones(4, 2)]}, r"candidates must have shape \[C, D\] with D .*, got \[4, 2\]"),
        ({"query_groups": torch.tensor([0])}, r"query_groups must have shape \[Q\], got \[1\]"),
        ({"query_groups": torch.tensor([0, 2])}, r"query_groups must be in \[0, 2\), got 2 for query 1"),
        ({"query_groups": torch.tensor([-1, 0])}, r"query_groups must be in \[0, 2\), got -1 for query 0"),
        ({"group_offsets": torch.tensor([0, 2])}, "group_offsets must go from 0 to the 3 of .*, got 0 to 2"),
        ({"group_offsets": torch.tensor([1, 3])}, "group_offsets must go from 0 to the 3 of .*, got 1 to 3"),
        ({"group_offsets": torch.tensor([]).long()}, "group_offsets must .*, got none"),
        ({"group_offsets": torch.tensor([0, 4, 3])}, "group_offsets must not fall, got 4 before 3"),
        ({"group_rows": torch.tensor([1, 4, 0])}, r"group_rows must be in \[0, 4\), got 4 in group 0"),
        ({"group_rows": torch.tensor([1, 1, 0])}, "group_rows must ascend .*, got 1 before 1 in group 0"),
        ({"excluded": torch.tensor([4, 0])}, r"excluded must be in \[-1, 4\), got 4 for query 0"),
        ({"excluded": torch.tensor([0])}, r"excluded must have shape \[Q\], got \[1\]"),
        ({"cutoffs": [5, 0]}, "cutoffs must be at least 1, got 0"),
        ({"block": 0}, "block must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match="rank_metrics: " + message):
            ops.rank_metrics(**{**good, **change})
    two = {"queries": good["queries"] * 2, "candidates": good["candidates"] * 2, "weights": torch.ones(1, 2)}
    with pytest.raises(ValueError, match=r"rank_metrics: queries must have shape \[Q, D\] with one Q"):
        ops.rank_metrics(**{**good, **two, "queries": [torch.ones(2, 3), torch.ones(1, 3)]})
    with pytest.raises(ValueError, match=r"rank_metrics: candidates must have shape \[C, D\] with one C"):
        ops.rank_metrics(**{**good, **two, "candidates": [torch.ones(4, 3), torch.ones(5, 3)]})
    with pytest.raises(TypeError, match="rank_metrics: candidates must be Float, got Double"):
        ops.rank_metrics(**{**good, "candidates": [torch.ones(4, 3).double()]})
    with pytest.raises(TypeError, match="rank_metrics: group_rows must be Long, got Int"):
        ops.rank_metrics(**{**good, "group_rows": good["group_rows"].int()})
    with pytest.raises(
        ValueError, match=r"rank_metrics_of_scores: scores must have shape \[Q, C\], got \[4\]"
    ):
        ops.rank_metrics_of_scores(torch.ones(4), *list(good.values())[3:6])
    with pytest.raises(TypeError, match="rank_metrics_of_scores: scores must be Float, got Double"):
        ops.rank_metrics_of_scores(torch.ones(2, 4).double(), *list(good.values())[3:6])


def test_rank_metrics_groups_outside_the_rows_are_refused():
    """Offsets that leave the rows and come back are found before anything is read by them."""
    with pytest.raises(ValueError, match="group_offsets must not fall, got 9 before 1"):
        ops.rank_metrics_of_scores(torch.ones(1, 4), *map(torch.tensor, ([0], [0, 9, 1], [2])))


@pytest.mark.parametrize("excluded", [False, True])
def test_rank_metrics_registration(excluded: bool, device: torch.device, opcheck):
    relevant = relevance(5, 11, 3, 0.5, device, excluded)
    queries = [embeddings(5, d, device) for d in (4, 3)]
    candidates = [embeddings(11, d, device) for d in (4, 3)]
    weights = torch.rand(2, 2, device=device)
    opcheck(torch.ops.placket.rank_metrics.default, queries, candidates, weights, *relevant, 4)
    opcheck(torch.ops.placket.rank_metrics_of_scores.default, torch.randn(5, 11, device=device), *relevant)


def test_rank_metrics_has_no_gradient():
    relevant = relevance(2, 3, 2, 0.5, CPU)
    scores = torch.ones(2, 3, requires_grad=True)
    got = ops.rank_metrics([scores], [torch.eye(3)], torch.ones(1, 1), *relevant)
    with pytest.raises(RuntimeError, match="derivative for placket::rank_metrics is not implemented"):
        got.average_precision.sum().backward()
    with pytest.raises(
        RuntimeError, match="derivative for placket::rank_metrics_of_scores is not implemented"
    ):
        ops.rank_metrics_of_scores(scores, *relevant).average_precision.sum().backward()


def test_rank_metrics_compiles(device: torch.device):
    compiled = torch.compile(ops.rank_metrics, fullgraph=True, dynamic=True)
    of_scores = torch.compile(ops.rank_metrics_of_scores, fullgraph=True, dynamic=True)
    for count in (3, 5):
        relevant = relevance(count, 8, 3, 0.5, device)
        args = ([embeddings(count, 6, device)], [embeddings(8, 6, device)], torch.ones(2, 1, device=device))
        assert_identical(compiled(*args, *relevant), ops.rank_metrics(*args, *relevant))
        scores = torch.randn(count, 8, device=device)
        assert_identical(of_scores(scores, *relevant), ops.rank_metrics_of_scores(scores, *relevant))


def test_rank_metrics_under_autocast(device: torch.device):
    q, c = embeddings(6, 12, device), embeddings(40, 12, device)
    relevant, weights = relevance(6, 40, 3, 0.5, device), torch.ones(1, 1, device=device)
    expected = ops.rank_metrics([q], [c.bfloat16().float()], weights, *relevant)
    scores = torch.randn(6, 40, device=device).bfloat16()
    of_floats = ops.rank_metrics_of_scores(scores.float(), *relevant)
    with torch.autocast(device.type, torch.bfloat16):
        assert_identical(ops.rank_metrics([q], [c.bfloat16()], weights, *relevant), expected)
        assert_identical(ops.rank_metrics_of_scores(scores, *relevant), of_floats)


CUDA_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


def on_cuda_path(*args: object) -> RankMetrics:
    """What the CUDA operator does, of tensors on the CPU: its steps run there too, a candidate at a time,
    so that all but the launches is tested without a GPU."""
    return RankMetrics(*torch.ops.placket.rank_metrics_of_scores.default.redispatch(CUDA_KEY, *args))


def test_rank_metrics_cuda_path_on_cpu_tensors(whole_vectors):
    queries = [whole_vectors(33, d, CPU) for d in (5, 2)]
    candidates = [whole_vectors(120, d, CPU) for d in (5, 2)]
    weights = torch.tensor([[1.0, 0.0], [0.5, 2.0]])
    op = torch.ops.placket.rank_metrics.default
    for excluded in (False, True):
        relevant = relevance(33, 120, 6, 0.4, CPU, excluded)
        expected = ops.rank_metrics(queries, candidates, weights, *relevant)
        for block in (1, 10, 256, None):
            got = RankMetrics(*op.redispatch(CUDA_KEY, queries, candidates, weights, *relevant, block))
            assert_identical(got, expected)
    for count, length in ((0, 4), (3, 0)):
        few = [q[:count] for q in queries], [c[:length] for c in candidates], weights
        relevant = relevance(count, length, 2, 0.4, CPU)
        empty = RankMetrics(*op.redispatch(CUDA_KEY, *few, *relevant, None))
        assert_identical(empty, ops.rank_metrics(*few, *relevant))
    relevant = relevance(33, 120, 6, 0.4, CPU)
    with pytest.raises(ValueError, match="rank_metrics: scores must be numbers, got NaN"):
        op.redispatch(CUDA_KEY, [q.log() for q in queries], candidates, weights, *relevant, None)


def spread_scores(spread: str, queries: int, candidates: int) -> Tensor:
    scores = torch.randn(queries, candidates)
    if spread == "ties":
        return (scores * 3).round()
    if spread == "one value":
        return torch.full_like(scores, -0.0)
    if spread == "infinite":
        scores[:, ::5] = float("inf")
        scores[:, 1::5] = -float("inf")
    return scores


SPREADS = ("no ties", "ties", "one value", "infinite")
SHAPES = ((1, 1), (3, 2), (7, 257), (5, 1023), (2, 20_000))


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_rank_metrics_cuda_path_gives_the_bits_of_the_cpu(spread: str, shape: tuple[int, int], share: float):
    scores = spread_scores(spread, *shape)
    relevant = relevance(*shape, 3, share, CPU)
    expected = ops.rank_metrics_of_scores(scores, *relevant)
    assert_identical(on_cuda_path(scores, *relevant), expected)
    assert_identical(on_cuda_path(torch.stack([scores, scores], 2)[:, :, 0], *relevant), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("shape", [*SHAPES, (300, 9000), (2, 3_000_000)])
@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_rank_metrics_on_a_gpu_give_the_bits_of_the_cpu(spread: str, shape: tuple[int, int], share: float):
    """Counters in shared memory and, with more than 4,094 relevant rows, not; one share of a query's
    candidates and many."""
    scores = spread_scores(spread, *shape)
    *relevant, cutoffs = relevance(*shape, 3, share, CPU)
    expected = ops.rank_metrics_of_scores(scores, *relevant, cutoffs)
    given = [None if part is None else part.cuda() for part in relevant]
    for _ in range(3):  # the order of the threads is never the same
        got = ops.rank_metrics_of_scores(scores.cuda(), *given, cutoffs)
        assert_identical(RankMetrics(*(field.cpu() for field in got)), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("block", [1, 7, 64, None])
def test_rank_metrics_on_a_gpu_do_not_depend_on_blocks(block: int | None, whole_vectors):
    """Scores are whole numbers, which every order of summation gets right."""
    queries = [whole_vectors(67, d, CPU) for d in (100, 17)]
    candidates = [whole_vectors(4003, d, CPU) for d in (100, 17)]
    weights = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    *relevant, cutoffs = relevance(67, 4003, 5, 0.5, CPU)
    expected = ops.rank_metrics(queries, candidates, weights, *relevant, cutoffs)
    got = ops.rank_metrics(
        [q.cuda() for q in queries],
        [c.cuda() for c in candidates],
        weights.cuda(),
        *(part.cuda() for part in relevant),
        cutoffs,
        block,
    )
    assert_identical(RankMetrics(*(field.cpu() for field in got)), expected)


@pytest.mark.parametrize("excluded", [False, True])
def test_rank_metrics_of_whole_lists_equal_those_of_scores(excluded: bool, whole_vectors):
    scores = whole_vectors(21, 300, CPU)
    relevant = relevance(21, 300, 5, 0.4, CPU, excluded)
    of_lists = rank_metrics_of_lists(scores.argsort(dim=1, descending=True, stable=True), *relevant)
    expected = ops.rank_metrics_of_scores(scores, *relevant)
    assert_same(of_lists, expected._replace(expected_average_precision=expected.average_precision))


def test_rank_metrics_of_lists_by_hand():
    ranked = [[4, 2, 7, -1], [-1, 0, 5, 1], [9, 8, 6, 5]]
    # Groups {2, 7, 8} and {5}; the third query asks for the first group without row 8.
    got = rank_metrics_of_lists(ranked, [0, 1, 0], [0, 3, 4], [2, 7, 8, 5], [-1, 0, 8], cutoffs=[2, 3])
    assert got.average_precision.tolist() == pytest.approx([(1 / 2 + 2 / 3) / 3, 1, 0])
    assert torch.equal(got.expected_average_precision, got.average_precision)
    assert got.hits.tolist() == [[1, 2], [1, 1], [0, 0]]
    assert got.precision_sum.tolist() == [pytest.approx([1 / 2, 1 / 2 + 2 / 3]), [1, 1], [0, 0]]
    assert got.first.tolist() == [2, 1, 0]
    none = rank_metrics_of_lists([[], []], [0, 0], [0, 1], [3], cutoffs=[5])
    assert [field.tolist() for field in none] == [[0, 0], [0, 0], [[0], [0]], [[0], [0]], [0, 0]]


def test_rank_metrics_of_lists_errors():
    for args, message in [
        (([[1, 2]], [0, 0], [0, 1], [1]), r"ranked must have shape \[2, L\] like query_groups, got \[1, 2\]"),
        (
            ([[1, 1]], [0], [0, 1], [1]),
            "ranked must hold each candidate once, got 1 more than once for query 0",
        ),
        (([[1, 2]], [0], [0, 1], [1], [0, 0]), r"excluded must have shape \[1\], got \[2\]"),
        (([[1, 2]], [0], [0, 1], [1], None, [0]), "cutoffs must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match="rank_metrics_of_lists: " + message):
            rank_metrics_of_lists(*args)
