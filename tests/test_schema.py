from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from placket.schema import Attribute, AttributeSchema

SCHEMA = AttributeSchema(
    (Attribute("neckline", ("round", "v-neck")), Attribute("sleeve", ("none", "short", "long")))
)
FORM = "data must have the form {'attributes': [{'name': str, 'values': [str, ...]}, ...]}"


def test_names_ids_and_counts() -> None:
    assert len(SCHEMA) == 2
    assert SCHEMA.names == ("neckline", "sleeve")
    assert SCHEMA.value_counts == (2, 3)
    assert SCHEMA.index("sleeve") == SCHEMA.index(1) == 1
    assert SCHEMA.indices(["sleeve", 0]) == [1, 0]
    assert SCHEMA["neckline"].index("v-neck") == 1


def test_weights() -> None:
    assert SCHEMA.weights() == {"neckline": 1.0, "sleeve": 1.0}
    assert list(SCHEMA.weights([1, "neckline"])) == ["sleeve", "neckline"]
    assert SCHEMA.weights({"sleeve": 0.5}) == {"sleeve": 0.5}
    assert SCHEMA.weights([]) == {}
    with pytest.raises(ValueError, match="got 'slee'; closest is 'sleeve'"):
        SCHEMA.weights({"slee": 1.0})


def test_round_trip_through_json() -> None:
    assert AttributeSchema.from_dict(json.loads(json.dumps(SCHEMA.to_dict()))) == SCHEMA
    assert (
        AttributeSchema.of({"neckline": ["round", "v-neck"], "sleeve": ["none", "short", "long"]}) == SCHEMA
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: SCHEMA.index("neck"),
            "schema: attribute must be one of neckline, sleeve, got 'neck'; closest is 'neckline'",
        ),
        (lambda: SCHEMA.index(2), "schema: attribute must be an id from 0 to 1, got 2"),
        (lambda: SCHEMA.index(-1), "schema: attribute must be an id from 0 to 1, got -1"),
        (
            lambda: SCHEMA[0].index("v"),
            (
                "schema: value of attribute 'neckline' must be one of round, v-neck, got 'v'; "
                "closest is 'v-neck'"
            ),
        ),
        (
            lambda: AttributeSchema.of({"a": []}),
            "schema: values of attribute 'a' must be at least one, got none",
        ),
        (
            lambda: AttributeSchema.of({"a": ["x", "x"]}),
            "schema: values of attribute 'a' must have different names, got 'x' twice",
        ),
        (
            lambda: AttributeSchema.from_dict({"attributes": [{"name": "a", "values": [1]}]}),
            f"schema: {FORM}, got {{'attributes': [{{'name': 'a', 'values': [1]}}]}}",
        ),
        (lambda: AttributeSchema.from_dict({"names": ["a"]}), f"schema: {FORM}, got {{'names': ['a']}}"),
    ],
)
def test_errors_name_the_value(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()
