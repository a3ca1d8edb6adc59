"""What the bench trains, on what, and for how long: plain data."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from placket import _C
from placket.config import DataConfig, ScheduleConfig, StageConfig, TrainConfig, load_config
from placket.data import Dataset, Split
from placket.models import METHODS, takes_patch

__all__ = ["SETTINGS", "TITLES", "Bench", "Entry", "Setting", "entries", "small_config"]


@dataclass(frozen=True)
class Entry:
    """A method by a recipe."""

    key: str
    """Names it on the command line and in folders."""
    title: str
    method: str
    """Name in ``placket.models.METHODS``."""
    recipe: str
    """A shipped one by name, or a file."""
    ours: bool
    """Whether it is our recipe, made for small trunks: its rates, widths and schedules stay as they are."""


@dataclass(frozen=True)
class Bench:
    """A data set, and what all methods have in common on it."""

    name: str
    items: int
    """Garments to draw, or 0 for photographs."""
    ours: str
    """Our recipe for data and trunks of this kind."""
    trunk: str
    trunk_weights: str | None
    size: int
    fit: Literal["pad", "squash"]
    """How boxes become square."""
    patch_size: int
    feature_size: int
    """Side in pixels of the input of frozen features."""
    attribute_dim: int
    batch: int
    """Images a step, copies of an image counted; a third of it triplets."""
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
    paper_seeds: int
    """Of the papers' recipes."""

    def seeds_of(self, entry: Entry) -> int:
        """Return with how many seeds an entry is trained."""
        return self.seeds if entry.ours else self.paper_seeds


TITLES = {
    "triplet": "Triplet network",
    "csn": "CSN",
    "asen": "ASEN",
    "asen_v2": "ASEN v2",
    "asen_plus_plus": "ASEN++",
    "rpf": "RPF",
    "modc": "MODC",
    "m3net": "M3-Net",
}
"""Names in the table of the methods in ``placket.models.METHODS``; each has a recipe of its own name."""

_ANY_METHOD = ("name", "trunk", "patch", "trunk_weights", "patch_weights", "start")  # of ModelConfig
# Without these, weighted as in the method's own recipe, MODC would be ASEN++'s global branch, and nothing
# would teach M3-Net's classifiers. Images of these sets have one value of an attribute each, for which
# cross-entropy is M3-Net's loss of classes.
_OWN_LOSSES = {
    "modc": {"region_prototype": 1.0, "region_centre_triplet": 1.0},
    "m3net": {"class_cross_entropy": 1.0, "class_instance_triplet": 1.0, "class_centre_triplet": 1.0},
}

_GARMENTS = Bench(
    name="garments",
    items=2400,
    ours="demo",
    trunk="resnet18,width=0.375,stage=2",
    trunk_weights=None,
    size=96,
    fit="pad",
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
    seconds=45,
)
_PHOTOGRAPHS = Bench(
    name="deepfashion-fine6",
    items=0,
    ours="lite",
    trunk="efficientnet_lite0,stage=head",
    trunk_weights="efficientnet_lite0",
    size=160,
    fit="squash",
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
    crop_scale=1.0,
    seconds=1200,
)

SETTINGS = {
    # In less than a minute from a random trunk the papers' triplets teach nothing: RPF's reach chance.
    "minutes": Setting((_GARMENTS,), seeds=1, paper_seeds=0),
    "photographs": Setting((replace(_PHOTOGRAPHS, seconds=720),), seeds=1, paper_seeds=0),
    "night": Setting((replace(_GARMENTS, seconds=120), _PHOTOGRAPHS), seeds=3, paper_seeds=1),
}
"""By name: 45 seconds a method; twelve minutes a method on photographs; a night on both."""


def entries(bench: Bench) -> list[Entry]:
    """Return what takes part: the methods by their papers' recipes, then by ours."""
    papers = [Entry(name, title, name, name, False) for name, title in TITLES.items() if name in METHODS]
    ours = [
        Entry(f"{name}-ours", f"{TITLES[name]}, our recipe", name, bench.ours, True)
        for name in TITLES
        if name in METHODS
    ]
    return papers + ours


