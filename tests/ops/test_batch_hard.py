from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from placket import ops, reference
from placket.losses import label_sets

KINDS = ["labels", "sets", "relation"]
# One row, fewer dimensions than lanes, more rows than a tile has, a product longer than a block of it.
SHAPES = [(0, 4), (1, 3), (2, 8), (37, 20), (530, 12), (70, 300)]


def labels_of(kind: str, rows: int, device: torch.device) -> Tensor:
    if kind == "labels":
        return torch.randint(-1, 7, (rows,), device=device)
    if kind == "sets":
        return label_sets(torch.rand(rows, 70, device=device) < 0.02)
    return torch.rand(rows, rows, device=device) < 0.05


def check(found: ops.HardPairs, expected: tuple[Tensor, ...]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_batch_hard_by_hand():
    angles = torch.tensor([0.0, 10.0, 60.0, 28.0, 95.0, 45.0]).deg2rad()
    rows = (
        torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([2.0, 1.0, 0.5, 3.0, 1.0, 1.0])[:, None]
    )
    labels = torch.tensor([0, 0, 0, 1, 1, -1])
    for function in (ops.batch_hard, reference.batch_hard):
        positive, negative, furthest, nearest = function(rows, labels)
        assert positive.tolist() == [2, 2, 0, 4, 3, -1]
        assert negative.tolist() == [3, 3, 3, 1, 2, -1]
        for found, degrees in ((furthest, (60, 50, 60, 67, 67)), (nearest, (28, 18, 32, 18, 35))):
            cosines = [math.cos(math.radians(d)) for d in degrees]
            torch.testing.assert_close(found, torch.tensor([*cosines, 0.0]))
        # Rows 0, 1 and 4 have a negative beyond their positive; rows 2 and 3 take their furthest one.
        assert function(rows, labels, semi_hard=True)[1].tolist() == [4, 4, 4, 2, 1, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("semi_hard", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_batch_hard_matches_reference(
    kind: str, grouped: bool, semi_hard: bool, dtype: torch.dtype, device: torch.device
):
    for n, d in SHAPES[:4] if kind == "relation" or grouped else SHAPES:
        rows = torch.randn(n, d, device=device, dtype=dtype)
        labels = labels_of(kind, n, device)
        groups = torch.randint(-2, 2, (n,), device=device) if grouped else None
        check(
            ops.batch_hard(rows, labels, groups, semi_hard),
            reference.batch_hard(rows, labels, groups, semi_hard),
        )


@pytest.mark.parametrize("semi_hard", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_domains_are_compared_with_others_only(kind: str, semi_hard: bool, device: torch.device):
    for n, d in SHAPES[:4]:
        rows = torch.randn(n, d, device=device)
        labels, domains = labels_of(kind, n, device), torch.randint(0, 2, (n,), device=device)
        groups = torch.randint(0, 3, (n,), device=device)
        for own in (None, groups):
            found = ops.batch_hard(rows, labels, own, semi_hard, domains)
            check(found, reference.batch_hard(rows, labels, own, semi_hard, domains))
            for partner in (found.positive, found.negative):
                assert (domains[partner.clamp_min(0)] != domains)[partner >= 0].all()
        one = ops.batch_hard(rows, labels, None, semi_hard, torch.zeros_like(domains))
        assert (one.positive == -1).all()
        assert (one.negative == -1).all()
    with pytest.raises(ValueError, match=r"batch_hard: domains must have shape \[B\]"):
        ops.batch_hard(rows, labels, domains=domains[1:])


@pytest.mark.parametrize("semi_hard", [False, True])
def test_batch_hard_takes_the_first_of_equal_rows(semi_hard: bool, device: torch.device):
    rows = torch.randn(5, 16, device=device).repeat(120, 1)  # more than a tile, each row 120 times
    labels = torch.randint(0, 3, (600,), device=device)
    found = ops.batch_hard(rows, labels, semi_hard=semi_hard)
    distinct = torch.nn.functional.normalize(rows[:5].double(), dim=1)
    cosine = (distinct @ distinct.T).repeat(120, 120)
    others = ~torch.eye(600, dtype=torch.bool, device=device)
    same_label = labels[:, None] == labels
    for found_rows, wanted in ((found.negative, ~same_label), (found.positive, same_label & others)):
        # Rows that are copies of one another have one cosine in every bit.
        tied = wanted & (cosine == cosine.gather(1, found_rows[:, None]))
        assert torch.equal(found_rows, tied.int().argmax(1))


def test_batch_hard_low_precision(device: torch.device):
    rows = torch.randn(64, 32, device=device).bfloat16()
    labels = torch.randint(0, 9, (64,), device=device)
    found = ops.batch_hard(rows, labels)
    assert found.positive_similarity.dtype == torch.float32
    check(found, reference.batch_hard(rows.float(), labels))


def test_batch_hard_nan_is_the_hardest(device: torch.device):
    rows = torch.randn(9, 16, device=device)
    rows[[4, 5], 3] = math.nan
    labels = torch.tensor([0, 1, 0, 1, 0, 0, 1, 2, 3], device=device)
    for semi_hard in (False, True):
        found = ops.batch_hard(rows, labels, semi_hard=semi_hard)
        assert found.positive[[0, 2, 4, 5, 7, 8]].tolist() == [4, 4, 0, 0, -1, -1]
        assert found.negative[[1, 3, 4, 5, 6, 7, 8]].tolist() == [4, 4, 1, 1, 4, 4, 4]
        assert found.positive_similarity.isnan().tolist() == [
            True,
            False,
            True,
            False,
            True,
            True,
            False,
            False,
            False,
        ]
        assert found.negative_similarity[[1, 3, 4, 5, 6, 7, 8]].isnan().all()


def test_batch_hard_zero_row_has_cosine_0(device: torch.device):
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], device=device)
    found = ops.batch_hard(rows, torch.tensor([0, 0, 1], device=device))
    assert found.positive_similarity.tolist() == [0, 0, 0]
    assert found.negative_similarity.tolist() == [0, -1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_batch_hard_depends_on_neither_threads_nor_tiles(kind: str):
    rows, labels = torch.randn(700, 40), labels_of(kind, 700, torch.device("cpu"))
    groups = torch.randint(0, 2, (700,))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)  # which also changes the tiles
            results.append(ops.batch_hard(rows, labels, groups, True))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def status_kib(name: str) -> int:
    """A line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_batch_hard_keeps_no_matrix():
    rows, labels = torch.randn(12_000, 8), torch.arange(12_000) // 4
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)
    before = status_kib("VmRSS")
    ops.batch_hard(rows, labels, semi_hard=True)
    grown = status_kib("VmHWM") - before
    assert grown * 1024 < 12_000**2 / 4  # a sixteenth of the matrix in float32


def test_batch_hard_registration(device: torch.device, opcheck: Callable[..., None]):
    rows = torch.randn(6, 8, device=device)
    for kind in KINDS:
        labels = labels_of(kind, 6, device)
        opcheck(torch.ops.placket.batch_hard.default, rows, labels, None, False)
    groups = torch.randint(0, 2, (6,), device=device)
    opcheck(torch.ops.placket.batch_hard.default, rows, labels, groups, True)
    # opcheck differentiates whatever requires a gradient, which this operator refuses.
    torch.library.opcheck(
        torch.ops.placket.batch_hard.default,
        (rows.clone().requires_grad_(), labels, groups, True),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_batch_hard_compiles(device: torch.device):
    compiled = torch.compile(ops.batch_hard, fullgraph=True, dynamic=True)
    for n in (5, 9):
        rows, labels = torch.randn(n, 8, device=device), torch.randint(0, 3, (n,), device=device)
        check(compiled(rows, labels), ops.batch_hard(rows, labels))


def test_batch_hard_layouts(device: torch.device):
    rows, labels = torch.randn(9, 6, device=device), torch.randint(0, 3, (9,), device=device)
    expected = ops.batch_hard(rows, labels)
    check(ops.batch_hard(rows.T.contiguous().T, labels), expected)
    padded = torch.cat([torch.zeros(1, device=device), rows.flatten()])[1:].view(9, 6)
    check(ops.batch_hard(padded, labels), expected)
    check(ops.batch_hard(rows, labels.repeat_interleave(2)[::2]), expected)


def test_batch_hard_without_dimensions(device: torch.device):
    found = ops.batch_hard(torch.empty(3, 0, device=device), torch.tensor([0, 0, 1], device=device))
    assert found.positive.tolist() == [1, 0, -1]
    assert found.negative.tolist() == [2, 2, 0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"embeddings": torch.randn(4)}, ValueError, r"embeddings must have shape \[B, D\], got \[4\]"),
        (
            {"embeddings": torch.ones(4, 2).long()},
            TypeError,
            "embeddings must be float32, bfloat16 or float64",
        ),
        ({"labels": torch.zeros(4)}, TypeError, "labels must be int64, or bool for a relation, got Float"),
        ({"labels": torch.zeros(5).long()}, ValueError, r"labels must have shape \[B\], .* B = 4, got \[5\]"),
        (
            {"labels": torch.ones(4, 3).bool()},
            ValueError,
            r"labels must have shape \[B, B\] .*, got \[4, 3\]",
        ),
        ({"groups": torch.zeros(3).long()}, ValueError, r"groups must have shape \[B\] .* B = 4, got \[3\]"),
        ({"groups": torch.zeros(4)}, TypeError, "groups must be Long, got Float"),
    ],
)
def test_batch_hard_errors(change: dict[str, Tensor], error: type[Exception], message: str):
    given = {
        "embeddings": torch.randn(4, 2),
        "labels": torch.zeros(4).long(),
        "groups": torch.zeros(4).long(),
    }
    with pytest.raises(error, match=f"batch_hard: {message}"):
        ops.batch_hard(**{**given, **change})


def test_batch_hard_has_no_gradient():
    rows = torch.randn(4, 3, requires_grad=True)
    found = ops.batch_hard(rows, torch.tensor([0, 0, 1, 1]))
    with pytest.raises(RuntimeError, match="derivative for placket::batch_hard is not implemented"):
        found.positive_similarity.sum().backward()


def test_batch_hard_autocast_runs_in_float32(device: torch.device):
    rows, labels = torch.randn(12, 8, device=device), torch.randint(0, 3, (12,), device=device)
    with torch.autocast(device.type, torch.bfloat16):
        found = ops.batch_hard(rows.bfloat16(), labels)
    check(found, reference.batch_hard(rows.bfloat16().float(), labels))


@pytest.mark.gpu
def test_batch_hard_on_a_side_stream():
    rows, labels = torch.randn(300, 64, device="cuda"), torch.randint(0, 40, (300,), device="cuda")
    expected = reference.batch_hard(rows, labels)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = ops.batch_hard(rows, labels)
    stream.synchronize()
    check(found, expected)
