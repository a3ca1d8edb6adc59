from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from placket import ops, reference

# Classes M, rows V, dimensions E.
SHAPES = [(1, 1, 1), (3, 7, 5), (54, 48, 1024), (185, 512, 37), (1000, 300, 16), (70001, 9, 2), (5, 0, 8)]


def inputs(
    count: int, rows: int, dims: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Centres of which a third was never seen, rows of any length, and classes of which some are -1."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    centres = F.normalize(torch.randn(count, dims, dtype=wide), dim=1)
    centres[1::3] = 0
    embeddings = torch.randn(rows, dims, dtype=dtype) * torch.rand(rows, 1, dtype=dtype) * 9
    classes = torch.randint(-1, count, (rows,))
    return centres.to(device), embeddings.to(device), classes.to(device)


def in_two_steps(centres: Tensor, embeddings: Tensor, classes: Tensor, momentum: float) -> Tensor:
    return ops.class_centres_of_sums(
        centres, *ops.class_sums(embeddings, classes, len(centres)), momentum=momentum
    )


Update = Callable[[Tensor, Tensor, Tensor, float], Tensor]
UPDATES = [ops.class_centres, reference.class_centres, in_two_steps]


@pytest.mark.parametrize("update", UPDATES)
def test_class_centres_by_hand(update: Update, device: torch.device):
    centres = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.6, 0.8]], device=device)
    embeddings = torch.tensor([[0.0, 5.0], [3.0, 0.0], [0.0, 2.0], [-7.0, 0.0], [1.0, 0.0]], device=device)
    classes = torch.tensor([0, 2, 2, 0, -1], device=device)
    # Class 0: mean (-1/2, 1/2), so 3/4 (1, 0) + 1/4 (-1/2, 1/2) = (5/8, 1/8). Class 2 was never seen: the
    # direction of (1/2, 1/2). Nothing is of classes 1 and 3.
    expected = torch.tensor(
        [[5 / 26**0.5, 1 / 26**0.5], [0.0, 1.0], [0.5**0.5, 0.5**0.5], [0.6, 0.8]], device=device
    )
    moved = update(centres, embeddings, classes, 0.75)
    torch.testing.assert_close(moved, expected)
    assert torch.equal(moved[[1, 3]], centres[[1, 3]])


@pytest.mark.parametrize(("count", "rows", "dims"), SHAPES)
def test_class_centres_matches_reference(count: int, rows: int, dims: int, device: torch.device):
    given = inputs(count, rows, dims, device)
    moved = ops.class_centres(*given)
    torch.testing.assert_close(moved, reference.class_centres(*given))
    seen = given[2][given[2] >= 0].unique()
    torch.testing.assert_close(moved[seen].norm(dim=1), torch.ones(len(seen), device=device))
    absent = torch.ones(count, dtype=torch.bool, device=device)
    absent[seen] = False
    assert torch.equal(moved[absent], given[0][absent])
    assert torch.equal(in_two_steps(*given, 0.9), moved)


@pytest.mark.parametrize(("count", "rows", "dims"), SHAPES[:5])
def test_class_sums_matches_reference(count: int, rows: int, dims: int, device: torch.device):
    centres, embeddings, classes = inputs(count, rows, dims, device)
    sums, counts = ops.class_sums(embeddings, classes, count)
    expected_sums, expected_counts = reference.class_sums(embeddings, classes, count)
    torch.testing.assert_close(sums, expected_sums)
    assert torch.equal(counts, expected_counts)
    torch.testing.assert_close(
        ops.class_centres_of_sums(centres, sums, counts),
        reference.class_centres_of_sums(centres, sums, counts),
    )


def test_class_sums_of_parts_are_those_of_the_whole(device: torch.device):
    centres, embeddings, classes = inputs(20, 64, 32, device)
    whole = ops.class_centres(centres, embeddings, classes, 0.5)
    parts = [ops.class_sums(embeddings[i::4], classes[i::4], 20) for i in range(4)]
    sums, counts = (torch.stack(x) for x in zip(*parts, strict=True))
    added = ops.class_centres_of_sums(centres, sums.sum(0), counts.sum(0), 0.5)
    averaged = ops.class_centres_of_sums(centres, sums.mean(0), counts.mean(0), 0.5)
    torch.testing.assert_close(added, whole)
    torch.testing.assert_close(averaged, whole)


