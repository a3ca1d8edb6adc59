"""Local storage: segments that never change, a manifest that names them, one writer and many readers.

``manifest.json`` names every file with its length and checksum, and is replaced at once: a kill, a full disk
or a power cut at any moment leaves the index as it was committed last. Files that it does not name are
nothing's, and the writer's next commit deletes them. A reader maps all files of the manifest it has read;
those that are deleted later stay with it until it closes. ``lock`` is held by the writer and has its process
id.

A segment is a folder of ``items`` (ids and metadata, row by row), ``columns`` (the metadata for conditions),
a file of vectors for each space, with an index of them where the engine makes one, and, where rows were
removed, ``removed``. What was put and not committed is a segment in memory. Small segments are merged with
their neighbours, so that many small commits cost each row a few copies, and a search a few segments.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from placket.index import engines
from placket.index.arrays import (
    Array,
    ArrayFile,
    Arrays,
    Entry,
    MemoryArrays,
    Stream,
    packed,
    runs,
    write_arrays,
)
from placket.index.columns import Columns
from placket.index.engines import Id, Item, Vectors
from placket.index.where import Expression
from placket.runs import sync_folder

__all__ = ["LocalEngine", "Segment", "described"]

Mask = NDArray[np.bool_]
_VECTOR_BLOCK = 1 << 20
# Hits read scattered rows, each of which has the block around it checked.
_ITEM_BLOCK = 1 << 16
_CHUNK_ROWS = 1 << 14
# Eight neighbours of like size become one, up to this many bytes of vectors: larger segments are scanned no
# faster, and a merge would copy more.
_MERGED = 8
_MERGED_BYTES = 1 << 32


@dataclass(frozen=True)
class Segment:
    """Rows of items; immutable, a removal makes another that shares the rest."""

    rows: int
    items: Arrays
    columns: Arrays
    vectors: Mapping[str, Arrays]
    """By space; array "rows" is ``[rows, D]`` float32 of length 1, others are the engine's."""
    removed: Arrays | None = None
    indexes: Mapping[str, Arrays] = field(default_factory=dict)
    """By space; what an engine made of its vectors, for its own use. Segments in memory have none."""

    @staticmethod
    def of(
        ids: Sequence[Id], vectors: Mapping[str, Arrays], metadata: Sequence[Mapping[str, Any]]
    ) -> Segment:
        """Make a segment in memory."""
        keys = [_key(id) for id in ids]
        texts = [json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() for row in metadata]
        items = packed("keys", keys) | _hash_table(_hashes(keys)) | packed("metadata", texts)
        columns = Columns.of(metadata)
        return Segment(
            len(keys),
            MemoryArrays(items),
            MemoryArrays(columns.arrays, columns.about),
            vectors,
        )

    @cached_property
    def keep(self) -> Mask | None:
        """``[rows]``, which are not removed; None where all are there."""
        if self.removed is None:
            return None
        keep: Mask = np.unpackbits(self.removed.array("bits"), count=self.rows) == 0
        return keep

    @cached_property
    def count(self) -> int:
        """How many rows are not removed."""
        return self.rows if self.keep is None else int(self.keep.sum())

    def select(self, where: Expression | None) -> Mask | None:
        """Return ``[rows]``, which are not removed and fulfil a condition; None where all do."""
        if where is None:
            return self.keep
        mask = self.typed.mask(where)
        return mask if self.keep is None else mask & self.keep

    @cached_property
    def typed(self) -> Columns:
        return Columns(self.columns, self.rows)

    def find(self, keys: Sequence[bytes], hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return ``[n]``, the row of each key that is there and not removed, -1 for the others."""
        table, rows = self.items.array("hashes"), self.items.array("hash_rows")
        begin = np.searchsorted(table, hashes, "left")
        end = np.searchsorted(table, hashes, "right")
        found = np.full(len(keys), -1)
        alike = [(i, r) for i in np.flatnonzero(begin < end).tolist() for r in range(begin[i], end[i])]
        places = [int(rows[r]) for _, r in alike]
        for (i, _), row, key in zip(alike, places, self.items.texts("keys", places), strict=True):
            if key == keys[i]:
                found[i] = row
        if self.keep is not None:
            found[(found >= 0) & ~self.keep[found]] = -1
        return found

    def ids(self) -> Iterator[Id]:
        """Return the ids of the rows that are not removed."""
        keys, at = self.items.array("keys").tobytes(), self.items.array("keys_at").tolist()
        for row in range(self.rows) if self.keep is None else np.flatnonzero(self.keep).tolist():
            yield _id(keys[at[row] : at[row + 1]])

    def described(self, rows: Sequence[int]) -> list[tuple[Id, dict[str, Any]]]:
        """Return the ids and the metadata of some rows."""
        keys, texts = self.items.texts("keys", rows), self.items.texts("metadata", rows)
        return [(_id(key), json.loads(text)) for key, text in zip(keys, texts, strict=True)]

    def item(self, row: int) -> Item:
        [(id, metadata)] = self.described([row])
        vectors = {name: arrays.part("rows", row, row + 1)[0].copy() for name, arrays in self.vectors.items()}
        return Item(id, vectors, metadata)

    def without(self, rows: NDArray[np.int64]) -> Segment:
        """Return the segment with more rows removed."""
        keep = np.ones(self.rows, bool) if self.keep is None else self.keep.copy()
        keep[rows] = False
        return replace(self, removed=MemoryArrays({"bits": np.packbits(~keep)}))


_Engine = TypeVar("_Engine", bound="LocalEngine")


class LocalEngine:
    """Everything of an engine in a folder but the search itself.

    Every change makes another tuple of segments, so that a search in another thread goes on with the one that
    it began with.
    """

    def __init__(self, path: Path, lock: _Lock | None) -> None:
        self._path = path
        self._lock = lock
        self._changing = threading.RLock()
        self._spaces: dict[str, int] = {}
        self._segments: tuple[Segment, ...] = ()
        self._fresh = _Fresh()
        self._open({})

    @classmethod
    def create(
        cls: type[_Engine], path: Path, engine: str, spaces: Mapping[str, int], options: Mapping[str, Any]
    ) -> _Engine:
        """Make an empty index in a folder and commit it."""
        lock = _Lock(path)
        try:
            if (path / "manifest.json").exists():
                raise FileExistsError(f"AttributeIndex.create: path must not hold an index, got {path}")
            engines.write_manifest(path, engine, options, {"commit": 0, "spaces": spaces, "segments": []})
            return cls(path, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def load(cls: type[_Engine], path: Path, read_only: bool) -> _Engine:
        """Open the index in a folder.

        Raises:
            BlockingIOError: another process writes it, unless ``read_only``.
            FileNotFoundError, ValueError: a file is not there, or is damaged.
        """
        lock = None if read_only else _Lock(path)
        try:
            return cls(path, lock)
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    @property
    def spaces(self) -> Mapping[str, int]:
        return self._spaces

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments in the order of addition; those not committed are in memory."""
        with self._changing:
            if len(self._fresh.ids):
                segments = (*self._segments, self._fresh.segment(self._arrays))
                while _doubled(segments):
                    segments = (*segments[:-2], _in_memory(segments[-2:]))
                self._segments, self._fresh = segments, _Fresh()
            return self._segments

    def __len__(self) -> int:
        return sum(segment.count for segment in self._segments) + len(self._fresh.ids)

    def contains(self, ids: Sequence[Id]) -> Mask:
        with self._changing:
            fresh = np.array([id in self._fresh.ids for id in ids], dtype=bool)
            return fresh | (_locate(self._segments, ids)[0] >= 0)

    def ids(self) -> Iterator[Id]:
        for segment in self.segments:
            yield from segment.ids()

    def get(self, ids: Sequence[Id]) -> list[Item]:
        segments = self.segments
        numbers, rows = _locate(segments, ids)
        return [segments[n].item(row) for n, row in zip(numbers.tolist(), rows.tolist(), strict=True)]

    def put(
        self, ids: Sequence[Id], vectors: Mapping[str, Vectors], metadata: Sequence[dict[str, Any]]
    ) -> None:
        with self._changing:
            replaced = self.contains(ids)
            if replaced.any():
                self.remove([id for id, there in zip(ids, replaced.tolist(), strict=True) if there])
            self._fresh.put(ids, vectors, metadata)
            self._changed = True

    def remove(self, ids: Sequence[Id]) -> None:
        with self._changing:
            segments = list(self.segments if any(id in self._fresh.ids for id in ids) else self._segments)
            numbers, rows = _locate(segments, ids)
            for number in np.unique(numbers).tolist():
                segments[number] = segments[number].without(rows[numbers == number])
            self._segments, self._changed = tuple(segments), True

    def add_space(self, name: str, dim: int, blocks: Iterable[tuple[Sequence[Id], Vectors]]) -> None:
        with self._changing, ExitStack() as files:
            segments = self.segments
            filled = [np.zeros(segment.rows, dtype=bool) for segment in segments]
            rows = [files.enter_context(self._scratch(segment.rows, dim)) for segment in segments]
            for ids, block in blocks:
                _scatter(segments, filled, rows, ids, block)
            for segment, done in zip(segments, filled, strict=True):
                absent = ~done if segment.keep is None else segment.keep & ~done
                if absent.any():
                    raise ValueError(
                        "AttributeIndex.add_space: vectors must hold a row for every item, "
                        f"got none for {segment.described([int(absent.argmax())])[0][0]!r}"
                    )
            try:
                self._segments = tuple(map(self._with_space, segments, [name] * len(rows), rows))
            except BaseException:
                with suppress(OSError, ValueError):  # the error that matters is the first
                    self._sweep()
                raise
            self._spaces, self._changed = {**self._spaces, name: dim}, True

    def commit(self) -> None:
        with self._changing:
            if self._changed:
                self._commit(_planned(self.segments, 4 * sum(self._spaces.values())))

    def compact(self) -> None:
        with self._changing:
            segments = self.segments
            if self._changed or len(segments) > 1 or any(s.count < s.rows for s in segments):
                self._commit([list(segments)])

    def refresh(self) -> None:
        if self._lock is None and engines.read_manifest(self._path)["checksum"] != self._checksum:
            self._open({file.path: file for segment in self._segments for file in _files(segment)})

    def info(self) -> dict[str, Any]:
        segments = self.segments
        return {
            "commit": self._number,
            "segments": len(segments),
            "removed": sum(segment.rows - segment.count for segment in segments),
            "options": self._options,
            "bytes": sum(file.entry.bytes for segment in segments for file in _files(segment)),
        }

    def verify(self) -> list[str]:
        try:
            manifest = engines.read_manifest(self._path)
        except (OSError, ValueError) as error:
            return [str(error)]
        problems = []
        for said in manifest["segments"]:
            for entry in _entries(said):
                try:
                    problems += ArrayFile(self._path, entry).verify()
                except (OSError, ValueError) as error:
                    problems.append(str(error))
        return problems

    def close(self) -> None:
        self._segments, self._fresh = (), _Fresh()
        if self._lock is not None:
            self._lock.release()

    def _open(self, known: Mapping[Path, ArrayFile]) -> None:
        """Map the files of the manifest; those known are taken as they are."""

        def opened(entry: Mapping[str, Any]) -> ArrayFile:
            path = self._path / entry["file"]
            return known[path] if path in known else ArrayFile(self._path, Entry(**entry))

        while True:
            manifest = engines.read_manifest(self._path)
            try:
                segments = tuple(
                    Segment(
                        said["rows"],
                        opened(said["items"]),
                        opened(said["columns"]),
                        {name: opened(entry) for name, entry in said["vectors"].items()},
                        None if said["removed"] is None else opened(said["removed"]),
                        {name: opened(entry) for name, entry in said["indexes"].items()},
                    )
                    for said in manifest["segments"]
                )
                break
            except (FileNotFoundError, ValueError):
                # A writer may have committed, and deleted files, since the manifest was read.
                if engines.read_manifest(self._path)["checksum"] == manifest["checksum"]:
                    raise
        self._engine, self._options = manifest["engine"], manifest["options"]
        self._spaces = manifest["spaces"]
        self._number, self._checksum = manifest["commit"], manifest["checksum"]
        self._segments, self._changed = segments, False

    def _commit(self, groups: Sequence[Sequence[Segment]]) -> None:
        """Write what is in memory, each group as one segment, and then the manifest."""
        try:
            segments = tuple(self._written(group) for group in groups if sum(s.count for s in group))
            checksum = engines.write_manifest(
                self._path,
                self._engine,
                self._options,
                {
                    "commit": self._number + 1,
                    "spaces": self._spaces,
                    "segments": [_said(segment) for segment in segments],
                },
            )
        except BaseException:
            with suppress(OSError, ValueError):  # the error that matters is the first
                self._sweep()
            raise
        self._segments, self._changed = segments, False
        self._number, self._checksum = self._number + 1, checksum
        self._sweep()

    def _written(self, group: Sequence[Segment]) -> Segment:
        """Return the rows of some segments as one whose every part is a file."""
        first = group[0]
        if len(group) == 1 and isinstance(first.items, ArrayFile) and 2 * first.count >= first.rows:
            if not isinstance(first.removed, MemoryArrays):
                return first
            folder = os.path.dirname(first.items.entry.file)
            streams = {"bits": Stream.of(first.removed.array("bits"))}
            removed = self._file(f"{folder}/removed", streams)
            sync_folder(self._path / folder)
            return replace(first, removed=removed)
        folder = f"segments/{self._number + 1:08d}-{secrets.token_hex(4)}"
        if not (self._path / "segments").exists():
            (self._path / "segments").mkdir()
            sync_folder(self._path)
        (self._path / folder).mkdir()
        parts = _merged(group)
        segment = Segment(
            sum(s.count for s in group),
            self._file(f"{folder}/items", *parts.items, _ITEM_BLOCK),
            self._file(f"{folder}/columns", *parts.columns, _ITEM_BLOCK),
            {
                name: self._file(f"{folder}/vectors-{number}", streams)
                for number, (name, streams) in enumerate(parts.vectors.items())
            },
        )
        indexes = self._indexes(folder, segment.vectors)
        sync_folder(self._path / folder)
        sync_folder(self._path / "segments")
        return replace(segment, indexes=indexes)

    def _index(self, space: str, vectors: Arrays) -> Mapping[str, Stream] | None:
        """Return what an engine keeps beside the vectors of a segment's space, if it does."""
        return None

    def _indexes(self, folder: str, vectors: Mapping[str, Arrays]) -> dict[str, Arrays]:
        made = {name: self._index(name, arrays) for name, arrays in vectors.items()}
        return {name: self._file(f"{folder}/index", own) for name, own in made.items() if own is not None}

    def _with_space(self, segment: Segment, name: str, rows: Vectors) -> Segment:
        if not isinstance(segment.items, ArrayFile):
            arrays: Arrays = MemoryArrays(self._arrays(np.array(rows)))
            return replace(segment, vectors={**segment.vectors, name: arrays})
        folder = os.path.dirname(segment.items.entry.file)
        arrays = self._file(f"{folder}/vectors-{len(self._spaces)}", self._chunked(rows))
        indexes = self._indexes(folder, {name: arrays})
        sync_folder(self._path / folder)
        return replace(
            segment,
            vectors={**segment.vectors, name: arrays},
            indexes={**segment.indexes, **indexes},
        )

    def _arrays(self, rows: Vectors) -> dict[str, Array]:
        """Return what is stored of some rows of a space, row by row."""
        return {"rows": rows}

    def _chunked(self, rows: Vectors) -> dict[str, Stream]:
        chunks = [slice(begin, begin + _CHUNK_ROWS) for begin in range(0, len(rows), _CHUNK_ROWS)]

        def parts(name: str) -> Iterator[Array]:
            return (self._arrays(rows[chunk])[name] for chunk in chunks)

        examples = self._arrays(rows[:0])
        return {name: Stream(e.dtype, e.shape[1:], parts(name)) for name, e in examples.items()}

    def _file(
        self, stem: str, streams: Mapping[str, Stream], about: Any = None, block: int = _VECTOR_BLOCK
    ) -> ArrayFile:
        file = f"{stem}-{secrets.token_hex(4)}"
        return ArrayFile(self._path, write_arrays(self._path, file, streams, about, block))

    @contextmanager
    def _scratch(self, count: int, dim: int) -> Iterator[Vectors]:
        """Open rows that are zeros, on disk and without a name."""
        (self._path / "segments").mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=self._path / "segments") as file:
            # A full disk must say so here: to a mapping it would be a signal that ends the process.
            os.posix_fallocate(file.fileno(), 0, 4 * count * dim)
            yield np.memmap(file, np.float32, "r+", shape=(count, dim))

    def _sweep(self) -> None:
        """Delete the files that are neither in use here nor named: replaced ones, and what a kill left.

        The manifest on disk says which are named: it may be the next one even after an error, where the disk
        did not confirm it.
        """
        used = {file.entry.file for segment in self._segments for file in _files(segment)}
        used |= {e.file for said in engines.read_manifest(self._path)["segments"] for e in _entries(said)}
        for folder, _, files in os.walk(self._path / "segments", topdown=False):
            for file in files:
                if os.path.relpath(os.path.join(folder, file), self._path) not in used:
                    os.unlink(os.path.join(folder, file))
            with suppress(OSError):  # not empty
                os.rmdir(folder)
        for left in self._path.glob(".manifest.json.*.tmp"):
            left.unlink()


