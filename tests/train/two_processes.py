"""One of two gloo processes that train together; test_runs_of_training.py starts them."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from small_training import BOTH, STAGE, TRUNK

import placket
from placket.data import Dataset
from placket.nn import Model
from placket.text import Tokenizer
from placket.train import Trainer

# Statistics of a rank's half would differ from those of the whole, and dropout is drawn on each rank.
SHARED = dataclasses.replace(BOTH, batch_norm="frozen")
STAGES = {
    "triplets": SHARED,
    "images": dataclasses.replace(
        SHARED,
        sampler="images",
        batch=8,
        views_per_image=2,
        losses={"region_contrast": 1.0, "patch_classify": 0.5, "region_patch": 0.1},
    ),
    "region": dataclasses.replace(STAGE, batch_norm="frozen"),
    "centres": dataclasses.replace(
        STAGE,
        batch_norm="frozen",
        copies=2,
        losses={
            "triplet_region": 1.0,
            "region_prototype": 1.0,
            "region_centre_triplet": 1.0,
            "region_pseudo_label": 1.0,
            "region_consistency": 1.0,
        },
    ),
    "m3net": dataclasses.replace(
        STAGE,
        batch_norm="frozen",
        sampler="classes",
        batch=8,
        losses={
            "class_recognition": 1.0,
            "class_cross_entropy": 1.0,
            "class_instance_triplet": 1.0,
            "class_centre_triplet": 1.0,
            "region_contrast": 1.0,
        },
    ),
    # Every loss takes the joined batch: each region is compared with the other rank's words too.
    "raf_clip": dataclasses.replace(
        STAGE,
        branches=("image", "text"),
        batch_norm="frozen",
        sampler="images",
        batch=8,
        losses={"category_text": 1.0, "attribute_text": 1.0, "attribute_absent": 1.0},
    ),
    # The hardest partners of a rank's rows may be the other's. Its deep trunk has weights whose gradient is
    # little more than rounding: a fifth of the others' rate keeps their steps below the test's tolerance.
    "mmfl": dataclasses.replace(
        STAGE,
        branches=("product",),
        rates={"": 2e-4},
        batch_norm="frozen",
        sampler="products",
        batch=8,
        losses={
            "identity": 1.0,
            "triplet_hard": 1.0,
            "triplet_cross_domain": 1.0,
            "positive_distance": 0.1,
            "centre": 0.1,
            "attribute": 0.5,
        },
    ),
}


def data_for(data: Dataset, stage: str) -> Dataset:
    """Return the data set of a stage: that of products says that every four images show one."""
    if stage != "mmfl":
        return data
    split = data.split("train")
    numbers = np.arange(len(split))
    shown = Dataset(data.root, data.schema, data.splits)
    shown._loaded["train"] = dataclasses.replace(split, identities=numbers // 4, domains=numbers % 2)
    return shown


def make(data: Dataset, stage: str) -> Model:
    if stage == "mmfl":
        return placket.create_model(
            "mmfl",
            schema=data.schema,
            trunk="resnet18,width=0.25,stage=4",
            embedding_dim=16,
            preprocess={"size": 48},
            generator=torch.Generator().manual_seed(0),
        )
    if stage == "raf_clip":
        tokenizer = Tokenizer.from_bytes(b"a merge a line\nt h</w>\n", clean="basic")
        return placket.create_model(
            "raf_clip",
            schema=data.schema,
            trunk=f"{TRUNK},embedding_dim=16",
            text=f"clip_text,width=16,depth=1,heads=2,embedding_dim=16,vocabulary={len(tokenizer)}",
            vocabulary=tokenizer,
            category="place",
            preprocess={"size": 48},
            generator=torch.Generator().manual_seed(0),
        )
    options = {"m3net": {"name": "m3net"}, "centres": {"name": "modc", "head": "rpf_region"}}
    if stage in options:
        return placket.create_model(
            schema=data.schema,
            trunk=TRUNK,
            attribute_dim=16,
            preprocess={"size": 48},
            generator=torch.Generator().manual_seed(0),
            **options[stage],
        )
    return placket.create_model(
        "rpf",
        schema=data.schema,
        trunk=TRUNK,
        patch=TRUNK,
        attribute_dim=16,
        dropout=0.0,
        patch_size=32,
        preprocess={"size": 48},
        generator=torch.Generator().manual_seed(0),
    )


def main(root: str, out: str, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=2)
    data = placket.data.open(root)
    for name, stage in STAGES.items():
        model = make(data, name)
        Trainer(model, data_for(data, name), stage, process_group=dist.group.WORLD).run(3)
        safetensors.torch.save_file(model.state_dict(), Path(out) / f"{name}{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
