"""The composite operators: label_relation, supervised_contrastive and centre_cross_entropy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from placket import ops, reference
from placket.losses import label_sets

LABELS = {
    "labels": torch.tensor([0, 0, 1, 1, 2, 0, 0, 0, -1, 0, 1, -1, -1, 0]),
    "sets": label_sets(torch.rand(14, 70, generator=torch.Generator().manual_seed(1)) < 0.1),
    "relation": torch.rand(14, 14, generator=torch.Generator().manual_seed(2)) < 0.2,
}
GROUPS = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 3])
OWNERS = torch.tensor([0, 0, 0, 1, 1, 2])
ATTRIBUTES = torch.tensor([0, 0, 1, 1, 2, 0, 1])
CLASSES = torch.tensor([0, 2, 3, 4, 5, -1, -1])
SETS = torch.tensor(
    [[1, 1, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0]] + [[0] * 6] * 3
).bool()


def check(ours: Tensor, theirs: Tensor, parameters: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("kind", LABELS)
def test_label_relation_matches_reference(kind: str, grouped: bool, device: torch.device):
    labels, groups = LABELS[kind].to(device), GROUPS.to(device) if grouped else None
    expected = reference.label_relation(labels, groups)
    for ours, theirs in zip(ops.label_relation(labels, groups), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert expected[0].any()
    assert expected[1].any()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("kind", LABELS)
def test_supervised_contrastive_matches_reference(
    kind: str, grouped: bool, inside: bool, device: torch.device
):
    z = torch.randn(14, 6, dtype=torch.float64, device=device, requires_grad=True)
    labels, groups = LABELS[kind].to(device), GROUPS.to(device) if grouped else None
    ours = ops.supervised_contrastive(z, labels, groups, 0.3, inside)
    check(ours, reference.supervised_contrastive(z, labels, groups, 0.3, inside), [z])


def test_supervised_contrastive_by_hand():
    z = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    labels = torch.tensor([0, 0, 0, 1])
    e = torch.tensor(2.0).exp()  # of cosine 1 at temperature 0.5; cosine 0 gives 1, -1 its inverse
    share = torch.stack([e, torch.tensor(1.0)]) / (e + 2)
    third = torch.tensor(1.0) / (2 + 1 / e)
    for inside, first in ((False, -share.log().mean()), (True, -share.mean().log())):
        expected = (2 * first - third.log()) / 3
        torch.testing.assert_close(ops.supervised_contrastive(z, labels, None, 0.5, inside), expected)
        torch.testing.assert_close(reference.supervised_contrastive(z, labels, None, 0.5, inside), expected)


@pytest.mark.parametrize("classes", [CLASSES, SETS], ids=["classes", "sets"])
def test_centre_cross_entropy_matches_reference(classes: Tensor, device: torch.device):
    z = torch.randn(7, 5, dtype=torch.float64, device=device, requires_grad=True)
    centres = torch.randn(6, 5, dtype=torch.float64, device=device, requires_grad=True)
    args = [x.to(device) for x in (OWNERS, ATTRIBUTES, classes)]
    ours = ops.centre_cross_entropy(z, centres, *args, 8.0)
    check(ours, reference.centre_cross_entropy(z, centres, *args, 8.0), [z, centres])


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("inside", [False, True])
def test_nothing_to_compare_is_zero(rows: int, inside: bool, device: torch.device):
    z = torch.randn(rows, 4, device=device, requires_grad=True)
    centres = torch.randn(2, 4, device=device, requires_grad=True)
    none = torch.full((rows,), -1, device=device)
    apart = torch.arange(rows, device=device)
    groups = none.new_zeros(2)
    for loss in (
        ops.supervised_contrastive(z, none, inside=inside),
        ops.supervised_contrastive(z, apart, inside=inside),
        ops.centre_cross_entropy(z, centres, groups, torch.zeros_like(none), none),
        ops.centre_cross_entropy(
            z, centres, groups, torch.zeros_like(none), torch.zeros(rows, 2, device=device).bool()
        ),
    ):
        z.grad = None
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(z.grad, torch.zeros_like(z))


def test_registration(device: torch.device, opcheck: Callable[..., None]):
    z = torch.randn(14, 6, device=device, requires_grad=True)
    centres = torch.randn(6, 6, device=device, requires_grad=True)
    for labels in LABELS.values():
        opcheck(torch.ops.placket.label_relation.default, labels.to(device), GROUPS.to(device))
        opcheck(
            torch.ops.placket.supervised_contrastive.default,
            z,
            labels.to(device),
            GROUPS.to(device),
            0.1,
            True,
        )
    for classes in (CLASSES, SETS):
        args = [x.to(device) for x in (OWNERS, ATTRIBUTES, classes)]
        opcheck(torch.ops.placket.centre_cross_entropy.default, z[:7].detach(), centres, *args, 16.0)


def test_compile(device: torch.device):
    compiled = torch.compile(ops.supervised_contrastive, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (5, 9):
        z, labels = torch.randn(n, 6, device=device), torch.arange(n, device=device) // 2
        torch.testing.assert_close(compiled(z, labels), ops.supervised_contrastive(z, labels))


def test_autocast_runs_in_float32(device: torch.device):
    z, labels = torch.randn(12, 32, device=device), torch.arange(12, device=device) // 3
    centres = torch.randn(4, 32, device=device)
    zero = torch.zeros_like(labels)
    with torch.autocast(device.type, torch.bfloat16):
        mixed = [
            ops.supervised_contrastive(z, labels),
            ops.centre_cross_entropy(z, centres, zero[:4], zero, labels),
        ]
    plain = [
        ops.supervised_contrastive(z, labels),
        ops.centre_cross_entropy(z, centres, zero[:4], zero, labels),
    ]
    for a, b in zip(mixed, plain, strict=True):
        assert torch.equal(a, b)


def test_errors():
    z, labels = torch.randn(4, 3), torch.zeros(4).long()
    with pytest.raises(ValueError, match="supervised_contrastive: temperature must be above 0, got 0"):
        ops.supervised_contrastive(z, labels, temperature=0.0)
    with pytest.raises(
        ValueError, match=r"supervised_contrastive: embeddings must have shape \[B, D\], got \[3\]"
    ):
        ops.supervised_contrastive(z[0], labels)
    with pytest.raises(ValueError, match=r"label_relation: groups must have shape \[B\] .* got \[3\]"):
        ops.label_relation(labels, labels[:3])
    with pytest.raises(ValueError, match=r"centres must have shape \[C, D\] .* got \[2, 4\]"):
        ops.centre_cross_entropy(z, torch.randn(2, 4), labels[:2], labels, labels)
    with pytest.raises(ValueError, match=r"classes must have shape \[B, C\], got \[4, 3\]"):
        ops.centre_cross_entropy(z, torch.randn(2, 3), labels[:2], labels, torch.ones(4, 3).bool())
