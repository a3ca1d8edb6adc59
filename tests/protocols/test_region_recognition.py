"""Garment names of regions, scored by recognition/v1."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import placket.data
from placket.data import Split
from placket.protocols import Result, recognition, recognition_targets
from placket.schema import AttributeSchema

NAMES = ["null", "bag", "coat", "dress", "hair", "tie"]
REGIONS = {"train": [[1, 2], [3]], "valid": [[1, 2], [2, 3], [4, 1]], "test": [[1, 3], [1, 5], [2], [4]]}


@pytest.fixture
def splits(tmp_path: Path) -> dict[str, Split]:
    """Photos with a stripe for each of their names."""
    (tmp_path / "labels").mkdir()
    listed = {}
    for split, photos in REGIONS.items():
        for number, names in enumerate(photos):
            label = np.zeros((12, 10), np.uint8)
            for i, name in enumerate(names):
                label[3 * i + 1 : 3 * i + 3] = name
            listed[f"{split}{number}"] = split
            Image.fromarray(label).save(tmp_path / "labels" / f"{split}{number}.png")
    (tmp_path / "label_names.json").write_text(json.dumps(NAMES))
    (tmp_path / "splits.json").write_text(json.dumps(listed))
    data = placket.data.open(tmp_path)
    rows = {name: data.region_split(name) for name in data.splits}
    return {name: split for name, split in rows.items() if split is not None}


def test_figures_by_hand(splits: dict[str, Split]) -> None:
    valid, test = splits["valid"], splits["test"]
    said = [[test.schema[0].values[v] for i in range(5) for _, v in rows.labels[i]] for rows in (valid, test)]
    assert said == [["bag", "coat", "coat", "dress", "bag"], ["bag", "dress", "bag", "tie", "coat"]]
    targets, known = recognition_targets(test.labels), recognition_targets(valid.labels)
    assert targets.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]]
    scores = torch.tensor(
        [[0.9, 0.1, 0.8, 0], [0.6, 0.2, 0.3, 0], [0.5, 0.7, 0.1, 0], [0.1, 0.2, 0.1, 0], [0.4, 0.6, 0.2, 0]]
    )
    on_valid = torch.tensor(
        [[0.8, 0, 0, 0], [0, 0.5, 0, 0], [0.7, 0.6, 0, 0], [0, 0.55, 0.9, 0], [0.5, 0.1, 0, 0]]
    )
    result = recognition(scores, targets, on_valid, known, test.schema)
    # Thresholds: bag 0.5 (2 of 3 right, F1 0.8), coat 0.5 (2 of 3), dress 0.9; tie is not on valid.
    metrics = result.metrics
    assert metrics["mP"].values["category"].tolist() == pytest.approx([2 / 3, 1 / 2, 0])
    ap = {"bag": (1 + 2 / 3) / 2, "coat": 1 / 2, "dress": 1 / 2}
    assert metrics["mAP"].values["category"].tolist() == pytest.approx(list(ap.values()))
    # First: bag, bag, coat, coat, coat.
    assert metrics["top-1 recall"].values["category"].tolist() == [1, 0, 0, 0, 1]
    assert metrics["top-3 recall"].values["category"].tolist() == [1, 1, 1, 0, 1]
    assert (result.queries, result.candidates) == ({"category": 3}, {"category": 5})
    assert result.without_relevant == 1


def test_chance_is_what_blind_scores_reach() -> None:
    rng = np.random.default_rng(0)
    schema = AttributeSchema.of({"category": list("abcdefgh"), "fit": ["x", "y"]})
    n = 60
    targets = np.zeros((n, 10), dtype=int)
    targets[np.arange(n), rng.integers(0, 8, n) * rng.integers(0, 2, n)] = 1
    targets[:, 8] = rng.integers(0, 2, n)
    targets[:, 9] = 1 - targets[:, 8]
    targets[:20, 8:] = -1
    runs: list[Result] = []
    for _ in range(100):
        # A threshold of 0.5, which no image at all reaches once in 2^40 times.
        runs.append(recognition(rng.random((n, 10)), targets, np.full((n, 10), 0.5), targets, schema))
    for metric in ("mP", "mAP", "top-1 recall", "top-3 recall", "top-5 recall"):
        figures = np.array([run.metrics[metric].overall for run in runs])
        chance = runs[0].metrics[metric].floor_overall
        assert chance is not None
        assert abs(figures.mean() - chance) <= 5 * figures.std() / len(runs) ** 0.5 + 1e-9, metric
    assert runs[0].metrics["top-1 recall"].floor == pytest.approx({"category": 12.5, "fit": 50.0})
    assert runs[0].metrics["top-5 recall"].floor == pytest.approx({"category": 62.5, "fit": 100.0})
    assert runs[0].as_dicts("mAP")[-2]["chance"] == pytest.approx(runs[0].metrics["mAP"].floor_overall)