class _Fresh:
    """Items put since the last segment was made of them."""

    def __init__(self) -> None:
        self.ids: dict[Id, None] = {}
        self._vectors: list[Mapping[str, Vectors]] = []
        self._metadata: list[Mapping[str, Any]] = []

    def put(
        self, ids: Sequence[Id], vectors: Mapping[str, Vectors], metadata: Sequence[Mapping[str, Any]]
    ) -> None:
        self.ids |= dict.fromkeys(ids)
        self._vectors.append(vectors)
        self._metadata += metadata

    def segment(self, arrays: Callable[[Vectors], dict[str, Array]]) -> Segment:
        vectors = {
            name: MemoryArrays(arrays(np.concatenate([part[name] for part in self._vectors])))
            for name in self._vectors[0]
        }
        return Segment.of(list(self.ids), vectors, self._metadata)


class _Lock:
    """The right to write; a process that ends in whatever way gives it back."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "lock").open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read(20).decode(errors="replace")
            self._file.close()
            who = "this process" if holder == str(os.getpid()) else f"process {holder or 'unknown'}"
            raise BlockingIOError(
                f"AttributeIndex: {folder} must have one writer, got {who}, which has it open already; "
                "close it there, or load with read_only=True"
            ) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()).encode())

    def release(self) -> None:
        if not self._file.closed:
            self._file.truncate(0)
            self._file.close()


def _scatter(
    segments: Sequence[Segment],
    filled: Sequence[Mask],
    rows: Sequence[Vectors],
    ids: Sequence[Id],
    block: Vectors,
) -> None:
    """Lay the rows of a block where their items are."""
    numbers, at = _locate(segments, ids)
    if (numbers < 0).any():
        unknown = ids[int((numbers < 0).argmax())]
        raise ValueError(f"AttributeIndex.add_space: ids must be in the index, got {unknown!r}")
    for number in np.unique(numbers).tolist():
        own = np.flatnonzero(numbers == number)
        again = filled[number][at[own]]
        if again.any():
            twice = ids[int(own[again.argmax()])]
            raise ValueError(
                f"AttributeIndex.add_space: vectors must hold one row for each item, got two for {twice!r}"
            )
        filled[number][at[own]] = True
        rows[number][at[own]] = block[own]


@dataclass(frozen=True)
class _Merged:
    """What the files of one segment hold; streams, so that vectors and texts never are in memory whole."""

    items: tuple[dict[str, Stream], Any]
    columns: tuple[dict[str, Stream], Any]
    vectors: dict[str, dict[str, Stream]]


def _merged(segments: Sequence[Segment]) -> _Merged:
    """Put consecutive segments together, without the rows that are removed."""
    columns = Columns.merged([(s.typed, s.keep) for s in segments])
    items = {
        "keys": Stream(np.dtype(np.uint8), (), _texts(segments, "keys")),
        "keys_at": _offsets(segments, "keys"),
        **_streams(_hash_table(np.concatenate([_kept(s, _row_hashes(s)) for s in segments]))),
        "metadata": Stream(np.dtype(np.uint8), (), _texts(segments, "metadata")),
        "metadata_at": _offsets(segments, "metadata"),
    }
    vectors = {
        name: {
            array: Stream(example.dtype, example.shape[1:], _chunks(segments, name, array))
            for array in arrays.names
            for example in [arrays.part(array, 0, 0)]
        }
        for name, arrays in segments[0].vectors.items()
    }
    return _Merged((items, None), (_streams(columns.arrays), columns.about), vectors)


def _in_memory(segments: Sequence[Segment]) -> Segment:
    parts = _merged(segments)
    (items, about), (columns, columns_about) = parts.items, parts.columns
    return Segment(
        sum(segment.count for segment in segments),
        MemoryArrays(_whole(items), about),
        MemoryArrays(_whole(columns), columns_about),
        {name: MemoryArrays(_whole(streams)) for name, streams in parts.vectors.items()},
    )


def _texts(segments: Sequence[Segment], name: str) -> Iterator[Array]:
    for segment in segments:
        at = segment.items.array(f"{name}_at")
        for begin, end in runs(np.ones(segment.rows, bool) if segment.keep is None else segment.keep):
            yield segment.items.part(name, int(at[begin]), int(at[end]))


def _offsets(segments: Sequence[Segment], name: str) -> Stream:
    lengths = [_kept(segment, np.diff(segment.items.array(f"{name}_at"))) for segment in segments]
    return Stream.of(np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64))


def _chunks(segments: Sequence[Segment], space: str, array: str) -> Iterator[Array]:
    for segment in segments:
        for begin in range(0, segment.rows, _CHUNK_ROWS):
            end = min(begin + _CHUNK_ROWS, segment.rows)
            rows = segment.vectors[space].part(array, begin, end)
            yield rows if segment.keep is None else rows[segment.keep[begin:end]]


def _row_hashes(segment: Segment) -> NDArray[np.uint64]:
    hashes = np.empty(segment.rows, np.uint64)
    hashes[segment.items.array("hash_rows")] = segment.items.array("hashes")
    return hashes


def _kept(segment: Segment, values: Array) -> Array:
    return values if segment.keep is None else values[segment.keep]


def _streams(arrays: Mapping[str, Array]) -> dict[str, Stream]:
    return {name: Stream.of(array) for name, array in arrays.items()}


def _whole(streams: Mapping[str, Stream]) -> dict[str, Array]:
    return {name: stream.whole() for name, stream in streams.items()}


def _planned(segments: Sequence[Segment], row_bytes: int) -> list[list[Segment]]:
    """Return which segments shall be one: those in memory, and as many small neighbours as are too many."""
    groups = [[segment] for segment in segments if isinstance(segment.items, ArrayFile)]
    fresh = list(segments[len(groups) :])
    groups += [fresh] if fresh else []
    while tail := _crowded([sum(s.count for s in group) for group in groups], _MERGED_BYTES // row_bytes):
        groups[-tail:] = [[segment for group in groups[-tail:] for segment in group]]
    return groups


def _crowded(rows: Sequence[int], most: int) -> int:
    """Return how many of the last segments to merge: the most that are eight or more of like size.

    What they become has more rows than any bound that counted them, so that a row is copied once for each
    power of eight at most.
    """
    found, bound = 0, 1
    while bound * _MERGED <= most:
        tail = next((i for i, count in enumerate(reversed(rows)) if count > bound), len(rows))
        if tail >= _MERGED and sum(rows[-tail:]) > bound:
            found = tail
        bound *= _MERGED
    return found


def _doubled(segments: Sequence[Segment]) -> bool:
    """Return whether the last two segments are in memory and the first of them is not much the larger."""
    if len(segments) < 2 or isinstance(segments[-2].items, ArrayFile):
        return False
    return segments[-2].rows <= 2 * segments[-1].rows


def _files(segment: Segment) -> list[ArrayFile]:
    parts = [segment.items, segment.columns, segment.removed]
    parts += [*segment.vectors.values(), *segment.indexes.values()]
    return [part for part in parts if isinstance(part, ArrayFile)]


def _said(segment: Segment) -> dict[str, Any]:
    """Return what the manifest says of a segment whose every part is a file."""

    def entry(arrays: Arrays | None) -> dict[str, Any] | None:
        return asdict(arrays.entry) if isinstance(arrays, ArrayFile) else None

    return {
        "rows": segment.rows,
        "items": entry(segment.items),
        "columns": entry(segment.columns),
        "removed": entry(segment.removed),
        "vectors": {name: entry(arrays) for name, arrays in segment.vectors.items()},
        "indexes": {name: entry(arrays) for name, arrays in segment.indexes.items()},
    }


def _entries(said: Mapping[str, Any]) -> list[Entry]:
    parts = [said["items"], said["columns"], said["removed"]]
    parts += [*said["vectors"].values(), *said["indexes"].values()]
    return [Entry(**part) for part in parts if part is not None]


def described(
    segments: Sequence[Segment], numbers: NDArray[np.int64], rows: NDArray[np.int64]
) -> list[tuple[Id, dict[str, Any]]]:
    """Return the ids and the metadata of rows of several segments."""
    every: list[Any] = [None] * len(rows)
    for number in np.unique(numbers).tolist():
        own = np.flatnonzero(numbers == number)
        for place, item in zip(own.tolist(), segments[number].described(rows[own].tolist()), strict=True):
            every[place] = item
    return every


def _locate(segments: Sequence[Segment], ids: Sequence[Id]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ``[n]`` segments and ``[n]`` rows of ids, -1 for those that are not there."""
    keys = [_key(id) for id in ids]
    hashes = _hashes(keys)
    numbers, rows = np.full((2, len(keys)), -1)
    for number, segment in enumerate(segments):
        found = segment.find(keys, hashes)
        numbers[found >= 0] = number
        rows = np.maximum(rows, found)
    return numbers, rows


def _key(id: Id) -> bytes:
    """Return what an id is on disk; the first byte tells 7 from "7"."""
    return b"s" + id.encode() if isinstance(id, str) else b"i" + id.to_bytes(8, "little", signed=True)


def _id(key: bytes) -> Id:
    return key[1:].decode() if key[:1] == b"s" else int.from_bytes(key[1:], "little", signed=True)


def _hashes(keys: Sequence[bytes]) -> NDArray[np.uint64]:
    return np.array([_hash(key) for key in keys], np.uint64)


def _hash(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def _hash_table(hashes: NDArray[np.uint64]) -> dict[str, Array]:
    """Return the hashes in order, and the row that each is of."""
    order = np.argsort(hashes, kind="stable")
    return {"hashes": hashes[order], "hash_rows": order.astype(np.uint32)}
