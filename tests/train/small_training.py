"""Drawn photographs and small models, so that a training takes seconds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from PIL import Image

from placket.config import DataConfig, ModelConfig, ScheduleConfig, StageConfig, TrainConfig, TrainerConfig

COLOURS = ("red", "green", "blue")
PLACES = ("left", "right")
SIZE = 48
TRUNK = "resnet18,width=0.125"


def draw(root: Path, split: str, count: int, seed: int) -> None:
    """Draw a coloured bar above (attribute 0: its colour) and a white one below (attribute 1: its side)."""
    random = np.random.default_rng(seed)
    names, labels, lists = [], [], {"query": [], "candidate": []}
    (root / "img").mkdir(exist_ok=True)
    for i in range(count):
        colour, place = i % 3, (i // 3) % 2
        pixels = random.integers(0, 80, (56, 48, 3), dtype=np.uint8)
        pixels[6:20, 8:40, colour] = 255
        pixels[34:50, slice(6, 16) if place == 0 else slice(32, 42)] = 250
        name = f"img/{split}{i:03d}.jpg"
        Image.fromarray(pixels).save(root / name, quality=92)
        names.append(name)
        labels.append(f"{i} 0 {colour} 1 {place}")
        rows = lists["query" if i < count // 3 else "candidate"]
        rows += [f"{i} 0 {colour}", f"{i} 1 {place}"]
    for stem, lines in (("filenames", names), ("label", labels), *lists.items()):
        (root / f"{stem}_{split}.txt").write_text("\n".join(lines) + "\n")


def draw_all(root: Path) -> None:
    attributes = {"colour": COLOURS, "place": PLACES}
    counts = {name: len(values) for name, values in attributes.items()}
    values = {name: list(names) for name, names in attributes.items()}
    entry = {"ATTRIBUTES": list(attributes), "ATTRIBUTES_NUM": counts, "VALUES": values}

    (root / "meta.json").write_text(json.dumps({root.name: entry}))
    draw(root, "train", 24, seed=1)
    draw(root, "valid", 18, seed=2)


STAGE = StageConfig(
    epochs=2,
    batch=4,
    triplets=16,
    rates={"": 1e-3},
    schedule=ScheduleConfig(factor=0.5, every=1),
    flip=0.5,
)
BOTH = dataclasses.replace(
    STAGE,
    name="patch",
    branches=("region", "patch"),
    losses={"triplet_region": 1.0, "triplet_patch": 0.1, "region_patch": 0.04},
    rates={"": 1e-4, "patch.": 1e-3},
)


def small_config(root: Path) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(trunk=TRUNK, patch=TRUNK, attribute_dim=16, patch_size=32),
        data=DataConfig(root=str(root), size=SIZE),
        stages=(STAGE, BOTH),
        trainer=TrainerConfig(report_every=2, checkpoint_every=3, tensorboard=False),
    )
