"""The region-aware head of RPF for 1 to 1,000 attributes of an image, and the pooling operator by itself.

Head: from the trunk's map to a region embedding for each attribute, without gradients, as evaluation and
indexing do.
Peers: the published way, the whole head once for each attribute with the attribute expanded over the map and
the background computed along; and the best plain PyTorch, all attributes by matrix products, eager and
compiled.
Pool: forward and backward of the pooling alone with the background, 48 images, as a training step does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from paired import Record, compare
from torch import Tensor

from placket import ops

C, HEIGHT, ATTRIBUTE_DIM, HIDDEN = 1024, 14, 512, 512
P = HEIGHT * HEIGHT
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Head:
    """The head's weights, and its three implementations."""

    def __init__(self, attributes: int) -> None:
        def weight(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, device=DEVICE) * columns**-0.5

        self.embedding = torch.randn(attributes, ATTRIBUTE_DIM, device=DEVICE)
        self.attribute = weight(ATTRIBUTE_DIM, ATTRIBUTE_DIM)
        self.conv = weight(ATTRIBUTE_DIM, C)
        self.project = weight(C, C)
        self.expand, self.reduce = weight(HIDDEN, C), weight(C, HIDDEN)

    def mlp(self, x: Tensor) -> Tensor:
        hidden = F.relu(F.linear(F.layer_norm(x, (C,), eps=1e-6), self.expand))
        return F.layer_norm(x + F.linear(hidden, self.reduce), (C,), eps=1e-6)

    def published(self, features: Tensor) -> Tensor:
        """One pass for each attribute."""
        regions = []
        for row in self.embedding:
            x = F.layer_norm(features.permute(0, 2, 3, 1), (C,), eps=1e-6).permute(0, 3, 1, 2)
            image = torch.tanh(F.conv2d(x, self.conv[..., None, None]))
            e = torch.tanh(F.linear(F.layer_norm(row, (ATTRIBUTE_DIM,), eps=1e-6), self.attribute))
            expanded = e.view(1, -1, 1, 1).expand(len(x), ATTRIBUTE_DIM, HEIGHT, HEIGHT)
            logits = (expanded * image).sum(1) / ATTRIBUTE_DIM**0.5
            weights = logits.flatten(1).softmax(1).view(len(x), 1, HEIGHT, HEIGHT)
            outside = (1 - weights) / (1 - weights).sum((2, 3), keepdim=True)
            self.mlp((x * outside).sum((2, 3)))
            regions.append(self.mlp(F.linear((x * weights).sum((2, 3)), self.project)))
        return torch.stack(regions, 1)

    def batched(self, features: Tensor, pool: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """All attributes at once, from one reading of the map."""
        x = F.layer_norm(features.permute(0, 2, 3, 1).flatten(1, 2), (C,), eps=1e-6)
        image = torch.tanh(F.linear(x, self.conv))
        e = torch.tanh(F.linear(F.layer_norm(self.embedding, (ATTRIBUTE_DIM,), eps=1e-6), self.attribute))
        logits = (e * ATTRIBUTE_DIM**-0.5) @ image.mT
        return self.mlp(F.linear(pool(logits, x.mT), self.project))

    def ours(self, features: Tensor) -> Tensor:
        return self.batched(features, lambda logits, x: ops.attention_pool(logits, x, False)[0])

    def plain(self, features: Tensor) -> Tensor:
        return self.batched(features, lambda logits, x: logits.softmax(2) @ x.mT)


def same_regions(ours: Tensor, theirs: Tensor) -> None:
    # Entries are of order 1 after the last LayerNorm.
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def head(attributes: int) -> Record:
    images = 64 if DEVICE.type == "cuda" else 4
    features = torch.randn(images, C, HEIGHT, HEIGHT, device=DEVICE).to(memory_format=torch.channels_last)
    model = Head(attributes)
    compiled = torch.compile(model.plain)
    name = f"head, {images} images, {attributes} attributes"
    peers = {"PyTorch": lambda: model.plain(features), "PyTorch compiled": lambda: compiled(features)}
    record = compare(name, lambda: model.ours(features), peers, check=same_regions)
    # The published loop over 1,000 attributes takes seconds.
    pairs = 21 if attributes <= 8 else 5
    published = {"published": lambda: model.published(features)}
    slow = compare(name, lambda: model.ours(features), published, pairs, same_regions)
    record["peers"]["published"] = {**slow["peers"]["published"], "pairs": pairs}
    return record


def plain_pool(logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    weights = logits.softmax(2)
    pooled = weights @ values.mT
    return pooled, (values.sum(2)[:, None] - pooled) / (P - 1), weights


def pool(attributes: int, channels_last: bool) -> Record:
    images = 48
    logits = torch.randn(images, attributes, P, device=DEVICE, requires_grad=True)
    values = torch.randn(images, C, P, device=DEVICE)
    if channels_last:
        values = values.mT.contiguous().mT
    values.requires_grad_()
    probes = [torch.randn(images, attributes, C, device=DEVICE) for _ in range(2)]

    def step(function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(logits, values)[:2], (logits, values), probes)

    def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
        for x, y in zip(ours, theirs, strict=True):
            torch.testing.assert_close(x, y, atol=1e-4 * y.abs().max().item(), rtol=1e-4)

    layout = "channels_last" if channels_last else "contiguous"
    name = f"pool forward + backward, {images} images, {attributes} attributes, {layout}"
    return compare(name, lambda: step(ops.attention_pool), {"PyTorch": lambda: step(plain_pool)}, check=same)


def run() -> list[Record]:
    torch.manual_seed(0)
    records = [pool(attributes, last) for attributes in (1, 8) for last in (False, True)]
    return records + [head(attributes) for attributes in (1, 8, 100, 1000)]


if __name__ == "__main__":
    run()
