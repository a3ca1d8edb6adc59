"""M3-Net's class losses: numbers made by hand, the reference's loops, gradients by finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from placket import ops, reference

OWNERS = torch.tensor([0, 0, 0, 1, 1])  # classes 0-2 of attribute 0, 3 and 4 of attribute 1


def double(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.double, requires_grad=True)


# Several labels of one attribute, one attribute without a label, an image without any.
CARRIED = torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]]).bool()
LABELLED = torch.tensor([[1, 1], [0, 1], [0, 0], [1, 0]]).bool()
CLASSES = torch.tensor([[1, 4], [-1, 3], [-1, -1], [0, -1]])
ANCHORS = torch.tensor([0, 3, 1])
POSITIVES = torch.tensor([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]).bool()
NEGATIVES = torch.tensor([[0, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]]).bool()
LOSSES = ["class_recognition", "class_cross_entropy", "class_instance_triplet", "class_centre_triplet"]


def arguments(name: str) -> list[Tensor]:
    """What a loss takes, the differentiable first; float64."""
    if name == "class_recognition":
        return [double(4, 5), CARRIED, LABELLED, OWNERS]
    if name == "class_cross_entropy":
        return [double(4, 5), CLASSES, OWNERS]
    if name == "class_instance_triplet":
        return [double(4, 3, 6), ANCHORS, POSITIVES, NEGATIVES]
    return [double(4, 3, 6), ANCHORS, NEGATIVES, torch.randn(3, 6, dtype=torch.double)]


@pytest.mark.parametrize(
    ("name", "last"),
    [*((name, ()) for name in LOSSES), (LOSSES[0], (3.0,)), *((n, (0.9,)) for n in LOSSES[2:])],
)
def test_class_losses_match_the_reference(name: str, last: tuple[float, ...], device: torch.device) -> None:
    given = arguments(name)
    ours = getattr(ops, name)(*(tensor.to(device) for tensor in given), *last)
    theirs = getattr(reference, name)(*given, *last)
    assert theirs > 0
    torch.testing.assert_close(ours.cpu(), theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, given[0])[0] for loss in (ours, theirs)))


@pytest.mark.parametrize("name", LOSSES)
def test_class_losses_gradients(name: str) -> None:
    first, *rest = arguments(name)
    # A margin of 3 keeps every hinge away from its corner.
    last = (3.0,) if name.endswith("triplet") else ()
    assert torch.autograd.gradcheck(lambda x: getattr(ops, name)(x, *rest, *last), first)


@pytest.mark.parametrize("module", [ops, reference])
def test_recognition_by_hand(module: ModuleType) -> None:
    logits = torch.tensor([[0.0, math.log(3), -math.log(3), 5.0, 5.0]])
    carried = torch.tensor([[False, True, False, False, False]])
    labelled = torch.tensor([[True, False]])
    # x = 1/2, 3/4, 1/4: -(log 1/2 + 2 log 3/4 + log 3/4) / 3.
    expected = -(math.log(0.5) + 2 * math.log(0.75) + math.log(0.75)) / 3
    loss = module.class_recognition(logits, carried, labelled, OWNERS, positive_weight=2.0)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("module", [ops, reference])
def test_cross_entropy_by_hand(module: ModuleType) -> None:
    # 1/4 of attribute 0 and 1/2 of attribute 1; then 2/3 of attribute 1 alone; then no label.
    logits = torch.tensor([[0.0, math.log(2), 0.0, 7.0, 7.0], [9.0, 0.0, 0.0, 0.0, math.log(2)], [0.0] * 5])
    classes = torch.tensor([[0, 3], [-1, 4], [-1, -1]])
    expected = -(math.log(1 / 4) + math.log(1 / 2) + math.log(2 / 3)) / 2
    loss = module.class_cross_entropy(logits, classes, OWNERS)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_recognition_of_certain_logits_is_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, 0.0, 0.0]], requires_grad=True)
    carried = torch.tensor([[False, True, False, False, False]])
    loss = ops.class_recognition(logits, carried, torch.tensor([[True, False]]), OWNERS, 1.0)
    assert loss.item() == pytest.approx((2e4 + math.log(2)) / 3)
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


@pytest.mark.parametrize("module", [ops, reference])
def test_triplets_by_hand(module: ModuleType) -> None:
    # One space: the anchor on the first axis, a positive at 60 degrees, a negative at 90.
    rows = torch.tensor([[2.0, 0.0], [0.5, 0.75**0.5], [0.0, 3.0]])[:, None]
    positives = torch.tensor([[True], [True], [False]])
    anchors, negatives = torch.tensor([0]), ~positives
    for margin, loss in [(0.7, 0.2), (0.4, 0.0)]:
        ours = module.class_instance_triplet(rows, anchors, positives, negatives, margin)
        assert ours.item() == pytest.approx(loss, abs=1e-6)
        ours = module.class_centre_triplet(rows, anchors, negatives, rows[1], margin)
        assert ours.item() == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("module", [ops, reference])
def test_nothing_to_learn_is_zero(module: ModuleType) -> None:
    logits, z = torch.randn(2, 5, requires_grad=True), torch.randn(2, 2, 3, requires_grad=True)
    none, anchors = torch.zeros(2, 2, dtype=torch.bool), torch.tensor([0, 1])
    losses = {
        logits: [
            module.class_recognition(logits, torch.zeros(2, 5, dtype=torch.bool), none, OWNERS, 2.0),
            module.class_cross_entropy(logits, torch.full((2, 2), -1), OWNERS),
        ],
        z: [
            module.class_instance_triplet(z, anchors, ~none, none, 0.2),  # a value that no other one meets
            module.class_instance_triplet(z, anchors, torch.eye(2).bool(), ~none, 0.2),  # no second image
            module.class_centre_triplet(z, anchors, none, torch.zeros(2, 3), 0.2),
        ],
    }
    for tensor, values in losses.items():
        for loss in values:
            assert loss.item() == 0
            assert torch.equal(torch.autograd.grad(loss, tensor)[0], torch.zeros_like(tensor))


def test_a_centre_of_zero_has_cosine_zero() -> None:
    z = torch.randn(2, 1, 3, requires_grad=True)
    negatives = torch.tensor([[False], [True]])
    loss = ops.class_centre_triplet(z, torch.tensor([0]), negatives, torch.zeros(1, 3), 2.0)
    assert loss.item() == pytest.approx(2 + F.cosine_similarity(z[0, 0], z[1, 0], dim=0).item(), abs=1e-6)
    assert torch.autograd.grad(loss, z)[0].isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("grad", [False, True])
def test_class_losses_registration(name: str, grad: bool, opcheck: Callable[..., None]) -> None:
    first, *rest = arguments(name)
    given = (
        first.detach().float().requires_grad_(grad),
        *(tensor.float() if tensor.is_floating_point() else tensor for tensor in rest),
    )
    opcheck(getattr(torch.ops.placket, name).default, *given)
