from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from placket.index import arrays
from placket.index.arrays import ArrayFile, MemoryArrays, Stream, packed, runs, write_arrays


def some_arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    made = {
        f"a{i}": random.integers(0, 100, size=random.integers(0, 300, 2)).astype(dtype)
        for i, dtype in enumerate(["int8", "float32", "int64", "bool", "uint32", "float64"])
    }
    return {**made, "none": np.zeros((0, 4), np.float32), **packed("texts", [b"", b"abc", b"", b"de"])}


@pytest.mark.parametrize("block", [64, 1000, 1 << 20])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_arrays_come_back_whatever_parts_they_came_in(tmp_path: Path, block: int, step: int) -> None:
    given = some_arrays()
    streams = {
        name: Stream(a.dtype, a.shape[1:], [a[i : i + step] for i in range(0, len(a), step)])
        for name, a in given.items()
    }
    file = ArrayFile(tmp_path, write_arrays(tmp_path, "x", streams, {"said": [1]}, block))
    assert file.verify() == []
    assert (file.about, file.names) == ({"said": [1]}, list(given))
    memory = MemoryArrays(given)
    for name, array in given.items():
        for found in (file.array(name), memory.array(name), Stream.of(array).whole()):
            assert found.dtype == array.dtype
            assert np.array_equal(found, array)
        assert np.array_equal(file.part(name, 1, 3), memory.part(name, 1, 3))
        assert torch.from_numpy(file.array(name)).shape == array.shape
    for texts in (file.texts("texts", [3, 0, 1]), memory.texts("texts", [3, 0, 1])):
        assert texts == [b"de", b"", b"abc"]


def test_a_block_is_checked_when_it_is_first_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.arange(1000, dtype=np.int64)
    entry = write_arrays(tmp_path, "x", {"rows": Stream.of(rows)}, block=800)
    content = bytearray((tmp_path / "x").read_bytes())
    content[8 * 450] ^= 1
    (tmp_path / "x").write_bytes(content)
    file, summed = ArrayFile(tmp_path, entry), []
    checksums = arrays._C.checksums
    monkeypatch.setattr(
        arrays._C, "checksums", lambda data, block: summed.append(len(data)) or checksums(data, block)
    )
    assert file.part("rows", 100, 101)[0] == 100
    assert file.part("rows", 150, 250)[-1] == 249
    assert file.part("rows", 0, 400)[-1] == 399
    # The second block, the third, and what was between and after them.
    assert summed == [800, 800, 800, 800]
    for begin, end in ((450, 451), (350, 420), (0, 1000)):
        with pytest.raises(
            ValueError, match=r"x must be as saved, got other bytes between 3200 and 4000; restore"
        ):
            file.part("rows", begin, end)
    assert file.part("rows", 500, 1000)[-1] == 999
    assert len(file.verify()) == 1
    assert "between 3200 and 4000" in file.verify()[0]


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    entry = write_arrays(tmp_path, "x", {n: Stream.of(a[:3]) for n, a in some_arrays().items()}, block=64)
    content = bytearray((tmp_path / "x").read_bytes())
    for at in range(len(content)):
        content[at] ^= 1 << at % 8
        (tmp_path / "x").write_bytes(content)
        assert len(ArrayFile(tmp_path, entry).verify()) == 1
        content[at] ^= 1 << at % 8


def test_mapping_outlives_the_file_and_is_no_way_to_write_it(tmp_path: Path) -> None:
    rows = np.arange(10, dtype=np.int64)
    file = ArrayFile(tmp_path, write_arrays(tmp_path, "x", {"rows": Stream.of(rows)}))
    content = (tmp_path / "x").read_bytes()
    torch.from_numpy(file.array("rows"))[3] = 7
    assert (tmp_path / "x").read_bytes() == content
    (tmp_path / "x").unlink()
    assert file.array("rows")[4] == 4


def test_runs() -> None:
    assert list(runs(np.array([], bool))) == []
    assert list(runs(np.array([1, 1, 0, 1, 0, 0, 1], bool))) == [(0, 2), (3, 4), (6, 7)]
