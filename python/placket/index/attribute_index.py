"""An index over named attribute spaces: what a caller sees of an engine."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from placket import __version__
from placket.index import engines
from placket.index.engines import Engine, Found, Id, Item, Vectors
from placket.index.model import embeds_flipped, verify_model
from placket.index.where import Expression, Name, Not, Null, parse, parse_name

__all__ = ["AttributeIndex", "Hit"]


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

    Make one with ``create`` or ``load``. What is added or removed is searched at once by this process;
    ``save`` keeps it and shows it to others. Without ``read_only`` an index is held by one process at a time,
    until ``close`` or the end of a ``with`` block.

    Example::

        with AttributeIndex.create("shop", spaces={"neckline": 128, "sleeve": 128}) as index:
            index.add(ids, {"neckline": a, "sleeve": b}, metadata=rows)
            index.save()
            hits = index.search({"neckline": q, "sleeve": r}, {"neckline": 2.0}, k=10, where="price < 50")
    """

    def __init__(self, path: Path, name: str, engine: Engine, read_only: bool) -> None:
        self.path = path
        self.engine = name
        self.read_only = read_only
        self._made: Engine | None = engine

    @staticmethod
    def create(
        path: str | os.PathLike[str], spaces: Mapping[str, int], engine: str = "flat", **options: Any
    ) -> AttributeIndex:
        """Make an empty index in a folder.

        Args:
            path: the folder; made with its parents where it is absent. It must not hold an index.
            spaces: name of each attribute space and its dimension; ``add_space`` adds others later.
            engine: "flat" scores every item, exactly; "faiss" and "milvus" need a package of their own.
            options: of the engine, see ``placket.index.flat.create`` and its like.

        Raises:
            FileExistsError: the folder holds an index.
            ModuleNotFoundError: the engine's package is not installed.
            ValueError: the spaces, the engine or an option is not valid.
        """
        folder = Path(path)
        if (folder / "manifest.json").exists():
            raise FileExistsError(
                f"AttributeIndex.create: path must not hold an index, got {folder}; use load"
            )
        if not spaces:
            raise ValueError("AttributeIndex.create: spaces must name at least one space, got none")
        for name, dim in spaces.items():
            _check_space("create", name, dim)
        folder.mkdir(parents=True, exist_ok=True)
        return AttributeIndex(folder, engine, engines.create(folder, engine, spaces, options), False)

    @staticmethod
    def load(path: str | os.PathLike[str], *, read_only: bool = False) -> AttributeIndex:
        """Open the index in a folder; its files are mapped into memory and checked where they are read.

        Args:
            path: the folder.
            read_only: see the version that was saved last, whoever writes; ``refresh`` shows later ones.

        Raises:
            BlockingIOError: another process, or another object of this one, holds it for writing.
            FileNotFoundError: there is no index, or a file of it is not there.
            ModuleNotFoundError: the engine's package is not installed.
            ValueError: it is damaged, or of another format.
        """
        folder = Path(path)
        name, engine = engines.load(folder, read_only)
        return AttributeIndex(folder, name, engine, read_only)

    def __enter__(self) -> AttributeIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of files, lock and connections; what was not saved is lost. A second call does nothing."""
        if self._made is not None:
            self._made.close()
            self._made = None

    @property
    def spaces(self) -> dict[str, int]:
        """Name and dimension of each space, in the order they were added."""
        return dict(self._engine.spaces)

    def __len__(self) -> int:
        return len(self._engine)

    def __contains__(self, id: object) -> bool:
        return isinstance(id, (str, int, np.integer)) and bool(self._engine.contains([_id(id)])[0])

    def contains(self, ids: Sequence[Id]) -> NDArray[np.bool_]:
        """Return ``[n]``, which ids are there; faster than ``in`` for many."""
        return self._engine.contains([_id(id) for id in ids])

    def ids(self) -> Iterator[Id]:
        """Return every id, in the order the items were added."""
        return self._engine.ids()

    def get(self, id: Id) -> Item:
        """Return an item: its unit vector in each space and its metadata.

        Raises:
            LookupError: it is not there.
        """
        if id not in self:
            raise LookupError(f"AttributeIndex.get: id must be in the index, got {id!r}")
        return self._engine.get([_id(id)])[0]

    def add(
        self,
        ids: Sequence[Id],
        vectors: Mapping[str, ArrayLike],
        metadata: Sequence[Mapping[str, Any]] | None = None,
        replace: bool = False,
    ) -> None:
        """Add items; all of them or, where something is wrong, none.

        Args:
            ids: n strings or whole numbers of 64 bits, no two alike.
            vectors: ``[n, D]`` for every space of the index; normalised here.
            metadata: n mappings in JSON's types, or None. Whole numbers must fit in 64 bits.
            replace: whether items that are in the index are replaced; they count as added now. Without it
                their ids are an error.

        Raises:
            TypeError: an id is of another type.
            ValueError: something does not fit; the text says what.
        """
        engine = self._writer("add")
        new = _ids("add", ids)
        there = engine.contains(new)
        if there.any() and not replace:
            raise ValueError(
                f"AttributeIndex.add: ids must be new, got {new[int(there.argmax())]!r}, which is in the "
                "index; replace=True replaces it"
            )
        self._check_names("add", "vectors", vectors)
        missing = [name for name in engine.spaces if name not in vectors]
        if missing:
            raise ValueError(
                f"AttributeIndex.add: vectors must hold every space, got none for '{missing[0]}'"
            )
        rows = {name: _unit_rows("add", name, vectors[name], dim, new) for name, dim in engine.spaces.items()}
        described = [{} for _ in new] if metadata is None else list(metadata)
        if len(described) != len(new):
            raise ValueError(f"AttributeIndex.add: metadata must have {len(new)} rows, got {len(described)}")
        plain = [_plain(id, row) for id, row in zip(new, described, strict=True)]
        if new:
            engine.put(new, rows, plain)

    def remove(self, ids: Iterable[Id]) -> None:
        """Remove items; all of them or, where one is not there, none."""
        engine = self._writer("remove")
        gone = list(dict.fromkeys(_id(id) for id in ids))
        there = engine.contains(gone)
        if not there.all():
            raise ValueError(
                f"AttributeIndex.remove: ids must be in the index, got {gone[int(there.argmin())]!r}"
            )
        if gone:
            engine.remove(gone)

    def add_space(
        self,
        name: str,
        dim: int,
        ids: Sequence[Id] | None = None,
        vectors: ArrayLike | None = None,
        *,
        blocks: Iterable[tuple[Sequence[Id], ArrayLike]] | None = None,
    ) -> None:
        """Add a space to an index that holds items, without a change to the others.

        Args:
            name: of the space.
            dim: its dimension.
            ids: of all items, in any order.
            vectors: ``[n, dim]``, a row for each of ``ids``; normalised here.
            blocks: the same in parts, of which one at a time is in memory; instead of ``ids`` and
                ``vectors``. Without any of them the index must be empty.

        Raises:
            ValueError: an item has no vector or two, or something else does not fit; the index is as before.
        """
        engine = self._writer("add_space")
        _check_space("add_space", name, dim)
        if name in engine.spaces:
            raise ValueError(f"AttributeIndex.add_space: name must be new, got '{name}'")
        if (ids is None) != (vectors is None) or (ids is not None and blocks is not None):
            raise ValueError("AttributeIndex.add_space: vectors must come with ids, or in blocks")
        if ids is not None and vectors is not None:
            blocks = [(ids, vectors)]

        def checked() -> Iterator[tuple[list[Id], Vectors]]:
            for some, rows in blocks or ():
                own = _ids("add_space", some)
                yield own, _unit_rows("add_space", name, rows, dim, own)

        engine.add_space(name, dim, checked())

    def search(
        self,
        queries: Mapping[str, ArrayLike],
        weights: Mapping[str, float] | None = None,
        k: int = 10,
        where: str | Expression | None = None,
        group_by: str | None = None,
    ) -> list[Any]:
        """Return the items with the largest weighted sum of cosine similarities; equal ones as added.

        With ``group_by`` each item stands for those that have the same value in the metadata, as their best,
        and an item without a value for itself. Four times as many items are asked for, again and again, until
        there are k groups or no further item: as exact as the engine.

        Args:
            queries: ``[D]`` for one or several spaces, or ``[Q, D]`` for Q queries; normalised here.
            weights: of these spaces, 1 where none is given; a negative one asks for the opposite.
            k: at most so many hits; fewer where fewer items fulfil the condition.
            where: a condition on the metadata, "price < 50 and labels.neckline has 'v'" for example; its
                grammar is in ``placket.index.where``.
            group_by: a name in the metadata, "product" or "predicted.sleeve".

        Returns:
            a list of ``Hit`` for one query, a list of such lists for ``[Q, D]``.

        Raises:
            ValueError: something does not fit, no item has a value of ``group_by``, or a file that is read is
                damaged.
        """
        engine = self._engine
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
        # In the order of the spaces, so that no result depends on the order of a caller's mapping.
        asked = {name: _array(queries[name]) for name in engine.spaces if name in queries}
        used = {name: float(given.get(name, 1.0)) for name in asked}
        if not any(used.values()):
            raise ValueError("AttributeIndex.search: weights must not all be 0, got only zeros")
        one = all(query.ndim == 1 for query in asked.values())
        rows = {name: query[None] if one else query for name, query in asked.items()}
        count = max(map(len, rows.values())) if all(query.ndim == 2 for query in rows.values()) else 1
        units = {
            name: _unit_rows("search", name, query, engine.spaces[name], range(count), "query ")
            for name, query in rows.items()
        }
        condition = parse(where) if isinstance(where, str) else where
        if not count:
            return []
        if group_by is None:
            found = engine.search(units, used, k, condition)
        else:
            found = _search_groups(engine, units, used, k, condition, parse_name(group_by))
        every = [[Hit(one.id, one.score, one.parts, one.metadata) for one in of_one] for of_one in found]
        return every[0] if one else every

    def save(self) -> None:
        """Keep what was added and removed: all of it or, where this raises, nothing.

        With a local engine it is on disk when this returns, and readers see it when they load or refresh.

        Raises:
            OSError: the disk is full, for example; the index on disk is as it was, and this object still has
                everything, so that it can be saved again.
        """
        self._writer("save").commit()

    def refresh(self) -> None:
        """See what another process has saved since this index was loaded or refreshed."""
        self._engine.refresh()

    def compact(self) -> None:
        """Free the space of items that were removed or replaced, and save."""
        self._writer("compact").compact()

    def info(self) -> dict[str, Any]:
        """Return what the index holds, in JSON's types."""
        engine = self._engine
        return {
            "path": str(self.path),
            "engine": self.engine,
            "count": len(engine),
            "spaces": dict(engine.spaces),
            "flip": embeds_flipped(self.path),
            **engine.info(),
            "version": __version__,
        }

    def verify(self) -> list[str]:
        """Read all that was saved, the model too, and return what is wrong, a sentence each."""
        return self._engine.verify() + verify_model(self.path)

    @property
    def _engine(self) -> Engine:
        if self._made is None:
            raise ValueError(f"AttributeIndex: {self.path} must be open, got it closed; load it again")
        return self._made

    def _writer(self, method: str) -> Engine:
        if self.read_only:
            raise PermissionError(
                f"AttributeIndex.{method}: {self.path} must be open for writing, got read_only=True; "
                "load it without"
            )
        return self._engine

    def _check_names(self, method: str, argument: str, given: Mapping[str, Any]) -> None:
        spaces = self._engine.spaces
        for name in given:
            if name not in spaces:
                close = difflib.get_close_matches(str(name), spaces, n=1)
                hint = f"; closest is '{close[0]}'" if close else ""
                raise ValueError(
                    f"AttributeIndex.{method}: {argument} must be of the spaces {list(spaces)}, "
                    f"got '{name}'{hint}"
                )


