"""An index on a Milvus server or cluster, for what outgrows one machine.

Collections. An index named NAME is one collection of items and one collection for each space::

    NAME_items               id (primary), seq, conditions, metadata, placeholder
    NAME_space_0_neckline    key (primary), seq, conditions, vector
    NAME_space_1_sleeve      ...

One collection with a vector field for each space would hold ten spaces at most, could gain none later
(before Milvus 3.0), is not to be had from a 2.3 server at all, and loads, indexes and replicates all spaces
alike. Collections of their own have their own index type, shards and replicas, and one is filled anew
without touching the others. ``conditions`` stands in each of them, so that every search is filtered by the
server before it ranks (``milvus_where``).

Writing. ``seq`` numbers what is added: microseconds of the writer's clock, rising with each item, so that
several processes can write at once; equal scores are ordered by it. A row of a space is named ``id@seq``
and never changed. An item is put by adding its rows to the spaces, then its row to the items, whose ``seq``
says which rows are its own; the rows it had before are deleted last. So an item changes in all spaces at
once, a writer killed half-way leaves the item as it was beside rows that nobody sees (``compact`` deletes
them), and what is sent twice is there once. The items of one call appear one by one. A space is filled
under another name and renamed when it is whole; meanwhile nobody else may add items.

Searching. Each space is asked for its best, and the weighted sum is made from these lists: exactly with the
index type FLAT (``threshold``), from the ``candidates`` best of each space with any other. Vectors are
fetched and scored here. Exact search over several unlike spaces reads far down the lists; where the 16,384
rows that a server gives do not decide, it reads every vector that passes the filter. Beyond a million items
ask one space, filter narrowly, or take an approximate index.

Layout of a cluster. Rows are spread over ``shards`` by the hash of their key, never by attribute: load
follows popular attributes. More shards write faster, ``replicas`` answer more queries and multiply the
memory. There are no partitions: a search would ask each of them and merge, and the filter does what they
would be for. Memory for 10^9 vectors of one space::

    FLAT                float32, 2,048 / 256 dimensions    8.2 / 1.0 TB
    HNSW, M = 32        the same and links                 + 0.26-0.29 TB
    IVF_SQ8             int8, 256 dimensions               256 GB
    IVF_PQ              64 / 32 bytes                      72 / 40 GB with ids
    DISKANN             codes, and 4.1 TB of NVMe          32-72 GB

Run with Milvus 2.3.5 (of the package ``milvus``) and Milvus Lite 3.2, through pymilvus 3.0.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placket.index.engines import Found, Id, Item, Vectors, write_manifest
from placket.index.milvus_client import (
    DEEPEST,
    LARGEST_TEXT,
    LONGEST_ID,
    REQUEST,
    Options,
    Row,
    Server,
    Space,
    check,
)
from placket.index.milvus_where import FIELD, conditions, translate
from placket.index.threshold import Best, Numbers, Ranked, cosines, rescored, rounding, weighted_top_k
from placket.index.where import Expression

__all__ = ["MilvusEngine", "create", "load"]

LEFT_FOR_DEAD = 3600
"""Seconds after which rows of no item are of a dead writer, not of one that is about to add the item."""


def create(path: Path, spaces: Mapping[str, int], options: Mapping[str, Any]) -> MilvusEngine:
    """Make an empty index on the server that the options name; the folder holds but the options.

    Raises:
        ConnectionError: the server does not answer.
        ValueError: an option is wrong, or the server holds an index of that name.
    """
    given = {"collection": f"{re.sub('[^A-Za-z0-9]', '_', path.name)[:64]}_{secrets.token_hex(4)}", **options}
    token = given.pop("token", None)
    known = [each.name for each in fields(Options)]
    for name in given:
        if name not in known:
            raise ValueError(
                f"AttributeIndex.create: options of engine 'milvus' must be of {[*known, 'token']}, "
                f"got {name!r}"
            )
    if "uri" not in given:
        raise ValueError("AttributeIndex.create: options of engine 'milvus' must hold uri, got none")
    chosen = Options(**given)
    with Server(chosen, token).closed_on_error() as server:
        there = [name for name in server.collections() if server.owns(name)]
        check(not there, f"collection '{chosen.collection}' must be new on {chosen.uri}; drop", there)
        made = [
            partial(server.make_space, server.space_name(number, name), name, dim)
            for number, (name, dim) in enumerate(spaces.items())
        ]
        server.each(partial.__call__, [partial(server.make_items), *made])
        write_manifest(path, "milvus", asdict(chosen), {})
        return MilvusEngine(server)


def load(path: Path, manifest: Mapping[str, Any], read_only: bool) -> MilvusEngine:
    """Open an index; what it holds is as on its server. Several processes may write at once.

    Raises:
        ConnectionError: the server does not answer.
        ValueError: what is on the server is not this index.
    """
    with Server(Options(**manifest["options"]), None).closed_on_error() as server:
        return MilvusEngine(server)


class MilvusEngine:
    """See ``engines.Engine`` and the top of this file."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._spaces: dict[str, Space] = {}
        self._last_seq = 0
        self._changed: set[str] = set()
        self.refresh()

    @property
    def spaces(self) -> Mapping[str, int]:
        return {name: space.dim for name, space in self._spaces.items()}

    def __len__(self) -> int:
        return self._server.count(self._server.items, "")

    def contains(self, ids: Sequence[Id]) -> NDArray[np.bool_]:
        there = self._seqs(ids)
        return np.array([each in there for each in ids], dtype=bool)

    def ids(self) -> Iterator[Id]:
        for rows in self._server.scan(self._server.items, "", "id"):
            yield from (json.loads(row["id"]) for row in rows)

    def get(self, ids: Sequence[Id]) -> list[Item]:
        server, names = self._server, list(self._spaces)
        found = server.fetch(server.items, "id", map(_text, ids), ["id", "seq", "metadata"], LARGEST_TEXT)
        rows = [found[_text(each)] for each in ids]
        keys = [_key(row) for row in rows]
        vectors = server.each(lambda name: self._vectors(name, keys), names)
        return [
            Item(
                each,
                {name: held[key] for name, held in zip(names, vectors, strict=True)},
                json.loads(row["metadata"]),
            )
            for each, key, row in zip(ids, keys, rows, strict=True)
        ]

    def put(
        self, ids: Sequence[Id], vectors: Mapping[str, Vectors], metadata: Sequence[dict[str, Any]]
    ) -> None:
        server = self._server
        rows = [self._row(each, meta) for each, meta in zip(ids, metadata, strict=True)]
        before = self._seqs(ids)
        keys = [_key(row) for row in rows]
        self._changed |= {server.items, *self._collections()}

        def put(name: str) -> None:
            server.upsert(self._spaces[name].collection, _space_rows(keys, rows, vectors[name]))

        server.each(put, self._spaces)
        server.upsert(server.items, rows)
        self._delete_rows([f"{_text(each)}@{seq}" for each, seq in before.items()])

    def remove(self, ids: Sequence[Id]) -> None:
        before = self._seqs(ids)
        self._changed.add(self._server.items)
        self._server.delete(self._server.items, "id", [_text(each) for each in ids])
        self._delete_rows([f"{_text(each)}@{seq}" for each, seq in before.items()])

    def add_space(self, name: str, dim: int, blocks: Iterable[tuple[Sequence[Id], Vectors]]) -> None:
        server = self._server
        number = 1 + max(space.number for space in self._spaces.values())
        made = server.space_name(number, name, "new")
        server.make_space(made, name, dim)
        try:
            for ids, vectors in blocks:
                self._fill(made, ids, vectors)
            for key in self._lacking(made):
                raise ValueError(
                    "AttributeIndex.add_space: vectors must hold a row for every item, got none for "
                    f"{_id(key)!r}"
                )
            server.call("flush", made)
            server.call("rename_collection", made, server.space_name(number, name))
        except BaseException:
            server.call("drop_collection", made)
            raise
        self.refresh()

    def commit(self) -> None:
        server = self._server
        server.each(lambda collection: server.call("flush", collection), sorted(self._changed))
        self._changed.clear()

    def refresh(self) -> None:
        self._spaces = self._server.spaces()

    def search(
        self,
        queries: Mapping[str, Vectors],
        weights: Mapping[str, float],
        k: int,
        where: Expression | None,
    ) -> list[list[Found]]:
        return _Search(self, queries, weights, where).best(k)

    def info(self) -> dict[str, Any]:
        options = asdict(self._server.options)
        return {**options, "server": str(self._server.call("get_server_version"))}

    def verify(self) -> list[str]:
        """Return what is wrong: items without a row in a space, and spaces that are not as they should be."""
        try:
            self.refresh()
        except ValueError as error:
            return [str(error)]
        return [
            f"AttributeIndex: item {_id(key)!r} must have a vector in {space.collection}, got none"
            for space in self._spaces.values()
            for key in self._lacking(space.collection)
        ]

    def compact(self) -> None:
        """Delete rows that killed writers left, and have the server free what removed rows hold."""
        server = self._server
        alive = int((time.time() - LEFT_FOR_DEAD) * 1e6)
        for space in self._spaces.values():
            for rows in server.scan(space.collection, f"seq < {alive}", "key"):
                items = server.scan(
                    server.items, f"seq >= {rows[0]['seq']} and seq <= {rows[-1]['seq']}", "id"
                )
                owned = {_key(row) for block in items for row in block}
                left = [row["key"] for row in rows if row["key"] not in owned]
                server.delete(space.collection, "key", left)
                if left:
                    self._changed.add(space.collection)
        self.commit()
        for collection in (server.items, *self._collections()):
            server.call("compact", collection)

    def drop(self) -> None:
        """Delete the index from the server."""
        server = self._server
        # The items first: without them there is no index.
        server.call("drop_collection", server.items)
        server.each(lambda collection: server.call("drop_collection", collection), self._collections())

    def close(self) -> None:
        self._server.close()

    def _collections(self) -> list[str]:
        return [space.collection for space in self._spaces.values()]

    def _seqs(self, ids: Iterable[Id]) -> dict[Id, int]:
        """Return the seq of each item that is there."""
        server = self._server
        rows = server.fetch(server.items, "id", map(_text, ids), ["seq"], 64)
        return {json.loads(text): row["seq"] for text, row in rows.items()}

    def _row(self, each: Id, metadata: Mapping[str, Any]) -> Row:
        self._last_seq = max(self._last_seq + 1, time.time_ns() // 1000)
        row: Row = {
            "id": _text(each),
            "seq": self._last_seq,
            FIELD: conditions(metadata),
            "metadata": json.dumps(metadata, ensure_ascii=False),
            "placeholder": [0.0, 0.0],
        }
        for name, most in {"id": LONGEST_ID, "metadata": LARGEST_TEXT, FIELD: LARGEST_TEXT}.items():
            text = row[name] if isinstance(row[name], str) else json.dumps(row[name], ensure_ascii=False)
            size = len(text.encode())
            check(size <= most, f"{name} of item {each!r} must take at most {most:,} bytes with Milvus", size)
        return row

    def _fill(self, collection: str, ids: Sequence[Id], vectors: Vectors) -> None:
        """Add rows of a new space."""
        server = self._server
        items = server.fetch(server.items, "id", map(_text, ids), ["id", "seq", FIELD], LARGEST_TEXT)
        for each in ids:
            if _text(each) not in items:
                raise ValueError(f"AttributeIndex.add_space: ids must be in the index, got {each!r}")
        rows = [items[_text(each)] for each in ids]
        keys = [_key(row) for row in rows]
        for key in server.fetch(collection, "key", keys, ["seq"], 64):
            raise ValueError(
                f"AttributeIndex.add_space: vectors must hold one row for each item, got two for {_id(key)!r}"
            )
        server.upsert(collection, _space_rows(keys, rows, vectors))

    def _lacking(self, collection: str) -> Iterator[str]:
        """Return the keys of items that have no row in a space's collection, as the items were added."""
        server = self._server
        for rows in server.scan(server.items, "", "id"):
            there = set(self._keys_between(collection, rows[0]["seq"], rows[-1]["seq"]))
            yield from (key for row in rows if (key := _key(row)) not in there)

    def _delete_rows(self, keys: Sequence[str]) -> None:
        if keys:
            server, collections = self._server, self._collections()
            self._changed.update(collections)
            server.each(lambda collection: server.delete(collection, "key", keys), collections)

    def _keys_between(self, collection: str, first: int, last: int) -> Iterator[str]:
        for rows in self._server.scan(collection, f"seq >= {first} and seq <= {last}", "key"):
            yield from (row["key"] for row in rows)

    def _vectors(self, name: str, keys: Sequence[str]) -> dict[str, Vectors]:
        """Return the vectors of a space's rows, as far as they are there."""
        space = self._spaces[name]
        rows = self._server.fetch(space.collection, "key", keys, ["vector"], 4 * space.dim)
        return {key: np.array(row["vector"], np.float32) for key, row in rows.items()}


class _Search:
    """One batch of queries."""

    def __init__(
        self,
        engine: MilvusEngine,
        queries: Mapping[str, Vectors],
        weights: Mapping[str, float],
        where: Expression | None,
    ) -> None:
        self._engine, self._server = engine, engine._server
        self._queries = queries
        self._names = list(queries)
        self._weights = [weights[name] for name in self._names]
        self._filter = "" if where is None else translate(where)
        self._numbers: dict[str, int] = {}
        self._keys: dict[int, str] = {}

    def best(self, k: int) -> list[list[Found]]:
        count = len(self._queries[self._names[0]])
        spaces = [self._engine._spaces[name] for name in self._names]
        exact = all(space.index_type == "FLAT" for space in spaces)
        if exact:
            found = weighted_top_k(
                self._ranked,
                self._exact,
                self._everything,
                self._weights,
                queries=count,
                k=k,
                slack=rounding(max(space.dim for space in spaces)),
                deepest=DEEPEST,
            )
        else:
            depth = max(k, self._server.options.candidates)
            check(depth <= DEEPEST, f"k must be at most {DEEPEST:,} with an approximate index", k)
            found = rescored(self._ranked, self._exact, self._weights, queries=count, k=k, depth=depth)
        return self._with_metadata(found)

    def _ranked(self, space: int, queries: Numbers, depth: int) -> list[Ranked]:
        name = self._names[space]
        # The smallest products with a query are the largest with its opposite.
        sign = np.float32(np.sign(self._weights[space]))
        answers = self._server.search(
            self._engine._spaces[name].collection, sign * self._queries[name][queries], depth, self._filter
        )
        return [
            Ranked(
                np.array([self._number(hit["key"]) for hit in hits], np.int64),
                sign * np.array([hit["distance"] for hit in hits], np.float32),
            )
            for hits in answers
        ]

    def _exact(self, queries: Numbers, rows: Numbers) -> Vectors:
        found = np.full((len(rows), len(self._names)), np.nan, np.float32)
        asked = list(self._queries.values())
        # So many vectors at a time as fit one answer of the server, whatever the number of rows.
        step = max(1, REQUEST // (4 * max(self._engine.spaces[name] for name in self._names)))
        for begin in range(0, len(rows), step):
            part = slice(begin, begin + step)
            keys = [self._keys[row] for row in rows[part].tolist()]
            places, vectors = self._current(keys)
            if len(places):
                found[begin + places] = cosines(asked, queries[part][places], vectors)
        return found

    def _current(self, keys: Sequence[str]) -> tuple[Numbers, list[Vectors]]:
        """Return the places of rows that are those of their items, and their vectors."""
        different = list(dict.fromkeys(keys))
        server = self._server

        def fetch(name: str | None) -> dict[str, Any]:
            if name is not None:
                return self._engine._vectors(name, different)
            ids = (key.rpartition("@")[0] for key in different)
            return server.fetch(server.items, "id", ids, ["id", "seq"], 64)

        items, *vectors = server.each(fetch, [None, *self._names])
        owned = {_key(row) for row in items.values()}.intersection(*vectors)
        places = [place for place, key in enumerate(keys) if key in owned]
        stacked = [np.array([held[keys[place]] for place in places], np.float32) for held in vectors]
        return np.array(places, np.int64), stacked

    def _everything(self) -> Numbers:
        rows = [
            self._number(_key(row))
            for block in self._server.scan(self._server.items, self._filter, "id")
            for row in block
        ]
        return np.array(rows, np.int64)

    def _number(self, key: str) -> int:
        """Return a number of a row that orders as it was added."""
        if key not in self._numbers:
            number = int(key.rpartition("@")[2]) << 10
            # Two writers may add in the same microsecond.
            while number in self._keys:
                number += 1
            self._numbers[key], self._keys[number] = number, key
        return self._numbers[key]

    def _with_metadata(self, found: Sequence[Best]) -> list[list[Found]]:
        keys = {self._keys[row] for best in found for row in best.rows.tolist()}
        ids = [key.rpartition("@")[0] for key in sorted(keys)]
        items = self._server.fetch(self._server.items, "id", ids, ["metadata"], LARGEST_TEXT)
        return [
            [
                Found(
                    _id(self._keys[row]),
                    float(score),
                    dict(zip(self._names, map(float, parts), strict=True)),
                    json.loads(items[text]["metadata"]),
                )
                for row, score, parts in zip(best.rows.tolist(), best.scores, best.cosines, strict=True)
                # Removed since it was scored.
                if (text := self._keys[row].rpartition("@")[0]) in items
            ]
            for best in found
        ]


def _text(id: Id) -> str:
    """Return a primary key that tells 1 from "1"."""
    return json.dumps(id, ensure_ascii=False)


def _id(key: str) -> Id:
    """Return the id of a row of a space."""
    found: Id = json.loads(key.rpartition("@")[0])
    return found


def _key(row: Mapping[str, Any]) -> str:
    """Return the primary key of an item's rows in the spaces."""
    return f"{row['id']}@{row['seq']}"


def _space_rows(keys: Sequence[str], rows: Sequence[Row], vectors: Vectors) -> list[Row]:
    return [
        {"key": key, "seq": row["seq"], FIELD: row[FIELD], "vector": vector}
        for key, row, vector in zip(keys, rows, vectors, strict=True)
    ]
