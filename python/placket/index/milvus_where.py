"""Conditions on metadata for Milvus: what is stored beside an item, and what is asked of it.

Servers differ in how they compare values in JSON: absent keys, null, whole numbers against floats, numbers of
64 bits. So nothing is asked of the metadata themselves. Beside them stands a document of strings, with two
entries that every row has and whose meaning no server can read differently:

- ``tokens``, a list: ``path`` where something but null is there; ``path:t`` for its type, s, n or b, and
  ``path=value`` for the value; ``path#value`` for each value that a list holds;
- ``values``, from path to value, for strings and numbers; the strings order as the values do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from placket.index.where import And, Compare, Expression, Has, In, Not, Null, Or, Value

__all__ = ["FIELD", "conditions", "literal", "translate"]

FIELD = "conditions"
_COMPLEMENT = str.maketrans("0123456789abcdef", "fedcba9876543210")


def conditions(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document that ``translate``'s expressions ask."""
    tokens: list[str] = []
    values: dict[str, str] = {}
    for name, value in _flat(metadata):
        path = _path(name)
        tokens.append(path)
        if isinstance(value, list):
            tokens += {f"{path}#{_key(held)}" for held in value if isinstance(held, (str, int, float))}
        elif not isinstance(value, Mapping):
            key = _key(value)
            tokens += [f"{path}:{key[0]}", f"{path}={key}"]
            if not isinstance(value, bool):
                values[path] = key
    return {"tokens": tokens, "values": values}


def translate(expression: Expression) -> str:
    """Return the filter of Milvus that holds for the same items."""
    if isinstance(expression, Not):
        return f"not ({translate(expression.part)})"
    if isinstance(expression, (And, Or)):
        word = " and " if isinstance(expression, And) else " or "
        return word.join(f"({translate(part)})" for part in expression.parts)
    path = _path(expression.name)
    if isinstance(expression, Null):
        return f"not {_holds(path)}"
    if isinstance(expression, Has):
        return _holds(f"{path}#{_sendable(expression.value)}")
    if isinstance(expression, In):
        return _one_of(path, expression.values, expression.negated)
    if expression.op in ("=", "!="):
        return _one_of(path, [expression.value], expression.op == "!=")
    return _ordered(path, expression)


def literal(text: str) -> str:
    """Return a string of Milvus' expressions; control characters are not for every server."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _flat(metadata: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Return every value but null, at any depth, with the keys that lead to it."""
    # A stack instead of a recursion, since JSON may be nested deeper than Python's stack.
    groups: list[tuple[tuple[str, ...], Mapping[str, Any]]] = [((), metadata)]
    while groups:
        above, group = groups.pop()
        for key, value in group.items():
            if value is not None:
                yield (*above, key), value
            if isinstance(value, Mapping):
                groups.append(((*above, key), value))


def _path(name: Sequence[str]) -> str:
    """Return a text without what means something in tokens, JSON pointers or Milvus' expressions."""
    return "".join(
        "." + quote(key, safe="", errors="surrogatepass").replace(".", "%2E").replace("~", "%7E")
        for key in name
    )


def _key(value: Value) -> str:
    """Return a text that is equal for equal values and orders as they do within their type."""
    if isinstance(value, bool):
        return f"b{int(value)}"
    if isinstance(value, str):
        # Control characters and the space, which follows them in order, become a space and their number.
        return "s" + re.sub("[\\0- ]", lambda char: f" {ord(char[0]):02x}", value)
    return "n" + _number(value)


def _number(value: float) -> str:
    """Sign, power of two and hexadecimal digits, of any finite float or whole number, exactly."""
    top, bottom = value.as_integer_ratio()
    if not top:
        return "1"
    bits = abs(top).bit_length()
    # The bottom is a power of two, and 1,074 the largest of a float.
    power = f"{bits - bottom.bit_length() + 2_000_000:06x}"
    digits = power + f"{abs(top) << (-bits % 4):x}".rstrip("0")
    # "~" is above the digits: of two negative numbers the longer one, further from 0, is the smaller.
    return "2" + digits if top > 0 else "0" + digits.translate(_COMPLEMENT) + "~"


def _holds(token: str) -> str:
    return f'json_contains({FIELD}["tokens"], {literal(token)})'


def _one_of(path: str, values: Sequence[Value], negated: bool) -> str:
    tokens = ", ".join(literal(f"{path}={_sendable(value)}") for value in values)
    found = f'json_contains_any({FIELD}["tokens"], [{tokens}])'
    return f"{_holds(f'{path}:{_key(values[0])[0]}')} and not {found}" if negated else found


def _ordered(path: str, compare: Compare) -> str:
    key, op = _key(compare.value), compare.op
    if not _is_text(key):
        # All strings that begin as this one does up to its lone surrogate are before it, or after U+E000.
        key, op = re.split("[\ud800-\udfff]", key)[0] + "\ue000", op[0] if op[0] == "<" else ">="
    return f'{_holds(f"{path}:{key[0]}")} and {FIELD}["values"][{literal(path)}] {op} {literal(key)}'


def _sendable(value: Value) -> str:
    """Return the key of a value, or for a string that no metadata can hold one that nothing has."""
    key = _key(value)
    return key if _is_text(key) else "!"


def _is_text(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)
