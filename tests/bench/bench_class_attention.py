"""The class attention of M3-Net for 54, 185 and 1,000 classes: FashionAI, DARN and DeepFashion.

Head: from the trunk's map to the embeddings of all attributes and classes, without gradients, as evaluation
does. Peers: the best plain PyTorch that takes the formulas as they stand, all classes at once by einsum; and
one class after another. All arms have the same attribute sub-network.
Image: trunk and head with 1,000 classes of five attributes against 50, forward, and as a training step does
forward and backward; the ratio is the price of the larger vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from paired import Record, compare
from torch import Tensor

from placket import AttributeSchema, create_model
from placket.nn import M3Net

C, HEIGHT = 1024, 14  # of ResNet-50's layer3 at 224 pixels
CLASSES = {
    54: (6, 9, 8, 6, 5, 5, 10, 5),
    185: (20, 13, 55, 7, 28, 11, 26, 8, 17),
    1000: (156, 218, 180, 216, 230),
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Outputs = tuple[Tensor, Tensor, Tensor]


def make(classes: tuple[int, ...]) -> M3Net:
    schema = AttributeSchema.of(
        {f"attribute {n}": [str(value) for value in range(count)] for n, count in enumerate(classes)}
    )
    model = create_model("m3net", schema=schema)
    assert isinstance(model, M3Net)
    return model.to(DEVICE)


class Head:
    """The head's weights, and its implementations: embeddings, class embeddings and class logits."""

    def __init__(self, classes: tuple[int, ...]) -> None:
        model = make(classes)
        self.description = model.config.head
        self.table = model.attribute_embedding.weight
        self.weights = dict(model.region.head.named_parameters())
        self.attributes = torch.arange(len(classes), device=DEVICE)
        self.owners = self.attributes.repeat_interleave(torch.tensor(classes, device=DEVICE))

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def ours(self, features: Tensor) -> Outputs:
        embedding, _, class_embedding, logits = torch.ops.placket.class_head(
            features, self.table, self.attributes, list(self.weights.values()), self.description
        )
        return embedding, class_embedding, logits

    def attribute_network(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Attention ``[B, A, P]`` and representation ``[B, A, E]``."""
        keys = torch.tanh(self.linear(x, "image_proj"))
        queries = torch.tanh(self.linear(self.table, "attribute_proj"))
        alpha = (queries @ keys.mT / queries.shape[1] ** 0.5).softmax(2)
        pooled = alpha @ x
        asked = F.relu(self.linear(self.table, "gate.attribute_proj")).expand(len(x), -1, -1)
        hidden = F.relu(self.linear(torch.cat([pooled, asked], 2), "gate.fc1"))
        gated = self.linear(hidden, "gate.fc2").sigmoid() * pooled
        return alpha, self.linear(gated, "pooled_proj")

    def joined(self, psi: Tensor, phi: Tensor) -> Outputs:
        logits = (phi * self.weights["classifier.weight"]).sum(2) + self.weights["classifier.bias"]
        others = self.attributes[:, None] != self.owners
        share = logits[:, None].masked_fill(others, -torch.inf).softmax(2)
        mixed = share @ F.normalize(phi, dim=2) @ self.weights["class_output.weight"].T
        return torch.cat([F.normalize(psi, dim=2), mixed], 2), phi, logits

    def plain(self, features: Tensor) -> Outputs:
        """All classes at once."""
        x = features.permute(0, 2, 3, 1).flatten(1, 2)
        alpha, psi = self.attribute_network(x)
        keys = torch.tanh(self.linear(x, "class_image_proj"))
        e = self.weights["class_embedding.weight"].expand(len(x), -1, -1)
        queries = self.linear(torch.cat([e, psi[:, self.owners]], 2), "class_query")
        logits = torch.einsum("bmd,bpd->bmp", queries, keys) / queries.shape[2] ** 0.5
        weights = (logits + alpha.log()[:, self.owners]).softmax(2)
        return self.joined(psi, self.linear(torch.einsum("bmp,bpc->bmc", weights, x), "class_proj"))

    def loop(self, features: Tensor) -> Outputs:
        """One class after another."""
        x = features.permute(0, 2, 3, 1).flatten(1, 2)
        alpha, psi = self.attribute_network(x)
        prior = alpha.log()
        keys = torch.tanh(self.linear(x, "class_image_proj"))
        phi = []
        for e, n in zip(self.weights["class_embedding.weight"], self.owners.tolist(), strict=True):
            query = self.linear(torch.cat([e.expand(len(x), -1), psi[:, n]], 1), "class_query")
            logits = (keys @ query[:, :, None]).squeeze(2) / query.shape[1] ** 0.5 + prior[:, n]
            phi.append(self.linear((logits.softmax(1)[:, None] @ x).squeeze(1), "class_proj"))
        return self.joined(psi, torch.stack(phi, 1))


def same(ours: Outputs, theirs: Outputs) -> None:
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def head(count: int) -> Record:
    images = 64 if DEVICE.type == "cuda" else 4
    features = torch.randn(images, C, HEIGHT, HEIGHT, device=DEVICE).to(memory_format=torch.channels_last)
    model = Head(CLASSES[count])
    name = f"head, {images} images, {count} classes"

    def ours() -> Outputs:
        return model.ours(features)

    record = compare(name, ours, {"PyTorch": lambda: model.plain(features)}, check=same)
    # The loop over 1,000 classes takes seconds.
    pairs = 21 if count < 1000 else 5
    slow = compare(name, ours, {"class by class": lambda: model.loop(features)}, pairs, same)
    record["peers"]["class by class"] = {**slow["peers"]["class by class"], "pairs": pairs}
    return record


def image(training: bool) -> Record:
    count = 64 if DEVICE.type == "cuda" else 4
    images = torch.randn(count, 3, 224, 224, device=DEVICE).to(memory_format=torch.channels_last)
    few, many = (make((classes,) * 5).train(training) for classes in (10, 200))

    def run(model: M3Net) -> Tensor:
        with torch.set_grad_enabled(training):
            out = model(images, 0)
            total: Tensor = out.embedding.sum() + out.class_logits.sum() + out.class_embedding.sum()
        if training:
            model.zero_grad()
            total.backward()
        return total

    name = f"trunk and head, {count} images, 50 classes{', forward + backward' if training else ''}"
    return compare(name, lambda: run(few), {"1,000 classes": lambda: run(many)})


def run() -> list[Record]:
    torch.manual_seed(0)
    return [head(count) for count in CLASSES] + [image(training) for training in (False, True)]


if __name__ == "__main__":
    run()
