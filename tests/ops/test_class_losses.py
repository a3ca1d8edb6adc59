"""M3-Net's class losses: numbers made by hand, sums written out, gradients by finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from placket import ops

OWNERS = torch.tensor([0, 0, 0, 1, 1])  # classes 0-2 of attribute 0, 3 and 4 of attribute 1


def double(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.double, requires_grad=True)


def test_recognition_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3), -math.log(3), 5.0, 5.0]])
    carried = torch.tensor([[False, True, False, False, False]])
    labelled = torch.tensor([[True, False]])
    # x = 1/2, 3/4, 1/4: -(log 1/2 + 2 log 3/4 + log 3/4) / 3.
    expected = -(math.log(0.5) + 2 * math.log(0.75) + math.log(0.75)) / 3
    ours = ops.class_recognition(logits, carried, labelled, OWNERS, positive_weight=2.0)
    assert ours.item() == pytest.approx(expected, rel=1e-6)


def recognition(logits: Tensor, carried: Tensor, labelled: Tensor, weight: float) -> Tensor:
    """The formula, term by term."""
    images = []
    for n in range(len(logits)):
        total = logits.new_zeros(())
        for a in range(2):
            own = [m for m in range(5) if OWNERS[m] == a]
            for m in own if labelled[n, a] else []:
                x = logits[n, m].sigmoid()
                total = total - (weight * x.log() if carried[n, m] else (1 - x).log()) / len(own)
        if labelled[n].any():
            images.append(total)
    return torch.stack(images).mean()


def test_recognition() -> None:
    logits = double(4, 5)
    # Several labels of one attribute, one attribute without a label, an image without any.
    carried = torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]]).bool()
    labelled = torch.tensor([[1, 1], [0, 1], [0, 0], [1, 0]]).bool()
    ours = ops.class_recognition(logits, carried, labelled, OWNERS, 3.0)
    expected = recognition(logits, carried, labelled, 3.0)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, logits), torch.autograd.grad(expected, logits))
    assert torch.autograd.gradcheck(
        lambda x: ops.class_recognition(x, carried, labelled, OWNERS, 3.0), logits
    )


def test_recognition_of_certain_logits_is_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0, 0.0, 0.0]], requires_grad=True)
    carried = torch.tensor([[False, True, False, False, False]])
    loss = ops.class_recognition(logits, carried, torch.tensor([[True, False]]), OWNERS, 1.0)
    assert loss.item() == pytest.approx((2e4 + math.log(2)) / 3)
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_cross_entropy() -> None:
    logits = double(4, 5)
    classes = torch.tensor([[1, 4], [-1, 3], [-1, -1], [0, -1]])
    ours = ops.class_cross_entropy(logits, classes, OWNERS)

    def of(n: int, a: int, m: int) -> Tensor:
        own = (a == OWNERS).nonzero().squeeze(1)
        return F.cross_entropy(logits[n, own][None], torch.tensor([m - int(own[0])]))

    expected = (of(0, 0, 1) + of(0, 1, 4) + of(1, 1, 3) + of(3, 0, 0)) / 3
    torch.testing.assert_close(ours, expected)
    assert torch.autograd.gradcheck(lambda x: ops.class_cross_entropy(x, classes, OWNERS), logits)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a, b, dim=0)


ANCHORS = torch.tensor([0, 3, 1])
POSITIVES = torch.tensor([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]).bool()
NEGATIVES = torch.tensor([[0, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0]]).bool()


def test_instance_triplet() -> None:
    z = double(4, 3, 6)
    terms = []
    for v, anchor in enumerate(ANCHORS.tolist()):
        for j in range(4):
            for k in range(4):
                if POSITIVES[j, v] and NEGATIVES[k, v] and j != anchor:
                    hinge = 0.9 - cosine(z[anchor, v], z[j, v]) + cosine(z[anchor, v], z[k, v])
                    terms.append(hinge.relu())
    assert len(terms) == 4
    expected = torch.stack(terms).mean()
    ours = ops.class_instance_triplet(z, ANCHORS, POSITIVES, NEGATIVES, 0.9)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(expected, z))


def test_instance_triplet_by_hand() -> None:
    # One space: the anchor on the first axis, a positive at 60 degrees, a negative at 90.
    rows = torch.tensor([[2.0, 0.0], [0.5, 0.75**0.5], [0.0, 3.0]])[:, None]
    positives = torch.tensor([[True], [True], [False]])
    arguments = torch.tensor([0]), positives, ~positives
    assert ops.class_instance_triplet(rows, *arguments, 0.7).item() == pytest.approx(0.2, abs=1e-6)
    assert ops.class_instance_triplet(rows, *arguments, 0.4).item() == 0


def test_centre_triplet() -> None:
    z, centres = double(4, 3, 6), torch.randn(3, 6, dtype=torch.double)
    terms = []
    for v, anchor in enumerate(ANCHORS.tolist()):
        for k in range(4):
            if NEGATIVES[k, v]:
                hinge = 0.9 - cosine(z[anchor, v], centres[v]) + cosine(z[anchor, v], z[k, v])
                terms.append(hinge.relu())
    expected = torch.stack(terms).mean()
    ours = ops.class_centre_triplet(z, ANCHORS, NEGATIVES, centres, 0.9)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(ours, z), torch.autograd.grad(expected, z))


def test_nothing_to_learn_is_zero() -> None:
    logits, z = torch.randn(2, 5, requires_grad=True), torch.randn(2, 2, 3, requires_grad=True)
    none, anchors = torch.zeros(2, 2, dtype=torch.bool), torch.tensor([0, 1])
    losses = {
        logits: [
            ops.class_recognition(logits, torch.zeros(2, 5, dtype=torch.bool), none, OWNERS, 2.0),
            ops.class_cross_entropy(logits, torch.full((2, 2), -1), OWNERS),
        ],
        z: [
            ops.class_instance_triplet(z, anchors, ~none, none, 0.2),  # a value that no other one meets
            ops.class_instance_triplet(z, anchors, torch.eye(2).bool(), ~none, 0.2),  # no second image
            ops.class_centre_triplet(z, anchors, none, torch.zeros(2, 3), 0.2),
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
    assert loss.item() == pytest.approx(2 + cosine(z[0, 0], z[1, 0]).item(), abs=1e-6)
    assert torch.autograd.grad(loss, z)[0].isfinite().all()


def test_class_losses_registration(opcheck: Callable[..., None]) -> None:
    logits, z, centres = torch.randn(2, 5), torch.randn(4, 3, 6), torch.randn(3, 6)
    carried = torch.tensor([[0, 1, 0, 0, 1], [0, 0, 0, 1, 0]]).bool()
    labelled, classes = torch.tensor([[1, 1], [0, 1]]).bool(), torch.tensor([[1, 4], [-1, 3]])
    registered = torch.ops.placket
    for grad in (False, True):
        logits, z = logits.detach().requires_grad_(grad), z.detach().requires_grad_(grad)
        opcheck(registered.class_recognition.default, logits, carried, labelled, OWNERS)
        opcheck(registered.class_cross_entropy.default, logits, classes, OWNERS)
        opcheck(registered.class_instance_triplet.default, z, ANCHORS, POSITIVES, NEGATIVES)
        opcheck(registered.class_centre_triplet.default, z, ANCHORS, NEGATIVES, centres)
