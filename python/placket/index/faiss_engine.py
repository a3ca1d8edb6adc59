"""An index whose best candidates FAISS finds, with any index that it has.

Storage is that of ``segments``. Each segment of 10,000 rows and more has an index of its own for each space,
made when the segment is written, trained on its own rows, immutable and with checksums like the rest of it;
merging segments makes new ones. Smaller segments, rows that are not committed, and the rows that a narrow
condition leaves are scanned instead: there an index gains nothing and loses neighbours. Conditions and
removals are applied before FAISS ranks.

With the factory "Flat" FAISS scans the vectors where they are mapped, nothing is stored twice, and search is
exact (``threshold``). With any other, the ``candidates`` best of each space are scored exactly, so that the
order of what is found is right, and only what no list held is missed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import faiss
import numpy as np
from numpy.typing import NDArray

from placket.index.arrays import Arrays, Stream
from placket.index.engines import Found, Id, Vectors
from placket.index.segments import LocalEngine, described
from placket.index.threshold import Best, Numbers, Ranked, cosines, rescored, rounding, weighted_top_k
from placket.index.where import Expression

__all__ = ["FaissEngine", "create", "load"]

FEWEST = 10_000
"""Rows from which an index is made and asked."""
TRAINING = 1 << 18
"""Rows that an index is trained on at most, evenly spaced."""
_BLOCK = 1 << 16
_OPTIONS: dict[str, Any] = {"factory": "Flat", "search": "", "candidates": 1000}


def create(path: Path, spaces: Mapping[str, int], options: Mapping[str, Any]) -> FaissEngine:
    """Make an empty index in a folder.

    Args:
        path: the folder.
        spaces: name and dimension.
        options: ``factory``, a string of faiss.index_factory; ``search``, parameters in FAISS's form,
            "nprobe=32,efSearch=256"; either for all spaces, or a mapping from names of spaces, "Flat" and ""
            for those that it does not name. ``candidates``, rows asked of each space where a factory is not
            "Flat", 1,000.

    Raises:
        ValueError: an option is not of these, or FAISS does not know what it says.
    """
    for name in options:
        if name not in _OPTIONS:
            raise ValueError(
                f"AttributeIndex.create: options of engine 'faiss' must be of {list(_OPTIONS)}, got {name!r}"
            )
    chosen = {**_OPTIONS, **options}
    if type(chosen["candidates"]) is not int or chosen["candidates"] < 1:
        raise ValueError(
            f"AttributeIndex.create: option candidates must be at least 1, got {chosen['candidates']!r}"
        )
    for name, dim in spaces.items():
        _new_index(chosen, name, dim)
    return FaissEngine.create(path, "faiss", spaces, chosen)


def load(path: Path, manifest: Mapping[str, Any], read_only: bool) -> FaissEngine:
    """Open the index in a folder."""
    return FaissEngine.load(path, read_only)


class FaissEngine(LocalEngine):
    """Finds candidates by FAISS and scores them exactly."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._loaded: WeakKeyDictionary[Arrays, Any] = WeakKeyDictionary()

    def add_space(self, name: str, dim: int, blocks: Iterable[tuple[Sequence[Id], Vectors]]) -> None:
        _new_index(self._options, name, dim)
        super().add_space(name, dim, blocks)

    def search(
        self,
        queries: Mapping[str, Vectors],
        weights: Mapping[str, float],
        k: int,
        where: Expression | None,
    ) -> list[list[Found]]:
        search = _Search(self, queries, weights, where)
        exact = all(_option(self._options, "factory", name) == "Flat" for name in queries)
        return search.exact(k) if exact else search.approximate(max(k, self._options["candidates"]), k)

    def info(self) -> dict[str, Any]:
        return {**super().info(), **self._options, "faiss": faiss.__version__}

    def loaded(self, space: str, arrays: Arrays) -> Any:
        """Return the index that a segment holds; it is in memory from then on."""
        if arrays not in self._loaded:
            index = faiss.deserialize_index(arrays.array("index"))
            _set_parameters(index, self._options, space)
            self._loaded[arrays] = index
        return self._loaded[arrays]

    def _index(self, space: str, vectors: Arrays) -> Mapping[str, Stream] | None:
        factory = _option(self._options, "factory", space)
        if factory == "Flat" or len(rows := vectors.array("rows")) < FEWEST:
            return None
        index = _new_index(self._options, space, rows.shape[1])
        if not index.is_trained:
            count = min(len(rows), TRAINING)
            index.train(rows[np.arange(count) * len(rows) // count])
        for begin in range(0, len(rows), _BLOCK):
            index.add(rows[begin : begin + _BLOCK])
        return {"index": Stream.of(faiss.serialize_index(index))}


class _Search:
    """One batch of queries. A row has its number counted over all segments."""

    def __init__(
        self,
        engine: FaissEngine,
        queries: Mapping[str, Vectors],
        weights: Mapping[str, float],
        where: Expression | None,
    ) -> None:
        self._engine, self._queries = engine, queries
        self._names = list(queries)
        self._weights = [weights[name] for name in self._names]
        self._segments = engine.segments
        self._begins = np.cumsum([0, *(segment.rows for segment in self._segments)])
        self._masks = [segment.select(where) for segment in self._segments]
        self._kept = [
            segment.rows if mask is None else int(mask.sum())
            for segment, mask in zip(self._segments, self._masks, strict=True)
        ]
        self._count = len(self._queries[self._names[0]])

    def exact(self, k: int) -> list[list[Found]]:
        best = weighted_top_k(
            self._ranked,
            self._cosines,
            self._everything,
            self._weights,
            queries=self._count,
            k=k,
            slack=rounding(max(queries.shape[1] for queries in self._queries.values())),
            # Lists of a quarter of all rows, of several spaces, cost what scoring every row does.
            deepest=sum(self._kept) // 4,
        )
        return self._found(best)

    def approximate(self, depth: int, k: int) -> list[list[Found]]:
        best = rescored(self._ranked, self._cosines, self._weights, queries=self._count, k=k, depth=depth)
        return self._found(best)

    def _ranked(self, space: int, queries: Numbers, depth: int) -> list[Ranked]:
        name = self._names[space]
        # The smallest products with a query are the largest with its opposite.
        sign = np.float32(np.sign(self._weights[space]))
        asked = sign * self._queries[name][queries]
        found = [self._best(number, name, asked, depth) for number in range(len(self._segments))]
        products = np.concatenate([np.zeros((len(asked), 0), np.float32), *(each[0] for each in found)], 1)
        rows = np.concatenate([np.zeros((len(asked), 0), np.int64), *(each[1] for each in found)], 1)
        lists = []
        for product, row in zip(products, rows, strict=True):
            order = np.argsort(-product, kind="stable")[:depth]
            order = order[row[order] >= 0]
            lists.append(Ranked(row[order], sign * product[order]))
        return lists

    def _best(self, number: int, name: str, asked: Vectors, depth: int) -> tuple[Vectors, Numbers]:
        """Return products and rows, ``[q, n]``, of a segment's best; row -1 where FAISS has found no more."""
        segment, mask, begin = self._segments[number], self._masks[number], self._begins[number]
        if name not in segment.indexes or self._kept[number] < FEWEST:
            return _scan(segment.vectors[name].array("rows"), mask, asked, depth, begin)
        index = self._engine.loaded(name, segment.indexes[name])
        parameters = None
        if mask is not None:
            bits = np.packbits(mask, bitorder="little")
            parameters = _parameters(index, faiss.IDSelectorBitmap(bits))
        try:
            products, rows = _search(index, asked, min(depth, self._kept[number]), parameters)
        except RuntimeError as error:
            raise ValueError(
                f"AttributeIndex.search: space '{name}' must have an index that FAISS searches with these "
                f"parameters and conditions, got {_said(error)}"
            ) from error
        return products, np.where(rows < 0, rows, rows + begin)

    def _cosines(self, queries: Numbers, rows: Numbers) -> Vectors:
        found = np.empty((len(rows), len(self._names)), np.float32)
        asked = list(self._queries.values())
        numbers = np.searchsorted(self._begins, rows, "right") - 1
        for number in np.unique(numbers).tolist():
            own = np.flatnonzero(numbers == number)
            vectors = [self._segments[number].vectors[name].array("rows") for name in self._names]
            for begin in range(0, len(own), _BLOCK):
                part = own[begin : begin + _BLOCK]
                local = rows[part] - self._begins[number]
                found[part] = cosines(asked, queries[part], [each[local] for each in vectors])
        return found

    def _everything(self) -> Numbers:
        masks = [
            np.ones(segment.rows, bool) if mask is None else mask
            for segment, mask in zip(self._segments, self._masks, strict=True)
        ]
        return np.flatnonzero(np.concatenate([np.zeros(0, bool), *masks]))

    def _found(self, best: Sequence[Best]) -> list[list[Found]]:
        rows = np.concatenate([np.zeros(0, np.int64), *(one.rows for one in best)])
        numbers = np.searchsorted(self._begins, rows, "right") - 1
        items = iter(described(self._segments, numbers, rows - self._begins[numbers]))
        return [
            [
                Found(id, float(score), dict(zip(self._names, parts.tolist(), strict=True)), metadata)
                for score, parts, (id, metadata) in zip(one.scores, one.cosines, items, strict=False)
            ]
            for one in best
        ]


def _scan(
    rows: Vectors, mask: NDArray[np.bool_] | None, asked: Vectors, depth: int, offset: int
) -> tuple[Vectors, Numbers]:
    """Return products and rows ``[q, n]`` of at least the ``depth`` best rows of a mask."""
    products, found = [np.zeros((len(asked), 0), np.float32)], [np.zeros((len(asked), 0), np.int64)]
    for begin in range(0, len(rows), _BLOCK):
        block = rows[begin : begin + _BLOCK]
        kept = np.arange(len(block)) if mask is None else np.flatnonzero(mask[begin : begin + _BLOCK])
        if not len(kept):
            continue
        if len(kept) < len(block):
            block = block[kept]
        product, place = faiss.knn(asked, block, min(depth, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        products.append(product)
        found.append(kept[place] + (begin + offset))
    return np.concatenate(products, axis=1), np.concatenate(found, axis=1)


def _parameters(index: Any, selector: Any) -> Any:
    """Return what FAISS needs to search with a selector as it would without."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=_parameters(index.index, selector))
    if isinstance(index, faiss.IndexRefine):
        inner = _parameters(index.base_index, selector)
        return faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=inner)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(sel=selector, nprobe=index.nprobe, max_codes=index.max_codes)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(sel=selector, efSearch=index.hnsw.efSearch)
    return faiss.SearchParameters(sel=selector)


def _option(options: Mapping[str, Any], name: str, space: str) -> str:
    given = options[name]
    return str(given.get(space, _OPTIONS[name]) if isinstance(given, Mapping) else given)


def _new_index(options: Mapping[str, Any], space: str, dim: int) -> Any:
    """Return an empty index for a space."""
    factory = _option(options, "factory", space)
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"AttributeIndex: option factory must be one of FAISS's for {dim} dimensions, got {factory!r} "
            f"for space '{space}' ({_said(error)})"
        ) from error
    _set_parameters(index, options, space)
    return index


def _set_parameters(index: Any, options: Mapping[str, Any], space: str) -> None:
    said = _option(options, "search", space)
    try:
        faiss.ParameterSpace().set_index_parameters(index, said)
    except RuntimeError as error:
        raise ValueError(
            f"AttributeIndex: option search must be parameters of the index of space '{space}', got {said!r} "
            f"({_said(error)})"
        ) from error


def _search(index: Any, rows: Vectors, k: int, parameters: Any) -> tuple[Vectors, NDArray[np.int64]]:
    """Search a FAISS index.

    Where something has imported ``faiss.contrib.torch_utils``, as other packages do, ``search`` knows no
    parameters, and FAISS's own is ``search_numpy``.
    """
    search = getattr(index, "search_numpy", index.search)
    found: tuple[Vectors, NDArray[np.int64]] = search(rows, k, params=parameters)
    return found


def _said(error: RuntimeError) -> str:
    """Return what FAISS says is wrong, without the place in its source."""
    return re.sub(r"(?s).* at \S+:\d+: (Error: )?", "", str(error)).split("\n")[0]
