from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from placket.index.columns import Columns
from placket.index.where import And, Compare, Expression, Has, In, Not, Null, Or, parse

sys.path.insert(0, str(Path(__file__).parent))

from reference_where import holds

_KEYS = st.sampled_from(["a", "b"])
_STRINGS = st.sampled_from(["", "a", "b", "ab", "é", "\U0001f600", "\uffff"])
_EDGES = [2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2.0**53, 2.0**63, -(2.0**63), 1e300, 0.5, -0.0]
_NUMBERS = st.sampled_from(_EDGES) | st.integers(-3, 3) | st.sampled_from([-1.5, 1.0, 2.0, 2.5])
_SCALARS = _STRINGS | _NUMBERS | st.booleans()
_LEAVES = st.none() | _SCALARS | st.lists(st.none() | _SCALARS | st.just([1]), max_size=3)
_VALUES = st.recursive(_LEAVES, lambda inner: st.dictionaries(_KEYS, inner, max_size=2), max_leaves=4)
_ROWS = st.lists(st.dictionaries(_KEYS, _VALUES, max_size=2), max_size=8)
_NAMES = st.lists(_KEYS, min_size=1, max_size=2).map(tuple)
_LISTS = st.one_of(*(st.lists(one, min_size=1, max_size=3) for one in (_STRINGS, _NUMBERS, st.booleans())))
_CONDITIONS = st.one_of(
    st.builds(Compare, _NAMES, st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), _STRINGS | _NUMBERS),
    st.builds(Compare, _NAMES, st.sampled_from(["=", "!="]), st.booleans()),
    st.builds(In, _NAMES, _LISTS.map(tuple), st.booleans()),
    st.builds(Has, _NAMES, _SCALARS),
    st.builds(Null, _NAMES),
)
_EXPRESSIONS = st.recursive(
    _CONDITIONS,
    lambda part: (
        st.builds(Not, part)
        | st.builds(And, st.lists(part, min_size=2, max_size=3).map(tuple))
        | st.builds(Or, st.lists(part, min_size=2, max_size=3).map(tuple))
    ),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first draw of the strategies is slow
@given(_ROWS, _EXPRESSIONS)
def test_mask_is_what_each_row_says(rows: list[dict[str, Any]], expression: Expression) -> None:
    assert Columns.of(rows).mask(expression).tolist() == [holds(expression, row) for row in rows]


@given(st.lists(st.lists(st.tuples(st.dictionaries(_KEYS, _VALUES), st.booleans()), max_size=5), max_size=3))
def test_merged_columns_are_those_of_the_rows_kept(parts: list[list[tuple[dict[str, Any], bool]]]) -> None:
    merged = Columns.merged(
        [(Columns.of([row for row, _ in part]), np.array([kept for _, kept in part], bool)) for part in parts]
    )
    direct = Columns.of([row for part in parts for row, kept in part if kept])

    def described(columns: Columns) -> dict[str, dict[str, Any]]:
        arrays = columns.arrays
        return {
            json.dumps([c["name"], c["kind"], c["list"]]): {
                n: arrays[f"{i}.{n}"].tolist() for n in c["arrays"]
            }
            for i, c in enumerate(columns.about)
        }

    assert described(merged) == described(direct)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("price < 50", [0]),
        ("price >= 20 and price != 99.5", [0, 1]),
        ("price > 1e300 or price < -1e300", []),
        ("price = 'free'", [2]),
        ("price != 20", [1, 3]),
        ("not price = 20", [1, 2, 3, 4]),
        ("price not in (20, 50)", [3]),
        ("price is null", [4]),
        ("labels.neckline has 'v'", [0, 1]),
        ("labels.neckline = 'v'", [2]),
        ("labels is not null and labels.neckline is null", [3]),
        ("new = true", [1]),
        ("new != true", [0]),
        ("new = 1", []),
    ],
)
def test_mask_by_hand(text: str, expected: list[int]) -> None:
    rows = [
        {"price": 20, "labels": {"neckline": ["v", "deep"]}, "new": False},
        {"price": 50, "labels": {"neckline": ["round", "v"]}, "new": True},
        {"price": "free", "labels": {"neckline": "v"}},
        {"price": 99.5, "labels": {}},
        {"price": None},
    ]
    assert np.flatnonzero(Columns.of(rows).mask(parse(text))).tolist() == expected


def test_deeply_nested_metadata_does_not_exhaust_the_stack() -> None:
    row: dict[str, Any] = {"a": 1}
    for _ in range(5000):
        row = {"a": row}
    assert Columns.of([row]).mask(parse("a is not null")).tolist() == [True]
