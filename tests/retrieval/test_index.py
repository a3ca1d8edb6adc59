from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from placket.index import ENGINES, AttributeIndex, attribute_index

SPACES = {"neckline": 5, "sleeve length": 3}


def filled(folder: Path, count: int = 40) -> AttributeIndex:
    random = np.random.default_rng(2)
    index = AttributeIndex.create(folder, SPACES)
    vectors = {name: random.normal(size=(count, dim)).astype(np.float32) * 7 for name, dim in SPACES.items()}
    index.add([f"g{i}" for i in range(count)], vectors, [{"price": i} for i in range(count)])
    return index


def cosines(index: AttributeIndex, name: str, query: np.ndarray) -> np.ndarray:
    vectors = index._vectors(name).astype(np.float64)
    return vectors @ query / (np.linalg.norm(vectors, axis=1) * np.linalg.norm(query))


def test_search_by_hand(tmp_path: Path):
    index = AttributeIndex.create(tmp_path / "a", {"neckline": 2})
    index.add([7, "b", "c"], {"neckline": [[3, 4], [0, 2], [30, 40]]}, [{"name": "x"}, {}, {"name": "é"}])
    hits = index.search({"neckline": [0, 1]}, k=9)
    assert [(h.id, h.metadata) for h in hits] == [("b", {}), (7, {"name": "x"}), ("c", {"name": "é"})]
    assert [h.score for h in hits] == pytest.approx([1.0, 0.8, 0.8])
    assert hits[1].scores == pytest.approx({"neckline": 0.8})
    assert [h.id for h in index.search({"neckline": [0, 1]}, {"neckline": -1.0}, k=2)] == [7, "c"]


@pytest.mark.parametrize("weights", [None, {"neckline": 0.5}, {"neckline": 2.0, "sleeve length": -1.0}])
def test_search_is_the_exact_weighted_sum(tmp_path: Path, weights):
    index = filled(tmp_path / "a")
    queries = {"neckline": torch.randn(5), "sleeve length": torch.randn(3)}
    parts = {name: cosines(index, name, q.double().numpy()) for name, q in queries.items()}
    expected = sum((weights or {}).get(name, 1.0) * part for name, part in parts.items())
    hits = index.search(queries, weights, k=12)
    order = np.argsort(-expected, kind="stable")[:12]
    assert [h.id for h in hits] == [f"g{i}" for i in order]
    assert [h.score for h in hits] == pytest.approx(expected[order].tolist(), abs=1e-5)
    for name in queries:
        assert [h.scores[name] for h in hits] == pytest.approx(parts[name][order].tolist(), abs=1e-6)


def test_ties_are_in_the_order_of_addition(tmp_path: Path):
    index = AttributeIndex.create(tmp_path / "a", {"s": 2})
    index.add(range(20), {"s": [[1, 1], [1, 0]] * 10})
    assert [h.id for h in index.search({"s": [1, 0]}, k=12)] == [*range(1, 20, 2), 0, 2]


def test_saved_and_loaded_answers_alike(tmp_path: Path):
    index = filled(tmp_path / "a")
    index.save()
    loaded = AttributeIndex.load(tmp_path / "a")
    assert isinstance(loaded._vectors("neckline"), np.memmap)
    query = {"neckline": np.ones(5)}
    assert loaded.search(query) == index.search(query)
    assert loaded.verify() == []
    assert loaded.info() == index.info()
    assert loaded.info()["count"] == len(loaded) == 40
    assert loaded.info()["spaces"] == SPACES
    loaded.remove(["g0", "g39"])
    loaded.add([5], {"neckline": np.ones((1, 5)), "sleeve length": np.ones((1, 3))})
    assert loaded.search(query, k=1)[0].id == 5
    assert ("g0" in loaded, 5 in loaded, len(loaded)) == (False, True, 39)
    loaded.save()
    again = AttributeIndex.load(tmp_path / "a")
    assert again.search(query) == loaded.search(query)
    assert len(os.listdir(tmp_path / "a")) == 4  # manifest, items and two spaces: nothing old is left


