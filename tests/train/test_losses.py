from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from placket import _C


def supervised_contrastive(z: Tensor, groups: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The formula, pair by pair."""
    z = F.normalize(z, dim=1)
    terms = []
    for i in range(len(z)):
        others = [j for j in range(len(z)) if j != i and groups[j] == groups[i] and labels[j] >= 0]
        positives = [j for j in others if labels[j] == labels[i]]
        if labels[i] < 0 or not positives:
            continue
        denominator = torch.stack([(z[i] @ z[j] / temperature).exp() for j in others]).sum()
        shares = [((z[i] @ z[p] / temperature).exp() / denominator).log() for p in positives]
        terms.append(-torch.stack(shares).mean())
    return torch.stack(terms).mean() if terms else z.sum() * 0


def check(ours: Tensor, theirs: Tensor, parameters: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_supervised_contrastive() -> None:
    z = torch.randn(14, 6, dtype=torch.float64, requires_grad=True)
    groups = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 3])
    labels = torch.tensor([0, 0, 1, 1, 2, 0, 0, 0, -1, 0, 1, -1, -1, 0])
    ours = _C.supervised_contrastive(z, groups, labels, 0.3)
    check(ours, supervised_contrastive(z, groups, labels, 0.3), [z])


def test_supervised_contrastive_without_positives_is_zero() -> None:
    z = torch.randn(3, 4, requires_grad=True)
    loss = _C.supervised_contrastive(z, torch.tensor([0, 0, 1]), torch.tensor([0, 1, -1]), 0.1)
    (gradient,) = torch.autograd.grad(loss, [z])
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(z))


def test_centre_cross_entropy() -> None:
    z = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    centres = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    owners = torch.tensor([0, 0, 0, 1, 1, 2])
    attributes = torch.tensor([0, 0, 1, 1, 2, 0, 1])
    classes = torch.tensor([0, 2, 3, 4, 5, -1, -1])
    ours = _C.centre_cross_entropy(z, centres, owners, attributes, classes, 8.0)
    terms = []
    for i in range(5):
        own = (owners == attributes[i]).nonzero().squeeze(1)
        logits = 8.0 * F.cosine_similarity(z[i], centres[own])
        terms.append(F.cross_entropy(logits, (own == classes[i]).nonzero().squeeze()))
    check(ours, torch.stack(terms).mean(), [z, centres])
