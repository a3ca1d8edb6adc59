"""An index over named attribute spaces, kept in a folder.

The folder holds ``manifest.json``, one ``.npy`` file of vectors for each space and a ``.jsonl`` file of ids
and metadata. The manifest names the other files with their sizes and SHA-256. Saving writes new files under
new names and then replaces the manifest, so a kill at any moment leaves the index as it was or as it is to
be.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from placket import __version__
from placket.index.engines import ENGINES, Vectors
from placket.index.flat import FlatEngine
from placket.runs import write_bytes, write_json

__all__ = ["AttributeIndex", "Hit"]

Id = str | int
FORMAT = "placket-attribute-index/1"


@dataclass(frozen=True)
class Hit:
    """One item found."""

    id: Id
    score: float
    """Weighted sum of the cosines."""
    scores: dict[str, float]
    """Cosine in each space that was asked, without its weight."""
    metadata: dict[str, Any]


class AttributeIndex:
    """Items with one vector in each of several attribute spaces, searched by weighted cosine similarity.

    Make one with ``create`` or ``load``. What is added or removed is searched at once and kept by ``save``.

    Example::

        index = AttributeIndex.create("shop", spaces={"neckline": 128, "sleeve": 128})
        index.add(ids, {"neckline": a, "sleeve": b}, metadata=rows)
        index.save()
        hits = index.search({"neckline": q, "sleeve": r}, weights={"neckline": 2.0}, k=10)
    """

    def __init__(self, path: Path, spaces: Mapping[str, int], engine: str) -> None:
        self.path = path
        self.spaces = dict(spaces)
        self.engine = engine
        self._search_engine = FlatEngine()
        self._ids: list[Id] = []
        self._known: set[Id] = set()
        self._metadata: list[dict[str, Any]] = []
        # Parts are joined when they are needed, so that many small additions stay cheap.
        self._parts: dict[str, list[Vectors]] = {s: [np.zeros((0, d), np.float32)] for s, d in spaces.items()}
        self._manifest_on_disk = b""

    @staticmethod
    def create(
        path: str | os.PathLike[str], spaces: Mapping[str, int], engine: str = "flat"
    ) -> AttributeIndex:
        """Make an empty index in a folder.

        Args:
            path: the folder; made with its parents where it is absent. It must not hold an index.
            spaces: name of each attribute space and its dimension.
            engine: "flat" scores every row, exactly.
        """
        folder = Path(path)
        if (folder / "manifest.json").exists():
            raise FileExistsError(
                f"AttributeIndex.create: path must not hold an index, got {folder}; use load"
            )
        if not spaces:
            raise ValueError("AttributeIndex.create: spaces must name at least one space, got none")
        for name, dim in spaces.items():
            if not (isinstance(name, str) and name and isinstance(dim, int) and dim >= 1):
                raise ValueError(
                    f"AttributeIndex.create: spaces must map names to positive dimensions, "
                    f"got {name!r}: {dim!r}"
                )
        if engine not in ENGINES:
            raise ValueError(f"AttributeIndex.create: engine must be one of {list(ENGINES)}, got '{engine}'")
        folder.mkdir(parents=True, exist_ok=True)
        index = AttributeIndex(folder, spaces, engine)
        index.save()
        return index

    @staticmethod
    def load(path: str | os.PathLike[str]) -> AttributeIndex:
        """Open the index in a folder; vectors stay on disk and are mapped into memory.

        Files are checked for their sizes; ``verify`` also reads every byte. Raises FileNotFoundError where
        there is no index, ValueError where it is damaged.
        """
        folder = Path(path)
        while True:
            manifest, raw = _read_manifest(folder)
            try:
                return AttributeIndex._open(folder, manifest, raw)
            except ValueError:
                # Another process may have saved, and removed the old files, since the manifest was read.
                if (folder / "manifest.json").read_bytes() == raw:
                    raise

    @staticmethod
    def _open(folder: Path, manifest: Mapping[str, Any], raw: bytes) -> AttributeIndex:
        spaces = {name: entry["dim"] for name, entry in manifest["spaces"].items()}
        index = AttributeIndex(folder, spaces, manifest["engine"])
        for name, entry in manifest["spaces"].items():
            # Copy-on-write: torch takes only arrays that may be written; nothing writes them.
            vectors = np.load(_whole(folder, entry), mmap_mode="c")
            if vectors.shape != (manifest["count"], entry["dim"]) or vectors.dtype != np.float32:
                raise ValueError(
                    f"AttributeIndex.load: {folder / entry['file']} must hold float32 of shape "
                    f"[{manifest['count']}, {entry['dim']}], got {vectors.dtype} {list(vectors.shape)}"
                )
            index._parts[name] = [vectors]
        items = _whole(folder, manifest["items"]).read_bytes()
        if hashlib.sha256(items).hexdigest() != manifest["items"]["sha256"]:
            file = folder / manifest["items"]["file"]
            raise ValueError(f"AttributeIndex: {file} must be as saved, got other bytes")
        for line in items.splitlines():
            id, metadata = json.loads(line)
            index._ids.append(id)
            index._metadata.append(metadata)
        index._known = set(index._ids)
        index._manifest_on_disk = raw
        return index

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, id: object) -> bool:
        return id in self._known

    def add(
        self,
        ids: Sequence[Id],
        vectors: Mapping[str, ArrayLike],
        metadata: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add items; all of them or, where something is wrong, none.

        Args:
            ids: n strings or whole numbers, none of them in the index.
            vectors: ``[n, D]`` for every space of the index; normalised here.
            metadata: n mappings in JSON's types, or None.
        """
        new = [_id(id) for id in ids]
        seen: set[Id] = set()
        for id in new:
            if id in self._known or id in seen:
                raise ValueError(f"AttributeIndex.add: ids must be new, got {id!r} a second time")
            seen.add(id)
        self._check_names("add", "vectors", vectors)
        missing = [name for name in self.spaces if name not in vectors]
        if missing:
            raise ValueError(
                f"AttributeIndex.add: vectors must hold every space, got none for '{missing[0]}'"
            )
        rows = {name: self._unit_rows("add", name, vectors[name], new) for name in self.spaces}
        described = [{} for _ in new] if metadata is None else [dict(row) for row in metadata]
        if len(described) != len(new):
            raise ValueError(f"AttributeIndex.add: metadata must have {len(new)} rows, got {len(described)}")
        for id, row in zip(new, described, strict=True):
            try:
                json.dumps(row, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"AttributeIndex.add: metadata must be JSON, got {error} for id {id!r}"
                ) from error
        for name, part in rows.items():
            self._parts[name].append(part)
        self._ids += new
        self._known |= seen
        self._metadata += described

    def remove(self, ids: Iterable[Id]) -> None:
        """Remove items; all of them or, where one is not there, none."""
        gone = {_id(id) for id in ids}
        unknown = gone - self._known
        if unknown:
            raise ValueError(
                f"AttributeIndex.remove: ids must be in the index, got {sorted(map(repr, unknown))[0]}"
            )
        keep = [row for row, id in enumerate(self._ids) if id not in gone]
        for name in self.spaces:
            self._parts[name] = [self._vectors(name)[keep]]
        self._ids = [self._ids[row] for row in keep]
        self._metadata = [self._metadata[row] for row in keep]
        self._known -= gone

    def search(
        self, queries: Mapping[str, ArrayLike], weights: Mapping[str, float] | None = None, k: int = 10
    ) -> list[Hit]:
        """Return the items with the largest weighted sum of cosine similarities; equal ones as added.

        With the flat engine every item is scored in every space asked: the result is exact, not merged from
            the
        best of each space.

        Args:
            queries: ``[D]`` for one or several spaces; normalised here.
            weights: of these spaces, 1 where none is given; a negative one asks for the opposite.
            k: at most so many hits; fewer where the index holds fewer.
        """
        if not queries:
            raise ValueError("AttributeIndex.search: queries must name at least one space, got none")
        if k < 1:
            raise ValueError(f"AttributeIndex.search: k must be at least 1, got {k}")
        self._check_names("search", "queries", queries)
        given = dict(weights or {})
        for name, weight in given.items():
            if name not in queries:
                raise ValueError(f"AttributeIndex.search: weights must be of spaces asked, got '{name}'")
            if not math.isfinite(weight):
                raise ValueError(f"AttributeIndex.search: weights must be finite, got {weight} for '{name}'")
        used = {name: float(given.get(name, 1.0)) for name in queries}
        if not any(used.values()):
            raise ValueError("AttributeIndex.search: weights must not all be 0, got only zeros")
        units = {name: self._unit_rows("search", name, _one_row(q), None)[0] for name, q in queries.items()}
        if not len(self):
            return []
        every = {name: self._vectors(name) for name in self.spaces}
        scores, rows = self._search_engine.search(every, units, used, min(k, len(self)))
        cosines = {name: every[name][rows] @ unit for name, unit in units.items()}
        return [
            Hit(
                self._ids[row],
                float(score),
                {name: float(cosine[place]) for name, cosine in cosines.items()},
                dict(self._metadata[row]),
            )
            for place, (score, row) in enumerate(zip(scores, rows, strict=True))
        ]

    def save(self) -> None:
        """Write the index to its folder.

        Raises RuntimeError where the folder was saved by another process since this index was loaded; nothing
        is written then.
        """
        manifest_path = self.path / "manifest.json"
        on_disk = manifest_path.read_bytes() if manifest_path.exists() else b""
        if on_disk != self._manifest_on_disk:
            raise RuntimeError(
                f"AttributeIndex.save: {self.path} must be as it was loaded, got a newer one; load again"
            )
        spaces = {}
        for number, (name, dim) in enumerate(self.spaces.items()):
            buffer = io.BytesIO()
            np.save(buffer, self._vectors(name))
            spaces[name] = {"dim": dim, **self._write(f"space{number}", ".npy", buffer.getbuffer())}
        lines = [json.dumps(row, ensure_ascii=False) for row in zip(self._ids, self._metadata, strict=True)]
        items = self._write("items", ".jsonl", "".join(line + "\n" for line in lines).encode())
        manifest = {
            "format": FORMAT,
            "version": __version__,
            "engine": self.engine,
            "count": len(self),
            "spaces": spaces,
            "items": items,
        }
        write_json(manifest_path, manifest)
        self._manifest_on_disk = manifest_path.read_bytes()
        used = {entry["file"] for entry in [*spaces.values(), items]}
        # Files of earlier savings, and what a kill left of one.
        for pattern in ("space*-*.npy", "items-*.jsonl", ".*.tmp"):
            for file in self.path.glob(pattern):
                if file.name not in used:
                    file.unlink()

    def info(self) -> dict[str, Any]:
        """Return what the index holds: count, spaces and their dimensions, engine and bytes of vectors."""
        return {
            "path": str(self.path),
            "engine": self.engine,
            "count": len(self),
            "spaces": dict(self.spaces),
            "vector_bytes": 4 * len(self) * sum(self.spaces.values()),
            "version": __version__,
        }

    def verify(self) -> list[str]:
        """Read every byte of the saved index and return what is wrong, a sentence each; empty if whole."""
        try:
            manifest, _ = _read_manifest(self.path)
        except (OSError, ValueError) as error:
            return [str(error)]
        problems = []
        for entry in [*manifest["spaces"].values(), manifest["items"]]:
            try:
                data = _whole(self.path, entry).read_bytes()
            except (OSError, ValueError) as error:
                problems.append(str(error))
                continue
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                problems.append(f"{self.path / entry['file']} must be as saved, got other bytes")
        return problems

    def _vectors(self, name: str) -> Vectors:
        parts = self._parts[name]
        if len(parts) > 1:
            self._parts[name] = parts = [np.concatenate(parts)]
        return parts[0]

    def _write(self, stem: str, suffix: str, data: bytes | memoryview) -> dict[str, Any]:
        """Write a file under a name of its content; one that is there already is the same."""
        digest = hashlib.sha256(data).hexdigest()
        file = self.path / f"{stem}-{digest[:16]}{suffix}"
        if not (file.exists() and file.stat().st_size == len(data)):
            write_bytes(file, data)
        return {"file": file.name, "bytes": len(data), "sha256": digest}

    def _check_names(self, method: str, argument: str, given: Mapping[str, Any]) -> None:
        for name in given:
            if name not in self.spaces:
                close = difflib.get_close_matches(str(name), self.spaces, n=1)
                hint = f"; closest is '{close[0]}'" if close else ""
                raise ValueError(
                    f"AttributeIndex.{method}: {argument} must be of the spaces {list(self.spaces)}, "
                    f"got '{name}'{hint}"
                )

    def _unit_rows(self, method: str, name: str, vectors: ArrayLike, ids: Sequence[Id] | None) -> Vectors:
        """Return rows of length 1; ``ids`` say what each is of, None for one query."""
        if isinstance(vectors, torch.Tensor):
            vectors = vectors.detach().cpu().float().numpy()
        rows = np.array(vectors, dtype=np.float32)
        count, dim = 1 if ids is None else len(ids), self.spaces[name]
        if rows.shape != (count, dim):
            raise ValueError(
                f"AttributeIndex.{method}: vectors of space '{name}' must have shape [{count}, {dim}], got "
                f"{list(rows.shape)}"
            )
        norms: NDArray[np.float64] = np.sqrt(np.square(rows, dtype=np.float64).sum(1))
        wrong = ~(np.isfinite(norms) & (norms > 0))
        if wrong.any():
            row = int(wrong.argmax())
            of = "" if ids is None else f" for id {ids[row]!r}"
            value = "a zero row" if norms[row] == 0 else "NaN or infinity"
            raise ValueError(
                f"AttributeIndex.{method}: vectors of space '{name}' must be finite and not zero, "
                f"got {value}{of}"
            )
        return (rows / norms[:, None]).astype(np.float32)


