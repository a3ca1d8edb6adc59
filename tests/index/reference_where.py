"""Conditions on one row of metadata, word by word as placket.index.where defines them."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from placket.index.where import And, Compare, Expression, Has, In, Not, Null, Or

_OPERATORS = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def holds(expression: Expression, metadata: Mapping[str, Any]) -> bool:
    match expression:
        case Not(part):
            return not holds(part, metadata)
        case And(parts):
            return all(holds(part, metadata) for part in parts)
        case Or(parts):
            return any(holds(part, metadata) for part in parts)
    value: Any = metadata
    for key in expression.name:
        value = value.get(key) if isinstance(value, dict) else None
    match expression:
        case Null():
            return value is None
        case Has(_, wanted):
            return isinstance(value, list) and any(_alike(e, wanted) and e == wanted for e in value)
        case In(_, values, negated):
            return _alike(value, values[0]) and (value in values) != negated
        case Compare(_, op, wanted):
            return _alike(value, wanted) and bool(_OPERATORS[op](value, wanted))
    raise AssertionError(expression)


def _alike(value: Any, other: Any) -> bool:
    """Whether both are strings, both booleans, or both numbers."""
    if isinstance(value, bool) or isinstance(other, bool):
        return isinstance(value, bool) and isinstance(other, bool)
    if isinstance(value, str) or isinstance(other, str):
        return isinstance(value, str) and isinstance(other, str)
    return isinstance(value, (int, float))
