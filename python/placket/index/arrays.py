"""Files of named arrays that are written once, mapped into memory, and checked where they are read.

Layout: the arrays, each at a multiple of 64 bytes; the directory, JSON with their places and what else the
writer has to say; a CRC-32 of each block of the arrays, uint32; the lengths of directory and checksums, two
uint64. The manifest of the index holds the length of the file and the CRC-32 of directory, checksums and
lengths together, so that no byte of the file can change unnoticed.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from placket import _C

__all__ = [
    "Array",
    "ArrayFile",
    "Arrays",
    "Entry",
    "MemoryArrays",
    "Stream",
    "packed",
    "runs",
    "write_arrays",
]

Array = NDArray[Any]
_ALIGNMENT = 64
# Files are private mappings that may be written, since torch takes no others; without this flag Linux refuses
# those that are greater than its memory. Python names it from 3.13.
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0


@dataclass(frozen=True)
class Stream:
    """An array that comes in parts along its first axis."""

    dtype: np.dtype[Any]
    row: tuple[int, ...]
    """Shape of one entry of the first axis."""
    parts: Iterable[Array]

    @staticmethod
    def of(array: Array) -> Stream:
        return Stream(array.dtype, array.shape[1:], [array])

    def whole(self) -> Array:
        parts = list(self.parts)
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([np.empty((0, *self.row), self.dtype), *parts])


class Arrays(Protocol):
    """Named arrays, in memory or in a file; ``array`` and ``part`` raise ValueError where it is damaged."""

    @property
    def about(self) -> Any:
        """What the writer had to say beside the arrays, in JSON's types."""
        ...

    @property
    def names(self) -> list[str]:
        """Names of the arrays."""
        ...

    def array(self, name: str) -> Array:
        """Return an array, all of it checked."""
        ...

    def part(self, name: str, begin: int, end: int) -> Array:
        """Return entries ``begin`` to ``end`` of the first axis, checked where they lie."""
        ...

    def texts(self, name: str, rows: Sequence[int]) -> list[bytes]:
        """Return some of the texts that ``packed`` has joined, checked where they lie."""
        ...


class MemoryArrays:
    """Arrays that are not in a file yet."""

    def __init__(self, arrays: Mapping[str, Array], about: Any = None) -> None:
        self.about = about
        self.names = list(arrays)
        self._arrays = dict(arrays)

    def array(self, name: str) -> Array:
        return self._arrays[name]

    def part(self, name: str, begin: int, end: int) -> Array:
        return self._arrays[name][begin:end]

    def texts(self, name: str, rows: Sequence[int]) -> list[bytes]:
        at, joined = self._arrays[f"{name}_at"], self._arrays[name].data
        return [joined[at[row] : at[row + 1]].tobytes() for row in rows]


@dataclass(frozen=True)
class Entry:
    """What the manifest says of a file."""

    file: str
    """Path relative to the folder of the index."""
    bytes: int
    block: int
    """Bytes that a checksum is of."""
    checksum: int


class _Mapped(NamedTuple):
    begin: int
    """Of the array, in bytes of the file."""
    row_bytes: int
    values: Array
    """Not checked."""


