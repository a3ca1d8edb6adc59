"""E-InfoNCE of RPF, forward and backward, from labels to gradients.

Peers: the published way, which builds two masks from a Python product of labels and computes a product it
does not use (at 1,024 triplets the masks are 19 million tensors and minutes: one pair, and 21 with the masks
given); and the best plain PyTorch, two products and comparisons of labels, eager and compiled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from paired import Record, compare
from torch import Tensor

from placket import ops

E, ATTRIBUTES, VALUES = 1024, 8, 7  # of FashionAI
TEMPERATURE, ALPHA = 0.07, 12.0
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def python_masks(labels: Tensor, attributes: Tensor) -> tuple[Tensor, Tensor]:
    pairs = list(zip(attributes.tolist(), labels.tolist(), strict=True))
    n = len(pairs)
    same_value = torch.stack([torch.tensor(x == y) for x, y in itertools.product(pairs, pairs)])
    same_attribute = torch.stack([torch.tensor(x[0] == y[0]) for x, y in itertools.product(pairs, pairs)])
    return tuple(mask.view(n, n).float().to(DEVICE) for mask in (same_value, same_attribute))


def compared_masks(labels: Tensor, attributes: Tensor) -> tuple[Tensor, Tensor]:
    same_attribute = attributes[:, None] == attributes
    return (same_attribute & (labels[:, None] == labels)).float(), same_attribute.float()


def published(masks: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Loss:
    def loss(region: Tensor, patch: Tensor, background: Tensor, labels: Tensor, attributes: Tensor) -> Tensor:
        positive, same_attribute = masks(labels, attributes)
        r, p, b = (F.normalize(x, dim=1) for x in (region, patch, background))
        r @ r.T  # computed for other variants of the loss
        patches, outside = r @ p.T, r @ b.T
        above = ((patches - 10000 * (1 - positive)) / TEMPERATURE).exp().sum(1)
        others = ((patches - 10000 * positive) / TEMPERATURE).exp().sum(1)
        backgrounds = ((outside - 10000 * (1 - same_attribute)) / TEMPERATURE).exp().sum(1)
        return -(above / (above + others + ALPHA * backgrounds)).log().mean()

    return loss


def plain(region: Tensor, patch: Tensor, background: Tensor, labels: Tensor, attributes: Tensor) -> Tensor:
    same_attribute = attributes[:, None] == attributes
    positive = same_attribute & (labels[:, None] == labels)
    r, p, b = (F.normalize(x, dim=1) for x in (region, patch, background))
    patches = (r @ p.T / TEMPERATURE).exp()
    outside = (r @ b.T / TEMPERATURE).exp()
    denominator = patches.sum(1) + ALPHA * (outside * same_attribute).sum(1)
    return (denominator.log() - (patches * positive).sum(1).log()).mean()


def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for x, y in zip(ours, theirs, strict=True):
        # float32 cosines are exact to 1e-7, and divided by the temperature twice.
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-3 * y.abs().max().item())


def loss_and_gradients(n: int) -> Record:
    rows = [torch.randn(n, E, device=DEVICE, requires_grad=True) for _ in range(3)]
    labels = torch.randint(VALUES, (n,), device=DEVICE)
    attributes = torch.randint(ATTRIBUTES, (n,), device=DEVICE)

    def step(loss: Loss) -> tuple[Tensor, ...]:
        value = loss(*rows, labels, attributes)
        return value, *torch.autograd.grad(value, rows)

    compiled = torch.compile(plain)
    peers = {"PyTorch": lambda: step(plain), "PyTorch compiled": lambda: step(compiled)}
    name = f"E-InfoNCE, {n} rows"
    ours = ops.region_patch_info_nce
    if n >= 3072:
        given = published(compared_masks)
        peers["published, masks given"] = lambda: step(given)
    record = compare(name, lambda: step(ours), peers, check=same)
    old = {"published": lambda: step(published(python_masks))}
    pairs = 21 if n < 768 else 3 if n < 3072 else 1
    slow = compare(name, lambda: step(ours), old, pairs, same if n < 3072 else None, warmup=0)
    record["peers"]["published"] = {**slow["peers"]["published"], "pairs": pairs}
    return record


def run() -> list[Record]:
    torch.manual_seed(0)
    return [loss_and_gradients(n) for n in (48, 768, 3072)]


if __name__ == "__main__":
    run()
