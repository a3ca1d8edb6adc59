"""Engines: what stores the items of an index and finds the best of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from placket import __version__
from placket.index.where import Expression
from placket.runs import write_text

__all__ = [
    "ENGINES",
    "FORMAT",
    "Engine",
    "Found",
    "Id",
    "Item",
    "Vectors",
    "create",
    "load",
    "read_manifest",
    "write_manifest",
]

FORMAT = "placket-attribute-index/2"
Id: TypeAlias = str | int
Vectors: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    """An item that a search found."""

    id: Id
    score: float
    """Sum over the spaces asked, in their order, of ``float32(weight * cosine)``, in float32."""
    parts: dict[str, float]
    """Cosine in each space asked, without its weight."""
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Item:
    """An item as it is stored."""

    id: Id
    vectors: dict[str, Vectors]
    """``[D]`` of length 1 in each space."""
    metadata: dict[str, Any]


class Engine(Protocol):
    """Stores items and finds them. ``AttributeIndex`` has checked what an engine is given.

    Vectors are float32 rows of length 1; ids are strings and whole numbers of 64 bits, no two alike in one
    call; metadata are mappings in JSON's types. Where a method raises, the engine is as it was.
    """

    @property
    def spaces(self) -> Mapping[str, int]:
        """Name and dimension of each space, in the order they were added."""
        ...

    def __len__(self) -> int: ...

    def contains(self, ids: Sequence[Id]) -> NDArray[np.bool_]:
        """Return ``[n]``, whether each is there."""
        ...

    def ids(self) -> Iterator[Id]:
        """Return every id, in the order the items were added."""
        ...

    def get(self, ids: Sequence[Id]) -> list[Item]:
        """Return items, all of which are there, in the order of ``ids``."""
        ...

    def put(
        self, ids: Sequence[Id], vectors: Mapping[str, Vectors], metadata: Sequence[dict[str, Any]]
    ) -> None:
        """Add n items, ``[n, D]`` in every space; one that is there is replaced and counts as added now."""
        ...

    def remove(self, ids: Sequence[Id]) -> None:
        """Remove items, all of which are there."""
        ...

    def add_space(self, name: str, dim: int, blocks: Iterable[tuple[Sequence[Id], Vectors]]) -> None:
        """Add a space; the blocks hold a row for every item, in any order, and nothing else.

        Raises:
            ValueError: an id is not there, is there a second time, or has no row. Each block is checked
                before the next is asked for.
        """
        ...

    def commit(self) -> None:
        """Keep what was put, removed and added since the last time: all of it or, with a local engine, none.

        When it returns, other processes see it and a power cut does not lose it.
        """
        ...

    def refresh(self) -> None:
        """See what other processes have committed; a writer has no need to."""
        ...

    def search(
        self,
        queries: Mapping[str, Vectors],
        weights: Mapping[str, float],
        k: int,
        where: Expression | None,
    ) -> list[list[Found]]:
        """Return at most ``k`` items for each of Q queries, by falling score; equal scores as added.

        Args:
            queries: ``[Q, D]`` rows of length 1 for the spaces asked, in the order of ``spaces``; one Q.
            weights: of the same spaces; finite, not all 0.
            k: at least 1.
            where: what the metadata of the items must fulfil.
        """
        ...

    def info(self) -> dict[str, Any]:
        """Return what is worth to know beside spaces and count, in JSON's types."""
        ...

    def verify(self) -> list[str]:
        """Read all that is stored and return what is wrong, a sentence each."""
        ...

    def compact(self) -> None:
        """Free what removed items hold, and commit."""
        ...

    def close(self) -> None:
        """Let go of files, locks and connections, without a commit."""
        ...


@dataclass(frozen=True)
class _EngineModule:
    """A module with ``create(path, spaces, options)`` and ``load(path, manifest, read_only)``."""

    name: str
    needs: str = ""
    """What it imports beyond placket's own dependencies."""
    extra: str = ""
    """What pip calls it: ``placket[extra]``."""


ENGINES: Mapping[str, _EngineModule] = {
    "flat": _EngineModule("placket.index.flat"),
    "faiss": _EngineModule("placket.index.faiss_engine", "faiss", "faiss"),
    "milvus": _EngineModule("placket.index.milvus_engine", "pymilvus", "milvus"),
}
"""Engines by the names that ``AttributeIndex.create`` takes; a module is imported when its engine is used."""


def create(path: Path, engine: str, spaces: Mapping[str, int], options: Mapping[str, Any]) -> Engine:
    """Make an empty index in a folder that exists and holds none; it is committed.

    Raises:
        ModuleNotFoundError: the engine needs a package that is not installed.
        ValueError: there is no such engine, or no such option.
    """
    made: Engine = _module(engine).create(path, spaces, options)
    return made


def load(path: Path, read_only: bool) -> tuple[str, Engine]:
    """Open the index in a folder, and say which engine it has.

    Raises:
        BlockingIOError: another process writes it; ``read_only`` opens do not mind.
        FileNotFoundError: there is none.
        ModuleNotFoundError: its engine needs a package that is not installed.
        ValueError: it is of another format, or damaged.
    """
    manifest = read_manifest(path)
    loaded: Engine = _module(manifest["engine"]).load(path, manifest, read_only)
    return str(manifest["engine"]), loaded


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check the part of ``manifest.json`` that engines share: format, engine, options.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not what ``write_manifest`` wrote.
    """
    path = folder / "manifest.json"
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"AttributeIndex: {folder} must hold an index, got no manifest.json"
        ) from None
    try:
        manifest = json.loads(raw)
    except ValueError as error:
        raise ValueError(f"AttributeIndex: {path} must be JSON, got {error}") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        mend = "; build it again" if str(found).startswith("placket-attribute-index/") else ""
        raise ValueError(f"AttributeIndex: {path} must have format '{FORMAT}', got {found!r}{mend}")
    said = {key: value for key, value in manifest.items() if key != "checksum"}
    if _text(said)[0].encode() != raw:
        raise ValueError(
            f"AttributeIndex: {path} must be as saved, got other bytes; restore or build it again"
        )
    return dict(manifest)


def write_manifest(folder: Path, engine: str, options: Mapping[str, Any], rest: Mapping[str, Any]) -> str:
    """Replace ``manifest.json``, at once and whole, and return its checksum; ``rest`` is the engine's own."""
    shared = {"format": FORMAT, "version": __version__, "engine": engine, "options": dict(options)}
    text, checksum = _text({**shared, **rest})
    write_text(folder / "manifest.json", text)
    return checksum


def _text(manifest: Mapping[str, Any]) -> tuple[str, str]:
    """Return the text of a manifest, its own SHA-256 at the end, and that."""
    checksum = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
    return json.dumps({**manifest, "checksum": checksum}, indent=1) + "\n", checksum


def _module(engine: str) -> ModuleType:
    if engine not in ENGINES:
        raise ValueError(f"AttributeIndex: engine must be one of {list(ENGINES)}, got {engine!r}")
    entry = ENGINES[engine]
    try:
        return import_module(entry.name)
    except ModuleNotFoundError as error:
        if not entry.needs or error.name != entry.needs:
            raise
        raise ModuleNotFoundError(
            f"AttributeIndex: engine '{engine}' must have the package {entry.needs}, got none installed; "
            f'pip install "placket[{entry.extra}]"',
            name=entry.needs,
        ) from error
