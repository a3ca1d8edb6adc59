from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import placket
from placket.cli import _COMMANDS, main
from placket.config import dump

sys.path.insert(0, str(Path(__file__).parent / "train"))

from small_training import draw_all, small_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli") / "drawn"
    root.mkdir()
    draw_all(root)
    return root


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    """A run made by the command itself, of the configuration's file with two values changed."""
    torch.set_num_threads(1)
    file, folder = data.parent / "small.yaml", data.parent / "run"
    file.write_text(dump(small_config(data)))
    changes = ["--stages.region.epochs", "1", "--stages.patch.losses.region_patch", "0.5"]
    assert main(["train", "--config", str(file), "--run", str(folder), *changes]) == 0
    return folder


def test_train_takes_file_and_changes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = placket.load_config(run / "config.yaml").stages
    assert [stage.epochs for stage in stages] == [1, 2]
    assert stages[1].losses["region_patch"] == 0.5
    assert stages[0].rates == {"": 1e-3}
    # Nothing is left to do, and the run's own configuration is read.
    assert main(["train", "--run", str(run), "--resume"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("region: MAP ")
    assert lines[2] == str(run)


def test_evaluate(run: Path, data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["evaluate", str(run / "best"), str(data), "--split", "valid"]
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert "overall" in table
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["protocol"] == "asfr-map-all/v1"
    assert main([*arguments, "--json", str(tmp_path / "result.json")]) == 0
    assert json.loads((tmp_path / "result.json").read_text()) == printed


def test_evaluate_by_other_protocols_and_compare(
    run: Path, data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    saved = []
    protocol = ["--protocol", "asfr-multilabel/v1"]
    for changes in ([], ["--tune-region", "per-attribute"], protocol, ["--flip"]):
        saved.append(str(tmp_path / f"{len(saved)}.json"))
        arguments = ["evaluate", str(run / "best"), str(data), "--split", "valid", "--json", saved[-1]]
        assert main([*arguments, *changes, "--format", "markdown"]) == 0
        assert "| overall |" in capsys.readouterr().out
    assert main(["compare", *saved[:2]]) == 0
    table = capsys.readouterr().out
    assert "B - A" in table
    assert main(["compare", *saved[:2], "--json", "--seed", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    a, b = (json.loads(Path(file).read_text())["overall"] for file in saved[:2])
    assert found["metrics"]["MAP@all"]["difference"] == pytest.approx(b - a)
    assert found["seed"] == 3
    flipped = placket.evaluate(
        placket.load(run / "best"), placket.data.open(data), "valid", flip=True
    ).overall
    assert json.loads(Path(saved[3]).read_text())["overall"] == pytest.approx(flipped)
    assert main(["compare", saved[0], saved[2]]) == 1
    said = capsys.readouterr().err
    assert "must have the same protocol, got asfr-map-all/v1 and asfr-multilabel/v1" in said
    arguments = ["evaluate", str(run / "best"), str(data), "--split", "valid"]
    assert main([*arguments, "--published", "--json", str(tmp_path / "kept.json")]) == 1
    said = capsys.readouterr()
    assert "published: protocol and lists must be those of" in said.err
    assert "overall" in said.out  # what was computed is not lost
    assert (tmp_path / "kept.json").read_text() == Path(saved[0]).read_text()
    assert main([*arguments, "--ranking", "both", "--class-weight", "0.3", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["similarity"]
    assert said.startswith("cosine + class agreement (colour: 0.3 class means, temperature ")
    assert main([*arguments, "--class-weight", "0.3"]) == 1
    assert "class_weight must be None but with ranking 'both'" in capsys.readouterr().err
    assert main([*arguments, "--rivals", "1", "--protocol", "asfr-multilabel/v1"]) == 1
    assert "--rivals needs protocol asfr-map-all/v1, got asfr-multilabel/v1" in capsys.readouterr().err


def test_embed(run: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.npz"
    assert main(["embed", str(run / "best"), str(data), "--split", "valid", "--out", str(out)]) == 0
    saved = np.load(out)
    model = placket.load(run / "best")
    assert saved["embeddings"].shape == (18, 2, model.embedding_dim)
    assert list(saved["spaces"]) == ["colour", "place"]
    assert saved["filenames"][3] == "img/valid003.jpg"


@pytest.fixture(scope="module")
def index(run: Path, data: Path) -> Path:
    folder = data.parent / "index"
    arguments = ["index", "build", str(run / "best"), str(data), "--split", "valid", "--out", str(folder)]
    assert main([*arguments, "--option", "storage=int8"]) == 0
    return folder


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_index_info(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = printed(capsys, "index", "info", index)
    assert info["count"] == 18
    assert list(info["spaces"]) == ["colour", "place"]
    assert info["options"] == {"storage": "int8"}


def test_search(index: Path, data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    image = str(data / "img" / "valid004.jpg")
    for chosen in ([], ["--attribute", "place"], ["--attribute", "place=0.5", "--attribute", "colour"]):
        hits = printed(capsys, "search", index, image, "-k", 3, *chosen)
        assert len(hits) == 3
        assert hits[0]["id"] == "img/valid004.jpg"
    assert hits[0]["score"] == pytest.approx(1.5, abs=1e-4)
    assert hits[0]["metadata"]["labels"] == {"colour": ["green"], "place": ["right"]}
    some = printed(capsys, "search", index, image, "-k", 18, "--where", "labels.colour has 'red'")
    assert {hit["id"] for hit in some} == {f"img/valid{i:03d}.jpg" for i in range(0, 18, 3)}
    assert main(["search", str(index), image, "--attribute", "colour=much"]) == 1
    assert "weight of attribute 'colour' must be a number, got 'much'" in capsys.readouterr().err
    assert main(["search", str(index), image, "--where", "labels.colour"]) == 1
    assert "where: expression must have an operator after the name at position 14" in capsys.readouterr().err


def test_search_by_a_folder(
    index: Path, data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, page = tmp_path / "asked", tmp_path / "hits.html"
    folder.mkdir()
    for i in (7, 2):
        shutil.copy(data / "img" / f"valid{i:03d}.jpg", folder / f"{i}.jpg")
    (folder / "note.txt").write_text("no image")
    found = printed(capsys, "search", index, folder, "-k", 2, "--html", page)
    assert [Path(each["image"]).name for each in found] == ["2.jpg", "7.jpg"]
    assert [each["hits"][0]["id"] for each in found] == ["img/valid002.jpg", "img/valid007.jpg"]
    assert page.read_text().count("<img ") == 2 * 3
    assert main(["search", str(index), str(folder), "-k", "2"]) == 0
    blocks = capsys.readouterr().out.split("\n\n")
    assert [len(block.splitlines()) for block in blocks] == [3, 3]
    (folder / "2.jpg").unlink()
    (folder / "7.jpg").unlink()
    assert main(["search", str(index), str(folder)]) == 1
    assert "must hold images, got none" in capsys.readouterr().err


def test_index_add_remove_verify(
    index: Path, data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copy = str(shutil.copytree(index, tmp_path / "copy"))
    assert main(["index", "add", copy, str(data), "--split", "train"]) == 0
    assert "24 images added, 42 in all" in capsys.readouterr().out
    assert main(["index", "add", copy, str(data), "--split", "train"]) == 0
    assert "0 images added, 24 were there, 42 in all" in capsys.readouterr().out
    assert main(["index", "remove", copy, "img/train001.jpg", "img/valid001.jpg"]) == 0
    assert "2 items removed, 40 left" in capsys.readouterr().out
    assert printed(capsys, "index", "info", copy)["count"] == 40
    assert main(["index", "remove", copy, "img/train001.jpg"]) == 1
    assert "ids must be in the index, got 'img/train001.jpg'" in capsys.readouterr().err
    with placket.AttributeIndex.load(copy) as held:
        held.add([7], {name: [[1.0] * dim] for name, dim in held.spaces.items()})
        held.save()
        assert main(["index", "remove", copy, "7"]) == 1
        assert "must have one writer, got this process" in capsys.readouterr().err
    assert main(["index", "remove", copy, "7"]) == 0
    assert main(["index", "verify", copy]) == 0
    assert capsys.readouterr().out.endswith("ok\n")
    for file in sorted(path for path in Path(copy).rglob("*") if path.is_file() and path.name != "lock"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        assert main(["index", "verify", copy]) == 1
        assert file.name in capsys.readouterr().out
        image = str(data / "img" / "valid004.jpg")
        assert main(["search", copy, image, "-k", "50", "--where", "labels.colour is not null"]) == 1
        assert "placket: " in capsys.readouterr().err
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


def test_explain(
    run: Path, index: Path, data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page, images = tmp_path / "page.html", [data / "img" / f"valid{i:03d}.jpg" for i in (4, 5)]
    arguments = ["explain", run / "best", images[0]]
    rows = printed(capsys, *arguments, "--out", page)
    assert [row["attribute"] for row in rows] == ["colour", "place"]
    assert all(len(row["box"]) == 4 and "cosine" not in row for row in rows)
    assert page.read_text().count("<img ") == 2 * 3
    chosen = ["--attribute", "place=2", "--attribute", "colour", "--out", page]
    rows = printed(capsys, *arguments, images[1], *chosen)
    assert page.read_text().count("<img ") == 2 * 2 * 3
    assert sum(row["share"] for row in rows) == pytest.approx(100)
    assert rows[0]["part"] == 2 * rows[0]["cosine"]
    assert printed(capsys, *arguments, "--hit", index, "img/valid005.jpg", *chosen) == rows
    # What the index says of the same two pictures.
    found = printed(capsys, "search", index, images[0], "-k", 18)
    scores = next(hit["scores"] for hit in found if hit["id"] == "img/valid005.jpg")
    assert {row["attribute"]: row["cosine"] for row in rows} == pytest.approx(scores, abs=1e-5)
    assert main([*map(str, arguments), str(images[1]), "--out", str(page)]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == (
        ["attribute", "box", "box", "of", "the", "second", "cosine", "weighted", "share,", "%"]
    )
    wrong = [*map(str, arguments), str(images[1]), "--hit", str(index), "x", "--out", str(page)]
    assert main(wrong) == 1
    assert "IMAGE2 must be left out with --hit" in capsys.readouterr().err


def test_data(data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["data", "verify", str(data)]) == 0
    assert "ok" in capsys.readouterr().out
    garments = str(tmp_path / "garments")
    assert main(["data", "generate", garments, "--items", "50", "--size", "64", "--seed", "3"]) == 0
    image = placket.data.open(garments).split("train").paths[0]
    Path(image).write_bytes(b"no image")
    capsys.readouterr()
    assert main(["data", "verify", garments, "--json"]) == 1
    captured = capsys.readouterr()
    assert [problem["kind"] for problem in json.loads(captured.out)] == ["damaged"]
    assert captured.err == ""


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    assert {"placket", "torch"} <= {finding["name"] for finding in json.loads(capsys.readouterr().out)}


@pytest.mark.parametrize("command", list(_COMMANDS))
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    assert f"example: placket {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["index"],
        ["data", "generate"],
        ["search", "a", "b", "-k", "many"],
        ["train", "--modle.trunk", "x"],
        ["train", "--stages.region.epochs", "two"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "none", "none"], "load: 'none' must be a checkpoint's folder"),
        (["data", "verify", "none"], "none: data set must be a folder or a file, got none there"),
        (["index", "info", "none"], "none"),
        (["compare", "note.txt", "none"], "note.txt: file must be a result saved as JSON, got"),
        (["compare", "none", "none"], "none: No such file"),
        (["train", "--config", "none.yaml"], "config: 'none.yaml' must be a file or a shipped recipe"),
        (["train", "--run", "none", "--resume"], "must be a file or a shipped recipe"),
        (["embed", "none", "none", "--out", "e.safetensors"], "embed: --out must be an .npz file, got e."),
        (["convert", "note.txt", "out"], "weights: 'note.txt' must be a whole file of tensors, got one with"),
    ],
)
def test_failure_is_one_sentence(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note.txt").write_text("no tensors")
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("placket: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_an_attribute_that_cannot_be_learnt_is_told(
    data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    labels = copy / "label_train.txt"
    rows = [line.split() for line in labels.read_text().splitlines()]
    labels.write_text("".join(f"{row[0]} 0 0 1 {row[4]}\n" for row in rows))
    file = tmp_path / "small.yaml"
    file.write_text(dump(small_config(copy)))
    assert main(["train", "--config", str(file), "--run", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert (
        f"placket: warning: {labels}: attribute 'colour' must have images of two values to be learnt" in said
    )


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "none", "none", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "placket", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert placket.__version__ in done.stdout
