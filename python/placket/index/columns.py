"""Metadata as typed columns, on which conditions are evaluated without reading a row.

A column holds the values of one type under one name: whole numbers, floats, booleans or strings, on their own
or as the entries of lists. A name whose values are of several types has several columns. Strings are numbers
in a sorted list of the different ones.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from placket.index.arrays import Array, Arrays, MemoryArrays, packed
from placket.index.where import And, Expression, Has, In, Name, Not, Null, Or, Value

__all__ = ["Columns"]

Mask = NDArray[np.bool_]
_Key = tuple[Name, str, bool]
"""Name, kind, and whether the values are entries of lists.

Kinds are "int", "float", "bool", "str", and "group" for what has no value of its own: a list or an object.
"""
_DTYPES = {"int": np.int64, "float": np.float64, "bool": np.bool_, "str": np.uint32, "group": np.bool_}
_KINDS: dict[type, str] = {int: "int", float: "float", bool: "bool", str: "str"}
_LEAST, _GREATEST = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class _Column:
    kind: str
    rows: NDArray[np.uint32] | None
    """Row of each value, rising; None where each row has one."""
    values: Array
    words: Sequence[bytes] = ()
    """What the values of kind "str" are numbers of: UTF-8, sorted, each once."""


class Columns:
    """The columns of some rows of metadata.

    Args:
        arrays: those of ``Columns.arrays``, in memory or in a file; each is read when it is first asked for.
        rows: how many rows there are.
    """

    def __init__(self, arrays: Arrays, rows: int) -> None:
        self._arrays = arrays
        self._rows = rows

    @staticmethod
    def of(metadata: Sequence[Mapping[str, Any]]) -> Columns:
        """Make the columns of rows in JSON's types, with whole numbers of 64 bits and finite floats."""
        found: dict[_Key, tuple[list[int], list[Any]]] = {}
        for row, described in enumerate(metadata):
            # A stack instead of a recursion, since JSON may be nested deeper than Python's stack.
            groups: list[tuple[Name, Mapping[str, Any]]] = [((), described)]
            while groups:
                place, group = groups.pop()
                for inner, value in group.items():
                    name = (*place, inner)
                    if isinstance(value, (dict, list)):
                        _append(found, (name, "group", False), row, True)
                    if isinstance(value, dict):
                        groups.append((name, value))
                    in_list = isinstance(value, list)
                    for entry in value if in_list else [value]:
                        if type(entry) in _KINDS:
                            _append(found, (name, _KINDS[type(entry)], in_list), row, entry)
        columns: dict[_Key, _Column] = {}
        for key, (rows, values) in found.items():
            words: list[bytes] = []
            if key[1] == "str":
                encoded = [value.encode() for value in values]
                words = sorted(set(encoded))
                number = {word: i for i, word in enumerate(words)}
                values = [number[word] for word in encoded]
            columns[key] = _Column(
                key[1], np.array(rows, np.uint32), np.array(values, _DTYPES[key[1]]), words
            )
        return _packed(columns, len(metadata))

    @staticmethod
    def merged(parts: Sequence[tuple[Columns, Mask | None]]) -> Columns:
        """Put columns of consecutive rows together; a mask says which of its rows are kept."""
        counts = [columns._rows if keep is None else int(keep.sum()) for columns, keep in parts]
        begins = np.cumsum([0, *counts]).tolist()
        columns: dict[_Key, _Column] = {}
        for key in dict.fromkeys(key for part, _ in parts for key in part._places):
            moved = [
                _moved(part._column(key), part._rows, keep, begin)
                for (part, keep), begin in zip(parts, begins, strict=False)
                if key in part._places
            ]
            words = sorted({word for _, _, own in moved for word in own})
            number = {word: i for i, word in enumerate(words)}
            values = [
                np.array([number[word] for word in own], np.uint32)[codes] if key[1] == "str" else codes
                for _, codes, own in moved
            ]
            rows = np.concatenate([rows for rows, _, _ in moved])
            if len(rows):
                columns[key] = _Column(key[1], rows, np.concatenate(values), words)
        return _packed(columns, begins[-1])

    @property
    def arrays(self) -> dict[str, Array]:
        """What a file of these columns holds, beside ``about``."""
        return {
            f"{number}.{array}": self._arrays.array(f"{number}.{array}")
            for number, column in enumerate(self.about)
            for array in column["arrays"]
        }

    @property
    def about(self) -> Any:
        """Names and kinds, in JSON's types."""
        return self._arrays.about

    def mask(self, expression: Expression) -> Mask:
        """Return ``[rows]``, where a condition holds."""
        if isinstance(expression, Not):
            return ~self.mask(expression.part)
        if isinstance(expression, (And, Or)):
            join = np.logical_and if isinstance(expression, And) else np.logical_or
            result = self.mask(expression.parts[0])
            for part in expression.parts[1:]:
                join(result, self.mask(part), out=result)
            return result
        if isinstance(expression, Null):
            return ~self._where(expression.name, list(_DTYPES), False, _all)
        if isinstance(expression, Has):
            wanted = [expression.value]
            return self._where(expression.name, _kinds(wanted[0]), True, lambda c: _among(c, wanted))
        if isinstance(expression, In):
            values, negated = expression.values, expression.negated
            kinds = _kinds(values[0])
            return self._where(expression.name, kinds, False, lambda c: _among(c, values) ^ negated)
        op, value = expression.op, expression.value
        return self._where(expression.name, _kinds(value), False, lambda c: _compare(c, op, value))

    def _where(
        self, name: Name, kinds: Iterable[str], in_lists: bool, test: Callable[[_Column], Mask]
    ) -> Mask:
        """Return the rows with a value of one of the kinds that passes a test."""
        result = np.zeros(self._rows, dtype=bool)
        for kind in kinds:
            if (name, kind, in_lists) not in self._places:
                continue
            column = self._column((name, kind, in_lists))
            passed = test(column)
            if column.rows is None:
                result |= passed
            else:
                result[column.rows[passed]] = True
        return result

    @cached_property
    def _places(self) -> dict[_Key, int]:
        return {(tuple(c["name"]), c["kind"], c["list"]): number for number, c in enumerate(self.about)}

    def _column(self, key: _Key) -> _Column:
        number = self._places[key]
        found = {name: self._arrays.array(f"{number}.{name}") for name in self.about[number]["arrays"]}
        words = _Words(found["words"], found["words_at"]) if key[1] == "str" else ()
        return _Column(key[1], found.get("rows"), found["values"], words)


