"""The region-aware head of RPF for 1 to 1,000 attributes of an image, and the pooling operator by itself.

Head: from the trunk's map to a region embedding for each attribute, without gradients, as evaluation and
indexing do.
Peers: the published way, the whole head once for each attribute with the attribute expanded over the map and
the background computed along; and the best plain PyTorch, all attributes by matrix products, eager and
compiled. The head's matrix products with weights alone tell what of it no arm can save: their "ratio" is
their share of our time.
Pool: forward and backward of the pooling alone with the background, 48 images, as a training step does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from paired import Record, compare
from torch import Tensor

from placket import AttributeSchema, create_model, ops

C, HEIGHT = 1024, 14  # of ResNet-50's layer3 at 224 pixels
P = HEIGHT * HEIGHT
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Head:
    """The head's weights, and its implementations."""

    def __init__(self, attributes: int) -> None:
        schema = AttributeSchema.of({f"attribute {i}": ["a", "b"] for i in range(attributes)})
        model = create_model("rpf", schema=schema, patch=None).to(DEVICE)
        self.table = model.attribute_embedding.weight
        self.attributes = torch.arange(attributes, device=DEVICE)
        self.weights = dict(model.region.head.named_parameters())

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, 1e-6)

    def mlp(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.linear(self.norm(x, "norm"), "mlp.fc1"))
        return self.norm(x + self.linear(hidden, "mlp.fc2"), "norm")

    def published(self, features: Tensor) -> Tensor:
        """One pass for each attribute."""
        regions = []
        conv = self.weights["image_proj.weight"][..., None, None]
        for row in self.table:
            x = self.norm(features.permute(0, 2, 3, 1), "image_norm").permute(0, 3, 1, 2)
            image = torch.tanh(F.conv2d(x, conv, self.weights["image_proj.bias"]))
            e = torch.tanh(self.linear(self.norm(row, "attribute_norm"), "attribute_proj"))
            expanded = e.view(1, -1, 1, 1).expand_as(image)
            logits = (expanded * image).sum(1) / len(row) ** 0.5
            weights = logits.flatten(1).softmax(1).view(len(x), 1, HEIGHT, HEIGHT)
            outside = (1 - weights) / (1 - weights).sum((2, 3), keepdim=True)
            self.mlp((x * outside).sum((2, 3)))
            regions.append(self.mlp(self.linear((x * weights).sum((2, 3)), "pooled_proj")))
        return torch.stack(regions, 1)

    def ours(self, features: Tensor) -> Tensor:
        head = f"rpf_region,attribute_dim={self.table.shape[1]}"
        return torch.ops.placket.attribute_head(
            features, self.table, self.attributes, list(self.weights.values()), head
        )[0]

    def plain(self, features: Tensor) -> Tensor:
        """All attributes at once, from one reading of the map."""
        x = self.norm(features.permute(0, 2, 3, 1).flatten(1, 2), "image_norm")
        image = torch.tanh(self.linear(x, "image_proj"))
        e = torch.tanh(self.linear(self.norm(self.table, "attribute_norm"), "attribute_proj"))
        logits = (e * e.shape[1] ** -0.5) @ image.mT
        return self.mlp(self.linear(logits.softmax(2) @ x, "pooled_proj"))

    def products(self, features: Tensor) -> Callable[[], None]:
        """Return what runs the layers' matrix products on inputs of their shapes, nothing else."""
        images, attributes = len(features), len(self.table)
        regions = images * attributes
        # With more attributes than positions the head projects the positions.
        pooled = min(regions, images * P)
        rows = {"image_proj": images * P, "attribute_proj": attributes, "pooled_proj": pooled,
                "mlp.fc1": regions, "mlp.fc2": regions}  # fmt: skip
        calls = []
        for name, count in rows.items():
            weight = self.weights[f"{name}.weight"]
            x = torch.randn(count, weight.shape[1], device=DEVICE)
            calls.append((x, weight.T, torch.empty(count, len(weight), device=DEVICE)))

        def run() -> None:
            for x, weight, out in calls:
                torch.mm(x, weight, out=out)

        return run


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
    products = compare(name, lambda: model.ours(features), {"the products alone": model.products(features)})
    record["peers"] |= products["peers"]
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