def _one_row(query: ArrayLike) -> ArrayLike:
    return query[None] if isinstance(query, torch.Tensor) else np.asarray(query)[None]


def _id(id: Any) -> Id:
    plain = id.item() if isinstance(id, np.generic) else id
    if isinstance(plain, bool) or not isinstance(plain, (str, int)):
        raise TypeError(f"AttributeIndex: ids must be strings or whole numbers, got {id!r}")
    return plain


def _read_manifest(folder: Path) -> tuple[dict[str, Any], bytes]:
    path = folder / "manifest.json"
    if not path.exists():
        raise FileNotFoundError(f"AttributeIndex: {folder} must hold an index, got no manifest.json")
    raw = path.read_bytes()
    try:
        manifest = json.loads(raw)
    except ValueError as error:
        raise ValueError(f"AttributeIndex: {path} must be JSON, got {error}") from error
    format = manifest.get("format") if isinstance(manifest, dict) else None
    if format != FORMAT:
        raise ValueError(f"AttributeIndex: {path} must have format '{FORMAT}', got {format!r}")
    if manifest["engine"] not in ENGINES:
        raise ValueError(
            f"AttributeIndex: {path} must name an engine of {list(ENGINES)}, got '{manifest['engine']}'"
        )
    return manifest, raw


def _whole(folder: Path, entry: Mapping[str, Any]) -> Path:
    """Return where a file of the manifest is, having checked its size."""
    file = folder / str(entry["file"])
    size = file.stat().st_size if file.exists() else None
    if size != entry["bytes"]:
        found = "no such file" if size is None else f"{size} bytes"
        raise ValueError(f"AttributeIndex: {file} must have {entry['bytes']} bytes, got {found}")
    return file