def _search_groups(
    engine: Engine,
    queries: Mapping[str, Vectors],
    weights: Mapping[str, float],
    k: int,
    condition: Expression | None,
    name: Name,
) -> list[list[Found]]:
    """Return the best item of each of the first k groups, for each query."""
    most = k
    while True:
        every = engine.search(queries, weights, most, condition)
        best = [_best_of_groups(found, name)[:k] for found in every]
        if most >= len(engine) or all(len(b) == k or len(e) < most for b, e in zip(best, every, strict=True)):
            break
        most *= 4
    hits = [found for of_one in best for found in of_one]
    if hits and all(_value(found.metadata, name) is None for found in hits):
        some = {space: rows[:1] for space, rows in queries.items()}
        if not engine.search(some, weights, 1, Not(Null(name)))[0]:
            raise ValueError(
                f"AttributeIndex.search: group_by must be in the metadata of an item, got '{'.'.join(name)}'"
            )
    return best


def _best_of_groups(found: Sequence[Found], name: Name) -> list[Found]:
    groups: dict[object, Found] = {}
    for one in found:
        value = _value(one.metadata, name)
        groups.setdefault((one.id,) if value is None else json.dumps(value, sort_keys=True), one)
    return list(groups.values())


def _value(metadata: Any, name: Name) -> Any:
    """Return what is under a name in metadata, None where nothing is."""
    for key in name:
        metadata = metadata.get(key) if isinstance(metadata, dict) else None
    return metadata


