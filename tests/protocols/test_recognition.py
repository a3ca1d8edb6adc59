from __future__ import annotations

import numpy as np
import plain_rankings as plain
import pytest
import torch

from placket.data.columns import Labels
from placket.protocols import best_thresholds, recognition, recognition_targets
from placket.schema import AttributeSchema

SCHEMA = AttributeSchema.of({"neckline": list("abcdefg"), "hem": list("abc"), "fit": ["x", "y"]})


def draw(seed: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    targets = random.integers(-1, 2, size=(images, 12))
    targets[:, 6] = 0  # nobody has it
    targets[:, 10:] = -1  # nothing is known
    return random.integers(5, size=(images, 12)).astype(float), targets


def f1(scores: np.ndarray, has: np.ndarray, threshold: float) -> float:
    found = scores >= threshold
    return 2 * (found & has).sum() / (found.sum() + has.sum())


def test_matches_a_plain_loop():
    (scores, targets), (valid, known) = draw(0, 80), draw(1, 70)
    result = recognition(torch.from_numpy(scores), targets, valid, known, SCHEMA)
    begin = {"neckline": (0, 7), "hem": (7, 10)}
    assert list(result.queries) == list(begin)
    for name, (first, last) in begin.items():
        precisions, average = [], []
        for v in range(first, last):
            if v == 6:
                continue
            rows = known[:, v] >= 0
            best = max(
                sorted(set(valid[rows, v]), reverse=True),
                key=lambda t, rows=rows, v=v: f1(valid[rows, v], known[rows, v] == 1, t),
            )
            assert best_thresholds(valid, known)[v] == best
            rows = targets[:, v] >= 0
            has, found = targets[rows, v] == 1, scores[rows, v] >= best
            precisions.append((has & found).sum() / found.sum() if found.any() else 0.0)
            average.append(plain.average_precision(plain.ranked(scores[rows, v].tolist(), has.tolist())))
        assert result.metrics["mP"].values[name].tolist() == pytest.approx(precisions)
        assert result.metrics["mAP"].values[name].tolist() == pytest.approx(average)
        for k in (1, 3, 5):
            shares = []
            for i in range(80):
                has = targets[i, first:last] == 1
                if has.any():
                    shares.append(
                        sum(plain.ranked(scores[i, first:last].tolist(), has.tolist())[:k]) / has.sum()
                    )
            assert result.metrics[f"top-{k} recall"].values[name].tolist() == pytest.approx(shares)
    assert result.queries == {"neckline": 6, "hem": 3}
    assert result.without_relevant == 3
    every = np.concatenate(list(result.metrics["mP"].values.values()))
    assert result.overall == pytest.approx(100 * every.mean())
    assert result.protocol == "recognition/v1"


def test_threshold_never_sees_the_split():
    scores, targets = np.array([[3.0], [2], [1]]), np.array([[1], [0], [0]])
    schema = AttributeSchema.of({"lace": ["yes"]})
    # On valid two thirds of those from 1 on are right, and no threshold is better.
    result = recognition(scores, targets, scores, np.array([[1], [0], [1]]), schema)
    assert best_thresholds(scores, np.array([[1], [0], [1]])).tolist() == [1.0]
    assert result.overall == pytest.approx(100 / 3)
    assert recognition(scores, targets, scores, targets, schema).overall == 100
    shifted = recognition(scores, targets, scores + 9, targets, schema)
    assert (shifted.overall, shifted.metrics["mAP"].overall) == (0.0, 100.0)


def test_targets_of_labels():
    labels = Labels.of([[(0, 1)], [], [(1, 0), (1, 2), (0, 0)]], (2, 3))
    assert recognition_targets(labels).tolist() == [
        [0, 1, -1, -1, -1],
        [-1] * 5,
        [1, 0, 1, 0, 1],
    ]


def test_errors():
    scores, targets = draw(0, 10)
    with pytest.raises(ValueError, match=r"scores and targets must have shape \[N, 12\], got \[10, 11\] and"):
        recognition(scores[:, 1:], targets, scores, targets, SCHEMA)
    with pytest.raises(ValueError, match="valid_scores must be finite, got nan"):
        recognition(scores, targets, scores * np.nan, targets, SCHEMA)
    with pytest.raises(ValueError, match="valid_targets must be 1, 0 or -1, got 2"):
        recognition(scores, targets, scores, np.full((10, 12), 2), SCHEMA)
    with pytest.raises(ValueError, match="a value must have images on valid and in the split, got none such"):
        recognition(scores, targets, scores, np.zeros((10, 12), int), SCHEMA)
