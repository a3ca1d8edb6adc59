from __future__ import annotations

import pytest
import torch

from placket import ops, reference
from placket.losses import BatchHardTripletLoss, TriHardLoss


@pytest.mark.parametrize("margin", [None, 0.3])
@pytest.mark.parametrize("across", [False, True])
def test_matches_reference(across: bool, margin: float | None, device: torch.device) -> None:
    for rows in (1, 2, 9, 40):
        x = torch.randn(rows, 6, device=device, dtype=torch.double, requires_grad=True)
        labels = torch.randint(-1, 4, (rows,), device=device)
        domains = torch.randint(0, 2, (rows,), device=device) if across else None
        ours = ops.tri_hard(x, labels, domains, margin)
        expected = reference.tri_hard(x, labels, domains, margin)
        for own, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(own, other)
        gradients = [torch.autograd.grad(2 * loss + distance, x)[0] for loss, distance in (ours, expected)]
        torch.testing.assert_close(*gradients)


def test_by_hand(device: torch.device) -> None:
    """Rows at 0, 60 and 90, 180 degrees: distances are chords."""
    angles = torch.tensor([0.0, 60.0, 90.0, 180.0], device=device).deg2rad()
    rows = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor(
        [[1.0], [2.0], [3.0], [4.0]], device=device
    )
    labels = torch.tensor([0, 0, 1, 1], device=device)
    root = 2**0.5
    near = (1 - root) + (1 - 2 * torch.tensor(15.0).deg2rad().sin())  # rows 0 and 1
    far = (root - 2 * torch.tensor(15.0).deg2rad().sin()) + (root - 3**0.5)  # rows 2 and 3
    loss, distance = ops.tri_hard(rows, labels, None, 1.0)
    assert loss.item() == pytest.approx((near + far).item() / 4 + 1.0, abs=1e-6)
    assert distance.item() == pytest.approx((1 + root) / 2, abs=1e-6)
    # Across domains rows 0 and 3 meet 1 and 2 alone.
    domains = torch.tensor([0, 1, 1, 0], device=device)
    assert ops.tri_hard(rows, labels, domains)[1].item() == pytest.approx((1 + root) / 2, abs=1e-6)
    alone = torch.tensor([0, 0, 1, 1], device=device)
    loss, distance = ops.tri_hard(rows.requires_grad_(), labels, alone)
    assert (loss.item(), distance.item()) == (0, 0)
    (loss + distance).backward()
    assert not rows.grad.any()


def test_rows_that_are_equal_have_a_gradient(device: torch.device) -> None:
    rows = torch.ones(4, 3, device=device, requires_grad=True)
    loss, distance = ops.tri_hard(rows, torch.tensor([0, 0, 1, 1], device=device), None, 0.3)
    assert loss.item() == pytest.approx(0.3)
    (loss + distance).backward()
    assert rows.grad.isfinite().all()


def test_compiles(device: torch.device) -> None:
    rows, labels = torch.randn(8, 4, device=device), torch.arange(8, device=device) // 2
    compiled = torch.compile(ops.tri_hard, fullgraph=True, backend="aot_eager")
    for ours, expected in zip(compiled(rows, labels), ops.tri_hard(rows, labels), strict=True):
        torch.testing.assert_close(ours, expected)


def test_as_a_module(device: torch.device) -> None:
    rows = torch.randn(12, 5, device=device)
    labels, domains = torch.arange(12, device=device) // 4, torch.arange(12, device=device) % 2
    triplet, distance = ops.tri_hard(rows, labels, domains, 0.3)
    torch.testing.assert_close(TriHardLoss()(rows, labels, domains), triplet + 0.1 * distance)
    torch.testing.assert_close(
        TriHardLoss(absolute=0.0)(rows, relation=labels[:, None] == labels),
        ops.tri_hard(rows, labels, None, 0.3)[0],
    )
    # The pairs are the cosine's, whatever the distance.
    pairs = ops.batch_hard(rows, labels)
    assert (pairs.positive >= 0).all()
    assert BatchHardTripletLoss()(rows, labels) > 0
    with pytest.raises(ValueError, match="TriHardLoss: either labels or relation must be given, got neither"):
        TriHardLoss()(rows)