def test_class_centres_low_precision(device: torch.device):
    centres, embeddings, classes = inputs(54, 200, 512, device, torch.bfloat16)
    # Only the input is rounded: float32 arithmetic on the rounded rows gives the same bits.
    assert torch.equal(
        ops.class_centres(centres, embeddings, classes),
        ops.class_centres(centres, embeddings.float(), classes),
    )


def test_class_centres_in_float64(device: torch.device):
    given = inputs(7, 30, 11, device, torch.float64)
    moved = ops.class_centres(*given)
    torch.testing.assert_close(moved, reference.class_centres(*given), rtol=1e-14, atol=1e-14)
    assert moved.dtype == torch.float64


def test_class_centres_zero_rows_and_cancelling_rows(device: torch.device):
    centres = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], device=device)
    embeddings = torch.tensor([[0.0, 0.0], [2.0, 0.0], [-3.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], device=device)
    moved = ops.class_centres(centres, embeddings, torch.tensor([0, 1, 1, 2, 2], device=device))
    assert torch.equal(moved, centres)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_class_centres_nan_stays_in_its_class(bad: float, device: torch.device):
    centres, embeddings, classes = inputs(6, 24, 5, device)
    embeddings[3, 2] = bad
    classes[3] = 4
    moved = ops.class_centres(centres, embeddings, classes)
    assert moved[4].isnan().any()
    assert moved[[0, 1, 2, 3, 5]].isfinite().all()


def test_class_centres_carry_no_gradient(device: torch.device):
    centres, embeddings, classes = inputs(6, 24, 5, device)
    assert not ops.class_centres(centres.requires_grad_(), embeddings.requires_grad_(), classes).requires_grad
    sums, counts = ops.class_sums(embeddings, classes, 6)
    assert not sums.requires_grad
    assert not ops.class_centres_of_sums(centres, sums.requires_grad_(), counts).requires_grad


def test_class_centres_registration(device: torch.device, opcheck):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        centres, embeddings, classes = inputs(6, 24, 5, device, dtype)
        opcheck(torch.ops.placket.class_centres.default, centres, embeddings, classes, 0.8)
        opcheck(torch.ops.placket.class_sums.default, embeddings, classes, 6)
        sums, counts = ops.class_sums(embeddings, classes, 6)
        opcheck(torch.ops.placket.class_centres_of_sums.default, centres, sums, counts, 0.8)
    opcheck(
        torch.ops.placket.class_centres.default,
        centres.requires_grad_(),
        embeddings.requires_grad_(),
        classes,
    )


@pytest.mark.parametrize("update", [ops.class_centres, in_two_steps])
def test_class_centres_compiles(update: Update, device: torch.device):
    compiled = torch.compile(update, fullgraph=True, dynamic=True)
    for rows in (4, 9):
        given = inputs(6, rows, 8, device)
        torch.testing.assert_close(compiled(*given, 0.9), update(*given, 0.9))


def test_class_centres_layouts(device: torch.device):
    centres, embeddings, classes = inputs(6, 24, 9, device)
    expected = ops.class_centres(centres, embeddings, classes)
    turned = ops.class_centres(
        centres.T.contiguous().T, embeddings.T.contiguous().T, classes.repeat_interleave(2)[::2]
    )
    assert torch.equal(turned, expected)
    padded = torch.cat([embeddings.new_zeros(1), embeddings.flatten()])[1:].view(24, 9)
    assert torch.equal(ops.class_centres(centres, padded, classes), expected)
    one = embeddings[:1].expand(24, 9)
    assert torch.equal(
        ops.class_centres(centres, one, classes), ops.class_centres(centres, one.clone(), classes)
    )


def test_class_centres_empty(device: torch.device):
    centres, embeddings, classes = inputs(6, 24, 9, device)
    assert torch.equal(ops.class_centres(centres, embeddings[:0], classes[:0]), centres)
    assert torch.equal(ops.class_centres(centres, embeddings, torch.full_like(classes, -1)), centres)
    assert ops.class_centres(centres[:0], embeddings[:0], classes[:0]).shape == (0, 9)
    assert ops.class_centres(centres[:, :0], embeddings[:, :0], classes).shape == (6, 0)
    sums, counts = ops.class_sums(embeddings[:0], classes[:0], 3)
    assert torch.equal(sums, torch.zeros(3, 9, device=device))
    assert torch.equal(counts, torch.zeros(3, device=device))


def test_class_centres_errors():
    centres, embeddings, classes = inputs(6, 24, 9, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"class_centres: centres must have shape \[M, E\], got \[6, 8\]"):
        ops.class_centres(centres[:, :8], embeddings, classes)
    with pytest.raises(
        ValueError, match=r"class_centres: classes must have shape \[V\] like embeddings, got \[23\]"
    ):
        ops.class_centres(centres, embeddings, classes[1:])
    with pytest.raises(
        TypeError, match="class_centres: centres must be Float with embeddings of BFloat16, got BFloat16"
    ):
        ops.class_centres(centres.bfloat16(), embeddings.bfloat16(), classes)
    with pytest.raises(TypeError, match="class_centres: classes must be Long, got Int"):
        ops.class_centres(centres, embeddings, classes.int())
    for momentum in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"class_centres: momentum must be in \[0, 1\), got"):
            ops.class_centres(centres, embeddings, classes, momentum)
    for wrong in (6, -2):
        classes[5] = wrong
        with pytest.raises(
            ValueError, match=f"class_centres: classes must be -1 or an id below 6, got {wrong} for row 5"
        ):
            ops.class_centres(centres, embeddings, classes)
    with pytest.raises(ValueError, match="class_sums: count must be at least 0, got -1"):
        ops.class_sums(embeddings[:0], classes[:0], -1)
    sums, counts = ops.class_sums(embeddings[:4], classes[:4], 6)
    with pytest.raises(
        ValueError, match=r"class_centres_of_sums: counts must have shape \[M\] like centres, got \[5\]"
    ):
        ops.class_centres_of_sums(centres, sums, counts[1:])
    with pytest.raises(TypeError, match="class_centres_of_sums: counts must be Float like sums, got Long"):
        ops.class_centres_of_sums(centres, sums, counts.long())


