"""Conditions on metadata: a small grammar, read into a tree and never evaluated as code.

::

    expression  = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation    = "not" negation | "(" expression ")" | predicate
    predicate   = name ( "=" | "!=" | "<" | "<=" | ">" | ">=" ) value
                | name [ "not" ] "in" "(" value { "," value } ")"
                | name "has" value
                | name "is" [ "not" ] "null"
    name        = key { "." key }           keys of nested objects: labels.neckline, labels."sleeve length"
    key         = identifier | '"' any '"'
    value       = "'" any "'" | '"' any '"' | number | "true" | "false"

Keywords may be in capitals. A quote inside quotes is doubled; ``==`` is read as ``=``. Numbers are whole
numbers of 64 bits or finite floats, and are compared as the numbers they are; strings are compared by code
points; true and false have no order.

A comparison with a value that is absent, null or of another type is false, also with ``!=`` and ``not in``;
``not`` is the plain complement. ``has`` asks whether a list holds the value. ``is null`` holds where nothing,
or null, is under the name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

__all__ = [
    "And",
    "Compare",
    "Expression",
    "Has",
    "In",
    "Name",
    "Not",
    "Null",
    "Or",
    "Value",
    "parse",
    "parse_name",
]

Name: TypeAlias = tuple[str, ...]
Value: TypeAlias = str | int | float | bool

MOST_LEVELS = 50
"""Of parentheses and ``not``, so that no text exhausts Python's stack."""


@dataclass(frozen=True)
class Compare:
    """The value under ``name`` is of ``value``'s type and compares; ``op`` is = != < <= > or >=."""

    name: Name
    op: str
    value: Value

    def __str__(self) -> str:
        return f"{_name(self.name)} {self.op} {_literal(self.value)}"


@dataclass(frozen=True)
class In:
    """The value under ``name`` is of the type of ``values`` and is one of them, or with ``negated`` none."""

    name: Name
    values: tuple[Value, ...]
    negated: bool = False

    def __str__(self) -> str:
        word = "not in" if self.negated else "in"
        return f"{_name(self.name)} {word} ({', '.join(map(_literal, self.values))})"


@dataclass(frozen=True)
class Has:
    """A list that holds ``value`` is under ``name``."""

    name: Name
    value: Value

    def __str__(self) -> str:
        return f"{_name(self.name)} has {_literal(self.value)}"


@dataclass(frozen=True)
class Null:
    """Nothing, or null, is under ``name``."""

    name: Name

    def __str__(self) -> str:
        return f"{_name(self.name)} is null"


@dataclass(frozen=True)
class Not:
    """``part`` does not hold."""

    part: Expression

    def __str__(self) -> str:
        return f"not {_inner(self.part)}"


@dataclass(frozen=True)
class And:
    """Every one of two or more parts holds."""

    parts: tuple[Expression, ...]

    def __str__(self) -> str:
        return " and ".join(map(_inner, self.parts))


@dataclass(frozen=True)
class Or:
    """At least one of two or more parts holds."""

    parts: tuple[Expression, ...]

    def __str__(self) -> str:
        return " or ".join(map(_inner, self.parts))


Expression: TypeAlias = Compare | In | Has | Null | Not | And | Or
"""``str`` of one is a text that ``parse`` reads as the same tree."""


def parse(text: str) -> Expression:
    """Read a condition, ``price < 50 and labels.neckline has 'v'`` for example.

    Raises:
        ValueError: it is not of the grammar; the text names the position, from 1, and what was expected.
    """
    return _Parser(text).whole()


def parse_name(text: str) -> Name:
    """Read a name, ``labels.neckline`` for example.

    Raises:
        ValueError: it is none; the text names the position, from 1, and what was expected.
    """
    return _Parser(text).name()


_KEYWORDS = ("and", "or", "not", "in", "is", "null", "has", "true", "false")
_IDENTIFIER = re.compile(r"[^\W\d]\w*")
_TOKEN = re.compile(
    r"""(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.]))
    | (?P<string>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")*")
    | (?P<word>[^\W\d]\w*)
    | (?P<symbol><=|>=|!=|==|[=<>(),.])""",
    re.VERBOSE,
)
_SPACE = re.compile(r"\s*")


class _Token(NamedTuple):
    kind: str
    """A group of ``_TOKEN``; "keyword" or "end"."""
    text: str
    begin: int


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while (at := _SPACE.match(text, at).end()) < len(text):  # type: ignore[union-attr]
        found = _TOKEN.match(text, at)
        if found is None:
            if text[at] in "'\"":
                raise _error(f"a closing {text[at]}", at, text[at:])
            raise _error("a name, a value or an operator", at, text[at:])
        kind, token = str(found.lastgroup), found[0]
        if kind == "word" and token.lower() in _KEYWORDS:
            kind, token = "keyword", token.lower()
        elif token == "==":
            token = "="
        yield _Token(kind, token, at)
        at = found.end()
    yield _Token("end", "", len(text))


