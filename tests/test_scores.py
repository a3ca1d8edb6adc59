"""The bench on a few garments: what its table holds, what it keeps, and what its figures are."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import placket
from placket import scores
from placket.cli import main
from placket.models import METHODS
from placket.protocols import Result
from placket.scores import rankings, training
from placket.scores.settings import SETTINGS, Bench, Setting, small_config

SMALL = replace(
    SETTINGS["minutes"].benches[0],
    items=60,
    trunk="resnet18,width=0.125,stage=2",
    size=32,
    patch_size=32,
    feature_size=32,
    attribute_dim=16,
    batch=12,
    flip=0.5,
    seconds=0.1,  # one epoch of every stage
)
CHOSEN = ("rpf", "rpf-ours")


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench") / "scores"


@pytest.fixture(scope="module")
def found(out: Path, told: list[str]) -> scores.Scores:
    torch.set_num_threads(1)
    return scores.run(out, Setting((SMALL,), seeds=2), methods=CHOSEN, say=told.append)


def test_the_table_is_complete(found: scores.Scores, out: Path, told: list[str]) -> None:
    (table,) = found.data
    titles = [row.title for row in table.rows]
    assert sorted(titles[:2]) == ["RPF", "RPF, our recipe"]
    assert titles[2:] == [
        "16 x 16 pixels",
        "pooled frozen features",
        "ridge, 2 x 2 frozen map",
        "plain classifier",
    ]
    three = ["embedding", "agreement", "both"]
    every = [*three, *(name + training.MIRRORED for name in three)]
    for row in table.rows[:2]:
        assert list(row.rankings) == [*every, "region weight"]
        assert list(row.valid) == every
        assert row.seconds > 0
    assert list(table.rows[-1].rankings) == every
    text = found.tables()
    for title in (*titles, "chance", "neckline", "p by random changes of sign"):
        assert title in text
    assert sorted(told) == [
        f"garments: {name}-{seed}" for name in ("rivals", *CHOSEN) for seed in range(2)
    ] or len(told) == 6
    for name in ("scores.json", "scores.md", "scores.html", "garments.svg"):
        assert (out / name).stat().st_size > 0
    ElementTree.parse(out / "garments.svg")