def test_empty_index(tmp_path: Path):
    AttributeIndex.create(tmp_path / "a", SPACES)
    index = AttributeIndex.load(tmp_path / "a")
    assert index.search({"neckline": np.ones(5)}) == []
    index.add([], {"neckline": np.zeros((0, 5)), "sleeve length": np.zeros((0, 3))})
    index.save()
    assert index.verify() == []


def test_add_is_all_or_nothing(tmp_path: Path):
    index = filled(tmp_path / "a", 3)
    good = {"neckline": np.ones((2, 5)), "sleeve length": np.ones((2, 3))}
    nan = np.ones((2, 3))
    nan[1, 2] = np.nan
    for ids, vectors, metadata, message in [
        (["x", "g1"], good, None, "ids must be new, got 'g1' a second time"),
        (["x", "x"], good, None, "ids must be new, got 'x' a second time"),
        (
            ["x", "y"],
            {**good, "neckline": np.ones((2, 4))},
            None,
            r"'neckline' must have shape \[2, 5\], got \[2, 4\]",
        ),
        (["x", "y"], {**good, "neckline": np.ones((1, 5))}, None, r"must have shape \[2, 5\], got \[1, 5\]"),
        (
            ["x", "y"],
            {**good, "sleeve length": nan},
            None,
            "finite and not zero, got NaN or infinity for id 'y'",
        ),
        (["x", "y"], {**good, "neckline": np.eye(2, 5, 1) * 0}, None, "not zero, got a zero row for id 'x'"),
        (["x", "y"], {**good, "necklin": good["neckline"]}, None, r"got 'necklin'; closest is 'neckline'"),
        (
            ["x", "y"],
            {"neckline": good["neckline"]},
            None,
            "must hold every space, got none for 'sleeve length'",
        ),
        (["x", "y"], good, [{}], "metadata must have 2 rows, got 1"),
        (["x", "y"], good, [{}, {"a": {1}}], "metadata must be JSON, got .* for id 'y'"),
        (["x", "y"], good, [{}, {"a": float("nan")}], "metadata must be JSON, got .* for id 'y'"),
    ]:
        with pytest.raises(ValueError, match=r"AttributeIndex\.add: .*" + message):
            index.add(ids, vectors, metadata)
        assert len(index) == 3
        assert all(len(index._vectors(name)) == 3 for name in SPACES)
    with pytest.raises(TypeError, match=r"ids must be strings or whole numbers, got 1\.5"):
        index.add([1.5], good)
    index.add(["x", np.int64(4)], good)
    assert 4 in index


