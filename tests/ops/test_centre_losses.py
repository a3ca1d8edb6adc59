from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from placket import ops, reference

OWNERS = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 3])
SEEN = torch.tensor([1, 1, 0, 1, 1, 1, 1, 0, 0])  # attribute 2 has one class that was seen, attribute 3 none
ATTRIBUTES = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3])
CLASSES = torch.tensor([0, 1, 2, 3, -1, 4, 5, -1, 6, -1, 8, -1])
Loss = Callable[..., Tensor]
LABELLED = ["prototype_cross_entropy", "centre_triplet"]
LOSSES = [*LABELLED, "pseudo_label_cross_entropy", "assignment_consistency"]


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Embeddings of any length, near enough to the centres for some pseudo labels, and the centres."""
    centres = F.normalize(torch.randn(9, 5, dtype=dtype), dim=1) * SEEN[:, None]
    z = (torch.randn(12, 5, dtype=dtype) + 2 * centres[torch.arange(12) % 9]) * torch.rand(12, 1, dtype=dtype)
    return z, centres


def arguments(name: str, z: Tensor, centres: Tensor) -> list[Tensor]:
    if name == "assignment_consistency":
        return [z, z.flip(1), centres, OWNERS, ATTRIBUTES]
    return [z, centres, OWNERS, ATTRIBUTES, CLASSES]


@pytest.mark.parametrize("module", [ops, reference])
def test_centre_losses_by_hand(module) -> None:
    centres = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    owners = torch.tensor([0, 0, 0])
    z = torch.tensor([[3.0, 0.0], [3.0, 4.0], [0.0, 5.0]], dtype=torch.float64)  # cosines 1 0, .6 .8, 0 1
    attributes, labels = torch.zeros(3, dtype=torch.int64), torch.tensor([0, 0, -1])
    given = z, centres, owners, attributes, labels

    def near(cosine: float, other: float) -> float:
        return 1 / (1 + math.exp((other - cosine) / 0.5))

    def check(loss: Tensor, value: float) -> None:
        assert loss.item() == pytest.approx(value, rel=1e-12)

    check(module.prototype_cross_entropy(*given, 0.5), -(math.log(near(1, 0)) + math.log(near(0.6, 0.8))) / 2)
    check(module.centre_triplet(*given, 0.3), (0 + 0.3 - 0.6 + 0.8) / 2)
    check(module.pseudo_label_cross_entropy(*given, 0.5, 0.8), -math.log(near(1, 0)))
    assert module.pseudo_label_cross_entropy(*given, 0.5, 0.9).item() == 0  # its probability is 0.88
    p, q = near(1, 0), near(0.6, 0.8)
    swapped = p * math.log(q) + (1 - p) * math.log(1 - q) + q * math.log(p) + (1 - q) * math.log(1 - p)
    check(module.assignment_consistency(z[:1], z[1:2], centres, owners, attributes[:1], 0.5), -swapped / 2)


@pytest.mark.parametrize("name", LOSSES)
def test_centre_losses_match_the_reference(name: str, device: torch.device) -> None:
    z, centres = inputs()
    z.requires_grad_()
    given = [x.to(device) for x in arguments(name, z, centres)]
    ours, theirs = getattr(ops, name)(*given), getattr(reference, name)(*arguments(name, z, centres))
    assert theirs > 0
    torch.testing.assert_close(ours.cpu(), theirs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, z)[0] for loss in (ours, theirs)))


@pytest.mark.parametrize("name", LOSSES[:3])
def test_centre_losses_gradients(name: str) -> None:
    z, centres = inputs()
    # A margin of 3 keeps every hinge away from its corner.
    last = {"centre_triplet": (3.0,), "pseudo_label_cross_entropy": (0.3, 0.4)}.get(name, (0.3,))
    loss = getattr(ops, name)
    assert torch.autograd.gradcheck(
        lambda x: loss(*arguments(name, x, centres), *last), z.requires_grad_(), atol=1e-6
    )


def test_assignment_consistency_sends_no_gradient_through_its_targets() -> None:
    z, centres = inputs()
    first, second = z.requires_grad_(), z.detach().flip(1)
    given = centres, OWNERS, ATTRIBUTES, 0.3
    (gradient,) = torch.autograd.grad(ops.assignment_consistency(first, second, *given), first)

    def against_fixed(x: Tensor) -> Tensor:
        """Half of the loss: first's probabilities against second's, which do not depend on x."""
        terms = []
        for row, target, attribute in zip(x, second, ATTRIBUTES.tolist(), strict=True):
            known = ((attribute == OWNERS) & (SEEN > 0)).nonzero().squeeze(1)
            if len(known) >= 2:
                q = (F.normalize(target, dim=0) @ centres[known].T / 0.3).softmax(0)
                terms.append(-q @ (F.normalize(row, dim=0) @ centres[known].T / 0.3).log_softmax(0) / 2)
        return torch.stack(terms).mean()

    torch.testing.assert_close(gradient, torch.autograd.grad(against_fixed(first), first)[0])
    assert torch.autograd.gradcheck(against_fixed, first)


@pytest.mark.parametrize(
    ("name", "case"),
    [(name, case) for name in LOSSES for case in ("no rows", "nothing seen", "one class seen")]
    + [(name, "no labels") for name in LABELLED]
    + [("pseudo_label_cross_entropy", "all labelled")],
)
def test_centre_losses_without_a_row_that_counts_are_zero(name: str, case: str) -> None:
    z, centres = inputs(torch.float32)
    if case in ("nothing seen", "one class seen"):
        centres[case == "one class seen" :] = 0
    given = arguments(name, z.requires_grad_(), centres)
    if case == "no rows":
        given = [x[:0] if len(x) == len(z) else x for x in given]
    elif case == "no labels":
        given[4] = torch.full_like(CLASSES, -1)
    elif case == "all labelled":
        given[4] = CLASSES.clamp_min(0)
    loss = getattr(ops, name)(*given)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(z.grad, torch.zeros_like(z))


@pytest.mark.parametrize("name", LOSSES)
def test_centre_losses_registration(name: str, opcheck) -> None:
    z, centres = inputs(torch.float32)
    op = getattr(torch.ops.placket, name).default
    opcheck(op, *arguments(name, z, centres))
    opcheck(op, *arguments(name, z.requires_grad_(), centres))


@pytest.mark.parametrize("name", LOSSES)
def test_centre_losses_compile(name: str) -> None:
    z, centres = inputs(torch.float32)
    loss = getattr(ops, name)
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (12, 7):
        given = [x[:rows] if len(x) == 12 else x for x in arguments(name, z, centres)]
        torch.testing.assert_close(compiled(*given), loss(*given))


@pytest.mark.parametrize("name", LOSSES)
def test_centre_losses_run_in_float32(name: str) -> None:
    z, centres = inputs(torch.float32)
    loss, low = getattr(ops, name), z.bfloat16()
    expected = loss(*arguments(name, low.float(), centres))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(*arguments(name, low, centres)), expected)
    assert torch.equal(loss(*arguments(name, low, centres)), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_centre_losses_errors(name: str) -> None:
    z, centres = inputs()
    loss = getattr(ops, name)

    def refused(message: str, given: list[Tensor], *rest: float) -> None:
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            loss(*given, *rest)

    refused(r"embeddings must have shape \[V, 5\], got \[12, 4\]", arguments(name, z[:, :4], centres))
    refused(r"centres must have shape \[M, E\], got \[9\]", arguments(name, z, centres[:, 0]))
    refused(r"owners must have shape \[M\] like centres, got \[9\]", arguments(name, z, centres[:8]))
    refused(r"attributes must have shape \[V\] like embeddings, got \[12\]", arguments(name, z[:11], centres))
    given = arguments(name, z, centres)
    if name == "assignment_consistency":
        refused(r"second must have the shape of first, \[12, 5\], got \[11, 5\]", [z, z[:11], *given[2:]])
    else:
        refused(r"classes must have shape \[V\] like embeddings, got \[11\]", [*given[:4], CLASSES[:11]])
    if name != "centre_triplet":
        refused("temperature must be positive, got 0", given, 0.0)
    if name == "pseudo_label_cross_entropy":
        refused(r"confidence must be in \[0, 1\), got 1", given, 0.1, 1.0)