def _check_space(method: str, name: object, dim: object) -> None:
    if not (isinstance(name, str) and name and isinstance(dim, int) and dim >= 1):
        raise ValueError(
            f"AttributeIndex.{method}: spaces must map names to positive dimensions, got {name!r}: {dim!r}"
        )


def _array(vectors: ArrayLike) -> NDArray[Any]:
    return (
        vectors.detach().cpu().float().numpy() if isinstance(vectors, torch.Tensor) else np.asarray(vectors)
    )


def _unit_rows(
    method: str, name: str, vectors: ArrayLike, dim: int, of: Sequence[Id], what: str = "id "
) -> Vectors:
    """Return rows of length 1; ``what`` and ``of`` say what each is of."""
    given = _array(vectors)
    if given.shape != (len(of), dim):
        raise ValueError(
            f"AttributeIndex.{method}: vectors of space '{name}' must have shape [{len(of)}, {dim}], got "
            f"{list(given.shape)}"
        )
    units = np.empty(given.shape, np.float32)
    # In parts, since lengths are taken in float64, which must not be as large as all rows.
    for begin in range(0, len(of), _PART):
        with np.errstate(over="ignore"):
            rows = given[begin : begin + _PART].astype(np.float32).astype(np.float64)
        norms: NDArray[np.float64] = np.sqrt(np.square(rows).sum(1))
        wrong = ~(np.isfinite(norms) & (norms > 0))
        if wrong.any():
            row = int(wrong.argmax())
            value = "a zero row" if norms[row] == 0 else "NaN or infinity"
            raise ValueError(
                f"AttributeIndex.{method}: vectors of space '{name}' must be finite and not zero, "
                f"got {value} for {what}{of[begin + row]!r}"
            )
        units[begin : begin + _PART] = rows / norms[:, None]
    return units


