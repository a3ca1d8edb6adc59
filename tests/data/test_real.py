"""The sets of ../shared/data, against figures counted from their files and given in its README.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import placket.data
from placket import _C
from placket.data import Augment, Loader, Preprocess

pytestmark = pytest.mark.data


def test_deepfashion_fine6(photographs: Path) -> None:
    data = placket.data.open(photographs / "deepfashion-fine6")
    assert data.schema.names == ("texture", "sleeve", "length", "neckline", "fabric", "fit")
    assert data.schema.value_counts == (7, 3, 3, 4, 6, 3)
    assert {name: len(data.split(name)) for name in data.splits} == {
        "train": 4500,
        "valid": 500,
        "test": 1000,
    }
    test = data.split("test")
    assert np.bincount(test.queries[:, 1]).tolist() == [200] * 6
    assert np.bincount(test.candidates[:, 1]).tolist() == [800] * 6
    assert test.boxes is not None

    for path in test.paths[:60]:
        with Image.open(path) as image:
            np.testing.assert_array_equal(_C.decode_file(path), np.asarray(image.convert("RGB")))

    loader = Loader(
        data.split("train"),
        sampler="triplets",
        batch=16,
        preprocess=Preprocess(size=64, box_margin=0.1),
        augment=Augment(flip=0.5),
    )
    assert len(loader) == 6250
    batch = next(iter(loader))
    assert batch.images.shape == (48, 3, 64, 64)
    assert batch.labels.min() >= 0


@pytest.mark.parametrize(
    ("name", "images", "queries"),
    [
        (
            "FashionAI",
            {"train": 144335, "valid": 18000, "test": 18000},
            [422, 623, 535, 422, 341, 289, 703, 265],
        ),
        ("DARN", {"valid": 21461, "test": 21461}, [476, 448, 491, 448, 463, 533, 509, 483, 442]),
        ("DeepFashion", {"valid": 27625, "test": 27625}, [1008, 1483, 1097, 1022, 915]),
    ],
)
def test_published_lists(photographs: Path, name: str, images: dict[str, int], queries: list[int]) -> None:
    data = placket.data.open(photographs / "asfr-splits" / name)
    assert {split: len(data.split(split)) for split in data.splits} == images
    assert np.bincount(data.split("test").queries[:, 1]).tolist() == queries


def test_deepfashions_labels_agree_with_its_lists(photographs: Path) -> None:
    """Every image of the lists carries the label that they give it, once the label file is renumbered."""
    test = placket.data.open(photographs / "asfr-splits" / "DeepFashion").split("test")
    assert [int((test.labels.attribute == a).sum()) for a in range(5)] == [19037, 26464, 18387, 17272, 14731]
    for image, a, v in np.concatenate([test.queries, test.candidates]).tolist():
        assert (a, v) in test.labels[image]
