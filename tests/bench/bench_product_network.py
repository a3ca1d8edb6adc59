"""MMFL-Net: a step (forward, loss, backward) and embedding, against the same network in plain PyTorch.

The loss is a sum over features, necks and logits, so that the network alone is timed. Peers: plain modules of
torch.nn (tests/models/plain_mmfl.py) in channels_last, eager and compiled, with the same weights. Parts: the
whole network against itself without each of them; the ratio is what the part costs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from paired import Record, compare
from torch import Tensor

from placket import AttributeSchema, create_model
from placket.nn import MmflNet

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
import plain_mmfl
import plain_trunks

SCHEMA = AttributeSchema.of({f"attribute {n}": [str(v) for v in range(17)] for n in range(18)})
TRUNK = "resnet50,stage=4,last_stride=1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PARTS: dict[str, dict[str, Any]] = {
    "without fusion": {"fusion_dim": 0},
    "without part branch": {"stripes": ()},
    "without local branch": {"local": False},
    "global branch alone": {"fusion_dim": 0, "stripes": (), "local": False, "attributes": False},
}
Outputs = tuple[Tensor, Tensor, Tensor]


def make(**options: Any) -> MmflNet:
    model = create_model("mmfl", schema=SCHEMA, trunk=TRUNK, **options)
    assert isinstance(model, MmflNet)
    return model.to(DEVICE)


def plain_of(model: MmflNet) -> torch.nn.Module:
    trunk = plain_trunks.ResNet([3, 4, 6, 3], 4, last_stride=1)
    module = plain_mmfl.PlainMmfl.of(model, trunk, [512, 1024, 2048])
    return module.to(DEVICE, memory_format=torch.channels_last)


def step(model: torch.nn.Module, run: Callable[[Tensor], Any], images: Tensor) -> Outputs:
    model.zero_grad()
    features, necks, logits = outputs(run(images))
    (features.square().mean() + necks.square().mean() + logits.square().mean()).backward()
    return features.detach(), necks.detach(), logits.detach()


def outputs(found: Any) -> Outputs:
    if isinstance(found, tuple) and hasattr(found, "necks"):
        return found.features, found.necks, found.attribute_logits
    features, necks, logits = found
    return features, necks, logits


def same(ours: Outputs, theirs: Outputs) -> None:
    # Statistics of few values magnify float32's roundings from layer to layer.
    for x, y in zip(ours, theirs, strict=True):
        assert (x - y).norm() <= 0.02 * y.norm()


def run() -> Iterator[Record]:
    count = 64 if DEVICE.type == "cuda" else 4
    images = torch.randn(count, 3, 256, 256, device=DEVICE).to(memory_format=torch.channels_last)
    ours = make(drop=0.0)  # the plain modules drop rows image by image
    plain = plain_of(ours)
    compiled = torch.compile(plain)
    arms = {
        "PyTorch": lambda: step(plain, plain, images),
        "compiled PyTorch": lambda: step(plain, compiled, images),
    }
    yield compare(f"step, {count} images", lambda: step(ours, ours, images), arms, check=same)
    with torch.no_grad():
        for module in (ours, plain):
            module.eval()
        arms = {
            "PyTorch": lambda: outputs(plain(images)),
            "compiled PyTorch": lambda: outputs(compiled(images)),
        }
        yield compare(f"embed, {count} images", lambda: outputs(ours(images)), arms, check=same)
    whole = make().train()
    for name, options in PARTS.items():
        part = make(**options).train()
        other = {name: lambda part=part: step(part, part, images)}
        record = compare(f"parts, step, {count} images", lambda: step(whole, whole, images), other, pairs=9)
        record["parameters"] = {
            arm: sum(p.numel() for p in model.parameters()) for arm, model in (("whole", whole), (name, part))
        }
        yield record
