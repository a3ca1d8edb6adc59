"""What is of Milvus alone: half-written items, requests sent twice, several writers, limits, wrong ones."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from placket import AttributeIndex

pymilvus = pytest.importorskip("pymilvus", reason="package 'pymilvus' is not installed")
grpc = pytest.importorskip("grpc")
from placket.index import flat as flat_engine  # noqa: E402
from placket.index import milvus_client, milvus_engine  # noqa: E402
from placket.index.engines import read_manifest  # noqa: E402
from placket.index.milvus_engine import MilvusEngine  # noqa: E402
from placket.index.where import parse  # noqa: E402

SPACES = {"neckline": 4, "sleeve length": 8}
Make = Callable[..., MilvusEngine]


@pytest.fixture(params=["milvus_server", "milvus_lite"])
def uri(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def make(uri: str, tmp_path: Path) -> Iterator[Make]:
    made: list[MilvusEngine] = []

    def create(**options: Any) -> MilvusEngine:
        made.append(milvus_engine.create(tmp_path, SPACES, {"uri": uri, **options}))
        return made[-1]

    yield create
    for engine in made:
        engine.drop()
        engine.close()


def _vectors(count: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    rows = {name: rng.normal(size=(count, dim)) for name, dim in SPACES.items()}
    return {
        name: (each / np.linalg.norm(each, axis=1, keepdims=True)).astype(np.float32)
        for name, each in rows.items()
    }


def _again(engine: MilvusEngine, tmp_path: Path) -> MilvusEngine:
    return milvus_engine.load(tmp_path, read_manifest(tmp_path), False)


def _put(engine: MilvusEngine, count: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    vectors = _vectors(count, seed)
    engine.put(range(count), vectors, [{"n": i} for i in range(count)])
    return vectors


def _best(engine: MilvusEngine, vectors: dict[str, NDArray[np.float32]], row: int, **asked: Any) -> list[Any]:
    queries = {name: each[row : row + 1] for name, each in vectors.items()}
    [found] = engine.search(queries, dict.fromkeys(queries, 1.0), asked.get("k", 10), asked.get("where"))
    return found


def _expected(vectors: dict[str, NDArray[np.float32]], row: int, k: int = 10) -> list[int]:
    scores = sum(each.astype(float) @ each[row].astype(float) for each in vectors.values())
    return [int(i) for i in np.argsort(-np.asarray(scores), kind="stable")[:k]]


class _Killed(BaseException):
    pass


def test_item_half_written_is_as_it_was(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    vectors = _put(engine, 20)
    before = _best(engine, vectors, 3)
    upsert = milvus_client.Server.upsert

    def killed(server: Any, collection: str, rows: Any) -> None:
        if collection == server.items:
            raise _Killed
        upsert(server, collection, rows)

    with monkeypatch.context() as patch:
        patch.setattr(milvus_client.Server, "upsert", killed)
        # Two are replaced and one is added, all with the vector that is asked for.
        same = {name: np.repeat(each[3:4], 3, 0) for name, each in vectors.items()}
        with pytest.raises(_Killed):
            engine.put([0, 1, "new"], same, [{}] * 3)
    assert _best(engine, vectors, 3) == before
    assert list(engine.ids()) == list(range(20))
    assert engine.verify() == []
    rows = [engine._server.count(collection, "") for collection in engine._collections()]
    assert rows == [23, 23]
    engine.compact()
    assert [engine._server.count(each, "") for each in engine._collections()] == [23, 23]  # too young
    monkeypatch.setattr(milvus_engine, "LEFT_FOR_DEAD", -10)
    engine.compact()
    assert [engine._server.count(each, "") for each in engine._collections()] == [20, 20]
    assert _best(engine, vectors, 3) == before


def test_requests_sent_twice_leave_one_row(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    sent: list[str] = []

    def twice(method: str) -> None:
        request = getattr(engine._server._client, method)

        def answer_lost(collection: str, *args: Any, **kwargs: Any) -> Any:
            sent.append(method)
            answer = request(collection, *args, **kwargs)
            if sent.count(method) % 2:
                raise pymilvus.MilvusException(grpc.StatusCode.UNAVAILABLE, "answer lost")
            return answer

        monkeypatch.setattr(engine._server._client, method, answer_lost)

    twice("upsert")
    twice("delete")
    vectors = _put(engine, 10)
    engine.remove([4])
    engine.put([2], {name: each[2:3] for name, each in vectors.items()}, [{}])
    assert sent.count("upsert") > 6
    assert sent.count("delete") > 5
    assert [engine._server.count(each, "") for each in engine._collections()] == [9, 9]
    assert list(engine.ids()) == [0, 1, 3, 5, 6, 7, 8, 9, 2]


def test_attempts_end_and_errors_that_stay_are_not_repeated(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(attempts=4)
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    for error, attempts in [
        (pymilvus.MilvusException(8, "rate limit exceeded"), 4),
        (pymilvus.MilvusException(2, "node not ready", retriable=True), 4),
        (pymilvus.MilvusException(grpc.StatusCode.DEADLINE_EXCEEDED, "late"), 4),
        (pymilvus.MilvusException(1100, "invalid parameter"), 1),
    ]:
        calls: list[int] = []

        def fails(*args: Any, error: Exception = error, calls: list[int] = calls, **kwargs: Any) -> None:
            calls.append(1)
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(engine._server._client, "query", fails)
            kind = ConnectionError if attempts > 1 else RuntimeError
            with pytest.raises(kind, match=f"server .* must carry out query, got {error.message}"):
                len(engine)
        assert len(calls) == attempts
    assert waits[:3] == [0.2, 0.4, 0.8]


def test_two_writers(make: Make, tmp_path: Path) -> None:
    one = make(consistency="Strong")
    two = _again(one, tmp_path)
    for begin in range(0, 12, 4):
        for number, engine in enumerate((one, two)):
            ids = range(begin + 2 * number, begin + 2 * number + 2)
            engine.put(ids, {n: v[list(ids)] for n, v in _vectors(12).items()}, [{}, {}])
    one.put([5], {n: v[5:6] for n, v in _vectors(12).items()}, [{"by": "one"}])
    two.remove([0])
    for engine in (one, two):
        assert list(engine.ids()) == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 5]
        assert _best(engine, _vectors(12), 5, k=1)[0].metadata == {"by": "one"}
    two.close()


def test_same_microsecond_is_no_confusion(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make()
    two = _again(one, tmp_path)
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)
    vectors = _vectors(2)
    one.put(["a"], {n: v[:1] for n, v in vectors.items()}, [{}])
    two.put(["b"], {n: v[1:] for n, v in vectors.items()}, [{}])
    assert {found.id: round(found.score, 5) for found in _best(one, vectors, 0)}["a"] == 2.0
    assert sorted(map(str, one.ids())) == ["a", "b"]
    two.close()


def test_more_than_a_server_returns_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # With lists of 32 at most, two unlike spaces do not decide, and every item is scored.
    for module in (milvus_client, milvus_engine):
        monkeypatch.setattr(module, "DEEPEST", 32)
    engine = make(candidates=10)
    vectors = _put(engine, 150)
    assert list(engine.ids()) == list(range(150))
    for row in (0, 7):
        assert [found.id for found in _best(engine, vectors, row, k=20)] == _expected(vectors, row, 20)
    some = _best(engine, vectors, 0, where=parse("n >= 100 and n < 150"), k=60)
    assert sorted(found.id for found in some) == list(range(100, 150))
    assert engine.verify() == []


def test_hits_are_those_of_the_flat_engine_in_every_bit(make: Make, tmp_path: Path) -> None:
    engine = make()
    vectors = _put(engine, 400)
    (tmp_path / "flat").mkdir()
    flat = flat_engine.create(tmp_path / "flat", SPACES, {})
    flat.put(range(400), vectors, [{"n": i} for i in range(400)])
    queries = {name: rows[:5] for name, rows in vectors.items()}
    weights = {"neckline": 0.7, "sleeve length": -0.3}
    for where in (None, parse("n >= 33 and n != 41")):
        assert engine.search(queries, weights, 30, where) == flat.search(queries, weights, 30, where)
    flat.close()


def test_batches_are_small(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (milvus_client, milvus_engine):
        monkeypatch.setattr(module, "REQUEST", 2000)
    engine = make(shards=2, consistency="Session")
    vectors = _put(engine, 60)
    engine.commit()
    assert len(engine) == 60
    assert [found.id for found in _best(engine, vectors, 11)] == _expected(vectors, 11)
    items = engine.get([59, 3])
    assert [item.id for item in items] == [59, 3]
    np.testing.assert_array_equal(items[0].vectors["neckline"], vectors["neckline"][59])


def test_approximate_indexes_are_scored_exactly(make: Make) -> None:
    hnsw = {"index_type": "HNSW", "M": 16, "efConstruction": 100}
    engine = make(index={"neckline": hnsw}, search={"ef": 200}, candidates=100)
    vectors = _put(engine, 2000)
    engine.commit()
    assert [space.index_type for space in engine._spaces.values()] == ["HNSW", "FLAT"]
    shared = 0
    for row in range(10):
        found = _best(engine, vectors, row)
        for each in found:
            exact = sum(float(v[each.id].astype(float) @ v[row].astype(float)) for v in vectors.values())
            assert each.score == pytest.approx(exact, abs=3e-7)
        shared += len({each.id for each in found} & set(_expected(vectors, row)))
    assert shared >= 70
    with pytest.raises(ValueError, match="k must be at most 16,384 with an approximate index, got 20000"):
        _best(engine, vectors, 0, k=20_000)


def test_verify_finds_what_is_lacking(make: Make) -> None:
    engine = make()
    _put(engine, 5)
    space = engine._spaces["neckline"].collection
    [key] = [
        row["key"] for rows in engine._server.scan(space, "", "key") for row in rows if row["key"][0] == "3"
    ]
    engine._server.delete(space, "key", [key])
    assert engine.verify() == [f"AttributeIndex: item 3 must have a vector in {space}, got none"]


def test_items_that_milvus_cannot_hold(make: Make) -> None:
    engine = make()
    one = {name: each[:1] for name, each in _vectors(1).items()}
    with pytest.raises(
        ValueError, match=r"id of item 'x+' must take at most 4,096 bytes with Milvus, got 5002"
    ):
        engine.put(["x" * 5000], one, [{}])
    with pytest.raises(
        ValueError, match=r"metadata of item 1 must take at most 65,535 bytes with Milvus, got"
    ):
        engine.put([1], one, [{"text": "x" * 70_000}])
    assert len(engine) == 0


def test_token_is_written_nowhere(make: Make, tmp_path: Path) -> None:
    make(token="root:secret")
    assert all(b"secret" not in file.read_bytes() for file in tmp_path.glob("*.json"))
    assert json.loads((tmp_path / "manifest.json").read_text())["options"]["collection"].startswith(
        "test_token"
    )


def test_server_that_is_not_the_index(make: Make, tmp_path: Path, uri: str) -> None:
    engine = make(collection="garments")
    with pytest.raises(
        ValueError, match=r"collection 'garments' must be new on .*; drop, got \['garments_items'"
    ):
        make(collection="garments")
    client = pymilvus.MilvusClient(uri)
    space = engine._spaces["neckline"].collection
    assert space == "garments_space_0_neckline"
    client.drop_collection(space)
    schema = client.create_schema()
    schema.add_field("key", pymilvus.DataType.INT64, is_primary=True)
    schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=4)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="IP")
    client.create_collection(space, schema=schema, index_params=index)
    message = f"collection '{space}' must have fields .*, got .*'key': 'INT64'"
    with pytest.raises(ValueError, match=message):
        _again(engine, tmp_path)
    assert len(engine.verify()) == 1
    client.drop_collection("garments_items")
    with pytest.raises(ValueError, match="must hold collection 'garments_items', got"):
        _again(engine, tmp_path)
    client.close()


def test_index_of_another_metric_is_refused(make: Make, tmp_path: Path, uri: str) -> None:
    engine = make()
    client, space = pymilvus.MilvusClient(uri), engine._spaces["neckline"].collection
    client.release_collection(space)
    client.drop_index(space, "vector")
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="L2")
    client.create_index(space, index)
    client.load_collection(space)
    with pytest.raises(ValueError, match=f"collection '{space}' must have an index with metric IP, got L2"):
        _again(engine, tmp_path)
    client.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "options of engine 'milvus' must hold uri, got none"),
        ({"uri": "x", "shard": 1}, r"options of engine 'milvus' must be of \['uri', .*got 'shard'"),
        ({"uri": "x", "shards": 99}, "option shards must be 1 to 16, got 99"),
        ({"uri": "x", "consistency": "strong"}, r"option consistency must be one of .*, got strong"),
        (
            {"uri": "x", "collection": "a-b"},
            r"option collection must be 1 to 200 letters, digits and _, got a-b",
        ),
        ({"uri": "x", "candidates": 0}, "option candidates must be 1 to 16,384, got 0"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttributeIndex.create(tmp_path, SPACES, engine="milvus", **options)
    assert not (tmp_path / "manifest.json").exists()


def test_no_server(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(ConnectionError, match=r"server http://127.0.0.1:9 must answer within 1 s, got "):
        AttributeIndex.create(
            tmp_path, SPACES, engine="milvus", uri="http://127.0.0.1:9", timeout=1, attempts=2
        )
    assert time.monotonic() - begin < 20
