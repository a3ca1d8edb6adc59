"""What Milvus is asked means what the condition means, for generated metadata and conditions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_where import holds
from test_metadata_columns import _EXPRESSIONS, _NUMBERS, _VALUES

from placket.index import milvus_where
from placket.index.milvus_where import conditions, literal, translate
from placket.index.where import Compare, Expression, Has, In, Not

pymilvus = pytest.importorskip("pymilvus", reason="package 'pymilvus' is not installed")

ODD_KEYS = ["", ".", "a.b", "~/", 'x"y', "né", "a b", "\n", "%", "\\"]
ODD_STRINGS = [
    "",
    "it's",
    'a"b',
    "a\\",
    "new\nline",
    "nul\0",
    "\x7f",
    "%",
    "é\U0001f600",
    "\u2028",
    "a",
    "a b",
    "a\x1fb",
    "ab",
    "b",
]


def _asker(uri: str) -> Callable[[list[dict[str, Any]]], Callable[[str], list[int]]]:
    client = pymilvus.MilvusClient(uri=uri)
    schema = client.create_schema()
    schema.add_field("row", pymilvus.DataType.INT64, is_primary=True)
    schema.add_field("conditions", pymilvus.DataType.JSON)
    schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=2)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="IP")
    client.create_collection("conditions", schema=schema, index_params=index, consistency_level="Strong")
    numbers = itertools.count()

    def asked(rows: list[dict[str, Any]]) -> Callable[[str], list[int]]:
        """Return what tells the rows for which a filter holds."""
        first = next(numbers) * 1000
        client.upsert(
            "conditions",
            [
                {"row": first + i, "conditions": conditions(row), "vector": [0.0, 0.0]}
                for i, row in enumerate(rows)
            ],
        )

        def ask(text: str) -> list[int]:
            both = f"row >= {first} and row < {first + len(rows)} and ({text})"
            return sorted(each["row"] - first for each in client.query("conditions", both, ["row"]))

        return ask

    return asked


@pytest.fixture(scope="module", params=["milvus", "milvus-lite"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if request.param == "milvus":
        yield _asker(request.getfixturevalue("milvus_server"))
    else:
        pytest.importorskip("milvus_lite", reason="package 'milvus-lite' is not installed")
        yield _asker(str(tmp_path_factory.mktemp("lite") / "milvus.db"))


_KEYS = st.sampled_from(["a", "b"])
_ROWS = st.lists(st.dictionaries(_KEYS, _VALUES, max_size=2), min_size=1, max_size=20)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=_ROWS, expressions=st.lists(_EXPRESSIONS, min_size=8, max_size=8))
def test_generated_conditions(server: Any, rows: list[dict[str, Any]], expressions: list[Expression]) -> None:
    ask = server(rows)
    for expression in expressions:
        expected = [i for i, row in enumerate(rows) if holds(expression, row)]
        assert ask(translate(expression)) == expected, (expression, translate(expression))


def test_odd_names_and_strings(server: Any) -> None:
    rows: list[dict[str, Any]] = [{key: {key: i}} for i, key in enumerate(ODD_KEYS)]
    rows += [{"s": text, "l": [text]} for text in ODD_STRINGS] + [{}]
    ask = server(rows)
    expressions: list[Expression] = []
    for i, key in enumerate(ODD_KEYS):
        expressions += [Compare((key, key), op, i) for op in ("=", "<=", "<")]
    for text in [*ODD_STRINGS, "\ud800", "a\udfff", "é\ud800x"]:
        expressions += [Compare(("s",), op, text) for op in ("=", "!=", "<", "<=", ">", ">=")]
        expressions += [Has(("l",), text), In(("s",), (text, "a")), In(("s",), (text,), True)]
    for expression in expressions + [Not(each) for each in expressions]:
        expected = [i for i, row in enumerate(rows) if holds(expression, row)]
        assert ask(translate(expression)) == expected, (expression, translate(expression))


@given(
    _NUMBERS | st.integers() | st.floats(allow_nan=False, allow_infinity=False), _NUMBERS | st.floats(-9, 9)
)
def test_keys_of_numbers_order_as_they_do(one: float, other: float) -> None:
    keys = milvus_where._key(one), milvus_where._key(other)
    assert (keys[0] < keys[1], keys[0] == keys[1]) == (one < other, one == other)


def test_deeply_nested_metadata() -> None:
    row: dict[str, Any] = {"a": 1}
    for _ in range(2000):
        row = {"a": row}
    assert len(conditions(row)["tokens"]) == 2003


def test_literal_has_no_way_out() -> None:
    assert literal('"] or row >= 0 or ["\\') == '"\\"] or row >= 0 or [\\"\\\\"'