def small_config(
    entry: Entry, bench: Bench, data: Dataset, seed: int, epochs: Sequence[int] | None = None
) -> TrainConfig:
    """Return an entry's recipe on a bench: its losses, stages and samplers; the bench's everything else.

    Our recipe is written for RPF. Another method takes it without ``region_patch``, RPF's own loss, and, if
    it has one branch, the first stage alone; MODC adds the losses of its centres and M3-Net those of its
    classes, weighted as in their recipes. Batches of classes hold so many of an attribute that every
    attribute can give one.

    Args:
        entry: one of ``entries(bench)``.
        bench: gives trunk, input, batch, flips and crops, and, unless the entry is ours, widths and rates.
        data: to learn from; an epoch sees about as many images as "train" has with any sampler.
        seed: of the training.
        epochs: of each stage; the recipe's by default. Ramps keep their share of them.
    """
    config = load_config(entry.recipe)
    has_patch = takes_patch(entry.method)
    model = replace(
        config.model,
        name=entry.method,
        trunk=bench.trunk,
        trunk_weights=bench.trunk_weights,
        patch=bench.trunk if has_patch else None,
        patch_weights="region" if has_patch else None,
        patch_size=bench.patch_size if has_patch else None,
    )
    options: dict[str, Any] = {key: value for key, value in vars(model).items() if key not in _ANY_METHOD}
    if not entry.ours:
        # Every width but these two follows from the trunk, as far as the method lets it.
        options |= dict.fromkeys((key for key in options if key.endswith("_dim")), None)
        options["heads"] = None
        options |= {"attribute_dim": bench.attribute_dim, "embedding_dim": _C.trunk_channels(bench.trunk)}
    known = inspect.signature(METHODS[entry.method]).parameters
    options = {key: value if key in known else None for key, value in options.items()}
    model = replace(model, **options)
    stages = [
        _small_stage(stage, bench, entry, data.split("train"))
        for stage in config.stages
        if has_patch or "patch" not in stage.branches
    ]
    if epochs is not None:
        stages = [_lasting(stage, n) for stage, n in zip(stages, epochs, strict=True)]
    return replace(
        config,
        model=model,
        data=DataConfig(root=str(data.root), size=bench.size, fit=bench.fit, box_margin=0.1),
        stages=tuple(stages),
        # The last weights of a stage count, for every method and for the classifier.
        trainer=replace(config.trainer, seed=seed, evaluate_every=0, checkpoint_every=0, tensorboard=False),
    )


def _lasting(stage: StageConfig, epochs: int) -> StageConfig:
    ramps = {name: ramp * epochs / stage.epochs for name, ramp in stage.ramp_epochs.items()}
    return replace(stage, epochs=epochs, ramp_epochs=ramps)


def _small_stage(stage: StageConfig, bench: Bench, entry: Entry, train: Split) -> StageConfig:
    losses = stage.losses
    if entry.ours and entry.method != "rpf":
        losses = {name: weight for name, weight in losses.items() if name != "region_patch"}
        losses |= _OWN_LOSSES.get(entry.method, {})
    batch = bench.batch // stage.copies // (3 if stage.sampler == "triplets" else 1)
    common = replace(
        stage,
        losses=losses,
        size=None,
        batch=batch,
        triplets=len(train) // 3,
        images_of_class=_images_of_class(stage, batch, train),
        batch_norm=bench.batch_norm,
        flip=bench.flip,
        crop_scale=bench.crop_scale,
    )
    if entry.ours:
        return common
    return replace(
        common,
        rates=_small_rates(stage, bench),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=50),
        weight_decay=0.01,
        decoupled_decay=True,
    )


def _images_of_class(stage: StageConfig, batch: int, train: Split) -> int:
    """Return the recipe's, or the fewest more with which every attribute has classes enough for a batch."""
    if stage.sampler != "classes":
        return stage.images_of_class
    fewest = min(int((train.labels.counts(a) >= 2).sum()) for a in range(len(train.labels.values)))
    fitting = (n for n in range(stage.images_of_class, batch + 1) if batch % n == 0 and batch // n <= fewest)
    return next(fitting, stage.images_of_class)


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