def test_other_errors(tmp_path: Path):
    index = filled(tmp_path / "a", 3)
    query = np.ones(5)
    for call, message in [
        (lambda: index.search({}), r"search: queries must name at least one space, got none"),
        (lambda: index.search({"hem": query}), r"search: queries must be of the spaces .*, got 'hem'"),
        (lambda: index.search({"neckline": query[:4]}), r"search: .* must have shape \[1, 5\], got \[1, 4\]"),
        (lambda: index.search({"neckline": query * 0}), r"search: .* not zero, got a zero row"),
        (lambda: index.search({"neckline": query}, k=0), r"search: k must be at least 1, got 0"),
        (lambda: index.search({"neckline": query}, {"neckline": 0}), r"weights must not all be 0"),
        (lambda: index.search({"neckline": query}, {"neckline": np.inf}), r"weights must be finite, got inf"),
        (lambda: index.search({"neckline": query}, {"sleeve length": 1}), r"weights must be of spaces asked"),
        (lambda: index.remove(["g0", "g9"]), r"remove: ids must be in the index, got 'g9'"),
        (lambda: AttributeIndex.create(tmp_path / "b", {}), r"create: spaces must name at least one space"),
        (lambda: AttributeIndex.create(tmp_path / "b", {"a": 0}), r"positive dimensions, got 'a': 0"),
        (
            lambda: AttributeIndex.create(tmp_path / "b", {"a": 1}, "x"),
            r"engine must be one of \['flat'\], got 'x'",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    assert len(index) == 3
    with pytest.raises(FileExistsError, match=r"path must not hold an index, got .*; use load"):
        AttributeIndex.create(tmp_path / "a", SPACES)
    with pytest.raises(FileNotFoundError, match="b must hold an index, got no manifest"):
        AttributeIndex.load(tmp_path / "b")
    assert list(ENGINES) == ["flat"]


def test_second_writer_is_told(tmp_path: Path):
    index = filled(tmp_path / "a", 3)
    index.save()
    other = AttributeIndex.load(tmp_path / "a")
    other.remove(["g0"])
    other.save()
    with pytest.raises(RuntimeError, match="must be as it was loaded, got a newer one; load again"):
        index.save()
    assert len(AttributeIndex.load(tmp_path / "a")) == 2


def test_torn_files_are_never_read_as_whole(tmp_path: Path):
    index = filled(tmp_path / "a")
    index.save()
    whole = tmp_path / "a"
    for file in sorted(os.listdir(whole)):
        torn = shutil.copytree(whole, tmp_path / "torn", dirs_exist_ok=True)
        data = (torn / file).read_bytes()
        for part in (data[:-2], data[: len(data) // 2], b""):
            (torn / file).write_bytes(part)
            with pytest.raises(
                ValueError, match=rf"torn/{file} must (be JSON|have {len(data)} bytes, got {len(part)})"
            ):
                AttributeIndex.load(torn)
            assert len(index.verify()) == 0
        (torn / file).unlink()
        with pytest.raises(
            (ValueError, FileNotFoundError), match=r"must (have \d+ bytes, got no such file|hold an index)"
        ):
            AttributeIndex.load(torn)
        (torn / file).write_bytes(data)


def test_verify_finds_a_changed_byte(tmp_path: Path):
    filled(tmp_path / "a").save()
    index = AttributeIndex.load(tmp_path / "a")
    names = [f for f in os.listdir(tmp_path / "a") if f != "manifest.json"]
    for number, file in enumerate(names, 1):
        data = bytearray((tmp_path / "a" / file).read_bytes())
        data[-3] ^= 1
        (tmp_path / "a" / file).write_bytes(data)
        problems = index.verify()
        assert len(problems) == number
        assert any(file in p and "must be as saved, got other bytes" in p for p in problems)
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    (tmp_path / "a" / "manifest.json").write_text(json.dumps({**manifest, "format": "x"}))
    assert "must have format 'placket-attribute-index/1', got 'x'" in index.verify()[0]


def test_load_while_another_process_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    index = filled(tmp_path / "a")
    index.save()
    read, before = attribute_index._read_manifest, []

    def read_and_be_overtaken(folder: Path):
        manifest = read(folder)
        if not before:
            before.append(manifest)
            index.remove(["g3"])
            index.save()
        return manifest

    monkeypatch.setattr(attribute_index, "_read_manifest", read_and_be_overtaken)
    assert len(AttributeIndex.load(tmp_path / "a")) == 39
    assert before[0][0]["count"] == 40


def add_and_save_for_ever(folder: Path) -> None:
    index = AttributeIndex.load(folder)
    for i in itertools.count(len(index) // 100):
        index.add(range(100 * i, 100 * (i + 1)), {"s": np.random.normal(size=(100, 256))})
        index.save()


def test_kill_leaves_an_old_or_a_new_index(tmp_path: Path):
    folder = tmp_path / "a"
    AttributeIndex.create(folder, {"s": 256})
    count = 0
    for pause in (0.0, 0.013, 0.05, 0.12):
        process = multiprocessing.get_context("fork").Process(target=add_and_save_for_ever, args=(folder,))
        before = (folder / "manifest.json").read_bytes()
        process.start()
        while (folder / "manifest.json").read_bytes() == before:
            assert process.is_alive()
            time.sleep(0.005)
        time.sleep(pause)
        process.kill()
        process.join()
        index = AttributeIndex.load(folder)
        assert index.verify() == []
        assert len(index) > count
        assert len(index) % 100 == 0
        count = len(index)
    index.save()
    assert len(os.listdir(folder)) == 3