@pytest.mark.gpu
def test_class_centres_leaves_unknown_classes_out_on_cuda():
    centres, embeddings, classes = inputs(6, 24, 9, torch.device("cuda"))
    expected = ops.class_centres(centres, embeddings, torch.where(classes == 2, -1, classes))
    for unknown in (6, -7, 2**40):
        wrong = torch.where(classes == 2, unknown, classes)
        assert torch.equal(ops.class_centres(centres, embeddings, wrong), expected)


def test_class_centres_is_deterministic(device: torch.device):
    given = inputs(54, 4096, 129, device)
    expected = ops.class_centres(*given)
    assert torch.equal(ops.class_centres(*given), expected)
    threads = torch.get_num_threads()
    try:
        for count in (1, 3, 7):
            torch.set_num_threads(count)
            assert torch.equal(ops.class_centres(*given), expected)
            assert torch.equal(in_two_steps(*given, 0.9), expected)
    finally:
        torch.set_num_threads(threads)


def test_class_centres_under_autocast(device: torch.device):
    centres, embeddings, classes = inputs(6, 24, 9, device)
    expected = ops.class_centres(centres, embeddings, classes)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(ops.class_centres(centres, embeddings, classes), expected)
        assert torch.equal(in_two_steps(centres, embeddings, classes, 0.9), expected)


@pytest.mark.gpu
def test_class_centres_on_a_side_stream():
    given = inputs(54, 512, 128, torch.device("cuda"))
    expected = ops.class_centres(*given)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        moved = ops.class_centres(*given)
    stream.synchronize()
    assert torch.equal(moved, expected)
