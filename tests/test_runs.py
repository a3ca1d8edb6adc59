from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from placket.runs import RunFolder, replacing, write_bytes, write_json, write_text


def test_write_replaces_and_leaves_nothing_beside(tmp_path: Path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    write_text(path, "garçon")
    assert path.read_bytes() == "garçon".encode()
    assert os.listdir(tmp_path) == ["a.txt"]


def test_write_obeys_umask(tmp_path: Path):
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_replacing_keeps_the_old_file_when_the_block_raises(tmp_path: Path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def half() -> None:
        with replacing(path) as file:
            file.write(b"ha")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def no_space(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left") as raised:
        write_text(path, "new")
    assert raised.value.filename == str(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def rewrite_for_ever(path: Path) -> None:
    for i in itertools.count():
        write_bytes(path, bytes([i % 256]) * 300_000)


def test_kill_leaves_a_whole_file(tmp_path: Path):
    path = tmp_path / "a.bin"
    for pause in (0.0, 0.011, 0.037):
        process = multiprocessing.get_context("fork").Process(target=rewrite_for_ever, args=(path,))
        path.unlink(missing_ok=True)
        process.start()
        while not path.exists():
            assert process.is_alive()
            time.sleep(0.005)
        time.sleep(pause)
        process.kill()
        process.join()
        content = path.read_bytes()
        assert len(content) == 300_000
        assert len(set(content)) == 1


def test_write_json_takes_numpy_and_refuses_nan(tmp_path: Path):
    path = tmp_path / "a.json"
    write_json(path, {"a": np.float32(0.5), "b": np.arange(2), "c": tmp_path})
    assert path.read_text() == f'{{\n  "a": 0.5,\n  "b": [\n    0,\n    1\n  ],\n  "c": "{tmp_path}"\n}}\n'
    with pytest.raises(ValueError, match=r"must be JSON, got .* not JSON compliant"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(TypeError, match="must be made of JSON's types, got set"):
        write_json(path, {"a": {1}})
    assert '"a": 0.5' in path.read_text()


def test_metrics_survive_a_cut_line(tmp_path: Path):
    run = RunFolder(tmp_path / "runs" / "a")
    assert run.read_metrics() == []
    for step in range(4):
        run.append_metrics({"step": step, "loss": np.float64(step / 2)})
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "lo')
    assert [r["step"] for r in run.read_metrics()] == [0, 1, 2, 3]
    run.keep_metrics(up_to_step=2)
    run.append_metrics({"step": 3, "loss": 9.0})
    assert [r["loss"] for r in run.read_metrics()] == [0.0, 0.5, 1.0, 9.0]


def test_metrics_errors(tmp_path: Path):
    run = RunFolder(tmp_path)
    with pytest.raises(ValueError, match=r"append_metrics: record must be JSON.*'loss': inf"):
        run.append_metrics({"loss": float("inf")})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n[2]\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2 must be a JSON object, got '\[2\]'"):
        run.read_metrics()


def test_run_folder_parts(tmp_path: Path):
    run = RunFolder(tmp_path / "r")
    run.write_config("a: 1\n")
    run.write_result({"map": 1.5})
    (run.samples / "x.png").write_bytes(b"")
    assert sorted(os.listdir(run.path)) == ["config.yaml", "result.json", "samples"]
    with pytest.raises(NotADirectoryError, match="must be a folder, got the file"):
        RunFolder(run.config)