_PART = 4096


def _ids(method: str, ids: Iterable[Id]) -> list[Id]:
    """Return ids of which no two are alike."""
    checked = [_id(id) for id in ids]
    if len(set(checked)) < len(checked):
        twice = Counter(checked).most_common(1)[0][0]
        raise ValueError(f"AttributeIndex.{method}: ids must be new, got {twice!r} a second time")
    return checked


def _id(id: Any) -> Id:
    plain = id.item() if isinstance(id, np.generic) else id
    if isinstance(plain, bool) or not isinstance(plain, (str, int)):
        raise TypeError(f"AttributeIndex: ids must be strings or whole numbers, got {id!r}")
    if isinstance(plain, int) and not -(2**63) <= plain < 2**63:
        raise ValueError(f"AttributeIndex: ids must be whole numbers of 64 bits, got {plain}")
    if isinstance(plain, str):
        try:
            plain.encode()
        except UnicodeEncodeError:
            raise ValueError(f"AttributeIndex: ids must be text for UTF-8, got {plain!r}") from None
    return plain


def _plain(id: Id, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata as it will be read again."""
    try:
        strange = next((key for key in metadata if not isinstance(key, str)), None)
        if strange is not None:
            raise TypeError(f"the key {strange!r}")
        text = json.dumps(dict(metadata), allow_nan=False, ensure_ascii=False)
        text.encode()
        return dict(json.loads(text, parse_int=_whole_number))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"AttributeIndex.add: metadata must be JSON, got {error} for id {id!r}") from error


def _whole_number(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"{digits[:40]}, which does not fit in 64 bits,")
    return int(digits)
