from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placket.index.where import MOST_LEVELS, And, Compare, Expression, Has, In, Not, Null, Or, parse

_KEYS = st.text(min_size=0, max_size=6) | st.sampled_from(["price", "and", "IN", "a b", 'x"y', "né", "_1"])
_NAMES = st.lists(_KEYS, min_size=1, max_size=3).map(tuple)
_STRINGS = st.text(max_size=8) | st.sampled_from(["it's", '"', "''", "a\nb"])
_NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
_VALUES = _STRINGS | _NUMBERS | st.booleans()
_LISTS = st.one_of(*(st.lists(one, min_size=1, max_size=4) for one in (_STRINGS, _NUMBERS, st.booleans())))
_LEAVES = st.one_of(
    st.builds(Compare, _NAMES, st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), _STRINGS | _NUMBERS),
    st.builds(Compare, _NAMES, st.sampled_from(["=", "!="]), st.booleans()),
    st.builds(In, _NAMES, _LISTS.map(tuple), st.booleans()),
    st.builds(Has, _NAMES, _VALUES),
    st.builds(Null, _NAMES),
)


def _nodes(parts: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    several = st.lists(parts, min_size=2, max_size=3).map(tuple)
    return st.builds(Not, parts) | st.builds(And, several) | st.builds(Or, several)


EXPRESSIONS = st.recursive(_LEAVES, _nodes, max_leaves=8)
_WORDS = st.sampled_from(
    [
        *"=<>(),.'\"+-é!&;",
        *[
            "price",
            "labels",
            "and",
            "or",
            "not",
            "in",
            "is",
            "null",
            "has",
            "true",
            "==",
            "!=",
            "1",
            "-2.5",
            "1e999",
            "'v'",
            "0x1",
            "__import__('os')",
        ],
        *("9223372036854775808", '"neck line"', " ", "\x00"),
    ]
)


@given(EXPRESSIONS)
def test_where_round_trip(expression: Expression) -> None:
    # repr, since 1 and True and 1.0 are equal to Python.
    assert repr(parse(str(expression))) == repr(expression)


@given(st.text() | st.lists(_WORDS, max_size=30).map(" ".join) | st.lists(_WORDS, max_size=30).map("".join))
def test_any_text_is_an_expression_or_an_error_with_its_position(text: str) -> None:
    try:
        expression = parse(text)
    except ValueError as error:
        message = str(error)
    else:
        assert repr(parse(str(expression))) == repr(expression)
        return
    found = re.match(r"where: expression must have .* at position (\d+), got ", message, re.DOTALL)
    assert found, message
    assert 1 <= int(found[1]) <= len(text) + 1


_PRICE, _NECK = ("price",), ("labels", "neckline")


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("price < 50", Compare(_PRICE, "<", 50)),
        ("price<-5e-1", Compare(_PRICE, "<", -0.5)),
        ("price == .5", Compare(_PRICE, "=", 0.5)),
        ("brand != 'it''s'", Compare(("brand",), "!=", "it's")),
        ('brand = "say ""a"""', Compare(("brand",), "=", 'say "a"')),
        ("new = TRUE", Compare(("new",), "=", True)),
        ("labels.neckline HAS 'v'", Has(_NECK, "v")),
        ('labels . "sleeve length" has 3', Has(("labels", "sleeve length"), 3)),
        ("price in (1, 2.5)", In(_PRICE, (1, 2.5))),
        ("price Not In ('a')", In(_PRICE, ("a",), True)),
        ("price is null", Null(_PRICE)),
        ("price is not null", Not(Null(_PRICE))),
        ("not price is null", Not(Null(_PRICE))),
        (
            "a = 1 or b = 2 and not c = 3 or d = 4",
            Or(
                (
                    Compare(("a",), "=", 1),
                    And((Compare(("b",), "=", 2), Not(Compare(("c",), "=", 3)))),
                    Compare(("d",), "=", 4),
                )
            ),
        ),
        (
            "(a = 1 or b = 2) and c = 3",
            And((Or((Compare(("a",), "=", 1), Compare(("b",), "=", 2))), Compare(("c",), "=", 3))),
        ),
        ("((größe >= 9223372036854775807))", Compare(("größe",), ">=", 2**63 - 1)),
        ("a = -9223372036854775808", Compare(("a",), "=", -(2**63))),
    ],
)
def test_where_by_hand(text: str, expression: Expression) -> None:
    assert repr(parse(text)) == repr(expression)


@pytest.mark.parametrize(
    ("text", "expected", "position", "got"),
    [
        ("", 'a name (in "" where it is a keyword or no identifier)', 1, "the end"),
        ("price", "an operator after the name", 6, "the end"),
        ("price <", "a value ('string', number, true or false)", 8, "the end"),
        ("price < fifty", "a value ('string', number, true or false)", 9, "'fifty'"),
        ("price = null", "a value ('string', number, true or false)", 9, "'null'"),
        ("price < true", "a number or a string to be ordered", 9, "'true'"),
        ("price < 1 price", "'and', 'or' or the end", 11, "'price'"),
        ("(price < 1", "')'", 11, "the end"),
        ("price in 1", "'('", 10, "'1'"),
        ("price in ()", "a value ('string', number, true or false)", 11, "')'"),
        ("price in (1, 'a')", "a number as the first of the list is", 14, "\"'a'\""),
        ("price in (true, 1)", "a boolean as the first of the list is", 17, "'1'"),
        ("price not 1", "'in'", 11, "'1'"),
        ("price is 1", "'null'", 10, "'1'"),
        ("has = 1", 'a name (in "" where it is a keyword or no identifier)', 1, "'has'"),
        ("a. = 1", 'a name (in "" where it is a keyword or no identifier)', 4, "'='"),
        ("brand = 'a", "a closing '", 9, '"\'a"'),
        ('brand = "a', 'a closing "', 9, "'\"a'"),
        ("price < 1; drop", "a name, a value or an operator", 10, "'; drop'"),
        ("price < 12abc", "a name, a value or an operator", 9, "'12abc'"),
        ("price < 1e999", "a number below 1.8e308", 9, "'1e999'"),
        ("price < 9223372036854775808", "a whole number of 64 bits", 9, "'9223372036854775808'"),
        ("price < " + "9" * 5000, "a whole number of 64 bits", 9, f"'{'9' * 37}...'"),
        (
            "not " * 60 + "a = 1",
            f"at most {MOST_LEVELS} levels of parentheses and 'not'",
            205,
            "'not'",
        ),
        (
            "(" * 100_000,
            f"at most {MOST_LEVELS} levels of parentheses and 'not'",
            52,
            "'('",
        ),
    ],
)
def test_where_errors_name_position_and_expectation(
    text: str, expected: str, position: int, got: str
) -> None:
    with pytest.raises(ValueError) as raised:
        parse(text)
    assert str(raised.value) == f"where: expression must have {expected} at position {position}, got {got}"


def test_long_chains_are_read() -> None:
    parsed = parse(" and ".join(f"a{i} = {i}" for i in range(20_000)))
    assert isinstance(parsed, And)
    assert len(parsed.parts) == 20_000
