"""Storage in a folder: damage, kills, full disks, two processes at once."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placket.index import AttributeIndex, segments

SPACES = {"neckline": 5, "sleeve": 3}
LONG = os.environ.get("PLACKET_LONG_TESTS") == "1"
"""Whether the writer is killed at all 200 of its writes, which takes minutes, or at some."""
fork = multiprocessing.get_context("fork")


def vectors(seed: int, count: int) -> dict[str, np.ndarray]:
    source = np.random.default_rng(seed)
    return {name: source.normal(size=(count, dim)).astype(np.float32) for name, dim in SPACES.items()}


def filled(folder: Path, count: int = 30) -> AttributeIndex:
    """An index with two segments, in one of which a row is removed."""
    index = AttributeIndex.create(folder, SPACES)
    for begin in (0, count // 2):
        ids = [f"g{i}" for i in range(begin, begin + count // 2)]
        rows = [{"price": i, "name": f"n{i}"} for i in range(begin, begin + count // 2)]
        index.add(ids, vectors(begin, len(ids)), rows)
        index.save()
    index.remove(["g3"])
    index.save()
    return index


def everything(index: AttributeIndex) -> dict[Any, Any]:
    """All that an index holds, in its order."""
    items = index._engine.get(list(index.ids()))
    return {i.id: (i.metadata, {name: row.tobytes() for name, row in i.vectors.items()}) for i in items}


def ask(folder: Path) -> list[Any]:
    """Open an index and ask so that every part of it is read."""
    with AttributeIndex.load(folder, read_only=True) as index:
        assert "absent" not in index
        queries = {name: np.ones(dim) for name, dim in index.spaces.items()}
        return index.search(queries, k=1000, where="price >= 0 and name != ''")


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")


@pytest.fixture
def index(tmp_path: Path) -> Iterator[AttributeIndex]:
    with filled(tmp_path / "a") as made:
        yield made


def test_flipped_bytes_are_found_and_refused(index: AttributeIndex) -> None:
    assert index.verify() == []
    whole = ask(index.path)
    # Two segments of items, columns and two spaces, a list of removed rows, and the manifest.
    assert len(files(index.path)) == 10
    for file in files(index.path):
        data = bytearray(file.read_bytes())
        for at in sorted({*range(0, len(data), 41), *range(max(0, len(data) - 20), len(data))}):
            data[at] ^= 1 << at % 8
            file.write_bytes(data)
            problems = index.verify()
            assert len(problems) == 1, (file, at)
            assert str(file) in problems[0]
            with pytest.raises(ValueError, match=rf"AttributeIndex: .*{file.name} must "):
                ask(index.path)
            data[at] ^= 1 << at % 8
        file.write_bytes(data)
    assert ask(index.path) == whole
    assert index.verify() == []


def test_white_space_of_the_manifest_counts(index: AttributeIndex) -> None:
    manifest = index.path / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace("\n", "  ", 1))
    with pytest.raises(ValueError, match=r"manifest.json must be as saved, got other bytes"):
        AttributeIndex.load(index.path, read_only=True)


def test_torn_and_absent_files_are_refused(index: AttributeIndex) -> None:
    for file in files(index.path):
        data = file.read_bytes()
        for part in (data[:-2], data[: len(data) // 2], b"", data + b"\0"):
            file.write_bytes(part)
            with pytest.raises(ValueError, match=rf"{file.name} must "):
                AttributeIndex.load(index.path, read_only=True)
            assert len(index.verify()) == 1
        file.unlink()
        with pytest.raises(FileNotFoundError, match=r"must (have \d+ bytes, got no such file|hold an index)"):
            AttributeIndex.load(index.path, read_only=True)
        assert len(index.verify()) == 1
        file.write_bytes(data)


def test_older_format_is_told_to_be_built_again(index: AttributeIndex) -> None:
    (index.path / "manifest.json").write_text(json.dumps({"format": "placket-attribute-index/1"}))
    with pytest.raises(
        ValueError,
        match=r"must have format '.*-index/2', got 'placket-attribute-index/1'; build it again",
    ):
        AttributeIndex.load(index.path, read_only=True)


def test_merge_does_not_launder_damage(index: AttributeIndex) -> None:
    index.close()
    file = next(path for path in files(index.path) if path.name.startswith("vectors-1"))
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    with AttributeIndex.load(index.path) as writer:
        with pytest.raises(ValueError, match=f"{file.name} must be as saved, got other bytes between 0 and"):
            writer.compact()
        assert len(writer.verify()) == 1
        assert len(writer) == 29


def test_second_writer_is_refused_and_named(index: AttributeIndex) -> None:
    with pytest.raises(BlockingIOError, match=r"must have one writer, got this process, which has it open"):
        AttributeIndex.load(index.path)

    def other(path: Path, answer: Connection) -> None:
        try:
            AttributeIndex.load(path)
        except BlockingIOError as error:
            answer.send(str(error))

    here, there = fork.Pipe()
    process = fork.Process(target=other, args=(index.path, there))
    process.start()
    assert here.poll(30)
    assert (
        f"got process {os.getpid()}, which has it open already; close it there, or load with" in here.recv()
    )
    process.join()
    index.close()
    AttributeIndex.load(index.path).close()


def test_lock_of_a_killed_writer_is_free(index: AttributeIndex) -> None:
    index.close()

    def hold(path: Path, answer: Connection) -> None:
        writer = AttributeIndex.load(path)
        answer.send(len(writer))
        time.sleep(60)

    here, there = fork.Pipe()
    process = fork.Process(target=hold, args=(index.path, there))
    process.start()
    assert here.poll(30)
    with pytest.raises(BlockingIOError, match=f"got process {process.pid}"):
        AttributeIndex.load(index.path)
    process.kill()
    process.join()
    AttributeIndex.load(index.path).close()


def test_unsaved_changes_are_lost_and_nothing_is_left_of_them(index: AttributeIndex) -> None:
    before = everything(index)
    index.add(["new"], vectors(1, 1))
    index.remove(["g0"])
    index.add_space("hem", 2, list(index.ids()), np.ones((len(index), 2)))
    index.close()
    assert len(files(index.path)) == 12
    with AttributeIndex.load(index.path) as again:
        assert everything(again) == before
        again.remove(["g20"])
        again.save()
        assert len(files(index.path)) == 11


class NoSpace(OSError):
    pass


class Failing:
    """Makes the n-th call of some functions of ``os`` fail as on a full disk."""

    NAMES = ("fsync", "replace", "mkdir", "posix_fallocate")

    def __init__(self, patch: pytest.MonkeyPatch, n: int) -> None:
        self.calls = itertools.count()
        self.failed = False
        for name in self.NAMES:
            patch.setattr(os, name, self.wrap(getattr(os, name), n))

    def wrap(self, function: Callable[..., Any], n: int) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if next(self.calls) == n:
                self.failed = True
                raise NoSpace
            return function(*given, **named)

        return call


CHANGES: dict[str, Callable[[AttributeIndex], None]] = {
    "add": lambda writer: writer.add(["x", "g5"], vectors(9, 2), replace=True),
    "remove": lambda writer: writer.remove(["g7", "g20"]),
    "space": lambda writer: writer.add_space("hem", 2, list(writer.ids()), np.ones((len(writer), 2))),
    "compact": lambda writer: writer.compact(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_failure_at_any_step_leaves_the_last_state(tmp_path: Path, change: str) -> None:
    filled(tmp_path / "whole").close()
    states: list[dict[Any, Any]] = []
    for n in itertools.chain([-1], itertools.count()):  # first without a failure
        folder = shutil.copytree(tmp_path / "whole", tmp_path / f"copy{n}")
        with AttributeIndex.load(folder) as writer, pytest.MonkeyPatch.context() as patch:
            states = states or [everything(writer)]
            changed = saved = False
            failing = Failing(patch, n)
            with suppress(NoSpace):
                CHANGES[change](writer)
                changed = True
                writer.save()
                saved = True
            patch.undo()
            assert saved or failing.failed
            assert writer.verify() == []
            with AttributeIndex.load(folder, read_only=True) as reader:
                found = everything(reader)
            if n == -1:
                states.append(found)
            # After an error it may be the next state: the last step is to make sure that its name stays.
            assert found in states[saved:]
            if not changed:
                CHANGES[change](writer)
            writer.save()
            assert everything(writer) == states[1]
            assert writer.verify() == []
        assert everything(AttributeIndex.load(folder, read_only=True)) == states[1]
        if n >= 0 and not failing.failed:
            break
    assert n > 3


def test_full_disk_is_an_error_that_leaves_the_last_state(index: AttributeIndex) -> None:
    before = everything(index)
    index.add(range(1000), vectors(1, 1000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel cuts a write at this length, as it does at the end of a disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            index.save()
        with pytest.raises(OSError, match="File too large"):
            index.add_space("hem", 50, list(index.ids()), np.ones((len(index), 50)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(files(index.path)) == 10
    with AttributeIndex.load(index.path, read_only=True) as reader:
        assert everything(reader) == before
    assert len(index) == 1029
    index.save()
    with AttributeIndex.load(index.path, read_only=True) as reader:
        assert len(reader) == 1029
        assert reader.verify() == []


def write(index: AttributeIndex, step: int) -> None:
    """Do the n-th of a series of writes; what it does depends on nothing but the state it finds."""
    source = random.Random(step)
    known = list(index.ids())
    action = source.choice(["add", "add", "add", "replace", "remove", "compact", "space"])
    if action == "space" and len(index.spaces) < 4:
        rows = np.random.default_rng(step).normal(size=(len(known), 4))
        index.add_space(f"space{step}", 4, known, rows)
    elif action == "remove":
        index.remove(source.sample(known, len(known) // 4))
    elif action == "compact":
        index.compact()
    else:
        ids = [f"{step}-{i}" for i in range(source.randrange(1, 20))]
        ids += source.sample(known, min(3, len(known))) if action == "replace" else []
        rows = np.random.default_rng(step)
        given = {name: rows.normal(size=(len(ids), dim)) for name, dim in index.spaces.items()}
        index.add(ids, given, [{"step": step, "i": i} for i in range(len(ids))], replace=True)
    # A compaction alone changes no items: this write's number must be in the state.
    index.add(["step"], {name: np.ones((1, dim)) for name, dim in index.spaces.items()}, [{"n": step}], True)
    index.save()


def write_for_ever(folder: Path, steps: Connection) -> None:
    with AttributeIndex.load(folder) as index:
        for step in itertools.count(steps.recv()):
            write(index, step)
            steps.send(step)


def test_kill_leaves_the_last_committed_state(tmp_path: Path) -> None:
    kills, moments = (200 if LONG else 8), random.Random(4)
    AttributeIndex.create(tmp_path / "killed", SPACES).close()
    mirror = AttributeIndex.create(tmp_path / "mirror", SPACES)
    step = 0
    for _ in range(kills):
        here, there = fork.Pipe()
        process = fork.Process(target=write_for_ever, args=(tmp_path / "killed", there))
        process.start()
        there.close()
        here.send(step)
        here.poll(30)
        time.sleep(moments.uniform(0, 0.15))
        process.kill()
        process.join()
        told = step - 1
        while here.poll():
            try:
                told = here.recv()
            except EOFError:
                break
        with AttributeIndex.load(tmp_path / "killed") as index:
            assert index.verify() == []
            state = everything(index)
            reached = state["step"][0]["n"]
            # The write that was going on may have been committed, though it could not say so.
            assert reached in (told, told + 1)
            while step <= reached:
                write(mirror, step)
                step += 1
            assert state == everything(mirror)
            write(index, step)
            write(mirror, step)
            step += 1
            named = {e.file for s in read(index) for e in segments._entries(s)} | {"manifest.json", "lock"}
            left = {str(p.relative_to(index.path)) for p in index.path.rglob("*") if p.is_file()}
            assert left == named
    mirror.close()


def read(index: AttributeIndex) -> list[Any]:
    return list(json.loads((index.path / "manifest.json").read_text())["segments"])


def look_for_ever(folder: Path, answer: Connection) -> None:
    """Search again and again, in an index that is opened anew or refreshed, until a reading is not whole."""
    seen = set()
    reader = AttributeIndex.load(folder, read_only=True)
    for turn in itertools.count():
        if turn % 3:
            reader.refresh()
        else:
            reader.close()
            reader = AttributeIndex.load(folder, read_only=True)
        hits = reader.search({"neckline": np.ones(5)}, k=1000, where="version >= 0")
        versions = {hit.metadata["version"] for hit in hits}
        if len(hits) != 60 or len(versions) != 1 or len(list(reader.ids())) != 60:
            answer.send(f"{len(hits)} hits of the versions {versions}")
            return
        seen |= versions
        if answer.poll():
            answer.send(len(seen))
            return


def test_readers_see_whole_versions_while_a_writer_commits_and_compacts(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with AttributeIndex.create(folder, SPACES) as writer:
        ids = [f"g{i}" for i in range(60)]

        def save(version: int) -> None:
            # In parts, so that a version is several segments.
            for begin in range(0, 60, 20):
                rows = [{"version": version}] * 20
                writer.add(ids[begin : begin + 20], vectors(version, 20), rows, replace=True)
                len(list(writer.ids()))
            writer.compact() if version % 5 == 4 else writer.save()

        save(0)
        readers = []
        for _ in range(2):
            here, there = fork.Pipe()
            process = fork.Process(target=look_for_ever, args=(folder, there))
            process.start()
            readers.append((here, process))
        for version in range(1, 40):
            save(version)
        for here, process in readers:
            here.send("end")
            assert here.poll(60)
            seen = here.recv()
            assert isinstance(seen, int), seen
            assert seen > 2
            process.join()


def test_reader_that_is_overtaken_reads_the_manifest_again(
    index: AttributeIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, before = segments.ArrayFile.__init__, []

    def open_and_be_overtaken(*given: Any) -> None:
        if not before:
            before.append(len(index))
            index.remove(["g9"])
            index.compact()
        opened(*given)

    monkeypatch.setattr(segments.ArrayFile, "__init__", open_and_be_overtaken)
    with AttributeIndex.load(index.path, read_only=True) as reader:
        assert len(reader) == 28
    assert before == [29]


def test_reader_keeps_its_version_when_files_are_deleted(index: AttributeIndex) -> None:
    with AttributeIndex.load(index.path, read_only=True) as reader:
        before = ask(index.path)
        for i in range(3):
            index.remove([f"g{10 + i}"])
            index.compact()
        queries = {name: np.ones(dim) for name, dim in SPACES.items()}
        assert reader.search(queries, k=1000) == before
        assert reader.search(queries, k=1000, where="price >= 0 and name != ''") == before
        assert len(list(reader.ids())) == 29
        reader.refresh()
        assert len(list(reader.ids())) == 26


def test_searches_go_on_while_another_thread_adds(index: AttributeIndex) -> None:
    wrong, done = [], threading.Event()

    def look() -> None:
        while not done.is_set():
            hits = index.search({"neckline": np.ones(5)}, k=1000)
            if len({hit.id for hit in hits}) != len(hits) or len(hits) < 29:
                wrong.append(hits)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for i in range(60):
            index.add([f"g{i}"], vectors(i, 1), replace=True)
            if i % 10 == 9:
                index.save()
    finally:
        done.set()
        thread.join()
    assert not wrong
    assert len(index) == 60


def test_small_commits_stay_few_segments_and_few_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, write_arrays = [], segments.write_arrays

    def counted(folder: Path, file: str, *rest: Any) -> Any:
        entry = write_arrays(folder, file, *rest)
        if "vectors-0" in file:
            rows.append(len(segments.ArrayFile(folder, entry).array("rows")))
        return entry

    monkeypatch.setattr(segments, "write_arrays", counted)
    with AttributeIndex.create(tmp_path / "a", SPACES) as index:
        for i in range(100):
            index.add([i], vectors(i, 1))
            index.save()
            assert index.info()["segments"] <= 3 * 7
        # Once when it is added, then at most once for each of 1, 8 and 64.
        assert sum(rows) <= 4 * 100
        assert list(index.ids()) == list(range(100))
        assert index.verify() == []


def test_segments_that_are_mostly_removed_are_written_anew(tmp_path: Path) -> None:
    with AttributeIndex.create(tmp_path / "a", SPACES) as index:
        index.add(range(100), vectors(0, 100))
        index.save()
        index.remove(range(50))
        index.save()
        assert (index.info()["removed"], index.info()["segments"]) == (50, 1)
        index.remove([50])
        index.save()
        assert (index.info()["removed"], index.info()["segments"]) == (0, 1)
        index.remove(range(51, 100))
        index.save()
        assert (index.info()["segments"], index.info()["bytes"], len(files(index.path))) == (0, 0, 1)


def test_ids_with_one_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_hash", lambda key: len(key) % 2)
    with filled(tmp_path / "a") as index:
        assert "g3" not in index
        assert "g30" not in index
        assert [index.get(f"g{i}").metadata["price"] for i in (0, 14, 29)] == [0, 14, 29]
        index.add(["g14", "h"], vectors(1, 2), replace=True)
        index.compact()
        assert list(index.ids()) == [f"g{i}" for i in range(30) if i not in (3, 14)] + ["g14", "h"]


def test_opening_reads_no_vectors(index: AttributeIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(segments.ArrayFile, "_check", refuse)
    monkeypatch.setattr(segments.ArrayFile, "_read_tail", refuse)
    AttributeIndex.load(index.path, read_only=True).close()


def test_engine_has_no_unknown_options(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"options of engine 'flat' must be storage, got 'nlist'"):
        AttributeIndex.create(tmp_path / "a", SPACES, nlist=3)
    with pytest.raises(ValueError, match=r"engine must be one of \['flat', 'faiss', 'milvus'\], got 'x'"):
        AttributeIndex.create(tmp_path / "a", SPACES, "x")
    assert not (tmp_path / "a" / "manifest.json").exists()
