"""A training step of RPF's region branch at the published sizes (ResNet-50, 224 pixels), batch to weights.

Ours is ``Trainer.step``, which loads as well: images are decoded on threads while the step before runs. Peers
get one batch again and again and load nothing. Peers of the same batch statistics as ours: for "grouped" the
published way, three forward passes and Adam parameter by parameter; for "merged" the best plain PyTorch, one
pass of the whole batch, channels_last, fused Adam, eager and compiled. The trainer keeps the process's large
blocks of memory from step to step, which serves the peers here too. The step's convolutions alone,
forward and backward in the library that all arms call, tell what of it no arm can save: their "ratio" is
their share of our step.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from paired import Record, compare
from torch import Tensor, nn

import placket
from placket import _C, reference
from placket.config import StageConfig, TrainerConfig
from placket.data import Dataset, Loader
from placket.data.garments import generate
from placket.nn import Rpf
from placket.train import Trainer

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from plain_trunks import ResNet

STAGE = StageConfig(batch=4, triplets=100_000)
RATE, MARGIN = 5e-5, 0.2


class Plain(nn.Module):
    """The region branch in plain PyTorch, on copies of a model's tensors."""

    def __init__(self, model: Rpf) -> None:
        super().__init__()
        self.trunk = ResNet([3, 4, 6], 4)
        self.trunk.load_state_dict(model.region.trunk.state_dict(), strict=False)
        head = dict(model.region.head.named_parameters())
        self.names = list(head)
        self.head = nn.ParameterList(p.detach().clone() for p in head.values())
        self.table = nn.Parameter(model.attribute_embedding.weight.detach().clone())

    def forward(self, images: Tensor, attributes: Tensor) -> Tensor:
        weights = dict(zip(self.names, self.head, strict=True))
        return reference.rpf_region_head(self.trunk(images), self.table, attributes, weights)[0]


def triplet_loss(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    near, far = F.cosine_similarity(anchor, positive), F.cosine_similarity(anchor, negative)
    return (MARGIN - near + far).clamp_min(0).mean()


def stepper(module: nn.Module, batch: _C.Batch, adam: torch.optim.Adam, passes: int) -> Callable[[], float]:
    def step() -> float:
        adam.zero_grad()
        parts = zip(batch.images.chunk(passes), batch.attributes.chunk(passes), strict=True)
        roles = torch.cat([module(images, attributes) for images, attributes in parts]).chunk(3)
        loss = triplet_loss(*roles)
        loss.backward()
        adam.step()
        return loss.item()

    return step


def peers(model: Rpf, batch_norm: str, batch: _C.Batch) -> dict[str, Callable[[], object]]:
    def adam(module: nn.Module, **options: bool) -> torch.optim.Adam:
        return torch.optim.Adam(module.parameters(), lr=RATE, **options)

    if batch_norm == "grouped":
        published = Plain(model).train()
        return {"published": stepper(published, batch, adam(published, foreach=False), passes=3)}
    plain = [Plain(model).train().to(memory_format=torch.channels_last) for _ in range(2)]
    modules = {"PyTorch": plain[0], "PyTorch compiled": torch.compile(plain[1])}
    return {n: stepper(m, batch, adam(m, fused=True), passes=1) for n, m in modules.items()}


def convolutions(trunk: nn.Module, images: Tensor) -> Callable[[], None]:
    """Return what runs every convolution of a step on its own input, forward and backward."""
    calls: list[tuple[nn.Conv2d, Tensor]] = []

    def keep(conv: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        calls.append((conv, inputs[0]))

    hooks = [m.register_forward_hook(keep) for m in trunk.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        trunk(images)
    for hook in hooks:
        hook.remove()

    @torch.no_grad()
    def run() -> None:
        for conv, x in calls:
            y = F.conv2d(x, conv.weight, None, conv.stride, conv.padding)
            # The pictures need no gradient, what the other layers read does.
            wanted = [x.shape[1] > 3, True, False]
            torch.ops.aten.convolution_backward(
                y, x, conv.weight, None, conv.stride, conv.padding, conv.dilation, False, [0, 0], 1, wanted
            )

    return run


def bench(data: Dataset, batch_norm: str) -> Record:
    stage = dataclasses.replace(STAGE, batch_norm=batch_norm)
    model = placket.create_model(
        "rpf", schema=data.schema, patch=None, dropout=0.0, generator=torch.Generator().manual_seed(0)
    )
    loader = Loader(
        data.split("train"),
        sampler="triplets",
        batch=stage.batch,
        preprocess=_C.Preprocess(**model.preprocess),
        seed=_C.stage_seed(TrainerConfig.seed, 0),
    )
    batch = next(iter(loader))
    others = peers(model, batch_norm, batch)
    trunk = Plain(model).trunk.to(memory_format=torch.channels_last)
    alone = convolutions(trunk, batch.images.contiguous(memory_format=torch.channels_last))
    model.to(memory_format=torch.channels_last)
    trainer = Trainer(model, data, stage, trainer=TrainerConfig(checkpoint_every=0))
    # Equal work: the first losses, of equal weights and batches, are equal.
    first = trainer.step()["triplet_region"]
    for step in others.values():
        torch.testing.assert_close(step(), first, rtol=1e-3, atol=1e-4)
    others["the convolutions alone"] = alone
    return compare(f"training step, {batch_norm}", lambda: trainer.step(), others)


def run() -> list[Record]:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "garments", items=200, size=256)
        data = placket.data.open(Path(folder) / "garments")
        return [bench(data, batch_norm) for batch_norm in ("grouped", "merged")]


if __name__ == "__main__":
    run()
