from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import placket.data
from placket.data import BatchSampler, Loader, Preprocess, Split


@pytest.fixture
def train(layout: Path) -> Split:
    return placket.data.open(layout).split("train")


class Names(torch.utils.data.Dataset[Any]):
    """Another's data set: gives what it is asked for."""

    def __getitem__(self, key: Any) -> Any:
        return key


SETTINGS: list[dict[str, Any]] = [
    {"sampler": "images", "batch": 3, "drop_last": False},
    {"sampler": "triplets", "batch": 2, "triplets": 8},
    {"sampler": "classes", "batch": 4, "images_of_class": 2, "single_views": True, "steps": 3},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=[s["sampler"] for s in SETTINGS])
def test_batches_are_the_loaders(train: Split, settings: dict[str, Any]) -> None:
    sampler = BatchSampler(train, seed=5, **settings)
    loader = Loader(train, seed=5, preprocess=Preprocess(size=16), **settings)
    given = torch.utils.data.DataLoader(Names(), batch_sampler=sampler, collate_fn=list)
    assert len(given) == len(sampler) == len(loader)
    for _ in range(2):  # epochs
        assert list(given) == [batch.plan.images.tolist() for batch in loader]
    sampler.set_epoch(0)
    loader.set_epoch(0)
    assert next(iter(sampler)) == next(iter(loader)).plan.images.tolist()


@pytest.mark.parametrize("settings", SETTINGS[1:], ids=[s["sampler"] for s in SETTINGS[1:]])
def test_roles(train: Split, settings: dict[str, Any]) -> None:
    sampler = BatchSampler(train, roles=True, **settings)
    given = torch.utils.data.DataLoader(Names(), batch_sampler=sampler, collate_fn=list, num_workers=1)
    for batch in given:
        for image, attribute, value in batch:
            assert (attribute, value) in train.labels[image]
    sampler.set_epoch(0)
    assert [[key[0] for key in batch] for batch in sampler] == list(BatchSampler(train, **settings))


def test_ranks_share_a_batch(train: Split) -> None:
    settings: dict[str, Any] = {"sampler": "images", "batch": 4}
    whole = list(BatchSampler(train, **settings))
    parts = [list(BatchSampler(train, rank=rank, world_size=2, **settings)) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(batch) for batch in whole]


def test_errors(train: Split) -> None:
    with pytest.raises(ValueError, match="BatchSampler: roles must be False with sampler 'images', got True"):
        BatchSampler(train, batch=2, sampler="images", roles=True)
    with pytest.raises(
        ValueError, match="BatchSampler: batch must be a multiple of images_of_class 4, got 6"
    ):
        BatchSampler(train, batch=6)
    with pytest.raises(ValueError, match=r"BatchSampler: sampler must be 'images', .* got 'image'"):
        BatchSampler(train, batch=6, sampler="image")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="BatchSampler: epoch must not be negative, got -1"):
        BatchSampler(train, batch=2, sampler="images").set_epoch(-1)
