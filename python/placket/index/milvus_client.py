"""Requests to a Milvus server: where an index lies, batches, limits, attempts.

The collections and their fields are explained in ``milvus_engine``.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import grpc
import numpy as np
from pymilvus import DataType, MilvusClient, MilvusException

from placket.index.engines import Vectors
from placket.index.milvus_where import FIELD, literal

__all__ = [
    "DEEPEST",
    "LARGEST_TEXT",
    "LONGEST_ID",
    "REQUEST",
    "TOKEN",
    "Options",
    "Row",
    "Server",
    "Space",
    "check",
]

TOKEN = "PLACKET_MILVUS_TOKEN"
"""Variable of the environment with the token, where the option is not given; tokens are written nowhere."""

DEEPEST = 16_384
"""Rows that a server returns for one query at most (Milvus limits)."""
LONGEST_ID = 4096
"""Bytes of an id in JSON at most."""
LARGEST_TEXT = 65_535
"""Bytes of a VARCHAR or JSON field at most (Milvus limits)."""
REQUEST = 2**24
"""Bytes of rows in one request or answer, a quarter of what servers take."""

Row: TypeAlias = dict[str, Any]
S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """How an index lies on its server.

    Attributes:
        uri: ``http://host:19530``; of a cluster, its proxy or load balancer. A path that ends in .db is a
            file of Milvus Lite.
        collection: name of the index on the server; letters, digits and ``_``.
        database: of the server.
        consistency: Strong, Session, Bounded or Eventually. Strong sees every write there was and waits for
            the server's clock, 0.2 s at most unless configured; Session sees the writes of this process.
        shards: of each collection.
        replicas: in memory, of each collection.
        index: type of each space's index, "FLAT" or a mapping with ``index_type`` and its parameters
            (``{"index_type": "HNSW", "M": 32, "efConstruction": 200}``); for all spaces, or by name of one.
        search: parameters of searching, ``{"ef": 1024}`` for instance; must allow ``candidates``.
        candidates: rows asked of each space where an index is not FLAT, 16,384 at most.
        timeout: seconds for one request.
        attempts: of a request that fails for a reason that may pass.
    """

    uri: str
    collection: str
    database: str = "default"
    consistency: str = "Strong"
    shards: int = 1
    replicas: int = 1
    index: Any = "FLAT"
    search: Mapping[str, Any] = field(default_factory=dict)
    candidates: int = 1000
    timeout: float = 60.0
    attempts: int = 6

    def __post_init__(self) -> None:
        levels = ("Strong", "Session", "Bounded", "Eventually")
        check(self.consistency in levels, f"option consistency must be one of {levels}", self.consistency)
        named = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,199}", self.collection)
        check(bool(named), "option collection must be 1 to 200 letters, digits and _", self.collection)
        for name, most in (("shards", 16), ("replicas", 1024), ("candidates", DEEPEST), ("attempts", 100)):
            value = getattr(self, name)
            check(1 <= value <= most, f"option {name} must be 1 to {most:,}", value)

    def index_of(self, space: str) -> dict[str, Any]:
        """Return type and parameters of a space's index."""
        given = self.index
        if isinstance(given, Mapping) and "index_type" not in given:
            given = given.get(space, "FLAT")
        return {"index_type": given} if isinstance(given, str) else dict(given)


@dataclass(frozen=True)
class Space:
    number: int
    collection: str
    dim: int
    index_type: str


