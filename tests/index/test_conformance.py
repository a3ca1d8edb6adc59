"""What every engine must do, and do alike."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from placket.index import AttributeIndex
from placket.index.where import parse

sys.path.insert(0, str(Path(__file__).parent))

from reference_where import holds

ENGINES: dict[str, Callable[[pytest.FixtureRequest], dict[str, Any]]] = {
    "flat": lambda request: {"engine": "flat"},
    "flat, bfloat16": lambda request: {"engine": "flat", "storage": "bfloat16"},
    "flat, int8": lambda request: {"engine": "flat", "storage": "int8"},
    "faiss": lambda request: {"engine": request.getfixturevalue("faiss_engine")},
    "milvus": lambda request: {"engine": "milvus", "uri": request.getfixturevalue("milvus_server")},
    "milvus lite": lambda request: {"engine": "milvus", "uri": request.getfixturevalue("milvus_lite")},
}
"""By a name for the test: what ``AttributeIndex.create`` gets beside path and spaces."""

LONG = os.environ.get("PLACKET_LONG_TESTS") == "1"
SPACES = {"neckline": 6, "sleeve length": 3}
Make = Callable[..., AttributeIndex]


@pytest.fixture(params=list(ENGINES))
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes indexes in ``tmp_path`` by their names, and closes them."""
    options = ENGINES[request.param](request)
    with ExitStack() as opened:

        def create(name: str = "index", spaces: Mapping[str, int] = SPACES) -> AttributeIndex:
            return opened.enter_context(AttributeIndex.create(tmp_path / name, spaces, **options))

        yield create


def skip_on_a_server(request: pytest.FixtureRequest, slow: bool) -> None:
    if slow and request.node.callspec.params["make"] == "milvus" and not LONG:
        pytest.skip("takes minutes on a server (PLACKET_LONG_TESTS=1)")


def reopened(index: AttributeIndex) -> AttributeIndex:
    index.save()
    index.close()
    return AttributeIndex.load(index.path)


def before_and_after(index: AttributeIndex) -> Iterator[AttributeIndex]:
    """The index as it is, and as it is when it was saved and opened again."""
    yield index
    with reopened(index) as again:
        yield again


class Model:
    """An index in the plainest Python: a dictionary in the order of addition."""

    def __init__(self, spaces: Mapping[str, int]) -> None:
        self.spaces = dict(spaces)
        self.items: dict[Any, tuple[dict[str, NDArray[np.float64]], dict[str, Any]]] = {}

    def add(self, ids: Sequence[Any], vectors: Mapping[str, Any], metadata: Sequence[Any]) -> None:
        for i, id in enumerate(ids):
            self.items.pop(id, None)
            units = {name: np.float64(rows[i]) / np.linalg.norm(rows[i]) for name, rows in vectors.items()}
            self.items[id] = units, metadata[i]

    def search(
        self, queries: Mapping[str, Any], weights: Mapping[str, float], k: int, where: str | None = None
    ) -> list[tuple[Any, float]]:
        units = {name: np.float64(query) / np.linalg.norm(query) for name, query in queries.items()}
        scored = [
            (id, sum(weights.get(name, 1.0) * float(vectors[name] @ unit) for name, unit in units.items()))
            for id, (vectors, metadata) in self.items.items()
            if where is None or holds(parse(where), metadata)
        ]
        # Rounded, since float64 makes 1e-16 of what is equal; sorted() leaves equals in their order.
        return sorted(scored, key=lambda item: -round(item[1], 9))[:k]