def _append(found: dict[_Key, tuple[list[int], list[Any]]], key: _Key, row: int, value: Any) -> None:
    rows, values = found.setdefault(key, ([], []))
    rows.append(row)
    values.append(value)


def _packed(columns: Mapping[_Key, _Column], rows: int) -> Columns:
    arrays: dict[str, Array] = {}
    about = []
    for number, ((name, kind, in_lists), column) in enumerate(columns.items()):
        own = {"values": column.values}
        if column.rows is not None and not np.array_equal(column.rows, np.arange(rows)):
            own["rows"] = column.rows
        if kind == "str":
            own |= packed("words", column.words)
        about.append({"name": name, "kind": kind, "list": in_lists, "arrays": list(own)})
        arrays |= {f"{number}.{array}": values for array, values in own.items()}
    return Columns(MemoryArrays(arrays, about), rows)


def _moved(
    column: _Column, count: int, keep: Mask | None, offset: int
) -> tuple[NDArray[np.uint32], Array, list[bytes]]:
    """Return rows, values and words of the rows that are kept, renumbered from ``offset``."""
    rows = np.arange(count, dtype=np.uint32) if column.rows is None else column.rows
    values, words = column.values, []
    if keep is not None:
        kept = keep[rows]
        rows, values = (np.cumsum(keep, dtype=np.uint32) - 1)[rows[kept]], values[kept]
    if column.kind == "str":
        used, values = np.unique(values, return_inverse=True)
        words = [column.words[int(number)] for number in used]
    return rows + np.uint32(offset), values, words


def _kinds(value: Value) -> Sequence[str]:
    kind = _KINDS[type(value)]
    return ("int", "float") if kind in ("int", "float") else (kind,)


def _all(column: _Column) -> Mask:
    return np.ones(len(column.values), dtype=bool)


def _among(column: _Column, wanted: Sequence[Value]) -> Mask:
    """Return where the values equal one of those wanted."""
    equal: list[Any] = []
    for value in wanted:
        if isinstance(value, str):
            at, there = _place(column.words, value)
            equal += [at] if there else []
        elif column.kind == "int":
            equal += [int(value)] if value == int(value) and _LEAST <= value <= _GREATEST else []
        else:  # a whole number that no float is equals none
            equal += [value] if float(value) == value else []
    return np.isin(column.values, np.array(equal, column.values.dtype))


def _compare(column: _Column, op: str, value: Value) -> Mask:
    if op in ("=", "!="):
        return _among(column, [value]) ^ (op == "!=")
    if isinstance(value, str):
        # Words are in order: the lesser lie below ``at``, the one that is equal below ``at + there``.
        at, there = _place(column.words, value)
        return _ordered(
            column.values, "<" if op[0] == "<" else ">=", at + (there if op in ("<=", ">") else 0)
        )
    if column.kind == "int":
        # Among whole numbers every bound is a whole one.
        if op in ("<", ">="):
            bound, op = math.ceil(value), op
        else:
            bound, op = math.floor(value) + 1, "<" if op == "<=" else ">="
        if bound > _GREATEST or bound <= _LEAST:
            return np.full(len(column.values), (bound > _GREATEST) == (op == "<"))
        return _ordered(column.values, op, bound)
    nearest = float(value)
    if nearest != value:
        # No float lies between a whole number and the one nearest to it.
        op = op[0] + ("=" if (nearest < value) == (op[0] == "<") else "")
    return _ordered(column.values, op, nearest)


def _ordered(values: Array, op: str, bound: int | float) -> Mask:
    result: Mask = _ORDERS[op](values, bound)
    return result


_ORDERS: Mapping[str, Callable[[Array, int | float], Any]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}


def _place(words: Sequence[bytes], value: str) -> tuple[int, bool]:
    """Return how many words are less, and whether the value is one."""
    # A lone surrogate is in no metadata, but has its place in the order of code points.
    word = value.encode("utf-8", "surrogatepass")
    at = bisect.bisect_left(words, word)
    return at, at < len(words) and words[at] == word


class _Words(Sequence[bytes]):
    def __init__(self, text: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self._text, self._offsets = text, offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, i: int) -> bytes: ...

    @overload
    def __getitem__(self, i: slice) -> list[bytes]: ...

    def __getitem__(self, i: int | slice) -> bytes | list[bytes]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self._text[self._offsets[i] : self._offsets[i + 1]].tobytes()