class ArrayFile:
    """A file that ``write_arrays`` wrote; mapped at once, so that it may be deleted while it is in use.

    Args:
        folder: of the index.
        entry: what the manifest says of it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it has another length.
    """

    def __init__(self, folder: Path, entry: Entry) -> None:
        self.path = folder / entry.file
        self.entry = entry
        try:
            opened = self.path.open("rb")
        except FileNotFoundError:
            raise FileNotFoundError(
                f"AttributeIndex: {self.path} must have {entry.bytes} bytes, got no such file"
            ) from None
        with opened as file:
            found = os.fstat(file.fileno()).st_size
            if found != entry.bytes:
                raise ValueError(f"AttributeIndex: {self.path} must have {entry.bytes} bytes, got {found}")
            flags, access = mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
            mapped = mmap.mmap(file.fileno(), 0, flags=flags, prot=access)
        self._bytes: NDArray[np.uint8] = np.frombuffer(mapped, np.uint8)
        self._tail: tuple[dict[str, _Mapped], NDArray[np.uint32], Any] | None = None

    @property
    def about(self) -> Any:
        return self._read_tail()[2]

    @property
    def names(self) -> list[str]:
        return list(self._read_tail()[0])

    def array(self, name: str) -> Array:
        whole = self._read_tail()[0][name]
        self._check(whole.begin, whole.begin + whole.values.nbytes)
        return whole.values

    def part(self, name: str, begin: int, end: int) -> Array:
        whole = self._read_tail()[0][name]
        self._check(whole.begin + begin * whole.row_bytes, whole.begin + end * whole.row_bytes)
        return whole.values[begin:end]

    def texts(self, name: str, rows: Sequence[int]) -> list[bytes]:
        at, whole, found = self.array(f"{name}_at"), self._read_tail()[0][name], []
        joined = whole.values.data
        for row in rows:
            begin, end = int(at[row]), int(at[row + 1])
            self._check(whole.begin + begin, whole.begin + end)
            found.append(joined[begin:end].tobytes())
        return found

    def verify(self) -> list[str]:
        """Read every byte and return what is wrong, a sentence each."""
        try:
            _, expected, _ = self._read_tail()
        except ValueError as error:
            return [str(error)]
        wrong = np.flatnonzero(self._sums(0, len(expected)) != expected)
        return [self._damaged(int(block)) for block in wrong]

    def _read_tail(self) -> tuple[dict[str, _Mapped], NDArray[np.uint32], Any]:
        if self._tail is None:
            end = len(self._bytes)
            lengths = self._bytes[-16:].view(np.uint64) if end >= 16 else np.full(2, end, np.uint64)
            directory, sums = (int(length) for length in lengths)
            begin = end - 16 - sums - directory
            if begin < 0 or zlib.crc32(self._bytes[begin:].data) != self.entry.checksum:
                raise ValueError(
                    f"AttributeIndex: {self.path} must end as saved, got other bytes; "
                    "restore it or build the index again"
                )
            said = json.loads(bytes(self._bytes[begin : begin + directory]))
            blocks = self._bytes[begin + directory : end - 16].copy().view(np.uint32)
            self._checked = np.zeros(len(blocks), dtype=bool)
            self._data = begin
            arrays = {name: self._mapped(**place) for name, place in said["arrays"].items()}
            self._tail = arrays, blocks, said["about"]
        return self._tail

    def _mapped(self, begin: int, dtype: str, shape: list[int]) -> _Mapped:
        values = np.ndarray(shape, dtype, self._bytes.data, begin)
        return _Mapped(begin, values.dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64)), values)

    def _check(self, begin: int, end: int) -> None:
        """Compare the blocks of bytes ``begin`` to ``end`` that were not compared before."""
        if begin == end:
            return
        _, expected, _ = self._read_tail()
        first, last = begin // self.entry.block, (end - 1) // self.entry.block + 1
        if self._checked[first] if last == first + 1 else self._checked[first:last].all():
            return
        for run_begin, run_end in runs(~self._checked[first:last]):
            run = slice(first + run_begin, first + run_end)
            wrong = np.flatnonzero(self._sums(run.start, run.stop) != expected[run])
            if len(wrong):
                raise ValueError(self._damaged(run.start + int(wrong[0])))
            self._checked[run] = True

    def _sums(self, first: int, last: int) -> NDArray[np.uint32]:
        block = self.entry.block
        return _C.checksums(self._bytes[first * block : min(last * block, self._data)].data, block)

    def _damaged(self, block: int) -> str:
        begin = block * self.entry.block
        return (
            f"AttributeIndex: {self.path} must be as saved, got other bytes between {begin} and "
            f"{min(begin + self.entry.block, self._data)}; restore it or build the index again"
        )


def write_arrays(
    folder: Path, file: str, arrays: Mapping[str, Stream], about: Any = None, block: int = 1 << 20
) -> Entry:
    """Write a file of arrays and synchronise it to disk; memory for one part of an array is enough.

    Args:
        folder: of the index.
        file: path relative to it, of a file that is not there.
        arrays: by name.
        about: what else to keep, in JSON's types.
        block: bytes that each checksum is of.
    """
    with (folder / file).open("xb") as raw:
        out = _Summed(raw, block)
        places = {}
        for name, stream in arrays.items():
            out.write(memoryview(bytes(-out.length % _ALIGNMENT)))
            begin, rows = out.length, 0
            for part in stream.parts:
                out.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
                rows += len(part)
            places[name] = {"begin": begin, "dtype": stream.dtype.str, "shape": [rows, *stream.row]}
        said = json.dumps({"arrays": places, "about": about}, separators=(",", ":")).encode()
        sums = out.sums()
        tail = said + sums.tobytes() + np.array([len(said), sums.nbytes], np.uint64).tobytes()
        raw.write(tail)
        raw.flush()
        os.fsync(raw.fileno())
        return Entry(file, out.length + len(tail), block, zlib.crc32(tail))


class _Summed:
    """Writes bytes and takes the checksum of each block of them."""

    def __init__(self, file: BinaryIO, block: int) -> None:
        self.length = 0
        self._file, self._block = file, block
        self._sums: list[NDArray[np.uint32]] = []
        self._last = 0

    def write(self, data: memoryview) -> None:
        self._file.write(data)
        filled = self.length % self._block
        self.length += len(data)
        if filled + len(data) >= self._block:
            head = self._block - filled
            self._sums.append(np.array([zlib.crc32(data[:head], self._last)], np.uint32))
            whole = (len(data) - head) // self._block * self._block
            self._sums.append(_C.checksums(data[head : head + whole], self._block))
            data, self._last = data[head + whole :], 0
        self._last = zlib.crc32(data, self._last)

    def sums(self) -> NDArray[np.uint32]:
        rest = [self._last] if self.length % self._block else []
        return np.concatenate([*self._sums, np.array(rest, np.uint32)])


def packed(name: str, texts: Sequence[bytes]) -> dict[str, Array]:
    """Return texts as arrays: joined, and ``[n + 1]`` where each begins and the last one ends."""
    return {
        name: np.frombuffer(b"".join(texts), np.uint8),
        f"{name}_at": np.cumsum([0, *map(len, texts)], dtype=np.int64),
    }


def runs(mask: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Return begin and end of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
