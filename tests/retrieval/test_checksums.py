from __future__ import annotations

import mmap
import zlib
from pathlib import Path

import numpy as np
import pytest

from placket._C import checksums


@pytest.mark.parametrize("length", [0, 1, 7, 8, 15, 16, 63, 64, 65, 127, 128, 129, 1000, 4096, 70_001])
@pytest.mark.parametrize("block", [1, 64, 100, 4096, 1 << 20])
def test_checksums_are_those_of_zlib(length: int, block: int):
    data = np.random.default_rng(length).bytes(length)
    expected = [zlib.crc32(data[i : i + block]) for i in range(0, length, block)]
    got = checksums(data, block)
    assert got.dtype == np.uint32
    assert got.tolist() == expected


@pytest.mark.parametrize("offset", range(16))
def test_checksums_of_any_alignment(offset: int):
    data = np.random.default_rng(0).bytes(300)
    assert checksums(memoryview(data)[offset:], 300).tolist() == [zlib.crc32(data[offset:])]


def test_checksums_see_every_bit():
    data = bytearray(200)
    clean = int(checksums(data, 200)[0])
    seen = {clean}
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        seen.add(int(checksums(data, 200)[0]))
        data[bit // 8] ^= 1 << bit % 8
    assert len(seen) == 1 + 8 * len(data)


def test_checksums_do_not_depend_on_threads(by_threads):
    data = np.random.default_rng(1).bytes(3_000_000)
    expected = [zlib.crc32(data[i : i + 100_000]) for i in range(0, len(data), 100_000)]
    for got in by_threads(lambda: checksums(data, 100_000).tolist()):
        assert got == expected


def test_checksums_of_what_has_a_buffer(tmp_path: Path):
    values = np.arange(1000, dtype=np.float32).reshape(10, 100)
    expected = [zlib.crc32(values.tobytes())]
    assert checksums(values, 4000).tolist() == expected
    path = tmp_path / "values"
    path.write_bytes(values.tobytes())
    assert checksums(np.memmap(path, np.float32, "r"), 4000).tolist() == expected
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert checksums(mapped, 4000).tolist() == expected


def test_checksums_errors():
    with pytest.raises(ValueError, match="checksums: block_bytes must be positive, got 0"):
        checksums(b"abc", 0)
    with pytest.raises((ValueError, BufferError), match="contiguous"):
        checksums(np.zeros((4, 4))[:, ::2], 16)
