"""What the bench trains, on what, and for how long: plain data."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from placket import _C
from placket.config import DataConfig, ScheduleConfig, StageConfig, TrainConfig, load_config
from placket.models import METHODS

__all__ = ["ENTRIES", "SETTINGS", "Bench", "Entry", "Setting", "small_config"]


@dataclass(frozen=True)
class Entry:
    """A method by a recipe."""

    key: str
    """Names it on the command line and in folders."""
    title: str
    recipe: str
    """A shipped one by name, or a file."""
    ours: bool = False
    """Whether the recipe is made for small trunks: its rates, widths and schedules then stay as they are."""


@dataclass(frozen=True)
class Bench:
    """A data set, and what all methods have in common on it."""

    name: str
    items: int
    """Garments to draw, or 0 for photographs."""
    ours: tuple[Entry, ...]
    """Our recipes for data and trunks of this kind."""
    trunk: str
    trunk_weights: str | None
    size: int
    patch_size: int
    feature_size: int
    """Side in pixels of the input of frozen features."""
    attribute_dim: int
    batch: int
    """Images a step; a third of it triplets."""
    batch_norm: Literal["merged", "frozen"]
    rate: float
    """The highest learning rate of a stage; the recipe's others keep their ratio to it."""
    trunk_rate: float
    """Times the branch's rate: that of its trunk."""
    frozen: tuple[str, ...]
    """Parameters of a trunk whose names begin with one of these stay as they are."""
    flip: float
    crop_scale: float
    seconds: float
    """To train each method and the classifier, over all stages."""


@dataclass(frozen=True)
class Setting:
    """What one run of the bench does."""

    benches: tuple[Bench, ...]
    seeds: int


ENTRIES = (
    Entry("triplet", "Triplet network", "triplet"),
    Entry("csn", "CSN", "csn"),
    Entry("asen", "ASEN", "asen"),
    Entry("asen_v2", "ASEN v2", "asen_v2"),
    Entry("asen_plus_plus", "ASEN++", "asen_plus_plus"),
    Entry("rpf", "RPF", "rpf"),
    Entry("modc", "MODC", "modc"),
    Entry("m3net", "M3-Net", "m3net"),
)
"""The methods by their papers' recipes; those take part that ``placket.models.METHODS`` has."""

_GARMENTS = Bench(
    name="garments",
    items=2400,
    ours=(Entry("rpf-ours", "RPF, our recipe", "demo", ours=True),),
    trunk="resnet18,width=0.375,stage=2",
    trunk_weights=None,
    size=96,
    patch_size=64,
    feature_size=96,
    attribute_dim=128,
    batch=24,
    batch_norm="merged",
    rate=2e-3,
    trunk_rate=1.0,
    frozen=(),
    flip=0.0,  # a mirrored garment has its pocket on the wrong side
    crop_scale=0.75,
    seconds=40,
)
_PHOTOGRAPHS = Bench(
    name="deepfashion-fine6",
    items=0,
    ours=(Entry("rpf-ours", "RPF, our recipe", "lite", ours=True),),
    trunk="efficientnet_lite0",
    trunk_weights="efficientnet_lite0",
    size=128,
    patch_size=96,
    feature_size=224,
    attribute_dim=256,
    batch=48,
    batch_norm="frozen",
    rate=1e-3,
    trunk_rate=0.2,
    # Half the cost of a step; what ImageNet taught these layers serves as it is.
    frozen=("_conv_stem.", "_bn0.", *(f"_blocks.{i}." for i in range(5))),
    flip=0.5,
    crop_scale=0.75,
    seconds=1200,
)

SETTINGS = {
    "minutes": Setting((_GARMENTS,), seeds=1),
    "night": Setting((replace(_GARMENTS, seconds=1200), _PHOTOGRAPHS), seeds=3),
}
"""By name: about ten minutes on two cores, and a night."""


def small_config(
    entry: Entry, bench: Bench, root: str, images: int, seed: int, epochs: Sequence[int] | None = None
) -> TrainConfig:
    """Return an entry's recipe on a bench: its losses, stages and samplers; the bench's everything else.

    Args:
        entry: of the bench or of ``ENTRIES``.
        bench: gives trunk, input, batch, augmentation, and, unless the entry is ours, widths and rates.
        root: of the data set.
        images: to learn from; an epoch sees about so many with any sampler.
        seed: of the training.
        epochs: of each stage; the recipe's by default.
    """
    config = load_config(entry.recipe)
    has_patch = config.model.patch is not None
    model = replace(
        config.model,
        trunk=bench.trunk,
        trunk_weights=bench.trunk_weights,
        patch=bench.trunk if has_patch else None,
        patch_weights="region" if has_patch else None,
        patch_size=bench.patch_size if has_patch else None,
    )
    if not entry.ours:
        # Every width but these two follows from the trunk, as far as the method lets it.
        given = {"attribute_dim": bench.attribute_dim, "embedding_dim": _C.trunk_channels(bench.trunk)}
        known = inspect.signature(METHODS[model.name]).parameters
        widths: dict[str, Any] = {
            field.name: given.get(field.name) if field.name in known else None
            for field in fields(model)
            if field.name.endswith("_dim")
        }
        model = replace(model, heads=None, **widths)
    stages = [_small_stage(stage, bench, entry.ours, images) for stage in config.stages]
    if epochs is not None:
        stages = [replace(stage, epochs=n) for stage, n in zip(stages, epochs, strict=True)]
    return replace(
        config,
        model=model,
        data=DataConfig(root=root, size=bench.size, fit="pad", box_margin=0.1),
        stages=tuple(stages),
        # The last weights of a stage count, for every method and for the classifier.
        trainer=replace(config.trainer, seed=seed, evaluate_every=0, checkpoint_every=0, tensorboard=False),
    )


def _small_stage(stage: StageConfig, bench: Bench, ours: bool, images: int) -> StageConfig:
    common = replace(
        stage,
        batch=bench.batch // 3 if stage.sampler == "triplets" else bench.batch,
        triplets=images // 3,
        batch_norm=bench.batch_norm,
        flip=bench.flip,
        crop_scale=bench.crop_scale,
    )
    if ours:
        return common
    return replace(
        common,
        rates=_small_rates(stage, bench),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=50),
        weight_decay=0.01,
        decoupled_decay=True,
    )


def _small_rates(stage: StageConfig, bench: Bench) -> dict[str, float]:
    """Return the stage's rates with the bench's for their highest, and its own rates for trunks."""
    scale = bench.rate / max(stage.rates.values())
    rates = {prefix: scale * rate for prefix, rate in stage.rates.items()}
    for branch in stage.branches:
        trunk = f"{branch}.trunk."
        closest = max((prefix for prefix in stage.rates if trunk.startswith(prefix)), key=len)
        rates[trunk] = rates[closest] * bench.trunk_rate
        rates |= {trunk + prefix: 0.0 for prefix in bench.frozen}
    return rates