class Source:
    """Random items, many of which share vectors, so that there are ties."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.pools: dict[str, NDArray[np.float32]] = {}

    def vectors(self, spaces: Mapping[str, int], count: int) -> dict[str, NDArray[np.float32]]:
        for name, dim in spaces.items():
            if name not in self.pools:
                self.pools[name] = self.random.normal(size=(7, dim)).astype(np.float32) * 5
        return {name: self.pools[name][self.random.integers(0, 7, count)] for name in spaces}

    def metadata(self, count: int) -> list[dict[str, Any]]:
        return [
            {
                "price": [int(n), float(n) / 2, None, str(n)][self.random.integers(0, 4)],
                "labels": {"neckline": [["v", "round", "boat"][i] for i in self.random.integers(0, 3, 2)]},
                **({"sale": bool(n % 2)} if n % 3 else {}),
            }
            for n in self.random.integers(0, 100, count)
        ]


CONDITIONS = [
    None,
    "price < 40",
    "price >= 25 and price != 31",
    "price = '7' or price > '5'",
    "price is null or not price in (1, 2, 3, 4.5)",
    "price not in ('7', '9', '11')",
    "labels.neckline has 'v' and not labels.neckline has 'boat'",
    "sale = true",
    "sale != true",
    "not sale = true",
    "sale is not null and (price < 20 or price > 80)",
    "labels.sleeve is null",
    'labels = "none"',
]


def agrees(
    index: AttributeIndex,
    model: Model,
    queries: dict[str, Any],
    weights: dict[str, float],
    k: int,
    where: str | None,
) -> None:
    hits = index.search(queries, weights, k=k, where=where)
    expected = model.search(queries, weights, k, where)
    assert [hit.id for hit in hits] == [id for id, _ in expected], (weights, k, where)
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected], abs=2e-6)
    for hit in hits:
        vectors, metadata = model.items[hit.id]
        assert hit.metadata == metadata
        assert list(hit.scores) == [name for name in index.spaces if name in queries]
        for name, cosine in hit.scores.items():
            true = vectors[name] @ queries[name] / np.linalg.norm(np.float64(queries[name]))
            assert cosine == pytest.approx(float(true), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_history_agrees_with_the_model(make: Make, seed: int, request: pytest.FixtureRequest) -> None:
    skip_on_a_server(request, seed > 0)
    source, spaces = Source(seed), dict(SPACES)
    index, model = make(), Model(spaces)
    random, names = source.random, iter(range(1000))
    for step in range(40):
        action = random.choice(["add", "add", "replace", "remove", "save", "reopen", "compact", "space"])
        known = list(model.items)
        some = [known[i] for i in random.permutation(len(known))[: random.integers(0, 6)]]
        if action in ("add", "replace"):
            ids: list[Any] = [
                n if n % 2 else f"item {n}" for n, _ in zip(names, range(random.integers(0, 9)), strict=False)
            ]
            ids += some if action == "replace" else []
            vectors, metadata = source.vectors(spaces, len(ids)), source.metadata(len(ids))
            index.add(ids, vectors, metadata, replace=action == "replace")
            model.add(ids, vectors, metadata)
        elif action == "remove":
            index.remove(some)
            for id in some:
                del model.items[id]
        elif action == "save":
            index.save()
        elif action == "reopen":
            index = reopened(index)
        elif action == "compact":
            index.compact()
        elif len(spaces) < 4:
            name = f"space {step}"
            spaces[name] = model.spaces[name] = 4
            rows = source.vectors({name: 4}, len(known))[name]
            order = random.permutation(len(known))
            half = len(known) // 2
            index.add_space(
                name,
                4,
                blocks=[([known[i] for i in part], rows[part]) for part in (order[:half], order[half:])],
            )
            for id, row in zip(known, rows, strict=True):
                model.items[id][0][name] = np.float64(row) / np.linalg.norm(row)
        assert len(index) == len(model.items)
        assert list(index.ids()) == list(model.items)
        for _ in range(2):
            asked = [name for name in spaces if random.random() < 0.6] or ["neckline"]
            queries = {name: random.normal(size=spaces[name]) for name in asked}
            weights = {
                name: float(random.choice([-1.0, 0.5, 2.0])) for name in asked if random.random() < 0.7
            }
            where = CONDITIONS[random.integers(0, len(CONDITIONS))]
            agrees(index, model, queries, weights, int(random.choice([1, 5, 1000])), where)
    index = reopened(index)
    assert index.verify() == []
    assert index.spaces == spaces
    assert list(index.ids()) == list(model.items)
    index.close()


@pytest.mark.parametrize("where", CONDITIONS)
def test_conditions_select_the_same_items(
    make: Make, where: str | None, request: pytest.FixtureRequest
) -> None:
    # test_milvus_where.py asks the server for many conditions of one index.
    skip_on_a_server(request, where != CONDITIONS[-1])
    source, index, model = Source(5), make(), Model(SPACES)
    for _ in range(2):
        count = 30
        ids = [f"g{len(model.items) + i}" for i in range(count)]
        vectors, metadata = source.vectors(SPACES, count), source.metadata(count)
        index.add(ids, vectors, metadata)
        model.add(ids, vectors, metadata)
        index.save()
    agrees(index, model, {"neckline": np.ones(6)}, {}, 100, where)
    assert index.search({"neckline": np.ones(6)}, k=100, where=None if where is None else parse(where)) == (
        index.search({"neckline": np.ones(6)}, k=100, where=where)
    )


def test_search_by_hand(make: Make) -> None:
    index = make(spaces={"neckline": 2})
    index.add([7, "7", "c"], {"neckline": [[3, 4], [0, 2], [30, 40]]}, [{"name": "x"}, {}, {"name": "é"}])
    hits = index.search({"neckline": [0, 1]}, k=9)
    assert [(h.id, h.metadata) for h in hits] == [("7", {}), (7, {"name": "x"}), ("c", {"name": "é"})]
    assert [h.score for h in hits] == pytest.approx([1.0, 0.8, 0.8])
    assert hits[1].scores == pytest.approx({"neckline": 0.8})
    assert [h.id for h in index.search({"neckline": [0, 1]}, {"neckline": -1.0}, k=2)] == [7, "c"]
    assert (7 in index, "7" in index, 8 in index, 1.5 in index, np.int64(7) in index) == (
        True,
        True,
        False,
        False,
        True,
    )
    item = index.get(7)
    assert (item.id, item.metadata) == (7, {"name": "x"})
    assert item.vectors["neckline"].tolist() == pytest.approx([0.6, 0.8])


def test_ties_are_in_the_order_of_addition(make: Make) -> None:
    index = make(spaces={"s": 2})
    for begin in range(0, 20, 4):
        index.add(range(begin, begin + 4), {"s": [[1, 1], [1, 0]] * 2})
        index.save()
    assert [h.id for h in index.search({"s": [1, 0]}, k=12)] == [*range(1, 20, 2), 0, 2]
    index.add([5], {"s": [[1, 0]]}, replace=True)
    assert [h.id for h in index.search({"s": [1, 0]}, k=10)] == [1, 3, *range(7, 20, 2), 5]


def test_many_queries_are_answered_as_each_alone(make: Make) -> None:
    source, index = Source(3), make()
    index.add(range(50), source.vectors(SPACES, 50))
    queries = {name: source.random.normal(size=(9, dim)).astype(np.float32) for name, dim in SPACES.items()}
    weights = {"neckline": 0.7, "sleeve length": -2.0}
    together = index.search(queries, weights, k=20)
    assert len(together) == 9
    for i, hits in enumerate(together):
        assert hits == index.search({name: rows[i] for name, rows in queries.items()}, weights, k=20)
    # The order in which a caller names spaces is nothing.
    turned = dict(reversed(queries.items()))
    assert (
        index.search({name: torch.from_numpy(rows) for name, rows in turned.items()}, weights, 20) == together
    )
    assert index.search({name: rows[:0] for name, rows in queries.items()}) == []


def test_groups_are_the_first_of_the_ranking(make: Make) -> None:
    source, index = Source(5), make()
    products = [[None, 1, 1, 1, "1", 2, 3, {"a": 1}][i] for i in source.random.integers(0, 8, 60)]
    index.add(range(60), source.vectors(SPACES, 60), [{"shop": {"product": product}} for product in products])
    queries = {name: source.random.normal(size=(2, dim)).astype(np.float32) for name, dim in SPACES.items()}
    whole = index.search(queries, k=60)
    for k in (1, 3, 6, 50):
        for ranking, found in zip(whole, index.search(queries, k=k, group_by="shop.product"), strict=True):
            seen: set[str] = set()
            expected = []
            for hit in ranking:
                product = products[hit.id]
                if product is None or json.dumps(product) not in seen:
                    expected.append(hit)
                    seen.add(json.dumps(product))
            assert found == expected[:k]
    index.close()


def test_metadata_comes_back(make: Make) -> None:
    rows = [
        {
            "text": "naïve \U0001f457 \"quoted\" 'it''s' \n\0",
            "": 1,
            "a.b": {"c d": [1, 2.5, None, "x", [True]]},
        },
        {"greatest": 2**63 - 1, "least": -(2**63), "float": 0.1, "tiny": 5e-324, "null": None, "e": []},
        {"tuple": (1, 2)},
        {},
    ]
    index = make(spaces={"s": 2})
    index.add(["naïve \U0001f457", "", "x" * 100, -(2**63)], {"s": np.ones((4, 2))}, rows)
    rows[2]["tuple"] = [1, 2]
    for opened in before_and_after(index):
        assert [hit.metadata for hit in opened.search({"s": [1, 1]})] == rows
        assert [hit.id for hit in opened.search({"s": [1, 1]})] == [
            "naïve \U0001f457",
            "",
            "x" * 100,
            -(2**63),
        ]
        assert [h.id for h in opened.search({"s": [1, 1]}, where='"a.b"."c d" has 2.5')] == [
            "naïve \U0001f457"
        ]
        assert [h.id for h in opened.search({"s": [1, 1]}, where="greatest = 9223372036854775807")] == [""]


def test_empty_index(make: Make) -> None:
    index = make()
    assert index.search({"neckline": np.ones(6)}) == []
    assert index.search({"neckline": np.ones((2, 6))}, where="price < 5") == [[], []]
    index.add([], {name: np.zeros((0, dim)) for name, dim in SPACES.items()})
    index.remove([])
    index.add_space("hem", 2)
    index = reopened(index)
    assert (len(index), list(index.ids()), index.verify()) == (0, [], [])
    assert index.spaces == {**SPACES, "hem": 2}
    index.add(["a"], {"neckline": np.ones((1, 6)), "sleeve length": np.ones((1, 3)), "hem": [[1, 0]]})
    index.remove(["a"])
    assert index.search({"hem": [1, 0]}) == []
    index.close()


def test_added_space_is_searched_with_the_others(make: Make) -> None:
    source, index = Source(8), make()
    for begin in (0, 10):
        index.add(range(begin, begin + 10), source.vectors(SPACES, 10))
        index.save()
    index.remove([3])
    index.add([20], source.vectors(SPACES, 1))
    ids = [i for i in range(21) if i != 3]
    rows = np.eye(21)[ids] + 0.01
    before = index.search({"neckline": np.ones(6)}, k=30)
    for wrong, message in [
        ([(ids[:-1], rows[:-1])], "vectors must hold a row for every item, got none for 20"),
        ([(ids, rows), ([5], rows[:1])], "vectors must hold one row for each item, got two for 5"),
        ([([3], rows[:1])], "ids must be in the index, got 3"),
        ([([1, 1], rows[:2])], "ids must be new, got 1 a second time"),
        ([([1], rows[:1, :5])], r"must have shape \[1, 21\], got \[1, 5\]"),
        ([([1], rows[:1] * 0)], "not zero, got a zero row for id 1"),
    ]:
        with pytest.raises(ValueError, match=r"AttributeIndex\.add_space: .*" + message):
            index.add_space("hem", 21, blocks=wrong)
        assert index.spaces == SPACES
        assert index.search({"neckline": np.ones(6)}, k=30) == before
    index.add_space("hem", 21, ids[::-1], rows[::-1])
    for opened in before_and_after(index):
        assert opened.spaces == {**SPACES, "hem": 21}
        assert opened.search({"neckline": np.ones(6)}, k=30) == before
        for i in ids:
            assert opened.search({"hem": np.eye(21)[i]}, k=1)[0].id == i


def test_readers_see_what_was_saved(make: Make) -> None:
    source, index = Source(1), make()
    index.add(range(5), source.vectors(SPACES, 5), [{"n": i} for i in range(5)])
    index.save()
    with AttributeIndex.load(index.path, read_only=True) as reader:
        assert reader.spaces == SPACES
        assert list(reader.ids()) == list(range(5))
        assert reader.search({"neckline": np.ones(6)}) == index.search({"neckline": np.ones(6)})
        index.remove([2])
        index.add([9], source.vectors(SPACES, 1))
        index.save()
        reader.refresh()
        assert list(reader.ids()) == [0, 1, 3, 4, 9]
        assert reader.search({"neckline": np.ones(6)}) == index.search({"neckline": np.ones(6)})
        for call in (
            lambda: reader.add([1], {}),
            lambda: reader.remove([1]),
            lambda: reader.add_space("a", 1),
            reader.save,
            reader.compact,
        ):
            with pytest.raises(PermissionError, match=r"must be open for writing, got read_only=True"):
                call()


def test_info_is_json(make: Make) -> None:
    index = make()
    index.add(range(5), Source(1).vectors(SPACES, 5))
    index.save()
    info = json.loads(json.dumps(index.info()))
    assert info["count"] == len(index) == 5
    assert info["spaces"] == SPACES
    assert info["engine"] == index.engine


def test_closed_index_says_so(make: Make) -> None:
    index = make()
    index.close()
    index.close()
    with pytest.raises(ValueError, match=r"must be open, got it closed; load it again"):
        len(index)


def test_add_is_all_or_nothing(make: Make) -> None:
    index = make()
    three = {"neckline": np.ones((3, 6)), "sleeve length": np.ones((3, 3))}
    index.add(["g0", "g1", "g2"], three)
    good = {"neckline": np.ones((2, 6)), "sleeve length": np.ones((2, 3))}
    nan = np.ones((2, 3))
    nan[1, 2] = np.nan
    new = ["x", "y"]
    loop: dict[str, Any] = {}
    loop["a"] = loop
    for ids, vectors, metadata, message in [
        (
            ["x", "g1"],
            good,
            None,
            "ids must be new, got 'g1', which is in the index; replace=True replaces it",
        ),
        (["x", "x"], good, None, "ids must be new, got 'x' a second time"),
        (["x", 2**63], good, None, "ids must be whole numbers of 64 bits, got 9223372036854775808"),
        (["x", "\ud800"], good, None, r"ids must be text for UTF-8, got '\\ud800'"),
        (
            new,
            {**good, "neckline": np.ones((2, 4))},
            None,
            r"'neckline' must have shape \[2, 6\], got \[2, 4\]",
        ),
        (new, {**good, "neckline": np.ones((1, 6))}, None, r"must have shape \[2, 6\], got \[1, 6\]"),
        (new, {**good, "sleeve length": nan}, None, "finite and not zero, got NaN or infinity for id 'y'"),
        (new, {**good, "neckline": np.full((2, 6), 1e300)}, None, "got NaN or infinity for id 'x'"),
        (new, {**good, "neckline": np.zeros((2, 6))}, None, "not zero, got a zero row for id 'x'"),
        (new, {**good, "necklin": good["neckline"]}, None, r"got 'necklin'; closest is 'neckline'"),
        (new, {"neckline": good["neckline"]}, None, "must hold every space, got none for 'sleeve length'"),
        (new, good, [{}], "metadata must have 2 rows, got 1"),
        (new, good, [{}, {"a": {1}}], "metadata must be JSON, got .* for id 'y'"),
        (new, good, [{}, {"a": float("nan")}], "metadata must be JSON, got .* for id 'y'"),
        (new, good, [{}, {1: "a"}], "metadata must be JSON, got the key 1 for id 'y'"),
        (new, good, [{}, {"a": "\ud800"}], "metadata must be JSON, got .*surrogates.* for id 'y'"),
        (new, good, [{}, {"a": 2**63}], "metadata must be JSON, got 9223372036854775808, which does not fit"),
        (new, good, [{}, loop], "metadata must be JSON, got .* for id 'y'"),
    ]:
        with pytest.raises(ValueError, match=r"AttributeIndex(\.add)?: .*" + message):
            index.add(ids, vectors, metadata)
        assert list(index.ids()) == ["g0", "g1", "g2"]
    for wrong in (1.5, None, True, b"x"):
        with pytest.raises(TypeError, match=r"ids must be strings or whole numbers, got "):
            index.add(["x", wrong], good)
    index.add(["x", np.int64(4)], good)
    assert list(index.ids()) == ["g0", "g1", "g2", "x", 4]


def test_other_errors(make: Make, tmp_path: Path) -> None:
    index = make()
    index.add(["g0", "g1"], {"neckline": np.ones((2, 6)), "sleeve length": np.ones((2, 3))})
    query = np.ones(6)
    for call, message in [
        (lambda: index.search({}), r"search: queries must name at least one space, got none"),
        (lambda: index.search({"hem": query}), r"search: queries must be of the spaces .*, got 'hem'"),
        (lambda: index.search({"neckline": query[:4]}), r"search: .* must have shape \[1, 6\], got \[1, 4\]"),
        (lambda: index.search({"neckline": query[None, None]}), r"must have shape \[1, 6\], got \[1, 1, 6\]"),
        (
            lambda: index.search({"neckline": np.ones((2, 6)), "sleeve length": np.ones((3, 3))}),
            r"'neckline' must have shape \[3, 6\], got \[2, 6\]",
        ),
        (lambda: index.search({"neckline": query * 0}), r"search: .* not zero, got a zero row for query 0"),
        (lambda: index.search({"neckline": query}, k=0), r"search: k must be at least 1, got 0"),
        (lambda: index.search({"neckline": query}, {"neckline": 0}), r"weights must not all be 0"),
        (lambda: index.search({"neckline": query}, {"neckline": np.inf}), r"weights must be finite, got inf"),
        (lambda: index.search({"neckline": query}, {"sleeve length": 1}), r"weights must be of spaces asked"),
        (
            lambda: index.search({"neckline": query}, where="price <"),
            r"where: expression must have a value .* at position 8, got the end",
        ),
        (lambda: index.remove(["g0", "g9"]), r"remove: ids must be in the index, got 'g9'"),
        (lambda: index.add_space("neckline", 3), r"add_space: name must be new, got 'neckline'"),
        (
            lambda: index.add_space("hem", 0),
            r"add_space: spaces must map names to positive dim.*, got 'hem': 0",
        ),
        (lambda: index.add_space("hem", 2, ["g0"]), r"add_space: vectors must come with ids, or in blocks"),
        (
            lambda: index.add_space("hem", 2),
            r"add_space: vectors must hold a row for every item, got none for",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
        assert list(index.ids()) == ["g0", "g1"]
    with pytest.raises(LookupError, match=r"get: id must be in the index, got 'g9'"):
        index.get("g9")
    with pytest.raises(FileExistsError, match=r"path must not hold an index, got .*; use load"):
        make()
