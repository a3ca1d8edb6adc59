"""Exact search: the same hits in every bit, however the rows are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placket.index import AttributeIndex, Hit

SPACES = {"neckline": 48, "sleeve": 16}
COUNT = 3000
WEIGHTS = {"neckline": 0.7, "sleeve": -0.4}


def rows(seed: int, count: int) -> dict[str, np.ndarray]:
    """Rows around a few centres, as embeddings are; some are equal."""
    random = np.random.default_rng(seed)
    made = {}
    for name, dim in SPACES.items():
        centres = random.normal(size=(20, dim))
        made[name] = centres[random.integers(0, 20, count)] + 0.3 * random.normal(size=(count, dim))
        same = min(50, count // 2)
        made[name][count // 2 : count // 2 + same] = made[name][:same]
    return made


def index_of(folder: Path, blocks: int, save: bool = True, **options: Any) -> AttributeIndex:
    index = AttributeIndex.create(folder, SPACES, **options)
    every = rows(1, COUNT)
    for part in np.array_split(np.arange(COUNT), blocks):
        index.add(
            part.tolist(),
            {name: vectors[part] for name, vectors in every.items()},
            [{"price": int(i) % 100} for i in part],
        )
        len(index.search({"sleeve": np.ones(16)}, k=1))  # each block becomes a segment of its own
        if save:
            index.save()
    index.remove(range(0, COUNT, 7))
    return index


def ask(index: AttributeIndex) -> list[list[Hit]]:
    queries = rows(2, 12)
    return [
        *index.search(queries, WEIGHTS, k=25),
        *index.search({"sleeve": queries["sleeve"]}, k=25),
        *index.search(queries, k=10, where="price < 3"),
        *index.search(queries, WEIGHTS, k=5000, where="price = 5 or price = 6"),
    ]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[list[Hit]]:
    with index_of(tmp_path_factory.mktemp("one") / "a", 1) as index:
        return ask(index)


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(("blocks", "save"), [(1, True), (6, True), (6, False)])
def test_hits_do_not_depend_on_storage_and_segments(
    tmp_path: Path, expected: list[list[Hit]], storage: str, blocks: int, save: bool
) -> None:
    with index_of(tmp_path / "a", blocks, save, storage=storage) as index:
        assert ask(index) == expected
        index.compact()
        assert index.info()["segments"] == 1
        assert ask(index) == expected
        index.close()
        with AttributeIndex.load(tmp_path / "a", read_only=True) as reader:
            assert reader.info()["options"] == {"storage": storage}
            assert ask(reader) == expected


def test_hits_are_those_of_numpy(expected: list[list[Hit]]) -> None:
    every, queries = rows(1, COUNT), rows(2, 12)
    kept = np.array([i for i in range(COUNT) if i % 7])
    score = np.zeros((12, len(kept)))
    for name, weight in WEIGHTS.items():
        units = every[name][kept] / np.linalg.norm(every[name][kept], axis=1, keepdims=True)
        score += weight * (queries[name] / np.linalg.norm(queries[name], axis=1, keepdims=True)) @ units.T
    for hits, scores in zip(expected[:12], score, strict=True):
        best = kept[np.argsort(-np.round(scores, 12), kind="stable")[:25]]
        assert [hit.id for hit in hits] == best.tolist()
        assert [hit.score for hit in hits] == pytest.approx(np.sort(scores)[::-1][:25].tolist(), abs=1e-6)
        for hit in hits:
            parts = [np.float32(WEIGHTS[name]) * np.float32(part) for name, part in hit.scores.items()]
            assert hit.score == float(parts[0] + parts[1])


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_compressed_rows_are_checked_too(tmp_path: Path, storage: str) -> None:
    with index_of(tmp_path / "a", 1, storage=storage) as index:
        index.save()
    file = next((tmp_path / "a" / "segments").glob("*/vectors-1-*"))
    content = bytearray(file.read_bytes())
    content[100] ^= 1  # the codes are the first array
    file.write_bytes(content)
    with AttributeIndex.load(tmp_path / "a", read_only=True) as reader:
        assert reader.search({"neckline": np.ones(48)})
        with pytest.raises(ValueError, match=rf"{file.name} must be as saved, got other bytes between 0 and"):
            reader.search({"sleeve": np.ones(16)})
