"""The sets of ../shared/data, against figures counted from their files and given in its README.md."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import placket.data
from placket.data import Augment, Loader, Preprocess

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import check_memory
from check_bits import compare_with_pillow
from photographs import evenly

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


@pytest.mark.parametrize("name", ["deepfashion-fine6", "hm", "co-parsing/photos"])
def test_photographs_equal_pillow_bit_for_bit(
    photographs: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    """30 of each set; tests/bench/check_bits.py takes 3,000."""
    found = [compare_with_pillow(path) for path in evenly(photographs / name, 30)]
    assert sum(difference.unequal for difference in found) == 0
    # Another version of libjpeg-turbo than Pillow's may round otherwise.
    record_property("decoded one grey level off", sum(difference.decoded == 1 for difference in found))
    assert max(difference.decoded for difference in found) <= 1


def test_memory_stays_flat(photographs: Path) -> None:
    """Over 300 batches; by default the script takes 10,000."""
    environment = os.environ | {"PLACKET_DATA": str(photographs)}
    done = subprocess.run(
        [sys.executable, check_memory.__file__, "300"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_hm_opens_as_a_table(photographs: Path, tmp_path: Path) -> None:
    layout = tmp_path / "hm.yaml"
    layout.write_text(
        f"root: {photographs.resolve() / 'hm'}\n"
        "table: articles.csv\n"
        "image: images/{article_id:.3}/{article_id}.jpg\n"
        "attributes: {colour: colour_group_name, pattern: graphical_appearance_name}\n"
        "split: split\n"
        "identity: product_code\n"
        "caption: detail_desc\n"
        "least_images: 20\n"
    )
    data = placket.data.open(layout)
    assert {name: len(data.split(name)) for name in data.splits} == {
        "train": 6646,
        "valid": 896,
        "test": 1957,
    }
    train, test = data.split("train"), data.split("test")
    assert min(train.labels.counts(0).min(), train.labels.counts(1).min()) >= 20
    asked = {name: len(data.split(name).query_images) for name in ("valid", "test")}
    assert asked == {"valid": 552, "test": 1279}
    # Products do not cross the splits.
    assert train.identities is not None
    assert test.identities is not None
    assert not set(train.identities.tolist()) & set(test.identities.tolist())
    captions = data.captions("train")
    assert captions is not None
    assert captions[0].startswith("Semi shiny nylon stockings")
    loader = Loader(train, sampler="classes", attribute="colour", batch=32, preprocess=Preprocess(size=64))
    batch = next(iter(loader))
    assert batch.values.view(8, 4).unique(dim=1).shape == (8, 1)


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