class _Parser:
    """Reads by recursive descent, one method for each rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._at = 0

    def whole(self) -> Expression:
        found = self._expression(0)
        if self._next.kind != "end":
            raise self._expected("'and', 'or' or the end")
        return found

    def name(self) -> Name:
        found = self._name()
        if self._next.kind != "end":
            raise self._expected("'.' or the end")
        return found

    def _expression(self, level: int) -> Expression:
        parts = self._joined("or", lambda: self._conjunction(level))
        return parts[0] if len(parts) == 1 else Or(parts)

    def _conjunction(self, level: int) -> Expression:
        parts = self._joined("and", lambda: self._negation(level))
        return parts[0] if len(parts) == 1 else And(parts)

    def _joined(self, word: str, part: Callable[[], Expression]) -> tuple[Expression, ...]:
        parts = [part()]
        while self._take("keyword", word):
            parts.append(part())
        return tuple(parts)

    def _negation(self, level: int) -> Expression:
        if level > MOST_LEVELS:
            raise self._expected(f"at most {MOST_LEVELS} levels of parentheses and 'not'")
        if self._take("keyword", "not"):
            return Not(self._negation(level + 1))
        if self._take("symbol", "("):
            found = self._expression(level + 1)
            self._must("symbol", ")")
            return found
        return self._predicate()

    def _predicate(self) -> Expression:
        name = self._name()
        if self._next.kind == "symbol" and self._next.text in ("=", "!=", "<", "<=", ">", ">="):
            op = self._advance().text
            at = self._next
            value = self._value()
            if isinstance(value, bool) and op not in ("=", "!="):
                raise _error("a number or a string to be ordered", at.begin, at.text)
            return Compare(name, op, value)
        if self._take("keyword", "has"):
            return Has(name, self._value())
        if self._take("keyword", "is"):
            negated = self._take("keyword", "not")
            self._must("keyword", "null")
            return Not(Null(name)) if negated else Null(name)
        negated = self._take("keyword", "not")
        if negated or (self._next.kind, self._next.text) == ("keyword", "in"):
            self._must("keyword", "in")
            return In(name, self._values(), negated)
        raise self._expected("an operator after the name")

    def _name(self) -> Name:
        keys = [self._key()]
        while self._take("symbol", "."):
            keys.append(self._key())
        return tuple(keys)

    def _key(self) -> str:
        if self._next.kind == "quoted":
            return _unquoted(self._advance().text)
        if self._next.kind == "word":
            return self._advance().text
        raise self._expected('a name (in "" where it is a keyword or no identifier)')

    def _values(self) -> tuple[Value, ...]:
        self._must("symbol", "(")
        values = [self._value()]
        while self._take("symbol", ","):
            at = self._next
            values.append(self._value())
            if _type(values[-1]) != _type(values[0]):
                raise _error(f"a {_type(values[0])} as the first of the list is", at.begin, at.text)
        self._must("symbol", ")")
        return tuple(values)

    def _value(self) -> Value:
        token = self._next
        if token.kind in ("string", "quoted"):
            return _unquoted(self._advance().text)
        if token.kind == "number":
            return _number(self._advance())
        if token.kind == "keyword" and token.text in ("true", "false"):
            return self._advance().text == "true"
        raise self._expected("a value ('string', number, true or false)")

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _advance(self) -> _Token:
        self._at += 1
        return self._tokens[self._at - 1]

    def _take(self, kind: str, text: str) -> bool:
        found = (self._next.kind, self._next.text) == (kind, text)
        self._at += found
        return found

    def _must(self, kind: str, text: str) -> None:
        if not self._take(kind, text):
            raise self._expected(f"'{text}'")

    def _expected(self, what: str) -> ValueError:
        return _error(what, self._next.begin, self._next.text)


def _error(expected: str, at: int, found: str) -> ValueError:
    shown = repr(found if len(found) <= 40 else f"{found[:37]}...") if found else "the end"
    return ValueError(f"where: expression must have {expected} at position {at + 1}, got {shown}")


def _number(token: _Token) -> int | float:
    digits = token.text.lstrip("+-0")
    if not digits.isdigit() and digits:
        value = float(token.text)
        if not math.isfinite(value):
            raise _error("a number below 1.8e308", token.begin, token.text)
        return value
    # Python refuses to read thousands of digits, with an error of its own.
    if len(digits) > 19 or not -(2**63) <= int(token.text) < 2**63:
        raise _error("a whole number of 64 bits", token.begin, token.text)
    return int(token.text)


def _type(value: Value) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "string" if isinstance(value, str) else "number"


def _unquoted(token: str) -> str:
    quote = token[0]
    return token[1:-1].replace(quote * 2, quote)


def _name(name: Name) -> str:
    return ".".join(
        key
        if _IDENTIFIER.fullmatch(key) and key.lower() not in _KEYWORDS
        else '"' + key.replace('"', '""') + '"'
        for key in name
    )


def _literal(value: Value) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value).lower()


def _inner(part: Expression) -> str:
    return f"({part})" if isinstance(part, (And, Or)) else str(part)
