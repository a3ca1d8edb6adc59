"""Flip averaging: against the average by hand, and on a mirrored copy of the images."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

import placket
from placket.data import Dataset
from placket.nn import Rpf
from placket.protocols import asfr_multilabel, embed_from, split_joint

sys.path.append(str(Path(__file__).parents[1] / "train"))

from small_training import SIZE, TRUNK, draw_all


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn images, and beside them "mirrored", the same mirrored; lossless, so that no other bit differs."""
    folder = tmp_path_factory.mktemp("flips")
    for name in ("plain", "mirrored"):
        root = folder / name
        root.mkdir()
        draw_all(root)
        for file in (root / "img").iterdir():
            with Image.open(file) as opened:
                (ImageOps.mirror(opened) if name == "mirrored" else opened).save(file.with_suffix(".png"))
        for split in ("train", "valid"):
            names = root / f"filenames_{split}.txt"
            names.write_text(names.read_text().replace(".jpg", ".png"))
    return folder


@pytest.fixture(scope="module")
def data(folder: Path) -> Dataset:
    return placket.data.open(folder / "plain")


@pytest.fixture(scope="module")
def mirrored(folder: Path) -> Dataset:
    return placket.data.open(folder / "mirrored")


@pytest.fixture(scope="module", params=[None, TRUNK], ids=["region", "both"])
def model(data: Dataset, request: pytest.FixtureRequest) -> Rpf:
    torch.manual_seed(0)
    return placket.create_model(
        "rpf",
        schema=data.schema,
        trunk=TRUNK,
        patch=request.param,
        attribute_dim=16,
        patch_size=32,
        preprocess={"size": SIZE},
    )


def test_average_by_hand(model: Rpf, data: Dataset, mirrored: Dataset) -> None:
    found = placket.embed_split(model, data.split("valid"), flip=True)
    plain, other = (placket.embed_split(model, d.split("valid")) for d in (data, mirrored))
    assert (plain - other).abs().max() > 1e-3  # the mirror image is another image
    if model.config.patch_trunk:
        pairs = zip(split_joint(plain), split_joint(other), split_joint(found), strict=True)
        region, patch = found.chunk(2, dim=2)
        share = model.config.region_weight
        torch.testing.assert_close(region.norm(dim=2) ** 2, torch.full((18, 2), share), rtol=0, atol=1e-5)
        torch.testing.assert_close(patch.norm(dim=2) ** 2, torch.full((18, 2), 1 - share), rtol=0, atol=1e-5)
    else:
        pairs = [(plain, other, found)]
    for one, two, joined in pairs:
        torch.testing.assert_close(joined, F.normalize((one + two) / 2, dim=2), rtol=0, atol=1e-5)


def test_a_mirrored_copy_gives_the_same(model: Rpf, data: Dataset, mirrored: Dataset) -> None:
    one, two = (placket.embed_split(model, d.split("valid"), flip=True) for d in (data, mirrored))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    first, second = (placket.evaluate(model, d, "valid", flip=True) for d in (data, mirrored))
    assert first.overall == pytest.approx(second.overall, abs=1e-6)
    assert first.lists == second.lists


def test_other_protocols_rank_by_the_average_too(model: Rpf, data: Dataset) -> None:
    result = placket.evaluate(model, data, "valid", "asfr-multilabel/v1", flip=True)
    part = data.split("valid")
    rows = placket.embed_split(model, part, flip=True)
    labels = [(i, a, v) for i in range(len(part)) for a, v in part.labels[i]]
    by_hand = asfr_multilabel(labels, embed_from(rows), data.schema)
    assert result.overall == pytest.approx(by_hand.overall, abs=1e-9)
