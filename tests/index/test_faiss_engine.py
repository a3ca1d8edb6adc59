"""What is of FAISS alone: indexes beside the segments, factories, conditions inside FAISS, damage."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from placket import AttributeIndex

faiss = pytest.importorskip("faiss", reason="package 'faiss' is not installed")
from placket.index import faiss_engine  # noqa: E402
from placket.index.threshold import weighted_sum  # noqa: E402

ITEMS, DIMS = 1500, {"neckline": 16, "sleeve": 24}
Array = NDArray[np.float32]


@pytest.fixture(autouse=True)
def _small_indexes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_engine, "FEWEST", 300)


@pytest.fixture(scope="module")
def vectors() -> dict[str, Array]:
    """Clustered rows, so that approximate indexes have something to find."""
    rng = np.random.default_rng(3)
    found = {}
    for name, dim in DIMS.items():
        centres = rng.normal(size=(40, dim))
        rows = centres[rng.integers(0, 40, ITEMS)] + 0.4 * rng.normal(size=(ITEMS, dim))
        found[name] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return found


METADATA = [{"price": i % 100} for i in range(ITEMS)]
WEIGHTS = {"neckline": 1.0, "sleeve": -0.5}


def _made(folder: Path, vectors: dict[str, Array], **options: Any) -> AttributeIndex:
    index = AttributeIndex.create(folder, DIMS, **{"engine": "faiss", **options})
    index.add(range(ITEMS), vectors, METADATA)
    index.save()
    return index


def _best(
    vectors: dict[str, Array], queries: dict[str, Array], weights: dict[str, float], keep: NDArray[np.bool_]
) -> NDArray[np.int64]:
    parts = np.stack([vectors[name].astype(float) @ queries[name].astype(float) for name in queries], 1)
    scores = weighted_sum(parts.astype(np.float32), [weights[name] for name in queries])
    rows = np.flatnonzero(keep)
    return rows[np.argsort(-scores[rows], kind="stable")][:10]


def _recall(
    index: AttributeIndex, vectors: dict[str, Array], keep: NDArray[np.bool_], where: str | None
) -> float:
    shared = 0
    for row in range(0, 200, 10):
        queries = {name: each[row] for name, each in vectors.items()}
        expected = _best(vectors, queries, WEIGHTS, keep)
        hits = index.search(queries, weights=WEIGHTS, k=10, where=where)
        assert all(keep[int(hit.id)] for hit in hits)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        for hit in hits:
            for name, part in hit.scores.items():
                exact = float(vectors[name][int(hit.id)].astype(float) @ queries[name].astype(float))
                assert part == pytest.approx(exact, abs=2e-7)
        shared += len({hit.id for hit in hits} & set(expected.tolist()))
    return shared / 200


FACTORIES = [
    ("Flat", "", 1.0),
    ("IVF16,Flat", "nprobe=16", 1.0),
    ("HNSW16,Flat", "efSearch=400", 0.98),
    ("IVF16,SQ8", "nprobe=16", 0.98),
    ("PCA12,IVF16,Flat", "nprobe=16", 0.9),
    ("IVF16,PQ8x4fs,RFlat", "nprobe=16,k_factor_rf=4", 0.9),
]


@pytest.mark.parametrize(("factory", "search", "recall"), FACTORIES)
def test_factories_find_the_best_with_conditions_and_removals(
    tmp_path: Path, vectors: dict[str, Array], factory: str, search: str, recall: float
) -> None:
    index = _made(tmp_path, vectors, factory=factory, search=search, candidates=400)
    every = np.ones(ITEMS, dtype=bool)
    assert _recall(index, vectors, every, None) >= recall
    wide = np.arange(ITEMS) % 100 < 60
    assert _recall(index, vectors, wide, "price < 60") >= recall
    index.remove(range(0, ITEMS, 3))
    wide[::3] = False
    assert _recall(index, vectors, wide, "price < 60") >= recall
    # So few are left that they are scanned: nothing is missed.
    narrow = np.arange(ITEMS) % 100 == 7
    narrow[::3] = False
    assert _recall(index, vectors, narrow, "price = 7") == 1.0
    index.close()
    with AttributeIndex.load(tmp_path, read_only=True) as again:
        every[:] = True
        assert _recall(again, vectors, every, None) >= recall


def test_a_coarse_index_misses_neighbours(tmp_path: Path, vectors: dict[str, Array]) -> None:
    # Else the test above would not show that FAISS is asked.
    index = _made(tmp_path, vectors, factory="IVF16,Flat", search="nprobe=1", candidates=20)
    assert _recall(index, vectors, np.ones(ITEMS, dtype=bool), None) < 0.9


def test_an_index_that_cannot_filter_says_so(tmp_path: Path, vectors: dict[str, Array]) -> None:
    with _made(tmp_path, vectors, factory="PQ4x4", candidates=400) as index:
        queries = {name: each[0] for name, each in vectors.items()}
        assert len(index.search(queries)) == 10
        with pytest.raises(
            ValueError, match=r"index that FAISS searches with .* conditions, got '!\(params\)' failed"
        ):
            index.search(queries, where="price < 60")


def test_factory_and_search_by_space(tmp_path: Path, vectors: dict[str, Array]) -> None:
    options = {"factory": {"sleeve": "IVF8,Flat"}, "search": {"sleeve": "nprobe=8"}}
    index = _made(tmp_path, vectors, **options)
    assert index.info()["factory"] == options["factory"]
    files = [file.name.split("-")[0] for file in tmp_path.glob("segments/*/*")]
    assert files.count("index") == 1
    assert _recall(index, vectors, np.ones(ITEMS, dtype=bool), None) == 1.0


def test_hits_are_those_of_the_flat_engine_in_every_bit(tmp_path: Path, vectors: dict[str, Array]) -> None:
    faiss_hits, flat_hits = (
        index.search({name: rows[:40] for name, rows in vectors.items()}, WEIGHTS, k=30, where="price < 70")
        for index in (
            _made(tmp_path / "faiss", vectors),
            _made(tmp_path / "flat", vectors, engine="flat"),
        )
    )
    assert faiss_hits == flat_hits


def test_flat_is_exact_over_many_equal_items(tmp_path: Path) -> None:
    rows = np.repeat(np.eye(4, dtype=np.float32), 700, axis=0)
    with AttributeIndex.create(tmp_path, {"a": 4, "b": 4}, engine="faiss") as index:
        index.add(range(2800), {"a": rows, "b": rows[::-1]})
        hits = index.search({"a": rows[0], "b": rows[0]}, k=1000)
        assert [hit.id for hit in hits] == [*range(700), *range(2100, 2400)]
        hits = index.search({"a": rows[0]}, weights={"a": -1.0}, k=5)
        assert [hit.id for hit in hits] == [700, 701, 702, 703, 704]


def test_added_spaces_get_an_index_too(tmp_path: Path, vectors: dict[str, Array]) -> None:
    index = AttributeIndex.create(tmp_path, {"sleeve": DIMS["sleeve"]}, engine="faiss", factory="IVF8,SQ8")
    index.add(range(ITEMS), {"sleeve": vectors["sleeve"]}, METADATA)
    index.save()
    index.compact()
    assert len(list(tmp_path.glob("segments/*/index-*"))) == 1
    index.add_space("neckline", DIMS["neckline"], range(ITEMS), vectors["neckline"])
    index.save()
    assert len(list(tmp_path.glob("segments/*/index-*"))) == 2
    index.compact()
    assert len(list(tmp_path.glob("segments/*/index-*"))) == 2
    assert index.verify() == []


def test_damaged_indexes_are_found(tmp_path: Path, vectors: dict[str, Array]) -> None:
    _made(tmp_path, vectors, factory="IVF8,SQ8").close()
    file = next(tmp_path.glob("segments/*/index-*"))
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with AttributeIndex.load(tmp_path) as index:
        assert any(str(file) in problem for problem in index.verify())
        with pytest.raises(ValueError, match="must be as saved, got other bytes"):
            index.search({name: each[0] for name, each in vectors.items()})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factory": "Foo"}, "option factory must be one of FAISS's for 16 dimensions, got 'Foo'"),
        ({"factory": "PQ5"}, "option factory must be one of FAISS's for 16 dimensions, got 'PQ5'"),
        ({"search": "nprobe=3"}, "option search must be parameters of the index .*got 'nprobe=3'"),
        ({"candidates": 0}, "option candidates must be at least 1, got 0"),
        ({"shards": 3}, r"options of engine 'faiss' must be of \['factory', .*got 'shards'"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttributeIndex.create(tmp_path, DIMS, engine="faiss", **options)
    assert not (tmp_path / "manifest.json").exists()


_BESIDE_TORCH_UTILS = """
import sys
import faiss.contrib.torch_utils
import numpy as np
from placket import AttributeIndex
from placket.index import faiss_engine

faiss_engine.FEWEST = 300
rows = np.eye(400, 16, dtype=np.float32) + np.linspace(0, 1, 400, dtype=np.float32)[:, None]
with AttributeIndex.create(sys.argv[1], {"a": 16}, engine="faiss") as index:
    index.add(list(range(400)), {"a": rows}, [{"price": i} for i in range(400)])
    index.save()
    hits = index.search({"a": rows[3]}, k=2, where="price >= 2")
    assert hits[0].id == 3, hits
"""


def test_searches_where_faiss_was_changed_for_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _BESIDE_TORCH_UTILS, str(tmp_path / "index")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