class Server:
    """Requests to the server: batches, limits, attempts."""

    def __init__(self, options: Options, token: str | None) -> None:
        self.options = options
        self.items = f"{options.collection}_items"
        # It logs a traceback for each failed attempt; what fails in the end is raised.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        self._threads = ThreadPoolExecutor(8, "milvus")
        token = os.environ.get(TOKEN, "") if token is None else token
        try:
            self._client = self._attempt(
                lambda: MilvusClient(
                    uri=options.uri, token=token, db_name=options.database, timeout=options.timeout
                )
            )
        except MilvusException as error:
            self.close()
            raise ConnectionError(
                f"AttributeIndex: server {options.uri} must answer within {options.timeout} s, "
                f"got {error.message}"
            ) from error

    @contextmanager
    def closed_on_error(self) -> Iterator[Server]:
        try:
            yield self
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._threads.shutdown()
        if hasattr(self, "_client"):
            self._client.close()

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Send a request, again where it failed for a reason that may pass; all of them may be sent twice.

        Raises:
            ConnectionError: it failed for such a reason in every attempt.
            RuntimeError: the server refuses it.
        """
        request = getattr(self._client, method)
        try:
            return self._attempt(lambda: request(*args, timeout=self.options.timeout, **kwargs))
        except (MilvusException, grpc.RpcError) as error:
            kind = ConnectionError if _may_pass(error) else RuntimeError
            said = error.message if isinstance(error, MilvusException) else error
            raise kind(
                f"AttributeIndex: server {self.options.uri} must carry out {method}, got {said}"
            ) from error

    def each(self, do: Callable[[S], T], arguments: Iterable[S]) -> list[T]:
        """Do the same with several arguments, side by side; not within itself."""
        return list(self._threads.map(do, arguments))

    def collections(self) -> list[str]:
        return sorted(self.call("list_collections"))

    def owns(self, collection: str) -> bool:
        """Return whether a name is of a collection of this index, also of a space that is being added."""
        return collection == self.items or any(self._parts(collection, state) for state in ("space", "new"))

    def _parts(self, collection: str, state: str) -> tuple[int, str] | None:
        """Return number and name of the space that a collection holds."""
        pattern = rf"{self.options.collection}_{state}_(\d+)_((?:[A-Za-z0-9]|_[0-9a-f]{{2}})*)"
        found = re.fullmatch(pattern, collection)
        if found is None:
            return None
        name = re.sub(rb"_(..)", lambda byte: bytes.fromhex(byte[1].decode()), found[2].encode())
        return int(found[1]), name.decode()

    def space_name(self, number: int, name: str, state: str = "space") -> str:
        """Return the name of a space's collection; ``_xx`` is a byte that is no letter or digit."""
        encoded = re.sub(rb"[^A-Za-z0-9]", lambda found: b"_%02x" % ord(found[0]), name.encode()).decode()
        collection = f"{self.options.collection}_{state}_{number}_{encoded}"
        size = len(collection)
        check(size <= 255, f"name of space '{name}' must give a collection of 255 letters at most", size)
        return collection

    def make_space(self, collection: str, name: str, dim: int) -> None:
        schema = MilvusClient.create_schema(enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=LONGEST_ID + 24)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        self._make(collection, schema, "vector", self.options.index_of(name))

    def make_items(self) -> None:
        schema = MilvusClient.create_schema(enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=LONGEST_ID)
        schema.add_field("metadata", DataType.VARCHAR, max_length=LARGEST_TEXT)
        # A collection must have a vector.
        schema.add_field("placeholder", DataType.FLOAT_VECTOR, dim=2)
        self._make(self.items, schema, "placeholder", {"index_type": "FLAT"})

    def _make(self, collection: str, schema: Any, vector: str, index: Mapping[str, Any]) -> None:
        schema.add_field("seq", DataType.INT64)
        schema.add_field(FIELD, DataType.JSON)
        parameters = MilvusClient.prepare_index_params()
        kind = {key: value for key, value in index.items() if key != "index_type"}
        parameters.add_index(vector, index_type=index["index_type"], metric_type="IP", params=kind)
        options = self.options
        self.call(
            "create_collection",
            collection,
            schema=schema,
            num_shards=options.shards,
            consistency_level=options.consistency,
        )
        self.call("create_index", collection, parameters)
        self.call("load_collection", collection, replica_number=options.replicas)

    def spaces(self) -> dict[str, Space]:
        """Read and check what is there.

        Raises:
            ValueError: it is no index, or not of this layout.
        """
        there = self.collections()
        check(self.items in there, f"server {self.options.uri} must hold collection '{self.items}'", there)
        self._dims(self.items, {"id": "VARCHAR", "metadata": "VARCHAR", "placeholder": "FLOAT_VECTOR"})
        found = {name: parts for name in there if (parts := self._parts(name, "space"))}
        spaces = self.each(
            lambda name: self._space(found[name][0], name), sorted(found, key=found.__getitem__)
        )
        return {found[space.collection][1]: space for space in spaces}

    def _space(self, number: int, collection: str) -> Space:
        dims = self._dims(collection, {"key": "VARCHAR", "vector": "FLOAT_VECTOR"})
        index = self.call("describe_index", collection, "vector") or {}
        metric = index.get("metric_type")
        check(metric == "IP", f"collection '{collection}' must have an index with metric IP", metric)
        return Space(number, collection, dims["vector"], index["index_type"])

    def _dims(self, collection: str, wanted: Mapping[str, str]) -> dict[str, int]:
        """Check the fields of a collection, load it, and return the dimensions of its vectors."""
        described = self.call("describe_collection", collection)["fields"]
        types = {each["name"]: each["type"].name for each in described}
        wanted = {**wanted, "seq": "INT64", FIELD: "JSON"}
        check(types == wanted, f"collection '{collection}' must have fields {wanted}", types)
        if self.call("get_load_state", collection)["state"].name != "Loaded":
            self.call("load_collection", collection, replica_number=self.options.replicas)
        return {each["name"]: int(each["params"].get("dim", 0)) for each in described}

    def count(self, collection: str, condition: str) -> int:
        rows = self._query(collection, condition, ["count(*)"])
        return int(rows[0]["count(*)"])

    def scan(self, collection: str, condition: str, name: str) -> Iterator[list[Row]]:
        """Return seq and one more field of all rows that fulfil a condition, in blocks, by seq."""
        both = f"({condition}) and " if condition else ""
        begin, width = 0, 2**62
        while True:
            window = f"{both}seq >= {begin} and seq < {begin + width}"
            rows = self._query(collection, window, [name, "seq"], limit=DEEPEST)
            if len(rows) == DEEPEST:
                width //= 2
                continue
            if rows:
                yield sorted(rows, key=lambda row: (row["seq"], row[name]))
            begin += width
            if begin >= 2**62 or not self.count(collection, f"{both}seq >= {begin}"):
                return
            width *= 2 if len(rows) < DEEPEST // 4 else 1

    def fetch(
        self, collection: str, key: str, values: Iterable[str], outputs: Sequence[str], size: int
    ) -> dict[str, Row]:
        """Return the rows that have these primary keys, by key; ``size`` is what one takes, in bytes."""
        found: dict[str, Row] = {}
        wanted = list(dict.fromkeys(values))
        step = min(1000, max(1, REQUEST // size))
        for begin in range(0, len(wanted), step):
            condition = _among(key, wanted[begin : begin + step])
            found.update({row[key]: row for row in self._query(collection, condition, [key, *outputs])})
        return found

    def upsert(self, collection: str, rows: Sequence[Row]) -> None:
        batch, size = [], 0
        for row in rows:
            batch.append(row)
            size += _size(row)
            if size >= REQUEST:
                self.call("upsert", collection, batch)
                batch, size = [], 0
        if batch:
            self.call("upsert", collection, batch)

    def delete(self, collection: str, key: str, values: Sequence[str]) -> None:
        for begin in range(0, len(values), 1000):
            self.call("delete", collection, filter=_among(key, values[begin : begin + 1000]))

    def search(self, collection: str, queries: Vectors, depth: int, condition: str) -> list[list[Row]]:
        """Return the ``depth`` rows of largest product with each query, with their keys."""
        found: list[list[Row]] = []
        # An answer holds a key and a score for each hit.
        step = max(1, REQUEST // (128 * depth))
        for begin in range(0, len(queries), step):
            found += self.call(
                "search",
                collection,
                data=list(queries[begin : begin + step]),
                anns_field="vector",
                limit=depth,
                filter=condition,
                output_fields=["key"],
                search_params={"metric_type": "IP", "params": dict(self.options.search)},
                consistency_level=self.options.consistency,
            )
        return found

    def _query(self, collection: str, condition: str, outputs: Sequence[str], **limits: int) -> list[Row]:
        return list(
            self.call(
                "query",
                collection,
                filter=condition,
                output_fields=list(outputs),
                consistency_level=self.options.consistency,
                **limits,
            )
        )

    def _attempt(self, request: Callable[[], T]) -> T:
        for attempt in range(1, self.options.attempts + 1):
            try:
                return request()
            except (MilvusException, grpc.RpcError) as error:
                if attempt == self.options.attempts or not _may_pass(error):
                    raise
            time.sleep(min(10.0, 0.1 * 2**attempt))
        raise AssertionError("attempts are at least 1")


def _may_pass(error: Exception) -> bool:
    """Return whether the same request may succeed later."""
    passing = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    if isinstance(error, MilvusException):
        # The server's own word; 8 is the rate limit, which servers before 2.4 do not call retriable.
        return error.retriable or error.code in (8, *passing)
    return isinstance(error, grpc.Call) and error.code() in passing


def _among(key: str, values: Sequence[str]) -> str:
    return f"{key} in [{', '.join(map(literal, values))}]"


def _size(row: Row) -> int:
    """Return about how many bytes a row takes."""
    return sum(4 * len(value) if isinstance(value, np.ndarray) else len(str(value)) for value in row.values())


def check(holds: bool, rule: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"AttributeIndex: {rule}, got {value}")
